"""What happens at a nested page fault."""

from __future__ import annotations

from protocols.frames import INVALID_FRAME, unpack
from protocols.p2m_types import P2mType
from protocols.trace import MemEvent
from protocols.walk import FAULT_FAILED, FAULT_HOLE, FAULT_RETRY, FaultOutcome, NestedPageFault
from services.component.component import handles
from services.p2m import demand
from services.p2m.domain import NoTablesError, P2mDomain
from services.p2m.kinds import invalid, one


class Faults(P2mDomain):
    """hvm_hap_nested_page_fault."""

    @handles(NestedPageFault)
    async def nested_page_fault(self, m: NestedPageFault) -> FaultOutcome:
        """hvm_hap_nested_page_fault for each gfn: populate, retry, or nothing there."""
        gfns = unpack(m.gfns)
        span = await self.locking.enter(gfns, several=lambda: demand.any_pod(self, gfns))
        try:
            outcome = bytearray()
            for gfn in gfns.tolist():
                if await demand.populate(self, gfn):
                    self.trace(MemEvent.NPF, gfn, 0, invalid(1), P2mType.POPULATE_ON_DEMAND)
                    outcome.append(FAULT_FAILED)
                    continue
                mfns, types, _ = self.table.get(one(gfn))
                self.trace(MemEvent.NPF, gfn, 0, mfns, int(types[0]))
                outcome.append(FAULT_HOLE if int(mfns[0]) == INVALID_FRAME else FAULT_RETRY)
            return FaultOutcome(bytes(outcome))
        except NoTablesError:
            return FaultOutcome(bytes([FAULT_HOLE]) * gfns.size)
        finally:
            self.locking.leave(span)
