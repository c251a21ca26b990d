"""What a message is: typed, frozen, positional on the wire, tagged by Xen's name for the operation.

A ``Request[R]`` expects exactly one reply of type R; everything else is a reply or a notice. Value
ranges are part of the types, so a decoded message fits its schema or was rejected with the field's
path. Frame numbers travel as packed little-endian u64 (``frames.pack``), never as lists.
"""

from __future__ import annotations

from typing import Annotated, Generic, TypeVar

import msgspec

from protocols.frames import DOMID_FIRST_RESERVED, EXTENTS_MAX, FRAME_MAX, ORDER_LIMIT

R_co = TypeVar("R_co", covariant=True)

PROTOCOL_VERSION = 1
"""Bumped whenever a message changes shape; a batch of another version is refused whole."""

Domid = Annotated[int, msgspec.Meta(ge=0, lt=DOMID_FIRST_RESERVED)]
Frame = Annotated[int, msgspec.Meta(ge=0, le=FRAME_MAX)]
Order = Annotated[int, msgspec.Meta(ge=0, le=ORDER_LIMIT)]
P2mTypeNumber = Annotated[int, msgspec.Meta(ge=0, le=15)]
Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 62))]
ReturnCode = Annotated[int, msgspec.Meta(ge=-4095, le=0)]
"""0 or a negative errno, as a hypercall returns it."""
Frames = Annotated[bytes, msgspec.Meta(max_length=8 * EXTENTS_MAX)]
"""Packed little-endian u64 frame numbers."""


class Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Base of everything that travels."""


class Request(Message, Generic[R_co], frozen=True):
    """A message that promises a reply of type R_co."""


def check_frames(message: Message, *names: str) -> None:
    """Reject packed frames whose length is no whole number of u64 (called by ``__post_init__``)."""
    for name in names:
        size = len(getattr(message, name))
        if size & 7:
            msg = f"field `{name}`: {size} bytes are not a whole number of 8-byte frame numbers"
            raise ValueError(msg)


def check_pairs(message: Message, first: str, second: str) -> None:
    """Reject two packed arrays that must pair up and do not."""
    left, right = len(getattr(message, first)), len(getattr(message, second))
    if left == right and not left & 7:
        return
    check_frames(message, first, second)
    msg = f"field `{second}`: {right // 8} frames beside {left // 8} in `{first}`"
    raise ValueError(msg)
