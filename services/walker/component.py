"""The HAP walker of one vCPU: translates as the hardware does, and forgets when told to.

What it caches (TLB entries, table frames) is true until a flush; a flush bumps the generation and
drops all. After every wait the generation is compared: a walk that a flush overtook starts again
from the root, and what it had read or found is thrown away. An absent entry is never trusted,
since its filling needs no flush: it is reported as a nested page fault, or read again, and a frame
that was on its way when somebody forgot the frames is not kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from protocols import envelope
from protocols.control import SnapshotWalker, WalkerSnapshotReply
from protocols.frames import INVALID_FRAME, PAGE_SIZE, FrameArray, pack, unpack
from protocols.memory import Status
from protocols.p2m import P2mGetRoot, P2mRoot, ReadPageTableFrames
from protocols.walk import (
    FAULT_RETRY,
    Accessed,
    FlushTlb,
    GuestAccess,
    NestedPageFault,
    Touch,
    Translations,
    WalkTranslate,
)
from services.component.component import Component, handles
from services.component.context import Context
from services.component.traps import Call
from services.walker.format import FORMATS, WalkFormat, WalkStatus
from services.walker.frame_cache import FrameCache
from services.walker.nested_walk import FlatView, WalkResult, gfn_to_mfn_current, walk
from services.walker.tlb import Tlb

TLB_CAPACITIES: Final = {0: 1024, 9: 1024, 10: 256, 18: 16}
"""Entries by leaf order: unified second-level TLBs of common cores have 1,024 to 1,536."""
FAULT_BATCH: Final = 512
"""Faults of one message, which the P2M handles under one lock span."""
READ_BATCH: Final = 256
"""Table frames (1 MiB) of one read."""
PART_MAX: Final = 1 << 12
"""Accesses of a program that are looked up together."""
NO_TABLES: Final = np.empty(0, dtype=np.uint64)
TURNS_MAX: Final = 1000
"""A walk that was overtaken so often is a livelock: fail loudly."""


@dataclass(slots=True, eq=False)
class _Tables:
    """Where one domain's walks start, and what is cached of its tables."""

    root: P2mRoot
    paging: WalkFormat
    cache: FrameCache
    flat: FlatView


class Walker(Component):
    """Nested page walker, TLB and paging-structure cache of a vCPU."""

    def __init__(self, context: Context, domid: int, vcpu: int) -> None:
        super().__init__(context)
        self.domid = domid
        self.vcpu = vcpu
        self.tlb = Tlb(TLB_CAPACITIES)
        self.generation = 0
        self._own: _Tables | None = None
        self._others: set[_Tables] = set()

    def cached_tables(self) -> FrameArray:
        """Frames of its own domain's tables that it has read and may follow, ascending."""
        return NO_TABLES if self._own is None else self._own.cache.mfns()

    def tables_in_use(self) -> FrameArray:
        """As `cached_tables`, and those of other domains that walks under way may follow."""
        held = [self.cached_tables(), *(tables.cache.mfns() for tables in self._others)]
        return held[0] if len(held) == 1 else np.unique(np.concatenate(held))

    # -- requests ----------------------------------------------------------------------------

    @handles(FlushTlb)
    async def flush_tlb(self, m: FlushTlb) -> Status:
        """Forget every translation and table frame; the reply is the acknowledgement."""
        del m  # a flush for any domain drops everything, as an ASID flush does
        self.generation += 1
        self.tlb.flush()
        self._own = None
        self._others.clear()
        return Status(0)

    @handles(Touch)
    async def touch(self, m: Touch) -> Translations:
        """Guest accesses: TLB, walk, nested faults until each is mapped or known as a hole."""
        gfns = unpack(m.gfns)
        tally = _Tally()
        for _ in range(TURNS_MAX):
            begun = self.generation
            mfns, hit = self.tlb.lookup(gfns)
            holes = await self._walk_misses(m, gfns, mfns, hit, tally)
            if begun == self.generation and holes is not None:
                tally.hits += int(hit.sum())
                mfns[holes] = INVALID_FRAME
                shown = pack(mfns) if m.want_mfns else b""
                return Translations(shown, tally.faults, tally.refs, tally.hits)
        raise AssertionError(f"{self.context.name}: {gfns.size} accesses overtaken for ever")

    @handles(GuestAccess)
    async def guest_access(self, m: GuestAccess) -> Accessed:
        """One access after the other; those that nothing stops go down together.

        After a fault the next part is small and grows again, since a fault may be followed by
        more, and each part is looked up as it is after the fault before it.
        """
        gfns = unpack(m.gfns)
        tally = _Tally()
        done, size, overtaken = 0, 1, 0
        while done < gfns.size:
            part = gfns[done : done + size]
            nr = await self._through(part, tally)
            if nr is None:
                overtaken += 1
                assert overtaken < TURNS_MAX, f"{self.context.name}: gfn {int(part[0]):#x}"
                continue
            done += nr
            overtaken = 0
            size = min(2 * size, PART_MAX)
            if nr < part.size:
                size = 1
                if (await self._fault(part[nr : nr + 1], tally, write=m.write))[0]:
                    self._forget_frames()
                else:
                    done += 1
        return Accessed(tally.faults, tally.refs, tally.hits)

    @handles(WalkTranslate)
    async def translate(self, m: WalkTranslate) -> Translations:
        """gfn_to_mfn_current for the own domain, gfn_to_mfn_foreign for another; no faults."""
        gfns = unpack(m.gfns)
        tally = _Tally()
        for turn in range(TURNS_MAX):
            begun = self.generation
            if m.domid == self.domid:
                if turn == 0:
                    # An absent entry may have been filled since it was cached.
                    self._forget_frames()
                tables = await self._tables()
            else:
                tables = await self._foreign(m.domid)
                self._others.add(tables)
            result = await self._walk(tables, m.domid, gfns, tally)
            self._others.discard(tables)
            if result is not None and begun == self.generation:
                return Translations(pack(result.mfns), 0, tally.refs, 0)
        raise AssertionError(f"{self.context.name}: domid {m.domid}: walk overtaken for ever")

    @handles(SnapshotWalker)
    async def snapshot(self, m: SnapshotWalker) -> WalkerSnapshotReply:
        """What is cached now."""
        gfns, mfns, orders = self.tlb.entries()
        held = pack(self.cached_tables())
        return WalkerSnapshotReply(
            m.domid, self.vcpu, pack(gfns), pack(mfns), orders.tobytes(), held
        )

    # -- walking -----------------------------------------------------------------------------

    async def _walk_misses(
        self,
        m: Touch,
        gfns: FrameArray,
        mfns: FrameArray,
        hit: npt.NDArray[np.bool_],
        tally: _Tally,
    ) -> npt.NDArray[np.intp] | None:
        """Walk and fault what the TLB missed, into ``mfns``; holes, or None if overtaken."""
        todo = np.flatnonzero(~hit)
        holes: list[npt.NDArray[np.intp]] = [np.empty(0, dtype=np.intp)]
        begun = self.generation
        while todo.size:
            tables = await self._tables()
            some = gfns if todo.size == gfns.size else gfns[todo]
            result = await self._walk(tables, self.domid, some, tally)
            if result is None or begun != self.generation:
                return None
            done = result.status == WalkStatus.DONE
            mfns[todo[done]] = result.mfns[done]
            self._fill_tlb(some, result)
            absent = todo[result.status == WalkStatus.NOT_PRESENT]
            if not absent.size:
                break
            retry = await self._fault(gfns[absent], tally, write=m.write)
            if begun != self.generation:
                return None
            holes.append(absent[~retry])
            todo = absent[retry]
            # The entry is there now, our copy of its table is old.
            self._forget_frames()
        return np.concatenate(holes)

    async def _through(self, gfns: FrameArray, tally: _Tally) -> int | None:
        """Leading accesses that find their frame, or None if a flush overtook them."""
        begun = self.generation
        _, hit = self.tlb.lookup(gfns)
        missed = np.flatnonzero(~hit)
        if not missed.size:
            tally.hits += gfns.size
            return gfns.size
        tables = await self._tables()
        result = await self._walk(tables, self.domid, gfns[missed], _Tally())
        if result is None or begun != self.generation:
            return None
        absent = np.flatnonzero(result.status == WalkStatus.NOT_PRESENT)
        walks = int(absent[0]) if absent.size else missed.size
        nr = int(missed[walks]) if absent.size else gfns.size
        # What comes behind a fault has not been walked yet.
        self._fill_tlb(gfns[missed[:walks]], result.first(walks))
        tally.refs += result.first(walks + 1).nr_refs
        tally.hits += int(hit[:nr].sum())
        return nr

    def _fill_tlb(self, gfns: FrameArray, result: WalkResult) -> None:
        if gfns.size == 1:
            if result.status.item(0) == WalkStatus.DONE:
                self.tlb.insert(gfns, result.mfns, result.orders.item(0))
            return
        done = result.status == WalkStatus.DONE
        for order in np.unique(result.orders[done]).tolist():
            chosen = done & (result.orders == order)
            self.tlb.insert(gfns[chosen], result.mfns[chosen], order)

    async def _fault(
        self, gfns: FrameArray, tally: _Tally, *, write: bool
    ) -> npt.NDArray[np.bool_]:
        """Raise nested page faults; which of the gfns are mapped now."""
        distinct, where = np.unique(gfns, return_inverse=True)
        tally.faults += int(distinct.size)
        outcome = b""
        for first in range(0, distinct.size, FAULT_BATCH):
            part = pack(distinct[first : first + FAULT_BATCH])
            fault = NestedPageFault(self.domid, part, write)
            outcome += (await Call(envelope.p2m(self.domid), fault)).outcome
        return (np.frombuffer(outcome, dtype=np.uint8) == FAULT_RETRY)[where]

    async def _walk(
        self, tables: _Tables, domid: int, gfns: FrameArray, tally: _Tally
    ) -> WalkResult | None:
        """Walk, reading the table frames that it takes; None if a flush came in between."""
        begun = self.generation
        own = domid == self.domid
        while True:
            root = tables.root.root_mfn
            if own:
                result = gfn_to_mfn_current(tables.paging, tables.cache, tables.flat, root, gfns)
            else:
                result = walk(tables.paging, tables.cache, root, gfns)
            tally.refs += result.nr_refs
            if not result.needed.size:
                return result
            for first in range(0, result.needed.size, READ_BATCH):
                mfns = result.needed[first : first + READ_BATCH]
                nr_drops = tables.cache.nr_drops
                read = ReadPageTableFrames(domid, self.context.name, pack(mfns))
                data = (await Call(envelope.p2m(domid), read)).data
                if begun != self.generation:
                    return None
                assert len(data) == mfns.size * PAGE_SIZE, f"domid {domid}: short frame read"
                # Somebody else of this vCPU may have forgotten the frames for the sake of an
                # entry that is filled by now, and this copy may be from before that.
                if nr_drops == tables.cache.nr_drops:
                    tables.cache.put_many(mfns, data)

    async def _tables(self) -> _Tables:
        if self._own is None:
            tables = await self._foreign(self.domid)
            # Another activity may have asked, too; then what it reads is shared.
            self._own = self._own or tables
        return self._own

    async def _foreign(self, domid: int) -> _Tables:
        """The root of a domain's tables, with nothing cached yet."""
        root = await Call(envelope.p2m(domid), P2mGetRoot(domid, self.context.name))
        paging = FORMATS[root.paging]
        return _Tables(root, paging, FrameCache(paging.entry_bits), FlatView(paging))

    def _forget_frames(self) -> None:
        if self._own is not None:
            self._own.cache.drop_all()


@dataclass(slots=True)
class _Tally:
    """What a request cost."""

    faults: int = 0
    refs: int = 0
    hits: int = 0
