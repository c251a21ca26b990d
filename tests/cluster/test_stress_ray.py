"""Stress on Ray: parallel clients with kills, recordings replayed; workers that share chunks."""

import json

import pytest

from deploy.cli.main import run

pytestmark = pytest.mark.ray


def report(capsys, *arguments):
    status = run(["stress", *arguments, "--json", "-"])
    return status, json.loads(capsys.readouterr().out)


def test_real_actors_with_kills_leave_every_oracle_green(capsys, tmp_path):
    history = tmp_path / "history.jsonl"
    status, found = report(
        capsys, "split-reservation", "--runtime", "ray", "--schedules", "1", "--ops", "8",
        "--faults", "all", "--history", str(history),
    )  # fmt: skip
    assert (status, found["verdict"], found["violation"]) == (0, "clean", None)
    assert found["kills"] > 0
    assert found["replayed"] == 1
    assert "ENOMEM" in found["events"]
    assert len(history.read_text().splitlines()) == found["operations"] == 32


def test_workers_change_nothing(capsys, tmp_path):
    """Verdict and file are the same with any number of jobs."""
    files, reports = [], []
    for jobs in ("1", "2"):
        folder = tmp_path / jobs
        status, found = report(
            capsys, "pod-move", "--lock", "none", "--schedules", "200", "--jobs", jobs,
            "--save", str(folder),
        )  # fmt: skip
        assert status == 1
        (path,) = folder.iterdir()
        files.append((path.name, path.read_bytes()))
        del found["seconds"], found["file"]
        reports.append(found)
    assert files[0] == files[1]
    assert reports[0] == reports[1]
