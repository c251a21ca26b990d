"""A P2M's beginning and end, and the pool that its page tables come from."""

from __future__ import annotations

from protocols.errno import Errno
from protocols.frames import pack, unpack
from protocols.memory import Status
from protocols.p2m import P2mCreate, P2mPoolAdd, P2mPoolFrames, P2mPoolRemove, P2mTeardown
from services.component.component import handles
from services.p2m.domain import P2mDomain
from services.p2m.geometry import GEOMETRIES
from services.p2m.pod import PodState
from services.p2m.table import P2mTable


class LifeCycle(P2mDomain):
    """p2m_init to p2m_final_teardown."""

    @handles(P2mCreate)
    async def create(self, m: P2mCreate) -> Status:
        """p2m_init and hap_enable: the root table comes from the pool given."""
        span = await self.locking.enter(None)
        try:
            if self._table is not None:
                return Status(-Errno.EEXIST)
            table = self.new_table(m)
            table.pool_add(unpack(m.pool))
            if not table.init_root():
                return Status(-Errno.ENOMEM)
            self._table = table
            self.locking.region_shift = table.geometry.index_bits[0]
            # Walkers that asked between two domains of one domid hold a root that is none.
            await self.flush(m.domid)
            return Status(0)
        finally:
            self.locking.leave(span)

    def new_table(self, m: P2mCreate) -> P2mTable:
        """Empty tables of the domain."""
        pairs = unpack(m.force_4k).reshape(-1, 2).tolist()
        return P2mTable(
            GEOMETRIES[m.paging],
            m.domid,
            allowed_orders=tuple(m.leaf_orders),
            force_4k=[(gfn, nr) for gfn, nr in pairs],
            record=self.context.on_mem_event is not None,
        )

    @handles(P2mPoolAdd)
    async def pool_add(self, m: P2mPoolAdd) -> Status:
        """hap_set_allocation upwards."""
        if self._table is None:
            return Status(-Errno.ESRCH)
        self._table.pool_add(unpack(m.mfns))
        return Status(0)

    @handles(P2mPoolRemove)
    async def pool_remove(self, m: P2mPoolRemove) -> P2mPoolFrames:
        """hap_set_allocation downwards: only free frames can go."""
        if self._table is None:
            return P2mPoolFrames(b"", 0)
        mfns = self._table.pool_remove(m.nr)
        return P2mPoolFrames(pack(mfns), self._table.pool_total)

    @handles(P2mTeardown)
    async def teardown(self, m: P2mTeardown) -> P2mPoolFrames:
        """p2m_final_teardown: no walker may follow a table whose frame goes back to the heap.

        The tables are out of reach before the flush goes out: a walker that reads again after its
        acknowledgement finds nothing that it could cache.
        """
        span = await self.locking.enter(None)
        try:
            table = self.detach()
            if table is None:
                return P2mPoolFrames(b"", 0)
            await self.flush(m.domid)
            return P2mPoolFrames(pack(table.teardown()), 0)
        finally:
            self.locking.leave(span)

    def detach(self) -> P2mTable | None:
        """Take the tables out of reach of every reader; they and the PoD state are forgotten."""
        table, self._table = self._table, None
        self.pod = PodState()
        return table
