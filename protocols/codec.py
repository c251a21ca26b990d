"""Bytes to envelopes and back: the only module below the traces that knows the wire format.

A batch is a msgpack array ``[version, sender, credits, [envelope, ...]]``. Decoding checks the
schema of every field before anything is delivered; an error names the message and the field.
"""

from __future__ import annotations

import re
from typing import Any, Final, cast

import msgspec

from protocols.envelope import Envelope
from protocols.errno import ProtocolError
from protocols.message import PROTOCOL_VERSION
from protocols.registry import MESSAGE_KINDS


class Batch(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Envelopes for one receiver, from the shard ``sender`` (-1: the client).

    ``credits`` acknowledges batches received from the receiver.
    """

    version: int
    sender: int
    credits: int
    envelopes: list[Envelope]


_encoder: Final = msgspec.msgpack.Encoder()
_batch_decoder: Final = msgspec.msgpack.Decoder(Batch)
_envelope_decoder: Final = msgspec.msgpack.Decoder(Envelope)
_envelopes_decoder: Final = msgspec.msgpack.Decoder(list[Envelope])
_UNFIT: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""Whatever the decoder says about bytes that are not what they should be."""
_ENVELOPE_FIELDS: Final = ("src", "dst", "msg_id", "in_reply_to", "body")


def encode_batch(envelopes: list[Envelope], sender: int = -1, credits: int = 0) -> bytes:  # noqa: A002
    """The bytes of a batch."""
    return _encoder.encode(Batch(PROTOCOL_VERSION, sender, credits, envelopes))


def decode_batch(data: bytes) -> Batch:
    """The batch in ``data``.

    Raises:
        ProtocolError: bytes that are no batch of this version; names message and field.
    """
    try:
        batch = _batch_decoder.decode(data)
    except _UNFIT as error:
        raise ProtocolError(_explain(error, data, prefix=2)) from None
    if batch.version != PROTOCOL_VERSION:
        msg = f"batch version {batch.version}, expected {PROTOCOL_VERSION}"
        raise ProtocolError(msg)
    return batch


def encode_envelope(envelope: Envelope) -> bytes:
    """One envelope alone, as traces keep it."""
    return _encoder.encode(envelope)


def decode_envelope(data: bytes) -> Envelope:
    """One envelope alone.

    Raises:
        ProtocolError: as ``decode_batch``.
    """
    try:
        return _envelope_decoder.decode(data)
    except _UNFIT as error:
        raise ProtocolError(_explain(error, data, prefix=0)) from None


def encode_envelopes(envelopes: list[Envelope]) -> bytes:
    """Envelopes alone, as one msgpack array."""
    return _encoder.encode(envelopes)


def decode_envelopes(data: bytes) -> list[Envelope]:
    """The envelopes of a msgpack array.

    Raises:
        ProtocolError: as ``decode_batch``.
    """
    try:
        return _envelopes_decoder.decode(data)
    except _UNFIT as error:
        raise ProtocolError(str(error)) from None


def _explain(error: Exception, data: bytes, prefix: int) -> str:
    """Turn msgspec's path of positions into the names of message and field."""
    text = str(error)
    match = re.search(r" - at `\$((?:\[[^\]]*\])+)`", text)
    if match is None:
        return text
    try:
        raw: Any = msgspec.msgpack.decode(data)
    except _UNFIT:
        return text
    path = [int(step) if step.isdigit() else None for step in re.findall(r"\[([^\]]*)\]", text)]
    for step in path[:prefix]:
        raw = _element(raw, step)
    path = path[prefix:]
    what = text[: match.start()]
    if not path or path[0] is None or path[0] >= len(_ENVELOPE_FIELDS):
        return text
    field = _ENVELOPE_FIELDS[path[0]]
    if field != "body":
        return f"envelope field `{field}`: {what}"
    return _explain_body(raw, path[1:], what)


def _element(raw: Any, step: int | None) -> Any:
    """The element of a decoded array, or None where there is no such thing."""
    if step is None or not isinstance(raw, list):
        return None
    elements = cast("list[Any]", raw)
    return elements[step] if step < len(elements) else None


def _explain_body(raw: Any, path: list[int | None], what: str) -> str:
    tag = str(_element(_element(raw, 4), 0))
    kind = MESSAGE_KINDS.get(tag)
    if kind is None or not path or path[0] is None:
        return f"message `{tag}`: {what}"
    names = kind.__struct_fields__
    index = path[0] - 1
    field = names[index] if 0 <= index < len(names) else f"#{path[0]}"
    return f"message `{tag}`, field `{field}`: {what}"
