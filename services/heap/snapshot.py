"""A node's state, for audit and reports."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from protocols.control import DomainAccountRecord, NodeSnapshotReply, SnapshotNode
from services.component.component import handles
from services.heap.node import Node


class Snapshots(Node):
    """What an operator asks."""

    @handles(SnapshotNode)
    async def snapshot(self, m: SnapshotNode) -> NodeSnapshotReply:
        """The node's state, for audit and reports."""
        memory = self.memory
        mfns, orders = (
            memory.heap.blocks() if m.full else (np.empty(0, np.uint64), np.empty(0, np.uint8))
        )
        accounts = [
            DomainAccountRecord(
                book.domid, book.tot_pages, book.max_pages, book.pool_pages, book.claim
            )
            for book in self.books.values()
        ]
        problems: Sequence[str] = memory.heap.audit() if m.full else ()
        return NodeSnapshotReply(
            self.node,
            memory.start,
            memory.end - memory.start,
            memory.heap.free_frames,
            mfns.tobytes(),
            orders.tobytes(),
            memory.frames.to_bytes() if m.full else b"",
            accounts,
            list(problems),
        )
