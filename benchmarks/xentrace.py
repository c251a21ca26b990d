"""A xentrace of 10 million records summarised, against Xen's own xenalyze on the same file.

The file repeats the captures of the tests, one after the other, times shifted so that they go on
rising. Trimming left out of most captures the records by which a vcpu stops running, which xenalyze
insists on; they are put back, so that it reads the file to its end. xenalyze is found through the
environment variable XENALYZE or PATH; without it the figures are of our summary alone.

Timed is the command as anybody would call it, from before Python starts until its JSON is written;
and for comparison the summary alone, of a process that has everything imported.
"""

import json
import lzma
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

from services.trace.xen_layout import CPU_CHANGE, CPU_CHANGE_HEADER, RUNSTATE_CHANGE
from services.trace.xentrace import decode_xentrace

TRACES = Path(__file__).parent.parent / "tests" / "data" / "traces"
RECORDS = (2_000_000, 10_000_000)
"""Both are long enough for one pass instead of tables."""
HAS_TSC = 1 << 31
CHANGE = 0x0002_1001 | 1 << 28 | HAS_TSC
RUNNING, RUNNABLE = 0, 1
GAP = 1_000_000
PAIRS = 3
"""Runs of ours and of xenalyze, in turn, of one repetition: whatever else runs disturbs both."""
COMMAND = Path(sys.executable).parent / "shatterproof"
PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
SUMMARY = """
import sys, time
from pathlib import Path
import deploy.profile.native, services.trace.xen_summary
from deploy.profile import CPU_HZ
from deploy.profile.long import long_data, long_report
begun = time.perf_counter()
path = Path(sys.argv[1])
long_report(*long_data(path), str(path), cpu_hz=CPU_HZ)
print(time.perf_counter() - begun)
"""


def change(old, new, vcpu, tsc):
    """The words of a runstate change."""
    return [CHANGE | old << 8 | new << 4, tsc & 0xFFFF_FFFF, tsc >> 32, vcpu]


class Capture:
    """A capture with its runstates made whole; ``begins`` and ``ends``: who runs, by pcpu."""

    def __init__(self, path):
        trace = decode_xentrace(lzma.decompress(path.read_bytes()), str(path))
        words, rows = trace.words, np.flatnonzero(trace.event == RUNSTATE_CHANGE)
        places, put, self.begins, self.ends, seen = [], [], {}, {}, set()
        for row in rows[np.argsort(trace.tsc[rows], kind="stable")].tolist():
            place, cpu = int(trace.payload[row]) - 3, int(trace.cpu[row])
            header, vcpu = int(words[place]), int(words[place + 3])
            if header >> 8 & 3 == RUNNING and vcpu not in seen:
                self.begins[cpu] = vcpu
            seen.add(vcpu)
            before = self.ends.get(cpu, vcpu)
            if header >> 4 & 3 == RUNNING:
                if before != vcpu:
                    places.append(place)
                    put.append(change(RUNNING, RUNNABLE, before, int(trace.tsc[row])))
                self.ends[cpu] = vcpu
            elif header >> 8 & 3 == RUNNING:
                self.ends.pop(cpu, None)
        sized, places = words.copy(), np.array(places, dtype=np.int64)
        opens = trace.payload[trace.event == CPU_CHANGE]
        np.add.at(sized, opens[np.searchsorted(opens, places) - 1] + 1, np.uint32(16))
        self.words = np.insert(sized, np.repeat(places, 4), np.array(put, dtype=np.uint32).ravel())
        whole = decode_xentrace(self.words.tobytes(), str(path))
        self.records = whole.records
        has_tsc = whole.header >> 31 == 1
        self._low = whole.payload[has_tsc] - 2
        tsc = self.words[self._low] | self.words[self._low + 1].astype(np.uint64) << np.uint64(32)
        self._tsc = tsc - tsc.min()
        self.lasts = int(self._tsc.max())

    def bytes_at(self, base):
        """The capture as if it had begun at a TSC."""
        tsc = self._tsc + np.uint64(base)
        self.words[self._low] = (tsc & np.uint64(0xFFFF_FFFF)).astype(np.uint32)
        self.words[self._low + 1] = (tsc >> np.uint64(32)).astype(np.uint32)
        return self.words.tobytes()


def window(cpu, old, new, vcpu, tsc):
    """A window of a pcpu with one runstate change."""
    return np.array([CPU_CHANGE_HEADER, cpu, 16, *change(old, new, vcpu, tsc)], "<u4").tobytes()


def write_trace(path, captures, wanted):
    """Captures over and over until there are so many records; how many there are."""
    base, nr = 1_000_000_000, 0
    with path.open("wb") as file:
        while nr < wanted:
            for each in captures:
                starts = each.begins.items() if nr else ()
                for cpu, vcpu in starts:
                    file.write(window(cpu, RUNNABLE, RUNNING, vcpu, base))
                base += GAP
                file.write(each.bytes_at(base))
                base += each.lasts + GAP
                for cpu, vcpu in each.ends.items():
                    file.write(window(cpu, RUNNING, RUNNABLE, vcpu, base))
                nr += each.records + 2 * (len(starts) + len(each.ends))
                if nr >= wanted:
                    break
    return nr


def ours(path):
    """(seconds of the whole command, records)."""
    with tempfile.TemporaryFile() as out:
        begun = time.perf_counter()
        subprocess.run([COMMAND, "profile", path, "--json", "-"], check=True, stdout=out)
        seconds = time.perf_counter() - begun
        out.seek(0)
        found = json.load(out)
    assert not found["truncated"]
    return seconds, found["records"]


def peak_mib(path):
    """Most memory of the command. A process counts that of whoever forked it: here a small one."""
    command = [sys.executable, "-c", PEAK, COMMAND, "profile", path, "--json", "-"]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) / 1024


def summary(path):
    """Seconds of the summary alone."""
    command = [sys.executable, "-c", SUMMARY, str(path)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def xenalyze(path):
    """Seconds of xenalyze's summary; None if there is none. It reports errors by no status."""
    program = os.environ.get("XENALYZE") or shutil.which("xenalyze")
    if program is None:
        sys.stderr.write("xentrace: no xenalyze (XENALYZE or PATH): our summary alone\n")
        return None
    command = [program, "--svm-mode", "--cpu-hz=2.6G", "--summary", str(path)]
    # Files, as ours writes to one: it would wait for a reader of its many warnings.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        begun = time.perf_counter()
        subprocess.run(command, check=True, stdout=out, stderr=err)
        seconds = time.perf_counter() - begun
        out.seek(0)
        assert b"Total time" in out.read()
    return seconds


def measure():
    """One repetition. What numba compiles is compiled before, by the first and shorter file."""
    captures = [Capture(path) for path in sorted(TRACES.glob("*.trace.bin.xz"))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.bin"
        written = write_trace(path, captures, RECORDS[0])
        summary(path)
        _, records = ours(path)
        assert records == written
        short_peak = peak_mib(path)
        written = write_trace(path, captures, RECORDS[1])
        rows = []
        for _ in range(PAIRS):
            theirs = xenalyze(path)
            seconds, records = ours(path)
            assert records == written
            rows.append((theirs, seconds, summary(path)))
        peak = peak_mib(path)
    theirs, seconds, alone = zip(*rows, strict=True)
    found = {
        "xentrace_10m_seconds": median(seconds),
        "xentrace_10m_summary_seconds": median(alone),
        "xentrace_2m_peak_mib": short_peak,
        "xentrace_10m_peak_mib": peak,
    }
    if None not in theirs:
        found["xentrace_10m_xenalyze_seconds"] = median(theirs)
        for name, mine in (("ratio", seconds), ("summary_ratio", alone)):
            ratios = [each / one for each, one in zip(theirs, mine, strict=True)]
            found[f"xentrace_10m_{name}"] = median(ratios)
    return found
