"""Archives of traces, unpacked as far as they go: one that was cut off still says a lot."""

from __future__ import annotations

import lzma
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from protocols.errno import BadInputError

GZIP_BITS: Final = 31
"""zlib's window bits for a gzip header and trailer."""
XZ_MEMORY: Final = 128 << 20
"""Twice what the strongest preset of xz needs; a file may ask for 4 GiB."""
ROOM: Final = 64 << 20
"""Bytes that any archive may hold, however small it is,"""
RATIO_MAX: Final = 100
"""and so many more for each of its own. Captures of Xen are packed to a thirtieth at best."""
CHUNK: Final = 1 << 16
ZEROS: Final = re.compile(rb"\0*")


class Decompressor(Protocol):
    """What lzma's and zlib's have in common."""

    @property
    def eof(self) -> bool:
        """Whether a whole stream was unpacked."""
        ...

    @property
    def unused_data(self) -> bytes:
        """What came behind it."""
        ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        """As much as these bytes give, or the first ``max_length`` of it."""
        ...


KINDS: Final[dict[bytes, Callable[[], Decompressor]]] = {
    b"\xfd7zXZ\x00": lambda: lzma.LZMADecompressor(memlimit=XZ_MEMORY),
    b"\x1f\x8b": lambda: zlib.decompressobj(GZIP_BITS),
}
"""By the first bytes of each stream; a file may be several, one behind the other."""
OTHERS: Final = {b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"PK\x03\x04": "zip"}
"""Archives that people have as well, by their first bytes."""
MARK_MAX: Final = 6


def kind_of(start: bytes) -> bytes | None:
    """The mark of the archive that begins with these bytes, None if it is none."""
    return next((mark for mark in KINDS if start.startswith(mark)), None)


def other_kind(start: bytes) -> str:
    """What kind of archive begins with these bytes that cannot be unpacked; empty for none."""
    return next((name for mark, name in OTHERS.items() if start.startswith(mark)), "")


def unpack(path: Path, mark: bytes) -> tuple[bytes, str]:
    """The bytes in an archive, and why they are not all, if they are not.

    Raises:
        BadInputError: it is damaged, holds more than one of its size may or another archive, or
            ends before its first byte is unpacked.
    """
    packed = path.read_bytes()
    try:
        data, cut = _unpacked(packed, mark, ROOM + RATIO_MAX * len(packed))
    except (lzma.LZMAError, zlib.error) as error:
        raise BadInputError(f"{path}: damaged archive: {error}") from None
    except _BombError:
        raise BadInputError(
            f"{path}: an archive of {len(packed):,} bytes that holds more than {RATIO_MAX} times "
            f"as many and {ROOM >> 20} MiB; expected a trace, unpack it first if it is one"
        ) from None
    if cut and not data:
        raise BadInputError(f"{path}: {cut}: nothing could be unpacked")
    if kind_of(data[:MARK_MAX]) is not None or other_kind(data[:MARK_MAX]):
        raise BadInputError(f"{path}: an archive in an archive; expected a trace in it")
    return data, cut and f"{path}: {cut}: the first {len(data):,} bytes in it could be unpacked"


class _BombError(Exception):
    """More comes out than may."""


def _unpacked(packed: bytes, mark: bytes, most: int) -> tuple[bytes, str]:
    """What is in there, and why that is not all of it."""
    parts: list[bytes] = []
    at, room = 0, most
    while packed.startswith(mark, at):
        stream = KINDS[mark]()
        while not stream.eof and at < len(packed):
            chunk = packed[at : at + CHUNK]
            parts.append(stream.decompress(chunk, room + 1))
            at += len(chunk)
            room -= len(parts[-1])
            if room < 0:
                raise _BombError
        if not stream.eof:
            return b"".join(parts), f"the archive ends early, after {len(packed):,} bytes"
        # Streams may be padded with zeros.
        at = _behind_zeros(packed, at - len(stream.unused_data))
    behind = len(packed) - at
    return b"".join(parts), f"{behind:,} bytes behind the archive are none" if behind else ""


def _behind_zeros(packed: bytes, at: int) -> int:
    found = ZEROS.match(packed, at)
    return found.end() if found else at
