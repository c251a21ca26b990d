"""What a run, or a hypercall, would have won if one component had taken no time.

A component's share of the critical path only bounds that: as it gets shorter another path becomes
the longest. So the run is done again on paper. What each shard handled, and in which order, is
taken as it was; a message is handled when it has come and the shard is through with the one before,
and what a step sends is sent as long after its beginning as it was. Steps of the free component
take no time, nor does the way of messages if that is the transport. All else stays: what nothing in
the trace explains (the client thinks, a shard is polled) is waited for as before, and so is a
message's way, with what it waited in its sender's batch.

A run in one process is one shard, whatever services the trace tells apart.

The loop below is plain Python, and what numba compiles for long traces.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, cached_property
from types import FunctionType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from services.trace.frame import Trace
from services.trace.stats import services

TRANSPORT: Final = "transport"
"""Whom the time is booked on that messages spend between shards."""
ONE_PROCESS: Final = ("local", "stress")
"""Runtimes in which one thread does everything."""
COMPILE_FROM: Final = 50_000
"""Messages from which on compiling the loop is worth its seconds."""
NOBODY: Final = -1
ON_THE_WAY: Final = -2
"""Numbers beside those of services: nothing is free, the transport is."""

Ticks = npt.NDArray[np.int64]


class WhatIf:
    """One trace. ``waits_for``: for each message the row of the one that made its sender send it.

    -1 where there is none: such messages are sent when they were.
    """

    def __init__(self, trace: Trace, waits_for: Ticks) -> None:
        m = trace.messages
        self._services, of = services(trace.names)
        started = m["started"]
        order = np.argsort(started, kind="stable")
        if m.rows and not np.diff(started[order]).all():
            # Steps of no length: what was sent first comes first.
            order = np.lexsort((m["sent"], started))
        self._order = order
        self._at: Ticks = np.empty(m.rows, dtype=np.int64)
        self._at[order] = np.arange(m.rows)
        self._started: Ticks = started[order]
        self._sent: Ticks = m["sent"][order]
        self._transit: Ticks = m["received"][order] - self._sent
        self._owner: Ticks = of[m["dst"][order]] if m.rows else np.zeros(0, dtype=np.int64)
        self._cause = self._causes(waits_for[order])
        base = self._started[np.maximum(self._cause, 0)]
        self._offset: Ticks = np.where(self._cause >= 0, self._sent - base, 0)
        is_one = trace.header.get("runtime") in ONE_PROCESS
        shard = np.zeros(m.rows, dtype=np.uint16) if is_one else m["shard"][order]
        self._before, after = _neighbours(shard)
        self._lasted = self._lengths(trace, after)
        free_at = self._started[self._before] + self._lasted[self._before]
        ready = self._sent + self._transit
        ready = np.where(self._before >= 0, np.maximum(ready, free_at), ready)
        self._gap: Ticks = self._started - ready
        self._tail = self._tails(trace)
        self._columns: list[Any] = [
            self._cause, self._before, self._started, self._sent, self._offset, self._transit,
            self._gap, self._lasted, self._tail, self._owner,
        ]  # fmt: skip
        self._loop: Callable[..., Any] = _propagate
        if m.rows >= COMPILE_FROM:
            self._loop = _compiled()
        else:
            # Python reads numbers of its own faster than those of an array.
            self._columns = [column.tolist() for column in self._columns]

    def run(self) -> dict[str, int]:
        """Ticks by which the whole run would have ended earlier, by the free component."""
        begin, nr = int(self._sent.min()), len(self._order)
        _, end = self._times(NOBODY, begin, 0, nr)
        assert end == self.end, f"done again, the run ends at {end} and not at {self.end}"
        return self._won(lambda free: end - self._times(free, begin, 0, nr)[1], 0, nr)

    def request(self, request: int, reply: int) -> dict[str, int]:
        """Ticks by which the answer in row ``reply`` would have been there earlier.

        What began before the request was there stays as it was.
        """
        at = int(self._at[request])
        begin = int(self._sent[at] + self._transit[at])
        first, last = int(np.searchsorted(self._started, begin)), int(self._at[reply])
        cause, sent = int(self._cause[last]), int(self._sent[last])
        if cause < first:
            return {}

        def won(free: int) -> int:
            started, _ = self._times(free, begin, first, last)
            offset = 0 if self._owner[cause] == free else int(self._offset[last])
            return sent - max(int(started[cause - first]) + offset, begin)

        return self._won(won, first, last)

    @cached_property
    def end(self) -> int:
        """When the last step of the run ended, as recorded."""
        over = self._started + np.maximum(self._lasted, self._tail)
        return int(max(over.max(), self._sent.max()))

    def _won(self, won: Callable[[int], int], first: int, last: int) -> dict[str, int]:
        """What each component wins that has a step among these, the most first."""
        numbers: list[int] = np.unique(self._owner[first:last]).tolist()
        found = {self._services[number]: won(number) for number in numbers}
        found[TRANSPORT] = won(ON_THE_WAY)
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def _times(self, free: int, begin: int, first: int, last: int) -> tuple[Any, int]:
        """When each step from ``first`` to ``last`` begins, and when the last of them ends."""
        is_plain = self._loop is _propagate
        out: Any = [0] * (last - first) if is_plain else np.zeros(last - first, dtype=np.int64)
        end = self._loop(*self._columns, free, begin, first, last, out)
        return out, int(end)

    def _causes(self, rows: Ticks) -> Ticks:
        """Where the cause of each message is in the order of beginning; -1 for none.

        Clocks of two processes may disagree; a cause that began later than its message is none.
        """
        at = np.where(rows >= 0, self._at[np.maximum(rows, 0)], -1)
        began = self._started[np.maximum(at, 0)]
        return np.where((at < np.arange(len(at))) & (began <= self._sent), at, -1)

    def _lengths(self, trace: Trace, after: Ticks) -> Ticks:
        """How long the step took that each message began.

        Only its last step has its end in the row of a request that waited; of the first it is known
        when it sent something.
        """
        m = trace.messages
        ended, busy = m["ended"][self._order], m["busy"][self._order]
        whole = np.where(ended >= 0, ended - self._started, busy)
        lasted: Ticks = np.where(m["resumed"][self._order] == 0, whole, 0).astype(np.int64)
        # What the client got is not what it does until it sends something.
        known = (self._cause >= 0) & (m["cause"][self._order] > 0)
        np.maximum.at(lasted, self._cause[known], self._offset[known])
        room = np.where(after >= 0, self._started[np.maximum(after, 0)] - self._started, lasted)
        return np.maximum(np.minimum(lasted, room), 0)

    def _tails(self, trace: Trace) -> Ticks:
        """From its beginning to its end, of each request that waited and has no answer in here."""
        m = trace.messages
        rows = np.flatnonzero((m["ended"] >= 0) & (m["resumed"] > 0))
        asked = np.append(np.sort(m["reply_to"]), np.uint64(0))
        ids = m["id"][rows]
        rows = rows[asked[np.searchsorted(asked[:-1], ids)] != ids]
        tail: Ticks = np.zeros(m.rows, dtype=np.int64)
        tail[self._at[rows]] = m["ended"][rows] - m["started"][rows]
        return tail


def _neighbours(shard: npt.NDArray[np.uint16]) -> tuple[Ticks, Ticks]:
    """Of each message those before and after it on its shard; -1 for none."""
    by_shard = np.argsort(shard, kind="stable")
    ordered = shard[by_shard]
    same = ordered[1:] == ordered[:-1]
    before: Ticks = np.full(len(shard), -1, dtype=np.int64)
    after: Ticks = np.full(len(shard), -1, dtype=np.int64)
    before[by_shard[1:][same]] = by_shard[:-1][same]
    after[by_shard[:-1][same]] = by_shard[1:][same]
    return before, after


def _propagate(
    cause: Any,
    before: Any,
    started: Any,
    sent: Any,
    offset: Any,
    transit: Any,
    gap: Any,
    lasted: Any,
    tail: Any,
    owner: Any,
    free: Any,
    begin: Any,
    first: Any,
    last: Any,
    out: Any,
) -> Any:
    """Beginnings of the steps from ``first`` on to ``out``; when the last of them is over."""
    end = begin
    for at in range(first, last):
        made = cause[at]
        if made >= first:
            when = out[made - first]
            if owner[made] != free:
                when += offset[at]
        else:
            when = sent[at]
        end = max(end, when)
        if free != ON_THE_WAY or transit[at] < 0 or sent[at] < begin:
            when += transit[at]
        earlier = before[at]
        if earlier >= first:
            through = out[earlier - first]
            if owner[earlier] != free:
                through += lasted[earlier]
            when = max(when, through)
        elif earlier >= 0:
            when = max(when, started[earlier] + lasted[earlier])
        when += gap[at]
        out[at - first] = when
        end = max(end, when + tail[at])
        if owner[at] != free:
            end = max(end, when + lasted[at])
    return end


@cache
def _compiled() -> Callable[..., Any]:
    """The loop compiled; numba is imported when needed."""
    import numba  # type: ignore[import-untyped]  # noqa: PLC0415

    module: Any = numba
    return module.njit(cache=True)(FunctionType(_propagate.__code__, globals()))
