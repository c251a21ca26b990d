"""The clients of a workload against real actors, in real parallel, with chaos; and its verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from deploy.campaign import recorded
from deploy.driver.audit import take_audit
from deploy.stress.case import Case, FaultKind
from deploy.stress.world import config_of, setup_requests
from deploy.world import make_component
from protocols import envelope as addresses
from protocols.codec import decode_envelope
from protocols.control import NodeSnapshotReply, SnapshotNode, SnapshotP2m
from protocols.frames import INVALID_FRAME, FrameArray, expand, unpack
from protocols.p2m import P2mUpdated
from protocols.p2m_types import P2mType
from protocols.script import RunScript
from services.heap.component import Allocator
from services.heap.host import HostConfig, OtherNodes
from services.heap.node_memory import NodeMemory
from services.spec import linearizability
from services.spec.findings import Violation

if TYPE_CHECKING:
    from deploy.cluster.runtime import RayRuntime
    from services.component.component import Component
    from services.component.context import MemEventHook
    from services.spec.history import Event

FAILING: Final = "deploy.campaign.parallel:make_failing"
EVERY: Final = 5
"""With the fault `heap`, every so many allocations find nothing."""


class Exhausted(NodeMemory):
    """A node whose memory is now and then used up, the same way in every run."""

    _asked = 0

    def alloc(self, order: int, nr: int, owner: int) -> FrameArray:
        """As the heap does, but not always."""
        self._asked += 1
        if self._asked % EVERY == 0 and self._asked > 2 * EVERY:
            return np.empty(0, dtype=np.uint64)
        return super().alloc(order, nr, owner)


def make_failing(
    address: str, config: HostConfig, on_mem_event: MemEventHook | None = None
) -> Component:
    """The factory of a world whose allocators fail now and then."""
    component = make_component(address, config, on_mem_event)
    if isinstance(component, Allocator):
        start, nr = config.node_range(component.node)
        component.memory = Exhausted(component.node, start, nr)
        component.others = OtherNodes(config, component.memory)
    return component


class ParallelResult(msgspec.Struct, frozen=True):
    """How one run on Ray ended."""

    violation: str
    operations: int
    messages: int
    kills: int
    events: list[str]
    replayed: bool


def run(
    runtime: RayRuntime, case: Case, faults: tuple[FaultKind, ...], *, record: bool = True
) -> tuple[ParallelResult, list[Event]]:
    """Set the case up, run its clients, check everything; the runtime is fresh.

    ``record``: the runtime records, so that the history is checked and the run is replayed.
    """
    config = config_of(case.host)
    for domain in case.domains:
        for address, request in setup_requests(domain, config):
            runtime.run([(address, request)])
    domids = sorted({domain.domid for domain in case.domains})
    before = {domid: _leaves(runtime, domid) for domid in domids} if record else {}
    scripts = [
        (addresses.toolstack(client), RunScript(list(script)))
        for client, script in enumerate(case.clients)
        if script
    ]
    runtime.run(scripts)
    living = _living(runtime, config)
    walkers = [
        (domain.domid, vcpu)
        for domain in case.domains
        if domain.domid in living
        for vcpu in range(domain.vcpus)
    ]
    recording = runtime.recording() if record else {}
    arrivals = [data for _, data in runtime.arrivals()] if record else []
    taken = take_audit(runtime, config, living, walkers)
    problems = [str(each) for each in taken.report.violations]
    history: list[Event] = []
    events = {"shatter"} if any(any(p2m.shatters.values()) for p2m in taken.p2ms) else set[str]()
    replayed = False
    if record:
        history = recorded.history_of(_from_scripts(arrivals), case)
        excused = _excused(arrivals)
        if excused or "heap" in faults:
            events.add("ENOMEM")
            excused = set(domids)
        initial = {key: value for each in before.values() for key, value in each.items()}
        found = linearizability.check(history, initial, excused)
        problems += [str(each) for each in found]
        problems += [str(each) for each in _replayed(recording, config, faults, taken.p2ms)]
        replayed = True
    nr_kills = runtime.nr_kills
    if nr_kills:
        events.add("crash")
    result = ParallelResult(
        problems[0] if problems else "",
        case.nr_operations(),
        sum(runtime.counts().values()),
        nr_kills,
        sorted(events),
        replayed,
    )
    return result, history


def _living(runtime: RayRuntime, config: HostConfig) -> list[int]:
    requests: list[Any] = [
        (addresses.allocator(node), SnapshotNode(node, full=False))
        for node in range(config.nr_nodes)
    ]
    domids: list[int] = []
    for reply in runtime.run(requests):
        assert isinstance(reply, NodeSnapshotReply), "asked for a node's snapshot"
        domids += [account.domid for account in reply.accounts]
    return sorted(domids)


def _leaves(runtime: RayRuntime, domid: int) -> dict[tuple[int, int], tuple[int, P2mType]]:
    """What every 4K gfn of a domain maps to."""
    (reply,) = runtime.run([(addresses.p2m(domid), SnapshotP2m(domid))])  # type: ignore[list-item]
    table: Any = reply
    found: dict[tuple[int, int], tuple[int, P2mType]] = {}
    leaves = table.table
    rows = zip(unpack(leaves.gfns), unpack(leaves.mfns), leaves.orders, leaves.types, strict=True)
    for gfn, mfn, order, p2mt in rows:
        kind = P2mType(p2mt)
        has_frame = kind != P2mType.POPULATE_ON_DEMAND
        for frame in expand(np.array([gfn], dtype=np.uint64), order).tolist():
            at = int(mfn) + frame - int(gfn) if has_frame else INVALID_FRAME
            found[domid, frame] = (at, kind)
    return found


def _from_scripts(arrivals: list[bytes]) -> list[bytes]:
    """The arrivals from the first script on."""
    for at, data in enumerate(arrivals):
        if isinstance(decode_envelope(data).body, RunScript):
            return arrivals[at:]
    return []


def _excused(arrivals: list[bytes]) -> set[int]:
    """Domains in which an update ran out of page-table pages."""
    found: set[int] = set()
    for data in arrivals:
        each = decode_envelope(data)
        if isinstance(each.body, P2mUpdated) and each.body.rc == -12 and each.src[0] == "p":
            found.add(int(each.src.partition("/")[2]))
    return found


def _replayed(
    recording: dict[str, list[bytes]],
    config: HostConfig,
    faults: tuple[FaultKind, ...],
    p2ms: list[Any],
) -> list[Violation]:
    """Replay the recording here: the tables must be the same, bit for bit."""
    factory = make_failing if "heap" in faults else make_component
    try:
        hosts = recorded.replay(recording, config, factory)
    except recorded.ReplayDivergedError as error:
        return [Violation("replay", str(error))]
    found: list[Violation] = []
    for theirs in p2ms:
        domid = theirs.table.domid
        ours = recorded.tables_of(hosts, [domid]).get(domid)
        if ours is None or ours.table != theirs.table or ours.ptps != theirs.ptps:
            found.append(Violation("replay", "the replayed recording gives other tables", domid))
    return found
