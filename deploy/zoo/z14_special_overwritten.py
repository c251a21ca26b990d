"""XSA-378: an ordinary request replaces an entry that it must not touch."""

from __future__ import annotations

from deploy.stress.case import DomainSetup, Extents
from deploy.stress.entry import ZooEntry
from deploy.stress.workload import Workload
from deploy.world import Kinds
from protocols.frames import pack, unpack
from protocols.p2m import P2mAddPage, P2mUpdated
from protocols.p2m_types import P2mType
from protocols.script import Operation
from services.p2m.component import P2m


class NoTypeCheck(P2m):
    """A P2M that adds pages without a look at what is there."""

    async def _add_page(self, m: P2mAddPage) -> P2mUpdated:
        """p2m_add_page less its check of the old types."""
        gfns, mfns = unpack(m.gfns), unpack(m.mfns)
        result, displaced = await self.set_entries(gfns, mfns, m.order, P2mType.RAM_RW)
        return P2mUpdated(result.nr_done, -result.errno, pack(displaced))


class SpecialOverwritten(ZooEntry):
    """Ordinary requests replaced entries that they should not have touched.

    Pages that firmware wants mapped one to one for a device (RMRR, IVMD) were p2m entries like any
    other: the guest's own add_to_physmap, populate and decrease_reservation replaced or removed
    them without asking for their type.
    """

    name = "xsa-378"
    source = "XSA-378, commit 753cb68e65"
    invariant = "linearizable"
    also = ("m2p_backed",)
    kinds = Kinds(p2m=NoTypeCheck)
    workload = Workload(
        "xsa-378",
        "one client makes a page mmio_direct and looks at it, another populates its gfn",
        domains=(DomainSetup(domid=1, max_mib=8, extents=(Extents(0x200, 1, 9),)),),
        scripts=(
            (
                Operation("set_type", 1, 0x201, target=P2mType.MMIO_DIRECT),
                Operation("get", 1, 0x201),
            ),
            (Operation("populate", 1, 0x201), Operation("get", 1, 0x201)),
        ),
    )
