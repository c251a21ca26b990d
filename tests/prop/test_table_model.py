"""Random updates on every paging format against a dict of 4K frames that knows no superpages."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errno import Errno
from protocols.frames import INVALID_FRAME
from protocols.p2m_types import RAM_TYPES, P2mType
from services.p2m.entry import representable
from services.p2m.geometry import GEOMETRIES
from services.p2m.table import P2mTable
from services.spec.physmap import Physmap

BLOCKS = 6
"""Superpages of the guest; 1G updates, where there are any, reach over them."""
TYPES = [
    P2mType.RAM_RW,
    P2mType.RAM_RW,
    P2mType.INVALID,
    P2mType.RAM_LOGDIRTY,
    P2mType.RAM_RO,
    P2mType.POPULATE_ON_DEMAND,
    P2mType.GRANT_MAP_RW,
    P2mType.MMIO_DIRECT,
]


@st.composite
def updates(draw, geometry):
    """(gfns, mfns, order, type) of one call: extents in a row, aligned or not."""
    big = geometry.leaf_orders[1]
    p2mt = draw(st.sampled_from([p2mt for p2mt in TYPES if representable(geometry, p2mt)]))
    order = draw(st.sampled_from([0, 0, 3, big, big, big + 1]))
    nr = draw(st.sampled_from([1, 2, 12])) if order < big else 1
    gfn = draw(st.integers(0, BLOCKS - 3)) << big
    mfn = draw(st.integers(1, 30)) << big
    if draw(st.booleans()):
        gfn += draw(st.integers(0, 1 << big))
        mfn += draw(st.integers(0, 1 << big))
    gfns = gfn + np.arange(nr, dtype=np.uint64) * (1 << order)
    if draw(st.booleans()):
        gfns = gfns[::-1]
    mfns = mfn + np.arange(nr, dtype=np.uint64) * (1 << order)
    if p2mt in {P2mType.INVALID, P2mType.POPULATE_ON_DEMAND}:
        mfns = np.full(nr, INVALID_FRAME, dtype=np.uint64)
    return gfns, mfns, order, p2mt


@st.composite
def scenarios(draw, geometry):
    return {
        "pool": draw(st.sampled_from([3, 5, 64])),
        "allowed": draw(st.sampled_from([None, (0,), geometry.leaf_orders[:2]])),
        "force_4k": draw(st.sampled_from([(), ((700, 3),)])),
        "record": draw(st.booleans()),
        "updates": draw(st.lists(updates(geometry), min_size=1, max_size=8)),
    }


def ram(physmap):
    """The RAM pairs (gfn, mfn) of a physmap."""
    return {(g, m) for g, (m, t) in physmap.frames.items() if t in RAM_TYPES}


def check(geometry, scenario):
    table = P2mTable(
        geometry,
        1,
        allowed_orders=scenario["allowed"],
        force_4k=scenario["force_4k"],
        record=scenario["record"],
    )
    base = 0xF0000
    table.pool_add(np.arange(base, base + scenario["pool"], dtype=np.uint64))
    assert table.init_root()
    physmap = Physmap()
    everything = np.arange(BLOCKS << geometry.leaf_orders[1], dtype=np.uint64)
    for gfns, mfns, order, p2mt in scenario["updates"]:
        before = ram(physmap)
        present_before = any(
            physmap.get(gfn + i)[1] not in {P2mType.MMIO_DM, P2mType.POPULATE_ON_DEMAND}
            for gfn in gfns.tolist()
            for i in range(1 << order)
        )
        result = table.set_range(gfns, mfns, order, p2mt)
        assert result.errno in {Errno.OK, Errno.ENOMEM}
        assert (result.nr_done == gfns.size) == (result.errno is Errno.OK)
        left = result.nr_frames
        for gfn, mfn in zip(gfns.tolist(), mfns.tolist(), strict=True):
            physmap.set_entry(gfn, mfn, min(left, 1 << order), p2mt)
            left -= min(left, 1 << order)
        displaced = {
            (gfn + i, mfn + i)
            for gfn, mfn, run_order in zip(
                result.displaced_gfns.tolist(),
                result.displaced_mfns.tolist(),
                result.displaced_orders.tolist(),
                strict=True,
            )
            for i in range(1 << run_order)
        }
        assert displaced == before - ram(physmap)
        assert result.stale or not displaced
        assert present_before or not result.stale or table.pool_outstanding
        assert sum(update[0].size for update in result.updates) == (
            (result.nr_updates + (result.errno is not Errno.OK)) if scenario["record"] else 0
        )
        assert result.retired.size == table.pool_outstanding
        table.pool_return(result.retired)
        assert table.audit() == []
    mfns, types, _ = table.get(everything)
    expected_mfns, expected_types = physmap.get_many(everything.tolist())
    np.testing.assert_array_equal(mfns, np.array(expected_mfns, dtype=np.uint64))
    assert types.tolist() == expected_types
    check_leaves(table, physmap)


def check_leaves(table, physmap):
    """The leaves cover each frame of the physmap once; no superpage where none may be."""
    leaves = table.leaves()
    assert (np.diff(leaves.gfns.astype(np.int64)) > 0).all()
    covered = np.left_shift(1, leaves.orders.astype(np.int64)).sum()
    assert covered == len(physmap.frames)
    assert set(leaves.orders.tolist()) <= set(table.allowed_orders)
    for gfn, nr in table.force_4k:
        orders = table.get(np.arange(gfn, gfn + nr, dtype=np.uint64))[2]
        mapped = [gfn + i in physmap.frames for i in range(nr)]
        assert not orders[mapped].any()


@pytest.mark.parametrize("name", GEOMETRIES)
def test_updates_mean_the_same_as_frame_by_frame(name):
    geometry = GEOMETRIES[name]

    @settings(max_examples=60, deadline=None)
    @given(scenarios(geometry))
    def run(scenario):
        check(geometry, scenario)

    run()


@pytest.mark.parametrize("name", ["npt", "ept"])
@settings(max_examples=20, deadline=None)
@given(
    pool=st.sampled_from([10, 700]),
    punches=st.lists(st.integers(0, (1 << 18) - 1), min_size=1, max_size=5),
    again=st.booleans(),
)
def test_a_1g_page_survives_punches(name, pool, punches, again):
    table = P2mTable(GEOMETRIES[name], 1)
    table.pool_add(np.arange(pool, dtype=np.uint64) + 0x9000000)
    assert table.init_root()
    table.set_range(np.zeros(1, np.uint64), np.array([0x40000], np.uint64), 18, P2mType.RAM_RW)
    nothing = np.full(1, INVALID_FRAME, dtype=np.uint64)
    holes = set()
    for gfn in punches:
        result = table.set_range(np.array([gfn], np.uint64), nothing, 0, P2mType.INVALID)
        if result.errno is Errno.OK:
            holes.add(gfn)
    gfns = np.arange(1 << 18, dtype=np.uint64)
    expected = gfns + 0x40000
    expected[sorted(holes)] = INVALID_FRAME
    np.testing.assert_array_equal(table.get(gfns)[0], expected)
    if again:
        result = table.set_range(
            np.zeros(1, np.uint64), np.array([0x40000], np.uint64), 18, P2mType.RAM_RW
        )
        assert result.displaced_gfns.size == 0
        table.pool_return(result.retired)
        assert table.extents()[18] == 1
    assert table.audit() == []
