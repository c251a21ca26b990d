"""What is checked while a run goes on: it sees every allocation, free, table change and answer.

The watch knows what each domain's memory must look like from the updates alone (the p2m update
hook, frame by frame, no page sizes), and looks at the real tables, TLBs and owners whenever they
may have changed. It never changes anything, except that it lets allocations fail when a fault
says so.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from protocols.envelope import Envelope
from protocols.errno import Errno, ShatterproofError
from protocols.frames import DOMID_XEN, INVALID_FRAME, FrameArray, expand, unpack
from protocols.p2m import P2mCreate, P2mUpdated
from protocols.p2m_types import P2mType
from protocols.trace import MemEvent
from protocols.walk import Touch, Translations, WalkTranslate
from services.component.host import Activity, Host
from services.heap.component import Allocator
from services.heap.node_memory import NodeMemory
from services.heap.policy import SLICE_FRAMES
from services.p2m.component import P2m
from services.p2m.ptp_pool import NO_SLOT, PtpPool
from services.p2m.set_result import SetResult
from services.p2m.table import P2mTable
from services.spec.accesses import NOBODY, Version
from services.spec.domain_rules import UNREACHABLE
from services.spec.findings import Violation
from services.spec.physmap import Physmap
from services.walker.component import Walker

WORK_MAX: Final = SLICE_FRAMES
"""Frames that one step may free or hand out: the slice between two preemption points."""


class ViolationError(ShatterproofError):
    """An invariant does not hold; the run ends here."""

    def __init__(self, violation: Violation) -> None:
        super().__init__(str(violation))
        self.violation = violation


def fail(
    invariant: str,
    message: str,
    domid: int | None = None,
    gfn: int | None = None,
    mfn: int | None = None,
    order: int | None = None,
) -> None:
    """End the run with a violation."""
    raise ViolationError(Violation(invariant, message, domid, gfn, mfn, order))


class Watch:
    """Eyes of one run. ``muted`` while a crashed component is rebuilt from its log."""

    def __init__(self) -> None:
        self.muted = False
        self.walkers: dict[str, Walker] = {}
        self.p2ms: dict[int, P2m] = {}
        self.memories: dict[int, NodeMemory] = {}
        self.physmaps: dict[int, Physmap] = {}
        self.watched: dict[int, FrameArray] = {}
        self.fail_heap = False
        self.fail_pool = False
        self.consumed: list[str] = []
        self.step = 0
        self.client = -1
        self.initial: dict[tuple[int, int], tuple[int, P2mType]] = {}
        self.timeline: dict[tuple[int, int], list[Version]] = {}
        self._answered: dict[tuple[int, int], int] = {}
        self._unanswered: dict[tuple[int, str, int], dict[int, int]] = {}
        self.tot_pages: dict[int, int] = {}
        self.enomem: set[int] = set()
        self.work = 0
        self.events: set[str] = set()
        self._digests: dict[int, int] = {}

    def begin_step(self, step: int = 0, client: int = -1) -> None:
        """A component is about to run for a client."""
        self.step = step
        self.client = client
        self.work = 0
        self.consumed = []

    def add_work(self, nr: int, what: str) -> None:
        """Frames handled since the step began: bounded, or a hypercall hogs the processor."""
        self.work += nr
        if self.work > WORK_MAX and not self.muted:
            fail("bounded_work", f"{self.work} frames {what} in one step, at most {WORK_MAX}")

    # -- frames ------------------------------------------------------------------------------

    def frames_freed(self, mfns: FrameArray, order: int, owner: int) -> None:
        """Frames go back to the heap: no walker may still reach one."""
        self.add_work(int(mfns.size) << order, "freed")
        if self.muted or not mfns.size:
            return
        if owner == DOMID_XEN:
            self._no_cached_table(mfns, "goes back to the heap")
            return
        low, high = int(mfns.min()), int(mfns.max()) + (1 << order)
        for walker in self.walkers.values():
            gfns, cached, orders = walker.tlb.entries()
            if not gfns.size:
                continue
            near = (cached < high) & (cached + (np.uint64(1) << orders.astype(np.uint64)) > low)
            for at in np.flatnonzero(near).tolist():
                self._reachable(walker, (gfns, cached, orders), at, (mfns, order))

    def owner_freed(self, memory: NodeMemory, owner: int) -> None:
        """Some frames of a dying domain were freed: its walkers reach none that is not its own."""
        for walker in self.walkers.values():
            if self.muted or walker.domid != owner:
                continue
            gfns, cached, orders = walker.tlb.entries()
            for gfn, mfn, order in zip(
                gfns.tolist(), cached.tolist(), orders.tolist(), strict=True
            ):
                frames = np.arange(mfn, mfn + (1 << order), dtype=np.uint64)
                frames = frames[(frames >= memory.start) & (frames < memory.end)]
                gone = frames[memory.frames.owner(frames) != owner]
                if gone.size:
                    lost = int(gone[0])
                    fail(
                        "flushed_before_free",
                        f"freed while {walker.context.name} still translates to it",
                        owner,
                        gfn + lost - mfn,
                        lost,
                        order,
                    )

    def _reachable(
        self,
        walker: Walker,
        entries: tuple[FrameArray, FrameArray, Any],
        at: int,
        freed: tuple[FrameArray, int],
    ) -> None:
        gfns, cached, orders = entries
        frames = expand(freed[0], freed[1])
        base, order = int(cached[at]), int(orders[at])
        inside = frames[(frames >= base) & (frames < base + (1 << order))]
        if inside.size:
            mfn = int(inside[0])
            fail(
                "flushed_before_free",
                f"freed while {walker.context.name} still translates to it",
                walker.domid,
                int(gfns[at]) + mfn - base,
                mfn,
                order,
            )

    def _no_cached_table(self, mfns: FrameArray, what: str) -> None:
        for walker in self.walkers.values():
            held = walker.tables_in_use()
            if held.size:
                both = np.intersect1d(held, mfns)
                if both.size:
                    fail(
                        "flushed_before_table_reuse",
                        f"page-table page {what} while {walker.context.name} has it cached",
                        walker.domid,
                        None,
                        int(both[0]),
                    )

    def table_free(self, mfns: list[int]) -> None:
        """Retired tables become free in their pool."""
        if not self.muted and mfns:
            self._no_cached_table(np.array(mfns, dtype=np.uint64), "is free again")

    # -- tables ------------------------------------------------------------------------------

    def p2m_update(
        self,
        request: Envelope,
        order: int,
        p2mt: int,
        gfns: FrameArray,
        mfns: FrameArray,
    ) -> None:
        """An update was committed for a request to a P2M: all that may change a translation."""
        domid = int(request.dst.partition("/")[2])
        watched = self.watched.get(domid)
        if watched is None or self.muted:
            return
        physmap = self.physmaps.setdefault(domid, Physmap())
        mine = self._unanswered.setdefault((domid, request.src, request.msg_id), {})
        for gfn, mfn in zip(gfns.tolist(), mfns.tolist(), strict=True):
            size = 1 << order
            near = watched[(watched >= gfn) & (watched < gfn + size)]
            for frame in near.tolist():
                at = mfn if mfn == INVALID_FRAME else mfn + frame - gfn
                physmap.set_entry(frame, at, 1, p2mt)
                mine[frame] = self._note(domid, frame, physmap)

    def watch_gfns(self, p2m: P2m, domid: int, gfns: list[int]) -> None:
        """Know from here on what these gfns must read as."""
        table = p2m.table_now
        if table is None:
            return
        watched = np.array(gfns, dtype=np.uint64)
        watched = watched[watched < table.geometry.gfn_limit]
        self.watched[domid] = watched
        physmap = self.physmaps[domid] = Physmap()
        mfns, types, _ = table.get(watched)
        for gfn, mfn, p2mt in zip(watched.tolist(), mfns.tolist(), types.tolist(), strict=True):
            physmap.set_entry(gfn, mfn, 1, p2mt)
            self.initial[domid, gfn] = physmap.get(gfn)
            self.timeline[domid, gfn] = [Version(-1, NOBODY, _readable(physmap, gfn))]

    def _note(self, domid: int, gfn: int, physmap: Physmap) -> int:
        """A translation may have changed, by the client whose operation runs; its number."""
        timeline = self.timeline[domid, gfn]
        timeline.append(Version(self.step, self.client, _readable(physmap, gfn)))
        return len(timeline) - 1

    def forget(self, domid: int) -> None:
        """The domain's tables are gone."""
        physmap = self.physmaps.pop(domid, None)
        if physmap is not None:
            self.events.add("teardown")
            for gfn in self.watched[domid].tolist():
                self.timeline[domid, gfn].append(Version(self.step, self.client, INVALID_FRAME))

    def check_table(self, p2m: P2m, domid: int) -> None:
        """Every watched gfn maps what its last update said, whatever was split or replaced."""
        table = p2m.table_now
        watched = self.watched.get(domid)
        if table is None:
            self.forget(domid)
            return
        if watched is None or not watched.size:
            return
        digest = zlib.crc32(table.raw())
        if self._digests.get(domid) == digest:
            return
        self._digests[domid] = digest
        mfns, types, orders = table.get(watched)
        physmap = self.physmaps.setdefault(domid, Physmap())
        rows = zip(watched.tolist(), mfns.tolist(), types.tolist(), orders.tolist(), strict=True)
        for gfn, mfn, p2mt, order in rows:
            want_mfn, want_type = physmap.get(gfn)
            if (mfn, p2mt) != (want_mfn, want_type):
                fail(
                    "translation_kept",
                    f"reads as {_entry(mfn, p2mt)}, the last update made it "
                    f"{_entry(want_mfn, want_type)}",
                    domid,
                    gfn,
                    None if mfn == INVALID_FRAME else mfn,
                    order,
                )

    def check_answers(self, p2m: P2m, domid: int, out: list[Envelope]) -> None:
        """Updates are being answered: whatever walkers hold is at least as new as those.

        So it is with each update for itself, also while a flush for another is outstanding; if
        none is, they hold just what the tables say.
        """
        answered = False
        for each in out:
            mine = self._unanswered.pop((domid, each.dst, each.in_reply_to), None)
            answered = answered or type(each.body) is P2mUpdated or mine is not None
            for gfn, number in (mine or {}).items():
                self._answered[domid, gfn] = max(number, self._answered.get((domid, gfn), 0))
        table = p2m.table_now
        if not answered or table is None:
            return
        for walker in self.walkers.values():
            if walker.domid != domid:
                continue
            gfns, cached, orders = walker.tlb.entries()
            if gfns.size:
                self._check_ages(walker, gfns, cached, orders)
                if not p2m.outstanding_flushes:
                    self._check_entries(walker, gfns, cached, table)

    def _check_ages(
        self, walker: Walker, gfns: FrameArray, cached: FrameArray, orders: npt.NDArray[np.uint8]
    ) -> None:
        """No entry is from before the last update that was answered, at any gfn that it covers."""
        domid = walker.domid
        watched = self.watched.get(domid)
        if watched is None:
            return
        low = np.searchsorted(watched, gfns)
        high = np.searchsorted(watched, gfns + (np.uint64(1) << orders.astype(np.uint64)))
        rows = zip(gfns.tolist(), cached.tolist(), low.tolist(), high.tolist(), strict=True)
        for at, (first, mfn, begin, end) in enumerate(rows):
            for gfn in watched[begin:end].tolist():
                known = self.timeline[domid, gfn][self._answered.get((domid, gfn), 0) :]
                if all(version.mfn != mfn + gfn - first for version in known):
                    self._stale(walker, gfn, mfn + gfn - first, known[-1].mfn, int(orders[at]))

    def _check_entries(
        self, walker: Walker, gfns: FrameArray, cached: FrameArray, table: P2mTable
    ) -> None:
        mfns, _, orders = table.get(gfns)
        wrong = np.flatnonzero(mfns != cached)
        if wrong.size:
            at = int(wrong[0])
            self._stale(walker, int(gfns[at]), int(cached[at]), int(mfns[at]), int(orders[at]))

    def _stale(self, walker: Walker, gfn: int, cached: int, mfn: int, order: int) -> None:
        fail(
            "tlb_coherent",
            f"{walker.context.name} still has {cached:#x} after the update was answered",
            walker.domid,
            gfn,
            None if mfn == INVALID_FRAME else mfn,
            order,
        )

    # -- walkers -----------------------------------------------------------------------------

    def check_use(self, walker: str, request: Touch | WalkTranslate, reply: Translations) -> None:
        """A walker hands out translations: each frame must belong to the domain right now."""
        mfns = unpack(reply.mfns)
        used = mfns != INVALID_FRAME
        for gfn, mfn in zip(unpack(request.gfns)[used].tolist(), mfns[used].tolist(), strict=True):
            owner = self._owner(mfn)
            if owner != request.domid:
                fail(
                    "use_after_free",
                    f"{walker} uses a frame that is {_owner_name(owner)}",
                    request.domid,
                    gfn,
                    mfn,
                )

    def _owner(self, mfn: int) -> int:
        for memory in self.memories.values():
            if memory.start <= mfn < memory.end:
                return int(memory.frames.owner(np.array([mfn], dtype=np.uint64))[0])
        return -1


def _readable(physmap: Physmap, gfn: int) -> int:
    """The mfn that an access finds, INVALID_FRAME where none gets through."""
    mfn, p2mt = physmap.get(gfn)
    return INVALID_FRAME if UNREACHABLE[p2mt] else mfn


def _owner_name(owner: int) -> str:
    return f"of domid {owner}" if 0 <= owner < DOMID_XEN - 16 else "free or Xen's"


def _entry(mfn: int, p2mt: int) -> str:
    name = P2mType(p2mt).name.lower()
    return name if mfn == INVALID_FRAME else f"mfn {mfn:#x} {name}"


class WatchedMemory(NodeMemory):
    """A node's memory that can fail on request and tells of what is freed."""

    def __init__(self, watch: Watch, node: int, start: int, nr_frames: int) -> None:
        super().__init__(node, start, nr_frames)
        self._watch = watch

    def alloc(self, order: int, nr: int, owner: int) -> FrameArray:
        """As the heap does; nothing when a fault strikes."""
        watch = self._watch
        if watch.fail_heap and nr:
            watch.fail_heap = False
            watch.consumed.append("heap")
            watch.enomem.add(owner)
            watch.events.add("ENOMEM")
            return np.empty(0, dtype=np.uint64)
        mfns = super().alloc(order, nr, owner)
        watch.add_work(int(mfns.size) << order, "handed out")
        if mfns.size < nr:
            watch.enomem.add(owner)
            watch.events.add("ENOMEM")
        return mfns

    def free(self, mfns: FrameArray, order: int, owner: int, *, dirty: bool) -> int:
        """As the heap does."""
        self._watch.frames_freed(mfns, order, owner)
        return super().free(mfns, order, owner, dirty=dirty)

    def free_owned(self, owner: int, limit: int) -> int:
        """As the heap does."""
        freed = super().free_owned(owner, limit)
        self._watch.add_work(freed, "freed")
        self._watch.owner_freed(self, owner)
        return freed


class WatchedPool(PtpPool):
    """A paging pool that can run dry on request and tells of tables given back."""

    __slots__ = ("domid", "watch")

    def __init__(self, watch: Watch, geometry: Any, domid: int) -> None:
        super().__init__(geometry)
        self.watch = watch
        self.domid = domid

    @property
    def nr_free(self) -> int:
        """None while the fault lasts."""
        nr = super().nr_free
        if self.watch.fail_pool:
            self._struck()
            return 0
        return nr

    def _struck(self) -> None:
        watch = self.watch
        watch.enomem.add(self.domid)
        watch.events.add("pool exhausted")
        if "pool" not in watch.consumed:
            watch.consumed.append("pool")

    def alloc(self) -> int:
        """As the pool does."""
        if self.watch.fail_pool:
            self._struck()
            return NO_SLOT
        slot = super().alloc()
        if slot == NO_SLOT:
            self.watch.enomem.add(self.domid)
            self.watch.events.add("pool exhausted")
        return slot

    def give_back(self, mfns: Any) -> None:
        """As the pool does."""
        mfns = list(mfns)
        self.watch.table_free(mfns)
        super().give_back(mfns)


class NewTable:
    """Stands in for a P2M's ``new_table``: the same table, with a watched pool."""

    def __init__(self, watch: Watch, make: Callable[[P2mCreate], P2mTable]) -> None:
        self._watch = watch
        self._make = make

    def __call__(self, m: P2mCreate) -> P2mTable:
        """As ``P2m.new_table``."""
        table = self._make(m)
        table.use_pool(WatchedPool(self._watch, table.geometry, m.domid))
        return table


class Commit:
    """Stands in for a P2M's ``commit``: tells the watch what the update was meant to change."""

    def __init__(
        self,
        watch: Watch,
        running: list[Activity | None],
        commit: Callable[[FrameArray, FrameArray, int, int], SetResult],
    ) -> None:
        self._watch = watch
        self._running = running
        self._commit = commit

    def __call__(self, gfns: FrameArray, mfns: FrameArray, order: int, p2mt: int) -> SetResult:
        """As ``P2m.commit``."""
        result = self._commit(gfns, mfns, order, p2mt)
        watch = self._watch
        running = self._running[0]
        assert running is not None, "a table changed, and no request runs"
        for from_order in result.nr_shatters:
            watch.events.add(f"shatter {from_order}")
        if result.stale:
            watch.events.add("flush")
        if result.errno == Errno.ENOMEM:
            watch.enomem.add(int(running.cause.dst.partition("/")[2]))
            watch.events.add("pool exhausted")
        for number, update in enumerate(result.updates):
            some_gfns, some_mfns, some_order, some_type = update
            if result.errno and number + 1 == len(result.updates):
                # The chunk that failed is traced, as Xen does, but was not written.
                some_gfns, some_mfns = some_gfns[:-1], some_mfns[:-1]
            watch.p2m_update(running.cause, some_order, int(some_type), some_gfns, some_mfns)
        return result


def trace_nothing(
    event: MemEvent, domid: int, order: int, p2mt: int, gfns: FrameArray, mfns: FrameArray
) -> None:
    """The update hook of a watched P2M: with a hook, tables record what they change."""
    del event, domid, order, p2mt, gfns, mfns


def attach(watch: Watch, host: Host) -> None:
    """Let the watch see a component: called when it is made, and when it was rebuilt."""
    component = host.component
    if isinstance(component, Walker):
        watch.walkers[host.name] = component
    elif isinstance(component, P2m):
        watch.p2ms[int(host.name.partition("/")[2])] = component
    elif isinstance(component, Allocator):
        watch.memories[component.node] = component.memory
