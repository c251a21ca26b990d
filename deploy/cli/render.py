"""The closing table of a run, and the audit's verdict."""

from __future__ import annotations

from collections.abc import Sequence

from deploy.cli.terminal import Listing, Terminal, output_console
from deploy.driver.report import DomainStatus, RunReport
from protocols.frames import ORDER_NAMES
from protocols.text import NAME_MAX, shown

ROWS_MAX = 100
"""A closing table ends somewhere: at most so many rows."""


def print_report(report: RunReport) -> None:
    """Domains, host, messages, audit."""
    console = output_console()
    print_domains(report.domains, console)
    total, free = report.host_total, report.host_free
    if total:
        console.print(
            f"host: {total:,} frames, {total - free:,} used, {free:,} free "
            f"({(total - free) / 256:,.0f} of {total / 256:,.0f} MiB)"
        )
    nr = sum(report.messages.values())
    rate = nr / report.elapsed_s if report.elapsed_s else 0.0
    console.print(f"messages: {nr:,} in {report.elapsed_s:.2f} s ({rate:,.0f}/s)")
    print_audit(report, console)


def print_domains(domains: Sequence[DomainStatus], console: Terminal) -> None:
    """One row a domain, or a row for each kind when there are many."""
    orders = sorted({order for domain in domains for order in domain.extents}, reverse=True)
    table = Listing()
    table.add_column("domid", justify="right")
    table.add_column("name")
    table.add_column("status")
    table.add_column("memory", justify="right")
    for order in orders:
        table.add_column(ORDER_NAMES.get(order, str(order)), justify="right")
    table.add_column("shatters", justify="right")
    table.add_column("populates", justify="right")
    ran = any(domain.vcpus for domain in domains)
    if ran:
        table.add_column("program")
    for domain in domains[:ROWS_MAX]:
        status = domain.status if domain.error is None else f"{domain.status}: {domain.error}"
        table.add_row(
            str(domain.domid),
            shown(domain.name, NAME_MAX),
            status,
            f"{domain.memory_kib / 1024:,.0f} MiB",
            *(f"{domain.extents.get(order, 0):,}" for order in orders),
            f"{domain.shatters:,}",
            f"{domain.populate_calls:,}",
            *([_program(domain)] if ran else []),
        )
    console.print(table)
    rest = domains[ROWS_MAX:]
    if rest:
        built = sum(domain.status == "built" for domain in rest)
        console.print(f"... and {len(rest)} more, {built} of them built")


def _program(domain: DomainStatus) -> str:
    """How far the vCPUs came: "1,544 operations, blocked"."""
    if not domain.vcpus:
        return ""
    states = ", ".join(dict.fromkeys(state for _, state in sorted(domain.vcpus.items())))
    failed = f", {domain.failed_calls:,} calls failed" if domain.failed_calls else ""
    return f"{domain.operations:,} operations{failed}, {states}"


def print_audit(report: RunReport, console: Terminal) -> None:
    """Clean, or every disagreement on a line of its own."""
    violations = report.violations
    checked = sum(audit.checked for audit in report.audits)
    if not violations:
        console.print(f"audit: clean, {checked:,} frames and entries checked")
        return
    console.print(f"audit: {len(violations)} violations, {checked:,} frames and entries checked")
    for line in violations:
        console.print(f"  {line}")
