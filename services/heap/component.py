"""The allocator of one NUMA node: memory hypercalls, domain life cycle, M2P words.

May decide and wait; every change of frames, owners and M2P is a single call into ring one. A
domain's books live in its home allocator (domid modulo nodes), which asks the other nodes for
frames when its own will not do. Under the domain's lock, shared, hypercalls of one domain may
interleave at every await; destroy takes it exclusively.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from protocols import envelope
from protocols.control import DomainAccountRecord, NodeSnapshotReply, SnapshotNode
from protocols.domctl import (
    DomainInfo,
    DomctlCreateDomain,
    DomctlDestroyDomain,
    DomctlGetDomainInfo,
    DomctlSetPagingMempoolSize,
)
from protocols.errno import Errno
from protocols.frames import DOMID_XEN, PAGE_SHIFT, PAGE_SIZE, FrameArray, pack, unpack
from protocols.heap import (
    AllocHeapPages,
    FreeHeapPages,
    HeapPages,
    PodCacheRequest,
    RelinquishMemory,
    SetM2p,
)
from protocols.memory import (
    AddToPhysmap,
    ClaimPages,
    DecreaseReservation,
    IncreaseReservation,
    Multicall,
    MulticallReply,
    NrDone,
    PodTarget,
    PopulatePhysmap,
    RemoveFromPhysmap,
    SetPodTarget,
    Status,
)
from protocols.p2m import P2mCreate, P2mPoolAdd, P2mPoolRemove, P2mTeardown
from services.component.component import Component, handles
from services.component.context import Context
from services.component.traps import Acquire, Call, Preempt
from services.heap import physmap, reservation
from services.heap.accounts import Claims, DomainBook
from services.heap.host import HostConfig, OtherNodes
from services.heap.node_memory import NodeMemory
from services.heap.policy import SLICE_FRAMES

POOL_PAGES_MIN: Final = 256
"""hap_enable gives a domain 256 pages (1 MB) before the toolstack sets the size."""

OK: Final = Status(0)


def failed(errno: Errno) -> Status:
    """The status of a call that failed: the negative errno."""
    return Status(-errno)


class Allocator(Component):
    """Answers memory_op and domctl for the domains at home here, and frames for other nodes."""

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

    # -- memory_op ---------------------------------------------------------------------------

    @handles(PopulatePhysmap)
    async def populate_physmap(self, m: PopulatePhysmap) -> NrDone:
        """XENMEM_populate_physmap; never an error code, only how far it came."""
        return NrDone(await reservation.populate(self, m))

    @handles(IncreaseReservation)
    async def increase_reservation(self, m: IncreaseReservation) -> NrDone:
        """XENMEM_increase_reservation."""
        return NrDone(await reservation.increase(self, m))

    @handles(DecreaseReservation)
    async def decrease_reservation(self, m: DecreaseReservation) -> NrDone:
        """XENMEM_decrease_reservation."""
        return NrDone(await reservation.decrease(self, m))

    @handles(AddToPhysmap)
    async def add_to_physmap(self, m: AddToPhysmap) -> Status:
        """XENMEM_add_to_physmap."""
        return Status(-await physmap.add(self, m))

    @handles(RemoveFromPhysmap)
    async def remove_from_physmap(self, m: RemoveFromPhysmap) -> Status:
        """XENMEM_remove_from_physmap."""
        return Status(-await physmap.remove(self, m))

    @handles(SetPodTarget)
    async def set_pod_target(self, m: SetPodTarget) -> PodTarget:
        """XENMEM_set_pod_target."""
        return await reservation.set_pod_target(self, m)

    @handles(ClaimPages)
    async def claim_pages(self, m: ClaimPages) -> Status:
        """XENMEM_claim_pages (domain_set_outstanding_pages): all or nothing, no frame moves."""
        book = self.living(m.domid)
        if book is None:
            return failed(Errno.EINVAL)
        if m.nr_pages == 0:
            book.set_claim(0)
            return OK
        if book.claim or not book.tot_pages < m.nr_pages <= book.max_pages:
            return failed(Errno.EINVAL)
        wanted = m.nr_pages - book.tot_pages
        if wanted > self.memory.heap.free_frames - self.claimed_by_others(book):
            return failed(Errno.ENOMEM)
        book.set_claim(wanted)
        return OK

    @handles(Multicall)
    async def multicall(self, m: Multicall) -> MulticallReply:
        """do_multicall: each entry runs as if it had come alone; preemptible between entries."""
        results: list[int] = []
        for entry in m.entries:
            if results:
                await Preempt(len(results))
            handler = self.handlers()[type(entry)]
            reply = await handler(entry)
            results.append(reply.nr_done if isinstance(reply, NrDone) else reply.rc)
        return MulticallReply(results)

    # -- domctl ------------------------------------------------------------------------------

    @handles(DomctlCreateDomain)
    async def create_domain(self, m: DomctlCreateDomain) -> Status:
        """An empty domain: books, 256 pool frames, a P2M with a root table."""
        if m.domid in self.books:
            return failed(Errno.EEXIST)
        pool = self.memory.alloc(0, POOL_PAGES_MIN, DOMID_XEN)
        if pool.size < POOL_PAGES_MIN:
            self.memory.free(pool, 0, DOMID_XEN, dirty=False)
            return failed(Errno.ENOMEM)
        lock = self.context.lock(f"domain {m.domid}", 1)
        book = DomainBook(m.domid, m.max_pages, m.superpages, lock, self.claims)
        self.books[m.domid] = book
        # Nobody else can hold the new lock; a destroy that comes meanwhile waits for the outcome.
        await Acquire(lock)
        try:
            return await self._init_p2m(m, book, pool)
        finally:
            lock.release()

    async def _init_p2m(self, m: DomctlCreateDomain, book: DomainBook, pool: FrameArray) -> Status:
        orders = [0] if m.superpages == "off" else list(self.config.leaf_orders)
        create = P2mCreate(m.domid, self.config.paging, orders, m.vcpus, pack(pool), m.force_4k)
        reply = await Call(envelope.p2m(m.domid), create)
        if reply.rc:
            self.memory.free(pool, 0, DOMID_XEN, dirty=False)
            book.dying = True
            del self.books[m.domid]
            return reply
        book.pool_pages = POOL_PAGES_MIN
        return OK

    @handles(DomctlSetPagingMempoolSize)
    async def set_paging_mempool_size(self, m: DomctlSetPagingMempoolSize) -> Status:
        """hap_set_allocation: grow or shrink the pool; what is in use cannot be taken."""
        book = self.living(m.domid)
        if book is None:
            return failed(Errno.ESRCH)
        if m.size % PAGE_SIZE:
            return failed(Errno.EINVAL)
        await Acquire(book.lock)
        try:
            if book.dying:
                return failed(Errno.ESRCH)
            return await self._resize_pool(book, m.size >> PAGE_SHIFT)
        finally:
            book.lock.release()

    async def _resize_pool(self, book: DomainBook, target: int) -> Status:
        address = envelope.p2m(book.domid)
        while book.pool_pages < target:
            nr = min(target - book.pool_pages, SLICE_FRAMES)
            available = self.memory.heap.free_frames - self.claimed_by_others(None)
            mfns = self.memory.alloc(0, max(0, min(nr, available)), DOMID_XEN)
            if not mfns.size:
                return failed(Errno.ENOMEM)
            reply = await Call(address, P2mPoolAdd(book.domid, pack(mfns)))
            if reply.rc:
                self.memory.free(mfns, 0, DOMID_XEN, dirty=False)
                return reply
            book.pool_pages += mfns.size
        if book.pool_pages > target:
            reply = await Call(address, P2mPoolRemove(book.domid, book.pool_pages - target))
            mfns = unpack(reply.mfns)
            book.pool_pages -= mfns.size
            for first in range(0, mfns.size, SLICE_FRAMES):
                if first:
                    await Preempt(first)
                part = mfns[first : first + SLICE_FRAMES]
                self.memory.free(part, 0, DOMID_XEN, dirty=False)
            if book.pool_pages > target:
                return failed(Errno.ENOMEM)
        return OK

    @handles(DomctlGetDomainInfo)
    async def get_domain_info(self, m: DomctlGetDomainInfo) -> DomainInfo:
        """XEN_DOMCTL_getdomaininfo."""
        book = self.books.get(m.domid)
        if book is None:
            return DomainInfo(-Errno.ESRCH, 0, 0, 0, 0)
        return DomainInfo(0, book.tot_pages, book.max_pages, book.claim, book.pool_pages)

    @handles(DomctlDestroyDomain)
    async def destroy_domain(self, m: DomctlDestroyDomain) -> Status:
        """domain_kill: refuse new work, wait for what runs, tables first, then memory.

        Preempted after every SLICE_FRAMES frames (XSA-410: no tear-down in one go).
        """
        book = self.living(m.domid)
        if book is None:
            return failed(Errno.ESRCH)
        book.dying = True
        book.set_claim(0)
        await Acquire(book.lock)
        if self.books.get(m.domid) is not book:
            # It was still being created, and that failed.
            book.lock.release()
            return failed(Errno.ESRCH)
        teardown = await Call(envelope.p2m(m.domid), P2mTeardown(m.domid))
        pool = unpack(teardown.mfns)
        for first in range(0, pool.size, SLICE_FRAMES):
            part = pool[first : first + SLICE_FRAMES]
            self.memory.free(part, 0, DOMID_XEN, dirty=True)
            await Preempt(first + part.size)
        freed = 0
        while nr := self.memory.free_owned(m.domid, SLICE_FRAMES):
            freed += nr
            await Preempt(freed)
        freed += await self.others.relinquish(m.domid)
        book.unassign(freed)
        assert book.tot_pages == 0, f"domid {m.domid}: {book.tot_pages} frames lost at destroy"
        del self.books[m.domid]
        book.lock.release()
        return OK

    # -- for other nodes and the P2M ---------------------------------------------------------

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

    @handles(PodCacheRequest)
    async def pod_cache_return(self, m: PodCacheRequest) -> Status:
        """PoD cache frames that the P2M no longer needs."""
        await self.free_frames(unpack(m.mfns), m.order, m.domid)
        book = self.books[m.domid]
        book.unassign((len(m.mfns) // 8) << m.order)
        return OK

    # -- shared by the modules that hold the longer calls ------------------------------------

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

    # -- operator ----------------------------------------------------------------------------

    @handles(SnapshotNode)
    async def snapshot(self, m: SnapshotNode) -> NodeSnapshotReply:
        """The node's state, for audit and reports."""
        memory = self.memory
        mfns, orders = memory.heap.blocks() if m.full else (_NONE, np.empty(0, np.uint8))
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


_NONE: Final = np.empty(0, dtype=np.uint64)
