"""A local lock of one component: shared or exclusive, first come first served.

Xen's p2m lock is such a read-write lock (mm/mm-locks.h). Waiters are whatever the host parks; the
lock hands itself on at ``release`` and puts whoever got it on the host's ready list.
"""

from __future__ import annotations

from collections import deque
from typing import Any


class Lock:
    """Read-write lock with FIFO waiters: a waiting writer holds back later readers."""

    __slots__ = ("_exclusive", "_nr_shared", "_ready", "_waiters", "name")

    def __init__(self, name: str, ready: deque[Any]) -> None:
        self.name = name
        self._ready = ready
        self._exclusive = False
        self._nr_shared = 0
        self._waiters: deque[tuple[Any, bool]] = deque()

    def try_acquire(self, *, exclusive: bool) -> bool:
        """Take the lock if nobody is in the way and nobody waits."""
        if self._waiters or self._exclusive or (exclusive and self._nr_shared):
            return False
        if exclusive:
            self._exclusive = True
        else:
            self._nr_shared += 1
        return True

    def park(self, waiter: Any, *, exclusive: bool) -> None:
        """Queue a waiter (called by the host)."""
        self._waiters.append((waiter, exclusive))

    def release(self) -> None:
        """Give the lock up; the next waiters that fit get it."""
        if self._exclusive:
            self._exclusive = False
        else:
            assert self._nr_shared > 0, f"lock {self.name}: released but not held"
            self._nr_shared -= 1
        while self._waiters:
            waiter, exclusive = self._waiters[0]
            if self._exclusive or (exclusive and self._nr_shared):
                return
            self._waiters.popleft()
            if exclusive:
                self._exclusive = True
            else:
                self._nr_shared += 1
            self._ready.append(waiter)

    @property
    def held(self) -> bool:
        """Whether anybody holds it; a component at rest holds none."""
        return self._exclusive or self._nr_shared > 0
