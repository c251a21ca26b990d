"""A 4K update inside a 2M leaf rewrites the whole leaf (EPT, May 2008)."""

from __future__ import annotations

from deploy.stress.case import DomainSetup, Extents
from deploy.stress.entry import ZooEntry
from deploy.stress.workload import Workload
from deploy.world import Kinds
from protocols.frames import INVALID_FRAME, ORDER_2M, FrameArray
from protocols.script import Operation
from services.p2m.component import P2m
from services.p2m.kinds import one
from services.p2m.set_result import SetResult


class LeafOfAnySize(P2m):
    """A P2M whose leaf write does not ask how large the entry is that it finds."""

    def commit(self, gfns: FrameArray, mfns: FrameArray, order: int, p2mt: int) -> SetResult:
        """Where the walk ends in a superpage, the superpage is what gets written."""
        _, _, orders = self.table.get(gfns)
        if order == 0 and int(orders[0]) == ORDER_2M and int(mfns[0]) != INVALID_FRAME:
            low = (1 << ORDER_2M) - 1
            return super().commit(
                one(int(gfns[0]) & ~low), one(int(mfns[0]) & ~low), ORDER_2M, p2mt
            )
        return super().commit(gfns, mfns, order, p2mt)


class WholeLeaf(ZooEntry):
    """Changing one 4K page wrote its new frame and type into the 2M entry around it.

    The first version of large pages for EPT set the leaf where the walk ended, whatever its size:
    the 511 neighbours moved along.
    """

    name = "whole-leaf"
    source = "commit 1a3f428d36 (May 2008)"
    invariant = "linearizable"
    also = ("m2p_matches", "leaf_owned", "m2p_backed", "return_values", "use_after_free")
    kinds = Kinds(p2m=LeafOfAnySize)
    workload = Workload(
        "whole-leaf",
        "one page of a superpage changes its type, another client looks at its neighbour",
        domains=(DomainSetup(domid=1, max_mib=8, extents=(Extents(0x200, 1, 9),)),),
        scripts=(
            (Operation("set_type", 1, 0x201, target=2),),
            (Operation("get", 1, 0x202), Operation("get", 1, 0x202)),
        ),
    )
