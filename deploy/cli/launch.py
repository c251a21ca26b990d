"""``shatterproof launch``: build domains at once and see what their tables look like."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import click
import structlog

from deploy.cli.complain import warn
from deploy.cli.files import dump_tables, write_json
from deploy.cli.options import (
    output_options,
    runtime_options,
    setup_logging,
    strict_option,
    workload_arguments,
)
from deploy.cli.progress import ProgressDisplay
from deploy.cli.render import print_report
from deploy.cli.session import RunOptions, started
from deploy.driver.launch import Launch
from deploy.driver.report import RunReport
from deploy.scenario.load import load_workloads, unknown_keys
from deploy.scenario.model import Run, Scenario
from deploy.world import host_config
from protocols.errno import BadInputError
from protocols.text import shown

EPILOG = """\b
Examples:
  shatterproof launch guest.cfg --host-memory 8GiB --xen-cmdline "hap_1gb=0"
  shatterproof launch guest.cfg --run --runtime local --dump-p2m out
  shatterproof launch examples/fleet.toml --shards 2 --json -
"""


@click.command(epilog=EPILOG)
@workload_arguments
@click.option(
    "--host-memory", metavar="SIZE", default=None, help="Memory of the host (default 8GiB)."
)
@click.option("--nodes", type=click.IntRange(1, 64), default=None, help="NUMA nodes (default 1).")
@click.option(
    "--xen-cmdline",
    metavar="TEXT",
    default=None,
    help='Xen\'s own switches, e.g. "hap_1gb=0 hap_2mb=0".',
)
@click.option(
    "--paging",
    type=click.Choice(["npt", "ept", "pae", "x86_32"]),
    default=None,
    help="Format of the tables (default npt).",
)
@click.option(
    "--superpages",
    type=click.Choice(["explicit", "opportunistic", "off"]),
    default=None,
    help="populate_physmap policy of the host (default explicit).",
)
@click.option(
    "--run",
    "programs",
    is_flag=True,
    help="Then let the guests run their programs (kernel tiny.elf, or program = of a scenario).",
)
@strict_option
@click.option(
    "--trace",
    metavar="FILE",
    type=click.Path(path_type=Path),
    default=None,
    help="Record every message and p2m update.",
)
@click.option(
    "--trace-clock",
    type=click.Choice(["steps", "ns"]),
    default=None,
    help="Times in the trace: steps (default of the local runtime, the same bytes for the same "
    "seed) or nanoseconds (default, and the only one, on Ray).",
)
@runtime_options
@output_options
def launch(
    workloads: tuple[Path, ...],
    host_memory: str | None,
    nodes: int | None,
    xen_cmdline: str | None,
    paging: str | None,
    superpages: str | None,
    programs: bool,
    strict: bool,
    trace: Path | None,
    trace_clock: str | None,
    runtime: str,
    address: str | None,
    shards: int,
    seed: int | None,
    dump_p2m: Path | None,
    json_path: str | None,
    log_json: bool,
    verbose: bool,
) -> int:
    """Build the domains of WORKLOADs (xl.cfg files or TOML scenarios), all at once; then audit.

    A domain that does not fit fails alone. Exit status 1 if one failed or the audit disagrees.
    """
    setup_logging(verbose=verbose, as_json=log_json)
    flags = {
        "memory": host_memory,
        "nodes": nodes,
        "xen_cmdline": xen_cmdline,
        "paging": paging,
        "superpages": superpages,
    }
    given = {name: value for name, value in flags.items() if value is not None}
    scenario = load(workloads, given, strict=strict)
    if programs:
        scenario = with_run(scenario)
    if trace_clock == "steps" and runtime == "ray":
        raise BadInputError("--trace-clock steps: needs --runtime local; on Ray time passes")
    options = RunOptions(
        runtime, address, shards, seed, trace, dump_p2m, json_path, trace_clock == "ns"
    )
    report = run_scenario(scenario, options)
    if json_path != "-":
        print_report(report)
    return 0 if report.good else 1


def load(
    workloads: tuple[Path, ...], flags: dict[str, str | int], *, strict: bool = False
) -> Scenario:
    """The scenario of the workloads; each ignored key is one debug line.

    Raises:
        BadInputError: what cannot be run; if ``strict``, keys that nobody knows, too.
    """
    scenario, ignored = load_workloads(workloads, flags)
    if strict and scenario.unknown:
        raise BadInputError(f"--strict: unknown keys: {unknown_keys(scenario.unknown)}")
    log = structlog.get_logger()
    for source, key in ignored:
        log.debug("key does not matter to memory, ignored", source=source, key=key)
    return scenario


def with_run(scenario: Scenario) -> Scenario:
    """The scenario with a run of the guests' programs at its end, unless it has one already.

    Raises:
        BadInputError: no guest has a program.
    """
    if not any(any(spec.programs) for spec in scenario.domains):
        raise BadInputError(
            f"--run: no guest of {shown(scenario.source)} has a program; "
            "expected kernel = 'tiny.elf' with a cmdline, or program = in a scenario"
        )
    if any(isinstance(phase, Run) for phase in scenario.phases):
        return scenario
    return replace(scenario, phases=(*scenario.phases, Run()))


def run_scenario(scenario: Scenario, options: RunOptions) -> RunReport:
    """Run and write what the flags ask for; the report."""
    options.check()
    config = host_config(scenario.host)
    if scenario.unknown:
        warn(f"unknown keys, not used: {unknown_keys(scenario.unknown)}")
    begun = time.monotonic()
    with (
        ProgressDisplay(len(scenario.domains)) as progress,
        started(options, config, progress) as runtime,
    ):
        run = Launch(
            scenario, config, runtime,
            seed=options.seed or 0, keep_tables=options.dump_p2m is not None,
            on_phase=progress.phase,
        )  # fmt: skip
        report = run.run()
        report.elapsed_s = time.monotonic() - begun
        report.unknown_keys = scenario.unknown
    if options.dump_p2m is not None:
        tables = [domain.table for domain in report.domains if domain.table is not None]
        dump_tables(options.dump_p2m, tables)
    if options.json_path is not None:
        write_json(report.to_json(), options.json_path)
    return report
