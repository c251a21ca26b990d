"""The only things a handler may await: Call, CallAll, Acquire, Preempt. Nothing else.

A handler is an ``async def`` method; its ``await`` points are the only places where other
activities of the same component run, so they can be counted by reading. Rule of every handler:
prepare, await, re-check, commit.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, Generic, TypeVar

from protocols.message import Request
from services.component.locks import Lock

R = TypeVar("R")


class Call(Generic[R]):
    """Ask one component and wait for its reply."""

    __slots__ = ("dst", "request")

    def __init__(self, dst: str, request: Request[R]) -> None:
        self.dst = dst
        self.request = request

    def __await__(self) -> Generator[Any, R, R]:
        """The reply, typed by the request."""
        return (yield self)


class CallAll(Generic[R]):
    """Ask several components at once; resumes when all have replied, replies in order asked."""

    __slots__ = ("calls",)

    def __init__(self, calls: Sequence[tuple[str, Request[R]]]) -> None:
        self.calls = calls

    def __await__(self) -> Generator[Any, list[R], list[R]]:
        """All replies; with nobody to ask, at once and empty."""
        if not self.calls:
            return []
        return (yield self)


class Acquire:
    """Wait for a local lock; FIFO, so nobody starves. ``lock.release()`` gives it on."""

    __slots__ = ("exclusive", "lock")

    def __init__(self, lock: Lock, *, exclusive: bool = True) -> None:
        self.lock = lock
        self.exclusive = exclusive

    def __await__(self) -> Generator[Any, None, None]:
        """Without waiting when the lock is free."""
        if not self.lock.try_acquire(exclusive=self.exclusive):
            yield self


class Preempt:
    """hypercall_create_continuation: let every other message that is waiting go first.

    ``progress`` is what a re-executed hypercall would carry as start_extent; it shows in traces.
    """

    __slots__ = ("progress",)

    def __init__(self, progress: int) -> None:
        self.progress = progress

    def __await__(self) -> Generator[Any, None, None]:
        """Resumes when the continuation comes back through the component's own mailbox."""
        yield self
