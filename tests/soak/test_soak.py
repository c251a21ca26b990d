"""The soak: what campaign k is, what its log survives, and that it tells what it finds."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deploy.cli import main as command
from deploy.stress.builtin import WORKLOADS
from deploy.stress.run import template
from deploy.stress.workload import load
from deploy.world import KINDS
from protocols.errno import BadInputError
from tests.soak import run
from tests.soak.log import Log, summary
from tests.soak.plan import COMBINATIONS, FORMATS, Campaign, campaign, in_format, write_workloads
from tests.workers import Lost, run_tasks


def test_a_campaign_is_what_seed_and_number_say():
    drawn = [campaign(7, number, Path("x")) for number in range(40)]
    assert drawn == [campaign(7, number, Path("x")) for number in range(40)]
    assert drawn != [campaign(8, number, Path("x")) for number in range(40)]


def test_the_first_round_meets_every_combination():
    drawn = [campaign(1, number, Path("x")) for number in range(len(COMBINATIONS))]
    assert {(each.workload, each.paging, each.lock) for each in drawn} == set(COMBINATIONS)


def test_a_workload_in_another_format_is_a_file_that_stress_reads(tmp_path):
    write_workloads(tmp_path)
    for path in sorted((tmp_path / "workloads").iterdir()):
        name, _, paging = path.stem.rpartition("-")
        assert load(path) == in_format(WORKLOADS[name], paging), path.name


@pytest.mark.parametrize("paging", FORMATS)
def test_every_workload_is_built_in_every_format_but_pod_in_two_levels(paging):
    refused = []
    for name, workload in WORKLOADS.items():
        adapted = in_format(workload, paging)
        try:
            template(adapted.host, adapted.domains, KINDS)
        except BadInputError:
            refused.append(name)
    assert refused == (["pod", "pod-move"] if paging == "x86_32" else [])


def record(number, verdict="clean", seed=1):
    return {
        "campaign": number,
        "soak_seed": seed,
        "workload": "mix",
        "paging": "npt",
        "lock": "domain",
        "faults": "all",
        "strategy": "swarm",
        "command": "shatterproof stress mix",
        "schedules": 64,
        "seconds": 1.5,
        "verdict": verdict,
        "message": "why",
        "file": None,
        "revision": "abc",
    }


def test_a_log_goes_on_after_a_line_that_was_cut_off(tmp_path):
    path = tmp_path / "log.jsonl"
    first = Log(path, 1)
    first.open()
    first.add(record(0))
    first.add(record(2, "violation x"))
    first.close()
    path.write_bytes(path.read_bytes() + b'{"campaign": 1, "soak_')
    second = Log(path, 1)
    second.open()
    second.add(record(1))
    second.add(record(2))
    second.close()
    third = Log(path, 1).read()
    assert sorted(third.records) == [0, 1, 2]
    assert third.failed() == []
    assert third.schedules() == 192
    assert Log(path, 2).read().records == {}


def test_a_log_has_one_writer(tmp_path):
    first = Log(tmp_path / "log.jsonl", 1)
    first.open()
    with pytest.raises(BlockingIOError):
        Log(tmp_path / "log.jsonl", 1).open()
    first.close()


def test_the_summary_names_failures_with_what_repeats_them(tmp_path):
    log = Log(tmp_path / "log.jsonl", 1)
    log.records = {0: record(0), 1: record(1, "tester error"), 2: record(2, "skipped")}
    lines = list(summary(log))
    assert any(line.split() == ["mix", "npt", "0", "+", "192"] for line in lines)
    assert lines[-1] == "campaign 1: tester error: why: shatterproof stress mix"


def judged(tmp_path, *arguments):
    each = Campaign(0, "pod-move", "npt", "none", "none", "swarm", arguments)
    return run.judge(each, tmp_path)


def test_a_violation_is_told_with_a_counterexample(tmp_path):
    found = judged(tmp_path, "pod-move", "--lock", "none", "--schedules", "300")
    assert found["verdict"].startswith("violation ")
    assert Path(found["file"]).is_file()


def test_numbers_that_make_no_workload_are_skipped(tmp_path):
    found = judged(tmp_path, "pod-move", "--strategy", "dfs", "--faults", "all")
    assert found["verdict"] == "skipped"
    assert found["message"].startswith("--faults: ")


def test_a_traceback_is_an_error_of_the_tester(tmp_path, monkeypatch):
    monkeypatch.setattr(command.cli, "main", lambda *_, **__: 1 // 0)
    found = judged(tmp_path, "pod-move")
    assert found["verdict"] == "tester error"
    assert "ZeroDivisionError" in found["message"]


def test_a_soak_goes_on_where_it_ended(tmp_path):
    env = os.environ | {"SOAK_DIR": str(tmp_path), "SOAK_JOBS": "2"}
    command = [sys.executable, "-m", "tests.soak.run"]
    for total in (100, 400):
        done = subprocess.run(
            command,
            check=False,
            env=env | {"SOAK_SCHEDULES": str(total)},
            capture_output=True,
            text=True,
        )
        assert done.stderr == ""
        assert f"{Log(tmp_path / 'log.jsonl', 1).read().schedules():,} schedules" in done.stdout
    numbers = [line.split(",")[0] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(numbers) == len(set(numbers))
    assert Log(tmp_path / "log.jsonl", 1).read().schedules() >= 400


def misbehave(task, mark):
    """A task for a worker: to die, to hang, or to answer."""
    mark.value = 7
    if task == "die":
        os._exit(9)
    if task == "hang":
        time.sleep(60)
    return task.upper()


def test_a_worker_that_dies_or_hangs_is_named_and_replaced():
    tasks = ["a", "die", "b", "hang", "c"]
    found = dict(
        run_tasks(f"{__name__}:misbehave", tasks, jobs=1, limit_seconds=3, recycle_mib=10_000)
    )
    assert found == {
        "a": "A",
        "die": Lost("the worker died with exit code 9", 7),
        "b": "B",
        "hang": Lost("no result in 3 s", 7),
        "c": "C",
    }
