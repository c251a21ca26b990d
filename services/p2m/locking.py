"""The lock protocols of a P2M: what a request waits for before it looks or changes anything.

A handler enters a span, works, and leaves it; between the two it may rely on what it read. The
protocol is chosen per run, so that their cost and their races can be compared:

- ``domain``: one read-write lock for the whole table, as Xen's p2m lock.
- ``region``: a lock for each 2M (4M) of gfns that the request touches.
- ``optimistic``: look-ups and updates of one commit do not wait for each other; an update that
  awaits between commits claims its regions, and whoever meets a claim looks again later.
- ``none``: nothing at all, known broken, to show what the others are for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from protocols.frames import FrameArray, bounds
from services.component.context import Context
from services.component.locks import Lock
from services.component.traps import Acquire, Preempt

REGIONS_MAX: Final = 64
"""A request that touches more regions than this takes the whole table."""
RETRIES_MAX: Final = 3
"""So often an optimistic request looks again; then it queues, so that it cannot starve."""
DOMAIN_LEVEL: Final = 1
REGION_LEVEL: Final = 2

Span = list[Lock]
"""The locks that one request holds, in the order of their ranks."""


def one_step() -> bool:
    """The default of ``several``: the request commits once, or only looks."""
    return False


class Locking:
    """``none``, and what every protocol answers to.

    ``retries`` counts how often a request was turned away and looked again. ``region_shift`` is
    known once the domain has tables; until then every request takes the whole table.
    """

    def __init__(self, context: Context, lock: Lock) -> None:
        self.retries = 0
        self.region_shift: int | None = None
        self._context = context
        self._lock = lock

    async def enter(
        self,
        gfns: FrameArray | None,
        order: int = 0,
        *,
        exclusive: bool = True,
        several: Callable[[], bool] = one_step,
    ) -> Span:
        """Begin a request.

        Args:
            gfns: first gfn of each extent touched; None for the whole table.
            order: order of the extents.
            exclusive: whether it may change anything.
            several: whether it awaits anything between its first fact and its last commit; asked
                at the moment when the request could begin.

        Returns:
            What ``leave`` needs.
        """
        del gfns, order, exclusive, several
        return []

    def leave(self, span: Span) -> None:
        """End a request; whoever waited for it goes on."""
        for lock in reversed(span):
            lock.release()

    def crowded(self) -> bool:
        """Whether another update of the same regions may still wait for its flush."""
        return False


class DomainLock(Locking):
    """One lock: updates exclusively, look-ups shared."""

    async def enter(
        self,
        gfns: FrameArray | None,
        order: int = 0,
        *,
        exclusive: bool = True,
        several: Callable[[], bool] = one_step,
    ) -> Span:
        """As ``Locking.enter``."""
        del gfns, order, several
        await Acquire(self._lock, exclusive=exclusive)
        return [self._lock]


class RegionLocks(Locking):
    """The domain's lock shared, then the lock of each region by rising number.

    Region locks exist only while somebody holds them.
    """

    def __init__(self, context: Context, lock: Lock) -> None:
        super().__init__(context, lock)
        self._regions: dict[int, Lock] = {}

    async def enter(
        self,
        gfns: FrameArray | None,
        order: int = 0,
        *,
        exclusive: bool = True,
        several: Callable[[], bool] = one_step,
    ) -> Span:
        """As ``Locking.enter``."""
        del several
        return await self._queue(self._touched(gfns, order), exclusive=exclusive)

    async def _queue(self, regions: list[int] | None, *, exclusive: bool) -> Span:
        """Wait in turn for every region; for the whole table where there is no list of them."""
        whole = regions is None
        await Acquire(self._lock, exclusive=whole)
        span = [self._lock]
        for index in regions or ():
            lock = self._region(index)
            await Acquire(lock, exclusive=exclusive)
            span.append(lock)
        return span

    def leave(self, span: Span) -> None:
        """As ``Locking.leave``; locks that nobody holds any more are dropped."""
        for lock in reversed(span):
            lock.release()
            if lock is not self._lock and not lock.held:
                del self._regions[lock.rank[1]]

    def _region(self, index: int) -> Lock:
        lock = self._regions.get(index)
        if lock is None:
            lock = self._context.lock(f"region {index:#x}", REGION_LEVEL, index)
            self._regions[index] = lock
        return lock

    def _touched(self, gfns: FrameArray | None, order: int) -> list[int] | None:
        """Regions of the extents, ascending; None if too many, or nobody knows."""
        shift = self.region_shift
        if gfns is None or shift is None:
            return None
        if not gfns.size:
            return []
        size = 1 << order
        low, high = bounds(gfns)
        first, last = low >> shift, (high + size - 1) >> shift
        if last - first < 2:
            return [first] if first == last else [first, last]
        if order > shift:
            if gfns.size << (order - shift) > REGIONS_MAX:
                return None
            steps = np.arange(0, size + 1, 1 << shift, dtype=np.uint64)
            gfns = (gfns[:, np.newaxis] + np.minimum(steps, np.uint64(size - 1))).ravel()
        regions = np.unique(gfns >> np.uint64(shift))
        if 0 < order <= shift:
            # An extent that is not aligned may end in the next region.
            regions = np.union1d(regions, (gfns + np.uint64(size - 1)) >> np.uint64(shift))
        return None if regions.size > REGIONS_MAX else regions.tolist()


class Optimistic(RegionLocks):
    """Nobody waits unless a region is claimed.

    One call into ring one is the compare-and-swap: what was read since the last await is still
    true when it commits. So an update of one commit notes in its regions that it is under way (a
    shared hold) and never waits for others like it, not even for their flushes; a look-up holds
    nothing, and wants its regions quiet: no update may be waiting there for its flush. An update
    that awaits before its last commit claims its regions (an exclusive hold). Who is turned away
    looks again after all messages that wait, a few times; then it queues for the claim itself.
    """

    async def enter(
        self,
        gfns: FrameArray | None,
        order: int = 0,
        *,
        exclusive: bool = True,
        several: Callable[[], bool] = one_step,
    ) -> Span:
        """As ``Locking.enter``."""
        for turn in range(RETRIES_MAX):
            regions = self._touched(gfns, order)
            if regions is None:
                break
            span = self._begin(regions, exclusive=exclusive)
            if span is not None:
                if not several():
                    return span
                self.leave(span)
                break
            self.retries += 1
            await Preempt(turn + 1)
        return await self._queue(self._touched(gfns, order), exclusive=True)

    def _begin(self, regions: list[int], *, exclusive: bool) -> Span | None:
        """Begin at once, or None if something is in the way."""
        if not self._lock.try_acquire(exclusive=False):
            return None
        span = [self._lock]
        for index in regions:
            if not exclusive and index not in self._regions:
                continue
            lock = self._region(index)
            if not exclusive or not lock.try_acquire(exclusive=False):
                self.leave(span)
                return None
            span.append(lock)
        return span

    def crowded(self) -> bool:
        """As ``Locking.crowded``: updates of one commit do not wait for each other's flush."""
        held: list[Lock] = self._context.running[0].held
        return any(lock.rank[0] == REGION_LEVEL and len(lock.holders) > 1 for lock in held)


_KINDS: Final[dict[str, type[Locking]]] = {
    "domain": DomainLock,
    "region": RegionLocks,
    "optimistic": Optimistic,
    "none": Locking,
}
LOCK_PROTOCOLS: Final = tuple(_KINDS)
"""Names of the protocols, the default first."""


def make_locking(protocol: str, context: Context, lock: Lock) -> Locking:
    """The protocol of a name, around the domain's lock."""
    assert protocol in _KINDS, f"{context.name}: no lock protocol {protocol!r}"
    return _KINDS[protocol](context, lock)
