"""The tape of one process: what its hosts did, as rows of integers; a clock is handed in.

One host step makes at most two kinds of rows. A *send* says which messages an activity sent, for
whom and when; a *serve* says how a message fared where it was delivered. ``services.trace.join``
puts both ends of a message together. Nothing here waits for a disk or for anybody.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from protocols.codec import encode_envelope
from protocols.envelope import Envelope
from protocols.frames import FrameArray, pack
from protocols.trace import MemEvent
from services.trace.describe import NUMBERS, describe

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


Columns: TypeAlias = npt.NDArray[np.int64]
SENT: Final = 7
"""Values of a send: who; first number and how many; cause; request served; when; row it answers."""
SERVED: Final = 7
"""Values of a serve: envelope; received, started, resumed, ended; busy, lock wait."""
CHANGED: Final = 7
"""Values of a change: when; cause; event, domid, order, type; how many."""


class Traced(Protocol):
    """Of an activity, what the tape needs: the request it serves, and a place for its times."""

    cause: Envelope
    span: list[int] | None


class Part(msgspec.Struct, frozen=True, array_like=True):
    """What a tape has had since the last part: new names, and columns of i64 as bytes.

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
        self._numbers = _Numbers()
        # One value after the other: a tuple for each row would be a burden on the collector.
        self._sends: list[Any] = []
        self._serves: list[Any] = []
        self._changes: list[Any] = []
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
        for each in envelopes:
            self._sends += (each.src, each.msg_id, 1, None, None, now, NEVER)

    def client_gets(self, envelope: Envelope) -> None:
        """A reply comes to whoever drives the run."""
        now = self._clock()
        self._serves += (envelope, now, now, 0, now, 0, 0)

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
            self._serves += (envelope, self._received, began, 0, now, now - began, 0)

    def broke_off(self, envelope: Envelope, began: int) -> None:
        """The host failed over it: it was begun and will never end."""
        took = self._clock() - began
        self._serves += (envelope, self._received, began, 0, NEVER, took, 0)

    def advanced(self, activity: Traced, name: str, first: int, last: int, how: int) -> None:
        """An activity of host ``name`` ran and sent messages ``first`` to ``last`` (LOCK: none)."""
        now = self._clock()
        began, self._last = self._last, now
        span = activity.span
        if span is None:
            if how == DONE:
                # Most requests are answered at once.
                row = len(self._serves) // SERVED
                cause = activity.cause
                self._serves += (cause, self._received, began, 0, now, now - began, 0)
                self._sends += (name, first, 1, self._cause, cause, now, row)
                return
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
        cause, row = activity.cause, NEVER
        if how == DONE:
            row = len(self._serves) // SERVED
            self._serves += (cause, span[0], span[1], span[2], now, span[3], span[4])
        self._sends += (name, first, last - first + 1, self._cause, cause, now, row)

    def unfinished(self, activity: Traced) -> None:
        """The run ends and this activity has not answered."""
        span = activity.span
        if span is not None:
            self._serves += (activity.cause, *span[:3], NEVER, span[3], span[4])
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
        self._changes += (self._last, self._cause, event, domid, order, p2mt, gfns.size)
        self._gfns.append(pack(gfns))
        self._mfns.append(pack(mfns))

    def take(self) -> Part:
        """Everything since the last call."""
        sends, self._sends = self._sends, []
        serves, self._serves = self._serves, []
        changes, self._changes = self._changes, []
        gfns, self._gfns = self._gfns, []
        mfns, self._mfns = self._mfns, []
        served = self._serve_columns(serves)
        sent = self._send_columns(sends, served[SERVE.index("domid")])
        changed = self._change_columns(changes)
        names = self._numbers.take()
        return Part(
            names, sent.tobytes(), served.tobytes(), changed.tobytes(), b"".join(gfns),
            b"".join(mfns),
        )  # fmt: skip

    def _serve_columns(self, serves: list[Any]) -> Columns:
        """SERVE, a row each: lists by column are several times faster than tuples by row."""
        number = self._numbers
        envelopes: list[Envelope] = serves[::SERVED]
        bodies = [each.body for each in envelopes]
        kinds = np.array([NUMBERS[type(body)] for body in bodies], dtype=np.int64)
        domid, *details = describe(bodies, kinds)
        return _columns(
            len(envelopes),
            [number[each.src] for each in envelopes], [each.msg_id for each in envelopes],
            [number[each.dst] for each in envelopes], kinds,
            [each.in_reply_to for each in envelopes], domid,
            [len(encode_envelope(each)) for each in envelopes],
            *(serves[at::SERVED] for at in range(1, SERVED)), *details,
        )  # fmt: skip

    def _send_columns(self, sends: list[Any], domids: Columns) -> Columns:
        """SEND; an answer has the domid of what it answers, which was served just then."""
        number = self._numbers
        names, first, nr, causes, parents, now, answered = (sends[at::SENT] for at in range(SENT))
        known = np.append(domids, NEVER)[np.array(answered, dtype=np.int64)]
        return _columns(
            len(names), [number[name] for name in names], first, nr, *self._ids(causes),
            *self._ids(parents), now, known,
        )  # fmt: skip

    def _change_columns(self, changes: list[Any]) -> Columns:
        time, causes, *others = (changes[at::CHANGED] for at in range(CHANGED))
        return _columns(len(time), time, *self._ids(causes), *others)

    def _ids(self, envelopes: list[Envelope | None]) -> tuple[list[int], list[int]]:
        """Sources and numbers of messages; of none a negative source."""
        number = self._numbers
        return (
            [NEVER if each is None else number[each.src] for each in envelopes],
            [0 if each is None else each.msg_id for each in envelopes],
        )


class _Numbers(dict[str, int]):
    """Numbers of addresses, given when first asked for."""

    def __init__(self) -> None:
        super().__init__()
        self._new: list[str] = []

    def __missing__(self, name: str) -> int:
        self._new.append(name)
        number = self[name] = len(self)
        return number

    def take(self) -> list[str]:
        """Addresses that are new since the last call, in order of their numbers."""
        new, self._new = self._new, []
        return new


def _columns(rows: int, *columns: Any) -> Columns:
    """Columns of i64 one below the other, shape (len(columns), rows)."""
    whole = np.empty((len(columns), rows), dtype=np.int64)
    for at, column in enumerate(columns):
        whole[at] = column
    return whole
