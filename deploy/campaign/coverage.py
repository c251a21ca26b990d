"""Coverage-guided search: schedules and inputs that reached new states are mutated further."""

from __future__ import annotations

from random import Random
from typing import Final

import msgspec

from deploy.stress.case import Case, FaultKind
from deploy.stress.engine import Engine, Outcome
from deploy.stress.run import draw_faults, run_strategy, template
from deploy.stress.strategies import Mutated
from deploy.stress.workload import Workload, draw
from deploy.world import Kinds
from protocols.script import Operation

FRESH: Final = 0.2
"""Share of runs that start from nothing."""
CORPUS_MAX: Final = 256


class Corpus:
    """Runs that reached states never seen before, newest last."""

    def __init__(self) -> None:
        self._runs: list[tuple[Case, dict[int, int], int]] = []
        self._states: set[int] = set()

    def run(
        self,
        workload: Workload,
        random: Random,
        faults: tuple[FaultKind, ...],
        kinds: Kinds,
        bug: str,
    ) -> tuple[Case, Outcome]:
        """The next run: a mutant of a kept one, or a fresh one."""
        if not self._runs or random.random() < FRESH:
            case = draw(workload, random)
            if bug:
                case = msgspec.structs.replace(case, bug=bug)
            outcome = run_strategy(case, "random", random, 3, faults, kinds)
        else:
            # The newest runs are the likeliest: they stand at the frontier.
            newest = int(len(self._runs) * (1 - random.random() ** 2))
            case, deviations, decisions = self._runs[min(newest, len(self._runs) - 1)]
            if not workload.scripts and random.random() < 0.3:
                case = _mutated(case, workload, random)
            chooser = Mutated(random, deviations, random.randrange(decisions + 1))
            struck = draw_faults(random, faults, 2 * decisions + 1) if faults else ()
            world = template(case.host, case.domains, kinds)
            outcome = Engine(world, case, chooser, struck).run()
        fresh = set(outcome.states) - self._states
        if fresh:
            self._states |= fresh
            self._runs.append((case, outcome.deviations, outcome.nr_decisions))
            del self._runs[:-CORPUS_MAX]
        return case, outcome


def _mutated(case: Case, workload: Workload, random: Random) -> Case:
    """One operation of one client drawn anew."""
    other = draw(workload, random)
    client = random.randrange(len(case.clients))
    script = list(case.clients[client])
    if not script:
        return case
    at = random.randrange(len(script))
    replacement: Operation = random.choice(other.clients[client % len(other.clients)])
    script[at] = replacement
    clients = (*case.clients[:client], tuple(script), *case.clients[client + 1 :])
    return msgspec.structs.replace(case, clients=clients)
