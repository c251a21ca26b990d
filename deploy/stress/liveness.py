"""Why nothing moves, or why it never ends: who waits for whom, told in one line."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from protocols import envelope as addresses
from protocols.registry import TAGS
from services.component.host import Activity
from services.spec.findings import Violation

if TYPE_CHECKING:
    from deploy.stress.case import Case
    from deploy.stress.world import World

Place = tuple[str, Activity]


def stuck(world: World, clients: list[int]) -> Violation:
    """All is quiet and somebody still waits: the wait-for cycle, or the end of the chain."""
    for client in clients:
        host = world.hosts[addresses.toolstack(client)]
        for activity in host.waiting().values():
            chain = _follow(world, (host.name, activity))
            names = [_describe(place) for place in chain]
            if chain[-1] in chain[:-1]:
                cycle = names[chain.index(chain[-1]) :]
                return Violation("no_deadlock", "wait-for cycle: " + " -> ".join(cycle))
            return Violation(
                "no_lost_wakeup",
                f"client {client} waits for ever: " + " -> ".join(names),
            )
    return Violation("no_lost_wakeup", f"clients {clients} never finished")


def _follow(world: World, start: Place) -> list[Place]:
    """From an activity to whom it waits for, until that ends or repeats."""
    chain = [start]
    while True:
        following = _waits_for(world, chain[-1])
        if following is None:
            return chain
        chain.append(following)
        if following in chain[:-1]:
            return chain


def _waits_for(world: World, place: Place) -> Place | None:
    name, activity = place
    host = world.hosts[name]
    lock = host.blocked().get(activity)
    if lock is not None:
        return (name, lock.holders[0]) if lock.holders else None
    for number, each in host.waiting().items():
        if each is activity:
            answering = _answering(world, name, number)
            if answering is not None:
                return answering
    return None


def _answering(world: World, asker: str, number: int) -> Place | None:
    """The activity that must answer message ``number`` of ``asker``."""
    for host in world.hosts.values():
        everyone = [*host.waiting().values(), *host.blocked()]
        for activity in everyone:
            cause = activity.cause
            if cause.src == asker and cause.msg_id == number:
                return host.name, activity
    return None


def _describe(place: Place) -> str:
    name, activity = place
    return f"{name} in {TAGS[type(activity.cause.body)]} #{activity.cause.msg_id}"


def livelock(world: World, steps: int, case: Case) -> Violation:
    """Too many steps: what was still going on."""
    busy: Counter[str] = Counter()
    for host in world.hosts.values():
        for activity in [*host.waiting().values(), *host.blocked()]:
            busy[f"{TAGS[type(activity.cause.body)]} at {host.name}"] += 1
    doing = ", ".join(name for name, _ in busy.most_common(4)) or "messages without an activity"
    return Violation(
        "no_livelock", f"{steps} steps for {case.nr_operations()} operations; busy: {doing}"
    )
