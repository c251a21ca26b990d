"""Traces: what recording costs, and how fast a trace of ours is summarised, shown and opened.

Recording is measured with the same builds recorded and not, in turns. The cost is the share of
throughput that is lost while the run goes on; what is written after it is told beside it. The trace
of a million messages repeats a real one with its ids, times and domids shifted.
"""

import io
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.common import build_request, checked, timed, world
from deploy.cli.trace import FileSink, trace_file
from deploy.cluster.runtime import RayRuntime
from deploy.profile.open import open_trace
from deploy.profile.page import write_page
from deploy.sim.runtime import SimRuntime
from deploy.world import layout
from protocols.trace import ID_SHIFT
from services.trace.blocks import encode_block, encode_frame, encode_header, encode_index
from services.trace.frame import Frame
from services.trace.report import report
from services.trace.writer import STEP, describe_run

BUILDS = 1024
LOCAL_BUILDS = 512
MESSAGES = 1_000_000
SCALE = 1000
REPEATS = iter(range(1 << 30))


def cpu_seconds():
    """Processor time of this process and all its descendants so far (Linux)."""
    children, ticks = {}, {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        pid = int(status.parent.name)
        children.setdefault(int(fields[1]), []).append(pid)
        ticks[pid] = int(fields[11]) + int(fields[12])
    total, waiting = 0, [os.getpid()]
    while waiting:
        pid = waiting.pop()
        waiting += children.get(pid, [])
        total += ticks.get(pid, 0)
    return total / os.sysconf("SC_CLK_TCK")


def ray_rate(config, sink):
    """(messages a second, CPU microseconds a message, messages) of real builds on Ray."""
    runtime = RayRuntime(config, sink=sink)
    try:
        checked(runtime.run([build_request(BUILDS + 1, 16)]))
        before, used = sum(runtime.counts().values()), cpu_seconds()
        jobs = [build_request(domid, 256) for domid in range(1, BUILDS + 1)]
        seconds = timed(lambda: checked(runtime.run(jobs)))
        used = cpu_seconds() - used
        nr = sum(runtime.counts().values()) - before
        return nr / seconds, 1e6 * used / nr, nr
    finally:
        runtime.close()


def local_rate(config, sink):
    """The same of the local runtime, by a real clock; its processor time is the time it takes."""
    runtime = SimRuntime(config, sink=sink, clock=time.perf_counter_ns)
    checked(runtime.run([build_request(LOCAL_BUILDS + 1, 16)]))
    before = runtime.nr_delivered
    jobs = [build_request(domid, 256) for domid in range(1, LOCAL_BUILDS + 1)]
    seconds = timed(lambda: checked(runtime.run(jobs)))
    nr = runtime.nr_delivered - before
    runtime.close()
    return nr / seconds, 1e6 * seconds / nr, nr


def measured(runtime, rate, path):
    """Plain, recorded, recorded, plain, or the other way round: what drifts hits both alike."""
    config = world(memory_mib=1 << 19, hap_1gb=False)
    rates, used, after = {False: [], True: []}, {False: [], True: []}, []
    first = bool(next(REPEATS) % 2)
    for recorded in (first, not first, not first, first):
        with trace_file(
            path if recorded else None, config, runtime=runtime, seed=None, wall_clock=True
        ) as sink:
            per_s, cpu, nr = rate(config, sink)
            begun = time.perf_counter()
        if recorded:
            after.append(1e6 * (time.perf_counter() - begun) / nr)
        rates[recorded].append(per_s)
        used[recorded].append(cpu)
    plain, recording = (sum(rates[each]) / 2 for each in (False, True))
    return {
        "plain_msgs_per_s": plain,
        "recorded_msgs_per_s": recording,
        "recording_cost": 1 - recording / plain,
        "recording_cpu_cost": sum(used[True]) / sum(used[False]) - 1,
        "written_after_us": sum(after) / 2,
    }


def measure_recording():
    """One repetition: real builds, recorded and not, on Ray and locally."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.trace"
        found = measured("ray", ray_rate, path)
        size, rows = path.stat().st_size, open_trace(path).messages.rows
        local = measured("local", local_rate, path)
    return {
        **{f"trace_{name}": value for name, value in found.items()},
        "trace_bytes_per_message": size / rows,
        "trace_local_plain_msgs_per_s": local["plain_msgs_per_s"],
        "trace_local_recorded_msgs_per_s": local["recorded_msgs_per_s"],
        "trace_local_recording_cost": local["recording_cost"],
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
    # As nanoseconds would have it: no two steps take alike.
    jitter = np.random.default_rng(number).integers(0, SCALE, m.rows)
    for name in ("sent", "received", "started", "ended"):
        columns[name] = (m[name] + number * lasted) * SCALE + jitter
    for name in ("busy", "lock_wait"):
        columns[name] = m[name] * SCALE - np.where(m[name] > 0, jitter // 2, 0)
    columns["domid"] = np.where(m["domid"] >= 0, m["domid"] + number % 16 * 64, -1)
    return Frame.of("messages", columns)


def million(path):
    """A trace of a million messages of 64 builds, over and over."""
    config = world(memory_mib=65536)
    header = describe_run(
        runtime="local", seed=None, clock=STEP, host=config, machine={}, shards=layout(1, 1)
    )
    source = path.with_suffix(".small")
    sink = FileSink(source, header)
    runtime = SimRuntime(config, sink=sink)
    checked(runtime.run([build_request(domid, 64) for domid in range(1, 65)]))
    runtime.close()
    sink.finish()
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
        shown = Path(folder) / "page.html"
        shown.write_text(page.getvalue(), encoding="utf-8")
        return {
            **usable(shown),
            "profile_open_ms": 1e3 * opened,
            "profile_summary_records_per_s": rows / summary,
            "profile_views_records_per_s": rows / views,
            "profile_page_seconds": paged,
            "profile_page_mib": len(page.getvalue().encode()) / (1 << 20),
        }


def usable(page):
    """Milliseconds until a browser has shown a page whole, if there is one."""
    playwright = os.environ.get("PLAYWRIGHT") or ".browser/node_modules/playwright-core"
    chromium, node = shutil.which("chromium"), shutil.which("node")
    if not (chromium and node and Path(playwright).is_dir()):
        return {}
    steps = page.with_suffix(".json")
    steps.write_text('[{"do": "window"}]')
    script = Path("tests/profile/browser.cjs")
    command = [node, script, chromium, Path(playwright).resolve(), page, steps]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {"profile_page_usable_ms": json.loads(done.stdout)["ready"]}
