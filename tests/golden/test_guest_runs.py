"""A captured guest that runs its program leaves the table, and the events, that a real Xen had.

Compared with the dump taken when the guest had blocked: every leaf in every column but its mfn; and
every event of the p2m from the build to the end, in order.
"""

import csv
import gzip

import numpy as np
import pytest
from click.testing import CliRunner

from deploy.cli.main import cli
from protocols.p2m_types import P2mType
from services.trace.xentrace import decode_xentrace
from tests.helpers import DATA, read_dump

RUNS = [
    ("balloon.t1-dec4k", "balloon.npt-t1-dec4k-ran-dom1", 1),
    ("balloon.t5-dec-readd2m", "balloon.npt-t5-dec-readd2m-ran-dom5", 5),
    ("balloon.t7-1g-dec4k", "balloon.npt-t7-1g-dec4k-ran-dom7", 7),
    ("pod.p2-touch4k", "pod.npt-p2-touch4k-ran-dom2", 2),
]
EVENTS = (
    "set_p2m_entry",
    "decrease_reservation",
    "pod_populate",
    "pod_zero_reclaim",
    "pod_superpage_splinter",
    "npf",
)


def captured(capture, domid):
    """(event, gfn, order, type) of the domain, and its faults, as the capture has them."""
    rows = []
    with gzip.open(DATA / "decoded" / f"{capture}.mem.csv.gz", "rt") as lines:
        for row in csv.DictReader(lines):
            event = row["event"]
            who = row["cur_dom"] if event == "npf" else row["domid"]
            if event not in EVENTS or int(who) != domid:
                continue
            p2mt = P2mType[row["p2mt"].upper()] if event == "set_p2m_entry" else None
            order = None if event == "npf" else int(row["order"] or 9)
            rows.append((event, int(row["gfn"], 16), order, p2mt))
    return rows


def exported(path):
    """The same of a xentrace that ``profile --xentrace`` has written."""
    trace = decode_xentrace(path.read_bytes(), path.name)
    found = []
    for event, table in (
        ("set_p2m_entry", trace.p2m_updates()),
        ("decrease_reservation", trace.decrease_reservations()),
        ("pod_populate", trace.pod_populates()),
        ("pod_zero_reclaim", trace.pod_zero_reclaims()),
        ("pod_superpage_splinter", trace.pod_splinters()),
        ("npf", trace.nested_faults()),
    ):
        for at in range(table.gfn.size):
            p2mt = P2mType(int(table.p2mt[at])) if event == "set_p2m_entry" else None
            order = None if event == "npf" else int(table.order[at])
            when = (int(table.tsc[at]), int(table.record[at]))
            found.append((when, (event, int(table.gfn[at]), order, p2mt)))
    return [row for _, row in sorted(found, key=lambda each: each[0])]


def dumped(path):
    rows = np.loadtxt(path, delimiter=",", skiprows=1, dtype=str)
    return [tuple(int(field, 0) for field in row) for row in rows]


def without_mfns(rows):
    pod = P2mType.POPULATE_ON_DEMAND
    return [(gfn, order, mfn if rest[0] == pod else None, *rest) for gfn, order, mfn, *rest in rows]


@pytest.mark.parametrize(("capture", "dump", "domid"), RUNS, ids=[row[0] for row in RUNS])
def test_a_run_gives_the_dumped_leaves_and_the_traced_events(capture, dump, domid, tmp_path):
    config, trace = str(DATA / "xl" / f"{capture}.cfg"), str(tmp_path / "t.trace")
    run = ["launch", config, "--run", "--runtime", "local"]
    ran = CliRunner().invoke(cli, [*run, "--dump-p2m", str(tmp_path), "--trace", trace])
    assert ran.exit_code == 0, ran.output
    assert "blocked" in ran.output
    assert without_mfns(dumped(tmp_path / "dom1.csv")) == without_mfns(read_dump(dump))
    assert (
        CliRunner().invoke(cli, ["profile", trace, "--xentrace", str(tmp_path / "x")]).exit_code
        == 0
    )
    assert exported(tmp_path / "x") == captured(capture, domid)
