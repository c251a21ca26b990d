"""What every call on a domain's P2M works with: its tables, spans, the commit and the flush.

Every request runs in a span of the lock protocol (``services/p2m/locking.py``). What an update
made stale is flushed, and every walker in the dirty mask has acknowledged, before the update is
answered and before a replaced table's frame returns to the pool. Counts change together with the
commit, before anything is awaited.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final

import numpy as np

from protocols import envelope
from protocols.errno import Errno
from protocols.frames import FrameArray, bounds
from protocols.p2m import P2mUpdated
from protocols.p2m_types import P2mType
from protocols.trace import MemEvent
from protocols.walk import FlushTlb
from services.component.component import Component
from services.component.context import Context
from services.component.traps import CallAll
from services.p2m.kinds import one
from services.p2m.locking import DOMAIN_LEVEL, make_locking, one_step
from services.p2m.pod import PodState
from services.p2m.table import P2mTable, SetResult

NO_TABLE: Final = P2mUpdated(0, -Errno.ESRCH)
_UPDATE: Final = MemEvent.SET_P2M_ENTRY


class NoTablesError(Exception):
    """The domain has no page tables (any more); ends a request where it stands."""


class P2mDomain(Component):
    """The state of struct p2m_domain, and how it changes."""

    def __init__(self, context: Context, home: int, lock_protocol: str = "domain") -> None:
        super().__init__(context)
        self.home = envelope.allocator(home)
        self.lock = context.lock("p2m", DOMAIN_LEVEL)
        self.locking = make_locking(lock_protocol, context, self.lock)
        self.pod = PodState()
        self._table: P2mTable | None = None
        self._readers: set[str] = set()
        self._being_flushed: Counter[str] = Counter()
        self._outstanding_flushes = 0
        self._shatters: dict[int, int] = {}
        self._nr_updates = 0

    @property
    def table(self) -> P2mTable:
        """The tables.

        Raises:
            NoTablesError: there are none; without a lock they may go while a request waits.
        """
        if self._table is None:
            raise NoTablesError(self.context.name)
        return self._table

    @property
    def table_now(self) -> P2mTable | None:
        """The tables if the domain has some, for whoever looks on from outside."""
        return self._table

    @property
    def nr_shatters(self) -> int:
        """Superpages shattered so far, of any order."""
        return sum(self._shatters.values())

    @property
    def outstanding_flushes(self) -> int:
        """Flushes that some walker has not acknowledged yet."""
        return self._outstanding_flushes

    async def _update(
        self,
        gfns: FrameArray,
        order: int,
        body: Callable[[], Awaitable[P2mUpdated]],
        *,
        several: Callable[[], bool] = one_step,
    ) -> P2mUpdated:
        """Run an update in a span of its own, if the domain has tables."""
        span = await self.locking.enter(gfns, order, several=several)
        try:
            return NO_TABLE if self._table is None else await body()
        except NoTablesError:
            return NO_TABLE
        finally:
            self.locking.leave(span)

    async def set_entries(
        self,
        gfns: FrameArray,
        mfns: FrameArray,
        order: int,
        p2mt: int,
        settle: Callable[[SetResult], None] | None = None,
    ) -> tuple[SetResult, FrameArray]:
        """p2m_set_entry, its flush, and only then the replaced tables; with the RAM displaced.

        ``settle`` sees the result at once: whatever is counted changes with the commit. Updates
        that it leaves there are traced.
        """
        result = self.commit(gfns, mfns, order, p2mt)
        if settle is not None:
            settle(result)
        hook = self.context.on_mem_event
        if hook is not None:
            for some_gfns, some_mfns, some_order, some_type in result.updates:
                hook(_UPDATE, self.table.domid, some_order, some_type, some_gfns, some_mfns)
        await self.after_commit(result)
        return result, displaced_frames(result)

    def commit(self, gfns: FrameArray, mfns: FrameArray, order: int, p2mt: int) -> SetResult:
        """The table's change, all at once; what it made stale is still to be flushed."""
        table = self.table
        result = table.set_range(gfns, mfns, order, P2mType(p2mt))
        self._nr_updates += result.nr_updates
        for from_order, nr in result.nr_shatters.items():
            self._shatters[from_order] = self._shatters.get(from_order, 0) + nr
        return result

    def trace(self, event: MemEvent, gfn: int, order: int, mfns: FrameArray, p2mt: int = 0) -> None:
        """Report one event to whoever traces; ``mfns`` has one element."""
        hook = self.context.on_mem_event
        if hook is not None:
            hook(event, self.table.domid, order, p2mt, one(gfn), mfns)

    async def after_commit(self, result: SetResult) -> None:
        """Flush what the commit made stale; only then may replaced tables be used again.

        Where another update of the same regions still waits for its flush, walkers may translate
        as they did before that one, so this one waits for them, too.
        """
        table = self.table
        if result.stale or self.locking.crowded():
            await self.flush(table.domid)
        if result.retired.size and self._table is table:
            self.give_back_tables(result.retired)

    def give_back_tables(self, mfns: FrameArray) -> None:
        """Retired tables return to the pool: no walker follows them any more."""
        self.table.pool_return(mfns)

    async def flush(self, domid: int) -> None:
        """p2m_tlb_flush_sync: every walker that may have cached something has forgotten it.

        The mask is emptied before the orders go out: a walker that reads again meanwhile reads
        the new entries and joins the next mask (see the bug where it is read once). Walkers that
        have not acknowledged another update's order are asked again: they may have cached what
        was true until now, and links keep order.
        """
        readers = sorted(self._readers.union(self._being_flushed))
        if not readers:
            return
        self._readers.clear()
        self._being_flushed.update(readers)
        self._outstanding_flushes += 1
        await CallAll([(reader, FlushTlb(domid)) for reader in readers])
        self._outstanding_flushes -= 1
        self._being_flushed -= Counter(readers)

    def inside(self, gfns: FrameArray, order: int) -> int:
        """Leading extents that lie in the format's gfn space as a whole (gfn_check_limit)."""
        last = self.table.geometry.gfn_limit - (1 << order)
        if not gfns.size or bounds(gfns)[1] <= last:
            return gfns.size
        return int(np.flatnonzero(gfns > last)[0])


def displaced_frames(result: SetResult) -> FrameArray:
    """The 4K mfns of RAM that an update unmapped, in its order."""
    if not result.displaced_orders.any():
        return result.displaced_mfns
    orders = result.displaced_orders.tolist()
    parts = [
        np.arange(mfn, mfn + (1 << order), dtype=np.uint64)
        for mfn, order in zip(result.displaced_mfns.tolist(), orders, strict=True)
    ]
    return np.concatenate(parts)
