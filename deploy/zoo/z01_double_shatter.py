"""XSA-345: two updaters shatter the same superpage, the second from what it saw before."""

from __future__ import annotations

import numpy as np

from deploy.stress.case import DomainSetup, Extents
from deploy.stress.entry import ZooEntry
from deploy.stress.workload import Workload
from deploy.world import Kinds
from protocols.errno import Errno
from protocols.frames import ORDER_2M, unpack
from protocols.p2m import P2mChangeType, P2mUpdated
from protocols.script import Operation
from services.component.component import handles
from services.component.traps import Preempt
from services.p2m.component import P2m
from services.p2m.kinds import IS_RAM, one


class ShatterUnchecked(P2m):
    """A P2M that plans the split before it has the lock, and does not look again under it."""

    @handles(P2mChangeType)
    async def change_type(self, m: P2mChangeType) -> P2mUpdated:
        """The superpage is read, a page is allocated (others run), then all of it is written."""
        gfn = int(unpack(m.gfns)[0])
        base = gfn >> ORDER_2M << ORDER_2M
        frames = np.arange(base, base + 512, dtype=np.uint64)
        mfns, types, orders = self.table.get(frames)
        if int(orders[0]) != ORDER_2M or not IS_RAM[types[0]]:
            return await super().change_type(m)
        await Preempt(0)
        span = await self.locking.enter(one(gfn))
        try:
            await self.set_entries(frames, mfns, 0, int(types[0]))
            found, _, _ = self.table.get(one(gfn))
            await self.set_entries(one(gfn), found, 0, m.p2mt)
        finally:
            self.locking.leave(span)
        return P2mUpdated(1, -Errno.OK)


class DoubleShatter(ZooEntry):
    """Two updates found the same superpage entry, and both allocated a table for it.

    Nothing looked again under the lock before the second table was installed, so whatever had
    been changed through the first one was lost, and its page leaked.
    """

    name = "xsa-345"
    source = "XSA-345, commit 1ce75e99d7"
    invariant = "linearizable"
    also = ("leaf_owned", "use_after_free", "m2p_matches", "free_unowned", "access_current")
    kinds = Kinds(p2m=ShatterUnchecked)
    workload = Workload(
        "xsa-345",
        "two types change in one superpage, and a third client looks",
        domains=(DomainSetup(domid=1, max_mib=8, extents=(Extents(0x200, 1, 9),)),),
        scripts=(
            (Operation("set_type", 1, 0x201, target=2), Operation("get", 1, 0x202)),
            (Operation("set_type", 1, 0x202, target=3), Operation("get", 1, 0x202)),
        ),
    )
