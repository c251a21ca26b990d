"""The livelock in the fix of XSA-304: two paths of the fault handler undo each other's work."""

from __future__ import annotations

import numpy as np

from deploy.stress.case import DomainSetup, Extents
from deploy.stress.entry import ZooEntry
from deploy.stress.workload import Workload
from deploy.world import Kinds
from protocols.frames import ORDER_2M, unpack
from protocols.p2m_types import P2mType
from protocols.script import Operation
from protocols.walk import FAULT_RETRY, FaultOutcome, NestedPageFault
from services.p2m.component import P2m
from services.p2m.kinds import invalid, one


class ReinstallsSuperpages(P2m):
    """A P2M whose fault handler shatters a PoD superpage, and makes it whole at the next fault."""

    async def nested_page_fault(self, m: NestedPageFault) -> FaultOutcome:
        """hvm_hap_nested_page_fault; the guest tries again after either change."""
        gfns = unpack(m.gfns)
        if await self._changed(int(gfns[0])):
            return FaultOutcome(bytes([FAULT_RETRY]) * gfns.size)
        return await super().nested_page_fault(m)

    async def _changed(self, gfn: int) -> bool:
        """Whether the size of the leaves around a gfn was changed."""
        base = one(gfn >> ORDER_2M << ORDER_2M)
        span = await self.locking.enter(base, ORDER_2M, several=lambda: True)
        try:
            _, types, orders = self.table.get(base + np.arange(1 << ORDER_2M, dtype=np.uint64))
            if (types != P2mType.POPULATE_ON_DEMAND).any() or self.pod.count >= 1 << ORDER_2M:
                return False
            order = 0 if int(orders[0]) == ORDER_2M else ORDER_2M
            await self.set_entries(base, invalid(1), order, P2mType.POPULATE_ON_DEMAND)
            return True
        finally:
            self.locking.leave(span)


class ShatterLivelock(ZooEntry):
    """Two paths of the fault handler undid each other's work.

    The mitigation of XSA-304 shatters an executable superpage at the first instruction fetched from
    it and lets the guest try again. For a nested guest the next fault found no entry and put the
    superpage back, which had to be shattered again: the vCPU never came to its instruction.
    """

    name = "shatter-livelock"
    source = "commit 183f354e14 (in the fix of XSA-304)"
    invariant = "no_livelock"
    kinds = Kinds(p2m=ReinstallsSuperpages)
    workload = Workload(
        "shatter-livelock",
        "two vCPUs touch PoD superpages, and the cache has one 2M page and some small ones",
        domains=(
            DomainSetup(
                domid=1,
                max_mib=8,
                vcpus=2,
                extents=(Extents(0x200, 2, 9, pod=True),),
                pod_target_mib=3,
            ),
        ),
        scripts=((Operation("touch", 1, 0x201),), (Operation("get_alloc", 1, 0x401),)),
    )
