"""The oracles that look when all is quiet: audit, linearizability, accesses, return values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deploy.driver.audit import audit_snapshots
from deploy.stress.case import Case
from deploy.stress.watch import Watch
from deploy.stress.world import World
from protocols import envelope as addresses
from protocols.control import SnapshotNode, SnapshotP2m, SnapshotWalker
from protocols.message import Message, Request
from services.heap.component import Allocator
from services.spec import accesses, linearizability
from services.spec.findings import Violation
from services.spec.history import Event

POD_KINDS = frozenset({"mark_pod", "pod_target", "get_alloc"})


def at_rest(world: World, case: Case, history: Sequence[Event]) -> Violation | None:
    """The first thing that is wrong with a run that came to its end."""
    for host in world.hosts.values():
        if host.nr_parked:
            return Violation("no_lost_wakeup", f"left behind: {host.parked()[0]}")
    return (
        accesses.check(history, world.watch.timeline)
        or return_values(world, case, history)
        or linearizable(world.watch, history)
        or audited(world)
    )


def audited(world: World) -> Violation | None:
    """Everything about the host that can be cross-checked, as ``shatterproof audit`` does."""
    books = living(world)
    nodes = [
        _ask(world, addresses.allocator(node), SnapshotNode(node))
        for node in range(world.config.nr_nodes)
    ]
    p2ms = [_ask(world, addresses.p2m(domid), SnapshotP2m(domid)) for domid in books]
    walkers = [
        _ask(world, name, SnapshotWalker(walker.domid))
        for name, walker in world.watch.walkers.items()
        if walker.domid in books
    ]
    report = audit_snapshots(nodes, p2ms, walkers)
    return report.violations[0] if report.violations else None


def living(world: World) -> dict[int, Any]:
    """The books of every domain that there is."""
    return {
        domid: book
        for host in world.hosts.values()
        if isinstance(host.component, Allocator)
        for domid, book in host.component.books.items()
    }


def _ask(world: World, address: str, request: Request[Any]) -> Any:
    """A snapshot, which waits for nobody, without a message."""
    component = world.host(address).component
    activity: Any = component.handlers()[type(request)](request)
    try:
        activity.send(None)
    except StopIteration as done:
        reply: Message = done.value
        return reply
    raise AssertionError(f"{address}: a snapshot had to wait")


def linearizable(watch: Watch, history: Sequence[Event]) -> Violation | None:
    """Look-ups and updates of each gfn have an order that explains what they returned."""
    found = linearizability.check(history, watch.initial, watch.enomem)
    return found[0] if found else None


def return_values(world: World, case: Case, history: Sequence[Event]) -> Violation | None:
    """What the calls said they did is what the domain's books have gained and lost."""
    uncountable = {
        setup.domid
        for setup in case.domains
        if setup.pod_target_mib is not None or any(each.pod for each in setup.extents)
    }
    bounds: dict[int, tuple[int, int]] = {}
    for event in history:
        op = event.op
        if op.kind in {"create", "destroy"} or op.kind in POD_KINDS:
            uncountable.add(op.domid)
        low, high = bounds.get(op.domid, (0, 0))
        least, most = _pages(event)
        bounds[op.domid] = low + least, high + most
    books = living(world)
    for domid, (low, high) in bounds.items():
        if domid in uncountable or domid not in books:
            continue
        change = books[domid].tot_pages - world.watch.tot_pages[domid]
        if not low <= change <= high:
            return Violation(
                "return_values",
                f"the calls account for {low} to {high} pages, the domain has {change:+} pages",
                domid,
            )
    return None


def _pages(event: Event) -> tuple[int, int]:
    """Least and most pages that a call can have added to its domain, going by its answer."""
    op, result = event.op, event.result
    size = 1 << op.order
    if op.kind in {"populate", "increase"}:
        if result is None:
            return 0, op.nr * size
        done = result.nr_done * size
        return done, done + (size if result.nr_done < op.nr and op.order else 0)
    if op.kind == "decrease":
        if result is None:
            return -op.nr * size, 0
        done = result.nr_done * size
        return -done - (size if result.nr_done < op.nr and op.order else 0), -done
    if op.kind == "move":
        return -op.nr, 0
    return 0, 0
