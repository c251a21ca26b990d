"""A word for every frame, held by chunks of 512: one rule for a whole chunk, or a dense page.

4 TiB of memory mapped by superpages then costs some tens of MiB instead of gigabytes. Pure arrays.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from protocols.frames import FrameArray, runs_of

CHUNK_SHIFT: Final = 9
CHUNK: Final = 1 << CHUNK_SHIFT
PAGES_AT_ONCE: Final = 1 << 14
FEW: Final = 8
"""Up to so many chunks are handled one by one: numpy calls would cost more than they save."""

_MASK: Final = np.uint64(CHUNK - 1)
_NO_PAGE: Final = -1

ChunkIds = npt.NDArray[np.intp]
Words = npt.NDArray[np.unsignedinteger[Any]]
BoolArray = npt.NDArray[np.bool_]


class ChunkedWords:
    """Words indexed by frame.

    A chunk without a page has word ``base`` everywhere or, where ``slope`` is 1 or -1, word
    ``base + slope * offset``: frames ascend inside an extent, and 4K frames come out of the heap
    descending.
    """

    def __init__(
        self, start: int, nr_frames: int, dtype: type[np.unsignedinteger[Any]], empty: int
    ) -> None:
        self.first_chunk = start >> CHUNK_SHIFT
        nr_chunks = ((start + nr_frames - 1) >> CHUNK_SHIFT) - self.first_chunk + 1
        self.base: Words = np.full(nr_chunks, empty, dtype=dtype)
        self.slope = np.zeros(nr_chunks, dtype=np.int8)
        self.page = np.full(nr_chunks, _NO_PAGE, dtype=np.int32)
        # Room for many pages at once: untouched ones cost address space, not memory.
        self.pages: Words = np.empty((min(nr_chunks, PAGES_AT_ONCE), CHUNK), dtype=dtype)
        self._spare: list[int] = []
        self._nr_pages = 0

    @property
    def nbytes(self) -> int:
        """Memory held."""
        used = self._nr_pages * CHUNK * self.pages.itemsize
        return self.base.nbytes + self.slope.nbytes + self.page.nbytes + used

    def chunks_of(self, frames: FrameArray) -> ChunkIds:
        """Chunk number of each frame."""
        return (frames >> CHUNK_SHIFT).astype(np.intp) - self.first_chunk

    # -- reading -----------------------------------------------------------------------------

    def read(self, frames: FrameArray) -> Words:
        """The word of each frame."""
        chunks = self.chunks_of(frames)
        offset = (frames & _MASK).astype(np.intp)
        words = self._ruled(chunks, offset)
        page = self.page[chunks]
        dense = page != _NO_PAGE
        if dense.any():
            words[dense] = self.pages[page[dense], offset[dense]]
        return words

    def _ruled(self, chunks: ChunkIds, offset: ChunkIds) -> Words:
        """Words by the rule of each frame's chunk, as if there were no pages."""
        slope = self.slope[chunks]
        return self.base[chunks] + (slope * offset).astype(self.base.dtype)

    def uniform(self, chunks: ChunkIds, value: int) -> BoolArray:
        """Whether each chunk has this word everywhere."""
        if chunks.size <= FEW:
            base, slope, page = self.base.item, self.slope.item, self.page.item
            right = [
                base(c) == value and not slope(c) if page(c) == _NO_PAGE
                else bool((self.pages[page(c)] == value).all())
                for c in chunks.tolist()
            ]  # fmt: skip
            return np.array(right, dtype=np.bool_)
        pages = self.page[chunks]
        result = (self.base[chunks] == value) & (self.slope[chunks] == 0)
        dense = pages != _NO_PAGE
        if dense.any():
            result[dense] = (self.pages[pages[dense]] == value).all(axis=1)
        return result

    def ascends(self, chunks: ChunkIds, bases: FrameArray) -> BoolArray:
        """Whether each chunk has words base, base + 1, ..., base + 511."""
        pages = self.page[chunks]
        result = (self.base[chunks] == bases) & (self.slope[chunks] == 1)
        dense = pages != _NO_PAGE
        if dense.any():
            wanted = bases[dense][:, None] + np.arange(CHUNK, dtype=self.base.dtype)
            result[dense] = (self.pages[pages[dense]] == wanted).all(axis=1)
        return result

    def runs(self, value: int, among: BoolArray | None = None) -> tuple[FrameArray, FrameArray]:
        """Maximal runs of frames with this word, ascending: (starts, lengths).

        A chunk with a slope is taken not to have the word. ``among``, shape (nr_chunks,), names
        the chunks to look at; the first and the last may reach beyond the table's frames.
        """
        ruled = (self.base == value) & (self.page == _NO_PAGE) & (self.slope == 0)
        dense = self.page != _NO_PAGE
        if among is not None:
            ruled &= among
            dense &= among
        starts, lengths = runs_of(np.flatnonzero(ruled).astype(np.uint64))
        shift = np.uint64(CHUNK_SHIFT)
        starts_of, lengths_of = [starts << shift], [lengths << shift]
        chunks = np.flatnonzero(dense)
        for at in range(0, chunks.size, PAGES_AT_ONCE):
            some = chunks[at : at + PAGES_AT_ONCE]
            # Only the ends of a run become numbers, so its length costs nothing.
            has = self.pages[self.page[some]] == value
            opens, closes = has.copy(), has.copy()
            opens[:, 1:] &= ~has[:, :-1]
            closes[:, :-1] &= ~has[:, 1:]
            first = np.flatnonzero(opens)
            frames = (some[first >> CHUNK_SHIFT] << CHUNK_SHIFT) + (first & (CHUNK - 1))
            starts_of.append(frames.astype(np.uint64))
            lengths_of.append((np.flatnonzero(closes) - first + 1).astype(np.uint64))
        starts, lengths = np.concatenate(starts_of), np.concatenate(lengths_of)
        where = np.argsort(starts, kind="stable")
        starts, lengths = _merge(starts[where], lengths[where])
        return starts + np.uint64(self.first_chunk << CHUNK_SHIFT), lengths

    def touched(self, starts: FrameArray, lengths: FrameArray) -> BoolArray:
        """Which chunks have a frame of these disjoint runs; shape (nr_chunks,)."""
        steps = np.zeros(self.base.size + 1, dtype=np.intp)
        np.add.at(steps, self.chunks_of(starts), 1)
        np.add.at(steps, self.chunks_of(starts + lengths - np.uint64(1)) + 1, -1)
        return steps.cumsum()[:-1] > 0

    # -- writing -----------------------------------------------------------------------------

    def write_chunks(self, chunks: ChunkIds, bases: npt.ArrayLike, slope: int = 0) -> None:
        """Whole chunks by rule; their pages are released."""
        if chunks.size <= FEW:
            held = [chunk for chunk in chunks.tolist() if self.page.item(chunk) != _NO_PAGE]
        else:
            held = chunks[self.page[chunks] != _NO_PAGE]
        if len(held):
            self._spare.extend(self.page[held].tolist())
            self.page[held] = _NO_PAGE
        self.base[chunks] = bases
        self.slope[chunks] = slope

    def write_few(self, chunks: list[int], bases: list[int], slope: int) -> None:
        """``write_chunks`` for a handful, without numpy's cost for each call."""
        page = self.page.item
        if any(page(chunk) != _NO_PAGE for chunk in chunks):
            self.write_chunks(np.array(chunks, dtype=np.intp), bases, slope)
            return
        for chunk, base in zip(chunks, bases, strict=True):
            self.base[chunk] = base
            self.slope[chunk] = slope

    def swap(self, chunks: list[int], expected: int, value: int) -> bool:
        """Write ``value`` to chunks that all say ``expected`` by rule; False, untouched, if not."""
        base, slope, page = self.base.item, self.slope.item, self.page.item
        for chunk in chunks:
            if page(chunk) != _NO_PAGE or slope(chunk) or base(chunk) != expected:
                return False
        for chunk in chunks:
            self.base[chunk] = value
        return True

    def write(self, frames: FrameArray, words: npt.ArrayLike) -> None:
        """Single frames, by dense pages."""
        chunks = self.chunks_of(frames)
        sparse = chunks[self.page[chunks] == _NO_PAGE]
        if sparse.size:
            self._densify(np.unique(sparse))
        self.pages[self.page[chunks], (frames & _MASK).astype(np.intp)] = words

    def _densify(self, chunks: ChunkIds) -> None:
        """Give chunks a page each that says what their rule said."""
        nr = int(chunks.size)
        reused = [self._spare.pop() for _ in range(min(nr, len(self._spare)))]
        fresh = range(self._nr_pages, self._nr_pages + nr - len(reused))
        if fresh.stop > self.pages.shape[0]:
            grown = np.empty((2 * fresh.stop, CHUNK), dtype=self.base.dtype)
            grown[: self._nr_pages] = self.pages[: self._nr_pages]
            self.pages = grown
        self._nr_pages = fresh.stop
        pages = np.array([*reused, *fresh], dtype=np.int32)
        self.pages[pages] = self._ruled(chunks[:, None], np.arange(CHUNK, dtype=np.intp))
        self.page[chunks] = pages

    # -- copies ------------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """Everything, in a form that ``load`` reads."""
        pages = self.pages[: self._nr_pages]
        parts = (self.base, self.slope, self.page, pages)
        head = np.array([self.base.size, self._nr_pages], dtype="<u8")
        return b"".join(part.tobytes() for part in (head, *parts))

    def load(self, data: bytes, at: int) -> int:
        """Become a read-only copy of what ``to_bytes`` gave at this offset; where it ends."""
        nr_chunks, nr_pages = np.frombuffer(data, "<u8", 2, at).tolist()
        at += 16
        self.base = np.frombuffer(data, self.base.dtype, nr_chunks, at)
        self.slope = np.frombuffer(data, np.int8, nr_chunks, at + self.base.nbytes)
        at += self.base.nbytes + self.slope.nbytes
        self.page = np.frombuffer(data, np.int32, nr_chunks, at)
        at += self.page.nbytes
        pages = np.frombuffer(data, self.base.dtype, nr_pages * CHUNK, at)
        self.pages, self._nr_pages = pages.reshape(nr_pages, CHUNK), nr_pages
        return at + pages.nbytes


def _merge(starts: FrameArray, lengths: FrameArray) -> tuple[FrameArray, FrameArray]:
    """Touching runs joined."""
    if starts.size < 2:
        return starts, lengths
    ends = starts + lengths
    new = np.concatenate(([True], starts[1:] != ends[:-1]))
    first = np.flatnonzero(new)
    last = np.concatenate((first[1:] - 1, [starts.size - 1]))
    return starts[first], ends[last] - starts[first]
