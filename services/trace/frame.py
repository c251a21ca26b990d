"""A trace in memory: columnar frames, whatever file they come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from protocols.trace import EVENT_NAMES, ID_SHIFT, TABLES, MemEvent

Column = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]


class Frame(Mapping[str, Column]):
    """Columns of one length, by name; a column is read when first asked for.

    ``frame["gfn"]`` is a numpy array of shape (len(frame.rows),). ``load`` reads one column.
    """

    def __init__(self, table: str, rows: int, load: Callable[[str], Column]) -> None:
        self.table = table
        self.rows = rows
        self._load = load
        self._columns: dict[str, Column] = {}

    @classmethod
    def of(cls, table: str, columns: Mapping[str, npt.ArrayLike]) -> Frame:
        """A frame of arrays that are here already; absent columns are zeros."""
        rows = len(np.asarray(next(iter(columns.values())))) if columns else 0
        arrays = {
            name: np.ascontiguousarray(columns[name], dtype=dtype)
            if name in columns
            else np.zeros(rows, dtype=dtype)
            for name, dtype in TABLES[table].items()
        }
        assert all(len(array) == rows for array in arrays.values()), f"{table}: ragged columns"
        return cls(table, rows, arrays.__getitem__)

    @classmethod
    def empty(cls, table: str) -> Frame:
        """No rows."""
        return cls.of(table, {})

    def __getitem__(self, name: str) -> Column:
        column = self._columns.get(name)
        if column is None:
            if name not in TABLES[self.table]:
                raise KeyError(name)
            column = self._columns[name] = self._load(name)
        return column

    def __iter__(self) -> Iterator[str]:
        return iter(TABLES[self.table])

    def __len__(self) -> int:
        """Number of columns, as of any mapping; ``rows`` counts rows."""
        return len(TABLES[self.table])

    def take(self, rows: npt.NDArray[Any]) -> Frame:
        """The rows of a mask or of indices, in that order."""
        nr = int(np.count_nonzero(rows)) if rows.dtype == np.bool_ else len(rows)
        return Frame(self.table, nr, lambda name: self[name][rows])


@dataclass
class Trace:
    """Everything that a trace file says.

    ``format`` is ``shatterproof`` or ``xentrace``. ``kinds`` and ``names`` are what the columns
    ``kind``, ``src`` and ``dst`` number. ``ticks_per_s`` turns ticks of the clock into seconds, 0
    where the clock counts steps. ``events_by_name`` counts the records of a xentrace as Xen names
    them; ``event_counts`` does so for any trace.
    """

    source: str
    format: str
    header: dict[str, Any]
    ticks_per_s: float
    kinds: Sequence[str] = ()
    names: Sequence[str] = ()
    messages: Frame = field(default_factory=lambda: Frame.empty("messages"))
    updates: Frame = field(default_factory=lambda: Frame.empty("updates"))
    events: Frame = field(default_factory=lambda: Frame.empty("events"))
    hypercalls: Frame = field(default_factory=lambda: Frame.empty("hypercalls"))
    running: Frame = field(default_factory=lambda: Frame.empty("running"))
    records: int = 0
    lost: int = 0
    truncated: bool = False
    events_by_name: dict[str, int] = field(default_factory=dict[str, int])
    requests: dict[int, bytes] = field(default_factory=dict[int, bytes])
    """Envelopes of the client by message id, encoded: what a replay starts from."""

    def event_counts(self) -> dict[str, int]:
        """Records by Xen's name of the event."""
        if self.events_by_name:
            return dict(self.events_by_name)
        counts = {EVENT_NAMES[MemEvent.SET_P2M_ENTRY]: self.updates.rows}
        if self.events.rows:
            for event, name in EVENT_NAMES.items():
                counts[name] = counts.get(name, 0) + int((self.events["event"] == event).sum())
        return {name: count for name, count in counts.items() if count}

    def domids_given_again(self) -> dict[int, npt.NDArray[np.int64]]:
        """Of a xentrace: when each domid was given to a new domain after one that was destroyed."""
        return self._given_again(0)

    def updates_before_given_again(self) -> dict[int, npt.NDArray[np.int64]]:
        """How many rows of ``updates`` came before each of these times."""
        return self._given_again(1)

    def _given_again(self, column: int) -> dict[int, npt.NDArray[np.int64]]:
        given: dict[int, list[tuple[int, int]]] = self.header.get("given_again", {})
        return {
            domid: np.array([each[column] for each in times], dtype=np.int64)
            for domid, times in given.items()
        }

    @property
    def is_xens(self) -> bool:
        """Whether Xen wrote it: its causes are hypercalls, and of messages it knows nothing."""
        return self.format == "xentrace"

    def rows_of_kind(self, kind: str) -> npt.NDArray[np.int64]:
        """The rows of all messages of a kind."""
        number = list(self.kinds).index(kind) if kind in self.kinds else -1
        return np.flatnonzero(self.messages["kind"] == number)

    @property
    def unit(self) -> str:
        """What a tick is: ``s`` fractions, or ``steps``."""
        return "s" if self.ticks_per_s else "steps"

    def name_of(self, message_id: int) -> str:
        """A message id as people write it: ``p2m/3#17``."""
        return f"{self.names[message_id >> ID_SHIFT]}#{message_id & ((1 << ID_SHIFT) - 1)}"

    def id_of(self, text: str) -> int:
        """The message id behind ``p2m/3#17`` or a plain number.

        Raises:
            ValueError: neither.
        """
        address, sharp, number = text.rpartition("#")
        if not sharp:
            return int(text, 0)
        return list(self.names).index(address) << ID_SHIFT | int(number)
