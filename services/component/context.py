"""What a component may know of the world: its name, an event hook and a source of locks."""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol

from protocols.frames import FrameArray
from protocols.trace import MemEvent
from services.component.locks import Lock


class MemEventHook(Protocol):
    """Receives what Xen would trace as TRC_MEM_* or a nested page fault, alike ones in one call."""

    def __call__(
        self,
        event: MemEvent,
        domid: int,
        order: int,
        p2mt: int,
        gfns: FrameArray,
        mfns: FrameArray,
    ) -> None:
        """Record events in the order given; INVALID_FRAME where one has no mfn."""
        ...


class Context:
    """Handed to a component when it is made; the runtime owns what is behind the hook."""

    __slots__ = ("name", "on_mem_event", "ready", "running")

    def __init__(self, name: str, on_mem_event: MemEventHook | None = None) -> None:
        self.name = name
        self.on_mem_event = on_mem_event
        self.ready: deque[Any] = deque()
        self.running: list[Any] = [None]

    def lock(self, name: str, level: int, index: int = 0) -> Lock:
        """A new lock whose waiters this component's host will resume.

        Of two locks that one activity holds, the second must have the higher (level, index).
        """
        return Lock(f"{self.name}:{name}", (level, index), self.ready, self.running)
