"""One 4 GiB domain, in 2M and in 4K pages, against writing the same words in one numpy pass.

The floor fills preallocated arrays: the leaf entries of 4 GiB and the M2P words of its 1,048,576
frames, nothing else. The build is everything from createdomain to the special pages, by message.
"""

import numpy as np

from benchmarks.common import build_request, local_build, timed, world

FRAMES = 1 << 20
MFNS = np.arange(FRAMES, dtype=np.uint64)[::-1].copy()
GFNS = np.arange(FRAMES, dtype=np.uint64)
M2P = np.zeros(FRAMES, dtype=np.uint64)


def floor(order, flags):
    """Seconds of the pass: every leaf of the order, every M2P word."""
    step = 1 << order
    entries = np.zeros(FRAMES // step, dtype=np.uint64)

    def one_pass():
        entries[:] = (MFNS[step - 1 :: step] << np.uint64(12)) | np.uint64(flags)
        M2P[MFNS] = GFNS

    one_pass()
    return min(timed(one_pass) for _ in range(5))


def measure():
    """One repetition."""
    figures = {}
    cases = [
        ("2m", {"hap_1gb": False}, "explicit", 9, 0xE7),
        ("4k", {}, "off", 0, 0x67),
    ]
    for name, host, policy, order, flags in cases:
        runtime, seconds = local_build(world(**host), build_request(1, 4096, policy))
        base = floor(order, flags)
        figures[f"build_4gib_{name}_ms"] = seconds * 1e3
        figures[f"build_4gib_{name}_messages"] = sum(runtime.counts().values())
        figures[f"build_4gib_{name}_floor_ms"] = base * 1e3
        figures[f"build_4gib_{name}_ratio"] = seconds / base
    return figures
