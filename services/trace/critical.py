"""What a hypercall, or the whole run, waited for: the chain of causes that ends with its answer.

Every message knows the message whose delivery made its sender send it. Followed backwards from an
answer, that is the critical path: each step on it could not begin before the one before it had
ended, and nothing beside it was waited for. What would be won if a component were free is another
question: ``services.trace.what_if`` answers it.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from services.trace.frame import Trace
from services.trace.stats import groups, service_of
from services.trace.what_if import TRANSPORT, WhatIf

CLIENT: Final = "client"
PARTS: Final = ("idle", "transit", "queue", "service")
"""What a message on the path waited for, one after the other."""
SEGMENTS_MAX: Final = 2000
Ticks = npt.NDArray[np.int64]


class Chains:
    """Finds messages by id, and the chain of causes of each."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self._order: npt.NDArray[np.int64] = np.argsort(trace.messages["id"], kind="stable")
        self._ids = trace.messages["id"][self._order]

    @cached_property
    def _replies(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
        """Rows of all answers, and the ids of what they answer, ascending."""
        asked = self.trace.messages["reply_to"]
        rows = np.flatnonzero(asked)
        rows = rows[np.argsort(asked[rows], kind="stable")]
        return rows, asked[rows]

    @cached_property
    def _to_client(self) -> npt.NDArray[np.int64]:
        """Rows of what the client got, by time."""
        m = self.trace.messages
        clients = [
            number for number, name in enumerate(self.trace.names) if service_of(name) == CLIENT
        ]
        mine = np.flatnonzero(np.isin(m["dst"], clients))
        return mine[np.argsort(m["started"][mine], kind="stable")]

    @cached_property
    def by_parent(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
        """Rows of all messages by the request for whose sake they were sent, and its id."""
        parents = self.trace.messages["parent"]
        order = np.argsort(parents, kind="stable")
        return order, parents[order]

    @cached_property
    def what_if(self) -> WhatIf:
        """The same trace with a component that takes no time."""
        return WhatIf(self.trace, self._waits_for())

    def _waits_for(self) -> Ticks:
        """The row of what made each message's sender send it, as ``path`` takes it; -1: none."""
        m = self.trace.messages
        causes = m["cause"]
        if not m.rows:
            return np.zeros(0, dtype=np.int64)
        at = np.minimum(np.searchsorted(self._ids, causes), m.rows - 1)
        rows = np.where(self._ids[at] == causes, self._order[at], -1)
        by_client = np.flatnonzero(causes == 0)
        got = np.searchsorted(m["started"][self._to_client], m["sent"][by_client], side="left")
        rows[by_client] = np.append(self._to_client, -1)[got - 1]
        return rows

    def row(self, message_id: int) -> int | None:
        """The row of a message; None if it is not in the trace."""
        at = int(np.searchsorted(self._ids, np.uint64(message_id)))
        if at == len(self._ids) or int(self._ids[at]) != message_id:
            return None
        return int(self._order[at])

    def reply(self, request: int) -> int | None:
        """The row of the answer to the request in a row."""
        rows, asked = self._replies
        number = np.uint64(self.trace.messages["id"][request])
        at = int(np.searchsorted(asked, number))
        return int(rows[at]) if at < len(asked) and asked[at] == number else None

    def path(self, last: int, since: int) -> list[int]:
        """Rows from the first cause begun at tick ``since`` or later to the row ``last``.

        What the client sends has no cause; it is taken to wait for what it got last before.
        """
        m = self.trace.messages
        rows = [last]
        while True:
            cause = int(m["cause"][rows[-1]])
            before = self.row(cause) if cause else self._before_client(rows[-1])
            if before is None or int(m["started"][before]) < since:
                break
            if len(rows) > m.rows:
                # A file may say that messages caused one another in a circle.
                return [last]
            rows.append(before)
        rows.reverse()
        return rows

    def _before_client(self, row: int) -> int | None:
        """The last message that the client got before it sent the one in a row."""
        m = self.trace.messages
        when: npt.NDArray[np.int64] = m["started"][self._to_client]
        at = int(np.searchsorted(when, int(m["sent"][row]), side="left"))
        return int(self._to_client[at - 1]) if at else None


def request_path(chains: Chains, request: int) -> dict[str, Any] | None:
    """The critical path of an answered request; None if it has no answer in the trace."""
    reply = chains.reply(request)
    if reply is None:
        return None
    m = chains.trace.messages
    rows = chains.path(reply, int(m["started"][request]))
    if rows[0] != request:
        # The chain left the request: somebody else's step let go a lock that it waited for.
        rows = [request, *rows]
    path = _path(chains.trace, rows, int(m["received"][request]))
    return path | {"if_free": _if_free(path, chains.what_if.request(request, reply))}


def run_path(chains: Chains) -> dict[str, Any] | None:
    """The critical path of the whole run, back from what ended last."""
    m = chains.trace.messages
    if not m.rows:
        return None
    rows = chains.path(int(np.argmax(m["ended"])), -1)
    path = _path(chains.trace, rows, int(m["sent"][rows[0]]), whole=True)
    path["id"], path["kind"] = "the whole run", ""
    return path | {"if_free": _if_free(path, chains.what_if.run())}


def _if_free(path: dict[str, Any], won: dict[str, int]) -> dict[str, int]:
    """Ticks won by each component that is on the path or wins something, the most first."""
    shares: dict[str, int] = path["by_service"]
    listed = {name: won.get(name, 0) for name in sorted({*won, *shares})}
    return {
        name: ticks
        for name, ticks in sorted(listed.items(), key=lambda item: -item[1])
        if ticks or name in shares
    }


def slowest(trace: Trace, nr: int) -> list[int]:
    """Rows of the slowest answered hypercalls: what toolstacks ask (of anybody's, without one)."""
    m = trace.messages
    is_request = (m["reply_to"] == 0) & (m["ended"] >= 0) & (m["src"] != m["dst"])
    callers = [number for number, name in enumerate(trace.names) if service_of(name) == "toolstack"]
    is_hypercall = is_request & np.isin(m["src"], callers)
    requests = np.flatnonzero(is_hypercall if is_hypercall.any() else is_request)
    latency = m["ended"][requests] - m["received"][requests]
    order = np.argsort(-latency, kind="stable")[:nr]
    return requests[order].tolist()


def _path(trace: Trace, rows: list[int], begin: int, *, whole: bool = False) -> dict[str, Any]:
    """The path through the messages in these rows, from tick ``begin`` on."""
    m = trace.messages
    at = np.array(rows)
    ends = np.empty((len(rows), len(PARTS)), dtype=np.int64)
    # Between a step's end and the next message the sender was elsewhere: somebody held a lock, or
    # the client made up its mind.
    for part, name in enumerate(("sent", "received", "started")):
        ends[:, part] = m[name][at]
    ends[:-1, 3] = m["sent"][at[1:]]
    ends[-1, 3] = m["ended"][rows[-1]] if whole else m["started"][rows[-1]]
    if not whole:
        # The answer is there once it is sent; who gets it, and when, is the caller's affair.
        ends[-1, :] = ends[-1, 0]
    until = np.maximum.accumulate(np.concatenate(([begin], ends.ravel())))
    lasted = np.diff(until)
    who = np.repeat(m["dst"][at].astype(np.int64), len(PARTS))
    who[0 :: len(PARTS)] = m["src"][at]
    who[1 :: len(PARTS)] = -1
    head = rows[0]
    return {
        "id": trace.name_of(int(m["id"][head])),
        "kind": trace.kinds[int(m["kind"][head])],
        "domid": int(m["domid"][head]),
        "start": begin,
        "end": int(until[-1]),
        "messages": len(rows),
        "segments": _segments(trace, rows, until, lasted, who),
        "by_service": _by_service(trace, lasted, who),
    }


def _segments(
    trace: Trace, rows: list[int], until: Ticks, lasted: Ticks, who: Ticks
) -> list[dict[str, Any]]:
    """The parts of a path in order, the SEGMENTS_MAX longest if there are more."""
    m = trace.messages
    longest = np.argsort(-lasted, kind="stable")[:SEGMENTS_MAX]
    return [
        {
            "component": TRANSPORT if who[each] < 0 else trace.names[int(who[each])],
            "what": PARTS[each % len(PARTS)],
            "start": int(until[each]),
            "end": int(until[each + 1]),
            "id": trace.name_of(int(m["id"][rows[each // len(PARTS)]])),
            "kind": trace.kinds[int(m["kind"][rows[each // len(PARTS)]])],
        }
        for each in np.sort(longest[lasted[longest] > 0]).tolist()
    ]


def _by_service(trace: Trace, lasted: Ticks, who: Ticks) -> dict[str, int]:
    shares: dict[str, int] = {}
    for number, rows in groups(who):
        name = TRANSPORT if number < 0 else service_of(trace.names[number])
        ticks = int(lasted[rows].sum())
        if ticks:
            shares[name] = shares.get(name, 0) + ticks
    return shares


def tree(chains: Chains, request: int, limit: int) -> list[int]:
    """Rows of a request, of all that was asked for its sake, and of the answers, by time sent."""
    trace = chains.trace
    m = trace.messages
    order, parents = chains.by_parent
    found: list[int] = []
    waiting = [int(m["id"][request])]
    while waiting and len(found) < limit:
        number = np.uint64(waiting.pop())
        first, end = (
            int(np.searchsorted(parents, number, side=side)) for side in ("left", "right")
        )
        children: list[int] = order[first:end].tolist()
        found += children
        waiting += [int(m["id"][row]) for row in children if not m["reply_to"][row]]
    found.append(request)
    return sorted(found, key=lambda row: (int(m["sent"][row]), int(m["id"][row])))[:limit]
