"""What a driver may ask of a runtime, whichever it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from protocols.envelope import Envelope
from protocols.errno import ShatterproofError
from protocols.frames import FrameArray
from protocols.message import Message, Request
from protocols.trace import MemEvent


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
    """Sees every delivery and every memory event, in order."""

    def delivered(self, envelope: Envelope) -> None:
        """An envelope reaches its destination."""
        ...

    def mem_event(
        self,
        event: MemEvent,
        domid: int,
        order: int,
        p2mt: int,
        gfns: FrameArray,
        mfns: FrameArray,
    ) -> None:
        """What Xen would trace (``MemEventHook``)."""
        ...


class TraceSink(Protocol):
    """Takes what tapes have recorded, now and then; must not make a run wait."""

    def add(self, tape: int, part: bytes, offset: int = 0) -> None:
        """The next part of a shard's tape, encoded; ``offset`` is added to its times."""
        ...

    def add_requests(self, envelopes: Sequence[bytes]) -> None:
        """What the client has sent, whole and encoded."""
        ...

    def flush(self) -> None:
        """Write what is complete."""
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
