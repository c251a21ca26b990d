"""``profile`` of every capture: counts as Xen's own xenalyze gives them, tables as dumped."""

import csv
import gzip
import json
import lzma
import re
import struct
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import deploy.profile.long as long_module
from deploy.cli.main import run
from deploy.profile import CPU_HZ
from deploy.profile.long import pump
from deploy.profile.native import Native
from deploy.profile.open import open_trace
from protocols.errno import BadInputError
from protocols.p2m_types import P2mType
from protocols.trace import NO_DOMID, MemEvent
from services.trace.loops import plain
from services.trace.report import report
from services.trace.xen_frames import read_trace
from services.trace.xen_summary import summarise
from tests.helpers import read_dump

DATA = Path(__file__).parent.parent / "data"
TRACES = sorted((DATA / "traces").glob("*.trace.bin.xz"))
LINE = re.compile(r"^ *[0-9.]+ \S+ d(?P<runs>\d+)v\d+ (?P<event>\w+|npf gpa) (?P<rest>.*)$")
HYPERCALL_NAMES = {"memory_op": 12, "domctl": 36, "grant_table_op": 20, "hvm_op": 34}


def capture(path):
    return path.name.replace(".trimmed", "").replace(".full", "").removesuffix(".trace.bin.xz")


def identity(path):
    return path.name.removesuffix(".trace.bin.xz")


def xenalyze(path):
    """{domid: {event: Counter of (order, type) or of order}} of xenalyze's own text."""
    found = {}
    with gzip.open(DATA / "xenalyze" / f"{capture(path)}.mem.txt.gz", "rt") as lines:
        for line in lines:
            match = LINE.match(line)
            if match is None:
                continue
            event, rest = match["event"], match["rest"]
            if event == "npf":
                counts = found.setdefault(int(match["runs"]), {})
                counts.setdefault(event, Counter())[0] += 1
                continue
            fields = re.match(r"d(\d+)(?: o(\d+))?(?: t (\d+))?", rest)
            if event not in {
                "set_p2m_entry", "decrease_reservation", "pod_populate", "pod_zero_reclaim",
                "pod_spage_splinter",
            }:  # fmt: skip
                continue
            domid, order, kind = (int(each or 0) for each in fields.groups())
            key = (order, P2mType(kind).name.lower()) if event == "set_p2m_entry" else order
            found.setdefault(domid, {}).setdefault(event, Counter())[key] += 1
    return found


def by_order(section):
    return Counter({int(order): nr for order, nr in section.items()})


@pytest.mark.parametrize("path", TRACES, ids=identity)
def test_counts_are_those_of_xenalyze(path, capsys):
    assert run(["profile", str(path), "--json", "-"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert err == ""
    want = xenalyze(path)
    assert {int(domid) for domid in found["domains"]} >= set(want)
    assert (found["format"], found["lost"], found["truncated"]) == ("xentrace", 0, False)
    assert found["records"] == sum(found["events"].values())
    for domid, section in found["domains"].items():
        counts = want.get(int(domid), {})
        updates = Counter(
            {
                (int(order), kind): nr
                for order, kinds in section["p2m_updates"].items()
                for kind, nr in kinds.items()
            }
        )
        assert updates == counts.get("set_p2m_entry", Counter())
        for event in ("decrease_reservation", "pod_populate", "pod_zero_reclaim"):
            assert by_order(section[event]) == counts.get(event, Counter()), event
        splinters = counts.get("pod_spage_splinter", Counter()).total()
        assert section["pod_superpage_splinter"] == splinters
        assert section["nested_faults"] == counts.get("npf", Counter()).total()
    total = Counter()
    for counts in want.values():
        for event, each in counts.items():
            total[event.replace("spage", "superpage")] += each.total()
    for event, nr in total.items():
        assert found["events"][event] == nr


DUMPS = {
    "b1.pvh-64": ("b1.npt-pvh-64-dom1", 1),
    "b1.pvh-256": ("b1.npt-pvh-256-dom2", 2),
    "b1.pvh-1100": ("b1.npt-pvh-1100-dom4", 4),
    "b2.no1g-pvh-256": ("b2.npt-no1g-pvh-256-dom1", 1),
    "b3.no2m-pvh-256": ("b3.npt-no2m-pvh-256-dom1", 1),
    "balloon.t1-dec4k": ("balloon.npt-t1-dec4k-ran-dom1", 1),
    "balloon.t5-dec-readd2m": ("balloon.npt-t5-dec-readd2m-ran-dom5", 5),
    "balloon.t7-1g-dec4k": ("balloon.npt-t7-1g-dec4k-ran-dom7", 7),
    "conc.par-512-700": ("conc.npt-par-512-700-dom2", 2),
    "hvm.hvm-256": ("hvm.npt-hvm-256-dom1", 1),
    "pod.p2-touch4k": ("pod.npt-p2-touch4k-ran-dom2", 2),
    "pod.p3-splinter": ("pod.npt-p3-splinter-ran-dom3", 3),
}


@pytest.mark.parametrize(
    "path", [p for p in TRACES if capture(p) in DUMPS and ".full" not in p.name], ids=identity
)
def test_final_extents_are_those_of_the_page_tables(path):
    dump, domid = DUMPS[capture(path)]
    leaves = Counter((row[1], P2mType(row[3]).name.lower()) for row in read_dump(dump))
    section = report(open_trace(path), views=False)["domains"][str(domid)]
    for name, shift in (("final_leaves", 0), ("final_extents", 1)):
        found = {
            (int(order), kind): nr
            for order, kinds in section[name].items()
            for kind, nr in kinds.items()
        }
        assert found == {(o, kind): nr << o * shift for (o, kind), nr in leaves.items()}, name


@pytest.mark.parametrize("path", TRACES, ids=identity)
def test_shatters_are_those_that_replay_counts(path, capsys):
    assert run(["replay", str(path), "--runtime", "local", "--json", "-"]) == 0
    replayed = json.loads(capsys.readouterr().out)["domains"]
    domains = report(open_trace(path), views=False)["domains"]
    for each in replayed:
        shatters = domains[str(each["domid"])]["shatters"]
        by_step = {step.partition("->")[0]: nr for step, nr in shatters.items() if nr}
        assert by_step == {order: nr for order, nr in each["shatters"].items() if nr}


def test_a_1g_page_with_two_holes_is_shattered_once_and_then_twice():
    path = next(path for path in TRACES if "t7-1g" in path.name)
    section = report(open_trace(path))["domains"]["7"]
    assert section["shatters"] == {"18->9": 1, "9->0": 2}
    assert section["final_leaves"] == {"9": {"ram_rw": 510 + 38}, "0": {"ram_rw": 1022 + 17}}
    series = section["series"]
    assert [sum(series[name]) for name in ("updates", "shatters")] == [58, 2]
    assert max(series["mapped"]["18"]) == 1 << 18
    assert series["mapped"]["18"][-1] == 0
    assert section["hottest"][0]["updates"] == 9


@pytest.mark.parametrize("path", TRACES, ids=identity)
def test_who_ran_and_which_hypercall_was_under_way(path):
    trace = open_trace(path)
    with gzip.open(DATA / "decoded" / f"{capture(path)}.mem.csv.gz", "rt") as lines:
        rows = list(csv.DictReader(lines))
    faults = trace.events["domid"][trace.events["event"] == MemEvent.NPF]
    want = [int(row["cur_dom"]) for row in rows if row["event"] == "npf"]
    assert faults.tolist() == want
    causes = trace.updates["cause"]
    sets = [row for row in rows if row["event"] == "set_p2m_entry"]
    calls = trace.hypercalls
    checked = 0
    for cause, row in zip(causes.tolist(), sets, strict=True):
        number = HYPERCALL_NAMES.get(row["hypercall"])
        if number is not None:
            assert calls["op"][cause - 1] == number
            checked += 1
        if row["hypercall"] and row["cur_dom"]:
            assert calls["domid"][cause - 1] == int(row["cur_dom"])
    assert checked or not any(row["hypercall"] for row in sets)
    assert [cause > 0 for cause in causes.tolist()] == [bool(row["hypercall"]) for row in sets]
    under_way = causes[causes > 0]
    assert calls["updates"].sum() == under_way.size


def test_spans_tile_each_pcpu():
    trace = open_trace(TRACES[0])
    running = trace.running
    assert set(running["cpu"].tolist()) == {0, 1}
    for cpu in (0, 1):
        mine = running["cpu"] == cpu
        start, end = running["start"][mine], running["end"][mine]
        assert (end[:-1] == start[1:]).all()
    assert (running["domid"] != NO_DOMID).all()


@pytest.mark.parametrize("name", ["b1.pvh-64", "pod.p2-touch4k"])
def test_a_trace_cut_anywhere_is_read_up_to_the_last_whole_record(name):
    path = next(path for path in TRACES if path.name == f"{name}.trimmed.trace.bin.xz")
    data = lzma.decompress(path.read_bytes())
    whole = read_trace(memoryview(data), "t", cpu_hz=1e9)
    assert (whole.truncated, whole.header["cut"]) == (False, "")
    records = 0
    for cut in range(40, len(data), len(data) // 150 + 1):
        trace = read_trace(memoryview(data[:cut]), "t", cpu_hz=1e9)
        assert trace.records >= records
        records = trace.records
        updates = trace.updates.rows
        if trace.truncated:
            assert trace.header["cut"].startswith("t: offset ")
        else:
            assert cut % 4 == 0, "a cut at the end of a window cannot be seen"
        assert updates <= whole.updates.rows
    assert records > 0.9 * whole.records


def test_a_cut_trace_is_shown_and_the_exit_status_tells(tmp_path, capsys):
    path = next(path for path in TRACES if path.name == "b1.pvh-256.trimmed.trace.bin.xz")
    data = lzma.decompress(path.read_bytes())
    (tmp_path / "cut.bin").write_bytes(data[: len(data) - 9])
    assert run(["profile", str(tmp_path / "cut.bin"), "--json", "-"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out)["truncated"] is True
    assert err.count("\n") == 1
    assert "truncated: " in err


@pytest.mark.parametrize(
    "data", [b"", b"garbage that is no trace at all", bytes(400), b"\x03\xf0\x01\x20"]
)
def test_a_foreign_file_is_one_line(tmp_path, capsys, data):
    (tmp_path / "x").write_bytes(data)
    assert run(["profile", str(tmp_path / "x")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    with pytest.raises(BadInputError):
        open_trace(tmp_path / "x")


def test_unknown_events_are_counted():
    path = next(path for path in TRACES if ".full" in path.name)
    data = lzma.decompress(path.read_bytes())
    # Another window: records of an event that nobody knows.
    data += struct.pack("<III", 0x2001_F003, 0, 36) + 3 * struct.pack("<IQ", 0x8FF1_2345, 1 << 40)
    trace = read_trace(memoryview(data), "t", cpu_hz=CPU_HZ)
    assert trace.event_counts()["0x0ff12345"] == 3
    assert trace.records == np.sum(list(trace.event_counts().values()))


runner = cache(Native)


def one_pass(data, source="t", **how):
    return summarise(memoryview(data), source, cpu_hz=CPU_HZ, **{"runner": runner} | how)


def differences(one, other, place=""):
    """Where two reports differ, as paths; pytest's own comparison takes minutes."""
    if isinstance(one, dict) and isinstance(other, dict):
        names = one.keys() | other.keys()
        return [
            each
            for name in sorted(names - {"populate", "populate_calls", "extents"})
            for each in differences(one.get(name), other.get(name), f"{place}/{name}")
        ]
    return [] if one == other else [place]


@pytest.mark.parametrize("path", TRACES, ids=identity)
def test_one_pass_says_the_same_views_included(path):
    """Every count and every bin, but the populates: one pass does not tell a populate call."""
    data = lzma.decompress(path.read_bytes())
    assert differences(one_pass(data, str(path)), report(open_trace(path))) == []


@pytest.mark.parametrize("name", ["balloon.t7-1g-dec4k", "pod.p2-touch4k"])
def test_the_loops_as_plain_python_say_the_same(name):
    path = next(path for path in TRACES if path.name == f"{name}.trimmed.trace.bin.xz")
    data = lzma.decompress(path.read_bytes())
    assert differences(one_pass(data, runner=plain), one_pass(data, pump=pump)) == []


@pytest.mark.parametrize("name", ["b1.pvh-64", "pod.p2-touch4k"])
def test_the_one_pass_summary_of_a_cut_trace(name):
    path = next(path for path in TRACES if path.name == f"{name}.trimmed.trace.bin.xz")
    data = lzma.decompress(path.read_bytes())
    for cut in range(40, len(data), len(data) // 40 + 1):
        trace = read_trace(memoryview(data[:cut]), "t", cpu_hz=CPU_HZ)
        assert differences(one_pass(data[:cut]), report(trace)) == []


@pytest.mark.parametrize("data", [b"", bytes(400), b"\x03\xf0\x01\x20", b"\x03\xf0\x01\x20" * 9])
def test_the_one_pass_summary_refuses_what_is_no_trace(data):
    with pytest.raises(BadInputError, match=r"^t: offset \d+: "):
        one_pass(data)


def test_a_long_trace_is_summarised_in_one_pass(monkeypatch, capsys):
    monkeypatch.setattr(long_module, "LONG_BYTES", 1000)
    path = next(path for path in TRACES if "t7-1g" in path.name)
    assert run(["profile", str(path)]) == 0
    out, err = capsys.readouterr()
    assert "a long trace: " in out
    assert "18->9 1 9->0 2" in out
    assert err == ""


def test_a_long_archive_that_was_cut_off(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(long_module, "LONG_BYTES", 1000)
    packed = next(path for path in TRACES if "p3-splinter" in path.name).read_bytes()
    (tmp_path / "cut.xz").write_bytes(packed[:-20000])
    assert run(["profile", str(tmp_path / "cut.xz"), "--json", "-"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out)["truncated"] is True
    assert "the archive ends early" in err
    assert err.count("\n") == 1
