"""A shard: the part of a service that one Ray actor holds. Knows no Ray, so tests drive it bare.

Fail-stop: a delivery that raises poisons the shard. It keeps the story, ignores what comes, and
tells whoever polls. Envelopes between components of one shard never leave it.
"""

from __future__ import annotations

import gc
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Final

import msgspec

from deploy.cluster.link import Link
from deploy.world import FACTORY, load_factory, shard_of
from protocols.codec import decode_batch, encode_batch, encode_envelope
from protocols.control import SetP2mEntryEvent
from protocols.envelope import CLIENT, Envelope
from protocols.errno import ComponentFailureError, ProtocolError
from protocols.frames import FrameArray, pack
from protocols.message import Message
from protocols.registry import TAGS
from services.component.host import Host
from services.heap.host import HostConfig

CLIENT_SHARD: Final = -1
GC_THRESHOLD: Final = 50_000
"""Allocations between collections in an actor: a collection is a pause of every build in it."""
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
    factory: str = FACTORY


class ShardReport(msgspec.Struct, frozen=True):
    """What a poll brings: replies for the client, progress, and the story of a failure."""

    replies: bytes
    delivered: int
    failure: str | None
    busy: bool


class Shard:
    """Hosts of the components of one shard, and the links to its peers."""

    def __init__(self, config: ShardConfig, send: Send) -> None:
        self._config = config
        self._send = send
        self._make = load_factory(config.factory)
        self._number = {place: number for number, place in enumerate(config.layout)}
        self._route: dict[str, int] = {CLIENT: CLIENT_SHARD}
        self._hosts: dict[str, Host] = {}
        self._links = {
            peer: Link(config.me) for peer in range(len(config.layout)) if peer != config.me
        }
        self._replies: list[Envelope] = []
        self._kinds: Counter[type[Message]] = Counter()
        self._failure: str | None = None
        self._journal: list[tuple[int, bytes]] = []

    def deliver(self, data: bytes) -> None:
        """Handle a batch and send on what it caused. Never raises: see ``report``."""
        if self._failure is not None:
            return
        try:
            batch = decode_batch(data)
            if batch.sender != CLIENT_SHARD:
                link = self._links[batch.sender]
                link.received(batch.credits, batch.envelopes)
            self._kinds.update(type(envelope.body) for envelope in batch.envelopes)
            self._pump(deque(batch.envelopes))
            self._flush()
        except (ComponentFailureError, ProtocolError) as error:
            self._failure = str(error)
        except Exception:  # noqa: BLE001 (fail-stop: nobody else would ever see it)
            self._failure = traceback.format_exc()

    def _pump(self, queue: deque[Envelope]) -> None:
        me, route, hosts, links = self._config.me, self._route, self._hosts, self._links
        journal = self._journal if self._config.record else None
        while queue:
            envelope = queue.popleft()
            if journal is not None:
                journal.append((time.time_ns(), encode_envelope(envelope)))
            host = hosts.get(envelope.dst) or self._host(envelope.dst)
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
        config = self._config
        place = shard_of(address, config.shards, config.host.nr_nodes)
        peer = self._route[address] = self._number[place]
        return peer

    def _host(self, address: str) -> Host:
        assert self._locate(address) == self._config.me, f"{address} is not of this shard"
        hook = self._p2m_update if self._config.record else None
        host = Host(self._make(address, self._config.host, hook))
        self._hosts[address] = host
        return host

    def _p2m_update(
        self, domid: int, order: int, p2mt: int, gfns: FrameArray, mfns: FrameArray
    ) -> None:
        event = SetP2mEntryEvent(domid, order, p2mt, pack(gfns), pack(mfns))
        self._journal.append((time.time_ns(), msgspec.msgpack.encode(event)))

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

    def journal(self) -> list[tuple[int, bytes]]:
        """What was recorded so far: (ns since the epoch, record); forgotten once read."""
        journal, self._journal = self._journal, []
        return journal


def as_actor_class() -> Any:
    """``Shard`` behind a plain class that Ray can turn into an actor; peers come later."""

    class ShardActor:
        """Synchronous and single-threaded: Ray keeps one caller's order for these alone."""

        def __init__(self, config: bytes) -> None:
            # What was imported stays; messages and activities are freed by their counts.
            gc.collect()
            gc.freeze()
            gc.set_threshold(GC_THRESHOLD)
            self._deliver: dict[int, Any] = {}
            decoded = msgspec.msgpack.decode(config, type=ShardConfig)
            self._shard = Shard(decoded, self._send)

        def _send(self, peer: int, data: bytes) -> None:
            self._deliver[peer].remote(data)

        def connect(self, peers: dict[int, Any]) -> None:
            # No result is ever looked at, so none is made.
            self._deliver = {
                peer: actor.deliver.options(num_returns=0) for peer, actor in peers.items()
            }

        def deliver(self, data: bytes) -> None:
            self._shard.deliver(data)

        def report(self) -> ShardReport:
            return self._shard.report()

        def counts(self) -> dict[str, int]:
            return self._shard.counts()

        def parked(self) -> list[str]:
            return self._shard.parked()

        def journal(self) -> list[tuple[int, bytes]]:
            return self._shard.journal()

    return ShardActor
