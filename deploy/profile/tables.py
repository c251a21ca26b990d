"""A trace as tables: queried by DuckDB, or written as Parquet and CSV files.

Each table has its columns as recorded and, beside them, what people read: addresses, message kinds
and p2m types by name, ids as ``p2m/3#17``, times in seconds (``started_s``) if the clock has any.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import duckdb
import numpy as np

from protocols.errno import BadInputError
from protocols.text import csv_text
from protocols.trace import EVENT_NAMES, ID_SHIFT, TABLES
from services.trace.domains import type_name
from services.trace.frame import Column, Frame, Trace
from services.trace.report import HYPERCALLS
from services.trace.stats import service_of

TIMES: Final = ("sent", "received", "started", "resumed", "ended", "time", "start", "end")
IDS: Final = ("id", "cause", "parent", "reply_to")
_duckdb: Any = duckdb


def frames(trace: Trace) -> dict[str, Frame]:
    """The tables of a trace by name."""
    return {name: getattr(trace, name) for name in TABLES}


def columns(trace: Trace, frame: Frame) -> dict[str, Column]:
    """The columns of a table, those for people included."""
    found: dict[str, Column] = dict(frame.items())
    if trace.ticks_per_s:
        for name in TIMES:
            if name in frame:
                found[f"{name}_s"] = frame[name] / trace.ticks_per_s
    if frame.table == "messages":
        found |= _names(trace, frame)
    elif frame.table == "updates":
        found["type_name"] = _looked_up([type_name(kind) for kind in range(256)], frame["type"])
    elif frame.table == "events":
        numbers, where = np.unique(frame["event"], return_inverse=True)
        names = [EVENT_NAMES.get(number, hex(number)) for number in numbers.tolist()]
        found["event_name"] = _looked_up(names, where)
    elif frame.table == "hypercalls":
        numbers, where = np.unique(frame["op"], return_inverse=True)
        names = [HYPERCALLS.get(number, str(number)) for number in numbers.tolist()]
        found["op_name"] = _looked_up(names, where)
    return found


def _names(trace: Trace, frame: Frame) -> dict[str, Column]:
    found: dict[str, Column] = {"kind": _looked_up(trace.kinds, frame["kind"])}
    for end in ("src", "dst"):
        found[end] = _looked_up(trace.names, frame[end])
    found["service"] = _looked_up([service_of(name) for name in trace.names], frame["dst"])
    names = np.array([*trace.names, ""], dtype=object)
    for name in IDS:
        number = frame[name]
        source = names[(number >> np.uint64(ID_SHIFT)).astype(np.int64)]
        count = (number & np.uint64((1 << ID_SHIFT) - 1)).astype(str)
        text = source + "#" + count.astype(object)
        found[f"{name}_text"] = np.where(number > 0, text, "")
    return found


def _looked_up(names: Sequence[str], numbers: Column) -> Column:
    table = np.array(names, dtype=object)
    return table[numbers] if len(numbers) else np.zeros(0, dtype=object)


def _connect(trace: Trace, wanted: Sequence[str]) -> Any:
    """A database of our own with the tables that are wanted, which can touch nothing else."""
    database = _duckdb.connect(":memory:", config={"threads": 2})
    for name, frame in frames(trace).items():
        if name in wanted:
            data = columns(trace, frame)
            database.register("incoming", data)
            database.execute(f"create table {name} as select * from incoming")  # noqa: S608
            database.unregister("incoming")
    return database


def query(trace: Trace, sql: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """(column names, rows) of a query over messages, updates, events, hypercalls and running.

    Raises:
        BadInputError: the engine refuses it; in one line.
    """
    database = _connect(trace, [name for name in TABLES if name in sql.lower()])
    try:
        database.execute("set enable_external_access = false")
        database.execute("set lock_configuration = true")
        result = database.execute(sql)
        if not result:
            raise BadInputError("--sql: expected a query, there is none")
        if result.description is None:
            return [], []
        return [each[0] for each in result.description], result.fetchall()
    except _duckdb.Error as error:
        raise BadInputError(f"--sql: {' '.join(str(error).split())}") from None
    finally:
        database.close()


def write_parquet(trace: Trace, path: Path) -> list[Path]:
    """``path`` with the table's name before its ending, for each table that has rows."""
    return _write(trace, path, "parquet")


def write_csv(trace: Trace, path: Path) -> list[Path]:
    """As ``write_parquet``, with a header line; no name is a formula to a spreadsheet."""
    names, kinds = (list(map(csv_text, given)) for given in (trace.names, trace.kinds))
    return _write(replace(trace, names=names, kinds=kinds), path, "csv, header")


def _write(trace: Trace, path: Path, how: str) -> list[Path]:
    made: list[Path] = []
    for name, frame in frames(trace).items():
        if frame.rows:
            target = path.with_name(f"{path.stem}.{name}{path.suffix or '.' + how[:7].strip(', ')}")
            database = _connect(trace, [name])
            partial = target.with_name(f".{target.name}.partial")
            try:
                text = str(partial).replace("'", "''")
                database.execute(f"copy {name} to '{text}' (format {how})")
                partial.replace(target)
            except _duckdb.Error as error:
                partial.unlink(missing_ok=True)
                reason = " ".join(str(error).split())
                raise BadInputError(f"{target}: cannot be written: {reason}") from None
            finally:
                database.close()
            made.append(target)
    return made
