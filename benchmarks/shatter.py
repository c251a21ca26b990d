"""Shatters a second: one 4K frame taken out of every 2M superpage of 16 guests, by hypercall.

decrease_reservation of 500 extents of order 0 for each guest, all guests at once, so each message
shatters 500 superpages and every frame goes back to the heap. On the local runtime, and on Ray with
1, 2 and 4 shards. The audit's own invariants are not part of the time.
"""

import numpy as np

from benchmarks.common import build_request, checked, timed, world
from deploy.sim.runtime import SimRuntime
from protocols import envelope
from protocols.frames import pack
from protocols.memory import DecreaseReservation

GUESTS = 16
PER_GUEST = 500
GFNS = pack(np.arange(PER_GUEST, dtype=np.uint64) * np.uint64(512) + np.uint64(7))


def rate(runtime):
    """Shatters a second on a runtime that holds nothing yet."""
    domids = range(1, GUESTS + 1)
    checked(runtime.run([build_request(domid, 1024) for domid in domids]))
    down = [(envelope.allocator(0), DecreaseReservation(domid, 0, GFNS, domid)) for domid in domids]
    done = []
    seconds = timed(lambda: done.extend(runtime.run(down)))
    assert all(reply.nr_done == PER_GUEST for reply in done), done
    return GUESTS * PER_GUEST / seconds


def config():
    return world(memory_mib=32768, hap_1gb=False)


def measure_local():
    """One repetition."""
    return {"shatter_local_per_s": rate(SimRuntime(config()))}


def measure_ray():
    """One repetition."""
    from deploy.cluster.runtime import RayRuntime

    figures = {}
    for shards in (1, 2, 4):
        runtime = RayRuntime(config(), shards=shards)
        try:
            figures[f"shatter_ray_{shards}_shards_per_s"] = rate(runtime)
        finally:
            runtime.close()
    return figures
