"""What a component may know of the world: its name, an event hook and a source of locks."""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol

from protocols.frames import FrameArray
from services.component.locks import Lock


class P2mUpdateHook(Protocol):
    """Receives what Xen would trace as TRC_MEM_SET_P2M_ENTRY, one array of equal chunks a call."""

    def __call__(
        self, domid: int, order: int, p2mt: int, gfns: FrameArray, mfns: FrameArray
    ) -> None:
        """Record updates in the order given."""
        ...


class Context:
    """Handed to a component when it is made; the runtime owns what is behind the hook."""

    __slots__ = ("name", "on_p2m_update", "ready", "running")

    def __init__(self, name: str, on_p2m_update: P2mUpdateHook | None = None) -> None:
        self.name = name
        self.on_p2m_update = on_p2m_update
        self.ready: deque[Any] = deque()
        self.running: list[Any] = [None]

    def lock(self, name: str, level: int, index: int = 0) -> Lock:
        """A new lock whose waiters this component's host will resume.

        Of two locks that one activity holds, the second must have the higher (level, index).
        """
        return Lock(f"{self.name}:{name}", (level, index), self.ready, self.running)
