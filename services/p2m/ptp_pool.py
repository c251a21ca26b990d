"""The paging pool of a domain and its page-table pages: ``hap_alloc`` and ``hap_free``.

Frames are taken from the head of a list and come back to its tail, as in Xen, so a pool given in
the same order hands out the same frames. A frame is free, in use as a table, or retired: no entry
points to it any more, but a walker may still have it cached, so it keeps its contents until the
caller says that every walker flushed (``give_back``).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from protocols.frames import PAGE_SIZE, FrameArray

if TYPE_CHECKING:
    from collections.abc import Iterable

    from services.p2m.entry import EntryArray
    from services.p2m.geometry import Geometry

_INITIAL_CAPACITY = 16
NO_SLOT = -1


class PtpPool:
    """Table rows by slot, frames by list; ``rows`` has shape (capacity, 512) u64 or 1024 u32.

    ``rows`` is replaced when it grows: never keep a view across an ``alloc``.
    """

    __slots__ = (
        "_free",
        "_geometry",
        "_mfn_of",
        "_retired",
        "_slot_of",
        "_sorted",
        "_spare",
        "rows",
    )

    def __init__(self, geometry: Geometry) -> None:
        """An empty pool for tables of one format."""
        self._geometry = geometry
        shape = (_INITIAL_CAPACITY, geometry.nr_entries)
        self.rows: EntryArray = np.empty(shape, dtype=geometry.entry_dtype)
        self._mfn_of = np.zeros(_INITIAL_CAPACITY, dtype=np.uint64)
        self._slot_of: dict[int, int] = {}
        self._spare = list(range(_INITIAL_CAPACITY - 1, -1, -1))
        self._free: deque[int] = deque()
        self._retired: set[int] = set()
        self._sorted: tuple[FrameArray, npt.NDArray[np.intp]] | None = None

    @property
    def nr_free(self) -> int:
        """Frames that ``alloc`` can still hand out."""
        return len(self._free)

    @property
    def nr_used(self) -> int:
        """Frames that hold a table, retired ones included."""
        return len(self._slot_of)

    @property
    def retired(self) -> frozenset[int]:
        """Frames that wait for a flush."""
        return frozenset(self._retired)

    def frames(self) -> FrameArray:
        """Every frame of the pool, free ones last, u64."""
        return np.array([*self._slot_of, *self._free], dtype=np.uint64)

    def table_frames(self) -> FrameArray:
        """Every frame in use, retired ones included, u64."""
        return np.fromiter(self._slot_of, dtype=np.uint64, count=len(self._slot_of))

    def raw(self) -> bytes:
        """The tables in use, byte for byte, with the frames that hold them."""
        slots = list(self._slot_of.values())
        return self.rows[slots].tobytes() + self.table_frames().tobytes()

    def add(self, mfns: FrameArray) -> None:
        """``hap_set_allocation`` upwards: frames join the tail of the list."""
        new: list[int] = mfns.tolist()
        known = (set(self._slot_of) | set(self._free)).intersection(new)
        assert not known, f"mfn {min(known, default=0):#x} is in the paging pool already"
        self._free.extend(new)

    def remove(self, nr: int) -> FrameArray:
        """Up to ``nr`` free frames leave the pool, from the head of the list."""
        taken = [self._free.popleft() for _ in range(min(nr, len(self._free)))]
        return np.array(taken, dtype=np.uint64)

    def alloc(self) -> int:
        """Slot of a new empty table, or NO_SLOT when the pool has no frame left (-ENOMEM)."""
        if not self._free:
            return NO_SLOT
        if not self._spare:
            self._grow()
        mfn, slot = self._free.popleft(), self._spare.pop()
        self._slot_of[mfn] = slot
        self._mfn_of[slot] = mfn
        self._sorted = None
        self.rows[slot] = self._geometry.empty
        return slot

    def _grow(self) -> None:
        """Room for every frame of the pool: untouched rows cost address space, not memory."""
        old = len(self.rows)
        capacity = max(2 * old, self.nr_used + self.nr_free)
        rows: EntryArray = np.empty((capacity, self.rows.shape[1]), dtype=self.rows.dtype)
        rows[:old] = self.rows
        self.rows = rows
        self._mfn_of = np.concatenate((self._mfn_of, np.zeros(capacity - old, dtype=np.uint64)))
        self._spare.extend(range(capacity - 1, old - 1, -1))

    def mfn(self, slot: int) -> int:
        """Frame of the table in a slot."""
        return self._mfn_of.item(slot)

    def mfns(self, slots: npt.NDArray[np.intp]) -> FrameArray:
        """Frames of the tables in slots."""
        return self._mfn_of[slots]

    def slot(self, mfn: int) -> int:
        """Slot of the table in a frame; NO_SLOT where the frame holds none."""
        return self._slot_of.get(mfn, NO_SLOT)

    def slots(self, mfns: FrameArray) -> npt.NDArray[np.intp]:
        """Slots of the tables in frames, shape as given; every frame must hold a table."""
        if self._sorted is None:
            slots = np.fromiter(self._slot_of.values(), dtype=np.intp, count=len(self._slot_of))
            by_mfn = slots[np.argsort(self._mfn_of[slots])]
            self._sorted = (self._mfn_of[by_mfn], by_mfn)
        frames, by_mfn = self._sorted
        return by_mfn[np.searchsorted(frames, mfns)]

    def retire(self, mfns: FrameArray) -> None:
        """Tables that nothing points to any more: readable until given back."""
        self._retired.update(mfns.tolist())

    def give_back(self, mfns: Iterable[int]) -> None:
        """Retired frames become free: every walker has flushed."""
        for mfn in mfns:
            assert mfn in self._retired, f"mfn {mfn:#x} was not retired"
            self._retired.remove(mfn)
            self._spare.append(self._slot_of.pop(mfn))
            self._free.append(mfn)
        self._sorted = None

    def clear(self) -> None:
        """Forget every frame, free or not."""
        self._spare.extend(self._slot_of.values())
        self._slot_of.clear()
        self._free.clear()
        self._retired.clear()
        self._sorted = None

    def read(self, mfn: int) -> bytes:
        """The 4096 bytes of a table frame; zeros if the frame holds no table."""
        slot = self._slot_of.get(mfn, NO_SLOT)
        if slot == NO_SLOT:
            return bytes(PAGE_SIZE)
        row: npt.NDArray[Any] = self.rows[slot]
        return row.tobytes()
