"""A word for every frame, held by chunks of 512: one value for a whole chunk, or a dense page.

4 TiB of memory mapped by superpages then costs some tens of MiB instead of gigabytes. Pure arrays.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from protocols.frames import FrameArray

CHUNK_SHIFT: Final = 9
CHUNK: Final = 1 << CHUNK_SHIFT
_MASK: Final = np.uint64(CHUNK - 1)
_NO_PAGE: Final = -1

ChunkIds = npt.NDArray[np.intp]


class ChunkedWords:
    """Words indexed by frame, ``frame - start`` from 0.

    A chunk without a page has word ``base``, or ``base + offset`` when the table is ``ramped`` and
    the base is not ``empty``.
    """

    def __init__(
        self, start: int, nr_frames: int, dtype: type[np.unsignedinteger], empty: int, *, ramped: bool
    ) -> None:
        self.first_chunk = start >> CHUNK_SHIFT
        nr_chunks = ((start + nr_frames - 1) >> CHUNK_SHIFT) - self.first_chunk + 1
        self.empty = dtype(empty)
        self.ramped = ramped
        self.base = np.full(nr_chunks, self.empty, dtype=dtype)
        self.page = np.full(nr_chunks, _NO_PAGE, dtype=np.int32)
        self.pages = np.empty((0, CHUNK), dtype=dtype)
        self._spare: list[int] = []
        self._nr_pages = 0

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return self.base.nbytes + self.page.nbytes + self.pages.nbytes

    def chunks_of(self, frames: FrameArray) -> ChunkIds:
        """Chunk number of each frame."""
        return (frames >> np.uint64(CHUNK_SHIFT)).astype(np.intp) - self.first_chunk

    def read(self, frames: FrameArray) -> npt.NDArray[np.unsignedinteger]:
        """The word of each frame."""
        chunks = self.chunks_of(frames)
        offset = frames & _MASK
        words = self.base[chunks]
        if self.ramped:
            words = np.where(words == self.empty, self.empty, words + offset.astype(words.dtype))
        page = self.page[chunks]
        dense = page != _NO_PAGE
        if dense.any():
            words[dense] = self.pages[page[dense], offset[dense].astype(np.intp)]
        return words

    def write_chunks(self, chunks: ChunkIds, bases: npt.ArrayLike) -> None:
        """Whole chunks: one base each; their pages are released."""
        pages = self.page[chunks]
        held = pages[pages != _NO_PAGE]
        if held.size:
            self._spare.extend(held.tolist())
            self.page[chunks] = _NO_PAGE
        self.base[chunks] = bases

    def write(self, frames: FrameArray, words: npt.ArrayLike) -> None:
        """Single frames, by dense pages."""
        chunks = self.chunks_of(frames)
        self._densify(chunks)
        self.pages[self.page[chunks], (frames & _MASK).astype(np.intp)] = words

    def _densify(self, chunks: ChunkIds) -> None:
        sparse = chunks[self.page[chunks] == _NO_PAGE]
        if not sparse.size:
            return
        for chunk in np.unique(sparse).tolist():
            page = self._spare.pop() if self._spare else self._grow()
            base = self.base[chunk]
            if self.ramped and base != self.empty:
                self.pages[page] = base + np.arange(CHUNK, dtype=self.base.dtype)
            else:
                self.pages[page] = base
            self.page[chunk] = page

    def _grow(self) -> int:
        if self._nr_pages == self.pages.shape[0]:
            grown = np.empty((max(16, 2 * self._nr_pages), CHUNK), dtype=self.base.dtype)
            grown[: self._nr_pages] = self.pages
            self.pages = grown
        self._nr_pages += 1
        return self._nr_pages - 1

    def to_arrays(self) -> tuple[npt.NDArray[np.unsignedinteger], npt.NDArray[np.int32], npt.NDArray[np.unsignedinteger]]:
        """(base, page, pages in use): what a copy is made from."""
        return self.base, self.page, self.pages[: self._nr_pages]

    def load(self, base: npt.NDArray[np.unsignedinteger], page: npt.NDArray[np.int32], pages: npt.NDArray[np.unsignedinteger]) -> None:
        """Become the copy of what ``to_arrays`` gave; for reading only."""
        self.base, self.page, self.pages = base, page, pages
        self._nr_pages = pages.shape[0]
