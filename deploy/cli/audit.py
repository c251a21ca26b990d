"""``shatterproof audit``: run a workload for its audit alone."""

from __future__ import annotations

from pathlib import Path

import click

from deploy.cli.files import check_json, write_json
from deploy.cli.launch import load, run_scenario
from deploy.cli.options import (
    json_option,
    runtime_options,
    setup_logging,
    strict_option,
    workload_arguments,
)
from deploy.cli.render import print_audit
from deploy.cli.session import RunOptions
from deploy.cli.terminal import output_console

EPILOG = """\b
Example:
  shatterproof audit examples/storm.toml --runtime local
"""


@click.command(epilog=EPILOG)
@workload_arguments
@json_option
@strict_option
@runtime_options
def audit(
    workloads: tuple[Path, ...],
    json_path: str | None,
    strict: bool,
    runtime: str,
    address: str | None,
    shards: int,
    seed: int | None,
) -> int:
    """Launch WORKLOADs and print only what the audit found; exit status 1 on a disagreement.

    Cross-checks p2m, M2P, owners, accounting, pools, heap and walkers.
    """
    setup_logging(verbose=False, as_json=False)
    check_json(json_path)
    options = RunOptions(runtime, address, shards, seed, json_path=None)
    report = run_scenario(load(workloads, {}, strict=strict), options)
    if json_path is not None:
        write_json(report.to_json()["audit"], json_path)
    if json_path != "-":
        print_audit(report, output_console())
    return 1 if report.violations else 0
