"""Long xentraces in one pass: bounded tables, a domid used again, threads, code kept on disk."""

import json
import re
import struct
import subprocess
import sys
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest

import deploy.profile.native as native_module
import services.trace.xen_gather as gather_module
from deploy.cli.main import run
from deploy.profile.long import give_back, pump
from deploy.profile.native import Native
from protocols.errno import BadInputError
from protocols.frames import INVALID_FRAME
from services.trace.loops import Loop, plain
from services.trace.report import report
from services.trace.xen_frames import read_trace
from services.trace.xen_stream import Batch
from services.trace.xen_summary import summarise
from tests.golden.test_profile_xen import differences
from tests.golden.test_xentrace import window, with_tsc

runner = cache(Native)
DOM_ADD, DOM_REM = 0x0004_1001, 0x0004_1002
POD = 6


def update(gfn, order=0, *, domid=7, kind=0, mfn=None):
    """A set_p2m_entry."""
    mfn = gfn if mfn is None else mfn
    return struct.pack("<IQQIHH", 0x6010_F004, gfn, mfn, kind, domid, order)


def tick(tsc):
    """A record that does nothing but tell the time."""
    return with_tsc(0x0002_8004, tsc, 0)


def one_pass(data, by=runner, **how):
    return summarise(memoryview(data), "t", cpu_hz=1e9, runner=by, **how)


def frames(data):
    return report(read_trace(memoryview(data), "t", cpu_hz=1e9))


def agree(data, by=runner):
    """The one-pass report, which says what the tables say."""
    found = one_pass(data, by)
    assert differences(found, frames(data)) == []
    return found


# -- a domid that is used again ------------------------------------------------------------------


@pytest.mark.parametrize("by", [plain, runner], ids=["plain", "native"])
def test_a_domid_that_is_used_again_begins_empty(by):
    body = tick(100) + with_tsc(DOM_ADD, 110, 7)
    body += b"".join(update(gfn << 9, 9) for gfn in range(8)) + update(0x200, domid=8)
    body += tick(5000) + update(5, kind=1, mfn=INVALID_FRAME)
    body += with_tsc(DOM_REM, 6000, 7)
    gone = agree(window(0, body), by)["domains"]["7"]
    assert gone["final_leaves"] == {"0": {"ram_rw": 511}, "9": {"ram_rw": 7}}
    body += with_tsc(DOM_ADD, 7000, 7)
    empty = agree(window(0, body), by)["domains"]["7"]
    assert empty["final_leaves"] == {}
    body += tick(8000) + update(0, 18) + update(1 << 18, 9) + tick(9000)
    body += update(3, kind=1, mfn=INVALID_FRAME) + tick(9999)
    found = agree(window(0, body), by)["domains"]
    assert found["7"]["final_leaves"] == {
        "0": {"ram_rw": 511},
        "9": {"ram_rw": 511 + 1},
    }
    assert found["7"]["shatters"] == {"18->9": 1, "9->0": 2}
    assert found["7"]["p2m_updates"]["9"] == {"ram_rw": 9}
    assert found["8"]["final_leaves"] == {"0": {"ram_rw": 1}}
    mapped = found["7"]["series"]["mapped"]
    assert 0 in [sum(each) for each in zip(*mapped.values(), strict=True)][-80:]
    for at in range(3):
        body += with_tsc(DOM_REM, 10_000 + 10 * at, 7) + with_tsc(DOM_ADD, 10_005 + 10 * at, 7)
        body += update(at << 18, 18)
    assert agree(window(0, body), by)["domains"]["7"]["final_leaves"] == {"18": {"ram_rw": 1}}


def test_a_first_dom_add_empties_nothing():
    """Updates have the last TSC of their pcpu, and so may come before it."""
    body = window(0, tick(50) + update(0, 9)) + window(1, with_tsc(DOM_ADD, 60, 7))
    body += window(1, with_tsc(DOM_ADD, 70, 7)) + window(0, tick(80) + update(0x200, 9))
    assert agree(body)["domains"]["7"]["final_leaves"] == {"9": {"ram_rw": 2}}


# -- tables that are bounded ---------------------------------------------------------------------


def many_domains(nr, seed=1):
    """Each builds a little, shatters some and goes on at times of its own."""
    draw = np.random.default_rng(seed)
    rows = []
    for domid in range(1, nr + 1):
        at = int(draw.integers(0, 1_000_000))
        for step in range(6):
            gfn = int(draw.integers(0, 4)) << 9
            order = 9 if step % 2 == 0 else 0
            kind = POD if step == 4 else 0
            rows.append((at, update(gfn, order, domid=domid, kind=kind)))
            at += int(draw.integers(1, 50_000))
    rows.sort(key=lambda row: row[0])
    return window(0, b"".join(tick(1000 + at) + record for at, record in rows))


def test_as_many_domains_as_bins_have_room_for():
    agree(many_domains(100))


def test_more_domains_than_bins_have_room_for():
    """Beyond a hundred domains neighbouring bins are one; every count and sum stays."""
    data = many_domains(250)
    found, whole = one_pass(data), frames(data)
    places = differences(found, whole)
    assert all("/series/" in place or "/heat/" in place for place in places)
    for domid, section in found["domains"].items():
        series, other = section["series"], whole["domains"][domid]["series"]
        assert len(series["edges"]) == 61
        assert (series["edges"][0], series["edges"][-1]) == (other["edges"][0], other["edges"][-1])
        for name in ("updates", "shatters"):
            assert len(series[name]) == 60
            assert sum(series[name]) == sum(other[name])
        for order, mapped in series["mapped"].items():
            assert mapped[-1] == other["mapped"][order][-1]
        assert series["coverage"][-1] == other["coverage"][-1]
        if "heat" in section:
            heats = [section["heat"]["updates"], whole["domains"][domid]["heat"]["updates"]]
            assert [sum(map(sum, heat)) for heat in heats] == [6, 6]


def test_bins_that_were_made_fewer_are_those_of_fewer_bins(monkeypatch):
    """Halved three times, or cut so from the beginning, whatever was where meanwhile."""
    data = many_domains(420)
    found = one_pass(data)
    monkeypatch.setattr(gather_module, "SERIES_BINS", 30)
    monkeypatch.setattr(gather_module, "SERIES_CELLS", 30_000)
    fewer = one_pass(data)
    assert len(found["domains"]["1"]["series"]["updates"]) == 30
    for each in (found, fewer):
        for section in each["domains"].values():
            mapped = section["series"]["mapped"]
            # What came and went between two ends of bins is a row of zeros or none.
            section["series"]["mapped"] = {o: row for o, row in mapped.items() if any(row)}
    assert differences(found, fewer) == []


def test_heat_of_more_superpages_than_there_are_cells_for(monkeypatch):
    monkeypatch.setattr(gather_module, "CELLS_MAX", 1 << 17)
    draw = np.random.default_rng(2)
    used = np.sort(draw.permutation(1 << 12)[:3000])
    gfns = draw.choice(used, 120_000) << 9
    body = b"".join(
        tick(1 + 10 * at) + update(int(gfn), 9 if at % 3 else 0) for at, gfn in enumerate(gfns)
    )
    found, whole = one_pass(window(0, body)), frames(window(0, body))
    assert set(differences(found, whole)) <= {
        "/domains/7/heat/updates", "/domains/7/heat/shatters"
    }  # fmt: skip
    for name in ("updates", "shatters"):
        heat = np.array(found["domains"]["7"]["heat"][name])
        want = np.array(whole["domains"]["7"]["heat"][name])
        assert np.array_equal(heat.sum(axis=0), want.sum(axis=0)), "every bin has all it had"
        # What is near the border of a band may be counted in the one before.
        moved = np.abs(np.cumsum(heat, axis=0) - np.cumsum(want, axis=0)).sum()
        assert 0 < moved <= 0.25 * want.sum()


# -- times ---------------------------------------------------------------------------------------


def test_a_pcpu_whose_tsc_falls_is_read_again_with_the_right_span():
    data = window(0, tick(500) + update(0, 9) + tick(9000) + update(0x200, 9) + tick(700))
    data += window(1, tick(600) + update(0x400, 9))
    found = one_pass(data)
    assert found["span"] == [0, 8500]
    assert found["domains"]["7"]["series"]["edges"][-1] == 8501
    assert sum(found["domains"]["7"]["series"]["updates"]) == 3


def test_updates_before_the_first_tsc():
    found = agree(window(0, update(0, 9) + tick(1 << 40) + update(0x200, 9)))
    assert found["domains"]["7"]["series"]["updates"] == [2]
    assert agree(window(0, update(0, 9)))["span"] == [0, 0]


@pytest.mark.parametrize("seed", range(4))
def test_records_of_many_pcpus_are_merged_as_the_tables_are(seed):
    """Random windows of eight pcpus, many records with the same TSC or none."""
    draw = np.random.default_rng(seed)
    parts, clock = [], np.ones(8, dtype=np.int64)
    for _ in range(120):
        cpu, body = int(draw.integers(0, 8)), b""
        for _ in range(int(draw.integers(0, 12))):
            clock[cpu] += int(draw.integers(0, 3))
            choice = draw.integers(0, 5)
            domid, gfn = int(draw.integers(1, 4)), int(draw.integers(0, 5)) << 9
            if choice == 0:
                body += tick(int(clock[cpu]))
            elif choice == 1:
                body += with_tsc(0x0002_1101, int(clock[cpu]), domid << 16)
            elif choice == 2:
                body += with_tsc(0x0008_2012, int(clock[cpu]), 12)
            else:
                order = int(draw.choice([0, 0, 9, 18]))
                body += update(gfn >> order << order, order, domid=domid)
        parts.append(window(cpu, body))
    agree(b"".join(parts))


# -- threads and code ----------------------------------------------------------------------------


def batch(number):
    return Batch(np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64), number)


def test_batches_come_in_order_through_the_pump():
    taken = []
    pump(map(batch, range(50)), lambda each: taken.append(each.done))
    assert taken == list(range(50))


def test_an_error_of_either_thread_is_raised_and_ends_both():
    def broken():
        yield batch(1)
        raise BadInputError("made")

    with pytest.raises(BadInputError, match="made"):
        pump(broken(), lambda each: None)

    def refuse(each):
        raise BadInputError("taken")

    with pytest.raises(BadInputError, match="taken"):
        pump(map(batch, range(1000)), refuse)
    with pytest.raises(BadInputError, match="offset 40: "):
        one_pass(window(0, update(0) + update(1)[:-4]) + window(0, update(1)), pump=pump)


def test_what_is_not_mapped_is_not_given_back():
    give_back(memoryview(bytes(100_000)))(50_000)


def doubled(number, array):
    for at in range(len(array)):
        array[at] *= number
    return len(array)


def test_code_is_kept_and_loaded_without_numba(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(native_module, "FOLDERS", (tmp_path / "file", tmp_path / "kept"))
    array = np.arange(5)
    assert Native(Loop(doubled))(3, array) == 5
    assert array.tolist() == [0, 3, 6, 9, 12]
    (kept,) = (tmp_path / "kept").iterdir()
    assert kept.suffix == ".o"
    monkeypatch.setitem(sys.modules, "numba", None)
    assert Native(Loop(doubled))(2, array) == 5
    assert array.tolist() == [0, 6, 12, 18, 24]
    with pytest.raises(ImportError):
        Native(Loop(doubled))(2, array.astype(np.int32))
    monkeypatch.undo()
    monkeypatch.setattr(native_module, "FOLDERS", (tmp_path / "kept",))
    whole = kept.read_bytes()
    for damaged in (b"", b"damaged", whole[:-1], whole[:40] + b"?" + whole[41:]):
        kept.write_bytes(damaged)
        array[:] = 1
        assert Native(Loop(doubled))(2, array) == 5
        assert array.tolist() == [2] * 5
        assert len(kept.read_bytes()) > 100, "made anew"


class Pair(NamedTuple):
    one: Any
    other: Any


def swapped(one, other):
    """The same class but for the order of its parts."""

    class Pair(NamedTuple):
        other: Any
        one: Any

    return Pair(other, one)


def first(pair):
    return pair.one[0]


def test_code_goes_by_the_names_of_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(native_module, "FOLDERS", (tmp_path,))
    one, other = np.array([5]), np.array([6])
    assert Native(Loop(first))(Pair(one, other)) == 5
    assert Native(Loop(first))(swapped(one, other)) == 5


def test_code_that_cannot_stand_alone_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(native_module, "FOLDERS", (tmp_path,))
    monkeypatch.setattr(native_module, "_object", lambda made: None)
    array = np.arange(3)
    assert Native(Loop(doubled))(5, array) == 3
    assert array.tolist() == [0, 5, 10]
    assert list(tmp_path.iterdir()) == []


# -- what is loaded for it ------------------------------------------------------------------------

LOADED = """
import sys
import deploy.profile.long as long_module
from deploy.cli.main import run
long_module.LONG_BYTES = 10
assert run(["profile", sys.argv[1], "--json", sys.argv[2]]) == 0
print(*sys.modules)
"""


def test_the_command_loads_what_a_long_xentrace_needs_and_no_more(tmp_path):
    (tmp_path / "trace.bin").write_bytes(window(0, tick(5) + update(0, 9)))
    paths = [str(tmp_path / name) for name in ("trace.bin", "report.json")]
    one_pass(window(0, tick(5) + update(0, 9)))  # compiles, if nothing is kept yet
    command = [sys.executable, "-c", LOADED, *paths[:1], "-"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    report_text, _, names = done.stdout.rpartition("}\n")
    assert json.loads(report_text + "}")["domains"]["7"]["final_leaves"] == {"9": {"ram_rw": 1}}
    loaded = {name.partition(".")[0] for name in names.split()}
    assert "llvmlite" in loaded
    assert not loaded & {
        "numba", "scipy", "duckdb", "ray", "rich", "structlog", "msgspec", "asyncio"
    }  # fmt: skip


def test_help_names_every_command(capsys):
    assert run(["--help"]) == 0
    out, _ = capsys.readouterr()
    assert re.findall(r"^  (\w+)  +[A-Z]", out, re.MULTILINE) == [
        "audit", "launch", "profile", "replay", "stress"
    ]  # fmt: skip
    for name in ("audit", "launch", "profile", "replay", "stress"):
        assert run([name, "--help"]) == 0
        assert f"Usage: shatterproof {name} " in capsys.readouterr().out
    assert run(["nothing"]) == 2
    assert "No such command" in capsys.readouterr().err
