"""Replaying a real Xen's set_p2m_entry records gives the nested page tables it had, bit for bit.

Each trace is fed in order, consecutive records of one order and type as one call. A dump is taken
after the number of updates to its domain that its row in SNAPSHOTS says:

=========== =======================================================================================
``BUILT``   every update before the first one made while the guest itself was running (cur_dom is
            the domain): what dom0's toolstack and device model did. Guests were created paused,
            dumped, and only then let run.
``ALL``     every update in the trace: the dump was taken after the last one. Destroying a domain
            makes no updates.
=========== =======================================================================================

Log-dirty changes types without a trace record, so after it was switched on the leaves are compared
without type and flags, and the table entries without flags. ``on`` itself changed no leaf.

The table frames are compared too: the pool gets its frames in the order in which Xen's heap gave
them (root first, then descending inside each free block), so a table that was made at the wrong
moment would be in the wrong frame. Xen takes the nodes of its log-dirty bitmap from the same pool:
the four frames that are missing between the runs of ld2.
"""

import csv
import gzip
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest

from protocols.errno import Errno
from protocols.frames import INVALID_FRAME
from protocols.p2m_types import P2mType
from services.p2m.entry import bits_63_52, flags_low12
from services.p2m.geometry import GEOMETRIES
from services.p2m.table import P2mTable

DATA = Path(__file__).parent.parent / "data"
NPT = GEOMETRIES["npt"]
BUILT, ALL = "built", "all"

# trace, dump, domid, moment, leaf types comparable, pool runs (highest mfn, frames)
SNAPSHOTS = [
    ("b1.pvh-64", "b1.npt-pvh-64-dom1", 1, ALL, True, [(0x23F950, 1), (0x23F944, 5)]),
    ("b1.pvh-256", "b1.npt-pvh-256-dom2", 2, ALL, True,
     [(0x23CBE7, 1), (0x23F953, 4), (0x23CBFF, 1)]),
    ("b1.pvh-1100", "b1.npt-pvh-1100-dom4", 4, ALL, True,
     [(0x23CBEE, 1), (0x23F952, 3), (0x23CBE7, 2)]),
    ("b2.no1g-pvh-256", "b2.npt-no1g-pvh-256-dom1", 1, ALL, True, [(0x23F950, 1), (0x23F944, 5)]),
    ("b3.no2m-pvh-256", "b3.npt-no2m-pvh-256-dom1", 1, ALL, True, [(0x23F950, 1), (0x23F944, 133)]),
    ("balloon.t1-dec4k", "balloon.npt-t1-dec4k-built-dom1", 1, BUILT, True,
     [(0x23F54C, 1), (0x23F540, 20)]),
    ("balloon.t1-dec4k", "balloon.npt-t1-dec4k-ran-dom1", 1, ALL, True,
     [(0x23F54C, 1), (0x23F540, 20)]),
    ("balloon.t5-dec-readd2m", "balloon.npt-t5-dec-readd2m-built-dom5", 5, BUILT, True,
     [(0x23F552, 1), (0x23F3BE, 20)]),
    ("balloon.t5-dec-readd2m", "balloon.npt-t5-dec-readd2m-ran-dom5", 5, ALL, True,
     [(0x23F552, 1), (0x23F3BE, 20)]),
    ("balloon.t7-1g-dec4k", "balloon.npt-t7-1g-dec4k-built-dom7", 7, BUILT, True,
     [(0x23F552, 1), (0x23F3BE, 20)]),
    ("balloon.t7-1g-dec4k", "balloon.npt-t7-1g-dec4k-ran-dom7", 7, ALL, True,
     [(0x23F552, 1), (0x23F3BE, 20)]),
    ("conc.par-512-700", "conc.npt-par-512-700-dom1", 1, ALL, True,
     [(0x234D44, 1), (0x234D38, 5)]),
    ("conc.par-512-700", "conc.npt-par-512-700-dom2", 2, ALL, True,
     [(0x234C32, 1), (0x234C26, 5)]),
    ("hvm.hvm-256", "hvm.npt-hvm-256-dom1", 1, ALL, True, [(0x23F950, 1), (0x23F944, 5)]),
    ("logdirty.ld2", "logdirty.npt-ld2-built-dom2", 2, BUILT, True,
     [(0x234D4A, 1), (0x234B96, 20)]),
    ("logdirty.ld2", "logdirty.npt-ld2-on-dom2", 2, BUILT, True, [(0x234D4A, 1), (0x234B96, 20)]),
    ("logdirty.ld2", "logdirty.npt-ld2-ran-dom2", 2, ALL, False,
     [(0x234D4A, 1), (0x234B96, 5), (0x234B8D, 9)]),
    ("logdirty.ld2", "logdirty.npt-ld2-clean-dom2", 2, ALL, False,
     [(0x234D4A, 1), (0x234B96, 5), (0x234B8D, 9)]),
    ("logdirty.ld2", "logdirty.npt-ld2-off-dom2", 2, ALL, False,
     [(0x234D4A, 1), (0x234B96, 5), (0x234B8D, 9)]),
    ("pod.p2-touch4k", "pod.npt-p2-touch4k-built-dom2", 2, BUILT, True,
     [(0x23F552, 1), (0x23F23E, 5)]),
    ("pod.p2-touch4k", "pod.npt-p2-touch4k-ran-dom2", 2, ALL, True,
     [(0x23F552, 1), (0x23F23E, 5)]),
    ("pod.p3-splinter", "pod.npt-p3-splinter-built-dom3", 3, BUILT, True,
     [(0x23F552, 1), (0x23F23E, 15), (0x23F54F, 16), (0x23F21F, 20)]),
    ("pod.p3-splinter", "pod.npt-p3-splinter-ran-dom3", 3, ALL, True,
     [(0x23F552, 1), (0x23F23E, 15), (0x23F54F, 16), (0x23F21F, 20)]),
]  # fmt: skip


def read_updates(trace, domid, moment):
    """(order, type, gfn, mfn) of each set_p2m_entry record of a domain up to the moment."""
    with gzip.open(DATA / "decoded" / f"{trace}.mem.csv.gz", "rt") as file:
        for row in csv.DictReader(file):
            if row["event"] != "set_p2m_entry" or int(row["domid"]) != domid:
                continue
            if moment == BUILT and int(row["cur_dom"]) == domid:
                return
            mfn = INVALID_FRAME if row["mfn"] == "INVALID" else int(row["mfn"], 16)
            yield int(row["order"]), P2mType[row["p2mt"].upper()], int(row["gfn"], 16), mfn


def read_dump(name):
    """Leaves and table entries of a dump: rows of (gfn, order, mfn, type, low12, high12)."""
    leaves, tables = [], []
    with gzip.open(DATA / "npt" / f"{name}.csv.gz", "rt") as file:
        for line in file:
            if line.startswith("#"):
                continue
            gfn, order, mfn, p2mt, low12, high12 = line.strip().split(",")
            row = [int(gfn, 16), int(order), int(mfn, 16), int(low12, 16), int(high12, 16)]
            if p2mt == "T":
                tables.append(row)
            else:
                leaves.append([*row, int(p2mt)])
    return np.array(leaves, dtype=np.uint64), sorted(tables)


def replay(trace, domid, moment, pool):
    table = P2mTable(NPT, domid, record=True)
    for first, nr in pool:
        table.pool_add(np.arange(first, first - nr, -1, dtype=np.uint64))
    assert table.init_root()
    nr_updates = 0
    for (order, p2mt), group in groupby(read_updates(trace, domid, moment), key=lambda r: r[:2]):
        rows = list(group)
        gfns = np.array([row[2] for row in rows], dtype=np.uint64)
        mfns = np.array([row[3] for row in rows], dtype=np.uint64)
        result = table.set_range(gfns, mfns, order, p2mt)
        assert result.errno is Errno.OK
        assert result.nr_done == result.nr_updates == len(rows)
        assert [update[2] for update in result.updates] == [order]
        table.pool_return(result.retired)
        nr_updates += len(rows)
    return table, nr_updates


@pytest.mark.parametrize(
    ("trace", "dump", "domid", "moment", "types", "pool"),
    SNAPSHOTS,
    ids=[row[1].split(".npt-")[1] for row in SNAPSHOTS],
)
def test_replay_gives_the_dumped_table(trace, dump, domid, moment, types, pool):
    table, nr_updates = replay(trace, domid, moment, pool)
    assert nr_updates > 0
    leaves, tables = read_dump(dump)
    ours = table.leaves()
    frames = (ours.entries & NPT.frame_mask) >> 12
    columns = [ours.gfns, ours.orders, frames, flags_low12(ours.entries)]
    columns += [bits_63_52(ours.entries), ours.types]
    compared = range(6) if types else range(3)
    for column in compared:
        np.testing.assert_array_equal(columns[column], leaves[:, column], err_msg=str(column))

    pointers = table_pointers(table)
    if dump.startswith("logdirty") and "-built-" not in dump:
        pointers, tables = [row[:3] for row in pointers], [row[:3] for row in tables]
    assert pointers == tables
    assert table.audit() == []


def table_pointers(table):
    """(gfn, order, mfn, low12, high12) of every table entry: the dump's T rows."""
    rows = []
    for part in table.scan():
        for gfn, mfn in zip(part.table_gfns.tolist(), part.table_mfns.tolist(), strict=True):
            if mfn != table.root_mfn:
                rows.append([gfn, NPT.shift(part.level + 1), mfn, 0x067, 0])
    return sorted(rows)


def test_every_capture_that_is_kept_is_replayed():
    dumps = {path.name.removesuffix(".csv.gz") for path in (DATA / "npt").iterdir()}
    assert dumps == {row[1] for row in SNAPSHOTS}
