"""Translations a second through the walker, random gfns, a million in a message.

Against a numpy gather of the same million from a flat array of mfns, which is all that a page table
could ever be replaced by. ``cold`` is a walker that has nothing cached and reads its table frames
by message; ``tlb`` one whose TLB covers the guest; 4K pages never fit the TLB, so they are walked.
"""

import numpy as np

from benchmarks.common import build_request, local_build, timed, world
from protocols import envelope
from protocols.frames import pack
from protocols.walk import FlushTlb, Touch

BATCH = 1 << 20
GUEST_FRAMES = 0xFC000
"""The guest's RAM below the hole: gfns 0 to 0xfbfff are all mapped."""


def measure():
    """One repetition."""
    gfns = np.random.default_rng(1).integers(0, GUEST_FRAMES, BATCH).astype(np.uint64)
    flat = np.arange(GUEST_FRAMES, dtype=np.uint64)[::-1].copy()
    flat[gfns]
    gather = min(timed(lambda: flat[gfns]) for _ in range(5))
    figures = {"walker_gather_per_s": BATCH / gather}
    touch = (envelope.walker(1, 0), Touch(1, pack(gfns), want_mfns=True))
    flush = (envelope.walker(1, 0), FlushTlb(1))
    for name, host, policy in (("2m", {"hap_1gb": False}, "explicit"), ("4k", {}, "off")):
        runtime, _ = local_build(world(**host), build_request(1, 4096, policy))
        runtime.run([touch])
        runtime.run([flush])
        cold = timed(lambda runtime=runtime: runtime.run([touch]))
        warm = min(timed(lambda runtime=runtime: runtime.run([touch])) for _ in range(3))
        figures[f"walker_{name}_cold_per_s"] = BATCH / cold
        figures[f"walker_{name}_warm_per_s"] = BATCH / warm
        figures[f"walker_{name}_warm_ratio"] = warm / gather
    return figures
