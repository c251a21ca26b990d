"""Whether every access of a guest went to a frame that it could still know.

A walker may use an old translation until the update that replaced it has been answered; from then
on nobody may find anything older. So of all that a gfn has been, an access may return what it was
at some time before the access ended, and not before the last update that had been answered when
the access began: a client's own last operation counts, and so does a later update than the next.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from protocols.frames import INVALID_FRAME, unpack
from services.spec.findings import Violation
from services.spec.history import Event

NEVER: Final = 1 << 62
"""The position at which an operation returns that never does."""
NOBODY: Final = -1
"""The client of what was there at the start."""


class Version(NamedTuple):
    """What a gfn translates to from a step on, and the client whose operation changed it.

    ``mfn`` is INVALID_FRAME where no access gets through.
    """

    since: int
    client: int
    mfn: int


Timelines = Mapping[tuple[int, int], Sequence[Version]]
"""(domid, gfn) to its versions, oldest first."""


class _Timeline:
    """The versions of one gfn, so that an access is looked up and not searched for."""

    def __init__(self, versions: Sequence[Version], clients: _Clients) -> None:
        self._since = [version.since for version in versions]
        self._places: dict[int, list[int]] = {}
        for at, version in enumerate(versions):
            self._places.setdefault(version.mfn, []).append(at)
        answered = [clients.answered(version) for version in versions]
        # First answer to this version or a later one: ascending, so that it can be bisected.
        for at in range(len(answered) - 2, -1, -1):
            answered[at] = min(answered[at], answered[at + 1])
        self._answered = answered

    def explains(self, mfn: int, call: int, ret: int) -> bool:
        """Whether an access between two positions may have found the frame."""
        first = max(0, bisect_right(self._answered, call) - 1)
        end = bisect_right(self._since, ret)
        places = self._places.get(mfn, [])
        at = bisect_left(places, first)
        return at < len(places) and places[at] < end


class _Clients:
    """When each client was told of its operations."""

    def __init__(self, history: Sequence[Event]) -> None:
        self._calls: dict[int, list[int]] = {}
        self._returns: dict[int, list[int]] = {}
        for event in sorted(history, key=_by_call):
            self._calls.setdefault(event.client, []).append(event.call)
            returned = NEVER if event.ret is None else event.ret
            self._returns.setdefault(event.client, []).append(returned)

    def answered(self, version: Version) -> int:
        """The position at which the client of a version was told that it is there.

        What was there at the start was known all along. A change that comes when its operation
        has returned already comes too late: it counts from that return on.
        """
        if version.client == NOBODY:
            return version.since
        at = bisect_right(self._calls.get(version.client, []), version.since) - 1
        assert at >= 0, f"step {version.since}: client {version.client} had called nothing yet"
        return self._returns[version.client][at]


def _by_call(event: Event) -> tuple[int, int]:
    return event.call, NEVER if event.ret is None else event.ret


def check(history: Sequence[Event], timelines: Timelines) -> Violation | None:
    """The first access that went to a frame which nobody could still know there.

    Positions are those of one run of the engine, where a step belongs to one client: of two events
    at the same position the return comes first, and the call is the same client's next.

    Args:
        history: all operations, in any order.
        timelines: of the gfns that were watched; others are not looked at.
    """
    clients = _Clients(history)
    known: dict[tuple[int, int], _Timeline] = {}
    for event in history:
        op = event.op
        if op.kind not in {"touch", "translate"} or event.result is None:
            continue
        assert event.ret is not None, f"{op.kind} with a result never returned"
        domid = op.domid if op.kind == "touch" else op.target
        for number, mfn in enumerate(unpack(event.result.mfns).tolist()):
            place = domid, op.gfn + (number << op.order)
            if place not in timelines:
                continue
            if place not in known:
                known[place] = _Timeline(timelines[place], clients)
            if not known[place].explains(mfn, event.call, event.ret):
                return _violation(event, place, mfn)
    return None


def _violation(event: Event, place: tuple[int, int], mfn: int) -> Violation:
    what = "nothing" if mfn == INVALID_FRAME else f"mfn {mfn:#x}"
    return Violation(
        "access_current",
        f"client {event.client}'s {event.op.kind} (steps {event.call} to {event.ret}) found {what},"
        " which no update that could still be under way explains",
        *place,
        None if mfn == INVALID_FRAME else mfn,
    )
