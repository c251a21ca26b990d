"""Real Ray actors: the same leaves as the local runtime, and a failure that everybody hears of."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import deploy.cluster.runtime as cluster_runtime
from deploy.cluster.runtime import RayCluster, RayRuntime, ShardFailedError
from deploy.driver.audit import take_audit
from deploy.driver.launch import Launch
from deploy.runtime import RunStuckError
from deploy.scenario.model import Build, Punch, Touch
from deploy.world import host_config, make_component
from protocols.codec import decode_envelope
from protocols.control import SnapshotNode
from protocols.domctl import DomctlCreateDomain
from protocols.frames import pack
from protocols.p2m import P2mCreate, P2mGetEntry, P2mTeardown
from protocols.toolstack import DestroyDomain
from services.component.component import handles
from services.component.context import Context
from services.component.traps import Acquire, Call
from services.p2m.component import P2m
from tests.helpers import capture_config, guest, launch, leaf_rows, scenario, shape

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]

PHASES = (Build(), Touch(nr=3000, first_gfn=0x400), Punch(superpages=3, per_superpage=2))


@pytest.fixture(scope="module")
def cluster():
    """One private cluster for the module; starting actors is what takes the time here."""
    started = RayCluster(num_cpus=2)
    directory = started._temp_dir
    assert directory is None or Path(directory).is_dir()
    yield started
    started.close()
    assert directory is None or not Path(directory).exists(), "files are left behind"
    assert not cluster_runtime._ray.is_initialized()


@pytest.fixture(scope="module")
def single(cluster):
    """A world with one shard a service."""
    runtime = RayRuntime(host_config(work().host))
    yield runtime
    runtime.close()


@pytest.fixture(scope="module")
def double(cluster):
    """A world with two shards a service and two nodes, recorded."""
    runtime = RayRuntime(host_config(work(2).host), shards=2, record=True)
    yield runtime
    runtime.close()


@pytest.fixture(scope="module")
def broken(cluster):
    """A world with P2Ms that break."""
    runtime = RayRuntime(host_config(work().host), factory="tests.cluster.test_ray:faulty")
    yield runtime
    runtime.close()


def work(nodes=1, phases=PHASES):
    guests = [
        capture_config("b1.pvh-64"),
        guest("pod", 32, 64, vcpus=2),
        guest("hvm", 48, kind="hvm"),
    ]
    return scenario(*guests, phases=phases, memory_mib=512, nodes=nodes)


def faulty(address, config, hook):
    """A world whose P2Ms break when torn down, and wait for ever when created."""
    if address.startswith("p2m/"):
        return Faulty(Context(address, hook), 0)
    return make_component(address, config, hook)


class Faulty(P2m):
    """See ``faulty``."""

    @handles(P2mTeardown)
    async def teardown(self, m):
        raise AssertionError(f"domid {m.domid}: a table is lost")

    @handles(P2mCreate)
    async def create(self, m):
        await Acquire(self.lock)
        await Call(self.context.name, m)
        raise AssertionError("nobody gives the lock up")


def check_leaves(runtime, nodes):
    report = Launch(work(nodes), runtime.config, runtime, keep_tables=True).run()
    plain, _ = launch(work(nodes))
    assert (report.violations, plain.violations) == ([], [])
    for ours, theirs in zip(report.domains, plain.domains, strict=True):
        assert shape(leaf_rows(ours.table)) == shape(leaf_rows(theirs.table))
        assert ours.to_json() == theirs.to_json()
    assert (report.host_total, report.host_free) == (plain.host_total, plain.host_free)


def test_one_shard_builds_what_the_local_runtime_builds(single):
    check_leaves(single, 1)


def test_a_killed_actor_is_reported(single):
    cluster_runtime._ray.kill(single._actors[2])
    with pytest.raises(ShardFailedError, match=r"^p2m shard 0 died: "):
        ask_for_seconds(single)


def ask_for_seconds(runtime):
    """Killing takes its time."""
    for _ in range(100):
        runtime.run([("allocator/0", SnapshotNode(0, full=False))])
        runtime.wait(0.05)


def test_two_shards_build_what_the_local_runtime_builds_and_record_all_of_it(double):
    check_leaves(double, 2)
    gone = double.run([(f"toolstack/{domid}", DestroyDomain(domid)) for domid in (1, 2, 3)])
    assert [result.error for result in gone] == [""] * 3
    taken = take_audit(double, double.config, [], [])
    assert taken.report.violations == []
    assert taken.host_free == taken.host_total
    # The requests of one link are delivered in the order in which they were sent.
    requests = [("p2m/1", P2mGetEntry(1, pack([number]))) for number in range(1500)]
    assert len(double.run(requests)) == 1500
    sent = [
        each.msg_id
        for each in (decode_envelope(data) for _, data in double.arrivals())
        if (each.src, each.dst) == ("client/0", "p2m/1")
    ]
    assert len(sent) >= 1500
    assert sent == sorted(sent)
    assert {shard for shard, _ in double.arrivals()} == set(range(8))


def test_garbage_stops_the_run_with_its_story(double):
    double._actors[0].deliver.remote(b"\x93garbage")
    with pytest.raises(ShardFailedError, match=r"^toolstack shard 0 failed: "):
        double.run([("allocator/0", SnapshotNode(0, full=False))])


def test_a_run_that_stands_still_says_who_waits(broken, monkeypatch):
    monkeypatch.setattr(cluster_runtime, "STUCK_SECONDS", 0.3)
    with pytest.raises(RunStuckError, match="the run is stuck") as caught:
        broken.run([("allocator/0", DomctlCreateDomain(2, 5, 1, "off"))])
    line, *others = caught.value.parked
    assert line.startswith("allocator/0: LifeCycle.create_domain:")
    assert [other.partition(" for ")[0].rpartition(":")[0] for other in others] == [
        "p2m/2: Faulty.create"
    ] * 2


def test_a_component_that_fails_is_heard_of(broken):
    with pytest.raises(ShardFailedError) as caught:
        broken.run([("p2m/3", P2mTeardown(3))])
    story = str(caught.value)
    assert story.startswith("p2m shard 0 failed: p2m/3: AssertionError: domid 3: a table is lost\n")
    assert "-> p2m/3: P2mTeardown(domid=3)" in story
    with pytest.raises(ShardFailedError, match="a table is lost"):
        broken.run([("allocator/0", SnapshotNode(0, full=False))])


def test_the_command_on_a_cluster_that_is_there(cluster, tmp_path):
    (tmp_path / "guest.cfg").write_text("name = 'a'\ntype = 'pvh'\nmemory = 64\n")
    address = cluster_runtime._ray.get_runtime_context().gcs_address
    arguments = ["launch", "guest.cfg", "--address", address, "--json", "r.json", "--trace", "t"]
    code = "import sys; from deploy.cli.main import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["domains"][0]["extents"] == {"0": 17, "9": 32}
    assert (tmp_path / "t").stat().st_size > 1000
    assert cluster_runtime._ray.is_initialized(), "the cluster of others goes on"
