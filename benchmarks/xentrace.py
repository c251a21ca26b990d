"""A xentrace of 10 million records summarised, against Xen's own xenalyze on the same file.

The file repeats the captures of the tests, one after the other, times shifted so that they go on
rising. Trimming left out of most captures the records by which a vcpu stops running, which xenalyze
insists on; they are put back, so that it reads the file to its end. xenalyze is found through the
environment variable XENALYZE or PATH; without it the figures are of our summary alone.
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

import numpy as np

from services.trace.xentrace import (
    CPU_CHANGE,
    CPU_CHANGE_HEADER,
    RUNSTATE_CHANGE,
    _record_starts,
    decode_xentrace,
)

TRACES = Path(__file__).parent.parent / "tests" / "data" / "traces"
RECORDS = (1_000_000, 10_000_000)
HAS_TSC = 1 << 31
CHANGE = 0x0002_1001 | 1 << 28 | HAS_TSC
RUNNING, RUNNABLE = 0, 1
GAP = 1_000_000
OURS = """
import json, resource, sys, time
begun = time.perf_counter()
from pathlib import Path
from deploy.profile.open import CPU_HZ, give_back, read_file
from services.trace.xen_summary import summarise
path = Path(sys.argv[1])
imported = time.perf_counter()
data = read_file(path)
found = summarise(data, str(path), cpu_hz=CPU_HZ, give_back=give_back(data))
seconds = time.perf_counter() - imported
rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps([found["records"], found["truncated"], seconds, rss]))
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
        starts = _record_starts(self.words, str(path))
        self.records = len(starts)
        self._low = starts[self.words[starts] >> 31 == 1] + 1
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
    """(seconds of the process, seconds without start and imports, peak MiB, records)."""
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", OURS, str(path)], check=True, capture_output=True, text=True
    )
    seconds = time.perf_counter() - begun
    records, truncated, summary, rss = json.loads(done.stdout)
    assert not truncated
    return seconds, summary, rss, records


def xenalyze(path):
    """Seconds of xenalyze's summary; None if there is none. It reports errors by no status."""
    program = os.environ.get("XENALYZE") or shutil.which("xenalyze")
    if program is None:
        sys.stderr.write("xentrace: no xenalyze (XENALYZE or PATH): our summary alone\n")
        return None
    begun = time.perf_counter()
    command = [program, "--svm-mode", "--cpu-hz=2.6G", "--summary", str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - begun
    assert "Total time" in done.stdout, done.stderr[-300:]
    return seconds


def measure():
    """One repetition. What numba compiles is compiled before, by the first and shorter file."""
    captures = [Capture(path) for path in sorted(TRACES.glob("*.trace.bin.xz"))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.bin"
        written = write_trace(path, captures, RECORDS[0])
        ours(path)
        _, _, short_rss, records = ours(path)
        assert records == written
        written = write_trace(path, captures, RECORDS[1])
        seconds, summary, rss, records = ours(path)
        assert records == written
        found = {
            "xentrace_10m_seconds": seconds,
            "xentrace_10m_summary_seconds": summary,
            "xentrace_1m_peak_mib": short_rss,
            "xentrace_10m_peak_mib": rss,
        }
        theirs = xenalyze(path)
        if theirs is not None:
            found["xentrace_10m_xenalyze_seconds"] = theirs
            found["xentrace_10m_ratio"] = theirs / seconds
            found["xentrace_10m_summary_ratio"] = theirs / summary
        return found
