"""What a change of type does: the same frame, another p2m type."""

from __future__ import annotations

from protocols.errno import Errno
from protocols.frames import unpack
from protocols.p2m import P2mChangeType, P2mUpdated
from services.component.component import handles
from services.p2m import demand
from services.p2m.domain import P2mDomain
from services.p2m.kinds import IS_RAM, one


class Retyping(P2mDomain):
    """p2m_change_type_one."""

    @handles(P2mChangeType)
    async def change_type(self, m: P2mChangeType) -> P2mUpdated:
        """p2m_change_type_one for each gfn, after populating what is on demand (get_gfn)."""
        gfns = unpack(m.gfns)

        async def body() -> P2mUpdated:
            for done, gfn in enumerate(gfns.tolist()):
                errno = await demand.populate(self, gfn)
                found, types, _ = self.table.get(one(gfn))
                if errno or not IS_RAM[types[0]]:
                    return P2mUpdated(done, -(errno or Errno.EBUSY))
                result, _ = await self.set_entries(one(gfn), found, 0, m.p2mt)
                if result.errno:
                    return P2mUpdated(done, -result.errno)
            return P2mUpdated(gfns.size, 0)

        return await self._update(
            gfns, 0, body, several=lambda: gfns.size > 1 or demand.any_pod(self, gfns)
        )
