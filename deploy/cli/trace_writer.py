"""The process that writes a trace: parts of tapes out of a log, blocks of the file on stdout.

Making rows takes longer than recording did. Where the machine has a core to spare it is done beside
the run, elsewhere when the run is over; either way this process has the lowest priority. Stdin says
that the log has grown. When it ends, be it because whoever recorded died, what is in the log by
then becomes a whole file.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO, Final

import msgspec

from deploy.cli.files import reason_of
from services.trace.writer import TraceEncoder

LENGTH_BYTES: Final = 8
NICEST: Final = 19
AT_ONCE: Final = "at-once"
IN_THE_END: Final = "in-the-end"
BELL: Final = b"."
"""On stdin: there is more in the log."""


class Begin(msgspec.Struct, frozen=True, array_like=True, tag="begin"):
    """Comes first: the header's map."""

    header: dict[str, Any]


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


Order = Begin | Add | Requests | Flush
_decoder: Final = msgspec.msgpack.Decoder(Order)


def encode_order(order: Order) -> bytes:
    """An order as it travels: its length, and msgpack."""
    data = msgspec.msgpack.encode(order)
    return len(data).to_bytes(LENGTH_BYTES, "little") + data


def _orders(log: int, bell: BinaryIO) -> Iterator[Order]:
    """Whole orders of a log until nobody rings any more; its own place in it is the writer's."""
    place, rung = 0, True
    while True:
        length = os.pread(log, LENGTH_BYTES, place)
        size = int.from_bytes(length, "little")
        data = os.pread(log, size, place + LENGTH_BYTES)
        if len(length) == LENGTH_BYTES and len(data) == size:
            place += LENGTH_BYTES + size
            yield _decoder.decode(data)
        elif rung:
            rung = bool(bell.read(1))
        else:
            return


def write(log: int, bell: BinaryIO, file: BinaryIO, *, at_once: bool) -> None:
    """Carry out the orders in the file behind a descriptor until there are no more."""
    while not at_once and bell.read(1):
        pass
    orders = _orders(log, bell)
    begin = next(orders, None)
    if not isinstance(begin, Begin):
        return
    encoder = TraceEncoder(begin.header)
    for order in orders:
        match order:
            case Add():
                encoder.add(order.tape, order.part, order.offset)
            case Requests():
                encoder.add_requests(order.envelopes)
            case _:
                file.write(encoder.take())
                file.flush()
    file.write(encoder.finish())
    file.flush()


def main(log: str, when: str) -> int:
    """``log``: its descriptor; ``when``: AT_ONCE or IN_THE_END.

    Exit status 1 and the reason on stderr if the file cannot be written.
    """
    # Whoever interrupts the run still wants its trace.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(NICEST)
    try:
        write(int(log), sys.stdin.buffer, sys.stdout.buffer, at_once=when == AT_ONCE)
    except OSError as error:
        sys.stderr.write(reason_of(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
