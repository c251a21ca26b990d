"""The P2M of a domain: decides and waits; every table change is one call into ring one.

Every request runs in a span of the lock protocol (``services/p2m/locking.py``). What an update
made stale is flushed, and every walker in the dirty mask has acknowledged, before the update is
answered and before a replaced table's frame returns to the pool. Counts change together with the
commit, before anything is awaited.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final

import numpy as np

from protocols import envelope
from protocols.control import LeafTable, P2mSnapshotReply, SnapshotP2m
from protocols.errno import Errno
from protocols.frames import (
    INVALID_FRAME,
    PAGE_SIZE,
    FrameArray,
    bounds,
    expand,
    pack,
    unpack,
)
from protocols.memory import Status
from protocols.p2m import (
    P2mAddPage,
    P2mChangeType,
    P2mCreate,
    P2mEntries,
    P2mGetEntry,
    P2mGetRoot,
    P2mMarkPod,
    P2mMove,
    P2mPodCacheAdd,
    P2mPodState,
    P2mPoolAdd,
    P2mPoolFrames,
    P2mPoolRemove,
    P2mRemovePages,
    P2mRoot,
    P2mSetEntry,
    P2mTeardown,
    P2mTranslate,
    P2mUnmap,
    P2mUpdated,
    PageTableFrames,
    ReadPageTableFrames,
)
from protocols.p2m_types import P2mType
from protocols.trace import MemEvent
from protocols.walk import (
    FAULT_FAILED,
    FAULT_HOLE,
    FAULT_RETRY,
    FaultOutcome,
    FlushTlb,
    NestedPageFault,
)
from services.component.component import Component, handles
from services.component.context import Context
from services.component.traps import CallAll
from services.p2m import demand, removal
from services.p2m.entry import bits_63_52, flags_low12
from services.p2m.geometry import GEOMETRIES
from services.p2m.kinds import IS_HOLE, IS_RAM, IS_SPECIAL, NO_FRAMES, invalid, one
from services.p2m.locking import DOMAIN_LEVEL, make_locking, one_step
from services.p2m.lookup import LevelScan
from services.p2m.pod import PodState
from services.p2m.table import P2mTable, SetResult

NO_TABLE: Final = P2mUpdated(0, -Errno.ESRCH)
_UPDATE: Final = MemEvent.SET_P2M_ENTRY


class NoTablesError(Exception):
    """The domain has no page tables (any more); ends a request where it stands."""


class P2m(Component):
    """p2m_domain of one domain."""

    def __init__(self, context: Context, home: int, lock_protocol: str = "domain") -> None:
        super().__init__(context)
        self.home = envelope.allocator(home)
        self.lock = context.lock("p2m", DOMAIN_LEVEL)
        self.locking = make_locking(lock_protocol, context, self.lock)
        self.pod = PodState()
        self._table: P2mTable | None = None
        self._readers: set[str] = set()
        self._being_flushed: Counter[str] = Counter()
        self._outstanding_flushes = 0
        self._shatters: dict[int, int] = {}
        self._nr_updates = 0

    @property
    def table(self) -> P2mTable:
        """The tables.

        Raises:
            NoTablesError: there are none; without a lock they may go while a request waits.
        """
        if self._table is None:
            raise NoTablesError(self.context.name)
        return self._table

    @property
    def table_now(self) -> P2mTable | None:
        """The tables if the domain has some, for whoever looks on from outside."""
        return self._table

    @property
    def nr_shatters(self) -> int:
        """Superpages shattered so far, of any order."""
        return sum(self._shatters.values())

    @property
    def outstanding_flushes(self) -> int:
        """Flushes that some walker has not acknowledged yet."""
        return self._outstanding_flushes

    # -- life cycle --------------------------------------------------------------------------

    @handles(P2mCreate)
    async def create(self, m: P2mCreate) -> Status:
        """p2m_init and hap_enable: the root table comes from the pool given."""
        span = await self.locking.enter(None)
        try:
            if self._table is not None:
                return Status(-Errno.EEXIST)
            table = self.new_table(m)
            table.pool_add(unpack(m.pool))
            if not table.init_root():
                return Status(-Errno.ENOMEM)
            self._table = table
            self.locking.region_shift = table.geometry.index_bits[0]
            # Walkers that asked between two domains of one domid hold a root that is none.
            await self.flush(m.domid)
            return Status(0)
        finally:
            self.locking.leave(span)

    def new_table(self, m: P2mCreate) -> P2mTable:
        """Empty tables of the domain."""
        pairs = unpack(m.force_4k).reshape(-1, 2).tolist()
        return P2mTable(
            GEOMETRIES[m.paging],
            m.domid,
            allowed_orders=tuple(m.leaf_orders),
            force_4k=[(gfn, nr) for gfn, nr in pairs],
            record=self.context.on_mem_event is not None,
        )

    @handles(P2mPoolAdd)
    async def pool_add(self, m: P2mPoolAdd) -> Status:
        """hap_set_allocation upwards."""
        if self._table is None:
            return Status(-Errno.ESRCH)
        self._table.pool_add(unpack(m.mfns))
        return Status(0)

    @handles(P2mPoolRemove)
    async def pool_remove(self, m: P2mPoolRemove) -> P2mPoolFrames:
        """hap_set_allocation downwards: only free frames can go."""
        if self._table is None:
            return P2mPoolFrames(b"", 0)
        mfns = self._table.pool_remove(m.nr)
        return P2mPoolFrames(pack(mfns), self._table.pool_total)

    @handles(P2mTeardown)
    async def teardown(self, m: P2mTeardown) -> P2mPoolFrames:
        """p2m_final_teardown: no walker may follow a table whose frame goes back to the heap.

        The tables are out of reach before the flush goes out: a walker that reads again after its
        acknowledgement finds nothing that it could cache.
        """
        span = await self.locking.enter(None)
        try:
            table = self.detach()
            if table is None:
                return P2mPoolFrames(b"", 0)
            await self.flush(m.domid)
            return P2mPoolFrames(pack(table.teardown()), 0)
        finally:
            self.locking.leave(span)

    def detach(self) -> P2mTable | None:
        """Take the tables out of reach of every reader; they and the PoD state are forgotten."""
        table, self._table = self._table, None
        self.pod = PodState()
        return table

    # -- updates -----------------------------------------------------------------------------

    async def _update(
        self,
        gfns: FrameArray,
        order: int,
        body: Callable[[], Awaitable[P2mUpdated]],
        *,
        several: Callable[[], bool] = one_step,
    ) -> P2mUpdated:
        """Run an update in a span of its own, if the domain has tables."""
        span = await self.locking.enter(gfns, order, several=several)
        try:
            return NO_TABLE if self._table is None else await body()
        except NoTablesError:
            return NO_TABLE
        finally:
            self.locking.leave(span)

    async def set_entries(
        self,
        gfns: FrameArray,
        mfns: FrameArray,
        order: int,
        p2mt: int,
        settle: Callable[[SetResult], None] | None = None,
    ) -> tuple[SetResult, FrameArray]:
        """p2m_set_entry, its flush, and only then the replaced tables; with the RAM displaced.

        ``settle`` sees the result at once: whatever is counted changes with the commit.
        """
        result = self.commit(gfns, mfns, order, p2mt)
        if settle is not None:
            settle(result)
        await self.after_commit(result)
        return result, displaced_frames(result)

    def commit(self, gfns: FrameArray, mfns: FrameArray, order: int, p2mt: int) -> SetResult:
        """The table's change, all at once; what it made stale is still to be flushed."""
        table = self.table
        result = table.set_range(gfns, mfns, order, P2mType(p2mt))
        self._nr_updates += result.nr_updates
        for from_order, nr in result.nr_shatters.items():
            self._shatters[from_order] = self._shatters.get(from_order, 0) + nr
        hook = self.context.on_mem_event
        if hook is not None:
            for some_gfns, some_mfns, some_order, some_type in result.updates:
                hook(_UPDATE, table.domid, some_order, some_type, some_gfns, some_mfns)
        return result

    def trace(self, event: MemEvent, gfn: int, order: int, mfns: FrameArray, p2mt: int = 0) -> None:
        """Report one event to whoever traces; ``mfns`` has one element."""
        hook = self.context.on_mem_event
        if hook is not None:
            hook(event, self.table.domid, order, p2mt, one(gfn), mfns)

    async def after_commit(self, result: SetResult) -> None:
        """Flush what the commit made stale; only then may replaced tables be used again.

        Where another update of the same regions still waits for its flush, walkers may translate
        as they did before that one, so this one waits for them, too.
        """
        table = self.table
        if result.stale or self.locking.crowded():
            await self.flush(table.domid)
        if result.retired.size and self._table is table:
            self.give_back_tables(result.retired)

    def give_back_tables(self, mfns: FrameArray) -> None:
        """Retired tables return to the pool: no walker follows them any more."""
        self.table.pool_return(mfns)

    async def flush(self, domid: int) -> None:
        """p2m_tlb_flush_sync: every walker that may have cached something has forgotten it.

        The mask is emptied before the orders go out: a walker that reads again meanwhile reads
        the new entries and joins the next mask (see the bug where it is read once). Walkers that
        have not acknowledged another update's order are asked again: they may have cached what
        was true until now, and links keep order.
        """
        readers = sorted(self._readers.union(self._being_flushed))
        if not readers:
            return
        self._readers.clear()
        self._being_flushed.update(readers)
        self._outstanding_flushes += 1
        await CallAll([(reader, FlushTlb(domid)) for reader in readers])
        self._outstanding_flushes -= 1
        self._being_flushed -= Counter(readers)

    @handles(P2mSetEntry)
    async def set_entry(self, m: P2mSetEntry) -> P2mUpdated:
        """p2m_set_entry for each extent."""
        gfns = unpack(m.gfns)

        async def body() -> P2mUpdated:
            result, displaced = await self.set_entries(gfns, unpack(m.mfns), m.order, m.p2mt)
            return P2mUpdated(result.nr_done, -result.errno, pack(displaced))

        return await self._update(gfns, m.order, body)

    @handles(P2mAddPage)
    async def add_page(self, m: P2mAddPage) -> P2mUpdated:
        """p2m_add_page: extents up to the first that meets a special page (-EPERM)."""
        return await self._update(unpack(m.gfns), m.order, lambda: self._add_page(m))

    async def _add_page(self, m: P2mAddPage) -> P2mUpdated:
        gfns, mfns = unpack(m.gfns), unpack(m.mfns)
        inside = self.inside(gfns, m.order)
        nr, errno, pod_frames = self._addable(gfns[:inside], m.order)
        if nr == inside < gfns.size:
            errno = Errno.EINVAL
        partial = 0

        def settle(result: SetResult) -> None:
            nonlocal partial, errno
            if pod_frames.size:
                self.pod.entry_count -= self._no_longer_pod(pod_frames)
            done = result.nr_done
            if done < nr:
                errno = result.errno
                partial = self._mapped_prefix(int(gfns[done]), int(mfns[done]), m.order)

        result, displaced = await self.set_entries(
            gfns[:nr], mfns[:nr], m.order, P2mType.RAM_RW, settle
        )
        return P2mUpdated(result.nr_done, -errno, pack(displaced), partial)

    def inside(self, gfns: FrameArray, order: int) -> int:
        """Leading extents that lie in the format's gfn space as a whole (gfn_check_limit)."""
        last = self.table.geometry.gfn_limit - (1 << order)
        if not gfns.size or bounds(gfns)[1] <= last:
            return gfns.size
        return int(np.flatnonzero(gfns > last)[0])

    def _addable(self, gfns: FrameArray, order: int) -> tuple[int, Errno, FrameArray]:
        """(leading extents that meet nothing special, errno, gfns among them that are PoD)."""
        table = self.table
        if not gfns.size or bounds(gfns)[0] > table.max_mapped_pfn:
            return gfns.size, Errno.OK, NO_FRAMES
        _, types, orders = table.get(gfns)
        if bool(np.all(IS_HOLE[types] & (orders >= order))):
            return gfns.size, Errno.OK, NO_FRAMES
        frames = expand(gfns, order)
        _, types, _ = table.get(frames)
        special = np.flatnonzero(IS_SPECIAL[types])
        nr = int(special[0]) >> order if special.size else gfns.size
        pod = np.unique(frames[: nr << order][types[: nr << order] == P2mType.POPULATE_ON_DEMAND])
        return nr, Errno.EPERM if special.size else Errno.OK, pod

    def _mapped_prefix(self, gfn: int, mfn: int, order: int) -> int:
        """Leading frames of a failed extent that are mapped as asked."""
        step = np.arange(1 << order, dtype=np.uint64)
        found, _, _ = self.table.get(np.uint64(gfn) + step)
        wrong = np.flatnonzero(found != np.uint64(mfn) + step)
        return int(wrong[0]) if wrong.size else 1 << order

    def _no_longer_pod(self, gfns: FrameArray) -> int:
        _, types, _ = self.table.get(gfns)
        return int(np.count_nonzero(types != P2mType.POPULATE_ON_DEMAND))

    @handles(P2mRemovePages)
    async def remove_pages(self, m: P2mRemovePages) -> P2mUpdated:
        """p2m_pod_decrease_reservation, then guest_remove_page for each page."""
        return await self._update(
            unpack(m.gfns),
            m.order,
            lambda: removal.remove_pages(self, m),
            several=lambda: removal.takes_several(self, m),
        )

    @handles(P2mUnmap)
    async def unmap(self, m: P2mUnmap) -> P2mUpdated:
        """p2m_remove_page of one page: exactly this mapping, or -EILSEQ and no change."""

        async def body() -> P2mUpdated:
            found, _, _ = self.table.get(one(m.gfn))
            if int(found[0]) != m.mfn:
                return P2mUpdated(0, -Errno.EILSEQ)
            result, displaced = await self.set_entries(one(m.gfn), invalid(1), 0, P2mType.INVALID)
            return P2mUpdated(result.nr_done, -result.errno, pack(displaced))

        return await self._update(one(m.gfn), 0, body)

    @handles(P2mMove)
    async def move(self, m: P2mMove) -> P2mUpdated:
        """The page at src appears at dst and nowhere else, in one lock span (XSA-379)."""
        both = np.array([m.src, m.dst], dtype=np.uint64)
        return await self._update(both, 0, lambda: self._move(m), several=lambda: True)

    async def _move(self, m: P2mMove) -> P2mUpdated:
        found, types, _ = self.table.get(np.array([m.src, m.dst], dtype=np.uint64))
        if int(found[0]) != m.mfn:
            return P2mUpdated(0, -Errno.EXDEV)
        if IS_SPECIAL[types[1]]:
            return P2mUpdated(0, -Errno.EPERM)
        kind = int(types[0])
        result, _ = await self.set_entries(one(m.src), invalid(1), 0, P2mType.INVALID)
        if result.errno:
            return P2mUpdated(0, -result.errno)

        def settle(result: SetResult) -> None:
            if not result.errno and int(types[1]) == P2mType.POPULATE_ON_DEMAND:
                self.pod.entry_count -= 1

        result, displaced = await self.set_entries(one(m.dst), one(m.mfn), 0, kind, settle)
        if result.errno:
            # The entry at src exists at 4K by now, so putting it back needs no new table.
            back, _ = await self.set_entries(one(m.src), one(m.mfn), 0, kind)
            assert not back.errno, f"domid {m.domid}: gfn {m.src:#x}: mfn {m.mfn:#x} lost"
            return P2mUpdated(0, -result.errno)
        return P2mUpdated(1, 0, pack(displaced))

    @handles(P2mChangeType)
    async def change_type(self, m: P2mChangeType) -> P2mUpdated:
        """p2m_change_type_one for each gfn, after populating what is on demand (get_gfn)."""
        gfns = unpack(m.gfns)

        async def body() -> P2mUpdated:
            for done, gfn in enumerate(gfns.tolist()):
                errno = await demand.populate(self, gfn)
                found, types, _ = self.table.get(one(gfn))
                if errno or not IS_RAM[types[0]]:
                    return P2mUpdated(done, -(errno or Errno.EBUSY))
                result, _ = await self.set_entries(one(gfn), found, 0, m.p2mt)
                if result.errno:
                    return P2mUpdated(done, -result.errno)
            return P2mUpdated(gfns.size, 0)

        return await self._update(
            gfns, 0, body, several=lambda: gfns.size > 1 or demand.any_pod(self, gfns)
        )

    # -- populate on demand ------------------------------------------------------------------

    @handles(P2mMarkPod)
    async def mark_pod(self, m: P2mMarkPod) -> P2mUpdated:
        """guest_physmap_mark_populate_on_demand: RAM in the way is -EBUSY."""
        return await self._update(unpack(m.gfns), m.order, lambda: demand.mark(self, m))

    @handles(P2mPodCacheAdd)
    async def pod_cache_add(self, m: P2mPodCacheAdd) -> P2mPodState:
        """p2m_pod_cache_add; with no frames it only tells the counts."""
        self.pod.add(unpack(m.mfns), m.order)
        return P2mPodState(self.pod.count, self.pod.entry_count)

    # -- look-ups ----------------------------------------------------------------------------

    @handles(P2mGetEntry)
    async def get_entry(self, m: P2mGetEntry) -> P2mEntries:
        """get_gfn_type_access; with alloc (P2M_ALLOC) PoD entries are populated first."""
        gfns = unpack(m.gfns)
        span = await self.locking.enter(gfns, exclusive=m.alloc, several=lambda: m.alloc)
        try:
            if m.alloc and self._table is not None:
                for gfn in gfns.tolist():
                    if await demand.populate(self, gfn):
                        break
            mfns, types, orders = self.table.get(gfns)
            return P2mEntries(pack(mfns), types.tobytes(), orders.tobytes())
        except NoTablesError:
            nr = gfns.size
            return P2mEntries(pack(invalid(nr)), bytes([P2mType.MMIO_DM]) * nr, bytes(nr))
        finally:
            self.locking.leave(span)

    @handles(P2mTranslate)
    async def translate(self, m: P2mTranslate) -> P2mEntries:
        """RAM only; anything else reads as INVALID_MFN."""
        reply = await self.get_entry(P2mGetEntry(m.domid, m.gfns))
        types = np.frombuffer(reply.types, dtype=np.uint8)
        mfns = np.where(IS_RAM[types], unpack(reply.mfns), np.uint64(INVALID_FRAME))
        return P2mEntries(pack(mfns), reply.types, reply.orders)

    @handles(P2mGetRoot)
    async def get_root(self, m: P2mGetRoot) -> P2mRoot:
        """Where the reader's walks start; the reader joins the dirty mask."""
        self._readers.add(m.reader)
        if self._table is None:
            return P2mRoot(0, "npt")
        return P2mRoot(self._table.root_mfn, self._table.geometry.name)

    @handles(ReadPageTableFrames)
    async def read_frames(self, m: ReadPageTableFrames) -> PageTableFrames:
        """A reader's memory accesses: no lock, as hardware takes none; single stores keep it safe.

        A frame that is no table any more reads as zeros: nothing present.
        """
        self._readers.add(m.reader)
        table = self._table
        zeros = bytes(PAGE_SIZE)
        data = [
            zeros if table is None else (table.read_frame(mfn) or zeros)
            for mfn in unpack(m.mfns).tolist()
        ]
        return PageTableFrames(b"".join(data))

    @handles(NestedPageFault)
    async def nested_page_fault(self, m: NestedPageFault) -> FaultOutcome:
        """hvm_hap_nested_page_fault for each gfn: populate, retry, or nothing there."""
        gfns = unpack(m.gfns)
        span = await self.locking.enter(gfns, several=lambda: demand.any_pod(self, gfns))
        try:
            outcome = bytearray()
            for gfn in gfns.tolist():
                if await demand.populate(self, gfn):
                    self.trace(MemEvent.NPF, gfn, 0, invalid(1), P2mType.POPULATE_ON_DEMAND)
                    outcome.append(FAULT_FAILED)
                    continue
                mfns, types, _ = self.table.get(one(gfn))
                self.trace(MemEvent.NPF, gfn, 0, mfns, int(types[0]))
                outcome.append(FAULT_HOLE if int(mfns[0]) == INVALID_FRAME else FAULT_RETRY)
            return FaultOutcome(bytes(outcome))
        except NoTablesError:
            return FaultOutcome(bytes([FAULT_HOLE]) * gfns.size)
        finally:
            self.locking.leave(span)

    # -- operator ----------------------------------------------------------------------------

    @handles(SnapshotP2m)
    async def snapshot(self, m: SnapshotP2m) -> P2mSnapshotReply:
        """The whole state, for audit, dump and report."""
        table = self._table
        if table is None:
            nothing = LeafTable(m.domid, b"", b"", b"", b"", b"", b"")
            return P2mSnapshotReply(nothing, b"", b"", 0, 0, b"", 0, {}, {}, 0, 0, [])
        scans = table.scan()
        nothing = LeafTable(m.domid, b"", b"", b"", b"", b"", b"")
        return P2mSnapshotReply(
            leaf_table(table, scans) if m.leaves else nothing,
            pack(table.table_mfns(scans)),
            pack(table.pool_mfns()),
            table.pool_free,
            self.pod.entry_count,
            pack(self.pod.frames()),
            self._outstanding_flushes + table.pool_outstanding,
            table.extents(scans),
            dict(self._shatters),
            self._nr_updates,
            max(0, table.max_mapped_pfn),
            table.audit(),
        )


def displaced_frames(result: SetResult) -> FrameArray:
    """The 4K mfns of RAM that an update unmapped, in its order."""
    if not result.displaced_orders.any():
        return result.displaced_mfns
    orders = result.displaced_orders.tolist()
    parts = [
        np.arange(mfn, mfn + (1 << order), dtype=np.uint64)
        for mfn, order in zip(result.displaced_mfns.tolist(), orders, strict=True)
    ]
    return np.concatenate(parts)


def leaf_table(table: P2mTable, scans: list[LevelScan] | None = None) -> LeafTable:
    """The leaves as they travel; ``mfns`` is the frame field as it stands in the entry."""
    leaves = table.leaves(scans)
    frames = (leaves.entries.astype(np.uint64) & np.uint64(table.geometry.frame_mask)) >> 12
    return LeafTable(
        table.domid,
        pack(leaves.gfns),
        pack(frames),
        leaves.orders.tobytes(),
        leaves.types.tobytes(),
        flags_low12(leaves.entries).tobytes(),
        bits_63_52(leaves.entries).tobytes(),
    )
