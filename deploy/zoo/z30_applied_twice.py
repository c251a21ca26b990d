"""A request that the transport delivers again is carried out again."""

from __future__ import annotations

from deploy.stress.case import DomainSetup, Extents
from deploy.stress.entry import ZooEntry
from deploy.stress.workload import Workload
from deploy.world import Kinds
from protocols.script import Operation
from services.heap.component import Allocator


class NoDuplicateCheck(Allocator):
    """An allocator that does not know a request that it has seen before."""

    recognises_repeats = False


class AppliedTwice(ZooEntry):
    """A request that was delivered twice was carried out twice.

    A hypercall cannot arrive twice, so this is no bug of Xen; its model over messages had to rule
    it out first of all. A link that delivers again after a crash has a populate allocate twice,
    unless the receiver knows what it has seen.
    """

    name = "applied-twice"
    source = "no advisory; delivery retried by the transport"
    invariant = "component_assertion"
    also = ("return_values", "linearizable", "tot_pages")
    faults = ("duplicate",)
    kinds = Kinds(allocator=NoDuplicateCheck)
    workload = Workload(
        "applied-twice",
        "two clients populate and give back pages over links that deliver some messages again",
        domains=(DomainSetup(domid=1, max_mib=8, extents=(Extents(0x200, 1, 9),)),),
        scripts=(
            (Operation("populate", 1, 0x1000), Operation("decrease", 1, 0x1000)),
            (Operation("populate", 1, 0x1001), Operation("get", 1, 0x1001)),
        ),
    )
