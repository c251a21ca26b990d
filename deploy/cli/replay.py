"""``shatterproof replay``: the page tables that a real Xen's trace leads to."""

from __future__ import annotations

import time
from pathlib import Path

import click

from deploy.cli.files import dump_tables, write_json
from deploy.cli.options import output_options, runtime_options, setup_logging
from deploy.cli.progress import ProgressDisplay
from deploy.cli.session import RunOptions, started
from deploy.cli.terminal import Listing, output_console
from deploy.driver.replay import ReplayReport
from deploy.driver.replay import replay as run_replay
from deploy.driver.retrace import retrace
from deploy.profile.open import own_trace, read_file
from deploy.scenario.model import HostSpec
from deploy.world import host_config
from protocols.errno import BadInputError
from protocols.frames import ORDER_NAMES
from services.trace.blocks import is_trace
from services.trace.xentrace import decode_xentrace

EPILOG = """\b
Example:
  shatterproof replay tests/data/traces/b1.pvh-64.trimmed.trace.bin.xz --dump-p2m out
"""


@click.command(epilog=EPILOG)
@click.argument("xentrace", metavar="XENTRACE", type=click.Path(path_type=Path))
@click.option(
    "--updates",
    metavar="N",
    type=click.IntRange(min=0),
    default=None,
    help="Stop after the first N p2m updates (default: all).",
)
@runtime_options
@output_options
def replay(
    xentrace: Path,
    updates: int | None,
    runtime: str,
    address: str | None,
    shards: int,
    seed: int | None,
    dump_p2m: Path | None,
    json_path: str | None,
    log_json: bool,
    verbose: bool,
) -> int:
    """Feed the set_p2m_entry events of XENTRACE (raw, .xz or .gz) to P2M actors, in order.

    A trace that launch or stress wrote is replayed message by message, in one process.
    """
    setup_logging(verbose=verbose, as_json=log_json)
    options = RunOptions(runtime, address, shards, seed, None, dump_p2m, json_path)
    options.check()
    data = read_file(xentrace)
    if is_trace(data):
        report = _retrace(data, xentrace, options, updates)
        return _finish(report, dump_p2m, json_path)
    trace = decode_xentrace(bytes(data), str(xentrace))
    config = host_config(HostSpec())
    begun = time.monotonic()
    with ProgressDisplay(0) as progress, started(options, config, progress) as started_runtime:
        progress.phase("replay")
        report = run_replay(trace.p2m_updates(), str(xentrace), started_runtime, updates)
        report.elapsed_s = time.monotonic() - begun
    return _finish(report, dump_p2m, json_path)


def _retrace(
    data: memoryview, path: Path, options: RunOptions, updates: int | None
) -> ReplayReport:
    """Replay a trace of ours: all of it, in this process."""
    if updates is not None:
        raise BadInputError(f"--updates {updates}: needs a xentrace, {path} is a trace of messages")
    if options.address is not None or options.shards != 1:
        raise BadInputError(f"--shards, --address: {path} is replayed in one process")
    begun = time.monotonic()
    report = retrace(own_trace(data, str(path)))
    report.elapsed_s = time.monotonic() - begun
    return report


def _finish(report: ReplayReport, dump_p2m: Path | None, json_path: str | None) -> int:
    """Write what the flags ask for; the exit status."""
    if dump_p2m is not None:
        dump_tables(dump_p2m, [domain.table for domain in report.domains])
    if json_path is not None:
        write_json(report.to_json(), json_path)
    if json_path != "-":
        _print(report)
    return 1 if report.problems else 0


def _print(report: ReplayReport) -> None:
    console = output_console()
    orders = sorted({order for domain in report.domains for order in domain.extents}, reverse=True)
    table = Listing()
    for name in (
        "domid",
        "updates",
        *(ORDER_NAMES.get(o, str(o)) for o in orders),
        "PoD",
        "shatters",
    ):
        table.add_column(name, justify="right")
    for domain in report.domains:
        table.add_row(
            str(domain.domid),
            f"{domain.updates:,}",
            *(f"{domain.extents.get(order, 0):,}" for order in orders),
            f"{domain.pod_entries:,}",
            f"{sum(domain.shatters.values()):,}",
        )
    console.print(table)
    console.print(
        f"replayed {report.updates:,} of {report.of:,} p2m updates in {report.elapsed_s:.2f} s"
    )
    for problem in report.problems:
        console.print(f"  {problem}")
