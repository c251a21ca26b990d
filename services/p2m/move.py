"""What a move does: one page leaves src and appears at dst."""

from __future__ import annotations

import numpy as np

from protocols.errno import Errno
from protocols.frames import pack
from protocols.p2m import P2mMove, P2mUpdated
from protocols.p2m_types import P2mType
from services.component.component import handles
from services.p2m.domain import P2mDomain
from services.p2m.kinds import IS_SPECIAL, invalid, one
from services.p2m.table import SetResult


class Moves(P2mDomain):
    """xenmem_add_to_physmap_one for a page of the domain's own."""

    @handles(P2mMove)
    async def move(self, m: P2mMove) -> P2mUpdated:
        """The page at src appears at dst and nowhere else, in one lock span (XSA-379)."""
        both = np.array([m.src, m.dst], dtype=np.uint64)
        return await self._update(both, 0, lambda: self._move(m), several=lambda: True)

    async def _move(self, m: P2mMove) -> P2mUpdated:
        found, types, _ = self.table.get(np.array([m.src, m.dst], dtype=np.uint64))
        if int(found[0]) != m.mfn:
            return P2mUpdated(0, -Errno.EXDEV)
        if IS_SPECIAL[types[1]]:
            return P2mUpdated(0, -Errno.EPERM)
        kind = int(types[0])
        result, _ = await self.set_entries(one(m.src), invalid(1), 0, P2mType.INVALID)
        if result.errno:
            return P2mUpdated(0, -result.errno)

        def settle(result: SetResult) -> None:
            if not result.errno and int(types[1]) == P2mType.POPULATE_ON_DEMAND:
                self.pod.entry_count -= 1

        result, displaced = await self.set_entries(one(m.dst), one(m.mfn), 0, kind, settle)
        if result.errno:
            # The entry at src exists at 4K by now, so putting it back needs no new table.
            back, _ = await self.set_entries(one(m.src), one(m.mfn), 0, kind)
            assert not back.errno, f"domid {m.domid}: gfn {m.src:#x}: mfn {m.mfn:#x} lost"
            return P2mUpdated(0, -result.errno)
        return P2mUpdated(1, 0, pack(displaced))
