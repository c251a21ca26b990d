"""A table that a superpage replaced is free again before the flush is done."""

from __future__ import annotations

from deploy.stress.case import DomainSetup, Extents
from deploy.stress.entry import ZooEntry
from deploy.stress.workload import Workload
from deploy.world import Kinds
from protocols.script import Operation
from services.p2m.component import P2m
from services.p2m.set_result import SetResult


class FreesEarly(P2m):
    """A P2M that gives the old table back as soon as nothing points to it."""

    async def after_commit(self, result: SetResult) -> None:
        """The tables first, then the flush."""
        if result.retired.size:
            self.give_back_tables(result.retired)
        if result.stale:
            await self.flush(self.table.domid)


class TableFreedEarly(ZooEntry):
    """A processor keeps entries of upper levels too, and follows them to a table that is gone.

    When 2M takes the place of 512 4K entries, the page that held them may only be used again when
    every processor has forgotten the entry that pointed to it.
    """

    name = "table-freed-early"
    source = "no advisory; p2m_next_level and p2m_free_entry of xen/arch/x86/mm/p2m-pt.c"
    invariant = "flushed_before_table_reuse"
    also = ("access_current", "use_after_free")
    kinds = Kinds(p2m=FreesEarly)
    workload = Workload(
        "table-freed-early",
        "a vCPU walks a table that a populate of 2M replaces",
        domains=(DomainSetup(domid=1, max_mib=16, extents=(Extents(0x200, 1, 9),)),),
        scripts=(
            (Operation("set_type", 1, 0x201, target=2),),
            (Operation("populate", 1, 0x200, order=9),),
            (Operation("touch", 1, 0x203),),
        ),
    )
