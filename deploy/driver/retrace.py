"""Run a trace of ours again: every component is given what it was given, in the same order.

A component's inbound sequence determines its state. The trace names every delivery, and holds what
the client sent; all else is sent again by the components themselves as they go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from deploy.driver.replay import ReplayedDomain, ReplayReport, pod_frames
from deploy.world import make_component
from protocols.codec import decode_envelope
from protocols.control import P2mSnapshotReply, SnapshotP2m
from protocols.envelope import Envelope
from protocols.errno import BadInputError, ComponentFailureError, ProtocolError
from protocols.trace import ID_SHIFT
from services.component.host import Host
from services.heap.host import HostConfig
from services.p2m.geometry import GEOMETRIES
from services.trace.frame import Trace


def retrace(trace: Trace) -> ReplayReport:
    """Deliver what was delivered; the tables as they stand afterwards.

    Raises:
        BadInputError: the trace was cut off, its host or a request cannot be read, or a delivery is
            of something that nobody sends.
    """
    if trace.truncated:
        raise BadInputError(f"{trace.header['cut']}; a replay needs the whole run")
    hosts = _deliver(trace, _host(trace), _sent(trace))
    report = ReplayReport(trace.source, trace.updates.rows, trace.updates.rows)
    report.messages = _kinds(trace)
    updates = dict(zip(*np.unique(trace.updates["domid"], return_counts=True), strict=True))
    for name in sorted(hosts):
        snapshot = _snapshot(name, hosts[name])
        if snapshot is not None and snapshot.pool:
            domid = snapshot.table.domid
            report.problems += snapshot.problems
            report.domains.append(
                ReplayedDomain(
                    domid, int(updates.get(domid, 0)), dict(snapshot.extents),
                    pod_frames(snapshot.table), dict(snapshot.shatters), snapshot.table,
                )
            )  # fmt: skip
    report.domains.sort(key=lambda domain: domain.domid)
    return report


def _host(trace: Trace) -> HostConfig:
    """The host of the run.

    Raises:
        BadInputError: tables of its format cannot map so, or all of its memory.
    """
    host = msgspec.convert(trace.header["host"], HostConfig)
    geometry = GEOMETRIES[host.paging]
    orders = tuple(sorted({*geometry.leaf_orders} & {0, *host.leaf_orders}, reverse=True))
    if host.leaf_orders != orders:
        raise BadInputError(
            f"{trace.source}: header: host: leaf orders {list(host.leaf_orders)}, expected 0 and "
            f"others of {list(geometry.leaf_orders)} with {host.paging} tables, descending"
        )
    if host.ram_start + host.ram_frames > geometry.mfn_limit:
        raise BadInputError(
            f"{trace.source}: header: host: {host.ram_frames} frames from {host.ram_start:#x}, "
            f"expected all below {geometry.mfn_limit:#x} with {host.paging} tables"
        )
    return host


def _sent(trace: Trace) -> dict[int, Envelope]:
    """What the client sent, by id.

    Raises:
        BadInputError: one cannot be read, or is of another id than the file says.
    """
    sent: dict[int, Envelope] = {}
    for number, data in trace.requests.items():
        name = trace.name_of(number)
        try:
            envelope = decode_envelope(data)
        except ProtocolError as error:
            raise BadInputError(f"{trace.source}: request {name}: {error}") from None
        if f"{envelope.src}#{envelope.msg_id}" != name:
            raise BadInputError(
                f"{trace.source}: request {name}: the envelope is {envelope.src}#{envelope.msg_id}"
            )
        sent[number] = envelope
    return sent


def _make(trace: Trace, name: str, config: HostConfig) -> Host:
    try:
        return Host(make_component(name, config))
    except ProtocolError as error:
        raise BadInputError(f"{trace.source}: {error}") from None


def _sequences(trace: Trace) -> dict[str, list[int]]:
    """The ids that each component was given, in order."""
    m = trace.messages
    by_start = np.argsort(m["started"], kind="stable")
    sequences: dict[str, list[int]] = {}
    for dst, number in zip(m["dst"][by_start].tolist(), m["id"][by_start].tolist(), strict=True):
        name: str = trace.names[int(dst)]
        if not name.startswith("client/"):
            sequences.setdefault(name, []).append(number)
    return sequences


def _deliver(trace: Trace, config: HostConfig, sent: dict[int, Envelope]) -> dict[str, Host]:
    sequences = _sequences(trace)
    numbers = {name: number for number, name in enumerate(trace.names)}
    hosts = {name: _make(trace, name, config) for name in sequences}
    taken = dict.fromkeys(sequences, 0)
    moved = True
    while moved:
        moved = False
        for name, sequence in sequences.items():
            while taken[name] < len(sequence):
                envelope = sent.pop(sequence[taken[name]], None)
                if envelope is None:
                    break
                taken[name] += 1
                moved = True
                for out in _delivered(trace, hosts[name], taken[name], envelope):
                    # What nobody was ever given is of no consequence.
                    if out.src in numbers:
                        sent[numbers[out.src] << ID_SHIFT | out.msg_id] = out
    _check_all_taken(trace, sequences, taken)
    return hosts


def _delivered(trace: Trace, host: Host, nr: int, envelope: Envelope) -> list[Envelope]:
    """What a component sends because of its delivery number ``nr``.

    Raises:
        BadInputError: it is for somebody else, or the component cannot be given that now.
    """
    try:
        if envelope.dst != host.name:
            raise ProtocolError(f"the envelope is for {envelope.dst}")
        return host.deliver(envelope)
    except ComponentFailureError as error:
        reason = error.reason
    except ProtocolError as error:
        reason = str(error)
    raise BadInputError(
        f"{trace.source}: {host.name}: delivery {nr}, {envelope.src}#{envelope.msg_id}, cannot be "
        f"replayed: {reason}"
    )


def _check_all_taken(
    trace: Trace, sequences: Mapping[str, Sequence[int]], taken: Mapping[str, int]
) -> None:
    for name, sequence in sequences.items():
        if taken[name] < len(sequence):
            missing = trace.name_of(sequence[taken[name]])
            raise BadInputError(
                f"{trace.source}: {name}: delivery {taken[name] + 1} of {len(sequence)} is "
                f"{missing}, which nobody sends in the replay; expected a trace of a whole run "
                "by this version"
            )


def _snapshot(name: str, host: Host) -> P2mSnapshotReply | None:
    """The tables of a P2M, asked past its host, so that no message is counted."""
    handler = host.component.handlers().get(SnapshotP2m)
    if handler is None:
        return None
    activity = handler(SnapshotP2m(int(name.partition("/")[2])))
    try:
        activity.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError(f"{name}: a snapshot waits for nobody")


def _kinds(trace: Trace) -> dict[str, int]:
    kinds, counts = np.unique(trace.messages["kind"], return_counts=True)
    return {trace.kinds[int(kind)]: int(nr) for kind, nr in zip(kinds, counts, strict=True)}
