"""XSA-247: a page is freed although taking it out of the p2m had failed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from deploy.stress.case import DomainSetup, Extents
from deploy.stress.entry import ZooEntry
from deploy.stress.workload import Workload
from deploy.world import Kinds
from protocols.errno import Errno
from protocols.frames import INVALID_FRAME, FrameArray, expand
from protocols.p2m_types import P2mType
from protocols.script import Operation
from services.p2m.component import P2m
from services.p2m.set_result import SetResult


class RemovalUnchecked(P2m):
    """A P2M whose removals always say that they worked."""

    async def set_entries(
        self,
        gfns: FrameArray,
        mfns: FrameArray,
        order: int,
        p2mt: int,
        settle: Callable[[SetResult], None] | None = None,
    ) -> tuple[SetResult, FrameArray]:
        """The update; frames of a removal that failed are reported as gone all the same."""
        before, _, _ = self.table.get(expand(gfns, order))
        result, displaced = await super().set_entries(gfns, mfns, order, p2mt, settle)
        if result.errno and p2mt == P2mType.INVALID:
            kept = before[result.nr_frames :]
            displaced = np.concatenate((displaced, kept[kept != INVALID_FRAME]))
            result.nr_done, result.errno = gfns.size, Errno.OK
        return result, displaced


class FreedThoughMapped(ZooEntry):
    """A failed removal from the p2m went unnoticed, and the frame was freed all the same.

    The function that takes a page out of the p2m returned nothing, so guest_remove_page could not
    see that there had been no page-table page left to split the superpage around it. The frame went
    back to the heap and stayed mapped in the guest.
    """

    name = "xsa-247"
    source = "XSA-247, commits a3d64de8e8, 92790672de"
    invariant = "use_after_free"
    also = ("flushed_before_free", "leaf_owned", "linearizable")
    kinds = Kinds(p2m=RemovalUnchecked)
    workload = Workload(
        "xsa-247",
        "two clients split superpages when the paging pool has one page left",
        domains=(DomainSetup(domid=1, max_mib=8, pool_pages=4, extents=(Extents(0x200, 2, 9),)),),
        scripts=(
            (Operation("decrease", 1, 0x200, order=9), Operation("populate", 1, 0x200, order=9)),
            (Operation("decrease", 1, 0x401),),
            (Operation("touch", 1, 0x402), Operation("touch", 1, 0x401)),
        ),
    )
