"""XSA-212 and XSA-231: a number from a request is used without a look at its range."""

from __future__ import annotations

from dataclasses import replace

from deploy.stress.case import DomainSetup, Extents
from deploy.stress.entry import ZooEntry
from deploy.stress.workload import Workload
from deploy.world import Kinds
from protocols.p2m import P2mCreate
from protocols.script import Operation
from services.p2m.component import P2m
from services.p2m.table import P2mTable


class OneBitTooMany(P2m):
    """A P2M that takes gfns of one bit more than its tables can tell apart."""

    def new_table(self, m: P2mCreate) -> P2mTable:
        """Empty tables with the wrong bound."""
        table = super().new_table(m)
        table.geometry = replace(table.geometry, gfn_limit=table.geometry.gfn_limit << 1)
        return table


class RangeUnchecked(ZooEntry):
    """A number from a request was used as it came.

    memory_exchange did not check where in the guest's array it was told to go on (XSA-212), and
    the NUMA node in a request's flags was an index that nobody looked at (XSA-231): requests that
    should have been refused reached memory beyond the end of what they named.
    """

    name = "xsa-212"
    source = "XSA-212, commit 938fd2586e; XSA-231, commit 2fece35303"
    invariant = "translation_kept"
    also = ("tlb_coherent",)
    kinds = Kinds(p2m=OneBitTooMany)
    workload = Workload(
        "xsa-212",
        "a page is populated above the end of the gfn space while vCPUs use the memory below",
        domains=(DomainSetup(domid=1, max_mib=8, extents=(Extents(0x200, 1, 9),), warm=(0x201,)),),
        scripts=(
            (Operation("populate", 1, (1 << 36) + 0x201),),
            (Operation("get", 1, 0x201), Operation("touch", 1, 0x202)),
        ),
    )
