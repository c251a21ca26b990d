"""Two traces side by side: what there is more of, what got slower for sure, where they part.

Latencies are compared kind by kind with the Mann-Whitney U test, which asks nothing of their
distribution; p values are corrected by Holm for the number of kinds. Cliff's delta says how large a
difference is: the chance that a message of the second trace is slower than one of the first, less
the chance that it is faster.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from scipy import stats  # type: ignore[import-untyped]

from services.trace.domains import covered
from services.trace.frame import Column, Frame, Trace
from services.trace.report import report
from services.trace.sequence import label
from services.trace.stats import Times, groups

ALPHA: Final = 0.05
"""Corrected p values below this are called differences."""
SAMPLE: Final = 20_000
"""Latencies of one kind that are ranked; more of them, evenly spread, tell nothing new."""
_stats: Any = stats


def compare(one: Trace, other: Trace) -> dict[str, Any]:
    """What differs.

    Returns:
        ``counts``, ``events``: {name: [in one, in the other]} where they differ. ``latency``: each
        kind in both with its percentiles, ``delta``, ``p`` (corrected) and ``differs``.
        ``domains``: {domid: {figure: [one, other]}} where they differ. ``divergence``: the first
        row in which two runs without time part, or None. ``same``: whether nothing differs.
    """
    first, second = report(one, views=False), report(other, views=False)
    counts = _differing(
        {kind: each["count"] for kind, each in first["messages"].items()},
        {kind: each["count"] for kind, each in second["messages"].items()},
    )
    events = _differing(first["events"], second["events"])
    latency = _latency(one, other)
    domains = _domains(first["domains"], second["domains"])
    divergence = _divergence(one, other)
    differs = any(each["differs"] for each in latency.values())
    return {
        "schema": "shatterproof.profile-diff/1",
        "sources": [one.source, other.source],
        "ticks_per_s": [one.ticks_per_s, other.ticks_per_s],
        "counts": counts,
        "events": events,
        "latency": latency,
        "domains": domains,
        "divergence": divergence,
        "same": not (counts or events or domains or divergence or differs),
    }


def _differing(one: dict[str, Any], other: dict[str, Any], absent: Any = 0) -> dict[str, list[Any]]:
    return {
        name: [one.get(name, absent), other.get(name, absent)]
        for name in sorted({*one, *other})
        if one.get(name, absent) != other.get(name, absent)
    }


def _samples(trace: Trace) -> dict[str, Column]:
    """Latencies of the answered messages of each kind, in seconds where there are any."""
    times = Times(trace.messages)
    rate = trace.ticks_per_s or 1.0
    found: dict[str, Column] = {}
    for kind, rows in groups(trace.messages["kind"]):
        answered = rows[times.answered[rows]]
        found[trace.kinds[kind]] = times.latency[answered] / rate
    return found


def _latency(one: Trace, other: Trace) -> dict[str, Any]:
    if bool(one.ticks_per_s) != bool(other.ticks_per_s):
        # Steps against seconds say nothing.
        return {}
    first, second = _samples(one), _samples(other)
    found: dict[str, Any] = {}
    for kind in sorted(first.keys() & second.keys()):
        a, b = first[kind], second[kind]
        if len(a) and len(b):
            ranked = [each[:: -(-len(each) // SAMPLE)] for each in (b, a)]
            test = _stats.mannwhitneyu(*ranked, alternative="two-sided")
            sizes = len(ranked[0]) * len(ranked[1])
            found[kind] = {
                "one": _ranks(a), "other": _ranks(b),
                "delta": 2 * float(test.statistic) / sizes - 1, "p": float(test.pvalue),
            }  # fmt: skip
    for kind, p in _holm({kind: each["p"] for kind, each in found.items()}).items():
        found[kind] |= {"p": p, "differs": p < ALPHA}
    return found


def _ranks(values: Column) -> dict[str, float]:
    order = np.sort(values)
    return {
        name: float(order[(len(order) - 1) * share // 100])
        for name, share in (("p50", 50), ("p90", 90), ("p99", 99))
    }


def _holm(values: dict[str, float]) -> dict[str, float]:
    """P values corrected for how many there are (Holm's step-down method)."""
    corrected: dict[str, float] = {}
    worst = 0.0
    ordered = sorted(values, key=lambda kind: values[kind])
    for rank, kind in enumerate(ordered):
        p = values[kind]
        worst = max(worst, min(1.0, (len(ordered) - rank) * (1.0 if np.isnan(p) else p)))
        corrected[kind] = worst
    return corrected


def _domains(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    found = {
        domid: _differing(_figures(one.get(domid)), _figures(other.get(domid)), None)
        for domid in sorted({*one, *other}, key=int)
    }
    return {domid: each for domid, each in found.items() if each}


def _figures(section: dict[str, Any] | None) -> dict[str, Any]:
    """The numbers of a domain that are worth comparing."""
    if section is None:
        return {}
    figures: dict[str, Any] = {
        "coverage": round(covered(section["final_extents"]), 6),
        "nested_faults": section["nested_faults"],
        "pod_superpage_splinter": section["pod_superpage_splinter"],
    }
    for step, nr in section["shatters"].items():
        figures[f"shatters {step}"] = nr
    for order, kinds in section["p2m_updates"].items():
        for kind, nr in kinds.items():
            figures[f"updates o{order} {kind}"] = nr
    for name in ("decrease_reservation", "pod_populate", "pod_zero_reclaim"):
        for order, nr in section[name].items():
            figures[f"{name} o{order}"] = nr
    if "populate" in section:
        figures["populate calls"] = section["populate"]["calls"]
    return figures


def _divergence(one: Trace, other: Trace) -> dict[str, Any] | None:
    """Where two runs that owe nothing to time part: the first message, else the first update."""
    if one.ticks_per_s != other.ticks_per_s or (one.messages.rows and one.ticks_per_s):
        return None
    if one.messages.rows or other.messages.rows:
        rows = [np.argsort(each.messages["started"], kind="stable") for each in (one, other)]
        at = _first_difference(
            [_told(each, order) for each, order in zip((one, other), rows, strict=True)]
        )
        if at is None:
            return None
        return {
            "table": "messages",
            "row": at,
            "one": _message(one, rows[0], at),
            "other": _message(other, rows[1], at),
        }
    for domid in sorted({*_domids(one.updates), *_domids(other.updates)}):
        parts = [each.updates.take(each.updates["domid"] == domid) for each in (one, other)]
        keys = ("order", "type", "gfn")
        at = _first_difference([[part[key] for key in keys] for part in parts])
        if at is not None:
            return {
                "table": "updates",
                "row": at,
                "domid": domid,
                "one": _update(parts[0], at),
                "other": _update(parts[1], at),
            }
    return None


def _domids(frame: Frame) -> list[int]:
    return np.unique(frame["domid"]).tolist()


def _told(trace: Trace, order: Column) -> list[Column]:
    """What makes a delivery what it is, comparable between traces: names, not their numbers."""
    m = trace.messages
    names, kinds = np.array([*trace.names, ""]), np.array([*trace.kinds, ""])
    numbers = (m["id"] & np.uint64((1 << 40) - 1))[order]
    return [
        names[m["src"][order]], names[m["dst"][order]], kinds[m["kind"][order]], numbers,
        *(m[name][order] for name in ("order", "nr", "gfn", "rc", "bytes")),
    ]  # fmt: skip


def _first_difference(sides: list[list[Column]]) -> int | None:
    nr = [len(side[0]) for side in sides]
    common = min(nr)
    differs = np.zeros(common, dtype=np.bool_)
    for a, b in zip(*sides, strict=True):
        differs |= a[:common] != b[:common]
    if differs.any():
        return int(np.argmax(differs))
    return common if nr[0] != nr[1] else None


def _message(trace: Trace, order: Column, at: int) -> str:
    if at >= len(order):
        return "nothing more"
    m, row = trace.messages, int(order[at])
    ends = " -> ".join(trace.names[int(m[end][row])] for end in ("src", "dst"))
    return f"{trace.name_of(int(m['id'][row]))} {ends}: {label(trace, row)}"


def _update(frame: Frame, at: int) -> str:
    if at >= frame.rows:
        return "nothing more"
    return f"o{frame['order'][at]} type {frame['type'][at]} gfn {int(frame['gfn'][at]):#x}"
