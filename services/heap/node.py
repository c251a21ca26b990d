"""What every call on a node's allocator works with: its memory, its peers, the books it keeps."""

from __future__ import annotations

from typing import Final

import numpy as np

from protocols.errno import Errno
from protocols.frames import FrameArray
from protocols.memory import Status
from services.component.component import Component
from services.component.context import Context
from services.heap.accounts import Claims, DomainBook
from services.heap.host import HostConfig, OtherNodes
from services.heap.node_memory import NodeMemory

OK: Final = Status(0)


def failed(errno: Errno) -> Status:
    """The status of a call that failed: the negative errno."""
    return Status(-errno)


class Node(Component):
    """One NUMA node's frames, and the books of the domains at home there."""

    def __init__(self, context: Context, config: HostConfig, node: int) -> None:
        super().__init__(context)
        self.config = config
        self.node = node
        start, nr_frames = config.node_range(node)
        self.memory = NodeMemory(node, start, nr_frames)
        self.others = OtherNodes(config, self.memory)
        self.books: dict[int, DomainBook] = {}
        self.claims = Claims()

    def living(self, domid: int) -> DomainBook | None:
        """The domain's books, unless it is unknown or dying."""
        book = self.books.get(domid)
        return None if book is None or book.dying else book

    def claimed_by_others(self, book: DomainBook | None) -> int:
        """Frames of the heap that claims hold back from this domain."""
        return self.claims.total - (book.claim if book is not None else 0)

    async def set_m2p(
        self, mfns: FrameArray, gfns: FrameArray | None, order: int, domid: int
    ) -> None:
        """m2p[mfn + i] = gfn + i (INVALID without gfns), on whatever node each frame is."""
        if self.memory.local(mfns):
            if gfns is None:
                self.memory.frames.clear_m2p(mfns, order)
            elif mfns.size:
                self.memory.frames.set_m2p(mfns, gfns, order)
            return
        await self.others.set_m2p(mfns, gfns, order, domid)

    async def free_frames(
        self, mfns: FrameArray, order: int, domid: int, *, dirty: bool = False
    ) -> None:
        """Frames of a domain back to the heaps of their nodes; the books are the caller's."""
        if self.memory.local(mfns):
            self.memory.free(mfns, order, domid, dirty=dirty)
        else:
            await self.others.free(mfns, order, domid, dirty=dirty)

    async def take(self, book: DomainBook, node: int, order: int, nr: int) -> FrameArray:
        """Frames of one node, counted in the books before anybody else can use up the room."""
        if node == self.node:
            free = self.memory.heap.free_frames - self.claimed_by_others(book)
            nr = min(nr, max(0, free) >> order)
        nr = min(nr, book.room() >> order)
        if nr <= 0:
            return np.empty(0, dtype=np.uint64)
        book.tot_pages += nr << order
        mfns = await self.others.alloc(node, order, nr, book.domid)
        book.tot_pages -= nr << order
        book.assign(int(mfns.size) << order)
        return mfns
