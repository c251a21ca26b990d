"""A shard: the part of a service that one Ray actor holds. Knows no Ray, so tests drive it bare.

Fail-stop: a delivery that raises poisons the shard. It keeps the story, ignores what comes, and
tells whoever polls. Envelopes between components of one shard never leave it.
"""

from __future__ import annotations

import time
import traceback
from collections import Counter, deque
from collections.abc import Callable
from typing import ClassVar, Final, ParamSpec

import msgspec

from deploy.cluster.chaos import Life
from deploy.cluster.link import Link
from deploy.world import FACTORY, load_factory, shard_of
from protocols.codec import decode_batch, encode_batch, encode_envelope
from protocols.envelope import CLIENT, Envelope
from protocols.errno import ComponentFailureError, ProtocolError
from protocols.message import Message
from protocols.registry import TAGS
from services.component.host import Host
from services.heap.host import HostConfig
from services.trace.tape import Tape

CLIENT_SHARD: Final = -1
P = ParamSpec("P")
Send = Callable[[int, bytes], None]
"""(peer, batch): hand a batch to a peer's ``deliver``; must not block."""


class ShardConfig(msgspec.Struct, frozen=True):
    """What a shard is told when it starts."""

    host: HostConfig
    shards: int
    layout: tuple[tuple[str, int], ...]
    """(service, shard) of every actor; the position is its number."""
    me: int
    record: bool
    """Keep every envelope that arrives."""
    factory: str = FACTORY
    life: Life | None = None
    """With chaos on: which life of this shard it is, and how it goes."""
    trace: bool = False
    """Keep a tape of what happens here."""


class ShardReport(msgspec.Struct, frozen=True):
    """What a poll brings: replies for the client, progress, and the story of a failure."""

    replies: bytes
    delivered: int
    failure: str | None
    busy: bool


class Shard:
    """Hosts of the components of one shard, and the links to its peers."""

    _retried: ClassVar = False
    """Whether links may deliver an envelope again."""

    def __init__(self, config: ShardConfig, send: Send) -> None:
        self._config = config
        self._send = send
        self._make = load_factory(config.factory)
        self._number = {place: number for number, place in enumerate(config.layout)}
        self._route: dict[str, int] = {CLIENT: CLIENT_SHARD}
        self._hosts: dict[str, Host] = {}
        self._links = {
            peer: self._link(peer) for peer in range(len(config.layout)) if peer != config.me
        }
        self._replies: list[Envelope] = []
        self._kinds: Counter[type[Message]] = Counter()
        self._failure: str | None = None
        self._recorded: list[tuple[int, Envelope]] = []
        self._tape = Tape(time.perf_counter_ns) if config.trace else None
        # Differs from host to host and, on one, from boot to boot.
        self._offset = time.time_ns() - time.perf_counter_ns()

    def _link(self, peer: int) -> Link:  # noqa: ARG002 (for subclasses)
        return Link(self._config.me)

    def deliver(self, data: bytes, incarnation: int = 0) -> None:
        """Handle a batch and send on what it caused. Never raises: see ``report``.

        ``incarnation`` counts the lives of the sender, where shards are restarted.
        """
        self._or_stop(self._handle, data, incarnation)

    def _or_stop(self, step: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Fail-stop: take a step, unless one has failed already."""
        if self._failure is not None:
            return
        try:
            step(*args, **kwargs)
        except (ComponentFailureError, ProtocolError) as error:
            self._fail(str(error))
        except Exception:  # noqa: BLE001 (fail-stop: nobody else would ever see it)
            self._fail(traceback.format_exc())

    def _fail(self, story: str) -> None:
        self._failure = story
        if self._tape is not None:
            self._tape.broke_off()

    def _handle(self, data: bytes, incarnation: int) -> None:  # noqa: ARG002 (for subclasses)
        batch = decode_batch(data)
        if batch.sender != CLIENT_SHARD:
            self._links[batch.sender].received(batch.credits, batch.envelopes)
        self._kinds.update(type(envelope.body) for envelope in batch.envelopes)
        if self._tape is not None:
            self._tape.batch(len(batch.envelopes), data)
        self._pump(deque(batch.envelopes))
        self._flush()

    def _pump(self, queue: deque[Envelope]) -> None:
        me, route, hosts, links = self._config.me, self._route, self._hosts, self._links
        recorded = self._recorded if self._config.record else None
        begin = None if self._tape is None else self._tape.begin
        while queue:
            envelope = queue.popleft()
            if recorded is not None:
                recorded.append((self._now(), envelope))
            host = hosts.get(envelope.dst) or self._host(envelope.dst)
            if begin is not None:
                begin(envelope)
            for out in host.deliver(envelope):
                peer = route.get(out.dst)
                if peer is None:
                    peer = self._locate(out.dst)
                if peer == me:
                    self._kinds[type(out.body)] += 1
                    queue.append(out)
                elif peer == CLIENT_SHARD:
                    self._replies.append(out)
                else:
                    links[peer].pending.append(out)

    def _flush(self) -> None:
        for peer, link in self._links.items():
            for data in link.batches():
                self._send(peer, data)

    def _locate(self, address: str) -> int:
        peer = self._route.get(address)
        if peer is None:
            config = self._config
            place = shard_of(address, config.shards, config.host.nr_nodes)
            peer = self._route[address] = self._number[place]
        return peer

    def _host(self, address: str) -> Host:
        assert self._locate(address) == self._config.me, f"{address} is not of this shard"
        hook = None if self._tape is None else self._tape.mem_event
        component = self._make(address, self._config.host, hook)
        host = self._hosts[address] = Host(component, retried=self._retried, watch=self._tape)
        return host

    def _now(self) -> int:
        """Nanoseconds since the epoch, for what is recorded."""
        return time.time_ns()

    def report(self) -> ShardReport:
        """Replies since the last report, and how things stand."""
        replies, self._replies = self._replies, []
        # Answers that wait for what is pending here bring no credits: whoever polls unties that.
        for peer, link in self._links.items():
            for data in link.ask():
                self._send(peer, data)
        # A batch in flight says nothing: its credit may wait for traffic that never comes.
        busy = any(link.pending for link in self._links.values())
        return ShardReport(encode_batch(replies), self._kinds.total(), self._failure, busy)

    def counts(self) -> dict[str, int]:
        """Messages delivered here, by kind."""
        return {TAGS[kind]: nr for kind, nr in self._kinds.items()}

    def parked(self) -> list[str]:
        """Where everybody waits."""
        return [line for host in self._hosts.values() for line in host.parked()]

    def tape(self) -> tuple[list[bytes], int]:
        """The tape since the last call, and what to add to its times for ns since 1970."""
        assert self._tape is not None, "no tape is kept"
        return self._tape.take(), self._offset

    def arrivals(self) -> list[tuple[int, str, bytes]]:
        """Every envelope that a component here was given: (ns since the epoch, address, bytes)."""
        return [(when, what.dst, encode_envelope(what)) for when, what in self._recorded]
