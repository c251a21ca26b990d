"""The domctls: a domain is created, its pool gets its size, it dies.

A domain's lock is taken exclusively here; the calls of memory.c share it.
"""

from __future__ import annotations

from typing import Final

from protocols import envelope
from protocols.domctl import (
    DomainInfo,
    DomctlCreateDomain,
    DomctlDestroyDomain,
    DomctlGetDomainInfo,
    DomctlSetPagingMempoolSize,
)
from protocols.errno import Errno
from protocols.frames import DOMID_XEN, PAGE_SHIFT, PAGE_SIZE, FrameArray, pack, unpack
from protocols.memory import Status
from protocols.p2m import P2mCreate, P2mPoolAdd, P2mPoolRemove, P2mTeardown
from services.component.component import handles
from services.component.traps import Acquire, Call, Preempt
from services.heap.accounts import DomainBook
from services.heap.node import OK, Node, failed
from services.heap.policy import SLICE_FRAMES

POOL_PAGES_MIN: Final = 256
"""hap_enable gives a domain 256 pages (1 MB) before the toolstack sets the size."""


class LifeCycle(Node):
    """domain_create to domain_kill."""

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
