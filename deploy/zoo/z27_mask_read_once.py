"""The flush mask is read before the entry is written: late walkers are missed."""

from __future__ import annotations

from collections.abc import Callable

from deploy.stress.case import DomainSetup, Extents
from deploy.stress.entry import ZooEntry
from deploy.stress.workload import Workload
from deploy.world import Kinds
from protocols.frames import FrameArray
from protocols.script import Operation
from services.component.traps import Preempt
from services.p2m.component import P2m
from services.p2m.set_result import SetResult


class MaskReadOnce(P2m):
    """A P2M that decides whom to flush before it changes the entry."""

    async def set_entries(
        self,
        gfns: FrameArray,
        mfns: FrameArray,
        order: int,
        p2mt: int,
        settle: Callable[[SetResult], None] | None = None,
    ) -> tuple[SetResult, FrameArray]:
        """The mask, (others run), the entry, the flush of who was in the mask."""
        mask = set(self._readers)
        await Preempt(0)
        late = self._readers - mask
        self._readers = mask
        try:
            return await super().set_entries(gfns, mfns, order, p2mt, settle)
        finally:
            self._readers |= late


class MaskRead(ZooEntry):
    """The processors that must flush were listed before the entry was changed.

    One that began to run the guest in between cached the old entry and was not on the list, so it
    went on with a translation that everybody believed to be gone.
    """

    name = "mask-read-once"
    source = "no advisory; flush masks of xen/arch/x86/mm/p2m.c"
    invariant = "tlb_coherent"
    also = ("flushed_before_free", "access_current", "use_after_free")
    kinds = Kinds(p2m=MaskReadOnce)
    workload = Workload(
        "mask-read-once",
        "a second vCPU begins to use a page that is being given back",
        domains=(DomainSetup(domid=1, max_mib=8, vcpus=1, extents=(Extents(0x200, 1, 9),)),),
        scripts=(
            (Operation("decrease", 1, 0x201),),
            (Operation("touch", 1, 0x201), Operation("touch", 1, 0x202)),
        ),
    )
