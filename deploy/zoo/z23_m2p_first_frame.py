"""The M2P is written for the first frame of an extent only."""

from __future__ import annotations

from deploy.stress.case import DomainSetup
from deploy.stress.entry import ZooEntry
from deploy.stress.workload import Workload
from deploy.world import Kinds
from protocols.frames import FrameArray
from protocols.script import Operation
from services.heap.component import Allocator


class FirstFrameOnly(Allocator):
    """An allocator that takes every extent for a page when it writes the M2P."""

    async def set_m2p(
        self, mfns: FrameArray, gfns: FrameArray | None, order: int, domid: int
    ) -> None:
        """The words of the first frames; when they are cleared, of all."""
        await super().set_m2p(mfns, gfns, order if gfns is None else 0, domid)


class M2pFirstFrame(ZooEntry):
    """Of a large page only the first frame was looked after.

    With the first large pages, the code that asks whether a frame or a gfn is mapped already looked
    at one of 512, and the first fix forgot to add the index. Here it is the writing of the M2P that
    forgets the other 511.
    """

    name = "m2p-first-frame"
    source = "commits 933c704332, 4a3f6b62a1 (2008)"
    invariant = "m2p_matches"
    also = ("linearizable",)
    kinds = Kinds(allocator=FirstFrameOnly)
    workload = Workload(
        "m2p-first-frame",
        "a 2M page is given back and populated again while its pages are moved",
        domains=(DomainSetup(domid=1, max_mib=8),),
        scripts=(
            (Operation("populate", 1, 0x200, order=9), Operation("move", 1, 0x201, target=0x1000)),
            (Operation("touch", 1, 0x201),),
        ),
    )
