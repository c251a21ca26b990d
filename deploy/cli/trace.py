"""The message trace: an append-only msgpack stream, written when a run ends.

One header map, then records ``[when, shard, kind, payload]``. Kind 0 is a delivered envelope
(payload as on the wire), kind 1 a p2m update (``set_p2m_entry``). ``when`` is nanoseconds since
the epoch on Ray, and the number of the record on the local runtime, where no time exists.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import msgpack
import msgspec

from deploy.cli.files import whole_file
from protocols.codec import encode_envelope
from protocols.control import SetP2mEntryEvent
from protocols.envelope import Envelope
from protocols.frames import FrameArray, pack
from protocols.message import PROTOCOL_VERSION

_msgpack: Any = msgpack
"""The package has no annotations."""

TRACE_FORMAT: Final = "shatterproof-trace"
TRACE_VERSION: Final = 1

Record = tuple[int, int, bytes]
"""(when, shard, encoded envelope or event)."""


class MemoryRecorder:
    """Keeps what the local runtime delivers, encoded, in order."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def delivered(self, envelope: Envelope) -> None:
        """An envelope reaches its destination."""
        self.records.append((len(self.records), 0, encode_envelope(envelope)))

    def p2m_update(
        self, domid: int, order: int, p2mt: int, gfns: FrameArray, mfns: FrameArray
    ) -> None:
        """Chunks that Xen would trace as TRC_MEM_SET_P2M_ENTRY."""
        event = SetP2mEntryEvent(domid, order, p2mt, pack(gfns), pack(mfns))
        self.records.append((len(self.records), 0, msgspec.msgpack.encode(event)))


def write_trace(path: Path, records: Iterable[Record], *, runtime: str, seed: int | None) -> None:
    """The whole trace to a file."""
    packer = _msgpack.Packer()
    header = {
        "format": TRACE_FORMAT,
        "version": TRACE_VERSION,
        "protocol": PROTOCOL_VERSION,
        "runtime": runtime,
        "seed": seed,
        "clock": "ns" if runtime == "ray" else "record",
    }
    event_head = msgspec.msgpack.encode("set_p2m_entry")
    with whole_file(path, "--trace") as file:
        file.write(packer.pack(header))
        for when, shard, payload in records:
            kind = 1 if payload[1 : 1 + len(event_head)] == event_head else 0
            file.write(packer.pack_array_header(4))
            file.write(packer.pack(when) + packer.pack(shard) + packer.pack(kind))
            file.write(payload)
