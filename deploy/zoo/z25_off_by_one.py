"""A preempted decrease_reservation goes on one extent too far."""

from __future__ import annotations

import msgspec

from deploy.stress.case import DomainSetup, Extents
from deploy.stress.entry import ZooEntry
from deploy.stress.workload import Workload
from deploy.world import Kinds
from protocols.frames import pack, unpack
from protocols.memory import DecreaseReservation, NrDone
from protocols.script import Operation
from services.component.traps import Preempt
from services.heap.component import Allocator


class OffByOne(Allocator):
    """An allocator whose continuations start behind the extent that is next."""

    async def decrease_reservation(self, m: DecreaseReservation) -> NrDone:
        """An extent at a time, preempted whenever the domain is busy elsewhere."""
        gfns = unpack(m.extent_start)
        done = 0
        while done < gfns.size:
            part = msgspec.structs.replace(m, extent_start=pack(gfns[done : done + 1]))
            reply = await super().decrease_reservation(part)
            if not reply.nr_done:
                break
            done += 1
            book = self.living(m.domid)
            if book is not None and book.lock.held and done < gfns.size:
                await Preempt(done)
                done += 1
        return NrDone(done)


class NrDoneOffByOne(ZooEntry):
    """A batch ended one page too late.

    The fix of XSA-346 has decrease_reservation collect pages to be freed after one flush, and its
    test for a full batch was off by one. Here it is the continuation of a preempted call that names
    the wrong extent to go on with, so that one counts as done that never was.
    """

    name = "off-by-one"
    source = "commit 9b156bcc3f (in the fix of XSA-346)"
    invariant = "return_values"
    also = ("linearizable",)
    kinds = Kinds(allocator=OffByOne)
    workload = Workload(
        "off-by-one",
        "three pages are given back in one call while another client populates one",
        domains=(DomainSetup(domid=1, max_mib=8, extents=(Extents(0x200, 1, 9),)),),
        scripts=(
            (Operation("get", 1, 0x200), Operation("decrease", 1, 0x201, nr=3)),
            (Operation("populate", 1, 0x1000),),
        ),
    )
