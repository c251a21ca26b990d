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
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from protocols.frames import INVALID_FRAME
from protocols.p2m_types import P2mType
from services.spec.findings import DETAILS_MAX, Violation
from services.spec.history import Event
from services.spec.orders import explain, in_order_of_return, precedes
from services.spec.register_rules import HOLE, LOOKS, UNKNOWN, State, read, state_of
from services.spec.register_steps import EXTENTS, Step, by_return, gfns_named, steps_of

CONFIGURATIONS_MAX: Final = 200_000
"""A search that has seen so many gives up, and the history passes."""


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
    history = sorted(events, key=by_return)
    gfns = gfns_named(history)
    lame = {*excused, *(e.op.domid for e in history if e.op.kind in {"create", "destroy"})}
    registers: dict[tuple[int, int], list[Step]] = {}
    for event in history:
        domid = event.op.domid
        known = gfns.get(domid)
        if known:
            for gfn, rule, operand in steps_of(event, known, domid in lame):
                registers.setdefault((domid, gfn), []).append(Step(event, rule, operand))
    found: list[Violation] = []
    for place, steps in registers.items():
        start = state_of(*initial[place]) if place in initial else HOLE
        if not in_order_of_return(steps, start):
            nr = sum(step.event.ret is not None for step in steps)
            if explain(steps, nr, start, CONFIGURATIONS_MAX) is None:
                found.append(_violation(place, steps, start, nr))
                if len(found) == DETAILS_MAX:
                    break
    return found


def _entry(state: State) -> str:
    """A state or a value in words."""
    mfn, kind = state
    if state == HOLE:
        return "hole"
    name = P2mType(kind).name.lower() if kind <= max(P2mType) else "?"
    return name if mfn in {INVALID_FRAME, UNKNOWN} else f"mfn {mfn:#x} {name}"


def _violation(place: tuple[int, int], steps: Sequence[Step], start: State, nr: int) -> Violation:
    """The shortest part of a gfn's history that has no order, without look-ups that do not matter.

    Args:
        place: (domid, gfn).
        steps: all of its history, in order of return.
        start: its state at the start.
        nr: steps that have returned.
    """

    def unexplained(size: int) -> bool:
        return (
            explain([*steps[:size], *_under_way(steps, size)], size, start, CONFIGURATIONS_MAX)
            is None
        )

    size = bisect_left(range(1, nr), True, key=unexplained) + 1
    kept, last = list(steps[: size - 1]), steps[size - 1]
    others = _under_way(steps, size)
    for at in reversed(range(len(kept))):
        fewer = kept[:at] + kept[at + 1 :]
        rest = [*fewer, last, *others]
        if (
            kept[at].rule in LOOKS
            and explain(rest, len(fewer) + 1, start, CONFIGURATIONS_MAX) is None
        ):
            kept = fewer
    order = explain([*kept, *others], len(kept), start, CONFIGURATIONS_MAX) or kept
    words = [f"at first {_entry(start)}", *(_words(step, place[1]) for step in order)]
    words.append(f"then {_words(last, place[1])}")
    words += [f"under way {_words(step, place[1])}" for step in others if step not in order]
    message = f"no order of these operations explains: {'; '.join(words)}"
    return Violation("linearizable", message, *place)


def _under_way(steps: Sequence[Step], size: int) -> list[Step]:
    """Steps beyond the first ``size`` that had been called when the last of these returned."""
    last = steps[size - 1].event
    return [step for step in steps[size:] if not precedes(last, step.event)]


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
    if step.rule is read:
        if op.nr > 1:
            words.append(f"at {gfn:#x}")
        said = _entry(step.operand)
    elif result is not None:
        said = f"rc {result.rc}" if result.rc else "ok"
        if op.kind in EXTENTS or (op.kind == "set_type" and op.nr > 1):
            said = f"{result.nr_done} done"
    return f"{' '.join(words)} -> {said}"
