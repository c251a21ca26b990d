"""Coalescing: what one shard owes another, as pure bookkeeping.

While WINDOW batches are on the way to a peer, further envelopes wait and go together, at most
BATCH_MAX in one; a link with room sends at once. Batches are acknowledged by credits that ride on
traffic the other way. Who has envelopes waiting and no answers to come, so that nothing would
bring the credits, asks for them with an empty batch. There are no timers.
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
    """One direction to one peer.

    ``answers_due`` counts our requests that the peer has not answered: each answer will bring the
    credits that the peer owes us by then.
    """

    __slots__ = ("_asked", "_asking", "_me", "answers_due", "in_flight", "owed", "pending")

    def __init__(self, me: int) -> None:
        self._me = me
        self.pending: list[Envelope] = []
        self.in_flight = 0
        self.owed = 0
        self.answers_due = 0
        self._asking = False
        self._asked = False

    def received(self, credits: int, envelopes: list[Envelope]) -> None:  # noqa: A002
        """A batch came: it returned credits, has content, or (neither) asks for credits."""
        self.in_flight -= credits
        assert self.in_flight >= 0, f"{credits} credits for batches never sent"
        if credits:
            self._asking = False
        if envelopes:
            self.owed += 1
            self.answers_due -= _nr_answers(envelopes)
        elif not credits:
            self._asked = True

    def batches(self) -> list[bytes]:
        """What to send now, in order; may be nothing."""
        parts: list[bytes] = []
        while self.pending and self.in_flight < WINDOW:
            chosen, self.pending = self.pending[:BATCH_MAX], self.pending[BATCH_MAX:]
            some = self._parts(chosen)
            self.in_flight += len(some)
            self.answers_due += len(chosen) - _nr_answers(chosen)
            self.owed = 0
            parts += some
        if self._asked:
            self._asked = False
            if self.owed:
                owed, self.owed = self.owed, 0
                parts.append(encode_batch([], self._me, owed))
        if self.pending and self.answers_due <= 0:
            parts += self.ask()
        return parts

    def _parts(self, chosen: list[Envelope]) -> list[bytes]:
        return split(chosen, self._me, self.owed)

    def ask(self) -> list[bytes]:
        """An empty batch, if envelopes wait for credits that we have not asked for yet."""
        if not self.pending or self._asking:
            return []
        self._asking = True
        return [encode_batch([], self._me)]


def _nr_answers(envelopes: list[Envelope]) -> int:
    return sum(envelope.in_reply_to != 0 for envelope in envelopes)


def split(envelopes: list[Envelope], sender: int, credits: int = 0) -> list[bytes]:  # noqa: A002
    """Encoded batches that stay inline where single envelopes allow it; order kept."""
    data = encode_batch(envelopes, sender, credits)
    if len(data) <= INLINE_BYTES or len(envelopes) == 1:
        return [data]
    half = len(envelopes) // 2
    return split(envelopes[:half], sender, credits) + split(envelopes[half:], sender)
