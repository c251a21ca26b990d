"""Who reads: look-ups of the toolstack and the allocator, and the walkers' memory accesses."""

from __future__ import annotations

import numpy as np

from protocols.frames import INVALID_FRAME, PAGE_SIZE, pack, unpack
from protocols.p2m import (
    P2mEntries,
    P2mGetEntry,
    P2mGetRoot,
    P2mRoot,
    P2mTranslate,
    PageTableFrames,
    ReadPageTableFrames,
)
from protocols.p2m_types import P2mType
from services.component.component import handles
from services.p2m import demand
from services.p2m.domain import NoTablesError, P2mDomain
from services.p2m.kinds import IS_RAM, invalid


class Reads(P2mDomain):
    """get_gfn_type_access, and the frames of the tables as they are."""

    @handles(P2mGetEntry)
    async def get_entry(self, m: P2mGetEntry) -> P2mEntries:
        """get_gfn_type_access; with alloc (P2M_ALLOC) PoD entries are populated first."""
        gfns = unpack(m.gfns)
        span = await self.locking.enter(gfns, exclusive=m.alloc, several=lambda: m.alloc)
        try:
            if m.alloc and self._table is not None:
                for gfn in gfns.tolist():
                    if await demand.populate(self, gfn):
                        break
            mfns, types, orders = self.table.get(gfns)
            return P2mEntries(pack(mfns), types.tobytes(), orders.tobytes())
        except NoTablesError:
            nr = gfns.size
            return P2mEntries(pack(invalid(nr)), bytes([P2mType.MMIO_DM]) * nr, bytes(nr))
        finally:
            self.locking.leave(span)

    @handles(P2mTranslate)
    async def translate(self, m: P2mTranslate) -> P2mEntries:
        """RAM only; anything else reads as INVALID_MFN."""
        reply = await self.get_entry(P2mGetEntry(m.domid, m.gfns))
        types = np.frombuffer(reply.types, dtype=np.uint8)
        mfns = np.where(IS_RAM[types], unpack(reply.mfns), np.uint64(INVALID_FRAME))
        return P2mEntries(pack(mfns), reply.types, reply.orders)

    @handles(P2mGetRoot)
    async def get_root(self, m: P2mGetRoot) -> P2mRoot:
        """Where the reader's walks start; the reader joins the dirty mask."""
        self._readers.add(m.reader)
        if self._table is None:
            return P2mRoot(0, "npt")
        return P2mRoot(self._table.root_mfn, self._table.geometry.name)

    @handles(ReadPageTableFrames)
    async def read_frames(self, m: ReadPageTableFrames) -> PageTableFrames:
        """A reader's memory accesses: no lock, as hardware takes none; single stores keep it safe.

        A frame that is no table any more reads as zeros: nothing present.
        """
        self._readers.add(m.reader)
        table = self._table
        zeros = bytes(PAGE_SIZE)
        data = [
            zeros if table is None else (table.read_frame(mfn) or zeros)
            for mfn in unpack(m.mfns).tolist()
        ]
        return PageTableFrames(b"".join(data))
