"""The tape of one process: what its hosts did, as rows of integers; a clock is handed in.

One host step makes at most two kinds of rows. A *send* says which messages an activity sent, for
whom and when; a *serve* says how a message fared where it was delivered. ``services.trace.join``
puts both ends of a message together. Nothing here waits for a disk or for anybody.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from protocols.codec import encode_envelope
from protocols.envelope import Envelope
from protocols.frames import FrameArray, pack
from protocols.message import Message
from protocols.trace import MemEvent
from services.trace.describe import DESCRIBE, NUMBERS

SEND: Final = (
    "src", "first", "nr", "cause_src", "cause_seq", "parent_src", "parent_seq", "sent", "domid",
)  # fmt: skip
SERVE: Final = (
    "src", "seq", "dst", "kind", "reply_seq", "domid", "bytes", "received", "started", "resumed",
    "ended", "busy", "lock_wait", "order", "nr", "gfn", "rc",
)  # fmt: skip
CHANGE: Final = (
    "time", "cause_src", "cause_seq", "event", "domid", "order", "type", "nr",
)  # fmt: skip

WAITS: Final = 0
"""An activity sent what it waits for."""
LOCK: Final = 1
"""An activity waits for a lock."""
DONE: Final = 2
"""An activity has answered."""

NEVER: Final = -1


class Traced(Protocol):
    """Of an activity, what the tape needs: the request it serves, and a place for its times."""

    cause: Envelope
    span: list[int] | None


class Part(msgspec.Struct, frozen=True, array_like=True):
    """What a tape has had since the last part: new names, and rows of i64 as bytes.

    ``gfns`` and ``mfns`` are those of all changes, one after the other.
    """

    names: list[str]
    sends: bytes
    serves: bytes
    changes: bytes
    gfns: bytes
    mfns: bytes


class StepClock:
    """A clock that counts its readings, where no time exists."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        """The next tick."""
        self.now += 1
        return self.now


class Tape:
    """Watches the hosts of one process."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._numbers: dict[str, int] = {}
        self._names: list[str] = []
        self._sends = array("q")
        self._serves = array("q")
        self._changes = array("q")
        self._gfns: list[bytes] = []
        self._mfns: list[bytes] = []
        self._cause = (0, 0)
        self._received = self._last = 0

    def number(self, name: str) -> int:
        """The number of an address on this tape."""
        number = self._numbers.get(name)
        if number is None:
            number = self._numbers[name] = len(self._numbers)
            self._names.append(name)
        return number

    def now(self) -> int:
        """What the clock says."""
        return self._clock()

    def client_sends(self, envelopes: list[Envelope]) -> None:
        """Whoever drives the run sends these."""
        now = self._clock()
        for each in envelopes:
            self._sends.extend((self.number(each.src), each.msg_id, 1, -1, 0, -1, 0, now, -1))

    def client_gets(self, envelope: Envelope) -> None:
        """A reply comes to whoever drives the run."""
        now = self._clock()
        self._serve(envelope, now, now, 0, now, 0, 0)

    def begin(self, envelope: Envelope, received: int = NEVER) -> None:
        """A host is given this envelope; NEVER: it came at the moment when it was sent."""
        self._received = received
        self._cause = self.number(envelope.src), envelope.msg_id
        self._last = self._clock()

    def resume(self) -> None:
        """A host lets an activity go on that has got a lock, because of what came last."""
        self._last = self._clock()

    def end(self, envelope: Envelope, began: int) -> None:
        """The host is through with it: requests have their row when they are answered."""
        if envelope.in_reply_to or envelope.src == envelope.dst:
            now = self._clock() if self._last == began else self._last
            self._serve(envelope, self._received, began, 0, now, now - began, 0)

    def broke_off(self, envelope: Envelope, began: int) -> None:
        """The host failed over it: it was begun and will never end."""
        self._serve(envelope, self._received, began, 0, NEVER, self._clock() - began, 0)

    @property
    def last(self) -> int:
        """When the current step began, or its last activity stopped."""
        return self._last

    def advanced(self, activity: Traced, name: str, first: int, last: int, how: int) -> None:
        """An activity of host ``name`` ran and sent messages ``first`` to ``last`` (LOCK: none)."""
        now = self._clock()
        began, self._last = self._last, now
        span = activity.span
        if span is None:
            # received, started, resumed, busy, lock wait, waiting for a lock since
            span = activity.span = [self._received, began, 0, 0, 0, 0]
        else:
            span[2] = began
            if span[5]:
                span[4] += began - span[5]
                span[5] = 0
        span[3] += now - began
        if how == LOCK:
            span[5] = now
            return
        cause = activity.cause
        domid = NEVER
        if how == DONE:
            domid = self._serve(cause, span[0], span[1], span[2], now, span[3], span[4])
        self._sends.extend(
            (
                self.number(name), first, last - first + 1, *self._cause,
                self.number(cause.src), cause.msg_id, now, domid,
            )
        )  # fmt: skip

    def unfinished(self, activity: Traced) -> None:
        """The run ends and this activity has not answered."""
        span = activity.span
        if span is not None:
            self._serve(activity.cause, span[0], span[1], span[2], NEVER, span[3], span[4])
            activity.span = None

    def mem_event(
        self,
        event: MemEvent,
        domid: int,
        order: int,
        p2mt: int,
        gfns: FrameArray,
        mfns: FrameArray,
    ) -> None:
        """Events of one kind, order and type, in order (a ``MemEventHook``)."""
        row = (self._last, *self._cause, event, domid, order, p2mt, gfns.size)
        self._changes.extend(row)
        self._gfns.append(pack(gfns))
        self._mfns.append(pack(mfns))

    def take(self) -> Part:
        """Everything since the last call."""
        part = Part(
            self._names,
            self._sends.tobytes(),
            self._serves.tobytes(),
            self._changes.tobytes(),
            b"".join(self._gfns),
            b"".join(self._mfns),
        )
        self._names, self._gfns, self._mfns = [], [], []
        self._sends, self._serves, self._changes = array("q"), array("q"), array("q")
        return part

    def _serve(
        self,
        envelope: Envelope,
        received: int,
        started: int,
        resumed: int,
        ended: int,
        busy: int,
        lock_wait: int,
    ) -> int:
        """The row of a message where it was delivered; its domid."""
        body: Message = envelope.body
        kind = type(body)
        domid, order, nr, gfn, rc = DESCRIBE[kind](body)
        self._serves.extend(
            (
                self.number(envelope.src), envelope.msg_id, self.number(envelope.dst),
                NUMBERS[kind], envelope.in_reply_to, domid, len(encode_envelope(envelope)),
                received, started, resumed, ended, busy, lock_wait, order, nr, gfn, rc,
            )
        )  # fmt: skip
        return domid
