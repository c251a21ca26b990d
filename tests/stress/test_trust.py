"""Code inside a counterexample runs only for those who have said so."""

import os
import pty
import subprocess
import sys

import pytest

from deploy.campaign.artifact import FORMAT, VERSION, Broken, Counterexample, Found, encode
from deploy.campaign.chunks import Plan, first_run
from deploy.cli.main import run
from deploy.stress.entry import load_file
from deploy.stress.run import schedule_of

ENTRY = '''
"""Mine."""

from pathlib import Path

from deploy.stress.case import DomainSetup, Extents
from deploy.stress.entry import ZooEntry
from deploy.stress.workload import Workload
from deploy.world import Kinds
from protocols.script import Operation
from services.p2m.component import P2m

with Path("ran").open("a") as file:
    file.write("x")


class NoFlush(P2m):
    async def flush(self, domid):
        pass


class Mine(ZooEntry):
    """A flush that is never sent."""

    name = "mine"
    source = "nobody"
    invariant = "tlb_coherent"
    kinds = Kinds(p2m=NoFlush)
    workload = Workload(
        "mine",
        "one client",
        domains=(DomainSetup(extents=(Extents(0x200, 1, 9),), warm=(0x200,)),),
        scripts=((Operation("decrease", 1, 0x200),),),
    )
'''


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A directory with ``mine.json``, whose entry leaves a file ``ran`` when it is executed."""
    monkeypatch.chdir(tmp_path)
    workload = load_file(tmp_path / "mine.py", ENTRY).workload
    plan = Plan(workload, schedules=1, bug="mine", entry=ENTRY)
    case, outcome = first_run(plan)
    violation = Broken(outcome.violation.invariant, "")
    given = (outcome.nr_steps, case, schedule_of(outcome), ENTRY)
    example = Counterexample(FORMAT, VERSION, violation, Found(0, "pct", 0), *given)
    (tmp_path / "mine.json").write_bytes(encode(example))
    (tmp_path / "ran").unlink()
    return tmp_path


WAYS = [[], ["--until", "1"], ["--json", "-"], ["--diagram", "d"], ["--trace", "t"]]


@pytest.mark.parametrize("more", WAYS, ids=str)
def test_where_nobody_can_be_asked_it_takes_a_flag(here, capsys, more):
    replay = ["stress", "--replay", "mine.json", *more]
    assert run(replay) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "mine.json: field `entry` is code (" in err
    assert "--trust" in err
    assert sorted(path.name for path in here.iterdir()) == ["mine.json"]
    assert run([*replay, "--trust"]) == (0 if "--until" in more else 1)
    assert (here / "ran").exists()


@pytest.mark.parametrize(("answer", "status"), [("y\n", 1), ("\n", 2), ("no\n", 2), ("\x04", 2)])
def test_at_a_terminal_one_is_asked(here, answer, status):
    ours, theirs = pty.openpty()
    code = "import sys; from deploy.cli.main import run; sys.exit(run())"
    command = [sys.executable, "-c", code, "stress", "--replay", "mine.json"]
    with subprocess.Popen(
        command, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, cwd=here
    ) as process:
        os.close(theirs)
        asked = os.read(ours, 4096).decode()
        assert asked.endswith("Run it? [y/N] ")
        assert not (here / "ran").exists()
        os.write(ours, answer.encode())
        out = process.communicate()[0].decode()
    os.close(ours)
    assert process.returncode == status
    assert (here / "ran").exists() == (status == 1)
    assert out.endswith("reproduced\n") == (status == 1)


def test_a_counterexample_without_code_needs_no_trust(here, capsys):
    assert run(["stress", "--zoo", "xsa-346"]) == 1
    path = capsys.readouterr().out.splitlines()[-1]
    assert run(["stress", "--replay", path]) == 1


def test_the_flag_is_for_replays(capsys):
    assert run(["stress", "--trust"]) == 2
    assert "--trust: needs --replay" in capsys.readouterr().err
