"""The lock protocols side by side: are they right, and what do they cost in virtual time.

Virtual time is a discrete-event run of the same components: every message takes the time of a
hop, every step of a handler the time that its work would take on a processor of its caller's, and
who works on a part of the tables under a lock keeps others from that part meanwhile. The costs are
declared below, with where they come from; ``docs/stress.md`` says what they leave out.
"""

from __future__ import annotations

from heapq import heappop, heappush
from random import Random
from typing import Any, Final

import msgspec

from deploy.campaign import chunks
from deploy.campaign.chunks import Plan
from deploy.stress.case import LOCK_PROTOCOLS
from deploy.stress.run import template
from deploy.stress.watch import ViolationError
from deploy.stress.workload import Workload, draw
from protocols import envelope as addresses
from protocols.control import Continuation
from protocols.envelope import CLIENT, Envelope
from protocols.errno import ComponentFailureError
from protocols.frames import unpack
from protocols.p2m import P2mEntries, P2mGetEntry, P2mGetRoot, P2mTranslate, ReadPageTableFrames
from protocols.script import RunScript
from protocols.walk import FlushTlb

CLIENTS: Final = (1, 2, 4, 8, 16, 32, 64)


class Costs(msgspec.Struct, frozen=True):
    """Nanoseconds of one step each.

    hop: a cache line from one core to another, as a call or a lock word costs. hypercall: entry
    and exit of a guest or a toolstack. lookup: a walk of four cached levels. update: the same and
    a store. shatter: filling a table of 512 entries, 4 KiB of stores. flush: an inter-processor
    interrupt and INVEPT or a new ASID on the far side. alloc: a page from the heap. retry: looking
    again at a part of the tables that somebody had claimed.
    """

    hop: int = 100
    hypercall: int = 700
    lookup: int = 60
    update: int = 100
    shatter: int = 400
    flush: int = 1500
    alloc: int = 200
    retry: int = 100


class Point(msgspec.Struct, frozen=True):
    """One protocol under so many clients: operations a second, and nanoseconds an operation."""

    lock: str
    clients: int
    operations: int
    ops_per_s: float
    latency_ns: float
    wait_ns: float
    retries: int


class Verdict(msgspec.Struct, frozen=True):
    """Whether a protocol stayed clean, and over how many schedules."""

    lock: str
    clean: bool
    schedules: int
    invariant: str


READS: Final = (P2mGetEntry, P2mTranslate)
UNLOCKED: Final = (P2mGetRoot, ReadPageTableFrames)


class _Clock:
    """A run in virtual time. ``busy``: until when somebody works on a part of the tables."""

    def __init__(
        self, workload: Workload, lock: str, clients: int, seed: int, costs: Costs
    ) -> None:
        host = msgspec.structs.replace(workload.host, lock=lock)
        some = msgspec.structs.replace(workload, host=host, clients=clients)
        case = draw(some, Random(f"{seed}/{clients}"))  # noqa: S311
        self._world = template(case.host, case.domains, chunks.kinds_of("")).load()
        self._costs = costs
        self._lock = lock
        self._events: list[tuple[int, int, str, Envelope | None]] = []
        self._seq = 0
        self._busy: dict[tuple[str, int], int] = {}
        self._called: dict[str, int] = {}
        self._sent: dict[tuple[str, str], int] = {}
        self.latencies: list[int] = []
        self.now = 0
        for client, script in enumerate(case.clients):
            dst = addresses.toolstack(client)
            self._post(0, Envelope(CLIENT, dst, 1 << 40, 0, RunScript(list(script))))

    def _post(self, when: int, envelope: Envelope) -> None:
        """Send; a link keeps its order, whatever each message costs."""
        self._seq += 1
        link = (envelope.src, envelope.dst)
        when = self._sent[link] = max(when, self._sent.get(link, 0))
        heappush(self._events, (when, self._seq, envelope.dst, envelope))

    def run(self) -> None:
        """To the end."""
        while self._events:
            when, _, dst, envelope = heappop(self._events)
            if dst == CLIENT:
                continue
            start = self._start(when, dst, envelope)
            if start > when:
                self._seq += 1
                heappush(self._events, (start, self._seq, dst, envelope))
                continue
            self._step(start, dst, envelope)
        self._world.abandon()
        assert not self._called, f"{len(self._called)} operations never returned"

    def _scope(self, dst: str, envelope: Envelope | None) -> list[tuple[str, int]]:
        """The parts of the tables that a step works on under a lock."""
        if envelope is None or dst[0] != "p" or self._lock in {"optimistic", "none"}:
            return []
        body: Any = envelope.body
        if envelope.in_reply_to or isinstance(body, (*UNLOCKED, Continuation)):
            return []
        if self._lock == "domain":
            return [(dst, -1)]
        gfns = getattr(body, "gfns", None)
        if gfns is None:
            named = [getattr(body, name, None) for name in ("src", "dst", "gfn")]
            return [(dst, gfn >> 9) for gfn in named if gfn is not None] or [(dst, -1)]
        return [(dst, region) for region in sorted({gfn >> 9 for gfn in unpack(gfns).tolist()})]

    def _start(self, when: int, dst: str, envelope: Envelope | None) -> int:
        scope = self._scope(dst, envelope)
        return max((when, *(self._busy.get(part, 0) for part in scope)))

    def _step(self, start: int, dst: str, envelope: Envelope | None) -> None:
        world = self._world
        host = world.host(dst)
        host.trust_links()
        world.watch.begin_step()
        if envelope is not None and dst[0] == "t" and envelope.in_reply_to:
            self.latencies.append(start - self._called.pop(dst))
        shatters = self._shatters(dst)
        out = host.resume() if envelope is None else host.deliver(envelope, drain=False)
        end = (
            start
            + self._cost(dst, envelope)
            + (self._shatters(dst) - shatters) * (self._costs.shatter)
        )
        self.now = max(self.now, end)
        if envelope is None or not isinstance(envelope.body, READS):
            for part in self._scope(dst, envelope):
                self._busy[part] = end
        for _ in range(len(host.ready()) - self._waiting(dst)):
            self._seq += 1
            heappush(self._events, (end + self._costs.hop, self._seq, dst, None))
        for each in out:
            when = end + self._costs.hop
            if dst[0] == "t" and each.dst != CLIENT:
                self._called[dst] = end
                when = end + self._costs.hypercall
            elif isinstance(each.body, FlushTlb):
                when = end + self._costs.flush
            self._post(when, each)

    def _waiting(self, dst: str) -> int:
        return sum(1 for _, _, where, envelope in self._events if where == dst and envelope is None)

    def _shatters(self, dst: str) -> int:
        if dst[0] != "p":
            return 0
        component: Any = self._world.host(dst).component
        return component.nr_shatters

    def _cost(self, dst: str, envelope: Envelope | None) -> int:
        costs = self._costs
        if envelope is None:
            return costs.update
        body = envelope.body
        if dst[0] == "p":
            if isinstance(body, Continuation):
                return costs.retry
            if isinstance(body, READS):
                return costs.lookup
            return costs.hop if envelope.in_reply_to or isinstance(body, UNLOCKED) else costs.update
        if dst[0] == "a":
            return costs.hop if envelope.in_reply_to else costs.alloc
        if dst[0] == "w":
            return costs.lookup if not isinstance(body, (FlushTlb, P2mEntries)) else costs.hop
        return 0

    def retries(self) -> int:
        """How often the optimistic protocol had to look again."""
        return sum(p2m.locking.retries for p2m in self._world.watch.p2ms.values())


def measure(workload: Workload, seed: int, costs: Costs) -> list[Point]:
    """Every protocol under 1 to 64 clients."""
    points: list[Point] = []
    for lock in LOCK_PROTOCOLS:
        alone = 0.0
        for clients in CLIENTS:
            try:
                clock = _Clock(workload, lock, clients, seed, costs)
                clock.run()
            except (ViolationError, ComponentFailureError):
                # A broken protocol may break anywhere: no figure then.
                continue
            latencies = clock.latencies
            mean = sum(latencies) / max(1, len(latencies))
            alone = mean if clients == 1 else alone
            points.append(
                Point(
                    lock,
                    clients,
                    len(latencies),
                    len(latencies) / max(clock.now, 1) * 1e9,
                    mean,
                    max(0.0, mean - alone),
                    clock.retries(),
                )
            )
    return points


def verdicts(workload: Workload, seed: int, schedules: int) -> list[Verdict]:
    """Every protocol under a campaign of so many schedules."""
    found: list[Verdict] = []
    for lock in LOCK_PROTOCOLS:
        host = msgspec.structs.replace(workload.host, lock=lock)
        some = msgspec.structs.replace(workload, host=host)
        totals = chunks.run(Plan(some, seed=seed, schedules=schedules))
        failure = totals.failure
        name = "" if failure is None else failure.violation.invariant
        found.append(Verdict(lock, failure is None, totals.nr_schedules, name))
    return found
