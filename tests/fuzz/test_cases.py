"""Every file under ``tests/data/cases`` through its commands; see the README there."""

import shlex
import tomllib
from functools import cache

import pytest

from tests.fuzz.judge import judge
from tests.helpers import DATA

CASES = DATA / "cases"
NOT_CASES = {"README.md", "commands.toml"}
STRESS = ("stress {} --schedules 1", "stress {} --schedules 1 --faults all")
BY_ENDING = {
    ".trace": ("profile {}", "profile {} --json -", "replay {} --runtime local"),
    ".bin": ("profile {} --json -", "replay {} --runtime local"),
    ".cfg": ("launch {} --runtime local --host-memory 8GiB",),
    ".toml": STRESS,
    ".json": ("stress --replay {}", "stress --replay {} --json -"),
}
SCENARIO = ("launch {} --runtime local", "audit {} --runtime local")


@cache
def listed(folder):
    path = folder / "commands.toml"
    return tomllib.loads(path.read_text()) if path.exists() else {}


def commands_of(path):
    given = listed(path.parent).get(path.name, {}).get("commands")
    if given is not None:
        return given
    if path.suffix == ".toml" and path.parent.name == "scenario":
        return SCENARIO
    ending = path.with_suffix("").suffix if path.suffix in {".xz", ".gz"} else path.suffix
    return BY_ENDING[ending]


FILES = sorted(p for p in CASES.rglob("*") if p.is_file() and p.name not in NOT_CASES)
RUNS = [
    pytest.param(path, command, id=f"{path.relative_to(CASES)}: {command}")
    for path in FILES
    for command in commands_of(path)
]


@pytest.mark.parametrize(("path", "command"), RUNS)
def test_case(path, command, tmp_path):
    wanted = listed(path.parent).get(path.name, {})
    words = [
        word.replace("{out}", str(tmp_path)).replace("{}", str(path))
        for word in shlex.split(command)
    ]
    if words[0] == "stress":
        words += ["--save", str(tmp_path)]
    verdict = judge(words, tmp_path)
    assert verdict.faults == {}
    if "status" in wanted:
        assert verdict.status == wanted["status"], verdict.err
    assert wanted.get("says", "") in verdict.err


def test_every_listed_file_is_there():
    missing = [
        str(path.parent / name)
        for path in CASES.rglob("commands.toml")
        for name in listed(path.parent)
        if not (path.parent / name).is_file()
    ]
    assert missing == []
