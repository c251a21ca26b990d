"""Building the guest of a capture gives the nested page table that a real Xen gave it.

Compared with the dump taken when the guest was built and still paused: every leaf in every column
but its mfn, which is another host's; and every set_p2m_entry that the build caused, in order.
"""

from collections import Counter

import pytest

from deploy.world import host_config
from protocols.control import SnapshotP2m
from protocols.frames import unpack
from protocols.p2m_types import P2mType
from services.toolstack.builder import plan_build
from tests.helpers import (
    DATA,
    UpdateRecorder,
    capture_config,
    decoded_updates,
    guest,
    launch,
    read_dump,
    scenario,
)

# capture, dump, domid in the capture, host switches
BUILDS = [
    ("b1.pvh-64", "b1.npt-pvh-64-dom1", 1, {}),
    ("b1.pvh-256", "b1.npt-pvh-256-dom2", 2, {}),
    ("b1.pvh-1100", "b1.npt-pvh-1100-dom4", 4, {}),
    ("b2.no1g-pvh-256", "b2.npt-no1g-pvh-256-dom1", 1, {"hap_1gb": False}),
    ("b3.no2m-pvh-256", "b3.npt-no2m-pvh-256-dom1", 1, {"hap_2mb": False}),
    ("balloon.t1-dec4k", "balloon.npt-t1-dec4k-built-dom1", 1, {}),
    ("balloon.t5-dec-readd2m", "balloon.npt-t5-dec-readd2m-built-dom5", 5, {}),
    ("balloon.t7-1g-dec4k", "balloon.npt-t7-1g-dec4k-built-dom7", 7, {}),
    ("hvm.hvm-256", "hvm.npt-hvm-256-dom1", 1, {}),
    ("logdirty.ld2", "logdirty.npt-ld2-built-dom2", 2, {}),
    ("pod.p2-touch4k", "pod.npt-p2-touch4k-built-dom2", 2, {}),
    ("pod.p3-splinter", "pod.npt-p3-splinter-built-dom3", 3, {}),
]
CONC = [("conc.npt-par-512-700-dom1", 512), ("conc.npt-par-512-700-dom2", 700)]

captures = pytest.mark.parametrize(
    ("capture", "dump", "domid", "switches"), BUILDS, ids=[row[0] for row in BUILDS]
)


def without_mfns(rows):
    """The columns that another host shares; a PoD entry holds no frame, so it is all compared."""
    pod = P2mType.POPULATE_ON_DEMAND
    return [(gfn, order, mfn if rest[0] == pod else None, *rest) for gfn, order, mfn, *rest in rows]


def built_rows(table):
    """The columns of a dump."""
    low, high = (bytes_of_u16(column) for column in (table.low12, table.high12))
    columns = (unpack(table.gfns).tolist(), list(table.orders), unpack(table.mfns).tolist())
    return list(zip(*columns, list(table.types), low, high, strict=True))


def bytes_of_u16(column):
    return [
        int.from_bytes(column[place : place + 2], "little") for place in range(0, len(column), 2)
    ]


def build_updates(capture, domid):
    """(gfn, order, type) of the capture's updates until the guest itself ran."""
    updates = []
    for row in decoded_updates(capture):
        if int(row["domid"]) != domid:
            continue
        if int(row["cur_dom"]) == domid:
            break
        updates.append((int(row["gfn"], 16), int(row["order"]), P2mType[row["p2mt"].upper()]))
    return updates


def check_mfns(rows, config):
    """Frames of RAM are the host's, aligned to their leaf, and used once."""
    used = set()
    for gfn, order, mfn, p2mt, *_ in rows:
        if p2mt == P2mType.POPULATE_ON_DEMAND:
            continue
        assert mfn % (1 << order) == 0, f"gfn {gfn:#x} order {order}: mfn {mfn:#x}"
        frames = set(range(mfn, mfn + (1 << order)))
        assert not used & frames, f"gfn {gfn:#x} order {order}: mfn {mfn:#x} is mapped twice"
        used |= frames
    assert config.ram_start <= min(used)
    assert max(used) < config.ram_start + config.ram_frames


@captures
def test_a_build_gives_the_dumped_leaves(capture, dump, domid, switches):
    recorder = UpdateRecorder()
    work = scenario(capture_config(capture), memory_mib=4096, **switches)
    report, runtime = launch(work, recorder=recorder)
    assert report.violations == []
    (domain,) = report.domains
    assert (domain.status, domain.error) == ("built", None)
    want = read_dump(dump)
    rows = built_rows(domain.table)
    assert without_mfns(rows) == without_mfns(want)
    check_mfns(rows, runtime.config)
    assert {order: nr for order, nr in domain.extents.items() if nr} == Counter(
        order for _, order, _, p2mt, *_ in want if p2mt != P2mType.POPULATE_ON_DEMAND
    )
    updates = build_updates(capture, domid)
    assert recorder.updates == {1: updates}
    assert domain.shatters == 0 or "p3" in capture
    if capture == "hvm.hvm-256":
        assert updates[-64:] == [(gfn, 0, P2mType.RAM_RW) for gfn in range(0xC0, 0x100)]


def test_two_guests_built_at_once():
    recorder = UpdateRecorder()
    work = scenario(guest("a", 512), guest("b", 700), memory_mib=4096)
    report, _ = launch(work, recorder=recorder)
    assert report.violations == []
    captured = {}
    for row in decoded_updates("conc.par-512-700"):
        update = (int(row["gfn"], 16), int(row["order"]), P2mType[row["p2mt"].upper()])
        captured.setdefault(int(row["domid"]), []).append(update)
    by_size = {len(updates): updates for updates in captured.values()}
    for domain, (dump, memory) in zip(report.domains, CONC, strict=True):
        (want,) = [
            rows
            for name, _ in CONC
            for rows in [without_mfns(read_dump(name))]
            if len(rows) == memory // 2 + 17
        ]
        assert without_mfns(built_rows(domain.table)) == want, dump
        assert recorder.updates[domain.domid] == by_size[memory // 2 + 17]
    check_mfns([row for d in report.domains for row in built_rows(d.table)], host_config(work.host))


@pytest.mark.parametrize("seed", range(6))
def test_the_order_of_messages_does_not_show_in_the_leaves(seed):
    """A PVH with a 1G leaf, a PoD guest and an HVM, all at once, under any schedule."""
    names = ["b1.pvh-1100", "pod.p2-touch4k", "hvm.hvm-256"]
    work = scenario(*(capture_config(name) for name in names), memory_mib=4096)
    recorder = UpdateRecorder()
    report, _ = launch(work, seed=seed, recorder=recorder)
    assert report.violations == []
    rows = {row[0]: row for row in BUILDS}
    for domain, name in zip(report.domains, names, strict=True):
        _, dump, domid, _ = rows[name]
        assert without_mfns(built_rows(domain.table)) == without_mfns(read_dump(dump)), name
        assert recorder.updates[domain.domid] == build_updates(name, domid), name


@captures
def test_a_build_takes_the_frames_that_its_plan_says(capture, dump, domid, switches):
    config = capture_config(capture)
    plan = plan_build(config, "npt")
    report, runtime = launch(scenario(config, memory_mib=4096, **switches))
    (domain,) = report.domains
    (snapshot,) = runtime.run([("p2m/1", SnapshotP2m(1, leaves=False))])
    special = 16 if config.type == "hvm" else 17
    in_all = plan.ram_pages() + special
    assert domain.tot_pages == (plan.target_pages + special if plan.pod else in_all)
    assert report.host_total - report.host_free == domain.tot_pages + plan.pool_pages
    assert len(snapshot.pool) == 8 * plan.pool_pages
    assert snapshot.nr_updates == len(build_updates(capture, domid))


def test_every_kept_configuration_is_built():
    kept = {path.name.removesuffix(".cfg") for path in (DATA / "xl").iterdir()}
    assert kept == {row[0] for row in BUILDS}
