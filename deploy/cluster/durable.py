"""A shard that may die at any batch and come back: nothing is lost, nothing is applied twice.

A batch is in the write-ahead file before it is handled, and what its handling causes follows from
the file alone. So the next life of a shard replays the file: its components, what it owes its
peers and the replies to the client are there again, under the same message ids. Both ends of every
link to it start anew: a peer sends again what was not acknowledged, the shard sends again whatever
is above the marks (the last id of each source) that the peer tells. Hosts drop what they have seen.
Batches carry the life of their sender: those of a life that is over are dropped, because their
credits count for a link that is no more.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from random import Random
from typing import ClassVar

from deploy.cluster.link import Link
from deploy.cluster.shard import CLIENT_SHARD, Send, Shard, ShardConfig, ShardReport
from deploy.cluster.write_ahead import WriteAhead
from protocols.codec import decode_batch, encode_batch
from protocols.envelope import CLIENT, Envelope

Marks = dict[str, int]
"""The last message id that arrived of each source."""


class KeptLink(Link):
    """Keeps every batch until it is acknowledged; may send one twice.

    A repeated batch costs a credit as any other does, and is kept empty. Repeats would make
    ``answers_due`` wrong, so it stays 0 and credits are asked for whenever somebody waits for them.
    """

    __slots__ = ("_duplicate", "_kept", "_random")

    def __init__(self, me: int, random: Random, duplicate: float) -> None:
        super().__init__(me)
        self._kept: deque[list[Envelope]] = deque()
        self._random = random
        self._duplicate = duplicate

    def received(self, credits: int, envelopes: list[Envelope]) -> None:  # noqa: A002
        """As of any link; what is acknowledged is forgotten."""
        super().received(credits, envelopes)
        self.answers_due = 0
        for _ in range(credits):
            self._kept.popleft()

    def batches(self) -> list[bytes]:
        """What to send now, in order; may be nothing."""
        parts = super().batches()
        self.answers_due = 0
        return parts + self.ask()

    def _parts(self, chosen: list[Envelope]) -> list[bytes]:
        parts: list[bytes] = []
        again: list[bytes] = []
        for data in super()._parts(chosen):
            envelopes = decode_batch(data).envelopes
            self._kept.append(envelopes)
            parts.append(data)
            if self._random.random() < self._duplicate:
                again.append(encode_batch(envelopes, self._me))
        self._kept.extend([] for _ in again)
        return parts + again

    def restart(self) -> None:
        """The peer begins a new life: all that it may not have waits again, in order."""
        self.pending = [envelope for batch in self._kept for envelope in batch] + self.pending
        self._kept.clear()
        self.in_flight = self.owed = self.answers_due = 0
        self._asking = self._asked = False


class DurableShard(Shard):
    """A shard with a write-ahead file; ``die`` ends the process and does not return."""

    _retried: ClassVar = True

    def __init__(self, config: ShardConfig, send: Send, die: Callable[[], None]) -> None:
        assert config.life is not None
        self._life = config.life
        self._incarnations = list(config.life.incarnations)
        chaos = config.life.chaos
        lived = self._incarnations[config.me]
        self._random = Random(f"{chaos.seed} {config.me} {lived}")  # noqa: S311
        super().__init__(config, send)
        self._die = die
        self._nr_handled = 0
        self._connected = False
        self._marks: Marks = {}
        self._replayed_at: int | None = None
        self._file = WriteAhead(config.life.write_ahead)
        self._or_stop(self._replay)

    def _link(self, peer: int) -> KeptLink:  # noqa: ARG002
        return KeptLink(self._config.me, self._random, self._life.chaos.duplicate)

    def _replay(self) -> None:
        for when, data in self._file.records():
            self._replayed_at = when
            self._take(decode_batch(data).envelopes)
        self._replayed_at = None

    def _now(self) -> int:
        return time.time_ns() if self._replayed_at is None else self._replayed_at

    def connect(self, marks: Mapping[int, Marks]) -> None:
        """Every peer is there; of those named, send them what is above their marks."""
        self._or_stop(self._connect, marks)

    def _connect(self, marks: Mapping[int, Marks]) -> None:
        for peer, theirs in marks.items():
            link = self._links[peer]
            link.pending = [each for each in link.pending if each.msg_id > theirs.get(each.src, 0)]
        self._connected = True
        self._flush()

    def reconnect(self, lives: Mapping[int, int]) -> dict[int, Marks]:
        """These peers begin a new life: send again what they may not have; their marks here."""
        self._or_stop(self._restart_links, lives)
        marks: dict[int, Marks] = {peer: {} for peer in lives}
        for source, number in self._marks.items():
            peer = CLIENT_SHARD if source == CLIENT else self._locate(source)
            if peer in marks:
                marks[peer][source] = number
        return marks

    def _restart_links(self, lives: Mapping[int, int]) -> None:
        for peer, incarnation in lives.items():
            self._incarnations[peer] = incarnation
            link = self._links[peer]
            assert isinstance(link, KeptLink)
            link.restart()
        self._flush()

    def _handle(self, data: bytes, incarnation: int) -> None:
        batch = decode_batch(data)
        if batch.sender != CLIENT_SHARD:
            known = self._incarnations[batch.sender]
            assert incarnation <= known, f"life {incarnation} of a peer whose last is {known}"
            if incarnation < known:
                return
            self._links[batch.sender].received(batch.credits, batch.envelopes)
        if batch.envelopes:
            self._file.append(time.time_ns(), data)
            self._take(batch.envelopes)
            self._nr_handled += 1
            if self._nr_handled == self._life.kill_after:
                self._die()
        self._flush()

    def _take(self, envelopes: list[Envelope]) -> None:
        """What is new goes the usual way; what is not goes to its host, which drops it."""
        queue: deque[Envelope] = deque()
        for envelope in envelopes:
            if envelope.msg_id > self._marks.get(envelope.src, 0):
                self._marks[envelope.src] = envelope.msg_id
            else:
                host = self._hosts.get(envelope.dst) or self._host(envelope.dst)
                if host.component.recognises_repeats:
                    caused = host.deliver(envelope)
                    assert not caused, f"{envelope.dst} took #{envelope.msg_id} twice"
                    continue
            queue.append(envelope)
        self._kinds.update(type(envelope.body) for envelope in queue)
        self._pump(queue)

    def _flush(self) -> None:
        if not self._connected:
            return
        for peer, link in self._links.items():
            if self._random.random() >= self._life.chaos.delay:
                for data in link.batches():
                    self._send(peer, data)

    def report(self) -> ShardReport:
        """As of any shard; nothing is held back any longer."""
        if self._connected and self._failure is None:
            for peer, link in self._links.items():
                for data in link.batches():
                    self._send(peer, data)
        return super().report()

    def close(self) -> None:
        """Let go of the file, as a process that dies does."""
        self._file.close()
