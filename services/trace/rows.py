"""Rows out of the log of one tape: how each message fared, who sent what because of what, changes.

A part of a log is an array of arrivals and an array of runs; a run is a stretch in which a handler
ran, from where the log stood before to where it stopped. A plain message has its row when its step
is over, a request when it is answered: until then it is kept here with what its runs add up to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from protocols.codec import decode_batch, decode_envelopes, encode_envelope
from protocols.envelope import Envelope
from protocols.frames import FrameArray, unpack
from protocols.trace import DONE, HOW_BITS, ID_SHIFT, LOCK
from services.trace.describe import NUMBERS, describe
from services.trace.tape import (
    BATCH,
    BROKE,
    CHANGE,
    NOBODY,
    RESUMED,
    RUN,
    Large,
    Part,
)

Table = npt.NDArray[np.int64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Number = Callable[[str], int]

SERVE: Final = (
    "id", "src", "dst", "kind", "reply_seq", "bytes", "domid", "order", "nr", "gfn", "rc",
    "received", "started", "resumed", "ended", "busy", "lock_wait",
)  # fmt: skip
SEND: Final = ("first", "nr", "cause", "parent", "sent", "domid")
CHANGED: Final = ("time", "cause", "event", "domid", "order", "type", "nr")
AT: Final = {name: at for at, name in enumerate(SERVE)}
NR_SAID: Final = AT["received"]
"""So many columns say what a message is, the others how it fared."""
NEVER: Final = -1
HOW_MASK: Final = (1 << HOW_BITS) - 1

_part = msgspec.msgpack.Decoder(Part)


class Made(NamedTuple):
    """Rows of a part: SERVE, SEND and CHANGED columns of i64, and the frames of all changes."""

    serves: Table
    sends: Table
    changes: Table
    gfns: FrameArray
    mfns: FrameArray


class Runs(NamedTuple):
    """The runs of a part, shape (n,) each; ``cause`` counts arrivals from the part's first."""

    cause: Ints
    request: Ints
    first: Ints
    nr: Ints
    how: Ints
    began: Ints
    ended: Ints


class TapeRows:
    """Reads the parts of one tape in order; ``number`` numbers addresses, for all tapes alike."""

    def __init__(self, number: Number) -> None:
        self._number = number
        self._arrivals: Ints = np.zeros(0, dtype=np.int64)
        self._open: Table = np.zeros((0, len(SERVE)), dtype=np.int64)
        self._locked: Ints = np.zeros(0, dtype=np.int64)
        self._ran: Flags = np.zeros(0, dtype=np.bool_)

    def take(self, data: bytes) -> Made:
        """The rows of the next part, encoded."""
        part = _part.decode(data)
        rows = self._arrived(part)
        runs = _runs(part, rows[:, AT["started"]])
        plain = (rows[:, AT["reply_seq"]] != 0) | (rows[:, AT["src"]] == rows[:, AT["dst"]])
        begun = np.zeros(len(rows), dtype=np.bool_)
        begun[runs.request[runs.request >= part.base] - part.base] = True
        over = _over(rows, runs, plain, begun)
        self._keep(part.base, rows, np.flatnonzero(begun))
        slot = np.searchsorted(self._arrivals, runs.request)
        self._add_up(runs, slot)
        sends = np.concatenate((self._asked(part), self._sent(rows, runs, slot)))
        changes = _changes(part, rows, runs)
        done = self._open[:, AT["ended"]] != NEVER
        serves = np.concatenate((rows[over], self._open[done]))
        self._drop(done)
        return Made(serves, sends, changes, unpack(part.gfns), unpack(part.mfns))

    def rest(self) -> Table:
        """SERVE rows of the requests that nobody has answered: the run is over."""
        return self._open

    def _arrived(self, part: Part) -> Table:
        """What each arrival says, received and started; NEVER received is as soon as sent."""
        rows = np.zeros((len(part.began), len(SERVE)), dtype=np.int64)
        received = np.full(len(rows), NEVER, dtype=np.int64)
        whole: list[Envelope] = []
        is_raw = np.zeros(len(rows), dtype=np.bool_)
        batches = np.array(part.batches, dtype=np.int64).reshape(-1, BATCH) - (part.base, 0, 0)
        for (first, nr, when), raw in zip(batches.tolist(), part.raw, strict=True):
            received[first : first + nr] = when
            if raw:
                whole += decode_batch(raw).envelopes
                is_raw[first : first + nr] = True
        rows[is_raw, :NR_SAID] = _said(whole, self._number)
        rest = np.flatnonzero(~is_raw)
        fits = np.ones(len(rest), dtype=np.bool_)
        fits[[each.at for each in part.large]] = False
        small = decode_envelopes(part.arrived)
        rows[rest[fits], :NR_SAID] = _said(small, self._number)
        rows[rest[~fits], :NR_SAID] = _large(part.large, self._number)
        rows[:, AT["received"]] = received
        rows[:, AT["started"]] = part.began
        rows[:, AT["ended"]] = NEVER
        return rows

    def _keep(self, base: int, rows: Table, new: Ints) -> None:
        """From here on these requests are open: those that a handler has begun to serve."""
        self._arrivals = np.concatenate((self._arrivals, base + new))
        self._open = np.concatenate((self._open, rows[new]))
        self._locked = np.concatenate((self._locked, np.zeros(len(new), dtype=np.int64)))
        self._ran = np.concatenate((self._ran, np.zeros(len(new), dtype=np.bool_)))

    def _add_up(self, runs: Runs, slot: Ints) -> None:
        """What the runs add to the open requests in ``slot``."""
        mine = np.flatnonzero(runs.request >= 0)
        if not len(mine):
            return
        known = self._arrivals[slot[mine]] == runs.request[mine]
        assert known.all(), "a run for a request that nobody was given"
        mine = mine[np.argsort(slot[mine], kind="stable")]
        at, how, began, ended = slot[mine], runs.how[mine], runs.began[mine], runs.ended[mine]
        first = np.flatnonzero(np.append(True, np.diff(at) != 0))
        last = np.append(first[1:], len(at)) - 1
        where, rows = at[first], self._open
        rows[where, AT["busy"]] += np.add.reduceat(ended - began, first)
        since = np.where(np.append(0, how[:-1]) == LOCK, np.append(0, ended[:-1]), 0)
        since[first] = self._locked[where]
        waited = np.where(since > 0, began - since, 0)
        rows[where, AT["lock_wait"]] += np.add.reduceat(waited, first)
        again = (last > first) | self._ran[where]
        rows[where, AT["resumed"]] = np.where(again, began[last], 0)
        rows[where, AT["ended"]] = np.where(how[last] == DONE, ended[last], NEVER)
        self._locked[where] = np.where(how[last] == LOCK, ended[last], 0)
        self._ran[where] = True

    def _asked(self, part: Part) -> Table:
        """SEND rows of what was sent without a cause."""
        sends = np.zeros((len(part.asked), len(SEND)), dtype=np.int64)
        for row, (src, number, when) in enumerate(part.asked):
            sends[row] = self._number(src) << ID_SHIFT | number, 1, 0, 0, when, NEVER
        return sends

    def _sent(self, rows: Table, runs: Runs, slot: Ints) -> Table:
        """SEND rows; an answer has the domid of what it answers."""
        sent = np.flatnonzero((runs.request >= 0) & (runs.how != LOCK) & (runs.nr > 0))
        asked = self._open[slot[sent]]
        answers = runs.how[sent] == DONE
        return np.column_stack(
            (
                asked[:, AT["dst"]] << ID_SHIFT | runs.first[sent], runs.nr[sent],
                rows[runs.cause[sent], AT["id"]], asked[:, AT["id"]], runs.ended[sent],
                np.where(answers, asked[:, AT["domid"]], NEVER),
            )
        )  # fmt: skip

    def _drop(self, done: Flags) -> None:
        self._arrivals, self._open = self._arrivals[~done], self._open[~done]
        self._locked, self._ran = self._locked[~done], self._ran[~done]


def _said(envelopes: list[Envelope], number: Number) -> Table:
    """The first NR_SAID columns of envelopes that are there whole."""
    bodies = [each.body for each in envelopes]
    kinds = np.array([NUMBERS[type(body)] for body in bodies], dtype=np.int64)
    src = np.array([number(each.src) for each in envelopes], dtype=np.int64)
    said = np.empty((len(envelopes), NR_SAID), dtype=np.int64)
    said[:, AT["id"]] = [each.msg_id for each in envelopes]
    said[:, AT["id"]] |= src << ID_SHIFT
    said[:, AT["src"]] = src
    said[:, AT["dst"]] = [number(each.dst) for each in envelopes]
    said[:, AT["kind"]] = kinds
    said[:, AT["reply_seq"]] = [each.in_reply_to for each in envelopes]
    said[:, AT["bytes"]] = [len(encode_envelope(each)) for each in envelopes]
    said[:, AT["domid"] :] = np.array(describe(bodies, kinds)).T
    return said


def _large(envelopes: list[Large], number: Number) -> Table:
    """The same of those that were too long."""
    said = np.empty((len(envelopes), NR_SAID), dtype=np.int64)
    for row, each in enumerate(envelopes):
        src = number(each.src)
        said[row] = (
            src << ID_SHIFT | each.msg_id, src, number(each.dst), each.kind, each.in_reply_to,
            each.size, *each.details,
        )  # fmt: skip
    return said


def _runs(part: Part, started: Ints) -> Runs:
    """A run begins where the log stood before: at its arrival, or where another run ended."""
    table = np.array(part.runs, dtype=np.int64).reshape(-1, RUN)
    cause, request, first, packed, ended = table.T
    cause = cause - part.base
    assert not len(cause) or cause[0] >= 0, "a run without its arrival"
    began = started[cause]
    same = np.flatnonzero(np.diff(cause) == 0) + 1
    began[same] = ended[same - 1]
    return Runs(cause, request, first, packed >> HOW_BITS, packed & HOW_MASK, began, ended)


def _over(rows: Table, runs: Runs, plain: Flags, begun: Flags) -> Flags:
    """Whose row is ready for its step alone: plain messages, and what a host failed over at once.

    What came and did nothing was a repeat, which its host dropped.
    """
    marks = runs.request == NOBODY
    own = np.arange(len(runs.cause))
    # What resumes somebody later is not of the step that it follows.
    limit = np.full(len(rows), len(own), dtype=np.int64)
    resumed = np.flatnonzero(marks & (runs.how == RESUMED))
    np.minimum.at(limit, runs.cause[resumed], resumed)
    within = own < limit[runs.cause]
    last = np.full(len(rows), NEVER, dtype=np.int64)
    last[runs.cause[within]] = own[within]
    broke = np.zeros(len(rows), dtype=np.bool_)
    broke[runs.cause[marks & (runs.how == BROKE)]] = True
    over = (last >= 0) & (plain | (broke & ~begun))
    ended = runs.ended[last[over]]
    rows[over, AT["busy"]] = ended - rows[over, AT["started"]]
    rows[over, AT["ended"]] = np.where(broke[over], NEVER, ended)
    return over


def _changes(part: Part, rows: Table, runs: Runs) -> Table:
    """CHANGED rows: what a run changes is changed when it begins."""
    table = np.array(part.changes, dtype=np.int64).reshape(-1, CHANGE)
    cause, before = table[:, 0] - part.base, table[:, 1] // RUN
    time = rows[cause, AT["started"]]
    later = np.flatnonzero(before > 0)
    later = later[runs.cause[before[later] - 1] == cause[later]]
    time[later] = runs.ended[before[later] - 1]
    return np.column_stack((time, rows[cause, AT["id"]], table[:, 2:]))
