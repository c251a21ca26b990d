"""XSA-384: a frame that was looked up is mapped after it has been given back."""

from __future__ import annotations

from deploy.stress.case import DomainSetup, Extents
from deploy.stress.entry import ZooEntry
from deploy.stress.workload import Workload
from deploy.world import Kinds
from protocols.p2m import P2mMove, P2mUpdated
from protocols.p2m_types import P2mType
from protocols.script import Operation
from services.p2m.component import P2m
from services.p2m.kinds import invalid, one


class TrustsTheLookup(P2m):
    """A P2M that maps the frame its caller has seen some time ago, without a second look."""

    async def _move(self, m: P2mMove) -> P2mUpdated:
        """The old gfn goes, the new one comes, whatever became of the frame meanwhile."""
        await self.set_entries(one(m.src), invalid(1), 0, P2mType.INVALID)
        result, displaced = await self.set_entries(one(m.dst), one(m.mfn), 0, P2mType.RAM_RW)
        return P2mUpdated(result.nr_done, -result.errno, displaced.tobytes())


class StaleLookup(ZooEntry):
    """A frame was looked up, freed by somebody else, and then mapped.

    Mapping a grant status page took a reference only after the look-up; when the guest changed the
    version of its grant table in between, it was given a page that belonged to the heap by then.
    """

    name = "xsa-384"
    source = "XSA-384, commit eb6bbf7b30"
    invariant = "use_after_free"
    also = ("leaf_owned", "linearizable")
    kinds = Kinds(p2m=TrustsTheLookup)
    workload = Workload(
        "xsa-384",
        "a page is moved by one client and given back by another",
        domains=(DomainSetup(domid=1, max_mib=8, extents=(Extents(0x200, 1, 9),)),),
        scripts=(
            (Operation("move", 1, 0x201, target=0x1000), Operation("touch", 1, 0x1000)),
            (Operation("touch", 1, 0x202), Operation("decrease", 1, 0x201)),
        ),
    )
