"""Tasks on Ray workers: all results, failures with their story, nothing left behind."""

import os
import time
from pathlib import Path

import pytest

import deploy.cluster.runtime as cluster_runtime
from deploy.cluster import pool
from deploy.cluster.pool import TaskFailedError, run_tasks
from deploy.cluster.runtime import RayCluster
from protocols.errno import BadInputError

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]


def task(payload):
    """Twice the bytes, with the process that did it; some inputs are not to its liking."""
    if payload == b"bad":
        raise ValueError("cannot double that")
    if payload == b"die":
        os._exit(3)
    if payload == b"slow":
        time.sleep(60)
    time.sleep(0.01)
    return payload * 2 + b" " + str(os.getpid()).encode()


started = []
NAME = "tests.cluster.test_pool:task"


def test_results_of_all_tasks_come_from_all_workers():
    taken = []

    def payloads():
        for number in range(40):
            taken.append(number)
            yield str(number).encode()

    results = run_tasks(NAME, payloads(), jobs=2)
    first = next(results)
    assert len(taken) <= 5, "payloads are taken as workers become free"
    found = dict([first, *results])
    assert [found[n].split()[0].decode() for n in range(40)] == [str(n) * 2 for n in range(40)]
    assert len({result.split()[1] for result in found.values()}) == 2
    assert not cluster_runtime._ray.is_initialized()


@pytest.fixture
def there(monkeypatch):
    """``run_tasks`` on one cluster for all the tests below: starting it is what takes the time."""
    if not cluster_runtime._ray.is_initialized():
        started.append(RayCluster(num_cpus=2))

    class There:
        def __init__(self, address, num_cpus):
            assert (address, num_cpus) == (None, 1)

        def close(self):
            pass

    monkeypatch.setattr(pool, "RayCluster", There)


@pytest.fixture(scope="module", autouse=True)
def stopped():
    yield
    for cluster in started:
        cluster.close()


def test_what_a_task_raises_reaches_the_caller(there):
    with pytest.raises(TaskFailedError, match=r"(?s)task 1:.*in task.*cannot double that"):
        list(run_tasks(NAME, [b"a", b"bad", b"slow"], jobs=1))
    with pytest.raises(TaskFailedError, match=r"(?s)task 0:.*no_such_function"):
        list(run_tasks("tests.cluster.test_pool:no_such_function", [b"a"], jobs=1))


def test_closing_stops_the_workers(there):
    begun = time.monotonic()
    results = run_tasks(NAME, [b"a", b"slow", b"slow", b"slow"], jobs=1)
    process = int(next(results)[1].split()[1])
    results.close()
    while Path(f"/proc/{process}").exists():
        assert time.monotonic() - begun < 30
        time.sleep(0.05)


def test_a_worker_that_dies_is_an_error(there):
    with pytest.raises(TaskFailedError, match=r"task 0: its worker died"):
        list(run_tasks(NAME, [b"die"], jobs=1))


def test_no_cluster_at_the_address():
    with pytest.raises(BadInputError, match="no Ray cluster there"):
        list(run_tasks(NAME, [b"a"], jobs=1, address="127.0.0.1:1"))
