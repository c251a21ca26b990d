"""The tape of one process: what its hosts did, as a log; a clock is handed in.

The log says what came when, and when each handler stopped; nothing is worked out here, because
the actors have better things to do. ``services.trace.rows`` makes rows of it, elsewhere and later.
Nothing here waits for a disk or for anybody.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

import msgspec
import numpy as np

from protocols.codec import encode_envelope, encode_envelopes
from protocols.envelope import Envelope
from protocols.frames import FrameArray
from protocols.trace import MemEvent
from services.trace.describe import NUMBERS, describe

NOBODY: Final = -1
"""In place of an activity: a mark, of what kind its ``how`` says."""
GOT: Final = 0
"""Mark: what came was taken in and set nothing going."""
RESUMED: Final = 1
"""Mark: from here on whoever got a lock runs, because of what came last."""
BROKE: Final = 2
"""Mark: the host failed over what came last."""

RUN: Final = 5
"""Values of a run: arrival that caused it, arrival of the request served (or NOBODY), first message
sent, messages sent << HOW_BITS | how it stopped, when."""
BATCH: Final = 3
"""Values of a batch: its first arrival, how many came with it, when."""
CHANGE: Final = 7
"""Values of a change: arrival that caused it; values of runs before it; event, domid, order, type;
how many."""

PACK_FROM: Final = 2048
"""Arrivals from which on the log is put away as a part: objects kept longer cost more."""
WHOLE_MAX: Final = 512
"""Bytes of an envelope that goes to the log whole; of longer ones only what a trace says."""


class Traced(Protocol):
    """Of an activity, what the tape needs: a place for the number of its request's arrival."""

    arrival: int | None


class Large(msgspec.Struct, frozen=True, array_like=True):
    """An envelope that is too long for the log.

    ``at``: its place among those of its part that came in no raw batch; ``size``: its bytes;
    ``details`` as ``describe`` has them.
    """

    at: int
    size: int
    src: str
    dst: str
    msg_id: int
    in_reply_to: int
    kind: int
    details: list[int]


class Part(msgspec.Struct, frozen=True, array_like=True):
    """A stretch of a tape's log.

    ``base``: arrivals before it. ``began``: when the handling of each began. ``batches``, ``runs``
    and ``changes``: BATCH, RUN and CHANGE values each. ``raw``: the bytes of each batch as they
    came, or nothing; ``arrived``: all other envelopes, as an array, but for those in ``large``,
    which are not there whole and have their place among the others. ``gfns`` and ``mfns``: of all
    changes. ``asked``: (source, number, when) of what was sent without a cause.
    """

    base: int
    began: list[int]
    batches: list[int]
    raw: list[bytes]
    arrived: bytes
    large: list[Large]
    runs: list[int]
    changes: list[int]
    gfns: bytes
    mfns: bytes
    asked: list[tuple[str, int, int]]


class StepClock:
    """A clock that counts its readings, where no time exists."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        """The next tick."""
        self.now += 1
        return self.now


class Tape:
    """Watches the hosts of one process, or whoever drives the run."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._packed: list[bytes] = []
        self._at = NOBODY
        self._left = 0
        self._clear()

    def _clear(self) -> None:
        self._base = self._at + 1
        # One value after the other: a tuple for each row would be a burden on the collector.
        self._arrived: list[Envelope] = []
        self._began: list[int] = []
        self._batches: list[int] = []
        self._raw: list[bytes] = []
        self._runs: list[int] = []
        self._changes: list[int] = []
        self._gfns: list[bytes] = []
        self._mfns: list[bytes] = []
        self._asked: list[tuple[str, int, int]] = []

    def client_sends(self, envelopes: list[Envelope]) -> None:
        """Whoever drives the run sends these."""
        now = self._clock()
        self._asked += [(each.src, each.msg_id, now) for each in envelopes]

    def client_gets(self, envelope: Envelope) -> None:
        """A reply comes to whoever drives the run."""
        now = self._clock()
        self._at += 1
        self._arrived.append(envelope)
        self._began.append(now)
        self._batches += (self._at, 1, now)
        self._raw.append(b"")
        self._runs += (self._at, NOBODY, 0, GOT, now)

    def batch(self, nr: int, data: bytes) -> None:
        """So many envelopes came at once, as ``data``; hosts are given them before any other."""
        if len(self._began) >= PACK_FROM:
            self._pack()
        self._batches += (self._at + 1, nr, self._clock())
        is_short = 0 < len(data) <= WHOLE_MAX * nr
        self._raw.append(data if is_short else b"")
        self._left = nr if is_short else 0

    def begin(self, envelope: Envelope) -> int:
        """A host is given this envelope, now; the number of its arrival.

        One that came with no batch came at the moment when it was sent.
        """
        self._at += 1
        if self._left:
            # It is in the bytes of its batch; kept, it would make all that follows use new memory.
            self._left -= 1
        else:
            self._arrived.append(envelope)
        self._began.append(self._clock())
        return self._at

    def advanced(self, activity: Traced, first: int, sent: int) -> None:
        """An activity ran and sent messages from ``first`` on: ``sent`` is as in a run."""
        request = activity.arrival
        if request is None:
            request = activity.arrival = self._at
        self._runs += (self._at, request, first, sent, self._clock())

    def gathered(self) -> None:
        """What came is one of several answers that an activity waits for, and not the last."""
        self._runs += (self._at, NOBODY, 0, GOT, self._clock())

    def resumes(self) -> None:
        """A host lets an activity go on that has got a lock, because of what came last."""
        self._runs += (self._at, NOBODY, 0, RESUMED, self._clock())

    def broke_off(self) -> None:
        """The host failed over what came last: it was begun and will never end."""
        self._runs += (self._at, NOBODY, 0, BROKE, self._clock())

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
        # A plus makes plain integers of enums, at a tenth of what int() costs.
        self._changes += (self._at, len(self._runs), +event, domid, order, +p2mt, gfns.size)
        self._gfns.append(gfns.tobytes())
        self._mfns.append(mfns.tobytes())

    def take(self) -> list[bytes]:
        """Everything since the last call: parts, encoded, in order."""
        if self._began or self._asked or self._runs or self._changes:
            self._pack()
        packed, self._packed = self._packed, []
        return packed

    def _pack(self) -> None:
        """Put the log so far away as a part."""
        rest, large = self._arrived, list[Large]()
        arrived = encode_envelopes(rest)
        if len(arrived) > WHOLE_MAX * len(rest):
            sizes = [len(encode_envelope(each)) for each in rest]
            arrived = encode_envelopes(
                [each for each, n in zip(rest, sizes, strict=True) if n <= WHOLE_MAX]
            )
            large = _large(rest, sizes)
        part = Part(
            self._base, self._began, self._batches, self._raw, arrived, large,
            self._runs, self._changes, b"".join(self._gfns), b"".join(self._mfns), self._asked,
        )  # fmt: skip
        self._packed.append(msgspec.msgpack.encode(part))
        self._clear()


def _large(envelopes: list[Envelope], sizes: list[int]) -> list[Large]:
    places = [at for at, size in enumerate(sizes) if size > WHOLE_MAX]
    some = [envelopes[at] for at in places]
    bodies: list[Any] = [each.body for each in some]
    kinds = np.array([NUMBERS[type(body)] for body in bodies], dtype=np.int64)
    details = np.array(describe(bodies, kinds)).T.tolist()
    return [
        Large(at, sizes[at], e.src, e.dst, e.msg_id, e.in_reply_to, kind, values)
        for at, e, kind, values in zip(places, some, kinds.tolist(), details, strict=True)
    ]
