"""Start the shards on Ray, feed them, poll them, stop them. All Ray calls are made here."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DEDUP_LOGS", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import msgspec
import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from deploy.cluster.actor import ShardActor
from deploy.cluster.chaos import Chaos, Life, kill_plan
from deploy.cluster.link import split
from deploy.cluster.shard import CLIENT_SHARD, ShardConfig, ShardReport
from deploy.runtime import Progress, RunStuckError, TraceSink
from deploy.world import FACTORY, layout, shard_of
from protocols.codec import decode_batch, encode_envelope
from protocols.envelope import CLIENT, Envelope
from protocols.errno import BadInputError, ShatterproofError
from protocols.message import Message, Request
from services.heap.host import HostConfig
from services.trace.join import CLIENT_TAPE
from services.trace.tape import Tape

_ray: Any = ray
"""Ray's own annotations are partial; here is the one place that knows."""

CONNECT_SECONDS: Final = 5.0
SOCKET_DIRECTORY_MAX: Final = 24
POLL_SECONDS_MIN: Final = 0.002
POLL_SECONDS_MAX: Final = 0.1
POLL_EVERYBODY: Final = 5
"""Every so many polls all shards are asked, between them those that owe replies: a poll costs each
actor as much as a batch."""
STUCK_SECONDS: Final = 20.0
WRITE_SECONDS: Final = 1.0
"""How often the tapes are collected, where a trace is written."""
OBJECT_STORE_BYTES: Final = 256 << 20
RESTARTS_MAX: Final = 16
"""Restarts beyond the kills that were planned, before we call it an error."""


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


def _hush() -> None:
    """Ray tells of every process that dies on stdout, which is for results: not of ours.

    There is no option for it; where Ray's printer is another, the lines come.
    """
    worker: Any = _ray._private.worker
    printer = getattr(worker, "print_to_stdstream", None)
    if printer is None or getattr(printer, "hushed", False):
        return

    def quiet(data: dict[str, Any], *args: Any, **more: Any) -> None:
        if not str(data.get("lines", "")).startswith("['A worker died or was killed"):
            printer(data, *args, **more)

    quiet.hushed = True  # type: ignore[attr-defined]
    worker.print_to_stdstream = quiet


class RayRuntime:
    """One world on a Ray cluster.

    With ``chaos``, shards write ahead and die, and are started anew (see ``deploy.cluster.durable``
    and ``_recover``). ``nr_kills`` counts the lives that ended. All actors are then on the driver's
    node, where their files are. ``sink`` takes a trace of the run; the actors keep their tapes in
    memory and hand them over when they are asked, so that none of them waits for a disk.
    """

    def __init__(
        self,
        config: HostConfig,
        *,
        shards: int = 1,
        record: bool = False,
        factory: str = FACTORY,
        progress: Progress | None = None,
        chaos: Chaos | None = None,
        sink: TraceSink | None = None,
    ) -> None:
        assert sink is None or chaos is None, "a shard that dies takes its tape along"
        self.config = config
        self._shards = shards
        self._sink = sink
        self._tape = Tape(time.perf_counter_ns)
        self._tape_offset = time.time_ns() - time.perf_counter_ns()
        self._written_at = 0.0
        self._progress = progress
        self._next_id = 0
        self._layout = layout(shards, config.nr_nodes)
        self._number = {place: number for number, place in enumerate(self._layout)}
        nr = len(self._layout)
        self._delivered = [0] * nr
        self._unanswered: dict[int, Envelope] = {}
        self._record, self._factory, self._chaos = record, factory, chaos
        self._incarnations = [0] * nr
        self.nr_kills = 0
        options: dict[str, Any] = {}
        if chaos is not None:
            _hush()
            self._directory = Path(tempfile.mkdtemp(prefix="shatterproof-chaos-"))
            self._plan = kill_plan(chaos, nr)
            here = _ray.get_runtime_context().get_node_id()
            options = {"scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False)}
        self._actor_class = _ray.remote(ShardActor).options(
            num_cpus=0, max_restarts=0, max_task_retries=0, enable_task_events=False, **options
        )
        self._actors: list[Any] = []
        try:
            self._actors += [self._start(me) for me in range(nr)]
            peers = dict(enumerate(self._actors))
            _, dead = self._gather([actor.connect.remote(peers) for actor in self._actors])
            self._recover(dead)
        except BaseException:
            self.close()
            raise

    def _start(self, me: int) -> Any:
        """A new actor for a shard; with chaos, its next life."""
        life = None
        if self._chaos is not None:
            lived, ends = self._incarnations[me], self._plan[me]
            kill_after = ends[lived] if lived < len(ends) else 0
            path = str(self._directory / str(me))
            life = Life(self._chaos, path, tuple(self._incarnations), kill_after)
        config = ShardConfig(
            self.config, self._shards, self._layout, me, self._record, self._factory, life,
            trace=self._sink is not None,
        )  # fmt: skip
        return self._actor_class.remote(msgspec.msgpack.encode(config))

    @property
    def nr_delivered(self) -> int:
        """Messages delivered so far, as the last poll told."""
        return sum(self._delivered)

    def close(self) -> None:
        """Stop the actors."""
        if self._sink is not None and self._actors:
            self._write(self._sink)
        for actor in self._actors:
            _ray.kill(actor)
        self._actors = []
        if self._chaos is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    def wait(self, seconds: float) -> None:
        """Sleep."""
        time.sleep(seconds)

    def counts(self) -> Counter[str]:
        """Messages delivered so far, by kind, over all shards."""
        total: Counter[str] = Counter()
        for counts in self._ask("counts"):
            total.update(counts)
        return total

    def arrivals(self) -> list[tuple[int, bytes]]:
        """(shard, envelope) of all that components were given since the start, in order of time.

        Exact within a shard; between shards as good as their clocks. Replies to the client are not
        among them.
        """
        merged = [
            (when, number, data)
            for number, recorded in enumerate(self._ask("arrivals"))
            for when, _, data in recorded
        ]
        merged.sort(key=lambda item: item[:2])
        return [(number, data) for _, number, data in merged]

    def recording(self) -> dict[str, list[bytes]]:
        """What each component was given, in order: this alone determines its state."""
        sequences: dict[str, list[bytes]] = {}
        for recorded in self._ask("arrivals"):
            for _, address, data in recorded:
                sequences.setdefault(address, []).append(data)
        return sequences

    def run(self, requests: Sequence[tuple[str, Request[Message]]]) -> list[Message]:
        """Send all requests at once; the replies in order, when all are there.

        Raises:
            ShardFailedError: a shard failed or died, with its story.
            RunStuckError: nothing has moved for STUCK_SECONDS.
        """
        first = self._next_id + 1
        for dst, request in requests:
            self._next_id += 1
            envelope = Envelope(CLIENT, dst, self._next_id, 0, request)  # type: ignore[arg-type]
            self._unanswered[self._next_id] = envelope
        if self._sink is not None:
            asked = list(self._unanswered.values())
            self._tape.client_sends(asked)
            self._sink.add_requests([encode_envelope(each) for each in asked])
        self._send_unanswered(range(len(self._layout)))
        replies: dict[int, Message] = {}
        pause, moved_at = POLL_SECONDS_MIN, time.monotonic()
        for turn in count():
            before = (self.nr_delivered, len(replies), self.nr_kills)
            busy = self._collect(replies, everybody=turn % POLL_EVERYBODY == 0)
            if len(replies) == len(requests):
                break
            now = time.monotonic()
            if self._sink is not None and now - self._written_at > WRITE_SECONDS:
                self._write(self._sink)
            if busy or (self.nr_delivered, len(replies), self.nr_kills) != before:
                moved_at = now
            elif now - moved_at > STUCK_SECONDS:
                raise RunStuckError(self._parked())
            time.sleep(pause)
            pause = min(pause * 1.5, POLL_SECONDS_MAX)
        return [replies[number] for number in range(first, first + len(requests))]

    def _write(self, sink: TraceSink) -> None:
        """Hand on what all tapes have had."""
        for part in self._tape.take():
            sink.add(CLIENT_TAPE, part, self._tape_offset)
        for number, (parts, offset) in enumerate(self._ask("tape")):
            for part in parts:
                sink.add(number, part, offset)
        sink.flush()
        self._written_at = time.monotonic()

    def _send_unanswered(self, numbers: Collection[int]) -> None:
        """What these shards owe the client a reply for, in the order of the ids."""
        outgoing: dict[int, list[Envelope]] = {}
        for envelope in self._unanswered.values():
            outgoing.setdefault(self._owing(envelope), []).append(envelope)
        for number in numbers:
            if number in outgoing:
                for data in split(outgoing[number], CLIENT_SHARD):
                    self._actors[number].deliver.remote(data)

    def _owing(self, envelope: Envelope) -> int:
        """The shard that a request of the client goes to."""
        return self._number[shard_of(envelope.dst, self._shards, self.config.nr_nodes)]

    def _collect(self, replies: dict[int, Message], *, everybody: bool) -> bool:
        """Ask the shards that owe the client replies how things stand, now and then all of them."""
        numbers = range(len(self._actors))
        if not everybody and self._chaos is None:
            numbers = sorted({self._owing(each) for each in self._unanswered.values()})
        reports, dead = self._gather([self._actors[number].report.remote() for number in numbers])
        for at, report in reports.items():
            self._take_report(numbers[at], report, replies)
        if dead:
            self._recover({numbers[at]: reason for at, reason in dead.items()})
        if self._progress is not None:
            self._progress.delivered(self.nr_delivered)
        return any(report.busy for report in reports.values())

    def _take_report(self, number: int, report: ShardReport, replies: dict[int, Message]) -> None:
        if report.failure is not None:
            raise ShardFailedError(f"{self._name(number)} failed: {report.failure}")
        for envelope in decode_batch(report.replies).envelopes:
            # A shard that was restarted gives all its replies again.
            if self._unanswered.pop(envelope.in_reply_to, None) is None:
                continue
            replies[envelope.in_reply_to] = envelope.body
            if self._sink is not None:
                self._tape.client_gets(envelope)
            if self._progress is not None:
                self._progress.replied(envelope.body)
        self._delivered[number] = report.delivered

    def _parked(self) -> list[str]:
        return [line for lines in self._ask("parked") for line in lines]

    def _name(self, number: int) -> str:
        service, shard = self._layout[number]
        return f"{service} shard {shard}"

    def _ask(self, method: str) -> list[Any]:
        """One answer of each actor.

        Raises:
            ShardFailedError: an actor died for good.
        """
        while True:
            answers, dead = self._gather(
                [getattr(actor, method).remote() for actor in self._actors]
            )
            if not dead:
                return list(answers.values())
            self._recover(dead)

    def _gather(self, references: Sequence[Any]) -> tuple[dict[int, Any], dict[int, str]]:
        """Answers by position, and why the others died."""
        answers: dict[int, Any] = {}
        dead: dict[int, str] = {}
        for number, reference in enumerate(references):
            try:
                answers[number] = _ray.get(reference)
            except ray.exceptions.RayActorError as error:
                dead[number] = " ".join(str(error).split())
        return answers, dead

    def _recover(self, dead: dict[int, str]) -> None:
        """Start the dead anew from their files, and both ends of all their links with them.

        First every peer learns of the new actor, sends again what it may not have, and says what it
        has had of the old one. Then the new actor sends the rest. Whoever dies meanwhile sends us
        back to the start, together with those that were just made: their files have all that they
        took.

        Raises:
            ShardFailedError: without chaos, or too often.
        """
        again: set[int] = set()
        while dead:
            self._count_deaths(dead)
            again |= dead.keys()
            for number in again:
                _ray.kill(self._actors[number])
                self._incarnations[number] += 1
            for number in again:
                self._actors[number] = self._start(number)
            dead = self._join(again)
        self._send_unanswered(again)

    def _count_deaths(self, dead: dict[int, str]) -> None:
        self.nr_kills += len(dead)
        planned = 0 if self._chaos is None else self._chaos.kills
        if self._chaos is None or self.nr_kills > planned + RESTARTS_MAX:
            number, reason = next(iter(dead.items()))
            raise ShardFailedError(f"{self._name(number)} died: {reason}")

    def _join(self, new: Collection[int]) -> dict[int, str]:
        """Link these new actors with everybody; who died meanwhile, and why."""
        lives = {number: (self._incarnations[number], self._actors[number]) for number in new}
        marks, dead = self._gather(
            [
                actor.reconnect.remote({peer: lives[peer] for peer in new if peer != me})
                for me, actor in enumerate(self._actors)
            ]
        )
        if dead:
            return dead
        peers = dict(enumerate(self._actors))
        numbers = sorted(new)
        connecting = [
            self._actors[me].connect.remote(
                peers, {peer: marks[peer][me] for peer in peers if peer != me}
            )
            for me in numbers
        ]
        _, dead = self._gather(connecting)
        return {numbers[position]: reason for position, reason in dead.items()}
