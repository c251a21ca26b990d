"""Operations of a history as steps, one a gfn that they look at or change."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple, TypeAlias

from protocols.errno import Errno
from protocols.frames import ORDER_2M
from protocols.script import Operation
from services.spec.history import Event
from services.spec.register_rules import (
    HOLE,
    NOT_MAPPED,
    NOTHING,
    PERHAPS,
    Rule,
    State,
    mark_pod,
    move_in,
    move_in_place,
    not_ram,
    not_removable,
    populate,
    read,
    remove,
    set_type,
    vanish,
)

GFNS_MAX: Final = 1024
"""So many gfns of a domain are looked at, those that were named first."""
_SAMPLE: Final = 8
"""Of a long list of extents so many are looked at at either end."""
EXTENTS: Final[Mapping[str, Rule]] = {
    "populate": populate,
    "decrease": remove,
    "mark_pod": mark_pod,
}


class Step(NamedTuple):
    """What an operation did to one gfn."""

    event: Event
    rule: Rule
    operand: State


Told: TypeAlias = Iterator[tuple[int, Rule, State]]
"""(gfn, rule, operand) of each step of an operation."""


def by_return(event: Event) -> tuple[bool, int, int]:
    """In order of return; what never returned comes last."""
    return event.ret is None, event.ret or 0, event.call


def gfns_named(history: Iterable[Event]) -> dict[int, list[int]]:
    """The gfns to look at in each domain, ascending: pages named, and the first of larger extents.

    The other frames of an extent have the same history unless another operation names them.
    """
    found: dict[int, dict[int, None]] = {}
    for event in history:
        op = event.op
        if op.kind in EXTENTS or op.kind in {"get", "get_alloc", "set_type", "move", "remove"}:
            gfns = found.setdefault(op.domid, {})
            if op.nr == 1:
                gfns[op.gfn] = None
                if op.kind == "move":
                    gfns[op.target] = None
                continue
            done = 0 if event.result is None else event.result.nr_done
            for first in (op.gfn, op.target) if op.kind == "move" else (op.gfn,):
                gfns.update(dict.fromkeys(_sample(first, op.nr, op.order, done)))
    return {domid: sorted(list(gfns)[:GFNS_MAX]) for domid, gfns in found.items()}


def _sample(first: int, nr: int, order: int, done: int) -> list[int]:
    """First gfns of extents: all of a few, else those at the ends and where the call stopped."""
    numbers: Iterable[int] = range(nr)
    if nr > 2 * _SAMPLE:
        numbers = [*range(_SAMPLE), min(done, nr - 1), *range(nr - _SAMPLE, nr)]
    return [first + (number << order) for number in numbers]


def _inside(gfns: list[int], first: int, nr: int) -> list[int]:
    """Those of ascending ``gfns`` that lie in [first, first + nr)."""
    low = bisect_left(gfns, first)
    return gfns[low : bisect_left(gfns, first + nr, low)]


def steps_of(event: Event, gfns: list[int], lame: bool) -> Told:
    """The steps of an operation, in the order in which it takes them at a gfn."""
    match event.op.kind:
        case "populate" | "decrease" | "mark_pod":
            return _extents(event, gfns, lame)
        case "get" | "get_alloc":
            return _look_ups(event, gfns)
        case "set_type":
            return _type_changes(event, gfns)
        case "move":
            return _moves(event, gfns)
        case "remove":
            return _removal(event)
        case "create" | "destroy" if event.result is None or not event.result.rc:
            return ((gfn, vanish, NOTHING) for gfn in gfns)
        case _:
            return iter(())


def _extents(event: Event, gfns: list[int], lame: bool) -> Told:
    op = event.op
    rule = EXTENTS[op.kind]
    done = op.nr if event.result is None else event.result.nr_done
    # Runs of 4K extents may be served by superpages (opportunistic), and again by 4K frames where
    # that failed half-way.
    again = op.kind == "populate" and lame and not op.order and op.nr >= 1 << ORDER_2M
    for gfn in _inside(gfns, op.gfn, op.nr << op.order):
        extent = (gfn - op.gfn) >> op.order
        if again:
            yield gfn, PERHAPS[rule], NOTHING
        if extent < done:
            yield gfn, rule, NOTHING
        elif extent == done and op.order:
            yield gfn, PERHAPS[rule], NOTHING
        elif extent == done and op.kind == "decrease" and not lame:
            yield gfn, not_removable, NOTHING


def _look_ups(event: Event, gfns: list[int]) -> Told:
    op, result = event.op, event.result
    if result is None:
        return
    for gfn, at in _one_by_one(op, gfns):
        frame = result.mfns[8 * at : 8 * at + 8]
        if len(frame) == 8 and at < len(result.types):
            value = int.from_bytes(frame, "little"), result.types[at]
            yield gfn, read, HOLE if value == NOT_MAPPED else value


def _type_changes(event: Event, gfns: list[int]) -> Told:
    op, result = event.op, event.result
    done = op.nr if result is None else result.nr_done
    busy = result is not None and result.rc == -Errno.EBUSY
    for gfn, at in _one_by_one(op, gfns):
        if at < done:
            yield gfn, set_type, (0, op.target)
        elif at == done and busy:
            # PoD would have been populated, or there was no memory for it.
            yield gfn, not_removable, NOTHING


def _one_by_one(op: Operation, gfns: list[int]) -> Iterator[tuple[int, int]]:
    """(gfn, its number in the call) where a call names single gfns, ``1 << order`` apart."""
    apart = (1 << op.order) - 1
    for gfn in _inside(gfns, op.gfn, op.nr << op.order):
        if not (gfn - op.gfn) & apart:
            yield gfn, (gfn - op.gfn) >> op.order


def _moves(event: Event, gfns: list[int]) -> Told:
    """Where source and destination overlap, a gfn is left before it is taken, in either direction.

    The type that arrives is the one that was there when the entry moved, not when it was checked.
    """
    op = event.op
    leave, take = remove, move_in
    if event.result is not None and event.result.rc:
        if op.nr == 1:
            return
        leave, take = PERHAPS[remove], PERHAPS[move_in]
    if op.gfn == op.target:
        if event.result is not None and not event.result.rc:
            for gfn in _inside(gfns, op.gfn, op.nr):
                yield gfn, move_in_place, NOTHING
        return
    for gfn in _inside(gfns, op.gfn, op.nr):
        yield gfn, leave, NOTHING
    for gfn in _inside(gfns, op.target, op.nr):
        yield gfn, take, NOTHING


def _removal(event: Event) -> Told:
    gfn, result = event.op.gfn, event.result
    if result is None or not result.rc:
        yield gfn, remove, NOTHING
    elif result.rc == -Errno.ENOENT:
        yield gfn, not_ram, NOTHING
