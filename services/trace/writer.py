"""A trace file in the making: tape parts in, bytes to append out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np

from protocols.codec import decode_envelope
from protocols.message import PROTOCOL_VERSION
from protocols.registry import MESSAGE_KINDS
from protocols.trace import ID_SHIFT, TABLES
from services.trace.blocks import (
    NAMES,
    REQUESTS,
    Block,
    encode_block,
    encode_frame,
    encode_header,
    encode_index,
    pack_column,
)
from services.trace.describe import KINDS
from services.trace.frame import Frame
from services.trace.join import Joiner

BLOCK_ROWS: Final = 1 << 16
"""Rows that make a block worth writing."""
STEP: Final = {"unit": "step", "ticks_per_s": 0, "epoch_ns": 0}
"""The clock of a run in which no time passes."""


def ns_clock(epoch_ns: int) -> dict[str, Any]:
    """The clock of a run in real time; ``epoch_ns``: when the trace was begun."""
    return {"unit": "ns", "ticks_per_s": 1_000_000_000, "epoch_ns": epoch_ns}


def describe_run(
    *,
    runtime: str,
    seed: int | None,
    clock: Mapping[str, Any],
    host: Any,
    machine: Any,
    shards: Sequence[tuple[str, int]],
) -> dict[str, Any]:
    """The header's map: who ran, by which clock, and what every number below means.

    ``host`` is the modelled host (a msgspec Struct), ``machine`` the one that it ran on; ``shards``
    say which part of which service each tape is of.
    """
    return {
        "protocol": PROTOCOL_VERSION,
        "runtime": runtime,
        "seed": seed,
        "clock": dict(clock),
        "host": msgspec.to_builtins(host),
        "machine": machine,
        "shards": [list(each) for each in shards],
        "kinds": list(KINDS),
        "definitions": {tag: list(MESSAGE_KINDS[tag].__struct_fields__) for tag in KINDS},
        "tables": {name: list(map(list, columns.items())) for name, columns in TABLES.items()},
    }


class TraceEncoder:
    """Collects rows until they make a block; ``take`` and ``finish`` give what is to be written."""

    def __init__(self, header: Mapping[str, Any]) -> None:
        in_one = header["runtime"] != "ray"
        self._joiner = Joiner([service for service, _ in header["shards"]] if in_one else ())
        self._nr_names = 0
        self._rows: dict[str, list[Frame]] = {"messages": [], "updates": [], "events": []}
        self._out: list[bytes] = []
        self._index: list[Block] = []
        self._at = 0
        self._append(encode_header(header))

    def add(self, tape: int, part: bytes, offset: int = 0) -> None:
        """The next part of a shard's tape; ``offset`` is added to its times."""
        updates, events = self._joiner.add(tape, part, offset)
        self._rows["updates"].append(updates)
        self._rows["events"].append(events)

    def add_requests(self, envelopes: Sequence[bytes]) -> None:
        """What the client has sent, whole and encoded: a replay starts from that."""
        if envelopes:
            sent = [decode_envelope(data) for data in envelopes]
            numbers = [self._joiner.number(each.src) << ID_SHIFT | each.msg_id for each in sent]
            ids = np.array(numbers, dtype="<u8")
            body = {"id": pack_column(ids), "data": list(envelopes)}
            self._names()
            self._block(encode_block(REQUESTS, len(envelopes), (0, 0), body))

    def take(self) -> bytes:
        """What can be appended to the file now: whole blocks only."""
        self._rows["messages"].append(self._joiner.ready())
        for table in self._rows:
            if sum(frame.rows for frame in self._rows[table]) >= BLOCK_ROWS:
                self._flush(table)
        return self._drain()

    def finish(self) -> bytes:
        """The rest, with the rows that never became complete, and the index."""
        self._rows["messages"].append(self._joiner.ready(last=True))
        for table in self._rows:
            self._flush(table)
        self._out.append(encode_index(self._index, self._at))
        return b"".join(self._out)

    def _names(self) -> None:
        """Names go before what needs them."""
        names = self._joiner.names[self._nr_names :]
        if names:
            self._nr_names += len(names)
            self._block(encode_block(NAMES, len(names), (0, 0), {NAMES: names}))

    def _flush(self, table: str) -> None:
        self._names()
        parts = [frame for frame in self._rows[table] if frame.rows]
        self._rows[table] = []
        if not parts:
            return
        whole = Frame.of(
            table, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        )
        if table == "messages":
            whole = whole.take(np.argsort(whole["started"], kind="stable"))
        for first in range(0, whole.rows, BLOCK_ROWS):
            part = whole.take(np.arange(first, min(first + BLOCK_ROWS, whole.rows)))
            self._block(encode_frame(part))

    def _block(self, encoded: tuple[bytes, Block]) -> None:
        data, block = encoded
        self._index.append(block._replace(start=block.start + self._at))
        self._append(data)

    def _append(self, data: bytes) -> None:
        self._at += len(data)
        self._out.append(data)

    def _drain(self) -> bytes:
        out, self._out = self._out, []
        return b"".join(out)
