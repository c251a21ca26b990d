"""Stress: schedules a second beside a bare coroutine loop, workers, the zoo, and recording on Ray.

The floor passes as many messages between bare generators as the schedules did between components,
chosen by the same kind of random pick from a list of queues: no components, no oracles.
"""

import time
from collections import deque
from random import Random

import msgspec

from deploy.campaign import chunks, parallel
from deploy.campaign.chunks import Plan
from deploy.cli import stress_zoo
from deploy.cli.stress import CHUNK_TASK
from deploy.stress.builtin import WORKLOADS
from deploy.stress.run import run_strategy
from deploy.stress.workload import Overrides, adapt, draw
from deploy.stress.world import config_of, setup_requests
from protocols import envelope as addresses
from protocols.script import RunScript

SCHEDULES = 200
LINKS = 8


def _bare(nr_messages):
    """Seconds that a loop takes to pass so many messages between generators."""

    def component():
        value = None
        while True:
            value = yield value

    components = [component() for _ in range(LINKS)]
    for each in components:
        each.send(None)
    queues = [deque([number]) for number in range(LINKS)]
    random = Random(1)
    begun = time.perf_counter()
    for _ in range(nr_messages):
        index = int(random.random() * LINKS)
        queue = queues[index]
        message = queue.popleft()
        queue.append(components[index].send(message))
    return time.perf_counter() - begun


def measure_local():
    """4 clients x 4 operations, 2 walkers, every oracle on; uniform schedules."""
    workload = WORKLOADS["split-storm"]
    run_strategy(draw(workload, Random(0)), "random", Random(0), 3)
    steps = 0
    begun = time.perf_counter()
    for seed in range(SCHEDULES):
        random = Random(seed)
        outcome = run_strategy(draw(workload, random), "random", random, 3)
        assert outcome.violation is None
        steps += outcome.nr_steps
    seconds = time.perf_counter() - begun
    return {
        "stress_schedules_per_s": SCHEDULES / seconds,
        "stress_steps_per_s": steps / seconds,
        "stress_over_bare_loop": seconds / _bare(steps),
    }


def _rate(runner, plan):
    """Schedules a second from the first finished chunk to the last: without the start."""
    first = done = 0
    begun = None
    for _, data in runner(msgspec.msgpack.encode(task) for task in chunks.tasks(plan)):
        result = msgspec.msgpack.decode(data, type=chunks.ChunkResult)
        if begun is None:
            begun, first = time.perf_counter(), result.nr_schedules
        done += result.nr_schedules
    return (done - first) / (time.perf_counter() - begun)


def measure_jobs():
    """Schedules a second of two workers against one."""
    from deploy.cluster.pool import run_tasks

    def workers(jobs):
        return lambda payloads: run_tasks(CHUNK_TASK, payloads, jobs=jobs)

    plan = Plan(WORKLOADS["split-storm"], schedules=1600)
    one, two = _rate(workers(1), plan), _rate(workers(2), plan)
    return {"stress_jobs_1": one, "stress_jobs_2": two, "stress_jobs_ratio": two / one}


def measure_zoo():
    """Seconds of the whole zoo with two workers."""
    names = ("schedules", "seconds", "strategy", "lock", "clients", "ops", "domains")
    options = dict.fromkeys(names)
    options |= {"zoo": "all", "json_path": "-", "jobs": 2, "seed": 0, "address": None}
    begun = time.perf_counter()
    rows = stress_zoo.hunt_all(options)
    seconds = time.perf_counter() - begun
    return {
        "zoo_seconds": seconds,
        "zoo_entries": len(rows),
        "zoo_found": sum(row.found for row in rows),
        "zoo_clean": sum(row.clean for row in rows),
    }


def measure_ray():
    """Operations a second of 8 clients on Ray: bare, recorded, and with every oracle."""
    from deploy.cluster.runtime import RayRuntime

    workload = adapt(WORKLOADS["split-storm"], Overrides(clients=8, ops=250))
    case = draw(workload, Random(3))
    config = config_of(case.host)
    rates = {}
    for record in (False, True):
        runtime = RayRuntime(config, record=record)
        try:
            for domain in case.domains:
                for address, request in setup_requests(domain, config):
                    runtime.run([(address, request)])
            scripts = [
                (addresses.toolstack(client), RunScript(list(script)))
                for client, script in enumerate(case.clients)
            ]
            begun = time.perf_counter()
            runtime.run(scripts)
            rates[record] = case.nr_operations() / (time.perf_counter() - begun)
        finally:
            runtime.close()
    runtime = RayRuntime(config, record=True)
    try:
        begun = time.perf_counter()
        result, _ = parallel.run(runtime, case, ())
        seconds = time.perf_counter() - begun
        assert not result.violation, result.violation
    finally:
        runtime.close()
    return {
        "stress_ray_ops_per_s": rates[False],
        "stress_ray_recorded_ops_per_s": rates[True],
        "stress_ray_recording_cost": rates[False] / rates[True] - 1,
        "stress_ray_all_oracles_ops_per_s": case.nr_operations() / seconds,
    }
