"""XSA-389: what a failed multi-page update had mapped by then is freed as if it were not mapped."""

from __future__ import annotations

from deploy.stress.case import DomainSetup, Extents
from deploy.stress.entry import ZooEntry
from deploy.stress.workload import Workload
from deploy.world import Kinds
from protocols.p2m import P2mAddPage, P2mUpdated
from protocols.p2m_types import P2mType
from protocols.script import Operation
from services.p2m.component import P2m


class AllOrNothing(P2m):
    """A P2M that reports an update that failed half-way as one that did nothing."""

    async def _add_page(self, m: P2mAddPage) -> P2mUpdated:
        """The update; the prefix that it mapped is passed over in silence."""
        reply = await super()._add_page(m)
        return P2mUpdated(0, reply.rc, reply.displaced) if reply.rc else reply


class PartialAdd(ZooEntry):
    """An update that stopped half-way was taken for one that had done nothing.

    An update of many pages can stop in the middle when no page-table page is left. Its callers
    gave all of the pages back then, among them those that the guest could reach already.
    """

    name = "xsa-389"
    source = "XSA-389, commit 74a11c43fd"
    invariant = "use_after_free"
    also = ("flushed_before_free", "leaf_owned")
    kinds = Kinds(p2m=AllOrNothing)
    workload = Workload(
        "xsa-389",
        "a populate that needs two tables against an update that takes one of the last two",
        domains=(DomainSetup(domid=1, max_mib=8, pool_pages=5, extents=(Extents(0x200, 1, 9),)),),
        scripts=(
            (Operation("populate", 1, 0x5F0, order=9),),
            (Operation("get", 1, 0x201), Operation("set_type", 1, 0x201, target=P2mType.RAM_RO)),
            (Operation("touch", 1, 0x5F0), Operation("touch", 1, 0x5F1)),
        ),
    )
