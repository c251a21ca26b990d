"""Systematic search through the schedules of one case: depth-first with sleep sets, breadth-first.

Two steps are independent if they reach different components, since components share nothing; what
reaches toolstacks is kept in order, as the order of calls and returns is the history. Sleep
sets (Godefroid 1996) then skip every schedule that only swaps independent steps, so the schedules
run are distinct up to what any component could notice.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from deploy.campaign.artifact import broken, kinds_of
from deploy.campaign.chunks import Failure, Plan, Totals
from deploy.stress.case import Case
from deploy.stress.engine import Channel, Engine, Outcome
from deploy.stress.run import schedule_of, template
from deploy.stress.strategies import Prefix
from protocols.envelope import CLIENT
from protocols.errno import ShatterproofError

CLIENTS = "clients"


class PrunedError(ShatterproofError):
    """Every step that could be next has been explored in another order already."""


def place(channel: Channel) -> str:
    """What a step touches: its component, or the clients' common history.

    That a script is done touches nothing that anybody could notice.
    """
    dst = channel.dst
    if dst == CLIENT:
        return channel.name
    return CLIENTS if dst[0] == "t" else dst


@dataclass(slots=True)
class _Node:
    """A point of the current path: the steps possible, the one taken, those done with."""

    causes: list[int]
    places: list[str]
    index: int
    sleep: dict[int, str] = field(default_factory=dict[int, str])

    def next_index(self) -> int | None:
        """The next step that is not asleep."""
        for index, cause in enumerate(self.causes):
            if cause not in self.sleep:
                return index
        return None


class SleepSets:
    """Chooser of one run: the path so far, then the oldest step that is not asleep."""

    every = True

    def __init__(self, path: list[_Node], depth: int | None) -> None:
        self.path = path
        self._at = 0
        self._depth = depth
        self._deviations = 0

    def pick(self, enabled: Sequence[Channel]) -> int:
        """Along the path, and beyond it.

        Raises:
            PrunedError: nothing new lies this way.
        """
        at = self._at
        self._at = at + 1
        index = self.path[at].index if at < len(self.path) else self._extend(enabled)
        if index:
            self._deviations += 1
        return index

    def _extend(self, enabled: Sequence[Channel]) -> int:
        sleep: dict[int, str] = {}
        if self.path:
            last = self.path[-1]
            taken = last.places[last.index]
            sleep = {cause: where for cause, where in last.sleep.items() if where != taken}
        node = _Node([c.cause for c in enabled], [place(c) for c in enabled], 0, sleep)
        index = node.next_index()
        if index is None or (index and self._depth is not None and self._deviations >= self._depth):
            raise PrunedError("asleep")
        node.index = index
        self.path.append(node)
        return index


def depth_first(
    plan: Plan,
    case: Case,
    depth: int | None,
    watcher: Callable[[Totals], None] | None = None,
    seconds: float | None = None,
) -> Totals:
    """Every distinct schedule of a case, at most ``plan.schedules``.

    ``depth`` bounds the deviations of a schedule. ``exhausted`` tells whether all were covered.
    """
    kinds = kinds_of(plan.bug, plan.entry)
    world = template(case.host, case.domains, kinds)
    totals = Totals()
    path: list[_Node] = []
    totals.exhausted = False
    runs = 0
    deadline = _deadline(seconds)
    while totals.nr_schedules < plan.schedules and runs < 20 * plan.schedules:
        if time.monotonic() >= deadline:
            break
        runs += 1
        engine = Engine(world, case, SleepSets(path, depth))
        try:
            outcome = engine.run()
        except PrunedError:
            engine.world.abandon()
        else:
            _count(totals, plan, case, outcome, "dfs")
            if watcher is not None:
                watcher(totals)
            if totals.failure is not None:
                return totals
        if not _backtrack(path, depth):
            totals.exhausted = depth is None
            break
    return totals


def _backtrack(path: list[_Node], depth: int | None) -> bool:
    """Move the deepest node that has something left to its next step; False if none has."""
    while path:
        node = path[-1]
        node.sleep[node.causes[node.index]] = node.places[node.index]
        index = node.next_index()
        spent = sum(1 for each in path[:-1] if each.index)
        if index is not None and not (index and depth is not None and spent >= depth):
            node.index = index
            return True
        path.pop()
    return False


def breadth_first(
    plan: Plan,
    case: Case,
    depth: int | None,
    watcher: Callable[[Totals], None] | None = None,
    seconds: float | None = None,
) -> Totals:
    """Schedules by number of deviations; a state met before is not expanded again."""
    kinds = kinds_of(plan.bug, plan.entry)
    world = template(case.host, case.domains, kinds)
    totals = Totals()
    expanded: set[int] = set()
    waiting: deque[dict[int, int]] = deque([{}])
    deadline = _deadline(seconds)
    while waiting and totals.nr_schedules < plan.schedules and time.monotonic() < deadline:
        choices = waiting.popleft()
        states: list[int] = []
        chooser = Prefix(choices, states)
        engine = Engine(world, case, chooser)
        engine.outcome.states = states
        outcome = engine.run()
        _count(totals, plan, case, outcome, "bfs")
        if watcher is not None:
            watcher(totals)
        if totals.failure is not None:
            return totals
        if depth is not None and len(choices) >= depth:
            continue
        for at in range(max(choices, default=-1) + 1, len(chooser.widths)):
            state = chooser.before[at]
            if state in expanded:
                continue
            expanded.add(state)
            waiting += [{**choices, at: index} for index in range(1, chooser.widths[at])]
    totals.exhausted = not waiting and depth is None
    return totals


def _deadline(seconds: float | None) -> float:
    return float("inf") if seconds is None else time.monotonic() + seconds


def _count(totals: Totals, plan: Plan, case: Case, outcome: Outcome, strategy: str) -> None:
    number = totals.nr_schedules
    totals.nr_schedules += 1
    totals.nr_operations += case.nr_operations()
    totals.nr_steps += outcome.nr_steps
    totals.signatures.add(outcome.signature)
    totals.states.update(outcome.states)
    totals.events |= outcome.events
    violation = outcome.violation
    if violation is None:
        return
    if plan.wanted and violation.invariant not in plan.wanted:
        totals.unexpected.append(str(violation))
        return
    schedule = schedule_of(outcome)
    totals.failure = Failure(number, strategy, case, schedule, broken(violation))
