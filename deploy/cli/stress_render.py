"""What ``stress`` prints: the verdict, the story of a counterexample, a state on the way."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from deploy.campaign.artifact import Counterexample
from deploy.campaign.chunks import Totals
from deploy.campaign.hunt import ZooRow
from deploy.cli.terminal import Listing, output_console
from deploy.stress import story
from deploy.stress.engine import Engine, Outcome
from deploy.stress.workload import Workload
from protocols.frames import INVALID_FRAME
from protocols.p2m_types import P2mType
from protocols.script import Operation
from services.spec.findings import Violation

STATES_SHOWN = 24
SOURCE_END = re.compile(r" ?[,;(]")
"""The table shows the beginning of an entry's source; ``--zoo list`` shows all of it."""


def report(
    workload: Workload,
    totals: Totals,
    example: Counterexample | None,
    missing: list[str],
    seconds: float,
    file: Path | None,
) -> dict[str, Any]:
    """The verdict as ``--json`` gives it."""
    verdict = "violation" if example is not None else ("no verdict" if missing else "clean")
    return {
        "workload": workload.name,
        "lock": workload.host.lock,
        "verdict": verdict,
        "schedules": totals.nr_schedules,
        "distinct_schedules": len(totals.signatures),
        "distinct_states": len(totals.states),
        "exhausted": totals.exhausted,
        "operations": totals.nr_operations,
        "steps": totals.nr_steps,
        "seconds": round(seconds, 3),
        "events": sorted(totals.events),
        "missing_events": missing,
        "violation": None if example is None else _violation(example),
        "file": None if file is None else str(file),
    }


def _violation(example: Counterexample) -> dict[str, Any]:
    broken = example.violation
    return {
        "invariant": broken.invariant,
        "message": broken.message,
        "domid": broken.domid,
        "gfn": broken.gfn,
        "mfn": broken.mfn,
        "order": broken.order,
        "schedule": example.found.schedule,
        "strategy": example.found.strategy,
        "operations": example.case.nr_operations(),
        "deviations": len(example.schedule.deviations),
        "steps": example.steps,
    }


def print_campaign(found: dict[str, Any]) -> None:
    """The verdict in a few lines."""
    console = output_console()
    rate = found["schedules"] / max(found["seconds"], 1e-9)
    console.print(
        f"{found['workload']} (lock {found['lock']}): {found['schedules']:,} schedules, "
        f"{found['distinct_schedules']:,} distinct, {found['distinct_states']:,} states, "
        f"{found['operations']:,} operations in {found['seconds']:.1f} s ({rate:,.0f}/s)"
    )
    if found["exhausted"] is not None:
        what = "every schedule covered" if found["exhausted"] else "bounded: not every schedule"
        console.print(f"search: {what}")
    console.print(f"events: {', '.join(found['events']) or 'none'}")
    if found["verdict"] == "no verdict":
        console.print(f"no verdict: never happened: {', '.join(found['missing_events'])}")
    elif found["verdict"] == "clean":
        console.print("clean: no invariant was broken")


def print_story(example: Counterexample, outcome: Outcome) -> None:
    """The case in words, the messages in order, what broke."""
    console = output_console()
    case = example.case
    title = f"{case.workload}, lock {case.host.lock}" + (f", bug {case.bug}" if case.bug else "")
    console.print(f"counterexample: {title}")
    for client, script in enumerate(case.clients):
        for op in script:
            console.print(f"  client {client}: {operation(op)}")
    schedule = example.schedule
    console.print(
        f"first come, first served except {len(schedule.deviations)} deviations, "
        f"{len(schedule.faults)} faults:"
    )
    for line in story.lines(outcome.steps, outcome.violation):
        console.print(line)


def operation(op: Operation) -> str:
    """An operation in a few words."""
    words = [f"{op.kind} d{op.domid}"]
    if op.kind in {"pool", "pod_target", "create"}:
        words.append(f"{op.target} pages")
    elif op.kind not in {"destroy", "increase"}:
        words.append(f"gfn {op.gfn:#x}")
    if op.nr > 1:
        words.append(f"nr {op.nr}")
    if op.order:
        words.append(f"order {op.order}")
    if op.kind == "move":
        words.append(f"to {op.target:#x}")
    if op.kind == "set_type":
        words.append(P2mType(op.target).name.lower())
    if op.kind == "translate":
        words.append(f"of d{op.target}")
    if op.kind in {"touch", "translate"}:
        words.append(f"by vCPU {op.vcpu}")
    return " ".join(words)


def diagram(outcome: Outcome) -> str:
    """The story as Mermaid."""
    return story.mermaid(outcome.steps, outcome.violation)


def replay_report(example: Counterexample, outcome: Outcome) -> dict[str, Any]:
    """A replay as ``--json`` gives it."""
    violation = outcome.violation
    return {
        "reproduced": violation is not None and violation.invariant == example.violation.invariant,
        "violation": None if violation is None else _plain(violation),
        "steps": [line.strip() for line in story.lines(outcome.steps, None)],
    }


def _plain(violation: Violation) -> dict[str, Any]:
    names = ("invariant", "message", "domid", "gfn", "mfn", "order")
    return {name: getattr(violation, name) for name in names}


def print_state(example: Counterexample, engine: Engine) -> None:
    """The story so far, and how things stand: tables, TLBs, who waits, what is on its way."""
    console = output_console()
    for line in story.lines(engine.outcome.steps, engine.outcome.violation):
        console.print(line)
    console.print(f"stopped before step {engine.outcome.nr_steps} of {example.steps}")
    watch = engine.watch
    for domid, p2m in sorted(watch.p2ms.items()):
        table = p2m.table_now
        watched = watch.watched.get(domid)
        if table is None or watched is None:
            console.print(f"d{domid}: no tables")
            continue
        mfns, types, orders = table.get(watched)
        console.print(f"d{domid}: pool {table.pool_free} free of {table.pool_total}")
        rows = zip(watched.tolist(), mfns.tolist(), types.tolist(), orders.tolist(), strict=True)
        for gfn, mfn, p2mt, order in list(rows)[:STATES_SHOWN]:
            shown = "none" if mfn == INVALID_FRAME else f"{mfn:#x}"
            name = P2mType(p2mt).name.lower()
            console.print(f"  gfn {gfn:#x} -> {shown} {name} order {order}")
    for name, walker in sorted(watch.walkers.items()):
        gfns, mfns, orders = walker.tlb.entries()
        entries = zip(gfns.tolist(), mfns.tolist(), orders.tolist(), strict=True)
        held = ", ".join(f"{gfn:#x}->{mfn:#x} order {order}" for gfn, mfn, order in entries)
        console.print(f"{name}: TLB {held or 'empty'}")
    for host in engine.world.hosts.values():
        for line in host.parked():
            console.print(f"waits: {line}")
    for line in engine.pending():
        console.print(f"on its way: {line}")


def print_zoo(rows: list[ZooRow]) -> None:
    """The zoo's table."""
    console = output_console()
    table = Listing()
    for name, justify in (
        ("name", "left"),
        ("found", "left"),
        ("schedules", "right"),
        ("steps", "right"),
        ("seconds", "right"),
        ("without it", "left"),
        ("schedules", "right"),
        ("invariant", "left"),
        ("source", "left"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for row in rows:
        table.add_row(
            row.name,
            "yes" if row.found else "NO",
            f"{row.schedules:,}",
            str(row.steps),
            f"{row.seconds:.1f}",
            "clean" if row.clean else "NOT CLEAN",
            f"{row.clean_schedules:,}",
            row.invariant,
            SOURCE_END.split(row.source)[0],
        )
    console.print(table)
    for row in rows:
        for line in row.unexpected:
            console.print(f"{row.name}: also seen: {line}")
