"""1,000 domains of 4 GiB in 2M pages on a 4.2 TiB host, built at once on Ray; and real builds/s.

Seconds count from Ray being up and its actors answering to the last reply. Memory is the sum of the
proportional set sizes of this process and all its children, Ray's own included, right after.
"""

from pathlib import Path

from benchmarks.common import build_request, checked, timed, world
from deploy.cluster.runtime import RayRuntime
from protocols import envelope
from protocols.control import SnapshotNode
from services.heap.frame_table import FrameTable

DOMAINS = 1000
MEMORY_MIB = 4300 << 10
SMALL = 256


def pss_bytes():
    """Proportional set size of this process and its descendants (Linux)."""
    children = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(status.parent.name))
    total, waiting = 0, [int(Path("/proc/self").resolve().name)]
    while waiting:
        pid = waiting.pop()
        waiting += children.get(pid, [])
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
    return total


def ready(runtime):
    runtime.run([(envelope.allocator(0), SnapshotNode(0, full=False))])


def measure():
    """One repetition of the big fleet."""
    runtime = RayRuntime(world(memory_mib=MEMORY_MIB, hap_1gb=False))
    try:
        ready(runtime)
        jobs = [build_request(domid, 4096) for domid in range(1, DOMAINS + 1)]
        seconds = timed(lambda: checked(runtime.run(jobs)))
        pss = pss_bytes()
        nr = sum(runtime.counts().values())
        (node,) = runtime.run([(envelope.allocator(0), SnapshotNode(0))])
        table = FrameTable.from_bytes(node.frame_table)
        return {
            "fleet_1000_seconds": seconds,
            "fleet_1000_msgs_per_s": nr / seconds,
            "fleet_1000_pss_gib": pss / (1 << 30),
            "fleet_1000_owners_and_m2p_mib": table.nbytes / (1 << 20),
        }
    finally:
        runtime.close()


def measure_real():
    """One repetition: 256 real builds at once, messages a second."""
    runtime = RayRuntime(world(memory_mib=65536, hap_1gb=False))
    try:
        ready(runtime)
        jobs = [build_request(domid, 128) for domid in range(1, SMALL + 1)]
        seconds = timed(lambda: checked(runtime.run(jobs)))
        return {"ray_real_msgs_per_s": sum(runtime.counts().values()) / seconds}
    finally:
        runtime.close()
