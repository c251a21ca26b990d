"""The replay command gives the real Xen's nested page tables, in every column of its dump."""

import importlib.util
import json
from collections import Counter
from pathlib import Path

import pytest

from deploy.cli.main import run
from tests.helpers import DATA, decoded_updates, read_dump

DECODED = Path(__file__).parent / "test_replay_decoded.py"


def snapshots():
    """The table of dumps that the ring-one replay keeps."""
    spec = importlib.util.spec_from_file_location("replay_decoded", DECODED)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [
        (trace, dump, domid, moment, types)
        for trace, dump, domid, moment, types, _ in module.SNAPSHOTS
    ]


SNAPSHOTS = snapshots()


def updates_until(trace, domid, moment):
    """How many updates of the trace come before the dump's moment."""
    rows = decoded_updates(trace)
    if moment == "all":
        return len(rows)
    return next(
        number
        for number, row in enumerate(rows)
        if int(row["domid"]) == domid and int(row["cur_dom"]) == domid
    )


def dumped(path):
    """Rows of a --dump-p2m file, ints."""
    lines = path.read_text().splitlines()
    assert lines[0] == "gfn,order,mfn,p2mt,pteflags_low12,pte_bits_63_52"
    return [tuple(int(word, 0) for word in line.split(",")) for line in lines[1:]]


@pytest.mark.parametrize(
    ("trace", "dump", "domid", "moment", "types"),
    SNAPSHOTS,
    ids=[row[1].split(".npt-")[1] for row in SNAPSHOTS],
)
def test_replay_dumps_what_xen_had(trace, dump, domid, moment, types, tmp_path, capsys):
    path = DATA / "traces" / f"{trace}.trimmed.trace.bin.xz"
    nr = updates_until(trace, domid, moment)
    report_path = tmp_path / "report.json"
    arguments = ["replay", str(path), "--updates", str(nr), "--runtime", "local"]
    status = run([*arguments, "--dump-p2m", str(tmp_path / "out"), "--json", str(report_path)])
    assert (status, capsys.readouterr().err) == (0, "")
    columns = 6 if types else 3
    ours = [row[:columns] for row in dumped(tmp_path / "out" / f"dom{domid}.csv")]
    assert ours == [row[:columns] for row in read_dump(dump)]
    report = json.loads(report_path.read_text())
    assert report["schema"] == "shatterproof.replay/1"
    assert (report["updates"], report["problems"]) == (nr, [])
    assert report["updates_in_trace"] == len(decoded_updates(trace))
    (domain,) = [each for each in report["domains"] if each["domid"] == domid]
    leaves = Counter(row[1] for row in read_dump(dump) if row[3] != 6)
    assert domain["extents"] == {str(order): nr for order, nr in sorted(leaves.items())}
    pod = sum(1 << row[1] for row in read_dump(dump) if row[3] == 6)
    assert domain["pod_entries"] == pod


def test_replay_on_the_full_and_the_trimmed_trace_is_the_same(tmp_path):
    for form in ("full", "trimmed"):
        path = DATA / "traces" / f"b1.pvh-64.{form}.trace.bin.xz"
        arguments = ["replay", str(path), "--dump-p2m", str(tmp_path / form)]
        assert run([*arguments, "--runtime", "local"]) == 0
    full, trimmed = (tmp_path / form / "dom1.csv" for form in ("full", "trimmed"))
    assert full.read_bytes() == trimmed.read_bytes()


@pytest.mark.parametrize("seed", [1, 2])
def test_replay_keeps_the_order_of_updates_under_any_schedule(seed, tmp_path):
    path = DATA / "traces" / "pod.p3-splinter.trimmed.trace.bin.xz"
    arguments = ["replay", str(path), "--dump-p2m", str(tmp_path), "--runtime", "local"]
    assert run([*arguments, "--seed", str(seed)]) == 0
    assert dumped(tmp_path / "dom3.csv") == read_dump("pod.npt-p3-splinter-ran-dom3")


def test_no_updates_give_no_domain(tmp_path):
    path = DATA / "traces" / "b1.pvh-64.trimmed.trace.bin.xz"
    arguments = ["replay", str(path), "--dump-p2m", str(tmp_path / "out"), "--updates", "0"]
    assert run([*arguments, "--runtime", "local"]) == 0
    assert list((tmp_path / "out").iterdir()) == []
