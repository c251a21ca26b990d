"""XENMEM_set_pod_target: the cache of frames that a domain's PoD entries will need."""

from __future__ import annotations

import numpy as np

from protocols import envelope
from protocols.errno import Errno
from protocols.frames import ORDER_2M, FrameArray, pack, unpack
from protocols.heap import PodCacheRequest
from protocols.memory import PodTarget, SetPodTarget, Status
from protocols.p2m import P2mPodCacheAdd
from services.component.component import handles
from services.component.traps import Acquire, Call
from services.heap.accounts import DomainBook
from services.heap.node import OK, Node
from services.heap.policy import slice_extents


class PodTargets(Node):
    """Frames into the cache, and out of it."""

    @handles(SetPodTarget)
    async def set_pod_target(self, m: SetPodTarget) -> PodTarget:
        """XENMEM_set_pod_target."""
        return await set_pod_target(self, m)

    @handles(PodCacheRequest)
    async def pod_cache_return(self, m: PodCacheRequest) -> Status:
        """PoD cache frames that the P2M no longer needs."""
        await self.free_frames(unpack(m.mfns), m.order, m.domid)
        book = self.books[m.domid]
        book.unassign((len(m.mfns) // 8) << m.order)
        return OK


async def set_pod_target(allocator: Node, m: SetPodTarget) -> PodTarget:
    """p2m_pod_set_mem_target: grow the cache in 2M steps, then 4K; never shrinks here."""
    book = allocator.living(m.domid)
    if book is None:
        return PodTarget(-Errno.ESRCH, 0, 0, 0)
    if m.target_pages > book.max_pages:
        return PodTarget(-Errno.EINVAL, book.tot_pages, 0, 0)
    address = envelope.p2m(m.domid)
    await Acquire(book.lock, exclusive=False)
    try:
        if book.dying:
            return PodTarget(-Errno.ESRCH, 0, 0, 0)
        state = await Call(address, P2mPodCacheAdd(m.domid, 0, b""))
        populated = book.tot_pages - state.count
        idle = populated > 0 and state.entry_count == 0
        target = 0 if idle or m.target_pages < book.tot_pages else m.target_pages - populated
        if populated > 0:
            target = min(target, state.entry_count)
        while (need := target - state.count) > 0 and not book.dying:
            order = ORDER_2M if need >= 1 << ORDER_2M else 0
            mfns = await _pod_frames(allocator, book, order, need)
            if not mfns.size and order:
                order = 0
                mfns = await _pod_frames(allocator, book, order, min(need, 1 << ORDER_2M))
            if not mfns.size:
                return PodTarget(-Errno.ENOMEM, book.tot_pages, state.count, state.entry_count)
            state = await Call(address, P2mPodCacheAdd(m.domid, order, pack(mfns)))
        return PodTarget(0, book.tot_pages, state.count, state.entry_count)
    finally:
        book.lock.release()


async def _pod_frames(allocator: Node, book: DomainBook, order: int, need: int) -> FrameArray:
    nr = min(need >> order, slice_extents(order))
    for node in allocator.others.order_of_trial(None, exact=False):
        mfns = await allocator.take(book, node, order, nr)
        if mfns.size:
            return mfns
    return np.empty(0, dtype=np.uint64)
