"""Archives of traces, unpacked as far as they go: one that was cut off still says a lot."""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from protocols.errno import BadInputError

GZIP_BITS: Final = 31
"""zlib's window bits for a gzip header and trailer."""


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

    def decompress(self, data: bytes, /) -> bytes:
        """As much as these bytes give."""
        ...


KINDS: Final[dict[bytes, Callable[[], Decompressor]]] = {
    b"\xfd7zXZ\x00": lzma.LZMADecompressor,
    b"\x1f\x8b": lambda: zlib.decompressobj(GZIP_BITS),
}
"""By the first bytes of each stream; a file may be several, one behind the other."""


def kind_of(start: bytes) -> bytes | None:
    """The mark of the archive that begins with these bytes, None if it is none."""
    return next((mark for mark in KINDS if start.startswith(mark)), None)


def unpack(path: Path, mark: bytes) -> tuple[bytes, str]:
    """The bytes in an archive, and why they are not all, if they are not.

    Raises:
        BadInputError: it is damaged, or ends before its first byte is unpacked.
    """
    packed = rest = path.read_bytes()
    parts: list[bytes] = []
    try:
        while rest.startswith(mark):
            stream = KINDS[mark]()
            parts.append(stream.decompress(rest))
            if not stream.eof:
                break
            # Streams may be padded with zeros.
            rest = stream.unused_data.lstrip(b"\0")
        else:
            return b"".join(parts), ""
    except (lzma.LZMAError, zlib.error) as error:
        raise BadInputError(f"{path}: damaged archive: {error}") from None
    data = b"".join(parts)
    ends = f"{path}: the archive ends early, after {len(packed):,} bytes"
    if not data:
        raise BadInputError(f"{ends}: nothing could be unpacked")
    return data, f"{ends}: the first {len(data):,} bytes in it could be unpacked"
