"""The trace file as bytes: a stream of msgpack objects in checked blocks (docs/trace-format.md).

One header map, then blocks ``[table, rows, first, last, crc32, body]``. The body is a msgpack map
of packed columns, the checksum that of the body. An index and a trailer of fixed size end the file,
so that a reader finds every block without reading any. A file without them was cut off: its blocks
are found one after the other, and the last whole one is its end.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias, cast

import msgpack
import numpy as np

from protocols.errno import BadInputError
from protocols.trace import TABLES
from services.trace.frame import Column, Frame

_msgpack: Any = msgpack
"""The package has no annotations."""
Buffer: TypeAlias = memoryview

TRACE_FORMAT: Final = "shatterproof-trace"
TRACE_VERSION: Final = 2
TRAILER_MAGIC: Final = b"shpindex"
_TRAILER_HEAD: Final = b"\xc4\x10" + TRAILER_MAGIC
TRAILER_BYTES: Final = len(_TRAILER_HEAD) + 8
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


def unpack_column(packed: Sequence[Any], rows: int, dtype: str) -> Column:
    """The column again."""
    column = np.empty(rows, dtype=dtype)
    _unpack_into(column, packed)
    return column


def _unpack_into(column: Column, packed: Sequence[Any]) -> None:
    """Fill a column; sums are modulo the width of its type, which all values fit."""
    base, width, data = packed
    bits = 8 * column.dtype.itemsize
    start = np.array(base % (1 << bits), dtype=f"<u{column.dtype.itemsize}")
    unsigned = column.view(start.dtype)
    if width:
        deltas = np.frombuffer(data, dtype=f"<u{width}", count=len(column))
        np.add(deltas, start, out=unsigned, dtype=start.dtype, casting="unsafe")
    else:
        unsigned[:] = start


def read_layout(data: Buffer, source: str) -> Layout:
    """Find every block that is whole.

    Raises:
        BadInputError: no trace of ours, or of another version.
    """
    unpacker: Any = _msgpack.Unpacker(max_buffer_size=0)
    unpacker.feed(data[: 1 << 20])
    try:
        found: Any = unpacker.unpack()
    except (_msgpack.exceptions.UnpackException, ValueError):
        raise BadInputError(f"{source}: offset 0: truncated in the header of a trace") from None
    header = cast("dict[str, Any]", found if isinstance(found, dict) else {})
    if header.get("format") != TRACE_FORMAT:
        raise BadInputError(f"{source}: offset 0: expected a trace of shatterproof")
    if header["version"] != TRACE_VERSION:
        raise BadInputError(
            f"{source}: trace version {header['version']}, expected {TRACE_VERSION}"
        )
    first: int = unpacker.tell()
    blocks = _by_index(data)
    if blocks is not None:
        return Layout(header, blocks, "")
    whole, end = _by_hopping(data, first)
    cut = f"{source}: cut off: {len(data) - end} bytes from offset {end} on are no whole block"
    return Layout(header, whole, cut)


def _by_index(data: Buffer) -> list[Block] | None:
    """The blocks that the index names, if the file has a trailer and an index that is whole."""
    tail = bytes(data[-TRAILER_BYTES:])
    if not tail.startswith(_TRAILER_HEAD):
        return None
    at = int.from_bytes(tail[len(_TRAILER_HEAD) :], "little")
    block = _block_at(data, at)
    if block is None or block.table != INDEX or not _whole(data, block):
        return None
    return [Block(*each) for each in _body(data, block)["blocks"]]


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
    unpacker: Any = _msgpack.Unpacker()
    unpacker.feed(data[at : at + _HEAD_MAX])
    try:
        if unpacker.read_array_header() != 6:
            return None
        table, rows, first, last, crc = (unpacker.unpack() for _ in range(5))
    except (_msgpack.exceptions.UnpackException, ValueError):
        return None
    place = at + int(unpacker.tell())
    mark: int = data[place] if place < len(data) else 0
    width = BIN_WIDTHS.get(mark)
    if width is None or not isinstance(table, str):
        return None
    size = int.from_bytes(data[place + 1 : place + 1 + width], "big")
    return Block(table, rows, first, last, crc, place + 1 + width, size)


def _whole(data: Buffer, block: Block) -> bool:
    body = data[block.start : block.start + block.size]
    return len(body) == block.size and zlib.crc32(body) == block.crc


def _body(data: Buffer, block: Block) -> dict[str, Any]:
    return cast("dict[str, Any]", _msgpack.unpackb(data[block.start : block.start + block.size]))


def read_body(data: Buffer, block: Block, source: str) -> dict[str, Any]:
    """What a block holds.

    Raises:
        BadInputError: its bytes do not have its checksum.
    """
    if not _whole(data, block):
        raise BadInputError(f"{source}: offset {block.start}: {block.table} block is damaged")
    return _body(data, block)


def frame_of(data: Buffer, blocks: Sequence[Block], table: str, source: str) -> Frame:
    """A table whose blocks are read when one of its columns is first asked for."""
    mine = [block for block in blocks if block.table == table]
    bodies: list[dict[str, Any]] = []

    def load(name: str) -> Column:
        if not bodies:
            bodies.extend(read_body(data, block, source) for block in mine)
        dtype = TABLES[table][name]
        column = np.empty(sum(block.rows for block in mine), dtype=dtype)
        at = 0
        for body, block in zip(bodies, mine, strict=True):
            _unpack_into(column[at : at + block.rows], body[name])
            at += block.rows
        return column

    return Frame(table, sum(block.rows for block in mine), cast("Callable[[str], Column]", load))
