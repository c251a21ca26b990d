"""Protocol buffers by hand: just what Perfetto's TracePacket needs (protos/perfetto/trace)."""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Final

FIXED64: Final = struct.Struct("<Q").pack
VARINT: Final = 0
WIDE: Final = 1
BYTES: Final = 2


@lru_cache(maxsize=1 << 16)
def varint(value: int) -> bytes:
    """An unsigned integer, seven bits a byte; a negative one as 64 bits of two's complement."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


@lru_cache(maxsize=256)
def key(field: int, kind: int) -> bytes:
    """The tag before a field's value."""
    return varint(field << 3 | kind)


def number(field: int, value: int) -> bytes:
    """An integer field."""
    return key(field, VARINT) + varint(value)


def fixed(field: int, value: int) -> bytes:
    """A fixed64 field."""
    return key(field, WIDE) + FIXED64(value)


def block(field: int, value: bytes) -> bytes:
    """A field of bytes, or a message in a message."""
    return key(field, BYTES) + varint(len(value)) + value


def text(field: int, value: str) -> bytes:
    """A string field."""
    return block(field, value.encode())


def real(field: int, value: float) -> bytes:
    """A double field."""
    return key(field, WIDE) + struct.pack("<d", value)
