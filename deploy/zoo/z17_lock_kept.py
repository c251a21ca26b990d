"""XSA-277: an error path returns with the p2m lock held."""

from __future__ import annotations

from deploy.stress.case import DomainSetup, Extents
from deploy.stress.entry import ZooEntry
from deploy.stress.workload import Workload
from deploy.world import Kinds
from protocols.frames import unpack
from protocols.p2m import P2mRemovePages, P2mUpdated
from protocols.script import Operation
from services.p2m import removal
from services.p2m.component import P2m


class KeepsTheLock(P2m):
    """A P2M that forgets to let go of its lock when a removal fails."""

    async def remove_pages(self, m: P2mRemovePages) -> P2mUpdated:
        """guest_remove_page with an early return."""
        span = await self.locking.enter(
            unpack(m.gfns), m.order, several=lambda: removal.takes_several(self, m)
        )
        reply = await removal.remove_pages(self, m)
        if reply.rc:
            # Our host looks at every reply for locks still held, which nothing does in Xen.
            self.context.running[0].held.clear()
            return reply
        self.locking.leave(span)
        return reply


class LockKept(ZooEntry):
    """An error path returned with a lock held.

    Removing a page from a guest took the lock of its gfn, and one of the error paths did not drop
    it. The guest could choose when: the next to ask for the p2m lock spun until the watchdog found
    it.
    """

    name = "xsa-277"
    source = "XSA-277, commit d80988cfc0"
    invariant = "no_lost_wakeup"
    also = ("no_deadlock",)
    kinds = Kinds(p2m=KeepsTheLock)
    workload = Workload(
        "xsa-277",
        "a page is given back twice unless it is populated in between",
        domains=(DomainSetup(domid=1, max_mib=8, extents=(Extents(0x200, 1, 9),)),),
        scripts=(
            (Operation("decrease", 1, 0x201), Operation("populate", 1, 0x201)),
            (
                Operation("touch", 1, 0x202),
                Operation("decrease", 1, 0x201),
                Operation("get", 1, 0x203),
            ),
        ),
    )
