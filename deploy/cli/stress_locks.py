"""``stress --compare-locks``: verdicts and figures of the lock protocols, printed and plotted."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from deploy.campaign.locks import CLIENTS, Costs, Point, Verdict, measure, verdicts
from deploy.cli.files import whole_file, write_json
from deploy.cli.terminal import Listing, output_console
from deploy.stress.case import LOCK_PROTOCOLS
from deploy.stress.workload import Workload

SCHEDULES: Final = 300
BAR: Final = 40


def compare(workload: Workload, options: dict[str, Any]) -> int:
    """Compare on one workload; exit status 0, since `none` is meant to be found broken."""
    schedules = options["schedules"] or SCHEDULES
    found = verdicts(workload, options["seed"], schedules)
    points = measure(workload, options["seed"], Costs())
    if options["json_path"] is not None:
        write_json(to_json(workload, found, points), options["json_path"])
    if options["json_path"] != "-":
        show(workload, found, points)
    if options["diagram"] is not None:
        with whole_file(options["diagram"], "--diagram") as file:
            file.write(mermaid(points).encode())
    return 0


def to_json(workload: Workload, found: list[Verdict], points: list[Point]) -> dict[str, Any]:
    """The comparison as ``--json`` gives it."""
    return {
        "workload": workload.name,
        "costs_ns": msgspec.to_builtins(Costs()),
        "verdicts": [msgspec.to_builtins(each) for each in found],
        "points": [msgspec.to_builtins(each) for each in points],
    }


def show(workload: Workload, found: list[Verdict], points: list[Point]) -> None:
    """Verdicts, the table, and the throughput as bars."""
    console = output_console()
    console.print(f"lock protocols on {workload.name}, virtual time")
    for each in found:
        text = "clean" if each.clean else f"BROKEN: {each.invariant}"
        console.print(f"  {each.lock:11} {text} ({each.schedules:,} schedules)")
    table = Listing()
    table.add_column("clients", justify="right")
    for lock in LOCK_PROTOCOLS:
        table.add_column(f"{lock} kop/s", justify="right")
        table.add_column("wait us", justify="right")
    by_key = {(point.lock, point.clients): point for point in points}
    for clients in CLIENTS:
        row = [str(clients)]
        for lock in LOCK_PROTOCOLS:
            point = by_key.get((lock, clients))
            row += (
                ["-", "-"]
                if point is None
                else [f"{point.ops_per_s / 1e3:,.0f}", f"{point.wait_ns / 1e3:.1f}"]
            )
        table.add_row(*row)
    console.print(table)
    most = max((point.ops_per_s for point in points), default=1.0)
    for lock in LOCK_PROTOCOLS:
        console.print(lock)
        for clients in CLIENTS:
            point = by_key.get((lock, clients))
            if point is not None:
                bar = "#" * max(1, round(BAR * point.ops_per_s / most))
                console.print(f"  {clients:3d} {bar}")


def mermaid(points: list[Point]) -> str:
    """Throughput by clients as a Mermaid chart, one line a protocol in the order listed."""
    names = [lock for lock in LOCK_PROTOCOLS if any(point.lock == lock for point in points)]
    lines = [
        "xychart-beta",
        f'    title "kop/s by clients: {", ".join(names)}"',
        f"    x-axis [{', '.join(str(clients) for clients in CLIENTS)}]",
        '    y-axis "kop/s"',
    ]
    for lock in names:
        values = [point.ops_per_s / 1e3 for point in points if point.lock == lock]
        lines.append(f"    line [{', '.join(f'{value:.0f}' for value in values)}]")
    return "\n".join(lines) + "\n"
