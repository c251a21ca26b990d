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
from protocols.frames import INVALID_FRAME, unpack
from protocols.message import Message, Request
from services.heap.component import Allocator
from services.spec import linearizability
from services.spec.findings import Violation
from services.spec.history import Event

POD_KINDS = frozenset({"mark_pod", "pod_target", "get_alloc"})


def at_rest(world: World, case: Case, history: Sequence[Event]) -> Violation | None:
    """The first thing that is wrong with a run that came to its end."""
    for host in world.hosts.values():
        if host.nr_parked:
            return Violation("no_lost_wakeup", f"left behind: {host.parked()[0]}")
    return (
        accesses(world.watch, history)
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


def accesses(watch: Watch, history: Sequence[Event]) -> Violation | None:
    """Every access went to a frame that was mapped there, or was not yet known to be gone.

    A walker may use an old translation until the update that replaced it has been answered: what
    an access returns must have been current at some time since it began, or have been replaced
    by an update whose caller had no answer yet.
    """
    for event in history:
        if event.op.kind not in {"touch", "translate"} or event.result is None:
            continue
        domid = event.op.domid if event.op.kind == "touch" else event.op.target
        step = 1 << event.op.order
        for number, mfn in enumerate(unpack(event.result.mfns).tolist()):
            gfn = event.op.gfn + number * step
            found = _access(watch, history, event, (domid, gfn, mfn))
            if found is not None:
                return found
    return None


def _access(
    watch: Watch, history: Sequence[Event], event: Event, used: tuple[int, int, int]
) -> Violation | None:
    domid, gfn, mfn = used
    timeline = watch.timeline.get((domid, gfn))
    if timeline is None:
        return None
    assert event.ret is not None, f"{event.op.kind} with a result never returned"
    for at, (since, _, value) in enumerate(timeline):
        if value != mfn or since > event.ret:
            continue
        if at + 1 == len(timeline):
            return None
        until, by, _ = timeline[at + 1]
        if until >= event.call or not _answered_before(history, by, until, event.call):
            return None
    what = "nothing" if mfn == INVALID_FRAME else f"mfn {mfn:#x}"
    return Violation(
        "access_current",
        f"client {event.client}'s {event.op.kind} (steps {event.call} to {event.ret}) found {what},"
        " which no update that could still be under way explains",
        domid,
        gfn,
        None if mfn == INVALID_FRAME else mfn,
    )


def _answered_before(history: Sequence[Event], client: int, committed: int, when: int) -> bool:
    """Whether the operation that committed at a step had returned to its client before another."""
    for event in history:
        open_then = event.ret is None or event.ret >= committed
        if event.client == client and event.call <= committed and open_then:
            return event.ret is not None and event.ret < when
    return True


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
