"""The p2m table of one domain: gfn to mfn, with superpages that shatter and never coalesce.

Ring one: every call runs to completion and cannot fail half-way through a chunk. What a call makes
stale it reports; the caller flushes the walkers and then returns the retired tables to the pool.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from protocols.errno import Errno
from protocols.frames import INVALID_FRAME, PAGE_SHIFT, FrameArray
from protocols.p2m_types import INVALID_MFN_TYPES, P2mType
from services.p2m.audit import audit_table
from services.p2m.decompose import Chunks, decompose
from services.p2m.displace import displace, displace_leaf
from services.p2m.entry import (
    ORDER_0_ONLY,
    EntryArray,
    TypeArray,
    encode_leaf,
    encode_table,
    is_present,
    leaf_template,
    representable,
)
from services.p2m.geometry import BIT_PSE
from services.p2m.lookup import Leaves, LevelScan, get_entries, leaves_of, scan, table_groups
from services.p2m.ptp_pool import NO_SLOT, PtpPool
from services.p2m.set_result import EMPTY_FRAMES, SetResult, Tally
from services.p2m.shatter import shatter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.p2m.geometry import Geometry

_SMALL: Final = 8
"""Up to this many chunks are written one by one: numpy calls would cost more than they save."""
_INVALID: Final = int(P2mType.INVALID)


class P2mTable:
    """Page tables of one domain, in the frames of its paging pool.

    ``allowed_orders`` are the leaf orders in use (``hap_1gb``, ``hap_2mb``; None: all of the
    geometry's). ``force_4k``: gfn ranges ``(gfn, nr)`` never mapped by a superpage. ``record``:
    keep what Xen would trace in ``SetResult.updates``.

    The caller adds pool frames and calls ``init_root`` before anything else.
    """

    __slots__ = (
        "_fresh_slot",
        "_parent_slot",
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
        self._parent_slot = NO_SLOT
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

    def use_pool(self, pool: PtpPool) -> None:
        """Take tables from another kind of pool; before any frame was added."""
        assert not self.pool_total, f"d{self.domid}: the paging pool is in use"
        self._pool = pool

    def raw(self) -> bytes:
        """All table rows as they lie, to see whether anything changed."""
        return self._pool.raw()

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
        if gfns.size == 0:
            return Tally().result(order, Errno.OK)
        if not self._in_range(gfns, mfns, order) or not representable(self.geometry, p2mt):
            return Tally().result(order, Errno.EINVAL)
        batches = decompose(gfns, mfns, order, self.allowed_orders, self.force_4k)
        if p2mt in ORDER_0_ONLY and any(batch.order for batch in batches):
            return Tally().result(order, Errno.EINVAL)
        tally = Tally()
        errno = Errno.OK
        for batch in batches:
            nr = batch.gfns.size
            write = self._write_singly if nr <= _SMALL else self._write
            done = write(batch, p2mt, tally)
            tally.nr_frames += done << batch.order
            tally.nr_updates += done
            if self.record:
                seen = batch if done == nr else batch.head(done + 1)
                tally.updates.append((seen.gfns, seen.mfns, seen.order, p2mt))
            if done < nr:
                errno = Errno.ENOMEM
                break
        return tally.result(order, errno)

    def _in_range(self, gfns: FrameArray, mfns: FrameArray, order: int) -> bool:
        """Whether every frame of every extent exists in this format."""
        size = 1 << order
        if gfns.size <= _SMALL:
            gfn_max: int = max(gfns.tolist())
            mfn_max: int = max(mfns.tolist())
        else:
            gfn_max, mfn_max = int(gfns.max()), int(mfns.max())
        if mfn_max == INVALID_FRAME:
            mfn_max = int(np.where(mfns == INVALID_FRAME, np.uint64(0), mfns).max())
        geometry = self.geometry
        return gfn_max + size <= geometry.gfn_limit and mfn_max + size <= geometry.mfn_limit

    def _write(self, batch: Chunks, p2mt: int, tally: Tally) -> int:
        """Write the leaves of one order; returns how many were written before ENOMEM."""
        nr, level = batch.gfns.size, self.geometry.level_of(batch.order)
        entries = encode_leaf(self.geometry, batch.mfns, p2mt, batch.order)
        replaced: EntryArray | None = None
        done = last = 0
        _, shift, mask = self._steps[-level]
        # Tables side by side have one parent: only the first of them is looked up from the root.
        parent_shift = self._parent_shift(level)
        parent = -1
        for lo, hi in table_groups(batch.gfns, shift, mask):
            gfns = batch.gfns[lo:hi]
            first = int(gfns[0])
            beside = first >> parent_shift == parent
            slot = self._descend(first, level, tally, beside=beside)
            if slot == NO_SLOT:
                break
            parent = first >> parent_shift
            done = hi
            row: EntryArray = self._pool.rows[slot]
            begin, end = (first >> shift) & mask, (int(gfns[-1]) >> shift) & mask
            if end - begin == hi - lo - 1:
                where = slice(begin, end + 1)
            else:
                where = (gfns >> shift).astype(np.intp) & mask
            if slot != self._fresh_slot:
                if replaced is None:
                    replaced = np.full(nr, self.geometry.empty, dtype=row.dtype)
                replaced[lo:hi] = row[where]
            row[where] = entries[lo:hi]
            last = max(last, int(gfns[-1]))
        if replaced is not None:
            written = Chunks(batch.gfns[:done], batch.mfns[:done], batch.order)
            displace(self._pool, self.geometry, replaced[:done], written, p2mt, tally)
        if done:
            self._raise_max(last, batch.order, p2mt)
        return done

    def _write_singly(self, batch: Chunks, p2mt: int, tally: Tally) -> int:
        """``_write`` for a few leaves, in ints."""
        geometry, order = self.geometry, batch.order
        level = geometry.level_of(order)
        _, shift, mask = self._steps[-level]
        template = leaf_template(geometry, p2mt, order)
        template_of_none = template if p2mt in INVALID_MFN_TYPES else (0, geometry.empty)
        table, slot, done, last = -1, NO_SLOT, 0, 0
        for gfn, mfn in zip(batch.gfns.tolist(), batch.mfns.tolist(), strict=True):
            index = (gfn >> shift) & mask
            if gfn >> shift != table + index:
                slot = self._descend(gfn, level, tally)
                if slot == NO_SLOT:
                    break
                table = (gfn >> shift) - index
            rows = self._pool.rows
            old: int = rows.item(slot, index)
            if old & geometry.filled_mask:
                if level > 1 and not old & BIT_PSE:
                    chunk = Chunks(batch.gfns[done : done + 1], batch.mfns[done : done + 1], order)
                    displace(
                        self._pool, geometry, rows[slot, index : index + 1], chunk, p2mt, tally
                    )
                else:
                    displace_leaf(geometry, old, (gfn, mfn, p2mt), tally, level)
            frame_mask, flags = template if mfn != INVALID_FRAME else template_of_none
            rows[slot, index] = (mfn << PAGE_SHIFT) & frame_mask | flags
            last = max(last, gfn)
            done += 1
        if done:
            self._raise_max(last, order, p2mt)
        return done

    def _raise_max(self, gfn: int, order: int, p2mt: int) -> None:
        last = gfn + (1 << order) - 1
        if last > self.max_mapped_pfn and p2mt != _INVALID:
            self.max_mapped_pfn = last

    def _parent_shift(self, level: int) -> int:
        """Gfn bits below what one table above a level covers."""
        if level == self.geometry.levels:
            return self.geometry.shift(level) + self.geometry.index_bits[level - 1]
        return self.geometry.shift(level + 1) + self.geometry.index_bits[level]

    def _descend(self, gfn: int, target: int, tally: Tally, *, beside: bool = False) -> int:
        """Slot of the table at level ``target`` on the path of a gfn, made or shattered into being.

        NO_SLOT when the pool is empty. ``_fresh_slot`` remembers a table that was made just now,
        ``_parent_slot`` the table above it; ``beside`` begins there, as a caller may who knows
        that the last gfn had the same one.
        """
        self._fresh_slot = NO_SLOT
        geometry, pool, slot = self.geometry, self._pool, self._root
        steps = self._steps[:-target]
        if beside and steps:
            slot, steps = self._parent_slot, steps[-1:]
        for level, shift, mask in steps:
            self._parent_slot = slot
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

    def leaves(self, scans: list[LevelScan] | None = None) -> Leaves:
        """Every leaf, present or not, ascending gfn; from scans just made, if there are any."""
        return leaves_of(self.geometry, scans or self.scan())

    def scan(self) -> list[LevelScan]:
        """All tables and leaves, level by level from the root; empty without a root."""
        if self._root == NO_SLOT:
            nothing: EntryArray = np.empty(0, dtype=self.geometry.entry_dtype)
            return [LevelScan(1, EMPTY_FRAMES, nothing, EMPTY_FRAMES, EMPTY_FRAMES)]
        return scan(self._pool, self.geometry, self._root, self.geometry.levels)

    def table_mfns(self, scans: list[LevelScan] | None = None) -> FrameArray:
        """Frames of every table that can be reached, the root first."""
        return np.concatenate([part.table_mfns for part in scans or self.scan()])

    def extents(self, scans: list[LevelScan] | None = None) -> dict[int, int]:
        """How many present leaves there are of each order of the geometry."""
        counts = dict.fromkeys(self.geometry.leaf_orders, 0)
        for part in scans or self.scan():
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
