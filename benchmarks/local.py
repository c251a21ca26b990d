"""Messages a second of the local runtime, against a bare deque that hands over as many tuples."""

from collections import deque

from benchmarks import trivial
from benchmarks.common import build_request, local_build, timed, world
from deploy.sim.runtime import SimRuntime

BUILDS = 64


def floor(nr):
    """Tuples a second through a deque: popped, and one appended for each."""

    def loop():
        queue = deque([("client/0", "toolstack/1", 1, 0, None)])
        for number in range(nr):
            src, dst, _, _, body = queue.popleft()
            queue.append((dst, src, number, 0, body))

    return nr / timed(loop)


def measure():
    """One repetition."""
    config = world(memory_mib=65536)
    jobs = [build_request(domid, 64) for domid in range(1, BUILDS + 1)]
    runtime = SimRuntime(config, factory=trivial.make_component)
    seconds = timed(lambda: runtime.run(jobs))
    nr = sum(runtime.counts().values())
    base = floor(nr)
    real, real_seconds = local_build(config, *jobs)
    return {
        "local_trivial_msgs_per_s": nr / seconds,
        "local_floor_tuples_per_s": base,
        "local_trivial_ratio": base / (nr / seconds),
        "local_real_msgs_per_s": sum(real.counts().values()) / real_seconds,
    }
