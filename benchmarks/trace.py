"""Traces: what recording costs, and how fast a trace of ours is summarised, shown and opened.

Recording is measured on Ray with the same builds recorded and not, one right after the other, the
order changing from repetition to repetition. The cost is the share of throughput that is lost. The
trace of a million messages repeats a real one with its ids, times and domids shifted.
"""

import io
import tempfile
import time
from pathlib import Path

import numpy as np
from deploy.profile.page import write_page

from benchmarks.common import build_request, checked, timed, world
from deploy.cli.trace import FileSink, trace_file
from deploy.cluster.runtime import RayRuntime
from deploy.profile.open import open_trace
from deploy.sim.runtime import SimRuntime
from deploy.world import layout
from protocols.trace import ID_SHIFT
from services.trace.blocks import encode_block, encode_frame, encode_header, encode_index
from services.trace.frame import Frame
from services.trace.report import report
from services.trace.writer import STEP, describe_run

BUILDS = 256
MESSAGES = 1_000_000
REPEATS = iter(range(1 << 30))


def builds_per_second(config, path):
    """Messages a second of real builds on Ray, recorded to ``path`` or not."""
    with trace_file(path, config, runtime="ray", seed=None, wall_clock=True) as sink:
        runtime = RayRuntime(config, sink=sink)
        try:
            checked(runtime.run([build_request(BUILDS + 1, 16)]))
            before = sum(runtime.counts().values())
            jobs = [build_request(domid, 256) for domid in range(1, BUILDS + 1)]
            seconds = timed(lambda: checked(runtime.run(jobs)))
            return (sum(runtime.counts().values()) - before) / seconds
        finally:
            runtime.close()


def measure_recording():
    """One repetition: real builds, recorded and not."""
    config = world(memory_mib=1 << 17, hap_1gb=False)
    rates = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.trace"
        order = (False, True) if next(REPEATS) % 2 else (True, False)
        for recorded in order:
            rates[recorded] = builds_per_second(config, path if recorded else None)
        size = path.stat().st_size
        rows = open_trace(path).messages.rows
    return {
        "trace_plain_msgs_per_s": rates[False],
        "trace_recorded_msgs_per_s": rates[True],
        "trace_recording_cost": 1 - rates[True] / rates[False],
        "trace_bytes_per_message": size / rows,
    }


def shifted(trace, number, nr_names):
    """The messages of a trace once more, as other components would have sent them later."""
    m = trace.messages
    lasted = int(m["ended"].max()) + 1
    columns = dict(m)
    for name in ("id", "cause", "parent", "reply_to"):
        moved = m[name] + np.uint64(number * nr_names << ID_SHIFT)
        columns[name] = np.where(m[name] > 0, moved, 0)
    for name in ("src", "dst"):
        columns[name] = m[name] + np.uint32(number * nr_names)
    for name in ("sent", "received", "started", "ended"):
        columns[name] = m[name] + number * lasted
    columns["domid"] = np.where(m["domid"] >= 0, m["domid"] + number % 100 * 64, -1)
    return Frame.of("messages", columns)


def million(path):
    """A trace of a million messages of 64 builds, over and over."""
    config = world(memory_mib=65536)
    sink_file = io.BytesIO()
    sink_file.close = lambda: None
    header = describe_run(
        runtime="local", seed=None, clock=STEP, host=config, machine={}, shards=layout(1, 1)
    )
    sink = FileSink(lambda: sink_file, header)
    runtime = SimRuntime(config, sink=sink)
    checked(runtime.run([build_request(domid, 64) for domid in range(1, 65)]))
    runtime.close()
    sink.finish()
    source = path.with_suffix(".small")
    source.write_bytes(sink_file.getvalue())
    trace = open_trace(source)
    blocks, at = [], 0
    with path.open("wb") as file:

        def put(data, block=None):
            nonlocal at
            if block is not None:
                blocks.append(block._replace(start=block.start + at))
            file.write(data)
            at += len(data)

        put(encode_header(header))
        repeats = -(-MESSAGES // trace.messages.rows)
        names = [f"{name}" for _ in range(repeats) for name in trace.names]
        put(*encode_block("names", len(names), (0, 0), {"names": names}))
        for number in range(repeats):
            put(*encode_frame(shifted(trace, number, len(trace.names))))
        put(encode_index(blocks, at))
    return path


def measure_profile():
    """One repetition: a million messages summarised, seen in full, and made into a page."""
    with tempfile.TemporaryDirectory() as folder:
        path = million(Path(folder) / "big.trace")
        opened = timed(lambda: open_trace(path))
        rows = open_trace(path).messages.rows
        summary = timed(lambda: report(open_trace(path), views=False))
        begun = time.perf_counter()
        trace = open_trace(path)
        found = report(trace)
        views = time.perf_counter() - begun
        page = io.StringIO()
        paged = timed(lambda: write_page(trace, found, page))
        return {
            "profile_open_ms": 1e3 * opened,
            "profile_summary_records_per_s": rows / summary,
            "profile_views_records_per_s": rows / views,
            "profile_page_seconds": paged,
            "profile_page_mib": len(page.getvalue().encode()) / (1 << 20),
        }
