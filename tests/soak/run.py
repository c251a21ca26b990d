"""``python -m tests.soak.run``: campaigns of ``stress`` without end, logged so that one can go on.

SOAK_SCHEDULES (a total, with what the log has already) or SOAK_SECONDS bound it, ten minutes if
neither does; SOAK_JOBS processes share it; SOAK_SEED draws it; SOAK_DIR has log.jsonl, the
counterexamples and the workload files. A second run goes on where the first one ended.
Exit status: 0 all that the log has is good, 1 a violation or an error of the tester, 2 bad usage.
"""

import argparse
import io
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from contextlib import redirect_stderr, redirect_stdout
from itertools import count
from pathlib import Path

from deploy.cli.main import TRACEBACK
from deploy.cli.main import run as shatterproof
from tests.soak import log as logs
from tests.soak.plan import campaign, write_workloads
from tests.workers import Lost, Terminated, peak_mib, run_tasks, terminate

SECONDS = 600
CAMPAIGN_SECONDS = 900
"""After so long a campaign of a few hundred schedules hangs."""
RECYCLE_MIB = 900
"""A worker keeps the worlds of 64 campaigns; the largest take 300 MiB."""


def judge(each, directory):
    """Run a campaign as the command does; its record, but for what the soak adds.

    Verdicts: those of ``stress``, ``skipped`` where the numbers make no workload, ``tester error``
    for everything that should never be: a traceback, a counterexample that is none.
    """
    save = directory / f"campaign-{each.number}"
    arguments = ["stress", *each.arguments, "--save", str(save), "--json", "-"]
    status, out, err = _call(arguments)
    found = {"schedules": 0, "verdict": "tester error", "message": err, "file": None}
    if status == 2:
        return found | {"verdict": "skipped", "message": err.strip().removeprefix("shatterproof: ")}
    if status is None or not out:
        return found
    report = json.loads(out)
    found |= {"schedules": report["schedules"], "verdict": report["verdict"], "message": ""}
    if report["violation"] is not None:
        found["file"] = report["file"]
        found["verdict"] = f"violation {report['violation']['invariant']}"
        found["message"] = report["violation"]["message"]
        again, _, err = _call(["stress", "--replay", report["file"], "--json", "-"])
        if again != 1:
            found |= {"verdict": "tester error", "message": err or "not reproduced by --replay"}
    elif report["missing_events"]:
        found["message"] = f"never happened: {', '.join(report['missing_events'])}"
    return found


def _call(arguments):
    """(exit status or None for a traceback, standard output, standard error or the traceback)."""
    os.environ[TRACEBACK] = "1"
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = shatterproof(arguments)
        except Exception:  # noqa: BLE001 (this is what is looked for)
            return None, out.getvalue(), traceback.format_exc()
    return status, out.getvalue(), err.getvalue()


def work(task, _mark):
    """A worker's task: (campaign, directory)."""
    each, directory = task
    begun = time.monotonic()
    found = judge(each, directory)
    return found | {"seconds": round(time.monotonic() - begun, 2), "peak_mib": peak_mib()}


def numbers(log, again):
    """The campaigns to run: those that failed once more, or those that no run has finished."""
    if again:
        return iter([record["campaign"] for record in log.failed()])
    return (number for number in count() if number not in log.records)


def soak(log, directory, *, jobs, schedules, seconds, again):
    """Run campaigns until the bound; every record goes to the log at once."""
    deadline = float("inf") if seconds is None else time.monotonic() + seconds
    code = revision()

    def tasks():
        for number in numbers(log, again):
            if time.monotonic() >= deadline or (schedules and log.schedules() >= schedules):
                return
            yield campaign(log.seed, number, directory), directory

    results = run_tasks(
        "tests.soak.run:work",
        tasks(),
        jobs=jobs,
        limit_seconds=CAMPAIGN_SECONDS,
        recycle_mib=RECYCLE_MIB,
    )
    for (each, _), result in results:
        record = {
            "campaign": each.number,
            "soak_seed": log.seed,
            "workload": each.workload,
            "paging": each.paging,
            "lock": each.lock,
            "faults": each.faults,
            "strategy": each.strategy,
            "command": each.command(),
            **(_lost(result) if isinstance(result, Lost) else result),
            "revision": code,
        }
        log.add(record)
        if record["verdict"] not in logs.GOOD:
            say(logs.line_of(record))


def _lost(lost):
    """What is known of a campaign whose worker hung or died."""
    return {
        "schedules": 0,
        "verdict": "tester error",
        "message": lost.reason,
        "file": None,
        "seconds": 0,
        "peak_mib": 0,
    }


def say(line):
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def revision():
    """The commit that is tested, as git names it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--report", action="store_true", help="only say what the log has")
    parser.add_argument("--again", action="store_true", help="run what failed once more")
    arguments = parser.parse_args()
    env = os.environ
    directory = Path(env.get("SOAK_DIR", "out/soak"))
    log = logs.Log(directory / "log.jsonl", int(env.get("SOAK_SEED", "1")))
    schedules = int(env.get("SOAK_SCHEDULES", "0"))
    default = None if schedules or arguments.again else SECONDS
    seconds = float(env["SOAK_SECONDS"]) if env.get("SOAK_SECONDS") else default
    jobs = int(env.get("SOAK_JOBS") or os.cpu_count() or 1)
    signal.signal(signal.SIGTERM, terminate)
    status = 0
    if arguments.report:
        log.read()
    else:
        try:
            log.open()
        except BlockingIOError:
            sys.exit(f"{directory}: another soak is writing its log")
        write_workloads(directory)
        try:
            soak(
                log,
                directory,
                jobs=jobs,
                schedules=schedules,
                seconds=seconds,
                again=arguments.again,
            )
        except KeyboardInterrupt:
            status = 130
        except Terminated as end:
            status = end.code
        log.close()
    if log.records:
        say("\n".join(logs.summary(log)))
    sys.exit(status or (1 if log.failed() else 0))


if __name__ == "__main__":
    main()
