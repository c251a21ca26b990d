"""A gfn as a register: the sets of entries that it may hold, and what an operation does to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from protocols.frames import INVALID_FRAME
from protocols.p2m_types import RAM_TYPES, SPECIAL_TYPES, P2mType

State: TypeAlias = tuple[int, int]
"""(mfn, type): a set of entries. The mfn may be UNKNOWN, the type ANY_RAM or ANYTHING."""
Outcomes: TypeAlias = tuple[State, ...]
"""States that an operation may lead to; none if it cannot have happened here."""
Rule: TypeAlias = Callable[[State, State], Outcomes]
"""(operand, state before) to the states after."""

UNKNOWN: Final = -1
ANY_RAM: Final = 256
ANYTHING: Final = 257
RAM_RW: Final = int(P2mType.RAM_RW)
POD_TYPE: Final = int(P2mType.POPULATE_ON_DEMAND)
HOLE: Final = (INVALID_FRAME, int(P2mType.MMIO_DM))
NOT_MAPPED: Final = (INVALID_FRAME, int(P2mType.INVALID))
POD: Final = (INVALID_FRAME, POD_TYPE)
"""A PoD entry, or what became of it when somebody looked: RAM_RW with an unknown frame."""
FRESH: Final = (UNKNOWN, RAM_RW)
MOVED: Final = (UNKNOWN, ANY_RAM)
WILD: Final = (UNKNOWN, ANYTHING)
NOTHING: Final = (0, 0)

SPECIAL: Final = frozenset(int(p2mt) for p2mt in SPECIAL_TYPES)
_PAGING: Final = frozenset({P2mType.RAM_PAGING_OUT, P2mType.RAM_PAGED, P2mType.RAM_PAGING_IN})
PLAIN_RAM: Final = frozenset(int(p2mt) for p2mt in RAM_TYPES - _PAGING)
"""RAM that always has its frame; the paging types are not modelled."""
_NO_FRAME: Final = frozenset({int(P2mType.INVALID), int(P2mType.MMIO_DM), POD_TYPE})
RAM: Final = PLAIN_RAM | {ANY_RAM}
REMOVABLE: Final = RAM | {POD_TYPE, ANYTHING}
_MODELLED: Final = PLAIN_RAM | SPECIAL
MOVABLE: Final = frozenset({RAM_RW, int(P2mType.RAM_LOGDIRTY), ANY_RAM})


def state_of(mfn: int, p2mt: int) -> State:
    """An entry as a state; one of a type that is not modelled may be anything."""
    if mfn == INVALID_FRAME and p2mt in _NO_FRAME:
        return POD if p2mt == POD_TYPE else HOLE
    return (mfn, int(p2mt)) if p2mt in _MODELLED else WILD


def read(value: State, state: State) -> Outcomes:
    """A look-up found ``value``, which tells what was unknown."""
    if state == value:
        return (state,)
    mfn, kind = state
    if kind == ANYTHING:
        return (state_of(*value),)
    if value[0] == INVALID_FRAME or value[1] not in RAM:
        return ()
    if kind == POD_TYPE:
        return (value,) if value[1] == RAM_RW else ()
    fits = mfn in {UNKNOWN, value[0]} and (kind == value[1] or kind == ANY_RAM)
    return (value,) if fits else ()


def populate(_: State, state: State) -> Outcomes:
    """A frame of its own, unless something special is in the way."""
    return () if state[1] in SPECIAL else (FRESH,)


def remove(_: State, state: State) -> Outcomes:
    """decrease_reservation; remove_from_physmap and the source of a move, if not PoD any more."""
    return (HOLE,) if state[1] in REMOVABLE else ()


def not_removable(_: State, state: State) -> Outcomes:
    """decrease_reservation stopped here without want of memory."""
    return () if state[1] in RAM or state[1] == POD_TYPE else (state,)


def not_ram(_: State, state: State) -> Outcomes:
    """remove_from_physmap found no RAM."""
    return () if state[1] in RAM else (state,)


def set_type(new: State, state: State) -> Outcomes:
    """The frame stays; on demand there was none yet."""
    mfn, kind = state
    if kind not in REMOVABLE:
        return ()
    if new[1] not in PLAIN_RAM:
        return (WILD,)
    return ((mfn if kind in RAM else UNKNOWN, new[1]),)


def move_in(_: State, state: State) -> Outcomes:
    """What is moved here takes the place of anything but special pages."""
    return () if state[1] in SPECIAL else (MOVED,)


def move_in_place(_: State, state: State) -> Outcomes:
    """A move of a gfn to itself only looks."""
    if state[1] in MOVABLE:
        return (state,)
    if state[1] == POD_TYPE:
        return (FRESH,)
    return (MOVED,) if state[1] == ANYTHING else ()


def mark_pod(_: State, state: State) -> Outcomes:
    """Only where nothing is."""
    return (POD,) if state in {HOLE, POD, WILD} else ()


def vanish(_: State, __: State) -> Outcomes:
    """The domain was destroyed, or made anew."""
    return (HOLE,)


def _perhaps(rule: Rule) -> Rule:
    """An operation that failed on the way: it may have come to this gfn or not."""

    def either(value: State, state: State) -> Outcomes:
        return (state, *rule(value, state))

    return either


PERHAPS: Final = {rule: _perhaps(rule) for rule in (populate, remove, mark_pod, move_in)}
LOOKS: Final = frozenset({read, not_removable, not_ram, move_in_place})
"""Rules that tell about the entry and leave it as it is."""
