"""Two locks taken in two orders: the domain's in the allocator, the p2m's in the P2M."""

from __future__ import annotations

from deploy.stress.case import DomainSetup, Extents
from deploy.stress.entry import ZooEntry
from deploy.stress.workload import Workload
from deploy.world import Kinds
from protocols.heap import SetM2p
from protocols.memory import Status
from protocols.script import Operation
from services.component.traps import Acquire
from services.heap.component import Allocator


class LocksTheDomainLast(Allocator):
    """An allocator that writes M2P words for the P2M under the domain's lock."""

    async def set_gpfn_from_mfn(self, m: SetM2p) -> Status:
        """set_gpfn_from_mfn; whoever asks holds the p2m lock already."""
        book = self.books[m.domid]
        await Acquire(book.lock)
        try:
            return await super().set_gpfn_from_mfn(m)
        finally:
            book.lock.release()


class LockInversion(ZooEntry):
    """Two locks were taken in two orders.

    Xen gives its mm locks an order and checks it in debug builds: a processor that holds the p2m
    lock and asks for one that comes before it can meet another that has them the other way round.
    Here a fault that populates on demand does so, and any hypercall of the domain is the other.
    """

    name = "lock-inversion"
    source = "no advisory; the order of xen/arch/x86/mm/mm-locks.h"
    invariant = "no_deadlock"
    kinds = Kinds(allocator=LocksTheDomainLast)
    workload = Workload(
        "lock-inversion",
        "a vCPU touches a PoD page while another client gives memory back",
        domains=(
            DomainSetup(
                domid=1,
                max_mib=8,
                extents=(Extents(0x200, 1, 9, pod=True), Extents(0x400, 1, 9)),
                pod_target_mib=4,
                warm=(0x400,),
            ),
        ),
        scripts=(
            (Operation("touch", 1, 0x400), Operation("touch", 1, 0x201)),
            (Operation("decrease", 1, 0x401), Operation("get", 1, 0x402)),
        ),
    )
