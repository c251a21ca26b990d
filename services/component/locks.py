"""A local lock of one component: shared or exclusive, first come first served, ordered by rank.

Xen's p2m lock is such a read-write lock, and Xen's mm locks are ordered (mm/mm-locks.h): an
activity takes locks by rising rank only, so that no two can wait for each other here. Waiters are
whatever the host parks; the lock hands itself on at ``release`` and puts whoever got it on the
host's ready list. Holders are known, so that a deadlock across components can be told as a story.
"""

from __future__ import annotations

from collections import deque
from typing import Any

Rank = tuple[int, int]
"""(level, index): levels as in mm-locks.h; the index orders locks of one level."""


class Lock:
    """Read-write lock with FIFO waiters: a waiting writer holds back later readers.

    ``running`` is the host's note of which activity runs now, a list of at most one.
    """

    __slots__ = ("_exclusive", "_ready", "_running", "_waiters", "holders", "name", "rank")

    def __init__(self, name: str, rank: Rank, ready: deque[Any], running: list[Any]) -> None:
        self.name = name
        self.rank = rank
        self.holders: list[Any] = []
        self._ready = ready
        self._running = running
        self._exclusive = False
        self._waiters: deque[tuple[Any, bool]] = deque()

    def try_acquire(self, *, exclusive: bool) -> bool:
        """Take the lock if nobody is in the way and nobody waits."""
        who = self._running[0]
        held: list[Lock] = who.held
        assert not held or held[-1].rank < self.rank, (
            f"lock order: {self.name} {self.rank} after {held[-1].name} {held[-1].rank}"
        )
        if self._waiters or self._exclusive or (exclusive and self.holders):
            return False
        self._take(who, exclusive=exclusive)
        return True

    def _take(self, who: Any, *, exclusive: bool) -> None:
        self._exclusive = exclusive
        self.holders.append(who)
        who.held.append(self)

    def park(self, waiter: Any, *, exclusive: bool) -> None:
        """Queue a waiter (called by the host)."""
        self._waiters.append((waiter, exclusive))

    def release(self) -> None:
        """The running activity gives the lock up; the next waiters that fit get it."""
        who = self._running[0]
        assert who in self.holders, f"lock {self.name}: released by one who does not hold it"
        self.holders.remove(who)
        who.held.remove(self)
        self._exclusive = False
        while self._waiters:
            waiter, exclusive = self._waiters[0]
            if self._exclusive or (exclusive and self.holders):
                return
            self._waiters.popleft()
            self._take(waiter, exclusive=exclusive)
            self._ready.append(waiter)

    @property
    def held(self) -> bool:
        """Whether anybody holds it; a component at rest holds none."""
        return bool(self.holders)

    def waiting(self) -> list[Any]:
        """Who waits for it, first come first."""
        return [waiter for waiter, _ in self._waiters]
