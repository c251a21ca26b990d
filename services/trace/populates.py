"""The populate_physmap calls of every domain: how many extents each, and where they fell short.

The toolstack's ladder goes a step down (1G to 2M to 4K) where a call did less than it was asked:
the next call of the domain then asks for a smaller order.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from protocols.frames import EXTENTS_MAX
from services.trace.frame import Mask, Trace
from services.trace.stats import groups

KIND: Final = "populate_physmap"
Numbers = npt.NDArray[np.int64]


class Calls(NamedTuple):
    """Calls in order of time: when each began, its order, extents asked for and done.

    ``fell``: the larger order from which the ladder stepped down to each call, -1 where it did not;
    None: a call that did less than it was asked fell to the smaller order of the next.
    """

    started: Numbers
    order: Numbers
    asked: Numbers
    done: Numbers
    fell: Numbers | None = None

    def section(self) -> dict[str, Any]:
        """What the report says of them."""
        order, asked, done = self.order, self.asked, self.done
        fell = self.fell
        if fell is None:
            short = np.append(False, (done < asked)[:-1] & (order[1:] < order[:-1]))[: len(order)]
            fell = np.where(short, np.roll(order, 1), -1)
        steps = np.flatnonzero(fell >= 0).tolist()
        fallbacks = Counter(f"{fell[step]}->{order[step]}" for step in steps)
        ranked: list[int] = np.sort(asked).tolist() or [0]
        top = len(ranked) - 1
        return {
            "calls": len(order),
            "extents_per_call": {
                "p50": ranked[top * 50 // 100], "p90": ranked[top * 90 // 100], "max": ranked[top],
            },
            "asked": _by_order(order, asked),
            "done": _by_order(order, done),
            "fallbacks": dict(fallbacks),
        }  # fmt: skip


def _by_order(order: Numbers, extents: Numbers) -> dict[str, int]:
    sums = np.bincount(np.maximum(order, 0), weights=extents)
    return {str(at): int(sums[at]) for at in np.unique(order).tolist()}


NO_CALLS: Final = Calls(*(np.zeros(0, dtype=np.int64) for _ in range(4)))


def populates(trace: Trace, keep: Mask | None) -> dict[int, Calls]:
    """The calls of each domain that has some, of the messages in ``keep`` (None: all)."""
    m = trace.messages
    calls = trace.rows_of_kind(KIND)
    if keep is not None:
        calls = calls[keep[calls]]
    calls = calls[np.argsort(m["started"][calls], kind="stable")]
    if not len(calls):
        return {}
    ids = m["id"][calls]
    by_id = np.argsort(ids, kind="stable")
    answers = np.flatnonzero(m["reply_to"])
    at = np.minimum(np.searchsorted(ids[by_id], m["reply_to"][answers]), len(ids) - 1)
    mine = ids[by_id[at]] == m["reply_to"][answers]
    done = np.zeros(len(calls), dtype=np.int64)
    # A file may say of any message that it is about more extents than fit into one.
    done[by_id[at[mine]]] = np.minimum(m["nr"][answers[mine]], EXTENTS_MAX)
    asked = np.minimum(m["nr"][calls], EXTENTS_MAX)
    columns = (m["started"][calls], m["order"][calls].astype(np.int64), asked, done)
    return {
        domid: Calls(*(column[rows] for column in columns))
        for domid, rows in groups(m["domid"][calls])
    }
