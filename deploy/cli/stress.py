"""``shatterproof stress``: find the interleaving that breaks a design, and tell its story."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, Final

import click

from deploy.campaign import chunks, search
from deploy.campaign.artifact import Counterexample, encode, kinds_of, load
from deploy.campaign.chunks import Plan, Runner, Totals
from deploy.cli import stress_render as render
from deploy.cli import stress_zoo
from deploy.cli.files import (
    check_apart,
    check_directory,
    check_file,
    check_json,
    whole_file,
    write_json,
)
from deploy.cli.stress_faults import faults_of
from deploy.cli.stress_progress import CampaignDisplay
from deploy.cli.terminal import output_console
from deploy.cli.trace import trace_file
from deploy.stress.builtin import WORKLOADS
from deploy.stress.case import FAULT_KINDS, LOCK_PROTOCOLS, Case, Schedule
from deploy.stress.run import run_schedule, schedule_of
from deploy.stress.strategies import STRATEGIES
from deploy.stress.taped import write_schedule
from deploy.stress.workload import Overrides, Workload, adapt, draw
from deploy.stress.workload import load as load_workload
from deploy.stress.world import config_of
from deploy.world import Kinds
from protocols.errno import BadInputError
from protocols.text import file_name
from services.spec.history import to_json_line

EXIT_VIOLATION: Final = 1
EXIT_NO_VERDICT: Final = 3
SCHEDULES: Final = 1000
USUAL: Final = "split-storm"
COMPARED: Final = "split-spread"
"""Workloads where none is named: alone, and with --compare-locks."""

EPILOG = """\b
Examples:
  shatterproof stress split-storm --schedules 2000 --seed 7
  shatterproof stress split-physmap --lock none --faults all --jobs 2
  shatterproof stress --zoo xsa-379
  shatterproof stress --replay counterexample.json --until 12

\b
WORKLOAD (split-storm if there is none) is a TOML file or one of:
  """ + "\n  ".join(f"{name:18} {each.summary}" for name, each in WORKLOADS.items())


@click.command(epilog=EPILOG)
@click.argument("workload", required=False)
@click.option("--domains", type=click.IntRange(1, 64), default=None, help="Domains.")
@click.option("--clients", type=click.IntRange(1, 64), default=None, help="Concurrent clients.")
@click.option("--vcpus", type=click.IntRange(1, 64), default=None, help="vCPUs of each domain.")
@click.option("--ops", type=click.IntRange(1, 10_000), default=None, help="Operations a client.")
@click.option(
    "--lock", type=click.Choice(LOCK_PROTOCOLS), default=None, help="The P2M's lock protocol."
)
@click.option(
    "--strategy",
    type=click.Choice(STRATEGIES),
    default=None,
    help="Who chooses what is next (default: a swarm of all that sample).",
)
@click.option(
    "--depth",
    type=click.IntRange(0, 1000),
    default=None,
    help="Of pct (default 3), of delay; bounds the deviations of dfs and bfs.",
)
@click.option("--schedules", type=click.IntRange(1), default=None, help="How many (default 1000).")
@click.option("--seconds", type=click.FloatRange(min=0.1), default=None, help="For so long.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True)
@click.option(
    "--jobs",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    help="Ray workers that share the schedules.",
)
@click.option(
    "--faults",
    metavar="LIST|all|none",
    default="none",
    show_default=True,
    help=f"Faults that may strike: {', '.join(FAULT_KINDS)}.",
)
@click.option("--runtime", type=click.Choice(["local", "ray"]), default="local", show_default=True)
@click.option("--address", default=None, help="Use the Ray cluster at HOST:PORT.")
@click.option(
    "--history",
    type=click.Path(path_type=Path),
    default=None,
    help="Write the operations of the last run as JSON lines.",
)
@click.option(
    "--save",
    type=click.Path(path_type=Path),
    default=Path(),
    help="Directory of counterexample files (default: here).",
)
@click.option(
    "--trace",
    metavar="FILE",
    type=click.Path(path_type=Path),
    default=None,
    help="Record the counterexample, or the first schedule, for profile.",
)
@click.option("--json", "json_path", metavar="FILE|-", default=None, help="The verdict as JSON.")
@click.option(
    "--replay",
    "replay_path",
    type=click.Path(path_type=Path),
    default=None,
    help="See a counterexample again.",
)
@click.option("--until", type=click.IntRange(0), default=None, help="Stop the replay at a step.")
@click.option(
    "--diagram",
    type=click.Path(path_type=Path),
    default=None,
    help="Write the story as a Mermaid sequence diagram.",
)
@click.option(
    "--zoo",
    metavar="list|NAME|all|FILE.py",
    default=None,
    help="Hunt bugs of real hypervisors, put back on purpose.",
)
@click.option("--compare-locks", is_flag=True, help="All lock protocols in virtual time.")
def stress(**options: Any) -> int:
    """Drive concurrent clients at shared superpages under a scheduler that owns every choice.

    Exit status: 0 clean, 1 a violation was found (the last line names its file), 2 bad usage,
    3 no verdict, or what the campaign was meant to provoke never happened.
    """
    _check(options)
    if options["zoo"] is not None:
        return stress_zoo.zoo(options)
    if options["replay_path"] is not None:
        return _replay(options)
    workload = _workload(options)
    if options["compare_locks"]:
        from deploy.cli.stress_locks import compare  # noqa: PLC0415 (seldom needed)

        return compare(workload, options)
    if options["runtime"] == "ray":
        from deploy.cli.stress_ray import on_ray  # noqa: PLC0415 (Ray takes a second to import)

        return on_ray(workload, options)
    return _campaign(workload, options)


def _check(options: dict[str, Any]) -> None:
    """Refuse flags that contradict each other.

    Raises:
        BadInputError: with the flag.
    """
    modes = [
        name
        for name, given in (
            ("WORKLOAD", options["workload"] is not None),
            ("--replay", options["replay_path"] is not None),
            ("--zoo", options["zoo"] is not None),
        )
        if given
    ]
    if len(modes) > 1:
        raise BadInputError(
            f"stress: expected a WORKLOAD, --replay or --zoo; got {' and '.join(modes)}"
        )
    if options["until"] is not None and options["replay_path"] is None:
        raise BadInputError("--until: needs --replay")
    if options["schedules"] is not None and options["seconds"] is not None:
        raise BadInputError("--seconds: give either --schedules or --seconds")
    if options["runtime"] == "local" and options["address"] is not None and options["jobs"] == 1:
        raise BadInputError("--address: needs --runtime ray or --jobs")
    check_directory(options["save"], "--save")
    written = {f"--{flag}": options[flag] for flag in ("history", "diagram", "trace")}
    check_apart({**written, "--json": options["json_path"]})
    check_json(options["json_path"])
    if options["trace"] is not None and (options["zoo"] is not None or options["compare_locks"]):
        raise BadInputError("--trace: needs a WORKLOAD, or --replay of what --zoo has saved")
    for flag in ("history", "diagram", "trace"):
        if options[flag] is not None:
            check_file(options[flag], f"--{flag}")


def _workload(options: dict[str, Any]) -> Workload:
    """The workload named, with the command line's numbers."""
    name: str = options["workload"] or (COMPARED if options["compare_locks"] else USUAL)
    workload = WORKLOADS.get(name)
    if workload is None:
        if not name.endswith(".toml"):
            raise BadInputError(
                f"stress: no workload {name!r}; expected a TOML file or one of "
                f"{', '.join(WORKLOADS)}"
            )
        workload = load_workload(Path(name))
    numbers = {key: options[key] for key in ("domains", "clients", "vcpus", "ops", "lock")}
    return adapt(workload, Overrides(**numbers))


@contextmanager
def runner(jobs: int, address: str | None, function: str) -> Generator[Runner]:
    """Where tasks run: here, or on Ray workers."""
    if jobs == 1:
        yield chunks.here
        return
    from deploy.cluster.pool import run_tasks  # noqa: PLC0415 (Ray takes a second to import)

    def spread(payloads: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
        return run_tasks(function, payloads, jobs=jobs, address=address)

    yield spread


def _campaign(workload: Workload, options: dict[str, Any]) -> int:
    plan = Plan(
        workload,
        strategy=options["strategy"] or "swarm",
        depth=3 if options["depth"] is None else options["depth"],
        seed=options["seed"],
        schedules=options["schedules"] or (1 << 40 if options["seconds"] else SCHEDULES),
        faults=faults_of(options["faults"]),
    )
    begun = time.monotonic()
    with CampaignDisplay() as display:
        if plan.strategy in chunks.SEARCHES:
            totals = _search(plan, options, display)
        else:
            with runner(options["jobs"], options["address"], CHUNK_TASK) as where:
                totals = chunks.run(plan, where, seconds=options["seconds"], watcher=display.update)
    seconds = time.monotonic() - begun
    example: Counterexample | None = None
    if totals.failure is not None:
        example, _ = chunks.counterexample(plan, totals.failure, kinds_of(plan.bug, plan.entry))
    if options["history"] is not None:
        _write_history(plan, example, options["history"])
    if options["trace"] is not None:
        _write_trace(plan, example, options["trace"])
    return conclude(workload, totals, example, seconds, options)


CHUNK_TASK: Final = "deploy.campaign.chunks:chunk_task"


def _search(plan: Plan, options: dict[str, Any], display: CampaignDisplay) -> Totals:
    """Depth-first or breadth-first through the schedules of the seed's case."""
    if plan.faults:
        raise BadInputError(f"--faults: {plan.strategy} goes through schedules, not faults")
    case = draw(plan.workload, Random(f"{plan.seed}/0/run"))  # noqa: S311
    find = search.depth_first if plan.strategy == "dfs" else search.breadth_first
    return find(plan, case, options["depth"], display.update, options["seconds"])


def _write_history(plan: Plan, example: Counterexample | None, path: Path) -> None:
    """The counterexample's operations, or those of the campaign's first schedule."""
    if example is not None:
        engine = run_schedule(example.case, example.schedule, kinds_of(plan.bug, plan.entry))
        history = engine.outcome.history
    else:
        history = chunks.first_run(plan)[1].history
    with whole_file(path, "--history") as file:
        file.writelines((to_json_line(event) + "\n").encode() for event in history)


def _write_trace(plan: Plan, example: Counterexample | None, path: Path) -> None:
    """The counterexample's messages, or those of the campaign's first schedule."""
    if example is not None:
        _trace(example.case, example.schedule, kinds_of(plan.bug, plan.entry), path)
    else:
        case, outcome = chunks.first_run(plan)
        _trace(case, schedule_of(outcome), kinds_of(plan.bug, plan.entry), path)


def _trace(case: Case, schedule: Schedule, kinds: Kinds, path: Path) -> None:
    config = config_of(case.host)
    with trace_file(path, config, runtime="stress", seed=None, wall_clock=False) as sink:
        assert sink is not None, "a path was given"
        write_schedule(case, schedule, sink, kinds)


def conclude(
    workload: Workload,
    totals: Totals,
    example: Counterexample | None,
    seconds: float,
    options: dict[str, Any],
) -> int:
    """Print and write the verdict; the exit status."""
    missing = sorted(set(workload.expects) - totals.events) if example is None else []
    file: Path | None = None
    if example is not None:
        file = save(example, options["save"])
    report = render.report(workload, totals, example, missing, seconds, file)
    if options["json_path"] is not None:
        write_json(report, options["json_path"])
    if options["json_path"] != "-":
        render.print_campaign(report)
        if example is not None:
            show(example, diagram=options["diagram"])
            output_console().print(str(file))
    if example is not None:
        return EXIT_VIOLATION
    return EXIT_NO_VERDICT if missing else 0


def save(example: Counterexample, directory: Path) -> Path:
    """Write the counterexample; its path."""
    directory.mkdir(parents=True, exist_ok=True)
    name = file_name(example.case.bug or example.case.workload)
    path = directory / f"{name}-{file_name(example.violation.invariant)}.json"
    with whole_file(path, "--save") as file:
        file.write(encode(example))
    return path


def show(example: Counterexample, *, diagram: Path | None = None) -> bool:
    """Run the counterexample and tell it; whether it broke the same invariant."""
    kinds = kinds_of(example.case.bug, example.entry)
    engine = run_schedule(example.case, example.schedule, kinds, keep_steps=True)
    render.print_story(example, engine.outcome)
    if diagram is not None:
        with whole_file(diagram, "--diagram") as file:
            file.write(render.diagram(engine.outcome).encode())
    violation = engine.outcome.violation
    engine.world.abandon()
    return violation is not None and violation.invariant == example.violation.invariant


def _replay(options: dict[str, Any]) -> int:
    example = load(options["replay_path"])
    until = options["until"]
    if until is not None and until < example.steps:
        kinds = kinds_of(example.case.bug, example.entry)
        engine = run_schedule(example.case, example.schedule, kinds, keep_steps=True, until=until)
        render.print_state(example, engine)
        engine.world.abandon()
        return 0
    if options["trace"] is not None:
        kinds = kinds_of(example.case.bug, example.entry)
        _trace(example.case, example.schedule, kinds, options["trace"])
    if options["json_path"] is not None:
        kinds = kinds_of(example.case.bug, example.entry)
        outcome = run_schedule(example.case, example.schedule, kinds, keep_steps=True).outcome
        write_json(render.replay_report(example, outcome), options["json_path"])
    if options["json_path"] == "-":
        violation = outcome.violation  # type: ignore[possibly-undefined]
        same = violation is not None and violation.invariant == example.violation.invariant
    else:
        same = show(example, diagram=options["diagram"])
        output_console().print(
            "reproduced" if same else "not reproduced: the run came to a clean end"
        )
    return EXIT_VIOLATION if same else 0
