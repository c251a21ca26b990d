"""The trace file as bytes: a stream of msgpack objects in checked blocks (docs/trace-format.md).

One header map, then blocks ``[table, rows, first, last, crc32, body]``. The body is a msgpack map
of packed columns, the checksum that of the body. An index and a trailer of fixed size end the file,
so that a reader finds every block without reading any. A file without them was cut off: its blocks
are found one after the other, and the last whole one is its end.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias, cast

import msgpack
import msgspec
import numpy as np

from protocols.errno import BadInputError
from protocols.trace import LATER, TABLES
from services.trace.checked import (
    RECORDED,
    Limits,
    Names,
    PackedColumn,
    Places,
    Requests,
    bounds,
    checked_events,
    checked_header,
    checked_names,
    decoded,
    unpack,
)
from services.trace.frame import Column, Frame

_msgpack: Any = msgpack
"""The package has no annotations."""
Buffer: TypeAlias = memoryview

TRACE_FORMAT: Final = "shatterproof-trace"
TRACE_VERSION: Final = 2
TRAILER_MAGIC: Final = b"shpindex"
_TRAILER_HEAD: Final = b"\xc4\x10" + TRAILER_MAGIC
TRAILER_BYTES: Final = len(_TRAILER_HEAD) + 8
HEADER_MAX: Final = 1 << 20
"""A header never takes more bytes."""
_HEAD_MAX: Final = 96
"""A block's fields before its body never take more bytes."""
BIN_WIDTHS: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4}
"""Bytes of the length that follows each kind of bin header."""
NAMES: Final = "names"
REQUESTS: Final = "requests"
INDEX: Final = "index"


class Block(NamedTuple):
    """Where a block's body lies, and what it holds: ``first`` and ``last`` are times."""

    table: str
    rows: int
    first: int
    last: int
    crc: int
    start: int
    size: int


class _First(msgspec.Struct):
    """Of a header, what says whether the rest can be understood."""

    format: Any = None
    version: Any = None


class Layout(NamedTuple):
    """The blocks of a file; ``cut`` says in one line why not all of them can be read."""

    header: dict[str, Any]
    blocks: list[Block]
    cut: str


def is_trace(data: Buffer) -> bool:
    """Whether a file begins as a trace of ours does."""
    return TRACE_FORMAT.encode() in bytes(data[:64])


def encode_header(header: Mapping[str, Any]) -> bytes:
    """The first object of a file."""
    return cast(
        "bytes", _msgpack.packb({"format": TRACE_FORMAT, "version": TRACE_VERSION, **header})
    )


def encode_block(
    table: str, rows: int, span: tuple[int, int], body: Mapping[str, Any]
) -> tuple[bytes, Block]:
    """A block's bytes, and where in them its body lies; ``span`` is its first and last time."""
    packed: bytes = _msgpack.packb(body)
    crc = zlib.crc32(packed)
    data: bytes = _msgpack.packb([table, rows, *span, crc, packed])
    return data, Block(table, rows, *span, crc, len(data) - len(packed), len(packed))


def encode_frame(frame: Frame) -> tuple[bytes, Block]:
    """Rows of a table as a block."""
    time = frame["started" if frame.table == "messages" else "time"]
    span = (int(time.min()), int(time.max())) if frame.rows else (0, 0)
    return encode_block(
        frame.table, frame.rows, span, {name: pack_column(frame[name]) for name in frame}
    )


def encode_index(blocks: Sequence[Block], at: int) -> bytes:
    """The end of a file: the index at offset ``at``, and the trailer that says where it is."""
    index, _ = encode_block(INDEX, len(blocks), (0, 0), {"blocks": [list(each) for each in blocks]})
    return index + _TRAILER_HEAD + at.to_bytes(8, "little")


def pack_column(column: Column) -> tuple[int, int, bytes]:
    """(base, width, data): each value is base plus an unsigned integer of so many bytes."""
    values = column.view("<i8") if column.dtype == np.uint64 else column.astype("<i8")
    if not len(values):
        return 0, 0, b""
    base = int(values.min())
    deltas = (values - base).view("<u8")
    top = int(deltas.max())
    width = next(width for width in (0, 1, 2, 4, 8) if top < 1 << 8 * width)
    return base, width, deltas.astype(f"<u{width}").tobytes() if width else b""


def unpack_column(packed: PackedColumn, rows: int, dtype: str) -> Column:
    """The column again."""
    column = np.empty(rows, dtype=dtype)
    unpack(column, packed, -1 << 63, 1 << 65, "column")
    return column


def read_layout(data: Buffer, source: str) -> Layout:
    """Find every block that is whole.

    Raises:
        BadInputError: no trace of ours, or of another version.
    """
    unpacker: Any = _msgpack.Unpacker(max_buffer_size=0)
    unpacker.feed(data[:HEADER_MAX])
    try:
        unpacker.skip()
    except (_msgpack.exceptions.UnpackException, ValueError):
        raise BadInputError(f"{source}: offset 0: truncated in the header of a trace") from None
    first: int = unpacker.tell()
    found: _First = decoded(_First, data[:first], f"{source}: offset 0: header")
    if found.format != TRACE_FORMAT:
        raise BadInputError(f"{source}: offset 0: expected a trace of shatterproof")
    if found.version != TRACE_VERSION:
        raise BadInputError(
            f"{source}: trace version {found.version!r:.20}, expected {TRACE_VERSION}"
        )
    header = checked_header(data[:first], source)
    blocks = _by_index(data, first, source)
    if blocks is not None:
        return Layout(header, _credible(blocks, data, source), "")
    whole, end = _by_hopping(data, first)
    rest = f"{len(data) - end} bytes from offset {end} on are no whole block"
    missing = f"the index that belongs at offset {end} is missing"
    cut = f"{source}: cut off: {missing if end == len(data) else rest}"
    return Layout(header, _credible(whole, data, source), cut)


def _credible(blocks: list[Block], data: Buffer, source: str) -> list[Block]:
    """The blocks, if they are of tables that there are and a file of this size may say so much.

    A constant column takes no bytes, but no table is constant in all of its columns for long.

    Raises:
        BadInputError: they are not.
    """
    left = len(data)
    for block in blocks:
        if block.table not in {*RECORDED, NAMES, REQUESTS}:
            raise BadInputError(f"{source}: offset {block.start}: a block of an unknown table")
        if block.rows > left:
            raise BadInputError(
                f"{place_of(block, source)}: {block.rows} rows, expected at most a row a byte of "
                "the file"
            )
        left -= block.rows
    return blocks


def _by_index(data: Buffer, first: int, source: str) -> list[Block] | None:
    """The blocks that the index names, if the file has a trailer and an index that is whole.

    Raises:
        BadInputError: it names what is not between the header and itself, one after the other.
    """
    tail = bytes(data[-TRAILER_BYTES:])
    if not tail.startswith(_TRAILER_HEAD):
        return None
    at = int.from_bytes(tail[len(_TRAILER_HEAD) :], "little")
    index = _block_at(data, at)
    if index is None or index.table != INDEX or not _whole(data, index):
        return None
    where = f"{source}: offset {index.start}: index block"
    places: Places = decoded(Places, _bytes(data, index), where)
    blocks = [Block(*each) for each in places.blocks]
    for block in blocks:
        if not first <= block.start <= block.start + block.size <= at:
            raise BadInputError(
                f"{where}: a {block.size}-byte block at {block.start}, expected it between "
                f"{first} and {at}"
            )
        first = block.start + block.size
    return blocks


def _by_hopping(data: Buffer, at: int) -> tuple[list[Block], int]:
    """Blocks from an offset on as far as they are whole, and where that ends."""
    blocks: list[Block] = []
    while (block := _block_at(data, at)) is not None and _whole(data, block):
        if block.table != INDEX:
            blocks.append(block)
        at = block.start + block.size
    return blocks, at


def _block_at(data: Buffer, at: int) -> Block | None:
    """The block whose first byte is at an offset, if its fields can be read there."""
    unpacker: Any = _msgpack.Unpacker(max_array_len=_HEAD_MAX, max_map_len=_HEAD_MAX)
    unpacker.feed(data[at : at + _HEAD_MAX])
    try:
        if unpacker.read_array_header() != 6:
            return None
        table, *numbers = [unpacker.unpack() for _ in range(5)]
    except (_msgpack.exceptions.UnpackException, ValueError, TypeError):
        return None
    rows, first, last, crc = cast("list[int]", numbers)
    if type(table) is not str or any(type(each) is not int for each in numbers) or rows < 0:
        return None
    place = at + int(unpacker.tell())
    mark: int = data[place] if place < len(data) else 0
    width = BIN_WIDTHS.get(mark)
    if width is None:
        return None
    size = int.from_bytes(data[place + 1 : place + 1 + width], "big")
    return Block(table, rows, first, last, crc, place + 1 + width, size)


def _bytes(data: Buffer, block: Block) -> Buffer:
    return data[block.start : block.start + block.size]


def _whole(data: Buffer, block: Block) -> bool:
    body = _bytes(data, block)
    return len(body) == block.size and zlib.crc32(body) == block.crc


def place_of(block: Block, source: str) -> str:
    """How a line begins about what is wrong with a block."""
    return f"{source}: offset {block.start}: {block.table} block"


def read_body(data: Buffer, block: Block, source: str, kind: type[Any]) -> Any:
    """What a block holds, which is of this kind.

    Raises:
        BadInputError: its bytes do not have its checksum, or are something else.
    """
    if not _whole(data, block):
        raise BadInputError(f"{place_of(block, source)} is damaged")
    return decoded(kind, _bytes(data, block), place_of(block, source))


def read_names(data: Buffer, blocks: Sequence[Block], source: str) -> list[str]:
    """All addresses, by number.

    Raises:
        BadInputError: as ``read_body``; or they are not as many as a block says, or no names.
    """
    names: list[str] = []
    for block in blocks:
        if block.table == NAMES:
            where = place_of(block, source)
            found: Names = read_body(data, block, source, Names)
            checked_count(len(found.names), block, source)
            checked_names(found.names, NAMES, where)
            names += found.names
    return names


def checked_count(nr: int, block: Block, source: str) -> None:
    """See that a block has as many rows as it says.

    Raises:
        BadInputError: it has more or fewer.
    """
    if nr != block.rows:
        raise BadInputError(f"{place_of(block, source)}: {nr} rows, expected {block.rows}")


def read_requests(
    data: Buffer, blocks: Sequence[Block], limits: Limits, source: str
) -> dict[int, bytes]:
    """What the client sent: encoded envelopes by message id.

    Raises:
        BadInputError: as ``read_body``; or ids that no message can have.
    """
    requests: dict[int, bytes] = {}
    for block in blocks:
        if block.table == REQUESTS:
            found: Requests = read_body(data, block, source, Requests)
            checked_count(len(found.data), block, source)
            ids = np.empty(block.rows, dtype="<u8")
            where = f"{place_of(block, source)}: column `id`"
            unpack(ids, found.id, *bounds("messages", "id", limits), where)
            requests.update(zip(ids.tolist(), found.data, strict=True))
    return requests


_ZEROS: Final[PackedColumn] = (0, 0, memoryview(b""))
"""A column that a file is without."""


def frame_of(
    data: Buffer, blocks: Sequence[Block], table: str, limits: Limits, source: str
) -> Frame:
    """A table whose blocks are read when one of its columns is first asked for.

    Asking raises BadInputError as ``read_body`` does, and for values that the column cannot have.
    """
    mine = [block for block in blocks if block.table == table]
    rows = sum(block.rows for block in mine)
    bodies: list[dict[str, PackedColumn]] = []

    def load(name: str) -> Column:
        if not bodies:
            bodies.extend(_columns(data, block, source) for block in mine)
        column = np.empty(rows, dtype=TABLES[table][name])
        low, high = bounds(table, name, limits)
        at = 0
        for body, block in zip(bodies, mine, strict=True):
            part = column[at : at + block.rows]
            where = f"{place_of(block, source)}: column `{name}`"
            unpack(part, body.get(name, _ZEROS), low, high, where)
            if name == "event":
                checked_events(part, where)
            at += block.rows
        return column

    return Frame(table, rows, load)


def _columns(data: Buffer, block: Block, source: str) -> dict[str, PackedColumn]:
    body: dict[str, PackedColumn] = read_body(data, block, source, dict[str, PackedColumn])
    if body.keys() | LATER != TABLES[block.table].keys() | LATER:
        raise BadInputError(
            f"{place_of(block, source)}: {len(body)} columns, expected those of its table"
        )
    return body
