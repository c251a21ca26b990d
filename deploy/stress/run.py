"""Run cases: with the right components, under a schedule or a strategy."""

from __future__ import annotations

from functools import lru_cache
from random import Random
from typing import Final

from deploy.stress import strategies
from deploy.stress.case import Case, DomainSetup, Fault, FaultKind, Host, Schedule
from deploy.stress.engine import Engine, Outcome
from deploy.stress.strategies import Replay
from deploy.stress.world import Template
from deploy.world import KINDS, Kinds

TEMPLATES_MAX: Final = 64
FAULTS_MAX: Final = 3
SLOW_MAX: Final = 40
DECISIONS_PER_OPERATION: Final = 6
"""About how long a run is, for strategies that place something at random (measured)."""


@lru_cache(maxsize=TEMPLATES_MAX)
def template(host: Host, domains: tuple[DomainSetup, ...], kinds: Kinds) -> Template:
    """The world of a case, made once."""
    return Template(host, domains, kinds)


def run_schedule(
    case: Case,
    schedule: Schedule,
    kinds: Kinds = KINDS,
    *,
    keep_steps: bool = False,
    until: int | None = None,
) -> Engine:
    """A case under a recorded schedule; the engine, with its outcome and its world."""
    engine = Engine(
        template(case.host, case.domains, kinds),
        case,
        Replay(schedule.deviations),
        schedule.faults,
        keep_steps=keep_steps,
        until=until,
    )
    engine.run()
    return engine


def run_strategy(
    case: Case,
    strategy: str,
    random: Random,
    depth: int,
    faults: tuple[FaultKind, ...] = (),
    kinds: Kinds = KINDS,
) -> Outcome:
    """A case under a randomised strategy."""
    decisions = DECISIONS_PER_OPERATION * case.nr_operations()
    struck = draw_faults(random, faults, decisions) if faults else ()
    chooser = strategies.make(strategy, random, depth, decisions)
    return Engine(template(case.host, case.domains, kinds), case, chooser, struck).run()


def draw_faults(random: Random, kinds: tuple[FaultKind, ...], steps: int) -> tuple[Fault, ...]:
    """Up to FAULTS_MAX faults at random steps, at most one a step."""
    drawn: dict[int, Fault] = {}
    for _ in range(random.randint(1, FAULTS_MAX)):
        kind = random.choice(kinds)
        step = random.randrange(max(1, steps))
        length = random.randint(1, SLOW_MAX) if kind == "slow" else 0
        drawn[step] = Fault(step, kind, length)
    return tuple(drawn[step] for step in sorted(drawn))


def schedule_of(outcome: Outcome) -> Schedule:
    """What must be kept of a run to repeat it."""
    return Schedule(dict(sorted(outcome.deviations.items())), outcome.struck)
