"""XSA-388: a populate-on-demand request is taken to be aligned to its order."""

from __future__ import annotations

from deploy.stress.case import DomainSetup, Extents
from deploy.stress.entry import ZooEntry
from deploy.stress.workload import Workload
from deploy.world import Kinds
from protocols.frames import unpack
from protocols.p2m import P2mRemovePages, P2mUpdated
from protocols.p2m_types import P2mType
from protocols.script import Operation
from services.p2m import removal
from services.p2m.component import P2m
from services.p2m.kinds import invalid
from services.p2m.set_result import SetResult


class NoAlignmentCheck(P2m):
    """A P2M for which an extent is PoD as a whole if its first frame lies in a PoD superpage."""

    async def remove_pages(self, m: P2mRemovePages) -> P2mUpdated:
        """guest_remove_page; PoD extents by one write, wherever they end."""
        return await self._update(unpack(m.gfns), m.order, lambda: self._remove(m))

    async def _remove(self, m: P2mRemovePages) -> P2mUpdated:
        gfns = unpack(m.gfns)
        _, types, orders = self.table.get(gfns)
        if not ((types == P2mType.POPULATE_ON_DEMAND) & (orders >= m.order)).all():
            return await removal.remove_pages(self, m)

        def settle(result: SetResult) -> None:
            self.pod.entry_count -= result.nr_done << m.order

        nothing = invalid(gfns.size)
        result, _ = await self.set_entries(gfns, nothing, m.order, P2mType.INVALID, settle)
        return P2mUpdated(result.nr_done, -result.errno)


class PodMisaligned(ZooEntry):
    """Populate on demand took gfns to be aligned to the order of the request.

    Nothing checked that, and pages of an order between 4K and 2M went into the PoD cache as if
    they were 2M. A guest could choose both so that neighbours of the extent were changed and the
    counts no longer fitted the entries.
    """

    name = "xsa-388"
    source = "XSA-388, commits 182c737b9b, 8ec13f68e0"
    invariant = "pod_entry_count"
    also = ("m2p_backed", "pod_cache")
    kinds = Kinds(p2m=NoAlignmentCheck)
    workload = Workload(
        "xsa-388",
        "a 64K extent across the end of a PoD superpage is given back while a vCPU touches it",
        domains=(
            DomainSetup(
                domid=1,
                max_mib=8,
                extents=(Extents(0x200, 1, 9, pod=True), Extents(0x400, 1, 9)),
                pod_target_mib=4,
            ),
        ),
        scripts=(
            (Operation("touch", 1, 0x400), Operation("decrease", 1, 0x3F8, order=4)),
            (Operation("touch", 1, 0x200),),
        ),
    )
