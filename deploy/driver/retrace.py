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
from protocols.errno import BadInputError, ProtocolError
from protocols.trace import ID_SHIFT
from services.component.host import Host
from services.heap.host import HostConfig
from services.trace.frame import Trace


def retrace(trace: Trace) -> ReplayReport:
    """Deliver what was delivered; the tables as they stand afterwards.

    Raises:
        BadInputError: the trace was cut off, its host or a request cannot be read, or a delivery is
            of something that nobody sends.
    """
    if trace.truncated:
        raise BadInputError(f"{trace.header['cut']}; a replay needs the whole run")
    try:
        config = msgspec.convert(trace.header["host"], HostConfig)
        sent = {number: decode_envelope(data) for number, data in trace.requests.items()}
    except (msgspec.ValidationError, ProtocolError) as error:
        raise BadInputError(f"{trace.source}: {error}") from None
    hosts = _deliver(trace, config, sent)
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
    hosts = {name: Host(make_component(name, config)) for name in sequences}
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
                for out in hosts[name].deliver(envelope):
                    # What nobody was ever given is of no consequence.
                    if out.src in numbers:
                        sent[numbers[out.src] << ID_SHIFT | out.msg_id] = out
    _check_all_taken(trace, sequences, taken)
    return hosts


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
