"""XSA-321: a new table can be reached before it is filled."""

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
from services.p2m.entry import encode_table, split_children
from services.p2m.geometry import BIT_PSE
from services.p2m.lookup import locate
from services.p2m.set_result import SetResult


class PublishThenFill(P2m):
    """A P2M that hooks the new table into its parent first and copies the mappings then."""

    async def set_entries(
        self,
        gfns: FrameArray,
        mfns: FrameArray,
        order: int,
        p2mt: int,
        settle: Callable[[SetResult], None] | None = None,
    ) -> tuple[SetResult, FrameArray]:
        """Parent entry, (others run), the 512 children, and then the update itself."""
        table = self.table
        pool, geometry = table._pool, table.geometry  # pyright: ignore[reportPrivateUsage]
        gfn = int(gfns[0])
        slot, level = locate(pool, geometry, table._root, gfn)  # pyright: ignore[reportPrivateUsage]
        index = gfn >> geometry.shift(level) & (geometry.nr_entries - 1)
        entry = int(pool.rows[slot, index])
        if order == 0 and level == 2 and entry & BIT_PSE and pool.nr_free:
            child = pool.alloc()
            pool.rows[slot, index] = encode_table(geometry, pool.mfn(child), level)
            await Preempt(0)
            pool.rows[child] = split_children(geometry, entry, level)
            await self.flush(table.domid)
        return await super().set_entries(gfns, mfns, order, p2mt, settle)


class PublishedEmpty(ZooEntry):
    """The entry that points to a new table was visible before the table's contents were.

    For a short time whoever walked there found garbage or nothing. On machines whose table walks
    do not snoop the caches, the time was not even short: the missing write-back was the bug.
    """

    name = "xsa-321"
    source = "XSA-321, commit c23274fd04"
    invariant = "translation_kept"
    also = ("access_current", "linearizable")
    kinds = Kinds(p2m=PublishThenFill)
    workload = Workload(
        "xsa-321",
        "a superpage shatters while a vCPU uses its other pages",
        domains=(DomainSetup(domid=1, max_mib=8, extents=(Extents(0x200, 1, 9),)),),
        scripts=(
            (Operation("set_type", 1, 0x201, target=2),),
            (Operation("touch", 1, 0x202), Operation("touch", 1, 0x203)),
        ),
    )
