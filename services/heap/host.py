"""The host as its allocators know it: memory per node, table formats, what the switches allow."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np
import numpy.typing as npt

from protocols import envelope
from protocols.frames import FrameArray, pack, unpack
from protocols.heap import AllocHeapPages, FreeHeapPages, RelinquishMemory, SetM2p
from services.component.traps import Call, CallAll
from services.heap.node_memory import NodeMemory


class HostConfig(msgspec.Struct, frozen=True):
    """What is fixed when the host boots. ``leaf_orders`` largest first, after ``hap_*=``.

    ``p2m_lock`` names the lock protocol of every P2M.
    """

    ram_start: int
    ram_frames: int
    nr_nodes: int
    paging: str
    leaf_orders: tuple[int, ...]
    p2m_lock: str = "domain"

    def node_range(self, node: int) -> tuple[int, int]:
        """(first mfn, frames) of a node: equal shares, cut at 2M."""
        share = self.ram_frames // self.nr_nodes >> 9 << 9 or self.ram_frames
        start = self.ram_start + node * share
        last = node == self.nr_nodes - 1
        return start, self.ram_frames - node * share if last else share

    def home(self, domid: int) -> int:
        """The node whose allocator keeps a domain's books."""
        return domid % self.nr_nodes


class OtherNodes:
    """Access to frames that may be of any node: local ones directly, others by message."""

    def __init__(self, config: HostConfig, memory: NodeMemory) -> None:
        self._config = config
        self._memory = memory
        self._starts = np.array(
            [config.node_range(node)[0] for node in range(config.nr_nodes)], dtype=np.uint64
        )

    def _by_node(self, mfns: FrameArray) -> Iterator[tuple[int, npt.NDArray[np.intp]]]:
        """(node, positions in ``mfns``) of each node that has some."""
        nodes = np.searchsorted(self._starts, mfns, side="right") - 1
        found: list[int] = np.unique(nodes).tolist()
        for node in found:
            yield node, np.flatnonzero(nodes == node)

    async def alloc(self, node: int, order: int, nr: int, owner: int) -> FrameArray:
        """Up to ``nr`` extents of that node, owned by ``owner``."""
        if node == self._memory.node:
            return self._memory.alloc(order, nr, owner)
        reply = await Call(envelope.allocator(node), AllocHeapPages(owner, order, nr))
        return unpack(reply.mfns)

    async def set_m2p(
        self, mfns: FrameArray, gfns: FrameArray | None, order: int, domid: int
    ) -> None:
        """M2P words on every node concerned."""
        calls: list[tuple[str, SetM2p]] = []
        for node, where in self._by_node(mfns):
            some = None if gfns is None else gfns[where]
            if node != self._memory.node:
                words = b"" if some is None else pack(some)
                calls.append(
                    (envelope.allocator(node), SetM2p(domid, order, pack(mfns[where]), words))
                )
            elif some is None:
                self._memory.frames.clear_m2p(mfns[where], order)
            else:
                self._memory.frames.set_m2p(mfns[where], some, order)
        await CallAll(calls)

    async def free(self, mfns: FrameArray, order: int, owner: int, *, dirty: bool) -> None:
        """Frames back to the heap of each one's node."""
        calls: list[tuple[str, FreeHeapPages]] = []
        for node, where in self._by_node(mfns):
            if node == self._memory.node:
                self._memory.free(mfns[where], order, owner, dirty=dirty)
            else:
                request = FreeHeapPages(owner, order, pack(mfns[where]), dirty)
                calls.append((envelope.allocator(node), request))
        await CallAll(calls)

    async def relinquish(self, domid: int) -> int:
        """Free all frames of a dying domain on the other nodes; how many."""
        nodes = [node for node in range(self._config.nr_nodes) if node != self._memory.node]
        request = RelinquishMemory(domid)
        replies = await CallAll([(envelope.allocator(node), request) for node in nodes])
        return sum(int(unpack(reply.mfns)[0]) for reply in replies)

    def order_of_trial(self, wanted: int | None, *, exact: bool) -> list[int]:
        """Nodes to try, best first: the one asked for or the home, then the rest in a ring."""
        first = self._memory.node if wanted is None else wanted
        if first >= self._config.nr_nodes:
            return []
        if exact:
            return [first]
        return [(first + step) % self._config.nr_nodes for step in range(self._config.nr_nodes)]
