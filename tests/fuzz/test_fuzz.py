"""The fuzzer: that it sees what it is for, and that an input is what seed and number say."""

import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from protocols.errno import BadInputError
from tests.fuzz import formats, judge, run, seeds, targets
from tests.fuzz.judge import judge as judged


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    directory = tmp_path_factory.mktemp("seeds")
    seeds.make(directory)
    return directory


def says(out="", err="", status=0):
    def call(_):
        sys.stdout.write(out)
        sys.stderr.write(err)
        return status

    return call


def raises(error):
    def call(_):
        raise error

    return call


CALLS = {
    "a report and a warning": (says("a table\n", "shatterproof: cut off\n"), None),
    "a refusal": (says(err="shatterproof: no\n", status=2), None),
    "no reason": (says(status=2), "SILENT"),
    "a signal": (says(status=134), "STATUS"),
    "two lines": (says(err="one\ntwo\n", status=2), "NOTONELINE"),
    "a long line": (says(err="x" * 401, status=2), "LONGLINE"),
    "colour in an error": (says(err="\x1b[31m\n", status=2), "CTRL_IN_ERR"),
    "colour in a report": (says("name \x9b31m\n"), "CTRL_IN_OUT"),
    "text turned around": (says("\u202ename\n"), "CTRL_IN_OUT"),
    "an error that got out": (raises(BadInputError("x")), "EXC BadInputError nowhere"),
    "an exit": (raises(SystemExit(3)), "EXC SystemExit nowhere"),
    "an exception": (lambda data: memoryview(data).cast("Q"), "EXC TypeError nowhere"),
}


@pytest.mark.parametrize("name", CALLS)
def test_each_kind_of_fault_is_seen(name):
    call, kind = CALLS[name]
    assert list(judged(b"xyz", call=call).faults) == ([] if kind is None else [kind])


def test_an_exception_is_named_by_our_innermost_function(tmp_path, monkeypatch):
    monkeypatch.setattr("deploy.profile.open.read_part", lambda _: 1 // 0)
    verdict = judged(["profile", str(tmp_path / "x.trace")])
    (kind,) = verdict.faults
    assert kind.startswith("EXC ZeroDivisionError deploy.")


def test_a_command_that_takes_too_long_is_stopped(monkeypatch):
    def spin(_):
        while True:
            pass

    monkeypatch.setattr(judge, "HANG_SECONDS", 0.2)
    assert list(judged(b"", call=spin).faults) == ["HANG nowhere"]
    monkeypatch.setattr(judge, "SECONDS_MAX", 0.0)
    assert list(judged(b"", call=lambda _: 0).faults) == ["SLOW"]


def test_a_file_that_was_left_half_written_is_seen(tmp_path):
    def call(_):
        (tmp_path / ".o.html.abc").write_bytes(b"half")
        return 0

    assert judged(b"", tmp_path, call).faults == {"LEFT": ".o.html.abc"}


@pytest.mark.parametrize(
    ("name", "kinds"), [("lost", ["DIFF domains lost"]), ("populate", []), ("series", [])]
)
def test_the_readers_of_a_xentrace_are_compared(monkeypatch, name, kinds):
    def call(_):
        what = "long" if targets.long.LONG_BYTES < 0 else "short"
        domain = {"lost": 0, "series": {}}
        domain |= {name: {"populate_calls": what} if name == "series" else what}
        sys.stdout.write(json.dumps({"records": 3, "domains": {"7": domain}}))
        return 0

    monkeypatch.setattr(targets, "judge", lambda words: judged(words, call=call))
    verdict = judged([], call=call)
    targets._compare(verdict, [])
    assert list(verdict.faults) == kinds


def test_an_own_trace_is_taken_apart_and_put_together(made, monkeypatch):
    monkeypatch.setattr(formats.mutate, "of_tree", lambda tree, *_, **__: tree)
    for data in seeds.own_traces(made):
        for number in range(5):
            again = formats.own_trace(data, Random(number))
            assert again in {data, data[: len(again)]} or len(again) == len(data)


def test_a_xentrace_is_taken_apart_and_put_together(made):
    for data in seeds.xentraces(made):
        found = formats.windows(data)
        assert formats.windows(formats.from_windows(found, Quiet())) == found
        whole = formats.from_windows(found[:-1], Quiet())
        assert data.startswith(whole)
        assert sum(len(records) for _, records in found) > len(data) // 40


class Quiet:
    """A source of chance that lets every window keep its size."""

    def random(self):
        return 0.0


@pytest.mark.parametrize("target", targets.TARGETS)
def test_an_input_is_what_seed_and_number_say(target, made):
    inputs = [run.make(target, 5, index, made) for index in range(30)]
    assert inputs == [run.make(target, 5, index, made) for index in range(30)]
    assert inputs != [run.make(target, 6, index, made) for index in range(30)]
    assert len({(each.data, *map(str, each.arguments)) for each in inputs}) > 15


@pytest.mark.parametrize("target", targets.TARGETS)
def test_some_inputs_of_each_format_are_taken(target, made):
    verdicts = [run.run_one(run.make(target, 1, index, made)) for index in range(25)]
    assert {0, 2} <= {verdict.status for verdict in verdicts}


def test_a_run_goes_on_where_it_ended(tmp_path):
    env = os.environ | {"FUZZ_DIR": str(tmp_path), "FUZZ_JOBS": "1", "FUZZ_INPUTS": "40"}
    command = [sys.executable, "-m", "tests.fuzz.run", "--only", "xen-cmdline", "--only", "history"]
    for total in (20, 40):
        done = subprocess.run(command, check=False, env=env, capture_output=True, text=True)
        assert done.stderr == ""
        assert done.returncode == 0, done.stdout
        state = json.loads((tmp_path / "state.json").read_text())
        assert state == {"1": {"xen-cmdline": total, "history": total}}
        assert "all                     40" in done.stdout


def test_a_finding_is_made_smaller_and_kept(tmp_path, monkeypatch):
    def call(data):
        return 1 // 0 if b"!" in data else 0

    monkeypatch.setitem(targets.CALLS, "bad", call)
    given = targets.Input(b"a" * 300 + b"!" + b"b" * 200, ".x", [], call="bad")
    kind = "EXC ZeroDivisionError nowhere"

    class Mark:
        value = 0

    assert run.smaller(given, {"kind": kind}, Mark) == {"data": b"!"}
    monkeypatch.setattr(run, "make", lambda *_: given)
    fuzz = run.Fuzz(tmp_path, 1, Path(), ["wire"])
    task = {"target": "wire", "index": 7, "kind": kind, "seen": "x"}
    fuzz._save(task, b"!")
    (row,) = (tmp_path / "findings.jsonl").read_text().splitlines()
    assert json.loads(row)["index"] == 7
    assert Path(json.loads(row)["file"]).read_bytes() == b"!"
