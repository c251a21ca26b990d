"""The same seed is the same run, byte for byte, in any process; another seed is another order."""

import os
import subprocess
import sys

import pytest

from deploy.cli.main import run
from deploy.profile.open import own_trace
from deploy.scenario.model import Build, Destroy, Punch, Touch
from tests.helpers import guest, launch, leaf_rows, scenario, shape

SCENARIO = """
[host]
memory = "256MiB"
nodes = 2

[[domains]]
name = "pvh"
type = "pvh"
memory = 32
count = 2
vcpus = 2
superpages = "opportunistic"

[[domains]]
name = "pod"
type = "hvm"
memory = 20
maxmem = 40

[[phases]]
op = "build"

[[phases]]
op = "touch"
pattern = "random"
nr = 2000

[[phases]]
op = "punch"
first_gfn = 0x800
superpages = 2
per_superpage = 3
"""


@pytest.fixture
def workload(tmp_path):
    path = tmp_path / "mix.toml"
    path.write_text(SCENARIO)
    return path


def arguments(workload, trace, seed):
    choice = [] if seed is None else ["--seed", str(seed)]
    return ["launch", str(workload), "--runtime", "local", "--trace", str(trace), *choice]


def traced(workload, name, seed):
    path = workload.parent / name
    assert run(arguments(workload, path, seed)) == 0
    return path.read_bytes()


@pytest.mark.parametrize("seed", [None, 0, 7])
def test_a_run_repeats_itself(workload, seed):
    assert traced(workload, "a", seed) == traced(workload, "b", seed)


def test_a_run_repeats_itself_in_other_processes(workload):
    here = traced(workload, "here", 7)
    code = "import sys; from deploy.cli.main import main; main(sys.argv[1:])"
    started = []
    for salt in ("1", "4242"):
        path = workload.parent / salt
        command = [sys.executable, "-c", code, *arguments(workload, path, 7)]
        env = {**os.environ, "PYTHONHASHSEED": salt}
        started.append((path, subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)))
    for path, process in started:
        assert process.wait(60) == 0
        assert path.read_bytes() == here


def test_seeds_differ_in_order_and_not_in_what_is_delivered(workload):
    traces = [own_trace(memoryview(traced(workload, f"t{seed}", seed)), "t") for seed in (1, 2)]
    orders = [trace.messages["id"].tolist() for trace in traces]
    assert orders[0] != orders[1]
    build = traces[0].kinds.index("build_domain")
    assert [int((trace.messages["kind"] == build).sum()) for trace in traces] == [3, 3]


@pytest.mark.parametrize("seed", range(12))
def test_no_schedule_shows_in_the_leaves(seed):
    phases = (
        Build(),
        Touch(pattern="random", nr=3000),
        Punch(superpages=3, first_gfn=0x800, per_superpage=2, mode="refill"),
    )
    guests = [guest("a", 32, vcpus=3), guest("b", 24, 64), guest("c", 48, kind="hvm")]
    work = scenario(*guests, phases=phases, memory_mib=512, nodes=2)
    plain, _ = launch(work)
    report, _ = launch(work, seed=seed)
    assert (report.violations, plain.violations) == ([], [])
    for ours, theirs in zip(report.domains, plain.domains, strict=True):
        assert shape(leaf_rows(ours.table)) == shape(leaf_rows(theirs.table)), ours.name
        assert ours.to_json() == theirs.to_json()


@pytest.mark.parametrize("seed", range(4))
def test_nothing_stays_after_the_last_phase(seed):
    phases = (Build(), Touch(nr=500), Destroy())
    work = scenario(guest("a", 32, vcpus=2), guest("b", 24, 64), phases=phases, memory_mib=256)
    report, _ = launch(work, seed=seed)
    assert report.violations == []
    assert report.host_free == report.host_total
    assert [domain.status for domain in report.domains] == ["destroyed"] * 2
