"""The highest mapped gfn is not tracked for large leaves (2008)."""

from __future__ import annotations

from deploy.stress.case import DomainSetup
from deploy.stress.entry import ZooEntry
from deploy.stress.workload import Workload
from deploy.world import Kinds
from protocols.p2m import P2mCreate
from protocols.script import Operation
from services.p2m.component import P2m
from services.p2m.geometry import GEOMETRIES
from services.p2m.table import P2mTable


class FirstFrameOnly(P2mTable):
    """Tables that count the first frame of a leaf alone as mapped."""

    __slots__ = ()

    def _raise_max(self, gfn: int, order: int, p2mt: int) -> None:
        """The order plays no part."""
        del order
        super()._raise_max(gfn, 0, p2mt)


class TracksFirstFrames(P2m):
    """A P2M over such tables."""

    def new_table(self, m: P2mCreate) -> P2mTable:
        """Empty tables of the domain."""
        return FirstFrameOnly(
            GEOMETRIES[m.paging], m.domid, allowed_orders=tuple(m.leaf_orders), record=True
        )


class HighestGfn(ZooEntry):
    """max_mapped_pfn was raised to the first gfn of a superpage instead of its last.

    Whatever walks the p2m up to there, audit, dump or tear-down, left out the rest of the last
    superpage, and look-ups took it for a hole.
    """

    name = "highest-gfn"
    source = "commits 4565fb811d, a326f234ae (2008)"
    invariant = "translation_kept"
    also = ("max_mapped", "linearizable", "access_current")
    kinds = Kinds(p2m=TracksFirstFrames)
    workload = Workload(
        "highest-gfn",
        "the last superpage of a domain is populated while another client looks into it",
        domains=(DomainSetup(domid=1, max_mib=8),),
        scripts=(
            (Operation("populate", 1, 0x400, order=9),),
            (Operation("get", 1, 0x401), Operation("get", 1, 0x401)),
        ),
    )
