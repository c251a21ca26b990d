"""Put both ends of every message together: rows of MESSAGES, UPDATES and EVENTS out of tape parts.

Parts come tape by tape, at any time, and a message may be delivered long after the part that says
who sent it, or before: whatever lacks its other end waits for later parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from protocols.frames import unpack
from protocols.trace import ID_SHIFT, MemEvent
from services.trace.frame import Column, Frame
from services.trace.tape import CHANGE, NEVER, SEND, SERVE, Part

CLIENT_TAPE: Final = 0xFFFF
"""The tape of whoever drives the run."""

Table = npt.NDArray[np.int64]
_SEND: Final = {name: at for at, name in enumerate(SEND)}
_SERVE: Final = {name: at for at, name in enumerate(SERVE)}
_CHANGE: Final = {name: at for at, name in enumerate(CHANGE)}
_LEFT: Final = len(SEND) + 1


class Joiner:
    """Names of all tapes in one list, and rows that are complete.

    Where one tape has had everything, ``services`` are counted as a shard each.
    """

    def __init__(self, services: Sequence[str] = ()) -> None:
        self._services = list(services)
        self._shard_of: list[int] = []
        self.names: list[str] = []
        self._clients: set[int] = set()
        self._numbers: dict[str, int] = {}
        self._local: dict[int, list[int]] = {}
        self._sends = np.zeros((0, _LEFT + 1), dtype=np.int64)
        self._serves = np.zeros((0, len(SERVE) + 1), dtype=np.int64)
        self._start: int | None = None

    def add(self, tape: int, part: Part, offset: int = 0) -> tuple[Frame, Frame]:
        """Take a part of a tape whose clock is behind by ``offset``: its (updates, events)."""
        local = self._local.setdefault(tape, [])
        local.extend(self._number(name) for name in part.names)
        numbers = np.array(local, dtype=np.int64)
        sends = _rows(part.sends, SEND)
        sends = np.column_stack((sends, _ids(numbers, sends, "src", "first", _SEND), sends[:, 2]))
        self._shift(sends, ("sent",), _SEND, offset)
        cause = _ids(numbers, sends, "cause_src", "cause_seq", _SEND)
        parent = _ids(numbers, sends, "parent_src", "parent_seq", _SEND)
        sends[:, _SEND["cause_src"]], sends[:, _SEND["parent_src"]] = cause, parent
        self._sends = np.concatenate((self._sends, sends))
        serves = _rows(part.serves, SERVE)
        self._shift(serves, ("received", "started", "resumed", "ended"), _SERVE, offset)
        for name in ("src", "dst"):
            serves[:, _SERVE[name]] = numbers[serves[:, _SERVE[name]]]
        dst = serves[:, _SERVE["dst"]]
        if self._services:
            tapes = np.array(self._shard_of, dtype=np.int64)[dst][:, None]
        else:
            to_client = np.isin(dst, list(self._clients))
            tapes = np.where(to_client, CLIENT_TAPE, tape)[:, None]
        self._serves = np.concatenate((self._serves, np.hstack((serves, tapes))))
        return self._changes(tape, part, numbers, offset)

    def _number(self, name: str) -> int:
        number = self._numbers.get(name)
        if number is None:
            number = self._numbers[name] = len(self.names)
            self.names.append(name)
            service = name.partition("/")[0]
            if service == "client":
                self._clients.add(number)
            known = service in self._services
            self._shard_of.append(self._services.index(service) if known else CLIENT_TAPE)
        return number

    def _shift(self, rows: Table, names: tuple[str, ...], at: dict[str, int], offset: int) -> None:
        """Times of a tape in ticks since the first that was ever seen; 0 and NEVER stay."""
        for name in names:
            column = rows[:, at[name]]
            real = column > 0
            if self._start is None and real.any():
                self._start = int(column[real].min()) + offset - 1
            column[real] += offset - (self._start or 0)

    def ready(self, *, last: bool = False) -> Frame:
        """Messages both ends of which are known; with ``last`` the others, too, as they are."""
        sends, serves = self._sends, self._serves
        by_id = np.argsort(sends[:, _LEFT - 1], kind="stable")
        first = sends[by_id, _LEFT - 1]
        ids = serves[:, _SERVE["src"]] << ID_SHIFT | serves[:, _SERVE["seq"]]
        at = np.searchsorted(first, ids, side="right") - 1
        row = by_id[np.maximum(at, 0)] if len(by_id) else np.zeros(len(at), dtype=np.int64)
        known = at >= 0
        if len(sends):
            known &= ids < sends[row, _LEFT - 1] + sends[row, _SEND["nr"]]
        take = np.ones(len(ids), dtype=np.bool_) if last else known
        frame = _messages(serves[take], ids[take], sends, row[take], known[take])
        np.subtract.at(sends[:, _LEFT], row[known], 1)
        self._serves = serves[~take]
        self._sends = sends[sends[:, _LEFT] > 0]
        return frame

    def _changes(
        self, tape: int, part: Part, numbers: npt.NDArray[np.int64], offset: int
    ) -> tuple[Frame, Frame]:
        rows = _rows(part.changes, CHANGE)
        self._shift(rows, ("time",), _CHANGE, offset)
        cause = _ids(numbers, rows, "cause_src", "cause_seq", _CHANGE)
        nr = rows[:, _CHANGE["nr"]]
        columns: dict[str, Column] = {
            name: np.repeat(rows[:, _CHANGE[name]], nr)
            for name in ("time", "event", "domid", "order", "type")
        }
        columns["cause"] = np.repeat(cause, nr)
        columns["gfn"], columns["mfn"] = unpack(part.gfns), unpack(part.mfns)
        columns["cpu"] = np.full(int(nr.sum()), tape)
        is_update = columns["event"] == MemEvent.SET_P2M_ENTRY
        event, types = columns.pop("event"), columns.pop("type")
        updates = {name: column[is_update] for name, column in columns.items()}
        events = {name: column[~is_update] for name, column in columns.items()}
        updates["type"], events["event"] = types[is_update], event[~is_update]
        return Frame.of("updates", updates), Frame.of("events", events)


def _rows(data: bytes, names: tuple[str, ...]) -> Table:
    """The rows of columns of i64, shape (n, len(names))."""
    return np.frombuffer(data, dtype=np.int64).reshape(len(names), -1).T.copy()


def _ids(
    numbers: npt.NDArray[np.int64], rows: Table, src: str, seq: str, at: dict[str, int]
) -> npt.NDArray[np.int64]:
    """Message ids of two columns; 0 where the source is negative."""
    source = rows[:, at[src]]
    if not len(numbers):
        return np.zeros(len(rows), dtype=np.int64)
    ids = numbers[np.maximum(source, 0)] << ID_SHIFT | rows[:, at[seq]]
    return np.where(source < 0, 0, ids)


def _messages(
    serves: Table,
    ids: npt.NDArray[np.int64],
    sends: Table,
    row: npt.NDArray[np.int64],
    known: npt.NDArray[np.bool_],
) -> Frame:
    """Rows of MESSAGES, by the time when their handling began."""
    by_start = np.argsort(serves[:, _SERVE["started"]], kind="stable")
    serves, ids, row, known = serves[by_start], ids[by_start], row[by_start], known[by_start]

    def sent(name: str, absent: int) -> npt.NDArray[Any]:
        if not len(sends):
            return np.full(len(row), absent, dtype=np.int64)
        return np.where(known, sends[row, _SEND[name]], absent)

    columns: dict[str, Column] = {
        name: serves[:, at] for name, at in _SERVE.items() if name not in {"seq", "reply_seq"}
    }
    columns["id"] = ids
    columns["cause"], columns["parent"] = sent("cause_src", 0), sent("parent_src", 0)
    columns["shard"] = serves[:, len(SERVE)]
    reply = serves[:, _SERVE["reply_seq"]]
    columns["reply_to"] = np.where(reply, columns["dst"] << ID_SHIFT | reply, 0)
    started = columns["started"]
    columns["sent"] = sent("sent", 0)
    columns["sent"] = np.where(columns["sent"] > 0, columns["sent"], started)
    received = columns["received"]
    columns["received"] = np.where(received == NEVER, columns["sent"], received)
    domid = columns["domid"]
    columns["domid"] = np.where(domid < 0, sent("domid", -1), domid)
    return Frame.of("messages", columns)
