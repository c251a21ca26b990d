"""Make a failing run small: fewer clients, operations, domains, faults, then fewer deviations.

Everything is deterministic: a candidate counts if it breaks the same invariant. At the end every
schedule with few deviations is tried for what is left, so that the story that remains is as close
to first come, first served as a bounded search can show.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Final, TypeVar

import msgspec

from deploy.stress.case import Case, Schedule
from deploy.stress.engine import Engine, Outcome
from deploy.stress.run import run_schedule, run_strategy, schedule_of, template
from deploy.stress.strategies import InOrder, Prefix
from deploy.world import KINDS, Kinds
from protocols.errno import BadInputError
from protocols.script import Operation

RUNS_MAX: Final = 800
RETRIES: Final = 6
"""Other schedules tried when a smaller case does not fail under the one at hand."""
EXACT_RUNS_MAX: Final = 400

T = TypeVar("T")


@dataclass(slots=True)
class Shrunk:
    """The smallest failing run found, and what finding it took."""

    case: Case
    schedule: Schedule
    outcome: Outcome
    nr_runs: int


class _Shrinker:
    def __init__(self, case: Case, schedule: Schedule, kinds: Kinds, invariant: str) -> None:
        self.case = case
        self.schedule = schedule
        self.kinds = kinds
        self.invariant = invariant
        self.nr_runs = 0
        self.outcome = self._run(case, schedule)

    def _run(self, case: Case, schedule: Schedule) -> Outcome:
        self.nr_runs += 1
        return run_schedule(case, schedule, self.kinds).outcome

    def _is_it(self, outcome: Outcome) -> bool:
        violation = outcome.violation
        return violation is not None and violation.invariant == self.invariant

    def keep(self, case: Case, outcome: Outcome) -> None:
        """This is smaller and fails the same way."""
        self.case = case
        self.schedule = schedule_of(outcome)
        self.outcome = outcome

    def attempt(self, schedule: Schedule) -> bool:
        """Whether the case fails under a simpler schedule, too; that is kept then."""
        if self.nr_runs >= RUNS_MAX:
            return False
        outcome = self._run(self.case, schedule)
        if self._is_it(outcome):
            self.keep(self.case, outcome)
            return True
        return False

    def smaller(self, case: Case) -> bool:
        """Whether a smaller case fails in the same order, or else in another; it is kept then."""
        if self.nr_runs >= RUNS_MAX:
            return False
        self.nr_runs += 1
        try:
            world = template(case.host, case.domains, self.kinds)
        except BadInputError:
            return False
        chooser = InOrder(self.outcome.order)
        outcome = Engine(world, case, chooser, self.schedule.faults).run()
        if self._is_it(outcome):
            self.keep(case, outcome)
            return True
        return not self.schedule.faults and self._elsewhere(case)

    def _elsewhere(self, case: Case) -> bool:
        """A smaller case may fail in an order that the larger one's cannot tell."""
        for number in range(RETRIES):
            if self.nr_runs >= RUNS_MAX:
                return False
            self.nr_runs += 1
            strategy = ("sticky", "pos", "random")[number % 3]
            random = Random(number)  # noqa: S311
            outcome = run_strategy(case, strategy, random, 3, (), self.kinds)
            if self._is_it(outcome):
                self.keep(case, outcome)
                return True
        return False

    # -- the case ----------------------------------------------------------------------------

    def clients(self) -> None:
        """Without one client at a time."""
        for client in range(len(self.case.clients) - 1, -1, -1):
            if self.case.clients[client]:
                self.smaller(_with_script(self.case, client, ()))

    def operations(self) -> None:
        """Half of what is left, then quarters, then single operations."""
        size = max(1, self.case.nr_operations() // 2)
        while True:
            shrunk = False
            for first in range(self.case.nr_operations() - size, -1, -size):
                shrunk |= self.smaller(_without(self.case, range(first, first + size)))
            if size == 1 and not shrunk:
                return
            size = max(1, size // 2)

    def domains(self) -> None:
        """Only what somebody speaks of; then smaller: fewer vCPUs, nothing warm."""
        spoken = {op.domid for script in self.case.clients for op in script}
        spoken |= {
            op.target for script in self.case.clients for op in script if op.kind == "translate"
        }
        kept = tuple(domain for domain in self.case.domains if domain.domid in spoken)
        if len(kept) < len(self.case.domains):
            self.smaller(msgspec.structs.replace(self.case, domains=kept))
        for at, domain in enumerate(self.case.domains):
            for smaller in (
                msgspec.structs.replace(domain, warm=()),
                msgspec.structs.replace(domain, vcpus=1),
            ):
                if smaller != domain:
                    domains = (*self.case.domains[:at], smaller, *self.case.domains[at + 1 :])
                    candidate = msgspec.structs.replace(self.case, domains=domains)
                    if self.smaller(candidate):
                        domain = smaller  # noqa: PLW2901

    # -- the schedule ------------------------------------------------------------------------

    def faults(self) -> None:
        """Without one fault at a time."""
        for fault in reversed(self.schedule.faults):
            rest = tuple(each for each in self.schedule.faults if each != fault)
            self.attempt(Schedule(self.schedule.deviations, rest))

    def deviations(self) -> None:
        """Half of the deviations, then single ones; then lower indices."""
        size = max(1, len(self.schedule.deviations) // 2)
        while self.schedule.deviations:
            shrunk = False
            for some in list(_chunks(sorted(self.schedule.deviations), size)):
                rest = {k: v for k, v in self.schedule.deviations.items() if k not in some}
                shrunk |= self.attempt(Schedule(rest, self.schedule.faults))
            if size == 1 and not shrunk:
                break
            size = max(1, size // 2)
        for decision, index in sorted(self.schedule.deviations.items()):
            for lower in range(1, index):
                changed = {**self.schedule.deviations, decision: lower}
                if self.attempt(Schedule(changed, self.schedule.faults)):
                    break

    def exact(self) -> None:
        """Breadth-first over the schedules with fewer deviations; no state is expanded twice."""
        limit = self.nr_runs + EXACT_RUNS_MAX
        best = len(self.schedule.deviations)
        world = template(self.case.host, self.case.domains, self.kinds)
        expanded: set[int] = set()
        waiting: deque[dict[int, int]] = deque([{}])
        while waiting and self.nr_runs < limit:
            choices = waiting.popleft()
            if len(choices) >= best:
                return
            self.nr_runs += 1
            states: list[int] = []
            chooser = Prefix(choices, states)
            engine = Engine(world, self.case, chooser, self.schedule.faults)
            engine.outcome.states = states
            outcome = engine.run()
            if self._is_it(outcome) and len(outcome.deviations) < best:
                self.keep(self.case, outcome)
                return
            for at in range(max(choices, default=-1) + 1, len(chooser.widths)):
                if chooser.before[at] not in expanded:
                    expanded.add(chooser.before[at])
                    waiting += [{**choices, at: index} for index in range(1, chooser.widths[at])]


def shrink(case: Case, schedule: Schedule, invariant: str, kinds: Kinds = KINDS) -> Shrunk:
    """The smallest failing run that a bounded number of runs finds."""
    shrinker = _Shrinker(case, schedule, kinds, invariant)
    assert shrinker.outcome.violation is not None, "a run that fails must fail again"
    passes: tuple[Callable[[], None], ...] = (
        shrinker.clients,
        shrinker.operations,
        shrinker.domains,
        shrinker.faults,
        shrinker.deviations,
    )
    while True:
        before = (shrinker.case, shrinker.schedule)
        for each in passes:
            each()
        if (shrinker.case, shrinker.schedule) == before or shrinker.nr_runs >= RUNS_MAX:
            break
    shrinker.exact()
    return Shrunk(shrinker.case, shrinker.schedule, shrinker.outcome, shrinker.nr_runs)


def _chunks(items: list[T], size: int) -> Iterator[list[T]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]


def _with_script(case: Case, client: int, script: tuple[Operation, ...]) -> Case:
    clients = (*case.clients[:client], script, *case.clients[client + 1 :])
    return msgspec.structs.replace(case, clients=clients)


def _without(case: Case, dropped: range) -> Case:
    """The case without some operations, counted through all clients."""
    clients: list[tuple[Operation, ...]] = []
    number = 0
    for script in case.clients:
        kept = [op for at, op in enumerate(script, start=number) if at not in dropped]
        number += len(script)
        clients.append(tuple(kept))
    return msgspec.structs.replace(case, clients=tuple(clients))
