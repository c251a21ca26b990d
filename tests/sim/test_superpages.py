"""Policies and formats change how memory is mapped, never what is mapped where a guest wants it."""

import numpy as np
import pytest

from deploy.scenario.model import Balloon, Build, Punch, Touch
from protocols import envelope
from protocols.frames import INVALID_FRAME, pack, unpack
from protocols.p2m import P2mTranslate
from protocols.p2m_types import MemFlag
from protocols.walk import Touch as TouchRequest
from protocols.walk import WalkTranslate
from services.p2m.geometry import GEOMETRIES
from tests.helpers import RAM, World, guest, launch, leaf_rows, mapped_gfns, scenario, shape, spread

POLICIES = ["explicit", "opportunistic", "off"]
FORMATS = sorted(GEOMETRIES)
PHASES = (
    Build(),
    Touch(nr=3000, pattern="random", stride=3),
    Punch(superpages=3, first_gfn=0x800, offset=500, per_superpage=7),
    Punch(superpages=2, first_gfn=0x1000, per_superpage=5, mode="refill"),
    Punch(superpages=1, first_gfn=0x1400, per_superpage=4, mode="retype"),
    Punch(superpages=1, first_gfn=0x1800, per_superpage=9, mode="move", target_gfn=0x80000),
    Balloon("down", 1024, 0x2000, 9),
    Balloon("up", 512, 0x2000, 9),
    Touch(nr=3000, first_gfn=0x700),
)


def built(policy, paging="npt", *, seed=None, phases=(Build(),), kind="pvh", force_4k=(), **more):
    work = scenario(
        guest(memory=64, kind=kind, vcpus=2, **more),
        memory_mib=192,
        paging=paging,
        superpages=policy,
        phases=phases,
        force_4k=force_4k,
    )
    report, runtime = launch(work, seed=seed)
    assert report.violations == []
    (domain,) = report.domains
    assert (domain.status, domain.error) == ("built", None)
    return leaf_rows(domain.table), runtime


@pytest.mark.parametrize("paging", FORMATS)
@pytest.mark.parametrize("kind", ["pvh", "hvm"])
def test_every_policy_maps_the_same_gfns(paging, kind):
    found = {policy: built(policy, paging, kind=kind)[0] for policy in POLICIES}
    assert shape(found["opportunistic"]) == shape(found["explicit"])
    assert {order for _, order, _ in shape(found["off"])} == {0}
    large = max(order for _, order, _ in shape(found["explicit"]))
    assert large == (10 if paging == "x86_32" else 9)
    gfns = mapped_gfns(found["explicit"])
    assert all(mapped_gfns(rows) == gfns for rows in found.values())


@pytest.mark.parametrize("paging", FORMATS)
@pytest.mark.parametrize("policy", POLICIES)
def test_a_life_gives_the_same_gfns_whatever_the_policy(paging, policy):
    moved = PHASES if paging != "x86_32" else tuple(p for p in PHASES if not isinstance(p, Balloon))
    rows, _ = built(policy, paging, phases=moved, seed=11)
    plain, _ = built("off", "npt", phases=moved)
    types = {gfn: p2mt for gfn, order, _, p2mt in rows for gfn in range(gfn, gfn + (1 << order))}
    assert types == {gfn: p2mt for gfn, _, _, p2mt in plain}


@pytest.mark.parametrize("paging", FORMATS)
@pytest.mark.parametrize("policy", POLICIES)
def test_walks_agree_with_the_tables(paging, policy):
    rows, runtime = built(policy, paging, phases=PHASES[:4], seed=3)
    gfns = np.unique([gfn for gfn, *_ in rows] + [0x801, 0x9FF, 0x9F4, 0xFEFFF, 0xDEAD0])
    packed = pack(gfns)
    calls = [
        (envelope.p2m(1), P2mTranslate(1, packed)),
        (envelope.walker(1, 0), TouchRequest(1, packed, want_mfns=True)),
        (envelope.walker(1, 1), WalkTranslate(1, packed)),
        (envelope.walker(2, 0), WalkTranslate(1, packed)),
    ]
    tables, *walks = runtime.run(calls)
    walks += runtime.run(calls[1:2])
    want = unpack(tables.mfns).tolist()
    assert INVALID_FRAME in want
    assert [unpack(walk.mfns).tolist() for walk in walks] == [want] * 4
    assert walks[1].nr_walk_refs > 0
    assert walks[3].nr_tlb_hits > 0


@pytest.mark.parametrize("paging", ["npt", "ept", "pae"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", [None, 4])
def test_a_forced_range_is_never_in_a_superpage(paging, policy, seed):
    ranges = ((0x210, 1), (0x7FF, 2), (0x1000, 0x200), (0x1400, 0x90))
    rows, _ = built(policy, paging, phases=PHASES[:4], seed=seed, force_4k=ranges)
    order_of = {
        gfn: order for base, order, _, _ in rows for gfn in range(base, base + (1 << order))
    }
    for gfn, nr in ranges:
        assert {order_of.get(gfn + step, 0) for step in range(nr)} == {0}
    if policy != "off":
        assert order_of[0x400] == order_of[0x1600] == 9
        assert order_of[0x200] == order_of[0x600] == 0
    free, _ = built(policy, paging, phases=PHASES[:4], seed=seed)
    assert mapped_gfns(rows) == mapped_gfns(free)


def test_a_forced_range_stays_small_when_a_superpage_is_given_back_and_asked_for():
    world = World()
    world.create(force_4k=((0x2AB, 3),))
    for _ in range(2):
        assert world.populate([0x200], 9) == 1
        assert shape(world.leaves()) == [(gfn, 0, RAM) for gfn in range(0x200, 0x400)]
        assert world.decrease([0x200], 9) == 1
    assert world.populate([0x200], 9, flags=MemFlag.POPULATE_ON_DEMAND) == 1
    assert {order for _, order, _ in shape(world.leaves())} == {0}
    world.audit(1)


def test_opportunistic_finds_superpages_in_a_plain_list():
    world = World()
    world.create(superpages="opportunistic")
    gfns = [*range(0x1F0, 0x410), 0x800, *range(0x9FF, 0xC00), *reversed(range(0xE00, 0x1000))]
    assert world.populate(gfns) == len(gfns)
    orders = {gfn: order for gfn, order, _, _ in world.leaves()}
    assert [gfn for gfn, order in orders.items() if order] == [0x200, 0xA00]
    assert mapped_gfns(world.leaves()) == set(gfns)
    world.audit(1)


def test_opportunistic_falls_back_silently_on_a_fragmented_heap():
    world = World(memory_mib=16)
    world.create(1, max_mib=16)
    world.create(2, max_mib=16, superpages="opportunistic")
    free = world.free()[0]
    assert world.populate(spread(0, free)) == free
    assert world.decrease(spread(0, free // 2) * np.uint64(2)) == free // 2
    nr = min(1500, free // 2)
    assert world.populate(spread(0x200, nr), domid=2) == nr
    assert {order for _, order, _ in shape(world.leaves(2))} == {0}
    assert mapped_gfns(world.leaves(2)) == set(range(0x200, 0x200 + nr))
    world.audit(1, 2)


def test_opportunistic_stops_at_max_pages_and_at_the_last_gfn():
    world = World(paging="pae")
    world.create(max_mib=4, superpages="opportunistic")
    assert world.populate(spread(0x100000 - 600, 700)) == 600
    assert world.populate(spread(0x300, 2000)) == 1024 - 600
    assert world.info().tot_pages == 1024
    world.audit(1)


def test_off_maps_large_frames_by_4k():
    world = World()
    world.create(superpages="off")
    assert world.populate([0x200], 9) == 1
    rows = world.leaves()
    assert shape(rows) == [(gfn, 0, RAM) for gfn in range(0x200, 0x400)]
    assert [mfn - rows[0][2] for _, _, mfn, _ in rows] == list(range(512))
    world.audit(1)


@pytest.mark.parametrize(
    ("switches", "orders"),
    [
        ({}, {18, 0}),
        ({"hap_1gb": False}, {9, 0}),
        ({"hap_2mb": False}, {18, 0}),
        ({"hap_1gb": False, "hap_2mb": False}, {0}),
    ],
)
@pytest.mark.parametrize("policy", POLICIES)
def test_host_switches_go_before_the_policy(switches, orders, policy):
    work = scenario(guest(memory=1024), memory_mib=2048, superpages=policy, **switches)
    report, _ = launch(work)
    assert report.violations == []
    rows = leaf_rows(report.domains[0].table)
    assert {order for _, order, _ in shape(rows)} == ({0} if policy == "off" else orders)
    assert sum(1 << order for _, order, _ in shape(rows)) == 1024 * 256 + 17
