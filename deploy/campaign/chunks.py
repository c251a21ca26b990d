"""Campaigns: many schedules, in chunks that any worker may run, with one verdict.

Chunk k of a campaign draws everything from (seed, k), so the verdict and the counterexample are
the same however many workers share the chunks: the failing schedule with the lowest number wins.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator
from random import Random
from typing import Final

import msgspec
import numpy as np

from deploy.campaign.artifact import (
    FORMAT,
    VERSION,
    Broken,
    Counterexample,
    Found,
    broken,
    kinds_of,
)
from deploy.campaign.coverage import Corpus
from deploy.stress import strategies
from deploy.stress.case import Case, FaultKind, Schedule
from deploy.stress.engine import Outcome
from deploy.stress.run import run_strategy, schedule_of
from deploy.stress.shrink import shrink
from deploy.stress.strategies import SAMPLING
from deploy.stress.workload import Workload, draw
from deploy.world import Kinds

CHUNK: Final = 32
"""Schedules of one chunk: long enough that handing it out costs nothing."""
KINDS_KEPT: Final = 0.75
"""A swarm's chunk leaves out each kind of operation with one chance in four."""


class Plan(msgspec.Struct, frozen=True):
    """A campaign. ``strategy`` "swarm": each chunk has its own, and its own subset of kinds."""

    workload: Workload
    strategy: str = "swarm"
    depth: int = 3
    seed: int = 0
    schedules: int = 1000
    faults: tuple[FaultKind, ...] = ()
    bug: str = ""
    entry: str = ""
    wanted: tuple[str, ...] = ()
    """Invariants that count, all if empty; others end a run without ending the campaign."""


class Task(msgspec.Struct, frozen=True):
    """One chunk: schedules [first, first + nr)."""

    plan: Plan
    first: int
    nr: int


class Failure(msgspec.Struct, frozen=True):
    """A run that broke an invariant, as it was found."""

    number: int
    strategy: str
    case: Case
    schedule: Schedule
    violation: Broken


class ChunkResult(msgspec.Struct, frozen=True):
    """What a chunk found: counts, the hashes of schedules and states, the first failure."""

    first: int
    nr_schedules: int
    nr_operations: int
    nr_steps: int
    signatures: bytes
    states: bytes
    events: list[str]
    failure: Failure | None
    unexpected: list[str]


def run_chunk(task: Task) -> ChunkResult:
    """Run a chunk up to its first failure."""
    plan = task.plan
    kinds = kinds_of(plan.bug, plan.entry)
    chunk = Random(f"{plan.seed}/{task.first}")  # noqa: S311
    strategy, only = _swarm(plan, chunk)
    corpus = Corpus() if strategy == "coverage" else None
    signatures: set[int] = set()
    states: set[int] = set()
    events: set[str] = set()
    operations = steps = done = 0
    failure: Failure | None = None
    unexpected: list[str] = []
    for number in range(task.first, task.first + task.nr):
        random = Random(f"{plan.seed}/{number}/run")  # noqa: S311
        if corpus is not None:
            case, outcome = corpus.run(plan.workload, random, plan.faults, kinds, plan.bug)
        else:
            case = _case(plan, random, only)
            outcome = run_strategy(case, strategy, random, plan.depth, plan.faults, kinds)
        done += 1
        operations += case.nr_operations()
        steps += outcome.nr_steps
        signatures.add(outcome.signature)
        states.update(outcome.states)
        events |= outcome.events
        if outcome.violation is not None:
            name = outcome.violation.invariant
            if plan.wanted and name not in plan.wanted:
                unexpected.append(str(outcome.violation))
                continue
            schedule = schedule_of(outcome)
            failure = Failure(number, strategy, case, schedule, broken(outcome.violation))
            break
    return ChunkResult(
        task.first,
        done,
        operations,
        steps,
        _packed(signatures),
        _packed(states),
        sorted(events),
        failure,
        unexpected[:3],
    )


def first_run(plan: Plan) -> tuple[Case, Outcome]:
    """The campaign's first schedule once more, for its history or its trace."""
    chunk = Random(f"{plan.seed}/0")  # noqa: S311
    strategy, only = _swarm(plan, chunk)
    random = Random(f"{plan.seed}/0/run")  # noqa: S311
    kinds = kinds_of(plan.bug, plan.entry)
    case = _case(plan, random, only)
    return case, run_strategy(case, strategy, random, plan.depth, plan.faults, kinds)


def _case(plan: Plan, random: Random, only: frozenset[str]) -> Case:
    case = draw(plan.workload, random, only)
    return msgspec.structs.replace(case, bug=plan.bug) if plan.bug else case


def _swarm(plan: Plan, random: Random) -> tuple[str, frozenset[str]]:
    """The chunk's strategy, and the kinds of operations that its clients draw from."""
    if plan.strategy != "swarm":
        return plan.strategy, frozenset()
    strategy = random.choice(SAMPLING)
    every = sorted({spec.kind for spec in plan.workload.operations})
    kept = frozenset(kind for kind in every if random.random() < KINDS_KEPT)
    return strategy, kept


def _packed(values: set[int]) -> bytes:
    return np.fromiter(values, dtype=np.uint64, count=len(values)).tobytes()


def chunk_task(data: bytes) -> bytes:
    """``run_chunk`` between workers: bytes in, bytes out.

    Worlds are freed by their counts; what cycles there are go after the chunk.
    """
    task = msgspec.msgpack.decode(data, type=Task)
    gc.disable()
    try:
        return msgspec.msgpack.encode(run_chunk(task))
    finally:
        gc.enable()
        gc.collect()


def tasks(plan: Plan) -> Iterator[Task]:
    """The chunks of a campaign, in order."""
    for first in range(0, plan.schedules, CHUNK):
        yield Task(plan, first, min(CHUNK, plan.schedules - first))


class Totals:
    """A campaign so far. ``failure`` is final when every chunk before it has been seen."""

    def __init__(self) -> None:
        self.nr_schedules = 0
        self.nr_operations = 0
        self.nr_steps = 0
        self.signatures: set[int] = set()
        self.states: set[int] = set()
        self.events: set[str] = set()
        self.failure: Failure | None = None
        self.unexpected: list[str] = []
        self.exhausted: bool | None = None

    def add(self, result: ChunkResult) -> None:
        """Count a chunk in."""
        self.nr_schedules += result.nr_schedules
        self.nr_operations += result.nr_operations
        self.nr_steps += result.nr_steps
        self.signatures.update(np.frombuffer(result.signatures, dtype=np.uint64).tolist())
        self.states.update(np.frombuffer(result.states, dtype=np.uint64).tolist())
        self.events.update(result.events)
        self.unexpected += result.unexpected
        if result.failure is not None and (
            self.failure is None or result.failure.number < self.failure.number
        ):
            self.failure = result.failure


Runner = Callable[[Iterable[bytes]], Iterator[tuple[int, bytes]]]
"""Runs tasks somewhere; (index, result) as they finish."""
Watcher = Callable[[Totals], None]


def here(payloads: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """The runner of one job: this process, in order."""
    for index, payload in enumerate(payloads):
        yield index, chunk_task(payload)


def run(
    plan: Plan,
    runner: Runner = here,
    *,
    seconds: float | None = None,
    watcher: Watcher | None = None,
) -> Totals:
    """Run the chunks until all are done, time is up, or the first failure is certain."""
    totals = Totals()
    finished: set[int] = set()
    failed_at: int | None = None
    deadline = None if seconds is None else time.monotonic() + seconds

    def payloads() -> Iterator[bytes]:
        for task in tasks(plan):
            if failed_at is not None or (deadline is not None and time.monotonic() >= deadline):
                return
            yield msgspec.msgpack.encode(task)

    results: dict[int, ChunkResult] = {}
    for index, data in runner(payloads()):
        result = msgspec.msgpack.decode(data, type=ChunkResult)
        finished.add(index)
        results[index] = result
        totals.add(result)
        if watcher is not None:
            watcher(totals)
        if result.failure is not None and (failed_at is None or index < failed_at):
            failed_at = index
        if failed_at is not None and finished.issuperset(range(failed_at)):
            break
    if failed_at is not None:
        # Chunks beyond the failing one depend on how many workers there were: left out.
        exact = Totals()
        for index in range(failed_at + 1):
            exact.add(results[index])
        return exact
    return totals


def counterexample(plan: Plan, failure: Failure, kinds: Kinds) -> tuple[Counterexample, int]:
    """The failure, shrunk, as a file's content; and the runs that shrinking took."""
    small = shrink(failure.case, failure.schedule, failure.violation.invariant, kinds)
    violation = small.outcome.violation
    assert violation is not None, "shrinking keeps the violation"
    example = Counterexample(
        FORMAT,
        VERSION,
        broken(violation),
        Found(failure.number, failure.strategy, plan.seed),
        small.outcome.nr_steps,
        small.case,
        small.schedule,
        plan.entry,
    )
    return example, small.nr_runs


SEARCHES: Final = frozenset(strategies.STRATEGIES) - frozenset(SAMPLING) - {"coverage"}
"""Strategies that go through the schedules of one case in an order of their own."""
