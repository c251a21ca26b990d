"""What a driver may ask of a runtime, whichever it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from protocols.envelope import Envelope
from protocols.errno import ShatterproofError
from protocols.frames import FrameArray
from protocols.message import Message, Request


class Progress(Protocol):
    """Watches a run; called often, so it must be cheap."""

    def delivered(self, nr: int) -> None:
        """So many messages were delivered in all."""
        ...

    def replied(self, reply: Message) -> None:
        """A reply for the client has come in."""
        ...


class RunStuckError(ShatterproofError):
    """Nothing moves and somebody still waits: where each of them stands."""

    def __init__(self, parked: list[str]) -> None:
        super().__init__(parked)
        self.parked = parked

    def __str__(self) -> str:
        """One activity a line."""
        return "the run is stuck; waiting:\n" + "\n".join(f"    {line}" for line in self.parked)


class Recorder(Protocol):
    """Sees every delivery and every p2m update, in order."""

    def delivered(self, envelope: Envelope) -> None:
        """An envelope reaches its destination."""
        ...

    def p2m_update(
        self, domid: int, order: int, p2mt: int, gfns: FrameArray, mfns: FrameArray
    ) -> None:
        """Chunks that Xen would trace as TRC_MEM_SET_P2M_ENTRY."""
        ...


class Runtime(Protocol):
    """Runs the components of one world."""

    def run(self, requests: Sequence[tuple[str, Request[Message]]]) -> list[Message]:
        """Send all requests at once; the replies in the same order, when all are there."""
        ...

    def counts(self) -> Counter[str]:
        """Messages delivered so far, by kind."""
        ...

    def wait(self, seconds: float) -> None:
        """Let time pass where time exists."""
        ...

    def close(self) -> None:
        """Stop everything that was started."""
        ...
