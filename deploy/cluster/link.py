"""Coalescing: what one shard owes another, as pure bookkeeping.

While WINDOW batches are on the way to a peer, further envelopes wait and go together, at most
BATCH_MAX in one; a link with room sends at once. Batches are acknowledged by credits that ride on
traffic the other way; a batch of credits alone is sent only when the peer may be waiting for it.
There are no timers.
"""

from __future__ import annotations

from typing import Final

from protocols.codec import encode_batch
from protocols.envelope import Envelope

WINDOW: Final = 2
"""Batches on the way to one peer: enough that both ends work while others travel."""

BATCH_MAX: Final = 128
"""Envelopes of one batch. Larger ones save calls but leave the peers waiting for each other."""

INLINE_BYTES: Final = 96_000
"""Ray puts arguments above 100 kB into its object store, several times dearer (measured)."""


class Link:
    """One direction to one peer."""

    __slots__ = ("_me", "in_flight", "owed", "pending")

    def __init__(self, me: int) -> None:
        self._me = me
        self.pending: list[Envelope] = []
        self.in_flight = 0
        self.owed = 0

    def received(self, credits: int, *, carries_envelopes: bool) -> None:  # noqa: A002
        """A batch came from the peer: it returned credits, and is owed one if it had content."""
        self.in_flight -= credits
        assert self.in_flight >= 0, f"{credits} credits for batches never sent"
        if carries_envelopes:
            self.owed += 1

    def batches(self) -> list[bytes]:
        """What to send now, in order; may be nothing."""
        parts: list[bytes] = []
        while self.pending and self.in_flight < WINDOW:
            chosen, self.pending = self.pending[:BATCH_MAX], self.pending[BATCH_MAX:]
            some = split(chosen, self._me, self.owed)
            self.in_flight += len(some)
            self.owed = 0
            parts += some
        if self.owed >= WINDOW:
            owed, self.owed = self.owed, 0
            parts.append(encode_batch([], self._me, owed))
        return parts


def split(envelopes: list[Envelope], sender: int, credits: int = 0) -> list[bytes]:  # noqa: A002
    """Encoded batches that stay inline where single envelopes allow it; order kept."""
    data = encode_batch(envelopes, sender, credits)
    if len(data) <= INLINE_BYTES or len(envelopes) == 1:
        return [data]
    half = len(envelopes) // 2
    return split(envelopes[:half], sender, credits) + split(envelopes[half:], sender)
