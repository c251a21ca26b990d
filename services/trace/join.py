"""Put both ends of every message together: rows of MESSAGES, UPDATES and EVENTS out of tape parts.

Parts come tape by tape, at any time, and a message may be delivered long after the part that says
who sent it, or before: whatever lacks its other end waits for later parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from protocols.trace import ID_SHIFT, MemEvent
from services.trace.frame import Column, Frame
from services.trace.rows import AT, CHANGED, NEVER, SEND, SERVE, Made, Table, TapeRows

CLIENT_TAPE: Final = 0xFFFF
"""The tape of whoever drives the run."""

_SEND: Final = {name: at for at, name in enumerate(SEND)}
_CHANGED: Final = {name: at for at, name in enumerate(CHANGED)}
_LEFT: Final = len(SEND)
"""Behind the columns of a send: how many of its messages have not been delivered yet."""
_SHARD: Final = len(SERVE)
"""Behind the columns of a serve: where it was delivered to."""
_TIMES: Final = ("received", "started", "resumed", "ended")


class Joiner:
    """Names of all tapes in one list, and rows that are complete.

    Where one tape has had everything, ``services`` are counted as a shard each.
    """

    def __init__(self, services: Sequence[str] = ()) -> None:
        self._services = list(services)
        self._shard_of: list[int] = []
        self.names: list[str] = []
        self._numbers: dict[str, int] = {}
        self._tapes: dict[int, tuple[TapeRows, int]] = {}
        self._sends: Table = np.zeros((0, _LEFT + 1), dtype=np.int64)
        self._serves: Table = np.zeros((0, _SHARD + 1), dtype=np.int64)
        self._start: int | None = None
        self._changed: dict[int, int] = {}

    def number(self, name: str) -> int:
        """The number of an address, given when first asked for."""
        number = self._numbers.get(name)
        if number is None:
            number = self._numbers[name] = len(self.names)
            self.names.append(name)
            service = name.partition("/")[0]
            known = service in self._services
            self._shard_of.append(self._services.index(service) if known else CLIENT_TAPE)
        return number

    def add(self, tape: int, part: bytes, offset: int = 0) -> tuple[Frame, Frame]:
        """The next part of a tape whose clock is behind by ``offset``: its (updates, events)."""
        rows, _ = self._tapes.setdefault(tape, (TapeRows(self.number), offset))
        made = rows.take(part)
        sends = np.column_stack((made.sends, made.sends[:, _SEND["nr"]]))
        self._shift(sends, (_SEND["sent"],), offset)
        self._sends = np.concatenate((self._sends, sends))
        self._serve(tape, made.serves, offset)
        return self._changes(tape, made, offset)

    def _serve(self, tape: int, serves: Table, offset: int) -> None:
        if self._services:
            shards = np.array(self._shard_of, dtype=np.int64)[serves[:, AT["dst"]]]
        else:
            shards = np.full(len(serves), tape, dtype=np.int64)
        rows = np.column_stack((serves, shards))
        self._shift(rows, tuple(AT[name] for name in _TIMES), offset)
        self._serves = np.concatenate((self._serves, rows))

    def _shift(self, rows: Table, columns: Sequence[int], offset: int) -> None:
        """Times of a tape in ticks since the first that was ever seen; 0 and NEVER stay."""
        for at in columns:
            column = rows[:, at]
            real = column > 0
            if self._start is None and real.any():
                self._start = int(column[real].min()) + offset - 1
            column[real] += offset - (self._start or 0)

    def ready(self, *, last: bool = False) -> Frame:
        """Messages both ends of which are known; with ``last`` the others, too, as they are."""
        if last:
            for tape, (rows, offset) in self._tapes.items():
                self._serve(tape, rows.rest(), offset)
        sends, serves = self._sends, self._serves
        by_id = np.argsort(sends[:, _SEND["first"]], kind="stable")
        first = sends[by_id, _SEND["first"]]
        ids = serves[:, AT["id"]]
        at = np.searchsorted(first, ids, side="right") - 1
        row = by_id[np.maximum(at, 0)] if len(by_id) else np.zeros(len(at), dtype=np.int64)
        known = at >= 0
        if len(sends):
            known &= ids < sends[row, _SEND["first"]] + sends[row, _SEND["nr"]]
        take = np.ones(len(ids), dtype=np.bool_) if last else known
        frame = _messages(serves[take], sends, row[take], known[take])
        np.subtract.at(sends[:, _LEFT], row[known], 1)
        self._serves = serves[~take]
        self._sends = sends[sends[:, _LEFT] > 0]
        return frame

    def _changes(self, tape: int, made: Made, offset: int) -> tuple[Frame, Frame]:
        rows = made.changes
        self._shift(rows, (_CHANGED["time"],), offset)
        nr = rows[:, _CHANGED["nr"]]
        columns: dict[str, Column] = {
            name: np.repeat(rows[:, _CHANGED[name]], nr)
            for name in ("time", "cause", "event", "domid", "order", "type")
        }
        columns["gfn"], columns["mfn"] = made.gfns, made.mfns
        total = int(nr.sum())
        columns["cpu"] = np.full(total, tape)
        first = self._changed.get(tape, 0)
        columns["seq"] = np.arange(first, first + total, dtype=np.uint64)
        self._changed[tape] = first + total
        is_update = columns["event"] == MemEvent.SET_P2M_ENTRY
        event, types = columns.pop("event"), columns.pop("type")
        updates = {name: column[is_update] for name, column in columns.items()}
        events = {name: column[~is_update] for name, column in columns.items()}
        updates["type"], events["event"] = types[is_update], event[~is_update]
        return Frame.of("updates", updates), Frame.of("events", events)


def _messages(
    serves: Table, sends: Table, row: npt.NDArray[np.int64], known: npt.NDArray[np.bool_]
) -> Frame:
    """Rows of MESSAGES, by the time when their handling began."""
    by_start = np.argsort(serves[:, AT["started"]], kind="stable")
    serves, row, known = serves[by_start], row[by_start], known[by_start]

    def sent(name: str, absent: int) -> npt.NDArray[Any]:
        if not len(sends):
            return np.full(len(row), absent, dtype=np.int64)
        return np.where(known, sends[row, _SEND[name]], absent)

    columns: dict[str, Column] = {
        name: serves[:, at] for name, at in AT.items() if name != "reply_seq"
    }
    columns["cause"], columns["parent"] = sent("cause", 0), sent("parent", 0)
    columns["shard"] = serves[:, _SHARD]
    reply = serves[:, AT["reply_seq"]]
    columns["reply_to"] = np.where(reply, columns["dst"] << ID_SHIFT | reply, 0)
    started = columns["started"]
    columns["sent"] = sent("sent", 0)
    columns["sent"] = np.where(columns["sent"] > 0, columns["sent"], started)
    received = columns["received"]
    columns["received"] = np.where(received == NEVER, columns["sent"], received)
    domid = columns["domid"]
    columns["domid"] = np.where(domid < 0, sent("domid", -1), domid)
    return Frame.of("messages", columns)
