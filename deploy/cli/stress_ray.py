"""``stress --runtime ray``: the same clients against real actors, with kills and bad links."""

from __future__ import annotations

import time
from random import Random
from typing import Any, Final

from deploy.campaign import parallel
from deploy.campaign.parallel import FAILING, ParallelResult
from deploy.cli.files import whole_file, write_json
from deploy.cli.stress_faults import faults_of
from deploy.cli.stress_progress import CampaignDisplay
from deploy.cli.terminal import output_console
from deploy.cli.trace import trace_file
from deploy.cluster.chaos import Chaos
from deploy.cluster.runtime import RayCluster, RayRuntime
from deploy.stress.case import FaultKind
from deploy.stress.workload import Workload, draw
from deploy.stress.world import config_of
from deploy.world import FACTORY
from protocols.errno import BadInputError, ShatterproofError
from services.spec.history import to_json_line

RUNS: Final = 3
KILL_EVERY: Final = 12
"""Batches of a shard between kills: a small run has some dozens."""
EXIT_VIOLATION: Final = 1
EXIT_NO_VERDICT: Final = 3


def chaos_of(faults: tuple[FaultKind, ...], seed: int) -> Chaos | None:
    """What the faults mean on real actors; None for a calm run."""
    if not {"crash", "duplicate", "slow"} & set(faults):
        return None
    return Chaos(
        seed=seed,
        kill_every=KILL_EVERY if "crash" in faults else 0,
        kills=3,
        duplicate=0.1 if "duplicate" in faults else 0.0,
        delay=0.1 if "slow" in faults else 0.0,
    )


def on_ray(workload: Workload, options: dict[str, Any]) -> int:
    """Some runs, each on a fresh world; exit status as for the local engine."""
    for flag in ("strategy", "depth", "diagram"):
        if options[flag] is not None:
            raise BadInputError(f"--{flag}: on Ray the machine chooses; needs --runtime local")
    if options["jobs"] != 1:
        raise BadInputError("--jobs: needs --runtime local; a run on Ray uses every core")
    faults = faults_of(options["faults"])
    runs = options["schedules"] or (1 << 30 if options["seconds"] else RUNS)
    if options["trace"] is not None and chaos_of(faults, 0) is not None:
        raise BadInputError("--trace: an actor that dies takes its tape along; needs --faults none")
    results: list[ParallelResult] = []
    begun = time.monotonic()
    with CampaignDisplay() as display:
        display.note("starting Ray")
        cluster = RayCluster(options["address"])
        try:
            for number in range(runs):
                result = _one(workload, options, faults, number)
                results.append(result)
                display.note(f"{number + 1} runs, {result.kills} kills in the last")
                late = options["seconds"] and time.monotonic() - begun >= options["seconds"]
                if result.violation or late:
                    break
        finally:
            cluster.close()
    return _conclude(workload, results, time.monotonic() - begun, options)


def _one(
    workload: Workload, options: dict[str, Any], faults: tuple[FaultKind, ...], number: int
) -> ParallelResult:
    seed = options["seed"]
    case = draw(workload, Random(f"{seed}/{number}/run"))  # noqa: S311
    config = config_of(case.host)
    path = options["trace"] if number == 0 else None
    with trace_file(path, config, runtime="ray", seed=None, wall_clock=True) as sink:
        runtime = RayRuntime(
            config,
            record=True,
            factory=FAILING if "heap" in faults else FACTORY,
            chaos=chaos_of(faults, seed * 1000 + number),
            sink=sink,
        )
        try:
            result, history = parallel.run(runtime, case, faults)
        except ShatterproofError as error:
            return ParallelResult(str(error), case.nr_operations(), 0, 0, [], replayed=False)
        finally:
            runtime.close()
    if options["history"] is not None:
        with whole_file(options["history"], "--history") as file:
            file.writelines((to_json_line(event) + "\n").encode() for event in history)
    return result


def _conclude(
    workload: Workload, results: list[ParallelResult], seconds: float, options: dict[str, Any]
) -> int:
    bad = [result.violation for result in results if result.violation]
    operations = sum(result.operations for result in results)
    kills = sum(result.kills for result in results)
    events = sorted({event for result in results for event in result.events})
    wanted = "crash" in faults_of(options["faults"])
    missing = ["crash"] if wanted and "crash" not in events and not bad else []
    verdict = "violation" if bad else ("no verdict" if missing else "clean")
    report = {
        "workload": workload.name,
        "lock": workload.host.lock,
        "runtime": "ray",
        "verdict": verdict,
        "runs": len(results),
        "operations": operations,
        "messages": sum(result.messages for result in results),
        "kills": kills,
        "replayed": sum(result.replayed for result in results),
        "events": events,
        "missing_events": missing,
        "seconds": round(seconds, 3),
        "violation": bad[0] if bad else None,
    }
    if options["json_path"] is not None:
        write_json(report, options["json_path"])
    if options["json_path"] != "-":
        console = output_console()
        console.print(
            f"{workload.name} on Ray (lock {workload.host.lock}): {len(results)} runs, "
            f"{operations:,} operations, {report['messages']:,} messages, {kills} kills, "
            f"{report['replayed']} recordings replayed to the same tables, {seconds:.1f} s"
        )
        if missing:
            console.print(f"no verdict: never happened: {', '.join(missing)}")
        console.print(bad[0] if bad else verdict)
    if bad:
        return EXIT_VIOLATION
    return EXIT_NO_VERDICT if missing else 0
