"""A recording of a run in real parallel, replayed step by step in this process.

The sequence of envelopes that each component was given determines its state. Replaying delivers
the same sequences, each envelope when its sender has sent it, and must reach the same tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from deploy.stress.case import Case
from deploy.world import Factory
from protocols import envelope as addresses
from protocols.codec import decode_envelope
from protocols.control import P2mSnapshotReply, SnapshotP2m
from protocols.envelope import CLIENT, Envelope
from protocols.errno import ShatterproofError
from protocols.script import RunScript
from services.component.host import Host
from services.heap.host import HostConfig
from services.spec.history import Event
from services.toolstack.script import result_of


class ReplayDivergedError(ShatterproofError):
    """The recording cannot be followed: which component expected what."""


def replay(
    recording: Mapping[str, Sequence[bytes]], config: HostConfig, factory: Factory
) -> dict[str, Host]:
    """Deliver what was recorded; the hosts as they stand afterwards.

    Raises:
        ReplayDivergedError: an envelope of the recording that its sender does not send here.
    """
    hosts: dict[str, Host] = {}
    waiting = {
        address: [decode_envelope(data) for data in sequence]
        for address, sequence in recording.items()
    }
    taken = dict.fromkeys(waiting, 0)
    sent: set[tuple[str, str, int]] = set()
    moved = True
    while moved:
        moved = False
        for address, sequence in waiting.items():
            host = hosts.get(address)
            if host is None:
                host = hosts[address] = Host(factory(address, config, None), retried=True)
            while taken[address] < len(sequence):
                each = sequence[taken[address]]
                if each.src != CLIENT and (each.src, address, each.msg_id) not in sent:
                    break
                taken[address] += 1
                moved = True
                for out in host.deliver(each):
                    sent.add((out.src, out.dst, out.msg_id))
    for address, sequence in waiting.items():
        if taken[address] < len(sequence):
            each = sequence[taken[address]]
            for host in hosts.values():
                host.abandon()
            raise ReplayDivergedError(
                f"{address}: step {taken[address]} of {len(sequence)} was {each.src} "
                f"#{each.msg_id}, which is not sent in the replay"
            )
    return hosts


def tables_of(hosts: Mapping[str, Host], domids: Sequence[int]) -> dict[int, P2mSnapshotReply]:
    """The tables of each domain that has some."""
    found: dict[int, P2mSnapshotReply] = {}
    for domid in domids:
        host = hosts.get(addresses.p2m(domid))
        if host is not None:
            activity = host.component.handlers()[SnapshotP2m](SnapshotP2m(domid))
            try:
                activity.send(None)
            except StopIteration as done:
                found[domid] = done.value
    return found


def history_of(arrivals: Sequence[bytes], case: Case) -> list[Event]:
    """The clients' operations as their toolstacks saw them.

    A client calls its next operation in the very step in which the last one returned, so the
    arrivals at the toolstacks' one shard give the order of all calls and returns.
    """
    history: list[Event] = []
    called: dict[str, tuple[int, int]] = {}
    seen: dict[tuple[str, str], int] = {}
    for now, data in enumerate(arrivals):
        each: Envelope = decode_envelope(data)
        # A toolstack drops what it was told before, as every host does.
        if each.dst[0] != "t" or each.msg_id <= seen.get((each.src, each.dst), 0):
            continue
        seen[each.src, each.dst] = each.msg_id
        client = int(each.dst.partition("/")[2])
        if isinstance(each.body, RunScript):
            called[each.dst] = (now, 0)
        elif each.dst in called:
            since, index = called[each.dst]
            script = case.clients[client]
            history.append(Event(client, since, now, script[index], result_of(each.body)))
            called[each.dst] = (now, index + 1)
            if index + 1 == len(script):
                del called[each.dst]
    for dst, (since, index) in called.items():
        client = int(dst.partition("/")[2])
        history.append(Event(client, since, None, case.clients[client][index], None))
    return history
