"""Everything that ``shatterproof profile`` says about a trace, as one map for machines."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np

from services.trace.critical import Chains, request_path, run_path, slowest
from services.trace.domains import domains
from services.trace.frame import Trace
from services.trace.select import Selection
from services.trace.stats import (
    Times,
    by_kind,
    by_service,
    contention,
    groups,
    rate,
    span_of,
)

EVERYTHING: Final = Selection()
SCHEMA: Final = "shatterproof.profile/1"
SLOWEST: Final = 10
RUN_EDGES: Final = (0, 1, 8, 64, 512)
"""Upper ends of the classes of how many p2m updates one hypercall made; then there is one more."""
HYPERCALLS: Final = {
    0: "set_trap_table", 1: "mmu_update", 2: "set_gdt", 3: "stack_switch", 4: "set_callbacks",
    5: "fpu_taskswitch", 6: "sched_op_compat", 7: "platform_op", 8: "set_debugreg",
    9: "get_debugreg", 10: "update_descriptor", 12: "memory_op", 13: "multicall",
    14: "update_va_mapping",
    15: "set_timer_op", 16: "event_channel_op_compat", 17: "xen_version", 18: "console_io",
    19: "physdev_op_compat", 20: "grant_table_op", 21: "vm_assist",
    22: "update_va_mapping_otherdomain", 23: "iret", 24: "vcpu_op", 25: "set_segment_base",
    26: "mmuext_op", 27: "xsm_op", 28: "nmi_op", 29: "sched_op", 30: "callback_op",
    31: "xenoprof_op", 32: "event_channel_op", 33: "physdev_op", 34: "hvm_op", 35: "sysctl",
    36: "domctl", 37: "kexec_op", 38: "tmem_op", 39: "argo_op", 40: "xenpmu_op", 41: "dm_op",
    42: "hypfs_op", 48: "mca", 49: "paging_domctl_cont",
    **{number: f"arch_{number - 48}" for number in range(50, 56)},
}  # fmt: skip
"""Names of the numbers in public/xen.h; others go by number."""


def report(
    whole: Trace, selection: Selection = EVERYTHING, *, views: bool = True
) -> dict[str, Any]:
    """The report of what is asked for; without ``views`` only figures, nothing over time."""
    trace = selection.of(whole)
    span = selection.between or span_of(trace)
    times = Times(trace.messages)
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "source": trace.source,
        "format": trace.format,
        "ticks_per_s": trace.ticks_per_s,
        "span": list(span),
        "records": trace.records,
        "lost": trace.lost,
        "truncated": trace.truncated,
        "header": {
            name: trace.header[name]
            for name in ("runtime", "seed", "clock", "host", "machine", "shards", "cpus", "cut")
            if name in trace.header
        },
        "events": trace.event_counts(),
        "messages": by_kind(trace, times),
        "domains": domains(whole, span, selection, views=views),
    }
    if trace.messages.rows:
        found["services"] = by_service(trace, times)
        found["contention"] = contention(trace, times)
    if views:
        found["rate"] = rate(trace, span)
        if trace.messages.rows:
            found["critical_path"] = critical_path(Chains(trace))
    if trace.hypercalls.rows:
        found["hypercalls"] = _hypercalls(trace)
    if trace.running.rows:
        found["pcpus"] = _pcpus(trace, span)
    return found


def critical_path(chains: Chains) -> dict[str, Any]:
    """The path of the run, and those of its slowest hypercalls."""
    paths = [request_path(chains, row) for row in slowest(chains.trace, SLOWEST)]
    return {"run": run_path(chains), "slowest": [path for path in paths if path is not None]}


def run_classes(counts: Sequence[int]) -> dict[str, int]:
    """Hypercalls by how many p2m updates they made: ``{"0": n, "1": n, "2-8": n, ...}``."""
    edges = [-1, *RUN_EDGES]
    names = [str(high) if high - low == 1 else f"{low + 1}-{high}" for low, high in pairwise(edges)]
    names.append(f"{RUN_EDGES[-1] + 1}+")
    return {name: nr for name, nr in zip(names, counts, strict=True) if nr}


def _hypercalls(trace: Trace) -> dict[str, Any]:
    """Of a xentrace: each hypercall with the runs of p2m updates that it made."""
    calls = trace.hypercalls
    found: dict[str, Any] = {}
    for number, rows in groups(calls["op"]):
        made = calls["updates"][rows]
        classes = np.bincount(np.searchsorted(RUN_EDGES, made), minlength=len(RUN_EDGES) + 1)
        found[HYPERCALLS.get(number, str(number))] = {
            "count": len(rows),
            "updates": int(made.sum()),
            "runs": run_classes(classes.tolist()),
        }
    return found


def _pcpus(trace: Trace, span: tuple[int, int]) -> dict[str, Any]:
    """Of a xentrace: how busy each pcpu was, and with whom."""
    running = trace.running
    lasted = running["end"] - running["start"]
    length = max(span[1] - span[0], 1)
    found: dict[str, Any] = {}
    for cpu, rows in groups(running["cpu"]):
        by_domid = {
            str(domid): int(lasted[rows[mine]].sum())
            for domid, mine in groups(running["domid"][rows])
        }
        idle = sum(ticks for domid, ticks in by_domid.items() if int(domid) >= 0x7FF0)
        busy = sum(by_domid.values()) - idle
        found[str(cpu)] = {"busy": busy / length, "by_domid": by_domid}
    return found
