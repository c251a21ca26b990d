"""One entry of the zoo: find the bug, shrink it, and see that the right components stay clean."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

import msgspec

from deploy.campaign import chunks
from deploy.campaign.artifact import Counterexample, entry_named, kinds_of
from deploy.campaign.chunks import Plan, Runner
from deploy.stress.entry import ZooEntry

HUNT_MAX: Final = 20_000
"""Schedules after which a bug counts as not found."""
CLEAN_FACTOR: Final = 100
"""The right components must stay clean over so many times the schedules that the bug needed."""
CLEAN_MIN: Final = 200


class ZooRow(msgspec.Struct, frozen=True):
    """A row of the zoo's table. ``steps``: of the shrunk story; ``seconds``: of the hunt."""

    name: str
    source: str
    invariant: str
    found: bool
    schedules: int
    steps: int
    seconds: float
    clean: bool
    clean_schedules: int
    unexpected: list[str]


@dataclass(slots=True)
class Hunt:
    """A row, and the counterexample behind it."""

    row: ZooRow
    example: Counterexample | None


def plan_of(entry: type[ZooEntry], seed: int, *, bug: bool, text: str = "") -> Plan:
    """The campaign of an entry: with its bug, or the same without it."""
    return Plan(
        entry.workload,
        seed=seed,
        schedules=HUNT_MAX,
        faults=entry.faults,
        bug=entry.name if bug else "",
        entry=text if bug else "",
        wanted=tuple(sorted(entry.broken())) if bug else (),
    )


def hunt(name: str, seed: int = 0, text: str = "", runner: Runner = chunks.here) -> Hunt:
    """Hunt one entry down; ``text`` is that of a file from outside."""
    entry = entry_named(name, text)
    begun = time.monotonic()
    plan = plan_of(entry, seed, bug=True, text=text)
    totals = chunks.run(plan, runner)
    example: Counterexample | None = None
    needed = totals.nr_schedules
    if totals.failure is not None:
        needed = totals.failure.number + 1
        example, _ = chunks.counterexample(plan, totals.failure, kinds_of(name, text))
    seconds = time.monotonic() - begun
    clean_plan = msgspec.structs.replace(
        plan_of(entry, seed, bug=False),
        schedules=max(CLEAN_MIN, CLEAN_FACTOR * needed) if example is not None else CLEAN_MIN,
    )
    clean = chunks.run(clean_plan, runner)
    unexpected = totals.unexpected[:3]
    if clean.failure is not None:
        unexpected.append(f"without the bug: {clean.failure.violation.message}")
    row = ZooRow(
        name,
        entry.source,
        entry.invariant if example is None else example.violation.invariant,
        example is not None,
        needed,
        0 if example is None else example.steps,
        round(seconds, 3),
        clean.failure is None,
        clean.nr_schedules,
        unexpected,
    )
    return Hunt(row, example)


class HuntTask(msgspec.Struct, frozen=True):
    """One entry for a worker."""

    name: str
    seed: int
    text: str = ""


class HuntResult(msgspec.Struct, frozen=True):
    """What comes back from it."""

    row: ZooRow
    example: Counterexample | None


def hunt_task(data: bytes) -> bytes:
    """``hunt`` between workers: bytes in, bytes out."""
    task = msgspec.msgpack.decode(data, type=HuntTask)
    found = hunt(task.name, task.seed, task.text)
    return msgspec.msgpack.encode(HuntResult(found.row, found.example))
