"""Real actors that are killed, links that repeat and delay: the run is the calm one."""

from collections import Counter

import pytest

import deploy.cluster.runtime as cluster_runtime
from deploy.cluster.chaos import Chaos
from deploy.cluster.runtime import RayCluster, RayRuntime, ShardFailedError
from deploy.driver.audit import take_audit
from deploy.sim.runtime import SimRuntime
from deploy.world import host_config
from protocols.codec import decode_envelope
from protocols.control import SnapshotNode
from protocols.p2m import P2mTeardown
from protocols.script import Operation, RunScript
from protocols.toolstack import BuildDomain
from tests.helpers import guest, leaf_rows, scenario, shape
from tests.unit.test_shard_crash import check_recording

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]

CONFIG = host_config(scenario(memory_mib=256).host)


@pytest.fixture(scope="module")
def cluster():
    started = RayCluster(num_cpus=2)
    yield started
    started.close()


@pytest.fixture
def chaotic(cluster):
    """Makes a world with chaos, and stops it."""
    made = []

    def make(chaos, **more):
        made.append(RayRuntime(CONFIG, chaos=chaos, **more))
        return made[-1]

    yield make
    for runtime in made:
        runtime.close()
        assert not runtime._directory.exists()


def build(domid):
    config = guest(f"g{domid}", 24)
    return f"toolstack/{domid}", BuildDomain(domid, config, "explicit", "npt")


def script(domid, client):
    first = 0x400 + 0x200 * client
    operations = [
        step
        for gfn in range(first, first + 60, 10)
        for step in (
            Operation("decrease", domid, gfn),
            Operation("touch", domid, gfn + 1, nr=3),
            Operation("populate", domid, gfn),
        )
    ]
    return f"toolstack/{10 * domid + client}", RunScript(operations)


def drive(runtime):
    """Two builds, then four clients that split superpages; (results, leaf shapes)."""
    built = runtime.run([build(1), build(2)])
    assert [result.error for result in built] == ["", ""]
    done = runtime.run([script(domid, client) for domid in (1, 2) for client in (0, 1)])
    results = [[(each.nr_done, each.rc) for each in one.results] for one in done]
    taken = take_audit(runtime, CONFIG, (1, 2), ((1, 0), (2, 0)))
    assert taken.report.violations == []
    return results, [shape(leaf_rows(snapshot.table)) for snapshot in taken.p2ms]


def decoded(recording):
    return {address: [*map(decode_envelope, seq)] for address, seq in recording.items()}


def test_a_run_with_everything_that_can_go_wrong_is_the_calm_run(chaotic, capfd):
    chaos = Chaos(seed=1, kill_every=6, kills=5, duplicate=0.2, delay=0.2)
    runtime = chaotic(chaos, record=True)
    assert drive(runtime) == drive(SimRuntime(CONFIG))
    assert 0 < runtime.nr_kills <= 5
    sequences = decoded(runtime.recording())
    assert runtime.nr_delivered == sum(map(len, sequences.values()))
    envelopes = [decode_envelope(data) for _, data in runtime.arrivals()]
    for address, sequence in sequences.items():
        assert [each for each in envelopes if each.dst == address] == sequence
    check_recording(CONFIG, sequences)
    assert capfd.readouterr().out == "", "Ray tells of those who died"


def test_a_shard_killed_from_outside_comes_back_with_all_it_knew(chaotic):
    runtime = chaotic(Chaos(seed=2), record=True)
    runtime.run([build(1)])
    before = runtime.recording()
    counts = runtime.counts()
    for number in (1, 2):
        cluster_runtime._ray.kill(runtime._actors[number])
    while runtime.nr_kills < 2:
        runtime.run([("allocator/0", SnapshotNode(0, full=False))])
    after = runtime.recording()
    assert {**after, "allocator/0": None} == {**before, "allocator/0": None}
    nr = len(before["allocator/0"])
    assert after["allocator/0"][:nr] == before["allocator/0"]
    asked = len(after["allocator/0"]) - nr
    assert runtime.counts() == counts + Counter(snapshot_node=asked)
    runtime.run([script(1, 0)])
    assert take_audit(runtime, CONFIG, (1,), ()).report.violations == []


def test_an_error_is_an_error_in_every_life(chaotic):
    runtime = chaotic(Chaos(seed=3), factory="tests.cluster.test_ray:faulty")
    for _ in range(2):
        with pytest.raises(ShardFailedError, match="a table is lost"):
            runtime.run([("p2m/1", P2mTeardown(1))])
        cluster_runtime._ray.kill(runtime._actors[2])
