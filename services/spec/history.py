"""What clients asked and were told, as events that a checker or a person can read.

The open format is one JSON object a line, one line an operation, UTF-8::

    {"client": 0, "call": 3, "return": 17, "op": "get", "domid": 1, "gfn": 513, "nr": 2,
     "order": 0, "target": 0, "vcpu": 0,
     "result": {"nr_done": 0, "rc": 0, "mfns": ["0x100201", null], "types": ["ram_rw", "mmio_dm"]}}

``call`` and ``return`` are positions in one order of all events of the run: of two operations the
one that returned at a smaller position than that at which the other was called came first. A
client calls its next operation when the one before has returned, at the same position at the
earliest. ``return`` and ``result`` are null if the operation never returned.

``op`` and the numbers that follow it are those of ``protocols.script.Operation``; a number that is
left out is 0 (``nr``: 1). ``rc`` is 0 or a negative errno, ``nr_done`` counts extents. ``mfns`` has
a hexadecimal string a gfn, or null for INVALID_MFN; ``types`` has names of ``P2mType`` in small
letters, or a plain number for a type that has no name. Unknown fields are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

import msgspec

from protocols.errno import BadInputError
from protocols.frames import INVALID_FRAME, pack, unpack
from protocols.message import Count, Domid, Frame, Order, ReturnCode
from protocols.p2m_types import P2mType
from protocols.script import Operation, OperationKind, OperationResult

_NAMES: Final = {int(p2mt): p2mt.name.lower() for p2mt in P2mType}
_NUMBERS: Final = {name: number for number, name in _NAMES.items()}


@dataclass(frozen=True, slots=True)
class Event:
    """One operation of a client, with its place in the order of calls and returns.

    ``call`` and ``ret`` are positions in one order of all events. ``ret`` and ``result`` are None
    for an operation that never returned.
    """

    client: int
    call: int
    ret: int | None
    op: Operation
    result: OperationResult | None


_Position = Annotated[int, msgspec.Meta(ge=0)]
_Hex = Annotated[str, msgspec.Meta(pattern="^0x[0-9a-f]{1,16}$")]
_Byte = Annotated[int, msgspec.Meta(ge=0, le=255)]


class _Result(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    nr_done: Count = 0
    rc: ReturnCode = 0
    mfns: list[_Hex | None] = msgspec.field(default_factory=list[_Hex | None])
    types: list[str | _Byte] = msgspec.field(default_factory=list[str | _Byte])


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"ret": "return"}):
    client: _Position
    call: _Position
    ret: _Position | None
    op: OperationKind
    domid: Domid
    gfn: Frame = 0
    nr: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 1
    order: Order = 0
    target: Frame = 0
    vcpu: Annotated[int, msgspec.Meta(ge=0, le=511)] = 0
    result: _Result | None = None


_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(_Line)


def to_json_line(event: Event) -> str:
    """The event as a line, without its end."""
    op, result = event.op, event.result
    said = None
    if result is not None:
        frames: list[int] = unpack(result.mfns).tolist()
        mfns = [None if mfn == INVALID_FRAME else hex(mfn) for mfn in frames]
        types = [_NAMES.get(number, number) for number in result.types]
        said = _Result(result.nr_done, result.rc, mfns, types)
    line = _Line(
        event.client,
        event.call,
        event.ret,
        op.kind,
        op.domid,
        op.gfn,
        op.nr,
        op.order,
        op.target,
        op.vcpu,
        said,
    )
    return _encoder.encode(line).decode()


def from_json_line(text: str) -> Event:
    """The event of a line.

    Raises:
        BadInputError: no JSON, or a field that does not fit; names the field.
    """
    try:
        line = _decoder.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        raise BadInputError(f"history: {error}") from None
    if line.ret is not None and line.ret < line.call:
        raise BadInputError(f"history: `return`: {line.ret} is before `call` {line.call}")
    if (line.ret is None) != (line.result is None):
        raise BadInputError("history: `result`: expected one if and only if `return` is a number")
    op = Operation(line.op, line.domid, line.gfn, line.nr, line.order, line.target, line.vcpu)
    result = None if line.result is None else _result(line.result)
    return Event(line.client, line.call, line.ret, op, result)


def _result(said: _Result) -> OperationResult:
    mfns = [INVALID_FRAME if mfn is None else int(mfn, 16) for mfn in said.mfns]
    types = bytearray()
    for at, name in enumerate(said.types):
        number = _NUMBERS.get(name) if isinstance(name, str) else name
        if number is None:
            raise BadInputError(f"history: `result.types[{at}]`: no p2m type {name!r}")
        types.append(number)
    return OperationResult(said.nr_done, said.rc, pack(mfns) if mfns else b"", bytes(types))
