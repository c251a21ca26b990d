"""Names of Xen's trace events beside those of memory, which ``services.trace.xentrace`` reads.

As public/trace.h and the schedulers of Xen up to 4.22 have them, in lower case and without TRC_,
HVM_ and DOM0_; of the schedulers in xenalyze's words where it has one for the event. ``64`` is
behind those with 64-bit addresses, as in Xen's VMEXIT64, and ``n`` before the nested ones.
"""

from __future__ import annotations

from typing import Final

WIDE: Final = 0x100
"""Flag of events with 64-bit addresses (TRC_64_FLAG)."""
NESTED: Final = 0x400


def _row(first: int, *names: str, prefix: str = "") -> dict[int, str]:
    """Events one behind the other; an empty name is left out."""
    return {first + at: prefix + name for at, name in enumerate(names) if name}


def _wide(events: dict[int, str], *without: str) -> dict[int, str]:
    """The same and their 64-bit forms."""
    wide = {number + WIDE: f"{name}64" for number, name in events.items() if name not in without}
    return events | wide


_CREDIT: Final = _row(
    0x0002_2001, "sched_tasklet", "acct_start", "acct_stop", "stolen_vcpu", "pick_cpu",
    "runq_tickle", "boost_start", "boost_end", "schedule", "ratelimit", "load_balance",
    prefix="csched:",
)  # fmt: skip
_CREDIT2: Final = _row(
    0x0002_2201, "tick", "runq_insert", "burn_credits", "credit_add", "tickle_check",
    "runq_tickle", "reset_credits", "sched_tasklet", "update_load", "runq_assign",
    "update_vcpu_load", "update_rq_load", "runq_tickle_new", "update_max_weight", "migrate",
    "load_balance_check", "load_balance_begin", "", "picked_cpu", "runq_candidate", "schedule",
    "ratelimit", "runq_cand_check",
    prefix="csched2:",
)  # fmt: skip
_RTDS: Final = _row(
    0x0002_2801, "runq_tickle", "runq_pick", "burn_budget", "repl_budget", "sched_tasklet",
    "schedule",
    prefix="rtds:",
)  # fmt: skip
_NULL: Final = _row(
    0x0002_2A01, "picked_cpu", "vcpu_assign", "vcpu_deassign", "migrate", "schedule",
    "sched_tasklet",
    prefix="null:",
)  # fmt: skip
_SCHED: Final = _row(
    0x0002_8001, "sched_init_domain", "sched_destroy_domain", "vcpu_sleep", "vcpu_wake",
    "vcpu_yield", "vcpu_block", "sched_shutdown", "sched_ctl", "sched_adjust", "sched_switch",
    "sched_s_timer_fn", "sched_t_timer_fn", "sched_dom_timer_fn", "sched_switch_infprev",
    "sched_switch_infnext", "sched_shutdown_code", "sched_switch_infcont",
)  # fmt: skip
_ENTRY_EXIT: Final = {
    0x0008_1001: "vmentry", 0x0008_1002: "vmexit", 0x0008_1102: "vmexit64",
    0x0008_1003: "svm_exit", 0x0008_1103: "svm_exit64",
}  # fmt: skip
"""Exits of AMD processors have numbers of their own since Xen 4.19 (320e644616): since then
``vmexit`` is Intel's alone, before it is anybody's."""
SVM_EXITS: Final = frozenset({0x0008_1003, 0x0008_1103, 0x0008_1403, 0x0008_1503})
_NESTED: Final = {number + NESTED: f"n{name}" for number, name in _ENTRY_EXIT.items()}
_HANDLER: Final = _row(
    0x0008_2001, "pf_xen", "pf_inject", "inj_exc", "inj_virq", "reinj_virq", "io_read", "io_write",
    "cr_read", "cr_write", "dr_read", "dr_write", "msr_read", "msr_write", "cpuid", "intr", "nmi",
    "smi", "", "hlt", "invlpg", "mce", "ioport_read", "iomem_read", "clts", "lmsw", "rdtsc",
) | _row(
    0x0008_2020, "intr_window", "", "realmode_emulate", "trap", "trap_debug", "vlapic",
) | {
    0x0008_2101: "pf_xen64", 0x0008_2102: "pf_inject64", 0x0008_2108: "cr_read64",
    0x0008_2109: "cr_write64", 0x0008_2114: "invlpg64", 0x0008_2119: "lmsw64",
    0x0008_2126: "xcr_read64", 0x0008_2127: "xcr_write64", 0x0008_2216: "ioport_write",
    0x0008_2217: "iomem_write",
}  # fmt: skip
_DEVICES: Final = _row(
    0x0008_4001, "hpet_start_timer", "pit_start_timer", "rtc_start_timer", "lapic_start_timer",
    "hpet_stop_timer", "pit_stop_timer", "rtc_stop_timer", "lapic_stop_timer", "pit_timer_cb",
    "lapic_timer_cb", "pic_int_output", "pic_kick", "pic_intack", "pic_posedge", "pic_negedge",
    "pic_pend_irq_call", "lapic_pic_intr",
    prefix="emul_",
)  # fmt: skip
_PV: Final = _wide(
    _row(
        0x0020_1003, "trap", "page_fault", "forced_invalid_op", "emulate_privop", "emulate_4gb",
        "math_state_restore", "paging_fixup", "gdt_ldt_mapping_fault", "ptwr_emulation",
        "ptwr_emulation_pae",
        prefix="pv_",
    ),
    "pv_math_state_restore",
)  # fmt: skip
_SHADOW: Final = _wide(
    _row(
        0x0040_F001, "not_shadow", "fast_propagate", "fast_mmio", "false_fast_path", "mmio",
        "fixup", "domf_dying", "emulate", "emulate_unshadow_user", "emulate_unshadow_evtinj",
        "emulate_unshadow_unhandled", "wrmap_bf", "prealloc_unpin", "resync_full", "resync_only",
        prefix="shadow_",
    )
)  # fmt: skip
_HARDWARE: Final = _row(
    0x0080_1001, "freq_change", "idle_entry", "idle_exit", prefix="pm_"
) | _row(
    0x0080_2001, "move_cleanup_delay", "move_cleanup", "bind_vector", "clear_vector",
    "move_finish", "assign_vector", "unmapped_vector", "handled",
    prefix="hw_irq_",
)  # fmt: skip

NAMES: Final[dict[int, str]] = {
    **_CREDIT, **_CREDIT2, **_RTDS, **_NULL, **_SCHED, **_ENTRY_EXIT, **_NESTED, **_HANDLER,
    **_DEVICES, **_PV, **_SHADOW, **_HARDWARE,
}  # fmt: skip
"""Name of each event by its number, no name twice."""
