"""What a trace of ours says, seen to be so: nobody behind this needs to doubt a file.

A checksum tells that a block is as somebody wrote it, not that it makes sense. Types, lengths,
indices, counts and times are checked when a block is read, columns when they are first asked for:
the range of most follows from their base and width alone, without a look at any row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec
import numpy as np

from protocols.errno import BadInputError
from protocols.frames import DOMID_FIRST_RESERVED, FRAME_MAX, ORDER_LIMIT
from protocols.p2m_types import P2mType
from protocols.trace import ID_SHIFT, LATER, NO_DOMID, NO_NR, NO_ORDER, TABLES, MemEvent
from services.trace.frame import Column

TIME_MAX: Final = 1 << 53
"""Ticks before or after the first record: 104 days of nanoseconds. Differences, a thousand of them
each, and doubles hold that exactly."""
HOST_FRAMES_MAX: Final = 1 << 32
"""16 TiB, the most that Xen uses."""
NAME_MAX: Final = 128
"""Characters of an address or of a message kind."""
RECORDED: Final = ("messages", "updates", "events")
"""The tables of a trace of ours."""
WIDTHS: Final = (0, 1, 2, 4, 8)

PackedColumn = tuple[int, int, memoryview]
Index = Annotated[int, msgspec.Meta(ge=0)]
_Ordinal = Annotated[int, msgspec.Meta(ge=0, le=1 << 48)]
_Fact = str | int | bool | None


class Clock(msgspec.Struct):
    """``ns`` has 10**9 ticks a second; ``step`` has none, as it counts steps."""

    unit: Literal["ns", "step"]
    ticks_per_s: Literal[0, 1_000_000_000]
    epoch_ns: int


class ModelledHost(msgspec.Struct):
    """The host of the run; a replay has it built again."""

    ram_start: Annotated[int, msgspec.Meta(ge=0, le=FRAME_MAX)]
    ram_frames: Annotated[int, msgspec.Meta(ge=1, le=HOST_FRAMES_MAX)]
    nr_nodes: Annotated[int, msgspec.Meta(ge=1, le=64)]
    paging: Literal["npt", "ept", "pae", "x86_32"]
    leaf_orders: Annotated[list[Literal[0, 9, 10, 18]], msgspec.Meta(min_length=1, max_length=4)]
    p2m_lock: Literal["domain", "region", "optimistic", "none"] = "domain"


class Header(msgspec.Struct):
    """The first object of a file."""

    protocol: int
    runtime: Annotated[str, msgspec.Meta(max_length=NAME_MAX)]
    seed: int | None
    clock: Clock
    host: ModelledHost
    machine: dict[str, _Fact]
    shards: list[tuple[str, _Ordinal]]
    kinds: Annotated[list[str], msgspec.Meta(max_length=1 << 16)]
    definitions: dict[str, list[str]]
    tables: dict[str, list[tuple[str, str]]]


class Names(msgspec.Struct):
    """The body of a ``names`` block."""

    names: list[str]


class Requests(msgspec.Struct):
    """The body of a ``requests`` block."""

    id: PackedColumn
    data: list[bytes]


class Places(msgspec.Struct):
    """The body of an ``index`` block: table, rows, first, last, crc32, start and size of each."""

    blocks: list[tuple[str, Index, int, int, int, Index, Index]]


class Limits(NamedTuple):
    """What indices of a file are below: its numbers of names and of message kinds."""

    names: int
    kinds: int


def decoded(kind: type[Any], body: memoryview, where: str) -> Any:
    """A msgpack object of this kind.

    Raises:
        BadInputError: it is of another; ``where`` begins the line.
    """
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except UnicodeDecodeError:
        reason = "a string is no UTF-8"
    except RecursionError:
        reason = "nested too deeply"
    except msgspec.MsgspecError as error:
        reason = str(error)
    raise BadInputError(f"{where}: {reason}")


def checked_header(body: memoryview, source: str) -> dict[str, Any]:
    """The map at the beginning of a file.

    Raises:
        BadInputError: something in it is missing, or of another type or value than it may have.
    """
    where = f"{source}: offset 0: header"
    header: Header = decoded(Header, body, where)
    checked_names(header.kinds, "kinds", where)
    checked_names([header.runtime, *(service for service, _ in header.shards)], "services", where)
    if bool(header.clock.ticks_per_s) != (header.clock.unit == "ns"):
        raise BadInputError(
            f"{where}: clock `{header.clock.unit}` with {header.clock.ticks_per_s} ticks a second"
        )
    for table in RECORDED:
        columns = list(TABLES[table].items())
        before = [each for each in columns if each[0] not in LATER]
        if header.tables.get(table) not in (columns, before):
            raise BadInputError(f"{where}: table `{table}` has not the columns of this version")
    return msgspec.to_builtins(header)


def checked_names(names: Sequence[str], what: str, where: str) -> None:
    """See that these are names.

    Raises:
        BadInputError: one is empty, too long, or has characters that cannot be printed.
    """
    bad = [
        at
        for at, name in enumerate(names)
        if not (0 < len(name) <= NAME_MAX and name.isprintable())
    ]
    if bad:
        raise BadInputError(
            f"{where}: {what}: number {bad[0]} is no name; expected 1 to {NAME_MAX} printable "
            "characters"
        )


def unpack(column: Column, packed: PackedColumn, low: int, high: int, where: str) -> None:
    """Fill a column; sums are modulo the width of its type.

    Raises:
        BadInputError: there are not as many values, or not all of them are ``low`` to ``high``.
    """
    base, width, data = packed
    if width not in WIDTHS or len(data) != width * len(column):
        raise BadInputError(
            f"{where}: {len(data)} bytes, expected {len(column)} rows of 0, 1, 2, 4 or 8 bytes"
        )
    deltas = np.frombuffer(data, dtype=f"<u{width}") if len(data) else None
    if len(column) and not low <= base <= base + (1 << 8 * width) - 1 <= high:
        top = base + (int(deltas.max()) if deltas is not None else 0)
        if not low <= base <= top <= high:
            bad = base if base < low else top
            raise BadInputError(f"{where}: {bad}, expected {low} to {high}")
    bits = 8 * column.dtype.itemsize
    start = np.array(base % (1 << bits), dtype=f"<u{column.dtype.itemsize}")
    unsigned = column.view(start.dtype)
    if deltas is None:
        unsigned[:] = start
    else:
        np.add(deltas, start, out=unsigned, dtype=start.dtype, casting="unsafe")


def bounds(table: str, name: str, limits: Limits) -> tuple[int, int]:
    """The lowest and highest value of a column of a trace of ours."""
    known = _BOUNDS[table].get(name)
    if known is not None:
        return known
    if name in {"id", "cause", "parent", "reply_to"}:
        return 0, (limits.names << ID_SHIFT) - 1
    if name in {"src", "dst"}:
        return 0, limits.names - 1
    if name == "kind":
        return 0, limits.kinds - 1
    dtype = np.dtype(TABLES[table][name])
    if dtype.itemsize == 8:
        # Any at all; -1 may stand for all ones.
        return -1 << 63, 1 << 65
    return int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)


_TIME: Final = (-TIME_MAX, TIME_MAX)
_DOMID: Final = (0, DOMID_FIRST_RESERVED - 1)
_BOUNDS: Final[dict[str, dict[str, tuple[int, int]]]] = {
    "messages": {
        **dict.fromkeys(("sent", "received", "started", "resumed", "ended"), _TIME),
        "busy": (0, TIME_MAX),
        "lock_wait": (0, TIME_MAX),
        "domid": (NO_DOMID, _DOMID[1]),
        "order": (NO_ORDER, ORDER_LIMIT),
        "nr": (NO_NR, 1 << 62),
    },
    "updates": {
        "time": _TIME,
        "domid": _DOMID,
        "order": (0, ORDER_LIMIT),
        "type": (0, max(P2mType)),
    },
    "events": {
        "time": _TIME,
        "domid": (NO_DOMID, _DOMID[1]),
        "order": (NO_ORDER, ORDER_LIMIT),
    },
}
_EVENTS: Final = sorted({*MemEvent} - {MemEvent.SET_P2M_ENTRY})


def checked_events(events: Column, where: str) -> None:
    """See that these are numbers of memory events other than set_p2m_entry.

    Raises:
        BadInputError: one is not.
    """
    strange = events[~np.isin(events, _EVENTS)]
    if len(strange):
        raise BadInputError(f"{where}: {int(strange[0]):#x} is no memory event")
