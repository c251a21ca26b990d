"""A superpage takes the place of a table, and the table is forgotten (before 2011)."""

from __future__ import annotations

from deploy.stress.case import DomainSetup, Extents
from deploy.stress.entry import ZooEntry
from deploy.stress.workload import Workload
from deploy.world import Kinds
from protocols.frames import FrameArray
from protocols.script import Operation
from services.p2m.component import P2m


class ForgetsTables(P2m):
    """A P2M that overwrites the entry of a table and thinks no more of the table."""

    def give_back_tables(self, mfns: FrameArray) -> None:
        """Nobody frees it."""


class TableForgotten(ZooEntry):
    """Populating 2M over gfns that were mapped by 4K wrote the leaf over the table's entry.

    Nothing freed the table below, so its page was lost to the paging pool, or the domain was
    crashed because the case had not been thought of.
    """

    name = "table-forgotten"
    source = "before commit cf956b11ce (2011)"
    invariant = "flushed"
    also = ("own_audit", "pool_accounted", "ptp_reached_once")
    kinds = Kinds(p2m=ForgetsTables)
    workload = Workload(
        "table-forgotten",
        "one client shatters a superpage, another populates 2M there",
        domains=(DomainSetup(domid=1, max_mib=16, extents=(Extents(0x200, 1, 9),)),),
        scripts=(
            (Operation("set_type", 1, 0x201, target=2),),
            (Operation("populate", 1, 0x200, order=9),),
        ),
    )
