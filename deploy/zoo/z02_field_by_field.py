"""XSA-328: a live entry is rewritten field by field."""

from __future__ import annotations

from collections.abc import Callable

from deploy.stress.case import DomainSetup, Extents
from deploy.stress.entry import ZooEntry
from deploy.stress.workload import Workload
from deploy.world import Kinds
from protocols.frames import INVALID_FRAME, ORDER_4K, PAGE_SHIFT, FrameArray
from protocols.script import Operation
from services.component.traps import Preempt
from services.p2m.component import P2m
from services.p2m.lookup import locate
from services.p2m.set_result import SetResult


class FieldByField(P2m):
    """A P2M that writes the new frame into a live 4K entry before it writes the rest."""

    async def set_entries(
        self,
        gfns: FrameArray,
        mfns: FrameArray,
        order: int,
        p2mt: int,
        settle: Callable[[SetResult], None] | None = None,
    ) -> tuple[SetResult, FrameArray]:
        """The frame field, then (others run) the whole entry."""
        gfn, mfn = int(gfns[0]), int(mfns[0])
        table = self.table
        pool, geometry = table._pool, table.geometry  # pyright: ignore[reportPrivateUsage]
        slot, level = locate(pool, geometry, table._root, gfn)  # pyright: ignore[reportPrivateUsage]
        if order == ORDER_4K and level == 1 and mfn != INVALID_FRAME:
            index = gfn & (geometry.nr_entries - 1)
            old = int(pool.rows[slot, index])
            pool.rows[slot, index] = old & ~geometry.frame_mask | mfn << PAGE_SHIFT
            await Preempt(0)
        return await super().set_entries(gfns, mfns, order, p2mt, settle)


class TornEntry(ZooEntry):
    """A live page-table entry was changed with several stores, one for each of its fields.

    A walker on another processor could read it in between, half old and half new, and translate
    to a frame with the rights of another one.
    """

    name = "xsa-328"
    source = "XSA-328, commit bc3d9f95d6"
    invariant = "translation_kept"
    also = ("access_current",)
    kinds = Kinds(p2m=FieldByField)
    workload = Workload(
        "xsa-328",
        "a page is populated over another one in a superpage that is shattered already",
        domains=(DomainSetup(domid=1, max_mib=8, extents=(Extents(0x200, 1, 9),)),),
        scripts=(
            (Operation("set_type", 1, 0x201, target=2), Operation("populate", 1, 0x201)),
            (Operation("touch", 1, 0x201), Operation("touch", 1, 0x201)),
        ),
    )
