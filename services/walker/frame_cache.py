"""Copies of page-table frames that a walker has read, found by mfn for whole arrays at once.

A CPU keeps parts of the tables in its paging-structure caches (Intel SDM volume 3, 28.4.1; AMD64
APM volume 2, 5.5.2) and may use them until the next flush; the copies stand for those.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from protocols.frames import INVALID_FRAME, PAGE_SIZE, FrameArray

NO_SLOT: Final = -1

_GOLDEN: Final = 0x9E3779B97F4A7C15
_WORD: Final = (1 << 64) - 1
_BUCKETS_PER_FRAME: Final = 4
"""At the least: most look-ups then end in their first bucket."""
_FRAMES_MIN: Final = 4

SlotArray = npt.NDArray[np.intp]


class FrameCache:
    """Table frames by mfn. Look-ups go through a hash table of arrays with linear probing.

    Attributes:
        nr_entries: Of a table frame: 512, or 1024 of 32 bits.
        words: All entries of all slots, one after another; replaced when the cache grows.
        generation: Changes whenever a copy that was handed out before is no longer good.
        nr_drops: How often everything was forgotten.
    """

    def __init__(self, entry_bits: int = 64) -> None:
        """An empty cache of tables whose entries have 64 or 32 bits."""
        dtype = np.uint32 if entry_bits == 32 else np.uint64
        self.nr_entries = 8 * PAGE_SIZE // entry_bits
        self.generation = 0
        self.nr_drops = 0
        self._little = np.dtype(dtype).newbyteorder("<")
        self._nr = 0
        self.words: npt.NDArray[Any] = np.empty(0, dtype=dtype)
        self._reserve(_FRAMES_MIN)

    def __len__(self) -> int:
        """Frames held."""
        return self._nr

    def put_many(self, mfns: FrameArray, data: bytes) -> None:
        """Keep copies of frames; a frame that is held already gets the new contents.

        Args:
            mfns: Shape (n,) u64.
            data: 4096 bytes for each, in order.

        Raises:
            ValueError: ``data`` has another length; nothing was kept.
        """
        if len(data) != mfns.size * PAGE_SIZE:
            raise ValueError(f"{len(data)} bytes for {mfns.size} table frames")
        rows = np.frombuffer(data, dtype=self._little).reshape(mfns.size, self.nr_entries)
        self._reserve(self._nr + mfns.size)
        for mfn, row in zip(mfns.tolist(), rows, strict=True):
            bucket = self._bucket(mfn)
            slot = self._slots.item(bucket)
            if slot == NO_SLOT:
                slot = self._nr
                self._nr += 1
                self._keys[bucket], self._slots[bucket] = mfn, slot
            else:
                self.generation += 1
            self.words[slot * self.nr_entries : (slot + 1) * self.nr_entries] = row

    def drop_all(self) -> None:
        """Forget every frame: a flush was ordered, or the tables may have changed."""
        self._keys.fill(INVALID_FRAME)
        self._slots.fill(NO_SLOT)
        self._nr = 0
        self.generation += 1
        self.nr_drops += 1

    def slot(self, mfn: int) -> int:
        """Where a frame is held, or NO_SLOT."""
        return self._slots.item(self._bucket(mfn))

    def slots(self, mfns: FrameArray) -> SlotArray:
        """Where each frame is held: shape as given, NO_SLOT for what is missing."""
        buckets = ((mfns * _GOLDEN) >> self._shift).view(np.intp)
        keys = self._keys.take(buckets)
        slots = self._slots.take(buckets)
        wrong = keys != mfns
        if not wrong.any():
            return slots
        slots[wrong] = NO_SLOT
        left = np.flatnonzero(wrong & (keys != INVALID_FRAME))
        buckets = buckets[left]
        while left.size:
            buckets = (buckets + 1) & self._mask
            keys = self._keys.take(buckets)
            right = keys == mfns[left]
            slots[left[right]] = self._slots.take(buckets[right])
            goes_on = ~right & (keys != INVALID_FRAME)
            left, buckets = left[goes_on], buckets[goes_on]
        return slots

    def missing(self, mfns: FrameArray) -> FrameArray:
        """The frames that are not held, ascending and each once."""
        distinct = np.unique(mfns)
        return distinct[self.slots(distinct) == NO_SLOT]

    def mfns(self) -> FrameArray:
        """The frames that are held, ascending."""
        return np.sort(self._keys[self._slots != NO_SLOT])

    def _bucket(self, mfn: int) -> int:
        """The bucket that holds the frame, or the empty one where it would go."""
        bucket = (mfn * _GOLDEN & _WORD) >> self._shift
        while self._keys.item(bucket) not in {mfn, INVALID_FRAME}:
            bucket = (bucket + 1) & self._mask
        return bucket

    def _reserve(self, nr_frames: int) -> None:
        """Make room for so many frames in all, at least doubling; slots stay as they are."""
        if nr_frames * self.nr_entries <= self.words.size:
            return
        bits = (nr_frames * _BUCKETS_PER_FRAME - 1).bit_length()
        words = np.zeros((self.nr_entries << bits) // _BUCKETS_PER_FRAME, dtype=self.words.dtype)
        words[: self._nr * self.nr_entries] = self.words[: self._nr * self.nr_entries]
        held = np.empty(self._nr, dtype=np.uint64)
        if self._nr:
            used = self._slots != NO_SLOT
            held[self._slots[used]] = self._keys[used]
        self.words = words
        self._shift = 64 - bits
        self._mask = (1 << bits) - 1
        self._keys = np.full(1 << bits, INVALID_FRAME, dtype=np.uint64)
        self._slots = np.full(1 << bits, NO_SLOT, dtype=np.intp)
        for slot, mfn in enumerate(held.tolist()):
            bucket = self._bucket(mfn)
            self._keys[bucket], self._slots[bucket] = mfn, slot
