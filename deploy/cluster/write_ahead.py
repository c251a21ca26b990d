"""The write-ahead file of a shard: every batch it handles is here first.

A record is time, length and bytes. A process that dies in the middle of a write leaves a torn
record at the end, of which nothing was handled: it is cut off. The file is locked, so that the
next life of a shard waits until the last one is really gone.
"""

from __future__ import annotations

import fcntl
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

HEADER: Final = struct.Struct("<QI")


class WriteAhead:
    """An append-only file of (time ns, batch)."""

    def __init__(self, path: str) -> None:
        self._file = Path(path).open("a+b", buffering=0)  # noqa: SIM115 (open for a shard's life)
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def records(self) -> Iterator[tuple[int, bytes]]:
        """What earlier lives wrote, oldest first; a torn end is cut off. Read it all, once."""
        self._file.seek(0)
        whole = 0
        while True:
            header = self._file.read(HEADER.size)
            if len(header) < HEADER.size:
                break
            when, length = HEADER.unpack(header)
            data = self._file.read(length)
            if len(data) < length:
                break
            whole += HEADER.size + length
            yield when, data
        self._file.truncate(whole)

    def append(self, when: int, data: bytes) -> None:
        """One more; it is with the operating system when this returns."""
        record = HEADER.pack(when, len(data)) + data
        written = self._file.write(record)
        assert written == len(record), f"{written} of {len(record)} bytes written"

    def close(self) -> None:
        """Give the lock up, as a process that dies does."""
        self._file.close()
