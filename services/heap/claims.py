"""XENMEM_claim_pages: a promise of frames to a domain that is yet to be built."""

from __future__ import annotations

from protocols.errno import Errno
from protocols.memory import ClaimPages, Status
from services.component.component import handles
from services.heap.node import OK, Node, failed


class ClaimCalls(Node):
    """What a toolstack claims."""

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
