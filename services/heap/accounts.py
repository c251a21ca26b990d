"""The books of the domains whose home is this allocator: who may have how much, and has it."""

from __future__ import annotations

from dataclasses import dataclass

from services.component.locks import Lock


@dataclass(slots=True)
class Claims:
    """Frames that all claims together hold back (outstanding_claims of page_alloc.c)."""

    total: int = 0


@dataclass(slots=True)
class DomainBook:
    """One domain's accounting, in frames (domain_tot_pages, max_pages, outstanding_pages).

    The pool is apart: its frames belong to Xen and never count against ``max_pages``.
    """

    domid: int
    max_pages: int
    superpages: str
    lock: Lock
    claims: Claims
    tot_pages: int = 0
    pool_pages: int = 0
    claim: int = 0
    dying: bool = False

    def set_claim(self, nr: int) -> None:
        """domain_set_outstanding_pages: this domain's claim, 0 for none."""
        self.claims.total += nr - self.claim
        self.claim = nr

    def room(self) -> int:
        """Frames that assign_pages would still let the domain have."""
        return self.max_pages - self.tot_pages

    def assign(self, nr: int) -> None:
        """Count frames in; a claim shrinks by what it has become (assign_pages)."""
        assert 0 <= nr <= self.room(), (
            f"domid {self.domid}: {nr} frames over max_pages {self.max_pages}, "
            f"tot_pages {self.tot_pages}"
        )
        self.tot_pages += nr
        if self.claim:
            self.set_claim(max(0, self.claim - nr))

    def unassign(self, nr: int) -> None:
        """Count frames out."""
        assert 0 <= nr <= self.tot_pages, (
            f"domid {self.domid}: {nr} frames taken out of {self.tot_pages}"
        )
        self.tot_pages -= nr
