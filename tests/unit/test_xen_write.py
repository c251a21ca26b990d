"""Our traces as xentrace files: our own decoder and, where it is, Xen's xenalyze read them."""

import gzip
import os
import re
import shutil
import struct
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from deploy.driver.launch import Launch
from deploy.profile.open import open_trace, own_trace
from deploy.scenario.model import Balloon, Build, Punch, Touch
from deploy.sim.runtime import SimRuntime
from deploy.world import host_config
from protocols.p2m_types import P2mType
from protocols.trace import EVENT_NAMES, MemEvent
from services.trace.frame import Trace
from services.trace.xen_frames import read_trace
from services.trace.xen_write import FIRST_TSC, encode
from tests.golden.test_xentrace import window, with_tsc
from tests.helpers import guest, scenario
from tests.unit.test_trace_file import Sink

DATA = Path(__file__).parent.parent / "data"
XENALYZE = os.environ.get("XENALYZE") or shutil.which("xenalyze")
SPELT = {"pod_superpage_splinter": "pod_spage_splinter"}


@pytest.fixture(scope="module")
def trace():
    """Every kind of event that we have: builds, populate on demand by faults, holes, splinters."""
    phases = (
        Build(),
        Touch(nr=400, first_gfn=0x400, pattern="random", write=True),
        Punch(superpages=3, per_superpage=2),
        Balloon("down", pages=5, first_gfn=0x800),
    )
    work = scenario(guest("a", 32), guest("pod", 24, 64), phases=phases)
    config = host_config(work.host)
    sink = Sink(config)
    runtime = SimRuntime(config, sink=sink)
    Launch(work, config, runtime).run()
    runtime.close()
    return own_trace(memoryview(sink.whole()), "t")


def rows(frame, *names):
    return list(zip(*(frame[name].tolist() for name in names), strict=True))


def check_same(ours, back, scale):
    for name in ("domid", "order", "type", "gfn", "mfn"):
        assert back.updates[name].tolist() == ours.updates[name].tolist(), name
    # Times of a xentrace count from its first record, here that of who runs first.
    assert back.updates["time"].tolist() == ((ours.updates["time"] + 1) * scale).tolist()
    for event in MemEvent:
        names = ["domid", "gfn"]
        if event in {MemEvent.POD_POPULATE, MemEvent.POD_ZERO_RECLAIM, MemEvent.NPF}:
            names.append("mfn")
        if event not in {MemEvent.NPF, MemEvent.POD_SUPERPAGE_SPLINTER}:
            names.append("order")
        a, b = (each.events.take(each.events["event"] == event) for each in (ours, back))
        assert rows(a, *names) == rows(b, *names), event


def test_what_was_written_reads_the_same(trace):
    assert set(trace.event_counts()) >= {"npf", "pod_populate", "decrease_reservation"}
    back = read_trace(memoryview(encode(trace)), "back", cpu_hz=1e9)
    check_same(trace, back, 1000)
    counts = {name: back.event_counts()[name] for name in trace.event_counts()}
    assert counts == trace.event_counts()
    asked = trace.messages["kind"] == trace.kinds.index("populate_physmap")
    assert int((back.hypercalls["op"] == 12).sum()) >= int(asked.sum())
    assert back.event_counts()["dom_add"] == 2
    assert FIRST_TSC > 0


@pytest.mark.parametrize("name", ["pod.p3-splinter", "balloon.t5-dec-readd2m"])
def test_a_real_trace_goes_round(name):
    real = open_trace(DATA / "traces" / f"{name}.trimmed.trace.bin.xz")
    back = read_trace(memoryview(encode(real)), "back", cpu_hz=1e9)
    assert sorted(rows(back.updates, "time", "domid", "order", "gfn")) == sorted(
        (time + 1, *rest) for time, *rest in rows(real.updates, "time", "domid", "order", "gfn")
    )
    for event in (MemEvent.NPF, MemEvent.POD_ZERO_RECLAIM, MemEvent.DECREASE_RESERVATION):
        name = EVENT_NAMES[event]
        assert back.event_counts().get(name) == real.event_counts().get(name)


def test_a_trace_without_memory_events_is_no_file():
    assert encode(Trace("t", "shatterproof", {}, 0.0)) == b""


def lines_of(text):
    """Memory events in xenalyze's text: Counter of (event, domid, order, type, gfn, mfn)."""
    found = Counter()
    pattern = re.compile(
        r"d(?P<runs>\d+)v\d+ "
        r"(?P<event>set_p2m_entry|decrease_reservation|pod_\w+|npf gpa) (?P<rest>.*)"
    )
    for line in text.splitlines():
        match = pattern.search(line)
        if match is None:
            continue
        rest = match["rest"]
        if match["event"] == "npf gpa":
            gpa = int(rest.split()[0], 16)
            found["npf", int(match["runs"]), None, None, gpa >> 12, None] += 1
            continue
        numbers = re.match(
            r"d(\d+)(?: o(\d+))?(?: t (\d+))? g ([0-9a-f]+)(?: m ([0-9a-f]+))?", rest
        ).groups()
        domid, order, kind = (None if each is None else int(each) for each in numbers[:3])
        gfn, mfn = (None if each is None else int(each, 16) for each in numbers[3:])
        found[match["event"], domid, order, kind, gfn, mfn] += 1
    return found


def expected(trace):
    """The same of our own frames."""
    found = Counter(
        ("set_p2m_entry", domid, order, kind, gfn, mfn)
        for domid, order, kind, gfn, mfn in rows(
            trace.updates, "domid", "order", "type", "gfn", "mfn"
        )
    )
    for event, domid, order, gfn, mfn in rows(
        trace.events, "event", "domid", "order", "gfn", "mfn"
    ):
        name = EVENT_NAMES[MemEvent(event)]
        has_mfn = name in {"pod_populate", "pod_zero_reclaim"}
        has_order = name not in {"npf", "pod_superpage_splinter"}
        found[
            SPELT.get(name, name), domid, order if has_order else None, None, gfn,
            mfn if has_mfn else None,
        ] += 1  # fmt: skip
    return found


@pytest.mark.skipif(XENALYZE is None, reason="needs xenalyze (Debian's xen-utils-common)")
def test_xenalyze_reads_it(trace, tmp_path):
    (tmp_path / "t").write_bytes(encode(trace))
    done = subprocess.run(
        [XENALYZE, "--svm-mode", "--cpu-hz=1G", "--dump-all", str(tmp_path / "t")],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert "FATAL" not in done.stderr
    assert "short read" not in done.stderr
    assert lines_of(done.stdout) == expected(trace)


def test_what_xenalyze_read_is_what_we_write_now(trace):
    """xenalyze's own text of this very file, kept, so that it counts where xenalyze is not."""
    kept = gzip.decompress((DATA / "xenalyze" / "ours.mem.txt.gz").read_bytes()).decode()
    assert lines_of(kept) == expected(trace)
    assert P2mType.RAM_RW in set(trace.updates["type"].tolist())
    assert np.unique(trace.updates["domid"]).tolist() == [1, 2]


def exported(*records):
    """What is written of such records, read again."""
    data = window(0, b"".join(records))
    trace = read_trace(memoryview(data), "t", cpu_hz=1e9)
    again = read_trace(memoryview(encode(trace)), "t", cpu_hz=1e9)
    names = ("event", "domid", "order", "gfn", "mfn")
    assert sorted(rows(again.events, *names)) == sorted(rows(trace.events, *names))
    return again


def test_what_a_later_xen_wrote_is_written_as_it_writes_it():
    """Since 4.18 orders are words, since 4.19 exits of AMD have a number of their own."""
    runs = with_tsc(0x21101, 5, 7 << 16)
    fault = struct.pack("<IQQII", 6 << 28 | 0x82021, 5 << 12, 6, 0, 0)
    spill = struct.pack("<IQII", 4 << 28 | 0x10F012, 512, 7, 9)
    new = exported(
        runs, with_tsc(0x81103, 6, 0x400, 1, 2), fault, spill,
        struct.pack("<IQII", 4 << 28 | 0x10F005, 512, 7, 9),
    )  # fmt: skip
    assert (new.events_by_name["svm_exit"], new.header["order_words"]) == (1, True)
    assert "vmexit" not in new.events_by_name
    old = exported(
        runs, with_tsc(0x81102, 6, 0x400, 1, 2), fault,
        struct.pack("<IQII", 4 << 28 | 0x10F005, 512, 7 | 9 << 16, 8),
    )  # fmt: skip
    assert (old.events_by_name["vmexit"], old.header["order_words"]) == (1, False)
    assert "svm_exit" not in old.events_by_name
