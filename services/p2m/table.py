"""The p2m table of one domain: gfn to mfn, with superpages that shatter and never coalesce.

Ring one: every call runs to completion and cannot fail half-way through a chunk. What a call makes
stale it reports; the caller flushes the walkers and then returns the retired tables to the pool.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final

import numpy as np

from protocols.errno import Errno
from protocols.frames import INVALID_FRAME, PAGE_SHIFT, FrameArray
from protocols.p2m_types import RAM_TYPES, P2mType
from services.p2m.audit import audit_table
from services.p2m.decompose import Chunks, decompose
from services.p2m.entry import (
    ORDER_0_ONLY,
    EntryArray,
    TypeArray,
    decode_one,
    encode_leaf,
    encode_one,
    encode_table,
    is_filled,
    is_leaf,
    is_present,
    representable,
)
from services.p2m.geometry import BIT_PSE
from services.p2m.lookup import Leaves, LevelScan, get_entries, leaves_of, scan
from services.p2m.ptp_pool import NO_SLOT, PtpPool
from services.p2m.set_result import EMPTY_FRAMES, SetResult, Tally, Update
from services.p2m.shatter import shatter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.p2m.geometry import Geometry

_SMALL: Final = 8
"""Up to this many chunks are written one by one: numpy calls would cost more than they save."""
_IS_RAM: Final = np.zeros(128, dtype=np.bool_)
_IS_RAM[list(RAM_TYPES)] = True


class P2mTable:
    """Page tables of one domain, in the frames of its paging pool.

    ``allowed_orders`` are the leaf orders in use (``hap_1gb``, ``hap_2mb``; None: all of the
    geometry's). ``force_4k``: gfn ranges ``(gfn, nr)`` never mapped by a superpage. ``record``:
    keep what Xen would trace in ``SetResult.updates``.

    The caller adds pool frames and calls ``init_root`` before anything else.
    """

    __slots__ = (
        "_fresh_slot",
        "_pool",
        "_root",
        "_steps",
        "allowed_orders",
        "domid",
        "force_4k",
        "geometry",
        "max_mapped_pfn",
        "record",
    )

    def __init__(
        self,
        geometry: Geometry,
        domid: int,
        *,
        allowed_orders: tuple[int, ...] | None = None,
        force_4k: Sequence[tuple[int, int]] = (),
        record: bool = False,
    ) -> None:
        """An empty table without a root."""
        orders = geometry.leaf_orders if allowed_orders is None else tuple(sorted(allowed_orders))
        assert orders, f"d{domid}: no leaf order allowed"
        assert orders[0] == 0, f"d{domid}: 4K leaves cannot be switched off"
        assert set(orders) <= set(geometry.leaf_orders), f"d{domid}: {orders} on {geometry.name}"
        self.geometry = geometry
        self.domid = domid
        self.allowed_orders = orders
        self.force_4k = tuple(force_4k)
        self.record = record
        self.max_mapped_pfn = 0
        self._pool = PtpPool(geometry)
        self._root = NO_SLOT
        self._fresh_slot = NO_SLOT
        # From the root down: (level, gfn shift, index mask) of each level.
        self._steps = tuple(
            (level, geometry.shift(level), (1 << geometry.index_bits[level - 1]) - 1)
            for level in range(geometry.levels, 0, -1)
        )

    # The paging pool (hap_set_allocation, hap_alloc, hap_free)

    @property
    def pool_free(self) -> int:
        """Frames left for new tables."""
        return self._pool.nr_free

    @property
    def pool_used(self) -> int:
        """Frames that hold tables, those that wait for a flush included."""
        return self._pool.nr_used

    @property
    def pool_total(self) -> int:
        """Frames of the pool: free and used."""
        return self._pool.nr_free + self._pool.nr_used

    @property
    def pool_outstanding(self) -> int:
        """Retired frames that ``pool_return`` has not seen yet."""
        return len(self._pool.retired)

    def pool_add(self, mfns: FrameArray) -> None:
        """Give the pool more frames, shape (n,); they are used in this order."""
        self._pool.add(mfns)

    def pool_remove(self, nr: int) -> FrameArray:
        """Take up to ``nr`` free frames out of the pool; frames in use cannot leave."""
        return self._pool.remove(nr)

    def pool_return(self, mfns: FrameArray) -> None:
        """Retired frames become free again, every walker having flushed (``p2m_free_ptp``)."""
        self._pool.give_back(mfns.tolist())

    def pool_mfns(self) -> FrameArray:
        """Every frame of the pool, those in use first."""
        return self._pool.frames()

    def init_root(self) -> bool:
        """``p2m_alloc_table``: make the root table; False if the pool is empty."""
        assert self._root == NO_SLOT, f"d{self.domid}: the p2m has a root already"
        self._root = self._pool.alloc()
        return self._root != NO_SLOT

    @property
    def root_mfn(self) -> int:
        """Where a walk starts (H_CR3 >> 12, EPTP >> 12)."""
        assert self._root != NO_SLOT, f"d{self.domid}: the p2m has no root"
        return self._pool.mfn(self._root)

    # Updates

    def set_range(self, gfns: FrameArray, mfns: FrameArray, order: int, p2mt: int) -> SetResult:
        """``p2m_set_entry`` for each extent of one order, in order, stopping at the first ENOMEM.

        Chunks are chosen as ``decompose`` says and written as ``p2m_pt_set_entry`` or
        ``ept_set_entry`` would: tables are made and larger superpages shattered on the path, then
        the leaf is stored; a leaf over a table retires the whole sub-tree. Nothing of a chunk that
        fails is written, but tables made and superpages shattered for it stay. Unlike Xen, which
        goes on and returns its last error, no later chunk is tried.

        Args:
            gfns: first gfn of each extent, shape (n,).
            mfns: first mfn of each extent, shape (n,); INVALID_FRAME for none.
            order: order of the extents; any, also where the format has no such leaf.
            p2mt: type of all of them.

        Returns:
            EINVAL without any change if an extent leaves the geometry's gfn or mfn space, the
            format cannot store the type, or the type does not go into a superpage.
        """
        assert self._root != NO_SLOT, f"d{self.domid}: set_range without a root"
        assert gfns.shape == mfns.shape, f"d{self.domid}: {gfns.shape} gfns, {mfns.shape} mfns"
        tally = Tally()
        if gfns.size == 0:
            return tally.result(order, Errno.OK)
        if not self._in_range(gfns, mfns, order) or not representable(self.geometry, p2mt):
            return tally.result(order, Errno.EINVAL)
        batches = decompose(gfns, mfns, order, self.allowed_orders, self.force_4k)
        if p2mt in ORDER_0_ONLY and any(batch.order for batch in batches):
            return tally.result(order, Errno.EINVAL)
        errno = Errno.OK
        for batch in batches:
            nr = batch.gfns.size
            done = self._apply(batch, p2mt, tally)
            tally.nr_frames += done << batch.order
            tally.nr_updates += done
            if self.record:
                seen = min(done + 1, nr)
                update = Update(batch.gfns[:seen], batch.mfns[:seen], batch.order, p2mt)
                tally.updates.append(update)
            if done < nr:
                errno = Errno.ENOMEM
                break
        return tally.result(order, errno)

    def _in_range(self, gfns: FrameArray, mfns: FrameArray, order: int) -> bool:
        """Whether every frame of every extent exists in this format."""
        size = 1 << order
        if gfns.size <= _SMALL:
            gfn_max: int = max(gfns.tolist())
            mfn_max: int = max((m for m in mfns.tolist() if m != INVALID_FRAME), default=0)
        else:
            gfn_max, mfn_max = int(gfns.max()), int(mfns.max())
            if mfn_max == INVALID_FRAME:
                mfn_max = int(np.where(mfns == INVALID_FRAME, np.uint64(0), mfns).max())
        geometry = self.geometry
        return gfn_max + size <= geometry.gfn_limit and mfn_max + size <= geometry.mfn_limit

    def _apply(self, batch: Chunks, p2mt: int, tally: Tally) -> int:
        """Write the leaves of one order; returns how many were written before ENOMEM."""
        level = self.geometry.level_of(batch.order)
        if batch.gfns.size <= _SMALL:
            return self._apply_singly(batch, level, p2mt, tally)
        entries = encode_leaf(self.geometry, batch.mfns, p2mt, batch.order)
        _, shift, mask = self._steps[-level]
        for lo, hi in _table_groups(batch.gfns, shift, mask):
            gfns = batch.gfns[lo:hi]
            first, last = int(gfns[0]), int(gfns[-1])
            slot = self._descend(first, level, tally)
            if slot == NO_SLOT:
                return lo
            row: EntryArray = self._pool.rows[slot]
            begin, end = (first >> shift) & mask, (last >> shift) & mask
            if end - begin == hi - lo - 1:
                where = slice(begin, end + 1)
            else:
                where = (gfns >> shift).astype(np.intp) & mask
            if slot != self._fresh_slot:
                old: EntryArray = row[where]
                if is_filled(self.geometry, old).any():
                    self._displace(old, Chunks(gfns, batch.mfns[lo:hi], batch.order), p2mt, tally)
            row[where] = entries[lo:hi]
            self._raise_max(last, batch.order, p2mt)
        return batch.gfns.size

    def _apply_singly(self, batch: Chunks, level: int, p2mt: int, tally: Tally) -> int:
        geometry, order = self.geometry, batch.order
        _, shift, mask = self._steps[-level]
        table, slot = -1, NO_SLOT
        gfns: list[int] = batch.gfns.tolist()
        mfns: list[int] = batch.mfns.tolist()
        for done, (gfn, mfn) in enumerate(zip(gfns, mfns, strict=True)):
            index = gfn >> shift
            if index & ~mask != table:
                slot = self._descend(gfn, level, tally)
                if slot == NO_SLOT:
                    return done
                table = index & ~mask
            index &= mask
            rows = self._pool.rows
            old: int = rows.item(slot, index)
            if old & geometry.filled_mask:
                if level > 1 and not old & BIT_PSE:
                    chunk = Chunks(batch.gfns[done : done + 1], batch.mfns[done : done + 1], order)
                    self._displace(rows[slot, index : index + 1], chunk, p2mt, tally)
                else:
                    self._displace_leaf(old, level, gfn, tally, mfn=mfn, p2mt=p2mt)
            rows[slot, index] = encode_one(geometry, mfn, p2mt, order)
            self._raise_max(gfn, order, p2mt)
        return len(gfns)

    def _raise_max(self, gfn: int, order: int, p2mt: int) -> None:
        last = gfn + (1 << order) - 1
        if last > self.max_mapped_pfn and p2mt != P2mType.INVALID:
            self.max_mapped_pfn = last

    def _descend(self, gfn: int, target: int, tally: Tally) -> int:
        """Slot of the table at level ``target`` on the path of a gfn, made or shattered into being.

        NO_SLOT when the pool is empty. ``_fresh_slot`` remembers a table that was made just now.
        """
        self._fresh_slot = NO_SLOT
        geometry, pool, slot = self.geometry, self._pool, self._root
        for level, shift, mask in self._steps[:-target]:
            index = (gfn >> shift) & mask
            entry: int = pool.rows.item(slot, index)
            if entry & BIT_PSE:
                slot = shatter(pool, geometry, slot, index, tally, level=level, target=target)
            elif entry & geometry.present_mask:
                slot = pool.slot((entry & geometry.frame_mask) >> PAGE_SHIFT)
            else:
                child = pool.alloc()
                if child != NO_SLOT:
                    pool.rows[slot, index] = encode_table(geometry, pool.mfn(child), level)
                slot = self._fresh_slot = child
            if slot == NO_SLOT:
                return NO_SLOT
        return slot

    # What an update displaces

    def _displace_leaf(
        self, old: int, level: int, gfn: int, tally: Tally, *, mfn: int, p2mt: int
    ) -> None:
        """Account for one leaf that is about to be overwritten by a leaf of its own order."""
        tally.stale = tally.stale or is_present(self.geometry, old)
        old_mfn, old_type = decode_one(self.geometry, old, level)
        if old_type in RAM_TYPES and old_mfn != INVALID_FRAME:
            if old_mfn == mfn and p2mt in RAM_TYPES:
                return
            tally.single.append((gfn, old_mfn, self.geometry.leaf_orders[level - 1]))

    def _displace(self, old: EntryArray, chunks: Chunks, p2mt: int, tally: Tally) -> None:
        """Account for the entries that ``chunks`` are about to overwrite, and retire tables."""
        geometry = self.geometry
        level = geometry.level_of(chunks.order)
        tally.stale = tally.stale or bool(is_present(geometry, old).any())
        filled = is_filled(geometry, old)
        leaf = is_leaf(geometry, old, level) & filled
        if leaf.any():
            same_level = LevelScan(level, chunks.gfns[leaf], old[leaf], EMPTY_FRAMES, EMPTY_FRAMES)
            self._displace_ram(leaves_of(geometry, [same_level]), chunks.mfns[leaf], p2mt, tally)
        for at in np.flatnonzero(filled & ~leaf).tolist():
            base, new_mfn = int(chunks.gfns[at]), int(chunks.mfns[at])
            table = (int(old[at]) & geometry.frame_mask) >> PAGE_SHIFT
            scans = scan(self._pool, geometry, self._pool.slot(table), level - 1, base)
            below = leaves_of(geometry, scans)
            frames = np.full(below.gfns.size, new_mfn, dtype=np.uint64)
            if new_mfn != INVALID_FRAME:
                frames += below.gfns - np.uint64(base)
            self._displace_ram(below, frames, p2mt, tally)
            for part in reversed(scans):
                self._pool.retire(part.table_mfns)
                tally.retired.append(part.table_mfns)

    def _displace_ram(self, old: Leaves, new_mfns: FrameArray, p2mt: int, tally: Tally) -> None:
        gone = _IS_RAM[old.types] & (old.mfns != INVALID_FRAME)
        if p2mt in RAM_TYPES:
            gone &= old.mfns != new_mfns
        if gone.any():
            orders = old.orders[gone].astype(np.uint64)
            tally.blocks.append((old.gfns[gone], old.mfns[gone], orders))

    # Readers

    def get(self, gfns: FrameArray) -> tuple[FrameArray, TypeArray, TypeArray]:
        """``get_entry`` without side effects for each gfn (``p2m_pt_get_entry``), shape (n,).

        Returns:
            mfns (u64), types (u8) and orders (u8). Inside a superpage the mfn is base and offset.
            A PoD entry reads as that type without mfn. Anything unmapped is mmio_dm and
            INVALID_FRAME, and its order the size of the hole: of the entry where the walk ended,
            or above ``max_mapped_pfn`` of the largest aligned block wholly above it.
        """
        assert self._root != NO_SLOT, f"d{self.domid}: get without a root"
        return get_entries(self._pool, self.geometry, self._root, gfns, self.max_mapped_pfn)

    def read_frame(self, mfn: int) -> bytes:
        """Raw 4096 bytes of a table frame, retired ones included; zeros if it is none."""
        return self._pool.read(mfn)

    def leaves(self) -> Leaves:
        """Every leaf, present or not, ascending gfn."""
        return leaves_of(self.geometry, self.scan())

    def scan(self) -> list[LevelScan]:
        """All tables and leaves, level by level from the root; empty without a root."""
        if self._root == NO_SLOT:
            nothing: EntryArray = np.empty(0, dtype=self.geometry.entry_dtype)
            return [LevelScan(1, EMPTY_FRAMES, nothing, EMPTY_FRAMES, EMPTY_FRAMES)]
        return scan(self._pool, self.geometry, self._root, self.geometry.levels)

    def table_mfns(self) -> FrameArray:
        """Frames of every table that can be reached, the root first."""
        return np.concatenate([part.table_mfns for part in self.scan()])

    def extents(self) -> dict[int, int]:
        """How many present leaves there are of each order of the geometry."""
        counts = dict.fromkeys(self.geometry.leaf_orders, 0)
        for part in self.scan():
            present = int(np.count_nonzero(is_present(self.geometry, part.entries)))
            if present:
                counts[self.geometry.leaf_orders[part.level - 1]] += present
        return counts

    def teardown(self) -> FrameArray:
        """Forget everything (``p2m_teardown``); returns every frame the pool had, n u64."""
        frames = self._pool.frames()
        self._pool.clear()
        self._root = self._fresh_slot = NO_SLOT
        self.max_mapped_pfn = 0
        return frames

    def audit(self) -> list[str]:
        """Problems with the table itself, one line each; empty when all is well."""
        return audit_table(self._pool, self.geometry, self._root, self.domid)


def _table_groups(gfns: FrameArray, shift: int, mask: int) -> list[tuple[int, int]]:
    """Runs of strictly ascending gfns that lie in one table: (first, end) positions."""
    size = gfns.size
    first, last = int(gfns[0]) >> shift, int(gfns[-1]) >> shift
    steps = gfns[1:] - gfns[:-1]
    if last - first == size - 1 and (steps == 1 << shift).all():
        begin = (first | mask) + 1 - first
        edges = [0, *range(begin, size, mask + 1), size]
    else:
        tables = gfns >> (shift + mask.bit_length())
        breaks = (tables[1:] != tables[:-1]) | (gfns[1:] <= gfns[:-1])
        edges = [0, *(np.flatnonzero(breaks) + 1).tolist(), size]
    return list(pairwise(edges))
