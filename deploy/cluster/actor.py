"""The Ray actor around a shard: plain and synchronous, since Ray keeps order for these alone."""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from deploy.cluster.durable import DurableShard, Marks
from deploy.cluster.shard import Shard, ShardConfig, ShardReport

GC_THRESHOLD: Final = 50_000
"""Allocations between collections in an actor: a collection is a pause of every build in it."""
KILLED: Final = 86
"""Exit status of an actor that died on purpose."""


class ShardActor:
    """A shard, and how to reach its peers."""

    def __init__(self, config: bytes) -> None:
        # What was imported stays; messages and activities are freed by their counts.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD)
        self._deliver: dict[int, Any] = {}
        decoded = msgspec.msgpack.decode(config, type=ShardConfig)
        if decoded.life is None:
            self._shard = Shard(decoded, self._send)
        else:
            self._incarnation = decoded.life.incarnations[decoded.me]
            self._shard = DurableShard(decoded, self._send_of_life, _die)

    def _send(self, peer: int, data: bytes) -> None:
        self._deliver[peer].remote(data)

    def _send_of_life(self, peer: int, data: bytes) -> None:
        self._deliver[peer].remote(data, self._incarnation)

    def connect(self, peers: Mapping[int, Any], marks: Mapping[int, Marks] | None = None) -> None:
        """These are the peers; ``marks`` say what they have of this shard's earlier lives."""
        # No result is ever looked at, so none is made.
        self._deliver |= {
            peer: actor.deliver.options(num_returns=0) for peer, actor in peers.items()
        }
        if isinstance(self._shard, DurableShard):
            self._shard.connect(marks or {})

    def reconnect(self, peers: Mapping[int, tuple[int, Any]]) -> dict[int, Marks]:
        """These peers begin a new life (incarnation, actor): what this shard has of theirs."""
        assert isinstance(self._shard, DurableShard)
        self._deliver |= {
            peer: actor.deliver.options(num_returns=0) for peer, (_, actor) in peers.items()
        }
        return self._shard.reconnect({peer: number for peer, (number, _) in peers.items()})

    def deliver(self, data: bytes, incarnation: int = 0) -> None:
        """See ``Shard.deliver``."""
        self._shard.deliver(data, incarnation)

    def report(self) -> ShardReport:
        """See ``Shard.report``."""
        return self._shard.report()

    def counts(self) -> dict[str, int]:
        """See ``Shard.counts``."""
        return self._shard.counts()

    def parked(self) -> list[str]:
        """See ``Shard.parked``."""
        return self._shard.parked()

    def tape(self) -> tuple[list[bytes], int]:
        """See ``Shard.tape``."""
        return self._shard.tape()

    def arrivals(self) -> list[tuple[int, str, bytes]]:
        """See ``Shard.arrivals``."""
        return self._shard.arrivals()


def _die() -> None:
    """At once, as a crash: nothing is flushed, nobody is told."""
    os._exit(KILLED)
