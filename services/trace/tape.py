"""The tape of one process: what its hosts did, as rows of integers; a clock is handed in.

One host step makes at most two kinds of rows. A *send* says which messages an activity sent, for
whom and when; a *serve* says how a message fared where it was delivered. ``services.trace.join``
puts both ends of a message together. Nothing here waits for a disk or for anybody.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

import msgspec
import numpy as np

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
    """Watches the hosts of one process.

    What happens is kept as tuples that refer to the envelopes; rows are made of them when they are
    taken, so that a step costs little while it runs.
    """

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._numbers: dict[str, int] = {}
        self._names: list[str] = []
        self._sends: list[tuple[str, int, int, Envelope | None, Envelope | None, int, int]] = []
        self._serves: list[tuple[Envelope, int, int, int, int, int, int]] = []
        self._changes: list[tuple[int, Envelope | None, int, int, int, int, int]] = []
        self._gfns: list[bytes] = []
        self._mfns: list[bytes] = []
        self._cause: Envelope | None = None
        self._received = self._last = 0

    def now(self) -> int:
        """What the clock says."""
        return self._clock()

    def client_sends(self, envelopes: list[Envelope]) -> None:
        """Whoever drives the run sends these."""
        now = self._clock()
        self._sends += [(each.src, each.msg_id, 1, None, None, now, 0) for each in envelopes]

    def client_gets(self, envelope: Envelope) -> None:
        """A reply comes to whoever drives the run."""
        now = self._clock()
        self._serves.append((envelope, now, now, 0, now, 0, 0))

    def begin(self, envelope: Envelope, received: int = NEVER) -> int:
        """A host is given this envelope, now; NEVER: it came at the moment when it was sent."""
        self._received = received
        self._cause = envelope
        now = self._last = self._clock()
        return now

    def resume(self) -> None:
        """A host lets an activity go on that has got a lock, because of what came last."""
        self._last = self._clock()

    def end(self, envelope: Envelope, began: int) -> None:
        """The host is through with it: requests have their row when they are answered."""
        if envelope.in_reply_to or envelope.src == envelope.dst:
            now = self._last
            if now == began:
                now = self._clock()
            self._serves.append((envelope, self._received, began, 0, now, now - began, 0))

    def broke_off(self, envelope: Envelope, began: int) -> None:
        """The host failed over it: it was begun and will never end."""
        took = self._clock() - began
        self._serves.append((envelope, self._received, began, 0, NEVER, took, 0))

    def advanced(self, activity: Traced, name: str, first: int, last: int, how: int) -> None:
        """An activity of host ``name`` ran and sent messages ``first`` to ``last`` (LOCK: none)."""
        now = self._clock()
        began, self._last = self._last, now
        span = activity.span
        if span is None:
            # received, started, resumed, busy, lock wait, waiting for a lock since
            span = activity.span = [self._received, began, 0, now - began, 0, 0]
        else:
            span[2] = began
            span[3] += now - began
            if span[5]:
                span[4] += began - span[5]
                span[5] = 0
        if how == LOCK:
            span[5] = now
            return
        cause = activity.cause
        if how == DONE:
            self._serves.append((cause, span[0], span[1], span[2], now, span[3], span[4]))
        self._sends.append((name, first, last - first + 1, self._cause, cause, now, how))

    def unfinished(self, activity: Traced) -> None:
        """The run ends and this activity has not answered."""
        span = activity.span
        if span is not None:
            row = (activity.cause, span[0], span[1], span[2], NEVER, span[3], span[4])
            self._serves.append(row)
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
        self._changes.append((self._last, self._cause, event, domid, order, p2mt, gfns.size))
        self._gfns.append(pack(gfns))
        self._mfns.append(pack(mfns))

    def take(self) -> Part:
        """Everything since the last call."""
        sends, self._sends = self._sends, []
        serves, self._serves = self._serves, []
        changes, self._changes = self._changes, []
        part = Part(
            self._names,
            _packed(self._send_rows(sends)),
            _packed(self._serve_rows(serves)),
            _packed(
                [
                    (time, *self._id(cause), event, domid, order, p2mt, nr)
                    for time, cause, event, domid, order, p2mt, nr in changes
                ]
            ),
            b"".join(self._gfns),
            b"".join(self._mfns),
        )
        self._names, self._gfns, self._mfns = [], [], []
        return part

    def _send_rows(
        self, sends: list[tuple[str, int, int, Envelope | None, Envelope | None, int, int]]
    ) -> list[tuple[int, ...]]:
        """Rows of SEND. An answer has the domid of what it answers."""
        number, of = self._number, self._id
        return [
            (
                number(name), first, nr, *of(cause), *of(parent), now,
                DESCRIBE[type(parent.body)](parent.body)[0] if how == DONE and parent else NEVER,
            )
            for name, first, nr, cause, parent, now, how in sends
        ]  # fmt: skip

    def _serve_rows(
        self, serves: list[tuple[Envelope, int, int, int, int, int, int]]
    ) -> list[tuple[int, ...]]:
        """Rows of SERVE."""
        number = self._number
        rows: list[tuple[int, ...]] = []
        for envelope, received, started, resumed, ended, busy, lock_wait in serves:
            body: Message = envelope.body
            kind = type(body)
            domid, order, nr, gfn, rc = DESCRIBE[kind](body)
            rows.append(
                (
                    number(envelope.src), envelope.msg_id, number(envelope.dst), NUMBERS[kind],
                    envelope.in_reply_to, domid, len(encode_envelope(envelope)), received, started,
                    resumed, ended, busy, lock_wait, order, nr, gfn, rc,
                )
            )  # fmt: skip
        return rows

    def _number(self, name: str) -> int:
        """The number of an address on this tape."""
        number = self._numbers.get(name)
        if number is None:
            number = self._numbers[name] = len(self._numbers)
            self._names.append(name)
        return number

    def _id(self, envelope: Envelope | None) -> tuple[int, int]:
        """Source and number of a message; of none a negative source."""
        return (NEVER, 0) if envelope is None else (self._number(envelope.src), envelope.msg_id)


def _packed(rows: list[tuple[int, ...]]) -> bytes:
    return np.array(rows, dtype=np.int64).tobytes()
