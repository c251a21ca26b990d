"""The terminal report of ``profile``: tables that fit a screen, times in units that can be read."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

from deploy.cli.terminal import BARS, Listing, Terminal
from protocols.frames import ORDER_NAMES
from services.trace.domains import covered

ROWS_MAX: Final = 24
SPARK_WIDTH: Final = 60
PATH_ROWS: Final = 60
SHARES_MAX: Final = 3
UNKNOWN: Final = "-"
"""What a trace does not tell."""
Map = dict[str, Any]


class Clock:
    """Turns ticks into text: seconds with a unit, or steps."""

    def __init__(self, ticks_per_s: float) -> None:
        self._rate = ticks_per_s

    def __call__(self, ticks: float) -> str:
        """Ticks as a duration."""
        if not self._rate:
            return f"{ticks:,.0f}"
        if not ticks:
            return "0"
        seconds = ticks / self._rate
        for limit, factor, unit in ((1e-3, 1e6, "us"), (1.0, 1e3, "ms")):
            if seconds < limit:
                return f"{seconds * factor:.4g} {unit}"
        return f"{seconds:.4g} s"

    @property
    def unit(self) -> str:
        """What bare numbers count."""
        return "" if self._rate else " (steps)"


def table(title: str | None, *columns: str, left: int = 1) -> Listing:
    """A table without frame; the first ``left`` columns are text, the others numbers."""
    made = Listing(title)
    for at, name in enumerate(columns):
        made.add_column(name, justify="left" if at < left else "right")
    return made


def section(made: Listing, console: Terminal) -> None:
    """A table after an empty line."""
    console.line()
    console.print(made)


def spark(values: Sequence[float], width: int = SPARK_WIDTH) -> str:
    """Values as a row of bars, the largest of each group standing for it."""
    if not values:
        return ""
    nr = min(width, len(values))
    groups = [
        max(values[len(values) * at // nr : len(values) * (at + 1) // nr]) for at in range(nr)
    ]
    top = max(groups)
    return "".join(BARS[math.ceil(8 * value / top) if top else 0] for value in groups)


def print_profile(found: Map, console: Terminal, *, domid: int | None = None) -> None:
    """Everything, the most telling first."""
    clock = Clock(found["ticks_per_s"])
    _head(found, clock, console)
    for section in (_kinds, _services, _paths, _domains, _contention, _hypercalls, _pcpus):
        section(found, clock, console)
    if domid is not None and str(domid) in found["domains"]:
        _domain(found["domains"][str(domid)], domid, clock, console)


def _head(found: Map, clock: Clock, console: Terminal) -> None:
    first, last = found["span"]
    facts = [f"{found['records']:,} records", f"{clock(last - first)}{clock.unit}"]
    if found["lost"]:
        facts.append(f"{found['lost']:,} lost: what follows is not all that happened")
    header = found.get("header", {})
    if header.get("runtime"):
        facts.append(f"runtime {header['runtime']}")
    console.print(f"{found['source']}: {found['format']}, {', '.join(facts)}")
    events = found["events"]
    if events:
        listed = sorted(events.items(), key=lambda item: -item[1])
        shown = [f"{name} {nr:,}" for name, nr in listed[:12]]
        if len(listed) > len(shown):
            shown.append(f"and {len(listed) - len(shown)} more kinds")
        console.print(f"events: {', '.join(shown)}")
    rate = found.get("rate", {})
    if rate.get("total"):
        console.print(f"messages over time |{spark(rate['total'])}|")


def _figures(made: Listing, name: str, each: Map, clock: Clock) -> None:
    made.add_row(
        name, f"{each['count']:,}", f"{each['bytes']:,}",
        *(clock(each[rank]) for rank in ("p50", "p90", "p99", "max")),
        *(clock(each[part]["total"]) for part in ("queue", "service", "awaiting", "lock")),
    )  # fmt: skip


COLUMNS: Final = (
    "count", "bytes", "p50", "p90", "p99", "max", "queued", "service", "awaiting", "locks",
)  # fmt: skip


def _kinds(found: Map, clock: Clock, console: Terminal) -> None:
    kinds: Map = found["messages"]
    if not kinds:
        return
    made = table(f"messages: latency, and time in all{clock.unit}", "kind", *COLUMNS)
    listed = sorted(kinds.items(), key=lambda item: -item[1]["service"]["total"])
    for name, each in listed[:ROWS_MAX]:
        _figures(made, name, each, clock)
    section(made, console)
    if len(listed) > ROWS_MAX:
        console.print(f"... and {len(listed) - ROWS_MAX} kinds with less service time")


def _services(found: Map, clock: Clock, console: Terminal) -> None:
    if found.get("services"):
        made = table("services: what they were sent", "service", *COLUMNS)
        for name, each in found["services"].items():
            _figures(made, name, each, clock)
        section(made, console)


def _paths(found: Map, clock: Clock, console: Terminal) -> None:
    paths = found.get("critical_path")
    if not paths:
        return
    made = table(
        "critical path: where the time went that everybody waited for, and what would be won if "
        "a service took none",
        "path", "kind", "domid", "lasted", "messages", "share of the path", "won if free", left=2,
    )  # fmt: skip
    for path in (paths["run"], *paths["slowest"]):
        if path is not None:
            made.add_row(
                path["id"], path["kind"], str(path["domid"]) if path["domid"] >= 0 else "",
                clock(path["end"] - path["start"]), f"{path['messages']:,}",
                *(_shares(path, name) for name in ("by_service", "if_free")),
            )  # fmt: skip
    section(made, console)


def _shares(path: Map, name: str) -> str:
    """The largest parts of a path's time, in per cent of it."""
    whole = max(path["end"] - path["start"], 1)
    listed = sorted(path[name].items(), key=lambda item: -item[1])[:SHARES_MAX]
    parts = [(service, round(100 * ticks / whole)) for service, ticks in listed]
    return ", ".join(f"{service} {part} %" for service, part in parts if part)


def order_name(order: str) -> str:
    """4K, 2M, 1G; another order by its number."""
    return ORDER_NAMES.get(int(order), f"order {order}")


def _domains(found: Map, clock: Clock, console: Terminal) -> None:  # noqa: ARG001
    domains: Map = found["domains"]
    if not domains:
        return
    orders = sorted({int(o) for each in domains.values() for o in each["final_extents"]})[::-1]
    made = table(
        "domains", "domid", *(f"{order_name(str(order))} leaves" for order in orders),
        "in superpages", "updates", "shatters", "populates", "fallbacks", "faults",
        "PoD pop/spl/recl", left=0,
    )  # fmt: skip
    listed = sorted(domains.items(), key=lambda item: int(item[0]))
    for domid, each in listed[:ROWS_MAX]:
        populate: Map = each.get("populate", {})
        pod = [sum(each[name].values()) for name in ("pod_populate", "pod_zero_reclaim")]
        made.add_row(
            domid,
            *(f"{sum(each['final_leaves'].get(str(order), {}).values()):,}" for order in orders),
            f"{100 * covered(each['final_extents']):.1f} %",
            f"{sum(nr for kinds in each['p2m_updates'].values() for nr in kinds.values()):,}",
            " ".join(f"{step} {nr:,}" for step, nr in each["shatters"].items() if nr) or "0",
            f"{populate['calls']:,}" if populate else UNKNOWN,
            " ".join(f"{step} {nr}" for step, nr in populate["fallbacks"].items()) or "0"
            if populate
            else UNKNOWN,
            f"{each['nested_faults']:,}",
            f"{pod[0]:,}/{each['pod_superpage_splinter']:,}/{pod[1]:,}",
        )
    section(made, console)
    if len(listed) > ROWS_MAX:
        console.print(f"... and {len(listed) - ROWS_MAX} more domains (--domid N shows one)")


def _domain(each: Map, domid: int, clock: Clock, console: Terminal) -> None:
    series: Map = each.get("series", {})
    console.line()
    console.print(f"domain {domid} over time")
    rows: list[tuple[str, list[float]]] = [
        (f"mapped by {order_name(order)}", values)
        for order, values in series.get("mapped", {}).items()
    ]
    rows.append(("in superpages", [100 * share for share in series.get("coverage", [])]))
    rows += [
        (name.replace("_", " "), series.get(name, []))
        for name in (
            "updates", "shatters", "populate_calls", "extents", "nested_faults", "pod_populate",
            "pod_splinter", "pod_reclaim",
        )
    ]  # fmt: skip
    for name, values in rows:
        if values and max(values):
            console.print(f"  {name:<16} |{spark(values)}| at most {max(values):,.0f}")
    hottest = each.get("hottest", [])
    if hottest:
        made = table("  most updated superpages", "gfn", "updates", "shatters")
        for hot in hottest:
            made.add_row(f"  {hot['gfn']:#x}", f"{hot['updates']:,}", f"{hot['shatters']:,}")
        console.print(made)
    del clock


def _contention(found: Map, clock: Clock, console: Terminal) -> None:
    contention = found.get("contention")
    if not contention:
        return
    made = table(
        "contention: mailboxes", "shard", "messages", "waited in all", "p99", "longest queue",
        "at",
    )  # fmt: skip
    for box in contention["mailboxes"]:
        made.add_row(
            f"{box['service']} ({box['shard']})", f"{box['messages']:,}",
            clock(box["wait_total"]), clock(box["wait_p99"]), f"{box['longest']:,}",
            clock(box["at"] - found["span"][0]),
        )  # fmt: skip
    section(made, console)
    for lock in contention["locks"][:8]:
        console.print(
            f"lock of {lock['name']}: {lock['waits']:,} waits, {clock(lock['total'])} in all, "
            f"at most {clock(lock['max'])}"
        )
    fairness = contention["fairness"]
    if len(fairness["domains"]) > 1:
        means: Callable[[str], float] = lambda domid: fairness["domains"][domid]["mean"]  # noqa: E731
        best, worst = min(fairness["domains"], key=means), max(fairness["domains"], key=means)
        console.print(
            f"fairness between domains: Jain's index {fairness['jain']:.3f}; mean latency of "
            f"a request {clock(means(best))} (domain {best}) to {clock(means(worst))} "
            f"(domain {worst})"
        )


def _hypercalls(found: Map, clock: Clock, console: Terminal) -> None:  # noqa: ARG001
    calls: Map = found.get("hypercalls", {})
    if calls:
        made = table(
            "hypercalls: p2m updates of each", "hypercall", "count", "updates",
            "calls by number of updates",
        )  # fmt: skip
        for name, each in sorted(calls.items(), key=lambda item: -item[1]["updates"])[:ROWS_MAX]:
            runs = ", ".join(f"{size}: {nr:,}" for size, nr in each["runs"].items())
            made.add_row(name, f"{each['count']:,}", f"{each['updates']:,}", runs)
        section(made, console)


def _pcpus(found: Map, clock: Clock, console: Terminal) -> None:
    for cpu, each in found.get("pcpus", {}).items():
        shares = ", ".join(
            f"d{domid} {clock(ticks)}"
            for domid, ticks in sorted(each["by_domid"].items(), key=lambda item: -item[1])
            if int(domid) < 0x7FF0
        )
        console.print(f"pcpu {cpu}: busy {100 * each['busy']:.1f} % ({shares})")


def print_path(path: Map, ticks_per_s: float, console: Terminal) -> None:
    """A critical path step by step, then what each service had of it."""
    clock = Clock(ticks_per_s)
    whole = max(path["end"] - path["start"], 1)
    made = table(
        f"critical path of {path['id']} {path['kind']}: {clock(whole)}{clock.unit}, "
        f"{path['messages']:,} messages",
        "at", "for", "of it", "what", "component", "message", left=0,
    )  # fmt: skip
    segments: list[Map] = path["segments"]
    longest = sorted(segments, key=lambda each: each["start"] - each["end"])[:PATH_ROWS]
    shown = segments if len(segments) <= PATH_ROWS else longest
    for each in sorted(shown, key=lambda each: each["start"]):
        lasted = each["end"] - each["start"]
        made.add_row(
            clock(each["start"] - path["start"]), clock(lasted), f"{100 * lasted / whole:.1f} %",
            each["what"], each["component"], f"{each['id']} {each['kind']}",
        )  # fmt: skip
    console.print(made)
    if len(segments) > len(shown):
        console.print(f"... the {len(shown)} longest of {len(segments):,} steps")
    made = table(
        "of the path, and won if it were free", "service", "on the path", "share", "won", "share"
    )
    for name, ticks in path["if_free"].items():
        made.add_row(
            name,
            *(
                text
                for part in (path["by_service"].get(name, 0), ticks)
                for text in (clock(part), f"{100 * part / whole:.1f} %")
            ),
        )
    section(made, console)


def print_rows(columns: Sequence[str], rows: Sequence[Sequence[Any]], console: Terminal) -> None:
    """The answer to a query."""
    made = table(None, *columns, left=len(columns))
    for row in rows:
        made.add_row(*(str(value) for value in row))
    console.print(made)
    console.print(f"{len(rows):,} rows")


def print_comparison(found: Map, console: Terminal) -> None:
    """What differs between two traces, or that nothing does."""
    one, other = found["sources"]
    console.print(f"{one} (one) against {other} (other)")
    if found["same"]:
        console.print("nothing differs")
    for title, name in (("messages by kind", "counts"), ("events", "events")):
        if found[name]:
            made = table(title, "", "one", "other", "change")
            for what, (a, b) in found[name].items():
                made.add_row(what, f"{a:,}", f"{b:,}", f"{b - a:+,}")
            section(made, console)
    _latencies(found, console)
    if found["domains"]:
        made = table("domains", "domid", "figure", "one", "other", left=2)
        for domid, figures in list(found["domains"].items())[:ROWS_MAX]:
            for figure, (a, b) in figures.items():
                made.add_row(
                    domid, figure, "" if a is None else str(a), "" if b is None else str(b)
                )
        section(made, console)
    parting = found["divergence"]
    if parting is not None:
        where = f" of domain {parting['domid']}" if "domid" in parting else ""
        console.line()
        console.print(f"they part at row {parting['row']:,} of the {parting['table']}{where}")
        console.print(f"  one:   {parting['one']}")
        console.print(f"  other: {parting['other']}")


def _latencies(found: Map, console: Terminal) -> None:
    changed = {kind: each for kind, each in found["latency"].items() if each["differs"]}
    rates = found["ticks_per_s"]
    if changed:
        clock = Clock(1.0 if rates[0] else 0.0)
        made = table(
            "latency that differs for sure (Mann-Whitney U, Holm)", "kind", "p50", "-> p50",
            "p99", "-> p99", "Cliff's delta", "p",
        )  # fmt: skip
        for kind, each in sorted(changed.items(), key=lambda item: -abs(item[1]["delta"])):
            made.add_row(
                kind, clock(each["one"]["p50"]), clock(each["other"]["p50"]),
                clock(each["one"]["p99"]), clock(each["other"]["p99"]), f"{each['delta']:+.2f}",
                f"{each['p']:.2g}",
            )  # fmt: skip
        section(made, console)
    rest = len(found["latency"]) - len(changed)
    if rest:
        console.print(f"{rest} kinds with no certain difference of latency")
