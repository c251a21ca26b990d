"""The commands against a real Xen 4.17: launch and replay, compared with dumps and traces.

Launch: every captured xl.cfg, on both the plain FIFO order and seeded ones. Replay: every trace, at
the moment of each dump (a number of updates, counted in the decoded trace).
"""

import csv
import gzip
import lzma
from pathlib import Path

import msgpack
import numpy as np
import pytest

from deploy.cli.main import run
from protocols.p2m_types import P2mType

DATA = Path(__file__).parent.parent / "data"

# configuration, Xen's switches, dump of the built guest, its domid
BUILDS = [
    ("b1.pvh-64", "", "b1.npt-pvh-64-dom1", 1),
    ("b1.pvh-256", "", "b1.npt-pvh-256-dom2", 2),
    ("b1.pvh-1100", "", "b1.npt-pvh-1100-dom4", 4),
    ("b2.no1g-pvh-256", "hap_1gb=0", "b2.npt-no1g-pvh-256-dom1", 1),
    ("b3.no2m-pvh-256", "hap_2mb=0", "b3.npt-no2m-pvh-256-dom1", 1),
    ("balloon.t1-dec4k", "", "balloon.npt-t1-dec4k-built-dom1", 1),
    ("balloon.t5-dec-readd2m", "", "balloon.npt-t5-dec-readd2m-built-dom5", 5),
    ("balloon.t7-1g-dec4k", "", "balloon.npt-t7-1g-dec4k-built-dom7", 7),
    ("hvm.hvm-256", "", "hvm.npt-hvm-256-dom1", 1),
    ("logdirty.ld2", "", "logdirty.npt-ld2-built-dom2", 2),
    ("pod.p2-touch4k", "", "pod.npt-p2-touch4k-built-dom2", 2),
    ("pod.p3-splinter", "", "pod.npt-p3-splinter-built-dom3", 3),
]
LOGDIRTY = {"logdirty.npt-ld2-ran-dom2", "logdirty.npt-ld2-clean-dom2", "logdirty.npt-ld2-off-dom2"}


def dump_rows(name):
    """(gfn, order, mfn, p2mt, low12, high12) of each leaf of a captured dump."""
    with gzip.open(DATA / "npt" / f"{name}.csv.gz", "rt") as file:
        rows = [line.strip().split(",") for line in file if not line.startswith("#")]
    return [parse(row) for row in rows if row[3] != "T"]


def parse(row):
    gfn, order, mfn, p2mt, low, high = row
    return int(gfn, 16), int(order), int(mfn, 16), int(p2mt), int(low, 16), int(high, 16)


def our_rows(path):
    with path.open() as file:
        header, *rows = csv.reader(file)
    assert header == ["gfn", "order", "mfn", "p2mt", "pteflags_low12", "pte_bits_63_52"]
    parsed = [parse(row) for row in rows]
    assert parsed == sorted(parsed), "ascending gfn"
    return parsed


def without_mfn(rows):
    return [(gfn, order, *rest) for gfn, order, _, *rest in rows]


def decoded(trace):
    with gzip.open(DATA / "decoded" / f"{trace}.mem.csv.gz", "rt") as file:
        return [row for row in csv.DictReader(file) if row["event"] == "set_p2m_entry"]


def build_updates(trace, domid):
    """(gfn, order, type) of the updates that dom0 made while the guest was built."""
    mine = [row for row in decoded(trace) if int(row["domid"]) == domid]
    by_guest = [n for n, row in enumerate(mine) if int(row["cur_dom"]) == domid]
    end = by_guest[0] if by_guest else len(mine)
    return [
        (int(row["gfn"], 16), int(row["order"]), P2mType[row["p2mt"].upper()]) for row in mine[:end]
    ]


def traced_updates(path, domid):
    with path.open("rb") as file:
        _, *records = msgpack.Unpacker(file, strict_map_key=False)
    found = []
    for _, _, kind, payload in records:
        if kind == 1 and payload[1] == domid:
            _, _, order, p2mt, gfns, _ = payload
            found += [(gfn, order, p2mt) for gfn in np.frombuffer(gfns, dtype="<u8").tolist()]
    return found


def launch(tmp_path, *arguments):
    status = run(
        ["launch", *map(str, arguments), "--runtime", "local", "--dump-p2m", str(tmp_path / "p2m"),
         "--trace", str(tmp_path / "trace"), "--json", str(tmp_path / "report.json")]
    )  # fmt: skip
    assert status == 0


@pytest.mark.parametrize(
    ("config", "switches", "dump", "domid"), BUILDS, ids=[row[0] for row in BUILDS]
)
def test_launch_gives_the_leaves_and_the_updates_of_the_real_build(
    tmp_path, config, switches, dump, domid
):
    launch(tmp_path, DATA / "xl" / f"{config}.cfg", "--xen-cmdline", switches)
    rows = our_rows(tmp_path / "p2m" / "dom1.csv")
    assert without_mfn(rows) == without_mfn(dump_rows(dump))
    assert traced_updates(tmp_path / "trace", 1) == build_updates(config, domid)


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_concurrent_builds_give_the_leaves_of_the_real_ones_in_any_order(tmp_path, seed):
    for name, memory in (("a", 700), ("b", 512)):
        text = f"name = '{name}'\ntype = 'pvh'\nmemory = {memory}\nmaxmem = {memory}\n"
        (tmp_path / f"{name}.cfg").write_text(text)
    chosen = [] if seed is None else ["--seed", seed]
    launch(tmp_path, tmp_path / "a.cfg", tmp_path / "b.cfg", *chosen)
    for domid in (1, 2):
        rows = our_rows(tmp_path / "p2m" / f"dom{domid}.csv")
        dump = f"conc.npt-par-512-700-dom{domid}"
        assert without_mfn(rows) == without_mfn(dump_rows(dump))
        updates = traced_updates(tmp_path / "trace", domid)
        assert updates == build_updates("conc.par-512-700", domid)


def test_both_switches_off_map_every_frame_by_4k(tmp_path):
    config = DATA / "xl" / "b1.pvh-64.cfg"
    launch(tmp_path, config, "--xen-cmdline", "hap_1gb=0 hap_2mb=0")
    rows = our_rows(tmp_path / "p2m" / "dom1.csv")
    assert {row[1] for row in rows} == {0}
    assert len(rows) == 64 * 256 + 17


def moments():
    """(trace, dump, domid, updates over all domains, compare types) of every dump."""
    for path in sorted((DATA / "npt").glob("*.csv.gz")):
        dump = path.name.removesuffix(".csv.gz")
        boot, rest = dump.split(".npt-")
        name, domid = rest.rsplit("-dom", 1)
        for suffix in ("-built", "-ran", "-on", "-clean", "-off"):
            name = name.removesuffix(suffix)
        trace = f"{boot}.{name}"
        rows = decoded(trace)
        early = "-built-" in dump or "-on-" in dump
        by_guest = [n for n, row in enumerate(rows) if row["cur_dom"] == row["domid"]]
        yield trace, dump, int(domid), by_guest[0] if early and by_guest else len(rows)


@pytest.mark.parametrize(
    ("trace", "dump", "domid", "updates"),
    [pytest.param(*moment, id=moment[1]) for moment in moments()],
)
def test_replay_gives_the_dumped_tables(tmp_path, trace, dump, domid, updates):
    path = DATA / "traces" / f"{trace}.trimmed.trace.bin.xz"
    arguments = ["replay", str(path), "--updates", str(updates), "--runtime", "local"]
    assert run([*arguments, "--dump-p2m", str(tmp_path)]) == 0
    rows, wanted = our_rows(tmp_path / f"dom{domid}.csv"), dump_rows(dump)
    if dump in LOGDIRTY:
        # Xen records no event for the retyping that log-dirty does.
        rows, wanted = ([row[:3] for row in some] for some in (rows, wanted))
    assert rows == wanted


def test_replay_of_an_unpacked_trace_without_a_limit(tmp_path):
    packed = DATA / "traces" / "b1.pvh-64.full.trace.bin.xz"
    raw = tmp_path / "trace.bin"
    raw.write_bytes(lzma.decompress(packed.read_bytes()))
    assert run(["replay", str(raw), "--runtime", "local", "--dump-p2m", str(tmp_path / "p2m")]) == 0
    assert our_rows(tmp_path / "p2m" / "dom1.csv") == dump_rows("b1.npt-pvh-64-dom1")
