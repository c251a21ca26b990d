"""Names of events: as many of each as xenalyze tells, the same in both readers."""

import lzma
import re
import shutil
import struct
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from services.trace.report import HYPERCALLS
from services.trace.xen_events import NAMES
from services.trace.xen_frames import read_trace
from services.trace.xen_summary import summarise
from services.trace.xentrace import EVENTS

FULL = Path(__file__).parent.parent / "data" / "traces" / "b1.pvh-64.full.trace.bin.xz"
OTHER_WORDS = {
    "pv_page_fault64": "page_fault", "pv_emulate_privop64": "emulate privop",
    "pv_ptwr_emulation64": "ptwr", "sched_switch_infcont": "sched_switch continue",
    "sched_switch_infnext": "sched_switch next", "page_grant_map": "grant-map",
    "page_grant_unmap": "grant-unmap", "dom_add": "creating domain",
    "dom_rem": "destroying domain",
}  # fmt: skip
"""Where xenalyze says it otherwise."""
UNTOLD = {
    "cpu_change", "runstate_change", "pv_hypercall", "pv_hypercall_subcall", "sched_switch",
    "sched_switch_infprev", "emul_lapic_stop_timer", "continue_running",
}  # fmt: skip
"""What it prints in several forms, or not at all."""


@pytest.fixture(scope="module")
def data():
    return memoryview(lzma.decompress(FULL.read_bytes()))


@pytest.fixture(scope="module")
def counts(data):
    return read_trace(data, "t", cpu_hz=2.6e9).event_counts()


def test_no_name_twice_and_none_of_what_is_read_already():
    names = [name for name, _ in EVENTS.values()]
    assert len(names) == len(set(names))
    assert list(EVENTS) == sorted(EVENTS)
    assert not {number for number, (_, words) in EVENTS.items() if words} & set(NAMES)


def test_every_event_of_a_full_trace_has_a_name(counts):
    assert [name for name in counts if name.startswith("0x")] == []


@pytest.mark.skipif(shutil.which("xenalyze") is None, reason="no xenalyze here")
def test_counts_are_those_of_xenalyze(data, counts, tmp_path):
    path = tmp_path / "full.bin"
    path.write_bytes(data)
    flags = ["--dump-all", "--svm-mode", "--cpu-hz=2.6G"]
    said = subprocess.run(["xenalyze", *flags, path], capture_output=True, check=False, text=True)
    # After the time a column a pcpu, which may be blank, and who ran.
    lines = re.findall(r"^\]? +[\d.]* [-x|. ]+ d\S+ +(.*)$", said.stdout, re.MULTILINE)
    found = Counter()
    for name in counts:
        word = OTHER_WORDS.get(name, name)
        found[name] = sum(bool(re.match(rf"{re.escape(word)}\b", line)) for line in lines)
    told = {name: nr for name, nr in counts.items() if name not in UNTOLD}
    assert {name: found[name] for name in told} == told
    switches = sum(line.startswith("sched_switch prev") for line in lines)
    assert switches == counts["sched_switch"] + counts["sched_switch_infprev"]


def test_both_readers_give_equal_names(data, counts):
    assert summarise(data, "t", cpu_hz=2.6e9)["events"] == counts


def window(*records):
    body = b"".join(records)
    return struct.pack("<III", 0x2001_F003, 0, len(body)) + body


def test_an_event_without_a_name_stays_a_number_and_any_length_will_do():
    records = [struct.pack("<I", number) for number in sorted(NAMES)]
    data = memoryview(window(*records, struct.pack("<IQ", 1 << 31 | 0x0FF1_2345, 7)))
    trace = read_trace(data, "t", cpu_hz=1e9)
    counts = trace.event_counts()
    assert counts == dict.fromkeys([*NAMES.values(), "0x0ff12345", "cpu_change"], 1)
    assert summarise(data, "t", cpu_hz=1e9)["events"] == counts


def test_exits_of_amd_and_intel_are_told_apart():
    """Xen 4.19 and later: 64-bit addresses add 0x100, nested guests 0x400."""
    ids = {
        0x81002: "vmexit", 0x81102: "vmexit64", 0x81003: "svm_exit", 0x81103: "svm_exit64",
        0x81403: "nsvm_exit", 0x81503: "nsvm_exit64",
    }  # fmt: skip
    records = [struct.pack("<IQIII", 11 << 28 | number, 7, 0x400, 1, 2) for number in ids]
    data = memoryview(window(*records))
    counts = read_trace(data, "t", cpu_hz=1e9).event_counts()
    assert counts == dict.fromkeys(ids.values(), 1) | {"cpu_change": 1}
    assert summarise(data, "t", cpu_hz=1e9)["events"] == counts


def test_hypercalls_have_names_up_to_xen_4_22():
    numbers = [number for number in range(56) if number not in {11, 43, 44, 45, 46, 47}]
    assert sorted(HYPERCALLS) == numbers
    assert len(set(HYPERCALLS.values())) == len(numbers)
