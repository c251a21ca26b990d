"""``stress`` as a person uses it: verdicts, files, exit statuses, bad input."""

import json
from pathlib import Path

import pytest

from deploy.cli.main import run

WORKLOAD = """
summary = "two clients"
clients = 2
ops = 2
[host]
memory_mib = 32
[[domains]]
max_mib = 8
vcpus = 1
extents = [{gfn = 0x200, nr = 1, order = 9}]
warm = [0x200]
[[operations]]
kind = "set_type"
gfns = [[0x200, 0x204]]
targets = [2, 3]
[[operations]]
kind = "touch"
gfns = [0x200, 0x201]
"""


def report(capsys, *arguments):
    status = run(["stress", *arguments, "--json", "-"])
    return status, json.loads(capsys.readouterr().out)


def test_a_clean_campaign(capsys, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(WORKLOAD)
    history = tmp_path / "history.jsonl"
    status, found = report(
        capsys, str(path), "--schedules", "40", "--faults", "all", "--history", str(history)
    )
    assert (status, found["verdict"], found["schedules"]) == (0, "clean", 40)
    assert 0 < found["distinct_schedules"] <= 40
    assert found["operations"] == 160
    lines = [json.loads(line) for line in history.read_text().splitlines()]
    assert len(lines) == 4
    assert {"client", "call", "return", "op", "domid", "gfn", "result"} <= lines[0].keys()


def test_without_a_workload_it_is_a_split_storm(capsys):
    _, found = report(capsys, "--schedules", "3")
    assert (found["workload"], found["schedules"]) == ("split-storm", 3)


def test_lock_protocols_compared(capsys, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(WORKLOAD)
    status, found = report(capsys, str(path), "--compare-locks", "--schedules", "5")
    assert status == 0
    assert [each["lock"] for each in found["verdicts"]] == [
        "domain", "region", "optimistic", "none",
    ]  # fmt: skip
    assert all(each["clean"] for each in found["verdicts"][:3])
    points = {(each["lock"], each["clients"]): each for each in found["points"]}
    assert points["domain", 64]["operations"] == 128
    assert points["domain", 64]["wait_ns"] > points["domain", 1]["wait_ns"] == 0
    assert found["costs_ns"]["flush"] > found["costs_ns"]["hop"]


def test_numbers_of_the_command_line(capsys):
    status, found = report(
        capsys, "split-storm", "--schedules", "5", "--clients", "3", "--ops", "2",
        "--domains", "2", "--vcpus", "1", "--strategy", "pct", "--depth", "2", "--seed", "9",
    )  # fmt: skip
    assert status in {0, 3}
    assert found["operations"] == 5 * 3 * 2


def test_what_never_happened_is_no_verdict(capsys):
    status, found = report(capsys, "split-pool", "--schedules", "1", "--ops", "1", "--clients", "1")
    assert (status, found["verdict"]) == (3, "no verdict")
    assert found["missing_events"]


def test_exhaustive_search_says_so(capsys, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(WORKLOAD.replace("ops = 2", "ops = 1"))
    for strategy in ("dfs", "bfs"):
        _, found = report(capsys, str(path), "--strategy", strategy, "--schedules", "3000")
        assert found["exhausted"] is True


def test_a_violation_names_its_file_last_and_replays(capsys, tmp_path):
    status = run(["stress", "--zoo", "xsa-346", "--save", str(tmp_path)])
    out = capsys.readouterr().out.splitlines()
    assert status == 1
    path = out[-1]
    assert path.startswith(str(tmp_path))
    diagram = tmp_path / "story.mmd"
    assert run(["stress", "--replay", path, "--diagram", str(diagram)]) == 1
    told = capsys.readouterr().out
    assert told.splitlines()[-1] == "reproduced"
    assert "violated: tlb_coherent d1 gfn 0x201" in told
    assert diagram.read_text().startswith("sequenceDiagram")
    assert run(["stress", "--replay", path, "--until", "2"]) == 0
    state = capsys.readouterr().out
    assert "stopped before step 2" in state
    assert "walker/1.0: TLB" in state
    assert "on its way:" in state


def test_the_list_of_the_zoo(capsys):
    status, found = report(capsys, "--zoo", "list")
    assert status == 0
    assert {"name", "source", "invariant", "mechanism"} <= found["zoo"][0].keys()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--zoo", "all", "--replay", "x.json"], "got --replay and --zoo"),
        (["nonsense"], "no workload 'nonsense'"),
        (["none.toml"], "none.toml: No such file"),
        (["split-storm", "--zoo", "all"], "got WORKLOAD and --zoo"),
        (["split-storm", "--until", "3"], "--until: needs --replay"),
        (["split-storm", "--faults", "fire"], "'fire' is none; expected all, none or some of heap"),
        (["split-storm", "--lock", "big"], "Invalid value for '--lock'"),
        (["split-storm", "--seconds", "1", "--schedules", "3"], "give either"),
        (["--zoo", "xsa-0"], "no such entry"),
        (["--zoo", "gone.py"], "gone.py"),
        (["--replay", "gone.json"], "gone.json: No such file"),
        (["split-storm", "--strategy", "dfs", "--faults", "all"], "goes through schedules"),
        (["split-storm", "--runtime", "ray", "--strategy", "pct"], "the machine chooses"),
    ],
)
def test_bad_input_is_one_line(capsys, monkeypatch, tmp_path, arguments, complaint):
    monkeypatch.chdir(tmp_path)
    assert run(["stress", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert complaint in err


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("memory_mib = 32", 'memory_mib = "32"'), "Expected `int`, got `str` - at `$.host"),
        (('kind = "touch"', 'kind = "tuch"'), "Invalid enum value 'tuch'"),
        (("gfns = [[0x200, 0x204]]", "gfns = [[0x204, 0x200]]"), "is empty"),
        (("ops = 2", "oops = 2"), "unknown field `oops`"),
        (("summary", "[summary"), "no TOML"),
        (("nr = 1, order = 9", "nr = 30, order = 9"), "expected room for all"),
        (("max_mib = 8", "max_mib = 8\ndomid = 0"), "Expected `int` >= 1"),
    ],
)
def test_a_bad_workload_is_one_line(capsys, tmp_path, change, complaint):
    path = tmp_path / "mine.toml"
    path.write_text(WORKLOAD.replace(*change, 1))
    assert run(["stress", str(path), "--schedules", "1"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert complaint in err


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (('"version": 1', '"version": 9'), "version 9, expected"),
        (('"kind"', '"sort"'), "no counterexample file"),
        (("{", "["), "no counterexample file"),
        (('"bug": "xsa-346"', '"bug": "xsa-0"'), "no such entry"),
    ],
)
def test_a_bad_counterexample_is_one_line(capsys, tmp_path, change, complaint):
    run(["stress", "--zoo", "xsa-346", "--save", str(tmp_path)])
    path = capsys.readouterr().out.splitlines()[-1]
    broken = tmp_path / "broken.json"
    text = Path(path).read_text()
    changed = text.replace(*change, 1)
    broken.write_text(changed)
    status = run(["stress", "--replay", str(broken)])
    if changed != text:
        assert status == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert complaint in err


def test_the_example_workload(capsys):
    path = Path(__file__).parents[2] / "examples" / "stress" / "balloon.toml"
    status, found = report(capsys, str(path), "--schedules", "20")
    assert (status, found["workload"], found["verdict"]) == (0, "balloon", "clean")
