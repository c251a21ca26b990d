"""Whether what clients were told about each gfn can have happened in some order.

A gfn is a register: updates write it, look-ups read it. A history is right if, gfn by gfn, its
operations can be put in an order in which each one that had returned before another was called
comes first, and in which each returned what the specification says (linearizability, Herlihy and
Wing 1990). Linearizability is local, so gfns are looked at one by one; what an operation does to
several gfns need not happen at once.

A violation is never reported for a right history. So a state is a set of possible entries where
the history does not tell more: the frame of a populated gfn is unknown until a look-up tells it; a
PoD entry may be populated at any time; what was moved has an unknown frame and type; an extent
that was cut short may be changed or not. The search is just-in-time linearization with a memo of
(operations done, state), after Wing and Gong (1993) and Lowe (2017); in nearly every history the
order of return will do, and is tried first.

Left out: touch and translate, since walkers may use old translations until they are flushed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias

from protocols.errno import Errno
from protocols.frames import INVALID_FRAME, ORDER_2M
from protocols.p2m_types import RAM_TYPES, SPECIAL_TYPES, P2mType
from protocols.script import Operation
from services.spec.findings import DETAILS_MAX, Violation
from services.spec.history import Event

CONFIGURATIONS_MAX: Final = 200_000
"""A search that has seen so many gives up, and the history passes."""
GFNS_MAX: Final = 1024
"""So many gfns of a domain are looked at, those that were named first."""
_SAMPLE: Final = 8
"""Of a long list of extents so many are looked at at either end."""

# -- states ----------------------------------------------------------------------------------

State: TypeAlias = tuple[int, int]
"""(mfn, type): a set of entries. The mfn may be UNKNOWN, the type _ANY_RAM or _ANYTHING."""
Outcomes: TypeAlias = tuple[State, ...]
"""States that an operation may lead to; none if it cannot have happened here."""
Rule: TypeAlias = Callable[[State, State], Outcomes]
"""(operand, state before) to the states after."""

UNKNOWN: Final = -1
_ANY_RAM: Final = 256
_ANYTHING: Final = 257
_RAM_RW: Final = int(P2mType.RAM_RW)
_POD_TYPE: Final = int(P2mType.POPULATE_ON_DEMAND)
_HOLE: Final = (INVALID_FRAME, int(P2mType.MMIO_DM))
_NOT_MAPPED: Final = (INVALID_FRAME, int(P2mType.INVALID))
_POD: Final = (INVALID_FRAME, _POD_TYPE)
"""A PoD entry, or what became of it when somebody looked: RAM_RW with an unknown frame."""
_FRESH: Final = (UNKNOWN, _RAM_RW)
_MOVED: Final = (UNKNOWN, _ANY_RAM)
_WILD: Final = (UNKNOWN, _ANYTHING)
_NOTHING: Final = (0, 0)

_SPECIAL: Final = frozenset(int(p2mt) for p2mt in SPECIAL_TYPES)
_PAGING: Final = frozenset({P2mType.RAM_PAGING_OUT, P2mType.RAM_PAGED, P2mType.RAM_PAGING_IN})
_PLAIN_RAM: Final = frozenset(int(p2mt) for p2mt in RAM_TYPES - _PAGING)
"""RAM that always has its frame; the paging types are not modelled."""
_NO_FRAME: Final = frozenset({int(P2mType.INVALID), int(P2mType.MMIO_DM), _POD_TYPE})
_RAM: Final = _PLAIN_RAM | {_ANY_RAM}
_REMOVABLE: Final = _RAM | {_POD_TYPE, _ANYTHING}
_MODELLED: Final = _PLAIN_RAM | _SPECIAL
_MOVABLE: Final = frozenset({_RAM_RW, int(P2mType.RAM_LOGDIRTY), _ANY_RAM})


def _state(mfn: int, p2mt: int) -> State:
    """An entry as a state; one of a type that is not modelled may be anything."""
    if mfn == INVALID_FRAME and p2mt in _NO_FRAME:
        return _POD if p2mt == _POD_TYPE else _HOLE
    return (mfn, int(p2mt)) if p2mt in _MODELLED else _WILD


def _entry(state: State) -> str:
    """A state or a value in words."""
    mfn, kind = state
    if state == _HOLE:
        return "hole"
    name = P2mType(kind).name.lower() if kind <= max(P2mType) else "?"
    return name if mfn in {INVALID_FRAME, UNKNOWN} else f"mfn {mfn:#x} {name}"


# -- rules -----------------------------------------------------------------------------------


def _read(value: State, state: State) -> Outcomes:
    """A look-up found ``value``, which tells what was unknown."""
    if state == value:
        return (state,)
    mfn, kind = state
    if kind == _ANYTHING:
        return (_state(*value),)
    if value[0] == INVALID_FRAME or value[1] not in _RAM:
        return ()
    if kind == _POD_TYPE:
        return (value,) if value[1] == _RAM_RW else ()
    fits = mfn in {UNKNOWN, value[0]} and (kind == value[1] or kind == _ANY_RAM)
    return (value,) if fits else ()


def _populate(_: State, state: State) -> Outcomes:
    return () if state[1] in _SPECIAL else (_FRESH,)


def _remove(_: State, state: State) -> Outcomes:
    """decrease_reservation; remove_from_physmap and the source of a move, if not PoD any more."""
    return (_HOLE,) if state[1] in _REMOVABLE else ()


def _not_removable(_: State, state: State) -> Outcomes:
    """decrease_reservation stopped here without want of memory."""
    return () if state[1] in _RAM or state[1] == _POD_TYPE else (state,)


def _not_ram(_: State, state: State) -> Outcomes:
    """remove_from_physmap found no RAM."""
    return () if state[1] in _RAM else (state,)


def _set_type(new: State, state: State) -> Outcomes:
    mfn, kind = state
    if kind not in _REMOVABLE:
        return ()
    if new[1] not in _PLAIN_RAM:
        return (_WILD,)
    return ((mfn if kind in _RAM else UNKNOWN, new[1]),)


def _move_in(_: State, state: State) -> Outcomes:
    return () if state[1] in _SPECIAL else (_MOVED,)


def _move_in_place(_: State, state: State) -> Outcomes:
    """A move of a gfn to itself only looks."""
    if state[1] in _MOVABLE:
        return (state,)
    if state[1] == _POD_TYPE:
        return (_FRESH,)
    return (_MOVED,) if state[1] == _ANYTHING else ()


def _mark_pod(_: State, state: State) -> Outcomes:
    return (_POD,) if state in {_HOLE, _POD, _WILD} else ()


def _vanish(_: State, __: State) -> Outcomes:
    """The domain was destroyed, or made anew."""
    return (_HOLE,)


def _perhaps(rule: Rule) -> Rule:
    """An operation that failed on the way: it may have come to this gfn or not."""

    def either(value: State, state: State) -> Outcomes:
        return (state, *rule(value, state))

    return either


_PERHAPS: Final = {rule: _perhaps(rule) for rule in (_populate, _remove, _mark_pod, _move_in)}
_LOOKS: Final = frozenset({_read, _not_removable, _not_ram, _move_in_place})
"""Rules that tell about the entry and leave it as it is."""
_EXTENTS: Final[Mapping[str, Rule]] = {
    "populate": _populate,
    "decrease": _remove,
    "mark_pod": _mark_pod,
}


# -- from operations to steps ----------------------------------------------------------------


class Step(NamedTuple):
    """What an operation did to one gfn."""

    event: Event
    rule: Rule
    operand: State


Told: TypeAlias = Iterator[tuple[int, Rule, State]]
"""(gfn, rule, operand) of each step of an operation."""


def check(
    events: Sequence[Event],
    initial: Mapping[tuple[int, int], tuple[int, P2mType]],
    excused: Collection[int],
) -> list[Violation]:
    """The gfns whose history no order explains; at most DETAILS_MAX of them.

    Args:
        events: the whole history, in any order.
        initial: (domid, gfn) to (mfn, type) at the start; a gfn that is missing is a hole.
        excused: domids that met a failed allocation: their decreases may stop without a reason
            that the history shows, and their populates may leave a part of a failed call behind.
    """
    history = sorted(events, key=_by_return)
    gfns = _gfns_named(history)
    lame = {*excused, *(e.op.domid for e in history if e.op.kind in {"create", "destroy"})}
    registers: dict[tuple[int, int], list[Step]] = {}
    for event in history:
        domid = event.op.domid
        known = gfns.get(domid)
        if known:
            for gfn, rule, operand in _steps(event, known, domid in lame):
                registers.setdefault((domid, gfn), []).append(Step(event, rule, operand))
    found: list[Violation] = []
    for place, steps in registers.items():
        start = _state(*initial[place]) if place in initial else _HOLE
        if not _in_order_of_return(steps, start):
            nr = sum(step.event.ret is not None for step in steps)
            if _explain(steps, nr, start) is None:
                found.append(_violation(place, steps, start, nr))
                if len(found) == DETAILS_MAX:
                    break
    return found


def _by_return(event: Event) -> tuple[bool, int, int]:
    return event.ret is None, event.ret or 0, event.call


def _gfns_named(history: Iterable[Event]) -> dict[int, list[int]]:
    """The gfns to look at in each domain, ascending: pages named, and the first of larger extents.

    The other frames of an extent have the same history unless another operation names them.
    """
    found: dict[int, dict[int, None]] = {}
    for event in history:
        op = event.op
        if op.kind in _EXTENTS or op.kind in {"get", "get_alloc", "set_type", "move", "remove"}:
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


def _steps(event: Event, gfns: list[int], lame: bool) -> Told:
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
            return ((gfn, _vanish, _NOTHING) for gfn in gfns)
        case _:
            return iter(())


def _extents(event: Event, gfns: list[int], lame: bool) -> Told:
    op = event.op
    rule = _EXTENTS[op.kind]
    done = op.nr if event.result is None else event.result.nr_done
    # Runs of 4K extents may be served by superpages (opportunistic), and again by 4K frames where
    # that failed half-way.
    again = op.kind == "populate" and lame and not op.order and op.nr >= 1 << ORDER_2M
    for gfn in _inside(gfns, op.gfn, op.nr << op.order):
        extent = (gfn - op.gfn) >> op.order
        if again:
            yield gfn, _PERHAPS[rule], _NOTHING
        if extent < done:
            yield gfn, rule, _NOTHING
        elif extent == done and op.order:
            yield gfn, _PERHAPS[rule], _NOTHING
        elif extent == done and op.kind == "decrease" and not lame:
            yield gfn, _not_removable, _NOTHING


def _look_ups(event: Event, gfns: list[int]) -> Told:
    op, result = event.op, event.result
    if result is None:
        return
    for gfn, at in _one_by_one(op, gfns):
        frame = result.mfns[8 * at : 8 * at + 8]
        if len(frame) == 8 and at < len(result.types):
            value = int.from_bytes(frame, "little"), result.types[at]
            yield gfn, _read, _HOLE if value == _NOT_MAPPED else value


def _type_changes(event: Event, gfns: list[int]) -> Told:
    op, result = event.op, event.result
    done = op.nr if result is None else result.nr_done
    busy = result is not None and result.rc == -Errno.EBUSY
    for gfn, at in _one_by_one(op, gfns):
        if at < done:
            yield gfn, _set_type, (0, op.target)
        elif at == done and busy:
            # PoD would have been populated, or there was no memory for it.
            yield gfn, _not_removable, _NOTHING


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
    leave, take = _remove, _move_in
    if event.result is not None and event.result.rc:
        if op.nr == 1:
            return
        leave, take = _PERHAPS[_remove], _PERHAPS[_move_in]
    if op.gfn == op.target:
        if event.result is not None and not event.result.rc:
            for gfn in _inside(gfns, op.gfn, op.nr):
                yield gfn, _move_in_place, _NOTHING
        return
    for gfn in _inside(gfns, op.gfn, op.nr):
        yield gfn, leave, _NOTHING
    for gfn in _inside(gfns, op.target, op.nr):
        yield gfn, take, _NOTHING


def _removal(event: Event) -> Told:
    gfn, result = event.op.gfn, event.result
    if result is None or not result.rc:
        yield gfn, _remove, _NOTHING
    elif result.rc == -Errno.ENOENT:
        yield gfn, _not_ram, _NOTHING


# -- search ----------------------------------------------------------------------------------


def _in_order_of_return(steps: Sequence[Step], state: State) -> bool:
    """Whether the plainest order explains all; what never returned had no effect in it."""
    for event, rule, operand in steps:
        if event.ret is None:
            break
        outcomes = rule(operand, state)
        if not outcomes:
            return False
        state = outcomes[0]
    return True


def _precedes(one: Event, other: Event) -> bool:
    """Whether an event had returned when the other was called."""
    if one.ret is None or one.ret > other.call:
        return False
    return one.ret < other.call or (one.client == other.client and one.call < one.ret)


def _predecessors(steps: Sequence[Step]) -> list[int]:
    """For each step the set of those that must come before it, as bits."""
    masks: list[int] = []
    for at, step in enumerate(steps):
        mask = 0
        if at and steps[at - 1].event is step.event:
            mask = 1 << (at - 1)
        for before, other in enumerate(steps):
            if other.event.ret is None or other.event.ret > step.event.call:
                break
            if _precedes(other.event, step.event):
                mask |= 1 << before
        masks.append(mask)
    return masks


Path: TypeAlias = "tuple[Step, Path] | None"
"""Steps taken, the last one first."""


def _explain(steps: Sequence[Step], nr: int, start: State) -> list[Step] | None:
    """An order of the first ``nr`` steps that explains them, or None.

    ``steps`` are in order of return; those from ``nr`` on may come in or not.
    """
    before = _predecessors(steps)
    goal = (1 << nr) - 1
    seen = {(0, start)}
    stack: list[tuple[int, State, Path]] = [(0, start, None)]
    while stack:
        done, state, path = stack.pop()
        if done & goal == goal:
            return _unwound(path)
        if len(seen) > CONFIGURATIONS_MAX:
            return list(steps[:nr])
        branches: list[tuple[int, State, Path]] = []
        for at, step in enumerate(steps):
            bit = 1 << at
            if done & bit or before[at] & ~done:
                continue
            outcomes = step.rule(step.operand, state)
            if outcomes == (state,) and step.rule in _LOOKS:
                # It fits here and changes nothing: no order is lost by taking it at once.
                branches = [(done | bit, state, (step, path))]
                break
            branches += [(done | bit, outcome, (step, path)) for outcome in outcomes]
        for branch in reversed(branches):
            if branch[:2] not in seen:
                seen.add(branch[:2])
                stack.append(branch)
    return None


def _unwound(path: Path) -> list[Step]:
    order: list[Step] = []
    while path is not None:
        step, path = path
        order.append(step)
    return order[::-1]


# -- what to say -----------------------------------------------------------------------------


def _violation(place: tuple[int, int], steps: Sequence[Step], start: State, nr: int) -> Violation:
    """The shortest part of a gfn's history that has no order, without look-ups that do not matter.

    Args:
        place: (domid, gfn).
        steps: all of its history, in order of return.
        start: its state at the start.
        nr: steps that have returned.
    """

    def unexplained(size: int) -> bool:
        return _explain([*steps[:size], *_under_way(steps, size)], size, start) is None

    size = bisect_left(range(1, nr), True, key=unexplained) + 1
    kept, last = list(steps[: size - 1]), steps[size - 1]
    others = _under_way(steps, size)
    for at in reversed(range(len(kept))):
        fewer = kept[:at] + kept[at + 1 :]
        rest = [*fewer, last, *others]
        if kept[at].rule in _LOOKS and _explain(rest, len(fewer) + 1, start) is None:
            kept = fewer
    order = _explain([*kept, *others], len(kept), start) or kept
    words = [f"at first {_entry(start)}", *(_words(step, place[1]) for step in order)]
    words.append(f"then {_words(last, place[1])}")
    words += [f"under way {_words(step, place[1])}" for step in others if step not in order]
    message = f"no order of these operations explains: {'; '.join(words)}"
    return Violation("linearizable", message, *place)


def _under_way(steps: Sequence[Step], size: int) -> list[Step]:
    """Steps beyond the first ``size`` that had been called when the last of these returned."""
    last = steps[size - 1].event
    return [step for step in steps[size:] if not _precedes(last, step.event)]


def _words(step: Step, gfn: int) -> str:
    """A step as ``c1 get 0x201 -> hole``."""
    event = step.event
    op, result = event.op, event.result
    words = [f"c{event.client} {op.kind}"]
    if op.kind not in {"create", "destroy"}:
        words.append(f"{op.gfn:#x}")
    if op.kind == "move":
        words.append(f"to {op.target:#x}")
    elif op.kind == "set_type" and op.target in P2mType.__members__.values():
        words.append(P2mType(op.target).name.lower())
    if op.order:
        words.append(f"order {op.order}")
    if op.nr > 1 and op.kind != "create":
        words.append(f"nr {op.nr}")
    said = "no return"
    if step.rule is _read:
        if op.nr > 1:
            words.append(f"at {gfn:#x}")
        said = _entry(step.operand)
    elif result is not None:
        said = f"rc {result.rc}" if result.rc else "ok"
        if op.kind in _EXTENTS or (op.kind == "set_type" and op.nr > 1):
            said = f"{result.nr_done} done"
    return f"{' '.join(words)} -> {said}"
