"""Start the shards on Ray, feed them, poll them, stop them. All Ray calls are made here."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DEDUP_LOGS", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import msgspec
import ray
import ray.exceptions

from deploy.cluster.link import split
from deploy.cluster.shard import CLIENT_SHARD, ShardConfig, ShardReport, as_actor_class
from deploy.runtime import Progress, RunStuckError
from deploy.world import FACTORY, SERVICES, shard_count, shard_of
from protocols.codec import decode_batch
from protocols.envelope import CLIENT, Envelope
from protocols.errno import BadInputError, ShatterproofError
from protocols.message import Message, Request
from services.heap.host import HostConfig

_ray: Any = ray
"""Ray's own annotations are partial; here is the one place that knows."""

CONNECT_SECONDS: Final = 5.0
SOCKET_DIRECTORY_MAX: Final = 24
POLL_SECONDS_MIN: Final = 0.002
POLL_SECONDS_MAX: Final = 0.1
STUCK_SECONDS: Final = 20.0
OBJECT_STORE_BYTES: Final = 256 << 20


class ShardFailedError(ShatterproofError):
    """A shard failed or died; the text is its story."""


class RayCluster:
    """A connection to Ray: a private one of our own, or one that is already there."""

    def __init__(self, address: str | None = None, *, num_cpus: int | None = None) -> None:
        if address is not None:
            _probe(address)
        self._temp_dir = _private_directory() if address is None else None
        options: dict[str, Any] = {"address": address}
        if address is None:
            os.environ.setdefault("RAY_AUTH_MODE", "disabled")
            options = {
                "address": "local",
                "num_cpus": num_cpus or os.cpu_count(),
                "include_dashboard": False,
                "object_store_memory": OBJECT_STORE_BYTES,
                "_temp_dir": self._temp_dir,
            }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                _ray.init(**options, log_to_driver=False, configure_logging=False)
            except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
                self.close()
                reason = " ".join(str(error).split())
                raise BadInputError(
                    f"--address {address}: no Ray cluster there: {reason}"
                ) from None

    def close(self) -> None:
        """Leave the cluster; a private one stops, and its files go."""
        _ray.shutdown()
        if self._temp_dir is not None:
            shutil.rmtree(self._temp_dir, ignore_errors=True)


def _private_directory() -> str | None:
    """A directory of our own for Ray's files; None (Ray's default) if its sockets would not fit.

    A Unix socket's path has at most 107 bytes, and Ray adds some 60 to its directory.
    """
    if len(tempfile.gettempdir()) > SOCKET_DIRECTORY_MAX:
        return None
    return tempfile.mkdtemp(prefix="shatterproof-")


def _probe(address: str) -> None:
    """Refuse an address where nothing listens, before Ray waits for it at length.

    Raises:
        BadInputError: not HOST:PORT, ray://HOST:PORT or auto, or nobody answers.
    """
    if address == "auto":
        return
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise BadInputError(f"--address {address}: expected HOST:PORT, ray://HOST:PORT or auto")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise BadInputError(f"--address {address}: no Ray cluster there: {error}") from None


class RayRuntime:
    """One world on a Ray cluster."""

    def __init__(
        self,
        config: HostConfig,
        *,
        shards: int = 1,
        record: bool = False,
        factory: str = FACTORY,
        progress: Progress | None = None,
    ) -> None:
        self.config = config
        self._shards = shards
        self._progress = progress
        self._next_id = 0
        self.nr_delivered = 0
        self._layout = tuple(
            (service, shard)
            for service in SERVICES
            for shard in range(shard_count(service, shards, config.nr_nodes))
        )
        self._number = {place: number for number, place in enumerate(self._layout)}
        actor_class = _ray.remote(as_actor_class()).options(
            num_cpus=0, max_restarts=0, max_task_retries=0, enable_task_events=False
        )
        self._actors: list[Any] = []
        for me in range(len(self._layout)):
            shard = ShardConfig(config, shards, self._layout, me, record, factory)
            self._actors.append(actor_class.remote(msgspec.msgpack.encode(shard)))
        peers = dict(enumerate(self._actors))
        self._ask([actor.connect.remote(peers) for actor in self._actors])

    def close(self) -> None:
        """Stop the actors."""
        for actor in self._actors:
            _ray.kill(actor)
        self._actors = []

    def wait(self, seconds: float) -> None:
        """Sleep."""
        time.sleep(seconds)

    def counts(self) -> Counter[str]:
        """Messages delivered so far, by kind, over all shards."""
        total: Counter[str] = Counter()
        for counts in self._ask([actor.counts.remote() for actor in self._actors]):
            total.update(counts)
        return total

    def journal(self) -> list[tuple[int, int, bytes]]:
        """(time ns, shard, record) of everything recorded, in order of time."""
        journals = self._ask([actor.journal.remote() for actor in self._actors])
        merged = [
            (when, number, record)
            for number, journal in enumerate(journals)
            for when, record in journal
        ]
        merged.sort(key=lambda item: item[:2])
        return merged

    def run(self, requests: Sequence[tuple[str, Request[Message]]]) -> list[Message]:
        """Send all requests at once; the replies in order, when all are there.

        Raises:
            ShardFailedError: a shard failed or died, with its story.
            RunStuckError: nothing has moved for STUCK_SECONDS.
        """
        first = self._next_id + 1
        outgoing: dict[int, list[Envelope]] = {}
        for dst, request in requests:
            self._next_id += 1
            number = self._number[shard_of(dst, self._shards, self.config.nr_nodes)]
            envelope = Envelope(CLIENT, dst, self._next_id, 0, request)  # type: ignore[arg-type]
            outgoing.setdefault(number, []).append(envelope)
        for number, envelopes in outgoing.items():
            for data in split(envelopes, CLIENT_SHARD):
                self._actors[number].deliver.remote(data)
        replies: dict[int, Message] = {}
        pause, moved_at = POLL_SECONDS_MIN, time.monotonic()
        while True:
            before = (self.nr_delivered, len(replies))
            busy = self._collect(replies)
            if len(replies) == len(requests):
                break
            now = time.monotonic()
            if busy or (self.nr_delivered, len(replies)) != before:
                moved_at = now
            elif now - moved_at > STUCK_SECONDS:
                raise RunStuckError(self._parked())
            time.sleep(pause)
            pause = min(pause * 1.5, POLL_SECONDS_MAX)
        return [replies[number] for number in range(first, first + len(requests))]

    def _collect(self, replies: dict[int, Message]) -> bool:
        reports: list[ShardReport] = self._ask([actor.report.remote() for actor in self._actors])
        for number, report in enumerate(reports):
            if report.failure is not None:
                service, shard = self._layout[number]
                raise ShardFailedError(f"{service} shard {shard} failed: {report.failure}")
            for envelope in decode_batch(report.replies).envelopes:
                replies[envelope.in_reply_to] = envelope.body
                if self._progress is not None:
                    self._progress.replied(envelope.body)
        self.nr_delivered = sum(report.delivered for report in reports)
        if self._progress is not None:
            self._progress.delivered(self.nr_delivered)
        return any(report.busy for report in reports)

    def _parked(self) -> list[str]:
        lists = self._ask([actor.parked.remote() for actor in self._actors])
        return [line for lines in lists for line in lines]

    def _ask(self, references: list[Any]) -> list[Any]:
        """Wait for one answer of each actor.

        Raises:
            ShardFailedError: an actor died.
        """
        answers: list[Any] = []
        for number, reference in enumerate(references):
            try:
                answers.append(_ray.get(reference))
            except ray.exceptions.RayActorError as error:
                service, shard = self._layout[number]
                reason = " ".join(str(error).split())
                raise ShardFailedError(f"{service} shard {shard} died: {reason}") from None
        return answers
