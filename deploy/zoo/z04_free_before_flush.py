"""XSA-346: memory goes back to the heap while a vCPU may still reach it."""

from __future__ import annotations

from deploy.stress.case import DomainSetup, Extents
from deploy.stress.entry import ZooEntry
from deploy.stress.workload import Workload
from deploy.world import Kinds
from protocols.script import Operation
from services.p2m.component import P2m
from services.p2m.set_result import SetResult


class DeferredFlush(P2m):
    """A P2M that answers an update first and leaves the flush to the next one."""

    _owed = False

    async def after_commit(self, result: SetResult) -> None:
        """The flush of the update before; this one's is still owed."""
        if self._owed:
            self._owed = False
            await self.flush(self.table.domid)
        self._owed = result.stale
        if result.retired.size:
            self.give_back_tables(result.retired)


class FreeBeforeFlush(ZooEntry):
    """The flush of a removed mapping was deferred past the point where its frame was freed.

    A vCPU could still write to memory that somebody else owned by then.
    """

    name = "xsa-346"
    source = "XSA-346, commit 5777a3742d"
    invariant = "tlb_coherent"
    also = ("flushed_before_free", "use_after_free", "flushed_before_table_reuse")
    kinds = Kinds(p2m=DeferredFlush)
    workload = Workload(
        "xsa-346",
        "a vCPU touches a page that another client gives back",
        domains=(DomainSetup(domid=1, max_mib=8, extents=(Extents(0x200, 2, 9),), warm=(0x201,)),),
        scripts=(
            (Operation("decrease", 1, 0x201),),
            (Operation("touch", 1, 0x201), Operation("touch", 1, 0x202)),
        ),
    )
