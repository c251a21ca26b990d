"""The process that writes a trace: parts of tapes on stdin, blocks of the file on stdout.

Making rows takes longer than recording did. Where the machine has a core to spare it is done beside
the run; elsewhere what comes is put aside, in memory and then in a temporary file, until the run is
over. Either way this process has the lowest priority. It ends when its input does, also because
whoever recorded died, and what had come by then is a whole file.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from tempfile import SpooledTemporaryFile
from typing import Any, BinaryIO, Final, Protocol

import msgspec

from services.trace.writer import TraceEncoder

LENGTH_BYTES: Final = 8
NICEST: Final = 19
ASIDE_BYTES: Final = 64 << 20
"""What is put aside goes to disk beyond so many bytes."""


class Begin(msgspec.Struct, frozen=True, array_like=True, tag="begin"):
    """Comes first: the header's map, and whether all else waits for the end, and where on disk."""

    header: dict[str, Any]
    aside: str | None


class Add(msgspec.Struct, frozen=True, array_like=True, tag="add"):
    """See ``TraceEncoder.add``."""

    tape: int
    part: bytes
    offset: int


class Requests(msgspec.Struct, frozen=True, array_like=True, tag="requests"):
    """See ``TraceEncoder.add_requests``."""

    envelopes: list[bytes]


class Flush(msgspec.Struct, frozen=True, array_like=True, tag="flush"):
    """Write what is complete."""


class Reader(Protocol):
    """What orders are read from."""

    def read(self, size: int, /) -> bytes:
        """At most so many bytes."""
        ...


Order = Begin | Add | Requests | Flush
_decoder: Final = msgspec.msgpack.Decoder(Order)


def encode_order(order: Order) -> bytes:
    """An order as it travels: its length, and msgpack."""
    data = msgspec.msgpack.encode(order)
    return len(data).to_bytes(LENGTH_BYTES, "little") + data


def _orders(source: Reader) -> Iterator[Order]:
    """Whole orders until the input ends."""
    while len(length := source.read(LENGTH_BYTES)) == LENGTH_BYTES:
        size = int.from_bytes(length, "little")
        data = source.read(size)
        if len(data) < size:
            return
        yield _decoder.decode(data)


def write(source: BinaryIO, file: BinaryIO) -> None:
    """Carry out orders until there are no more."""
    begin = next(_orders(source), None)
    if not isinstance(begin, Begin):
        return
    encoder = TraceEncoder(begin.header)
    if begin.aside is None:
        _carry_out(source, encoder, file)
    else:
        with SpooledTemporaryFile(ASIDE_BYTES, dir=begin.aside) as spool:
            shutil.copyfileobj(source, spool)
            spool.seek(0)
            _carry_out(spool, encoder, file)
    file.write(encoder.finish())
    file.flush()


def _carry_out(source: Reader, encoder: TraceEncoder, file: BinaryIO) -> None:
    for order in _orders(source):
        match order:
            case Add():
                encoder.add(order.tape, order.part, order.offset)
            case Requests():
                encoder.add_requests(order.envelopes)
            case _:
                file.write(encoder.take())
                file.flush()


def main() -> int:
    """Exit status 1 and the reason on stderr if the file cannot be written."""
    # Whoever interrupts the run still wants its trace.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(NICEST)
    try:
        write(sys.stdin.buffer, sys.stdout.buffer)
    except OSError as error:
        sys.stderr.write(error.strerror or type(error).__name__)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
