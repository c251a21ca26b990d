"""XSA-379: the old place of a page is looked up in one lock span and replaced in another."""

from __future__ import annotations

import numpy as np

from deploy.stress.case import DomainSetup, Extents
from deploy.stress.entry import ZooEntry
from deploy.stress.workload import Workload
from deploy.world import Kinds
from protocols.errno import Errno
from protocols.frames import pack
from protocols.p2m import P2mMove, P2mUpdated
from protocols.p2m_types import P2mType
from protocols.script import Operation
from services.component.traps import Preempt
from services.p2m.component import P2m
from services.p2m.kinds import invalid, one


class NarrowLock(P2m):
    """A P2M that lets go of its lock between the look-up of the old gfn and the two writes."""

    async def move(self, m: P2mMove) -> P2mUpdated:
        """add_to_physmap of a page, in two lock spans."""
        both = np.array([m.src, m.dst], dtype=np.uint64)
        looked = await self._update(both, 0, lambda: self._look(m))
        if looked.rc:
            return looked
        await Preempt(0)
        return await self._update(both, 0, lambda: self._write(m), several=lambda: True)

    async def _look(self, m: P2mMove) -> P2mUpdated:
        found, _, _ = self.table.get(one(m.src))
        return P2mUpdated(0, 0 if int(found[0]) == m.mfn else -Errno.EXDEV)

    async def _write(self, m: P2mMove) -> P2mUpdated:
        await self.set_entries(one(m.src), invalid(1), 0, P2mType.INVALID)
        result, displaced = await self.set_entries(one(m.dst), one(m.mfn), 0, P2mType.RAM_RW)
        return P2mUpdated(result.nr_done, -result.errno, pack(displaced))


class NarrowLockSpan(ZooEntry):
    """A page got two gfns, and only one of them was remembered.

    Xen keeps one gfn for each grant status page, so that it can unmap the page before freeing it.
    Looking that gfn up and replacing it was not one critical section: two requests that raced
    mapped the page twice, and the guest kept what nobody knew of.
    """

    name = "xsa-379"
    source = "XSA-379, commit f147422bf9"
    invariant = "use_after_free"
    also = ("linearizable", "mapped_once", "leaf_owned")
    kinds = Kinds(p2m=NarrowLock)
    workload = Workload(
        "xsa-379",
        "two clients move the same page; one gives it back where it put it, the other uses it",
        domains=(DomainSetup(domid=1, max_mib=8, extents=(Extents(0x200, 1, 9),)),),
        scripts=(
            (Operation("move", 1, 0x201, target=0x1000), Operation("decrease", 1, 0x1000)),
            (Operation("move", 1, 0x201, target=0x1001), Operation("touch", 1, 0x1001)),
        ),
    )
