"""32-bit PAE: a 64-bit entry is written as two halves, the present one first."""

from __future__ import annotations

from collections.abc import Callable

from deploy.stress.case import DomainSetup, Extents
from deploy.stress.entry import ZooEntry
from deploy.stress.workload import Workload
from deploy.world import Kinds
from protocols.frames import INVALID_FRAME, FrameArray
from protocols.script import Operation
from services.component.traps import Preempt
from services.p2m.component import P2m
from services.p2m.entry import encode_leaf
from services.p2m.lookup import locate
from services.p2m.set_result import SetResult

LOW = 0xFFFFFFFF


class LowHalfFirst(P2m):
    """A P2M whose stores are 32 bits wide, and in the wrong order."""

    async def set_entries(
        self,
        gfns: FrameArray,
        mfns: FrameArray,
        order: int,
        p2mt: int,
        settle: Callable[[SetResult], None] | None = None,
    ) -> tuple[SetResult, FrameArray]:
        """The low half with the present bit, (others run), the high half."""
        table = self.table
        pool, geometry = table._pool, table.geometry  # pyright: ignore[reportPrivateUsage]
        gfn = int(gfns[0])
        slot, level = locate(pool, geometry, table._root, gfn)  # pyright: ignore[reportPrivateUsage]
        if order == 0 and level == 1 and int(mfns[0]) != INVALID_FRAME:
            entry = int(encode_leaf(geometry, mfns[:1], p2mt, 0)[0])
            index = gfn & (geometry.nr_entries - 1)
            pool.rows[slot, index] = int(pool.rows[slot, index]) & ~LOW | entry & LOW
            await Preempt(0)
        return await super().set_entries(gfns, mfns, order, p2mt, settle)


class TwoHalves(ZooEntry):
    """A 32-bit hypervisor has no plain 64-bit store, so an entry takes two.

    The half with the present bit must come last when an entry is made and first when it goes; the
    other way round a walker finds an entry that is present and whose frame lacks its upper bits.
    """

    name = "two-halves"
    source = "no advisory; xen/include/asm-x86/x86_32/page-3level.h"
    invariant = "translation_kept"
    also = ("access_current", "use_after_free")
    kinds = Kinds(p2m=LowHalfFirst)
    workload = Workload(
        "two-halves",
        "a hole in a shattered superpage is filled while a vCPU faults there",
        domains=(DomainSetup(domid=1, max_mib=8, extents=(Extents(0x200, 1, 9),)),),
        scripts=(
            (Operation("decrease", 1, 0x201), Operation("populate", 1, 0x201)),
            (Operation("touch", 1, 0x201), Operation("touch", 1, 0x201)),
        ),
    )
