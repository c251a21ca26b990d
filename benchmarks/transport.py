"""Messages a second through the Ray runtime against bare Ray actor calls of the same payload.

Both sides keep 256 requests under way. The runtime carries trivial handlers
(``benchmarks.trivial``), so what is measured is envelope, codec, host, coalescing and Ray, as 256
concurrent builds use them.
"""

import time

import ray

from benchmarks import trivial
from deploy.cluster.runtime import RayRuntime
from protocols import envelope
from protocols.codec import encode_batch
from protocols.envelope import Envelope
from protocols.memory import PopulatePhysmap
from protocols.toolstack import BuildDomain, GuestConfig
from services.heap.host import HostConfig

WINDOW = 256
BARE_CALLS = 4000
CONFIG = HostConfig(0x100000, 1 << 20, 1, "npt", (18, 9, 0))


@ray.remote(num_cpus=0)
class Bare:
    def handle(self, data):
        return data


def bare_calls_per_s():
    """Pipelined calls, WINDOW of them under way, each with one message's bytes; replies awaited."""
    populate = PopulatePhysmap(1, 9, 0, trivial.EXTENTS)
    data = encode_batch([Envelope("toolstack/1", "allocator/0", 1, 0, populate)])
    actor = Bare.remote()
    ray.get(actor.handle.remote(data))
    begun = time.perf_counter()
    waiting = [actor.handle.remote(data) for _ in range(WINDOW)]
    for _ in range(BARE_CALLS - WINDOW):
        _, waiting = ray.wait(waiting, num_returns=1)
        waiting.append(actor.handle.remote(data))
    ray.get(waiting)
    rate = BARE_CALLS / (time.perf_counter() - begun)
    ray.kill(actor)
    return rate


def runtime_messages_per_s():
    """WINDOW trivial builds at once through the runtime: messages delivered a second."""
    runtime = RayRuntime(CONFIG, factory="benchmarks.trivial:make_component")
    try:
        config = GuestConfig("bench", "pvh", 64, 64)
        runtime.run([(envelope.toolstack(0), BuildDomain(0, config, "explicit", "npt"))])
        requests = [
            (envelope.toolstack(job), BuildDomain(job, config, "explicit", "npt"))
            for job in range(1, WINDOW + 1)
        ]
        before = sum(runtime.counts().values())
        begun = time.perf_counter()
        runtime.run(requests)
        seconds = time.perf_counter() - begun
        return (sum(runtime.counts().values()) - before) / seconds
    finally:
        runtime.close()


def measure():
    """One repetition."""
    bare = bare_calls_per_s()
    runtime = runtime_messages_per_s()
    return {"bare_calls_per_s": bare, "runtime_msgs_per_s": runtime, "ratio": runtime / bare}
