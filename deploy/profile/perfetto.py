"""A trace for the Perfetto UI: native TrackEvents, a flow from every message's cause to it.

A process a service with a row of slices for each shard, a process a domain with its jobs, counters
and shatters; of a xentrace a process a pcpu. Slices of one shard overlap, so each goes to the first
lane that is free. A step of a clock without time is a microsecond.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any, BinaryIO, Final

import numpy as np

from deploy.profile.wire import block, fixed, number, real, text, varint
from protocols.text import shown
from protocols.trace import EVENT_NAMES, MemEvent
from services.trace.critical import Chains
from services.trace.domains import domains
from services.trace.frame import Column, Frame, Trace
from services.trace.report import HYPERCALLS
from services.trace.select import Selection
from services.trace.stats import Times, groups, service_of, span_of

STEP_NS: Final = 1000
COUNTER_POINTS: Final = 2000
INSTANTS_MAX: Final = 20_000
"""Instants of one domain; more could not be told apart."""

# TracePacket
PACKET, TIMESTAMP, SEQUENCE, TRACK_EVENT, INTERNED, FLAGS, DESCRIPTOR = 1, 8, 10, 11, 12, 13, 60
# TrackEvent and its types
ANNOTATION, TYPE, NAME_IID, TRACK, COUNTER, FLOW, FLOW_END, DOUBLE = 4, 9, 10, 11, 30, 47, 48, 44
BEGIN, END, INSTANT, COUNT = 1, 2, 3, 4
CLEARED, NEEDS = 1, 2
ARGUMENTS: Final = (
    "id", "cause", "parent", "domid", "order", "nr", "gfn", "rc", "bytes", "queue_ns", "busy_ns",
    "lock_wait_ns", "awaiting_ns", "vcpu", "updates", "mfn",
)  # fmt: skip


def write_perfetto(trace: Trace, file: BinaryIO) -> None:
    """Write the whole trace; Perfetto's own trace processor reads it (``ui.perfetto.dev``)."""
    _Writer(trace, file).write()


class _Writer:
    def __init__(self, trace: Trace, file: BinaryIO) -> None:
        self._trace = trace = replace(
            trace, names=list(map(shown, trace.names)), kinds=list(map(shown, trace.kinds))
        )
        self._file = file
        self._uuids = count(1)
        self._pids = count(1)
        self._names: dict[str, int] = {}
        self._arguments = {name: at + 1 for at, name in enumerate(ARGUMENTS)}
        scale = 1e9 / trace.ticks_per_s if trace.ticks_per_s else float(STEP_NS)
        self._scale: Callable[[Column], Column] = lambda ticks: np.rint(ticks * scale).astype(
            np.int64
        )
        self._tail = number(SEQUENCE, 1) + number(FLAGS, NEEDS)

    def write(self) -> None:
        """Names first, then tracks with their events."""
        trace = self._trace
        names = {*trace.kinds, *EVENT_NAMES.values(), "shatter", *HYPERCALLS.values()}
        names |= {str(each) for each in np.unique(trace.hypercalls["op"]).tolist()}
        names |= {f"job {kind}" for kind in trace.kinds}
        pairs = zip(trace.running["domid"].tolist(), trace.running["vcpu"].tolist(), strict=True)
        names |= {f"d{domid}v{vcpu}" for domid, vcpu in set(pairs)}
        self._names = {name: at + 1 for at, name in enumerate(sorted(names))}
        interned = b"".join(
            block(2, number(1, iid) + text(2, name)) for name, iid in self._names.items()
        ) + b"".join(
            block(3, number(1, iid) + text(2, name)) for name, iid in self._arguments.items()
        )
        self._packet(number(SEQUENCE, 1) + number(FLAGS, CLEARED) + block(INTERNED, interned))
        if trace.messages.rows:
            self._services()
        if trace.running.rows or trace.hypercalls.rows:
            self._pcpus()
        self._domains()

    # -- packets -----------------------------------------------------------------------------

    def _packet(self, body: bytes) -> None:
        self._file.write(block(PACKET, body))

    def _process(self, name: str) -> int:
        """A process track; its uuid."""
        uuid = next(self._uuids)
        process = number(1, next(self._pids)) + text(6, name)
        self._packet(
            block(DESCRIPTOR, number(1, uuid) + text(2, name) + block(3, process))
            + number(SEQUENCE, 1)
        )
        return uuid

    def _track(self, parent: int, name: str, *, counter: bool = False) -> int:
        """A track in a process; its uuid."""
        uuid = next(self._uuids)
        what = number(1, uuid) + text(2, name) + number(5, parent)
        if counter:
            what += block(8, b"")
        self._packet(block(DESCRIPTOR, what) + number(SEQUENCE, 1))
        return uuid

    def _event(self, time: int, event: bytes) -> None:
        body = number(TIMESTAMP, time) + block(TRACK_EVENT, event) + self._tail
        self._file.write(b"\x0a" + varint(len(body)) + body)

    def _argument(self, name: str, value: int | str) -> bytes:
        iid = number(1, self._arguments[name])
        return block(ANNOTATION, iid + (text(6, value) if type(value) is str else number(4, value)))  # type: ignore[arg-type]

    def _counter(self, parent: int, name: str, times: Column, values: Column) -> None:
        """A counter track: its value from each time on."""
        if not len(times):
            return
        track = number(TRACK, self._track(parent, name, counter=True)) + number(TYPE, COUNT)
        whole = values.dtype.kind in "iu"
        for time, value in zip(times.tolist(), values.tolist(), strict=True):
            self._event(time, track + (number(COUNTER, value) if whole else real(DOUBLE, value)))

    # -- services ----------------------------------------------------------------------------

    def _services(self) -> None:
        trace = self._trace
        m = trace.messages
        services: dict[str, int] = {}
        sent = self._sent_by()
        for shard, found in groups(m["shard"]):
            service = service_of(trace.names[int(m["dst"][found[0]])])
            if service not in services:
                services[service] = self._process(service)
            rows = found[np.argsort(m["started"][found], kind="stable")]
            name = service if service == "client" else f"{service} shard {shard}"
            self._slices(services[service], name, rows, sent)
            self._queue_length(services[service], name, rows)

    def _sent_by(self) -> dict[int, list[int]]:
        """Row of each recorded cause: ids of the messages that it made somebody send."""
        m = self._trace.messages
        chains = Chains(self._trace)
        found: dict[int, list[int]] = {}
        rows: dict[int, int | None] = {}
        for number_, cause in zip(m["id"].tolist(), m["cause"].tolist(), strict=True):
            if cause:
                if cause not in rows:
                    rows[cause] = chains.row(cause)
                row = rows[cause]
                if row is not None:
                    found.setdefault(row, []).append(number_)
        return found

    def _slices(self, process: int, name: str, rows: Column, sent: dict[int, list[int]]) -> None:
        """A slice a message, from when its handling began to its answer, in free lanes."""
        m = self._trace.messages
        started = self._scale(m["started"][rows])
        ended = self._scale(np.maximum(m["ended"], m["started"])[rows])
        known = m["cause"][rows].astype(bool)
        arguments = self._message_arguments(rows)
        free: list[tuple[int, int]] = []
        tracks: list[bytes] = []
        ends = number(TYPE, END)
        received = {each for ids in sent.values() for each in ids} if known.any() else set[int]()
        for at, (row, begin, end) in enumerate(
            zip(rows.tolist(), started.tolist(), ended.tolist(), strict=True)
        ):
            if free and free[0][0] <= begin:
                _, lane = heapq.heappop(free)
            else:
                lane = len(tracks)
                tracks.append(number(TRACK, self._track(process, name)))
            heapq.heappush(free, (end, lane))
            message = int(m["id"][row])
            event = tracks[lane] + number(TYPE, BEGIN)
            event += number(NAME_IID, self._names[self._trace.kinds[int(m["kind"][row])]])
            for each in sent.get(row, ()):
                event += fixed(FLOW, each)
            if message in received:
                event += fixed(FLOW_END, message)
            self._event(begin, event + arguments[at])
            self._event(end, tracks[lane] + ends)

    def _message_arguments(self, rows: Column) -> list[bytes]:
        """What the UI shows of each message when it is clicked."""
        trace, m = self._trace, self._trace.messages
        times = Times(m)
        spans = {
            "queue_ns": self._scale(times.queue[rows]).tolist(),
            "busy_ns": self._scale(times.service[rows]).tolist(),
            "lock_wait_ns": self._scale(times.lock[rows]).tolist(),
            "awaiting_ns": self._scale(times.awaiting[rows]).tolist(),
        }
        plain = {name: m[name][rows].tolist() for name in ("domid", "order", "nr", "rc", "bytes")}
        ids = {name: m[name][rows].tolist() for name in ("id", "cause", "parent")}
        gfns = m["gfn"][rows].tolist()
        found: list[bytes] = []
        for at in range(len(rows)):
            event = b""
            for name, values in ids.items():
                if values[at]:
                    event += self._argument(name, trace.name_of(values[at]))
            for name, values in plain.items():
                if values[at] > 0 or (values[at] == 0 and name in {"domid", "order", "nr"}):
                    event += self._argument(name, values[at])
            if gfns[at] != (1 << 64) - 1:
                event += self._argument("gfn", hex(gfns[at]))
            for name, values in spans.items():
                if values[at]:
                    event += self._argument(name, values[at])
            found.append(event)
        return found

    def _queue_length(self, process: int, name: str, rows: Column) -> None:
        """How many messages had come in and not been begun, at most, in each part of the time."""
        m = self._trace.messages
        received, started = m["received"][rows], m["started"][rows]
        times = np.concatenate((received, started))
        change = np.concatenate((np.ones(len(rows)), -np.ones(len(rows)))).astype(np.int64)
        order = np.lexsort((change, times))
        length = np.maximum(np.cumsum(change[order]), 0)
        step = -(-len(length) // COUNTER_POINTS)
        firsts = np.arange(0, len(length), step)
        most = np.maximum.reduceat(length, firsts)
        self._counter(process, f"{name} queue", self._scale(times[order][firsts]), most)

    # -- pcpus -------------------------------------------------------------------------------

    def _pcpus(self) -> None:
        running, calls = self._trace.running, self._trace.hypercalls
        for cpu in sorted({*running["cpu"].tolist(), *calls["cpu"].tolist()}):
            process = self._process(f"pcpu {cpu}")
            track = number(TRACK, self._track(process, "runs"))
            mine = running.take(running["cpu"] == cpu)
            columns: list[Any] = [mine["domid"].tolist(), mine["vcpu"].tolist()]
            times = [self._scale(mine[name]).tolist() for name in ("start", "end")]
            for domid, vcpu, start, end in zip(*columns, *times, strict=True):
                name = number(NAME_IID, self._names[f"d{domid}v{vcpu}"])
                arguments = self._argument("domid", domid) + self._argument("vcpu", vcpu)
                self._event(start, track + number(TYPE, BEGIN) + name + arguments)
                self._event(end, track + number(TYPE, END))
            self._calls(number(TRACK, self._track(process, "hypercalls")), calls, cpu)

    def _calls(self, track: bytes, calls: Frame, cpu: int) -> None:
        mine = calls.take(calls["cpu"] == cpu)
        columns = [mine[name].tolist() for name in ("op", "domid", "updates")]
        for time, op, domid, updates in zip(
            self._scale(mine["time"]).tolist(), *columns, strict=True
        ):
            name = number(NAME_IID, self._names[HYPERCALLS.get(op, str(op))])
            arguments = self._argument("domid", domid) + self._argument("updates", updates)
            self._event(time, track + number(TYPE, INSTANT) + name + arguments)

    # -- domains -----------------------------------------------------------------------------

    def _domains(self) -> None:
        trace = self._trace
        sections = domains(trace, span_of(trace), Selection(), views=True)
        for domid, section in sections.items():
            process = self._process(f"domain {domid}")
            self._jobs(process, int(domid))
            series = section["series"]
            edges = self._scale(np.array(series["edges"][1:]))
            for name in ("coverage", "updates", "shatters"):
                values = np.array(series[name])
                changes = np.flatnonzero(np.diff(values, prepend=-1) != 0)
                self._counter(process, f"superpage {name}" if name == "coverage" else name,
                              edges[changes], values[changes])  # fmt: skip
            self._instants(process, int(domid))

    def _jobs(self, process: int, domid: int) -> None:
        """What the client asked for the domain, from question to answer."""
        m = self._trace.messages
        asked = (
            (m["domid"] == domid) & (m["parent"] == 0) & (m["reply_to"] == 0) & (m["ended"] >= 0)
        )
        rows = np.flatnonzero(asked)
        if not len(rows):
            return
        track = number(TRACK, self._track(process, "asked for"))
        rows = rows[np.argsort(m["started"][rows], kind="stable")]
        last = -1
        times = [self._scale(m[name][rows]).tolist() for name in ("started", "ended")]
        for kind, begin, end in zip(m["kind"][rows].tolist(), *times, strict=True):
            if begin < last:
                track = number(TRACK, self._track(process, "asked for"))
            last = max(last, end)
            name = number(NAME_IID, self._names[f"job {self._trace.kinds[kind]}"])
            self._event(begin, track + number(TYPE, BEGIN) + name)
            self._event(end, track + number(TYPE, END))

    def _instants(self, process: int, domid: int) -> None:
        """Memory events of the domain, other than plain updates."""
        events = self._trace.events
        mine = events.take(np.flatnonzero(events["domid"] == domid)[:INSTANTS_MAX])
        if not mine.rows:
            return
        track = number(TRACK, self._track(process, "memory events")) + number(TYPE, INSTANT)
        # What happened at one time is one mark, which says how much it stands for.
        time, event = mine["time"], mine["event"]
        firsts = np.flatnonzero(np.diff(time, prepend=-1) | np.diff(event, prepend=0))
        counts = np.diff(np.append(firsts, mine.rows)).tolist()
        columns = [mine[name][firsts].tolist() for name in ("event", "order", "gfn")]
        times = self._scale(time[firsts]).tolist()
        for now, kind, order, gfn, nr in zip(times, *columns, counts, strict=True):
            name = number(NAME_IID, self._names[EVENT_NAMES[MemEvent(kind)]])
            arguments = self._argument("gfn", hex(gfn)) + self._argument("nr", nr)
            if order >= 0:
                arguments += self._argument("order", order)
            self._event(now, track + name + arguments)
