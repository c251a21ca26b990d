"""XSA-246: populate on demand tries again for ever when there is no memory for a table."""

from __future__ import annotations

from collections.abc import Callable

from deploy.stress.case import DomainSetup, Extents
from deploy.stress.entry import ZooEntry
from deploy.stress.workload import Workload
from deploy.world import Kinds
from protocols.errno import Errno
from protocols.frames import FrameArray
from protocols.p2m_types import P2mType
from protocols.script import Operation
from services.component.traps import Preempt
from services.p2m.component import P2m
from services.p2m.set_result import SetResult


class RetriesForEver(P2m):
    """A P2M that takes every failure to split a PoD entry for one that will pass."""

    async def set_entries(
        self,
        gfns: FrameArray,
        mfns: FrameArray,
        order: int,
        p2mt: int,
        settle: Callable[[SetResult], None] | None = None,
    ) -> tuple[SetResult, FrameArray]:
        """The update; for a PoD entry until it has worked."""
        while True:
            result, displaced = await super().set_entries(gfns, mfns, order, p2mt, settle)
            if p2mt != P2mType.POPULATE_ON_DEMAND or result.errno != Errno.ENOMEM:
                return result, displaced
            await Preempt(0)


class PodRetry(ZooEntry):
    """Populate on demand tried again without end when a superpage could not be split.

    A look-up that met a PoD superpage had it split and then looked again. That splitting had
    failed for want of a page-table page was not passed on, so the look-up met the same superpage
    each time, with the p2m lock held.
    """

    name = "xsa-246"
    source = "XSA-246, commit a1c6c67689"
    invariant = "no_livelock"
    kinds = Kinds(p2m=RetriesForEver)
    workload = Workload(
        "xsa-246",
        "a vCPU touches a 1G PoD page while the toolstack takes the free pages of the pool back",
        domains=(
            DomainSetup(
                domid=1,
                max_mib=8,
                pool_pages=6,
                extents=(Extents(1 << 18, 1, 18, pod=True),),
                pod_target_mib=4,
            ),
        ),
        scripts=(
            (Operation("touch", 1, (1 << 18) + 0x201),),
            (Operation("get", 1, 1 << 18), Operation("pool", 1, target=2)),
        ),
    )
