"""XSA-410: a dying domain's memory is freed in one go."""

from __future__ import annotations

from deploy.stress.case import DomainSetup, Extents, Host
from deploy.stress.entry import ZooEntry
from deploy.stress.workload import Workload
from deploy.world import Kinds
from protocols.frames import FRAME_MAX, pack
from protocols.heap import HeapPages, RelinquishMemory
from protocols.script import Operation
from services.heap.component import Allocator


class TeardownInOneGo(Allocator):
    """An allocator that frees all that a domain has on its node before anybody else may run."""

    async def relinquish_memory(self, m: RelinquishMemory) -> HeapPages:
        """domain_relinquish_resources without a preemption point."""
        return HeapPages(pack([self.memory.free_owned(m.domid, FRAME_MAX)]))


class UnboundedTeardown(ZooEntry):
    """Tearing a domain down was not preemptible.

    The whole paging pool of a dying domain was given back in one loop, and a large domain has a
    large pool: the processor did nothing else until it was done.
    """

    name = "xsa-410"
    source = "XSA-410, commits e7aa55c0aa, 8a2111250b"
    invariant = "bounded_work"
    kinds = Kinds(allocator=TeardownInOneGo)
    workload = Workload(
        "xsa-410",
        "a domain is destroyed that has 2 GiB on a node away from home, since its home is full",
        host=Host(memory_mib=6144, nodes=2),
        domains=(
            DomainSetup(domid=3, max_mib=2048, extents=(Extents(1 << 18, 2, 18),)),
            DomainSetup(
                domid=1, max_mib=2056, extents=(Extents(1 << 18, 2, 18), Extents(0x200, 1, 9))
            ),
        ),
        scripts=((Operation("destroy", 1),), (Operation("touch", 1, 0x201),)),
    )
