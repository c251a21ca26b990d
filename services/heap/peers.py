"""What other nodes and the P2Ms ask of a node: frames, owners and M2P words where they live."""

from __future__ import annotations

from protocols.frames import pack, unpack
from protocols.heap import AllocHeapPages, FreeHeapPages, HeapPages, RelinquishMemory, SetM2p
from protocols.memory import Status
from services.component.component import handles
from services.component.traps import Preempt
from services.heap.node import OK, Node
from services.heap.policy import SLICE_FRAMES


class Peers(Node):
    """alloc_heap_pages and free_heap_pages for domains that are at home elsewhere."""

    @handles(AllocHeapPages)
    async def alloc_heap_pages(self, m: AllocHeapPages) -> HeapPages:
        """Frames for another node's domain; the books stay with the one who asks."""
        available = max(0, self.memory.heap.free_frames - self.claimed_by_others(None))
        return HeapPages(pack(self.memory.alloc(m.order, min(m.nr, available >> m.order), m.owner)))

    @handles(FreeHeapPages)
    async def free_heap_pages(self, m: FreeHeapPages) -> Status:
        """Frames that another node's domain gives back."""
        self.memory.free(unpack(m.mfns), m.order, m.owner, dirty=m.dirty)
        return OK

    @handles(RelinquishMemory)
    async def relinquish_memory(self, m: RelinquishMemory) -> HeapPages:
        """Free all that a dying domain has on this node; replies with the count as one word."""
        freed = 0
        while nr := self.memory.free_owned(m.domid, SLICE_FRAMES):
            freed += nr
            await Preempt(freed)
        return HeapPages(pack([freed]))

    @handles(SetM2p)
    async def set_gpfn_from_mfn(self, m: SetM2p) -> Status:
        """M2P words of frames of any node, written where they live."""
        gfns = unpack(m.gfns) if m.gfns else None
        await self.set_m2p(unpack(m.mfns), gfns, m.order, m.domid)
        return OK
