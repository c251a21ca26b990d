"""How long messages waited and worked: by kind, by service, over time, and where they queued."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from protocols.trace import NO_DOMID
from services.trace.frame import Column, Frame, Trace

RATE_BINS: Final = 240
Indices = npt.NDArray[np.int64]


def service_of(name: str) -> str:
    """The service of an address."""
    return name.partition("/")[0]


def services(names: Sequence[str]) -> tuple[list[str], Indices]:
    """The services of a list of addresses, and for each address the number of its service."""
    of = [service_of(name) for name in names]
    found = sorted(set(of))
    numbers = {service: number for number, service in enumerate(found)}
    return found, np.array([numbers[service] for service in of], dtype=np.int64)


def percentiles(values: Column) -> dict[str, int]:
    """p50, p90, p99, max and total of ticks; nearest values that occurred, no interpolation."""
    if not len(values):
        return {"p50": 0, "p90": 0, "p99": 0, "max": 0, "total": 0}
    top = len(values) - 1
    ranks = [top * share // 100 for share in (50, 90, 99)]
    parted = np.partition(values, [*ranks, top])
    p50, p90, p99 = (int(parted[rank]) for rank in ranks)
    return {
        "p50": p50, "p90": p90, "p99": p99, "max": int(parted[top]), "total": total(values),
    }  # fmt: skip


def total(ticks: Column) -> int:
    """The sum of so many ticks, which may be more than 63 bits hold."""
    most = max(int(ticks.max()), -int(ticks.min())) if len(ticks) else 0
    if most * len(ticks) < 1 << 63:
        return int(ticks.sum())
    return (int((ticks >> 32).sum()) << 32) + int((ticks & 0xFFFF_FFFF).sum())


class Times:
    """The spans of every message in ticks, from its times; unanswered ones count no latency."""

    def __init__(self, messages: Frame) -> None:
        started, ended = messages["started"], messages["ended"]
        self.answered = ended >= 0
        self.queue = started - messages["received"]
        self.service = messages["busy"]
        self.lock = messages["lock_wait"]
        self.latency = np.where(self.answered, ended - messages["received"], 0)
        waited = ended - started - self.service - self.lock
        self.awaiting = np.where(self.answered, np.maximum(waited, 0), 0)


def groups(keys: Column) -> list[tuple[int, Indices]]:
    """(key, rows) of each key that occurs, ascending."""
    if not len(keys):
        return []
    low = int(keys.min())
    if int(keys.max()) - low <= 0xFFFF:
        # Short integers are sorted by counting.
        order = np.argsort((keys - keys.dtype.type(low)).astype(np.uint16), kind="stable")
    else:
        order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    edges = np.flatnonzero(np.diff(ordered)) + 1
    firsts = np.concatenate(([0], edges))
    return [
        (int(ordered[first]), rows)
        for first, rows in zip(firsts, np.split(order, edges), strict=True)
    ]


def span_of(trace: Trace) -> tuple[int, int]:
    """First and last tick of anything in the trace."""
    if "span" in trace.header:
        first, last = trace.header["span"]
        return first, last
    firsts: list[int] = []
    lasts: list[int] = []
    for column in (
        trace.messages["sent"], trace.messages["ended"], trace.updates["time"],
        trace.events["time"], trace.hypercalls["time"], trace.running["start"],
        trace.running["end"],
    ):  # fmt: skip
        if len(column):
            firsts.append(int(column.min()))
            lasts.append(int(column.max()))
    return (min(firsts), max(lasts)) if firsts else (0, 0)


def edges_of(span: tuple[int, int], bins: int) -> list[int]:
    """``bins`` + 1 ticks that cut a span into equal parts, as nearly as whole ticks allow."""
    first, last = span
    width = max(last - first + 1, 1)
    bins = min(bins, width)
    return [first + width * number // bins for number in range(bins + 1)]


def by_kind(trace: Trace, times: Times) -> dict[str, dict[str, Any]]:
    """Figures of each message kind, by its name."""
    found = groups(trace.messages["kind"])
    return {trace.kinds[kind]: _figures(trace.messages, times, rows) for kind, rows in found}


def by_service(trace: Trace, times: Times) -> dict[str, dict[str, Any]]:
    """Figures of what each service was sent."""
    names, numbers = services(trace.names)
    found = groups(numbers[trace.messages["dst"]]) if trace.messages.rows else []
    return {names[number]: _figures(trace.messages, times, rows) for number, rows in found}


def _figures(messages: Frame, times: Times, rows: Indices) -> dict[str, Any]:
    latency = percentiles(times.latency[rows][times.answered[rows]])
    latency.pop("total")
    return {
        "count": len(rows),
        "bytes": int(messages["bytes"][rows].sum()),
        **latency,
        "queue": percentiles(times.queue[rows]),
        "service": percentiles(times.service[rows]),
        "awaiting": percentiles(times.awaiting[rows]),
        "lock": percentiles(times.lock[rows]),
    }


def rate(trace: Trace, span: tuple[int, int], bins: int = RATE_BINS) -> dict[str, Any]:
    """Messages begun in each part of the run, in all and by service."""
    edges = edges_of(span, bins)
    if not trace.messages.rows:
        return {"edges": edges, "total": [], "by_service": {}}
    nr = len(edges) - 1
    at = bin_of(trace.messages["started"], edges)
    names, numbers = services(trace.names)
    counts = np.bincount(
        numbers[trace.messages["dst"]] * nr + at, minlength=nr * len(names)
    ).reshape(len(names), nr)
    return {
        "edges": edges,
        "total": counts.sum(axis=0).tolist(),
        "by_service": {name: row.tolist() for name, row in zip(names, counts, strict=True)},
    }


def bin_of(times: Column, edges: Sequence[int]) -> Indices:
    """The bin of each time; what lies outside goes to the nearest."""
    at = np.searchsorted(np.array(edges[1:-1]), times, side="right")
    return at.astype(np.int64)


def contention(trace: Trace, times: Times) -> dict[str, Any]:
    """Where messages queued, who waited for locks, and whether domains fared alike."""
    return {
        "mailboxes": [
            _mailbox(trace, times, shard, rows) for shard, rows in groups(trace.messages["shard"])
        ],
        "locks": _locks(trace, times),
        "fairness": _fairness(trace, times),
    }


def _mailbox(trace: Trace, times: Times, shard: int, rows: Indices) -> dict[str, Any]:
    messages = trace.messages
    queue = times.queue[rows]
    started = np.sort(messages["started"][rows])
    received = np.sort(messages["received"][rows])
    # Just before a message is taken, all that came by then wait, less those taken before.
    length = np.searchsorted(received, started, side="right") - np.arange(len(rows))
    longest = int(np.argmax(length))
    figures = percentiles(queue)
    return {
        "shard": shard,
        "service": service_of(trace.names[int(messages["dst"][rows[0]])]),
        "messages": len(rows),
        "wait_total": figures["total"],
        "wait_p99": figures["p99"],
        "longest": int(length[longest]),
        "at": int(started[longest]),
    }


def _locks(trace: Trace, times: Times) -> list[dict[str, Any]]:
    waited = np.flatnonzero(times.lock > 0)
    lists = [
        {
            "name": trace.names[component],
            "waits": len(rows),
            "total": total(times.lock[waited[rows]]),
            "max": int(times.lock[waited[rows]].max()),
        }
        for component, rows in groups(trace.messages["dst"][waited])
    ]
    return sorted(lists, key=lambda each: -each["total"])


def _fairness(trace: Trace, times: Times) -> dict[str, Any]:
    """Jain's index of the mean latency of each domain's requests: 1 where all fare alike."""
    messages = trace.messages
    mine = (messages["domid"] != NO_DOMID) & (messages["reply_to"] == 0) & times.answered
    rows = np.flatnonzero(mine)
    domains: dict[str, dict[str, Any]] = {}
    for domid, some in groups(messages["domid"][rows]):
        latency = times.latency[rows[some]]
        domains[str(domid)] = {
            "requests": len(some),
            "mean": float(latency.mean()),
            "p99": percentiles(latency)["p99"],
        }
    means = np.array([each["mean"] for each in domains.values()])
    squares = float((means**2).sum())
    jain = float(means.sum()) ** 2 / (len(means) * squares) if squares else 1.0
    return {"jain": jain, "domains": domains}
