"""No TLB flush after a change of the p2m (HAP, October 2008)."""

from __future__ import annotations

from deploy.stress.case import DomainSetup, Extents
from deploy.stress.entry import ZooEntry
from deploy.stress.workload import Workload
from deploy.world import Kinds
from protocols.script import Operation
from services.p2m.component import P2m


class NeverFlushes(P2m):
    """A P2M that changes entries and tells no processor."""

    async def flush(self, domid: int) -> None:
        """Nothing is sent."""
        del domid


class NoFlush(ZooEntry):
    """The nested tables were changed, but the processors' translations of the guest stayed.

    With shadow paging every change went through code that flushed; the first HAP code wrote the
    p2m entry and left it at that.
    """

    name = "no-flush"
    source = "commit e7f7c7b12b (October 2008)"
    invariant = "tlb_coherent"
    also = ("flushed_before_free", "access_current", "use_after_free")
    kinds = Kinds(p2m=NeverFlushes)
    workload = Workload(
        "no-flush",
        "a vCPU uses a page while it is given back",
        domains=(DomainSetup(domid=1, max_mib=8, extents=(Extents(0x200, 1, 9),)),),
        scripts=(
            (Operation("touch", 1, 0x201), Operation("touch", 1, 0x201)),
            (Operation("decrease", 1, 0x201),),
        ),
    )
