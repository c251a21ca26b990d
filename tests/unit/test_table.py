"""The p2m table: shattering, its cost and its limits; what an update displaces and retires."""

import numpy as np
import pytest

from protocols.errno import Errno
from protocols.frames import INVALID_FRAME
from protocols.p2m_types import P2mType as T
from services.p2m.geometry import GEOMETRIES
from services.p2m.ptp_pool import NO_SLOT
from services.p2m.table import P2mTable

NPT, EPT, PAE, X32 = (GEOMETRIES[name] for name in ("npt", "ept", "pae", "x86_32"))
POOL = 0x9000000
ALL = pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)


def frames(*values):
    return np.array(values, dtype=np.uint64)


def make(geometry=NPT, pool=64, **options):
    table = P2mTable(geometry, 1, **options)
    first = POOL if geometry.mfn_limit > POOL else 0xF0000
    table.pool_add(np.arange(first, first + pool, dtype=np.uint64))
    assert table.init_root()
    return table


def put(table, gfn, mfn, order=0, p2mt=T.RAM_RW):
    return table.set_range(frames(gfn), frames(mfn), order, p2mt)


def remove(table, gfn, order=0):
    return put(table, gfn, INVALID_FRAME, order, T.INVALID)


def get(table, gfn):
    mfns, types, orders = table.get(frames(gfn))
    return mfns.item(), types.item(), orders.item()


@ALL
def test_one_4k_update_in_a_superpage_leaves_its_neighbours(geometry):
    table = make(geometry)
    order = geometry.leaf_orders[1]
    size = 1 << order
    put(table, 4 * size, 8 * size, order)
    result = put(table, 4 * size + 7, 0x77)
    assert (result.errno, result.nr_done, result.stale) == (Errno.OK, 1, True)
    assert result.nr_shatters == {order: 1}
    assert result.displaced_gfns.tolist() == [4 * size + 7]
    assert result.displaced_mfns.tolist() == [8 * size + 7]
    gfns = np.arange(4 * size, 5 * size, dtype=np.uint64)
    mfns, types, orders = table.get(gfns)
    expected = gfns + 4 * size
    expected[7] = 0x77
    np.testing.assert_array_equal(mfns, expected)
    assert set(types.tolist()) == {T.RAM_RW}
    assert set(orders.tolist()) == {0}
    assert table.extents()[0] == size
    assert table.audit() == []


@pytest.mark.parametrize(
    ("geometry", "tables", "shatters"),
    [(NPT, 2, {18: 1, 9: 1}), (EPT, 513, {18: 1, 9: 512})],
    ids=["npt", "ept"],
)
def test_a_4k_update_in_a_1g_leaf_costs(geometry, tables, shatters):
    table = make(geometry, pool=600)
    put(table, 0x40000, 0x80000, 18)
    used = table.pool_used
    result = remove(table, 0x40123)
    assert table.pool_used - used == tables
    assert result.nr_shatters == shatters
    assert result.nr_updates == 1
    assert get(table, 0x40122) == (0x80122, T.RAM_RW, 0)
    assert get(table, 0x40123) == (INVALID_FRAME, T.MMIO_DM, 0)
    assert get(table, 0x40400) == (0x80400, T.RAM_RW, 9 if geometry is NPT else 0)
    expected = {0: 511, 9: 511, 18: 0} if geometry is NPT else {0: 0x3FFFF, 9: 0, 18: 0}
    assert table.extents() == expected
    assert table.audit() == []


def test_npt_and_ept_shatter_1g_to_2m_alike():
    for geometry in (NPT, EPT):
        table = make(geometry)
        put(table, 0, 0x40000, 18)
        result = put(table, 0x200, 0x600, 9)
        assert result.nr_shatters == {18: 1}
        assert table.extents() == {0: 0, 9: 512, 18: 0}
        assert result.displaced_gfns.tolist() == [0x200]
        assert result.displaced_mfns.tolist() == [0x40200]
        assert result.displaced_orders.tolist() == [9]


@pytest.mark.parametrize(
    ("geometry", "free", "orders_left"),
    [(NPT, 0, 18), (NPT, 1, 9), (EPT, 0, 18), (EPT, 512, 18)],
)
def test_enomem_on_a_shatter_changes_no_translation(geometry, free, orders_left):
    table = make(geometry, pool=2)
    put(table, 0x40000, 0x80000, 18)
    table.pool_add(np.arange(0xA000000, 0xA000000 + free, dtype=np.uint64))
    result = put(table, 0x40123, 0x77)
    assert (result.errno, result.nr_done, result.nr_updates) == (Errno.ENOMEM, 0, 0)
    assert result.displaced_gfns.size == 0
    assert result.stale == (orders_left == 9)
    gfns = np.arange(0x40000, 0x80000, dtype=np.uint64)
    mfns, _, orders = table.get(gfns)
    np.testing.assert_array_equal(mfns, gfns + 0x40000)
    assert set(orders.tolist()) == {orders_left}
    assert table.audit() == []


def test_enomem_tells_how_far_it_came():
    table = make(pool=5)
    gfns = np.arange(2048, dtype=np.uint64)
    result = table.set_range(gfns, gfns + 0x100000, 0, T.RAM_RW)
    assert (result.errno, result.nr_done, result.nr_frames) == (Errno.ENOMEM, 1024, 1024)
    assert get(table, 1023)[0] == 0x1003FF
    assert get(table, 1024) == (INVALID_FRAME, T.MMIO_DM, 9)
    two_at_4k = make(pool=4, allowed_orders=(0,))
    result = two_at_4k.set_range(frames(0, 512), frames(0, 512), 9, T.RAM_RW)
    assert (result.nr_done, result.nr_frames, result.errno) == (1, 512, Errno.ENOMEM)
    within = make(pool=4, allowed_orders=(0,)).set_range(frames(0), frames(0), 10, T.RAM_RW)
    assert (within.nr_done, within.nr_frames, within.errno) == (0, 512, Errno.ENOMEM)


def test_a_2m_set_over_4k_leaves_retires_the_table_until_it_is_returned():
    table = make()
    gfns = np.arange(512, dtype=np.uint64)
    table.set_range(gfns, gfns * 2, 0, T.RAM_RW)
    old_table = table.table_mfns().tolist()[-1]
    content = table.read_frame(old_table)
    free, used = table.pool_free, table.pool_used
    result = put(table, 0, 0x400, 9)
    assert result.retired.tolist() == [old_table]
    assert result.stale
    np.testing.assert_array_equal(np.sort(result.displaced_mfns), gfns * 2)
    assert set(result.displaced_orders.tolist()) == {0}
    assert (table.pool_free, table.pool_used, table.pool_outstanding) == (free, used, 1)
    assert table.read_frame(old_table) == content
    assert any("flush" in line for line in table.audit())
    table.pool_return(result.retired)
    assert (table.pool_free, table.pool_used, table.pool_outstanding) == (free + 1, used - 1, 0)
    assert table.read_frame(old_table) == bytes(4096)
    assert table.audit() == []


def test_a_1g_set_retires_the_whole_sub_tree_and_keeps_what_maps_the_same():
    table = make()
    put(table, 0, 0x40000, 18)
    remove(table, 0x123)
    put(table, 0x200, 0x1000, 9)
    result = put(table, 0, 0x40000, 18)
    assert result.retired.size == 2
    assert result.displaced_gfns.tolist() == [0x200]
    assert result.displaced_mfns.tolist() == [0x1000]
    assert result.displaced_orders.tolist() == [9]
    table.pool_return(result.retired)
    assert table.extents() == {0: 0, 9: 0, 18: 1}
    assert table.audit() == []


def test_a_retype_displaces_nothing_but_is_stale():
    table = make()
    gfns = np.arange(1024, dtype=np.uint64)
    for nr in (4, 1024):
        table.set_range(gfns[:nr], gfns[:nr] + 7, 0, T.RAM_RW)
        result = table.set_range(gfns[:nr], gfns[:nr] + 7, 0, T.RAM_LOGDIRTY)
        assert result.stale
        assert result.displaced_gfns.size == 0
        assert get(table, 3) == (10, T.RAM_LOGDIRTY, 0)


def test_removal_displaces_ram_only():
    table = make()
    gfns = np.arange(16, dtype=np.uint64)
    table.set_range(gfns[:8], gfns[:8] + 0x100, 0, T.RAM_RW)
    table.set_range(gfns[8:12], gfns[8:12] + 0x100, 0, T.GRANT_MAP_RW)
    table.set_range(gfns[12:], np.full(4, INVALID_FRAME, np.uint64), 0, T.POPULATE_ON_DEMAND)
    nothing = np.full(16, INVALID_FRAME, dtype=np.uint64)
    result = table.set_range(gfns, nothing, 0, T.INVALID)
    assert result.displaced_mfns.tolist() == list(range(0x100, 0x108))
    again = table.set_range(gfns, nothing, 0, T.INVALID)
    assert not again.stale
    assert again.displaced_gfns.size == 0
    assert table.leaves().gfns.size == 0


def test_a_pod_leaf_that_becomes_ram_is_not_stale():
    table = make()
    put(table, 0, INVALID_FRAME, 9, T.POPULATE_ON_DEMAND)
    assert get(table, 5) == (INVALID_FRAME, T.POPULATE_ON_DEMAND, 9)
    assert table.extents() == {0: 0, 9: 0, 18: 0}
    assert not put(table, 5, 0x99).stale
    assert get(table, 6) == (INVALID_FRAME, T.POPULATE_ON_DEMAND, 0)
    assert get(table, 5) == (0x99, T.RAM_RW, 0)


def test_chunk_orders_follow_gfn_mfn_and_length():
    def orders_of(gfn, mfn, order, **options):
        result = put(make(pool=700, record=True, **options), gfn, mfn, order)
        return [(order, gfns.size) for gfns, _, order, _ in result.updates]

    assert orders_of(0, 0x40000, 18) == [(18, 1)]
    assert orders_of(0x200, 0x40000, 18) == [(9, 512)]
    assert orders_of(0, 0x40000, 18, allowed_orders=(0, 9)) == [(9, 512)]
    assert orders_of(0, 0x40000, 18, allowed_orders=(0, 18)) == [(18, 1)]
    assert orders_of(0, 0x200, 9, allowed_orders=(0, 18)) == [(0, 512)]
    assert orders_of(0, 0x201, 9) == [(0, 512)]
    assert orders_of(1, INVALID_FRAME, 9) == [(0, 512)]
    assert orders_of(0x200, INVALID_FRAME, 9) == [(9, 1)]
    assert orders_of(0, 0, 8) == [(0, 256)]
    assert orders_of(0, 0, 10) == [(9, 2)]
    assert orders_of(0, 0, 9, force_4k=[(0x3FF, 1)]) == [(9, 1)]
    assert orders_of(0, 0, 10, force_4k=[(0x3FF, 1)]) == [(9, 1), (0, 512)]
    assert orders_of(0, 0, 18, force_4k=[(0x200, 0x201)]) == [(9, 1), (0, 1024), (9, 509)]


def test_extents_of_different_alignment_keep_their_order():
    table = make(record=True)
    gfns = frames(0, 0x201, 0x600, 0x800)
    result = table.set_range(gfns, frames(0, 0x400, 0x600, 0x800), 9, T.RAM_RW)
    assert [(order, int(gfns[0]), gfns.size) for gfns, _, order, _ in result.updates] == [
        (9, 0, 1),
        (0, 0x201, 512),
        (9, 0x600, 2),
    ]
    assert (result.nr_done, result.nr_updates) == (4, 515)


def test_the_failing_chunk_is_recorded_as_xen_traces_it():
    table = make(pool=3, record=True)
    result = table.set_range(frames(0, 1 << 27), frames(0, 0x200), 9, T.RAM_RW)
    assert (result.nr_done, result.errno) == (1, Errno.ENOMEM)
    assert result.updates[0][0].tolist() == [0, 1 << 27]


@ALL
def test_out_of_range_is_refused_without_change(geometry):
    table = make(geometry)
    last = geometry.gfn_limit - 1
    assert put(table, last, 5).errno is Errno.OK
    assert put(table, last + 1, 5).errno is Errno.EINVAL
    order = geometry.leaf_orders[1]
    too_far = table.set_range(frames(0, last), frames(0, 0), order, T.RAM_RW)
    assert (too_far.errno, too_far.nr_done) == (Errno.EINVAL, 0)
    assert put(table, 0, geometry.mfn_limit - 1).errno is Errno.OK
    assert put(table, 1, geometry.mfn_limit).errno is Errno.EINVAL
    many = np.arange(64, dtype=np.uint64)
    assert table.set_range(many, many + (geometry.mfn_limit - 63), 0, 0).errno is Errno.EINVAL
    assert get(table, 0)[0] == geometry.mfn_limit - 1
    assert table.leaves().gfns.tolist() == [0, last]


def test_types_that_the_format_cannot_hold_are_refused():
    assert put(make(X32), 0, INVALID_FRAME, 10, T.POPULATE_ON_DEMAND).errno is Errno.EINVAL
    assert put(make(), 0, 0, 9, T.MAP_FOREIGN).errno is Errno.EINVAL
    assert put(make(), 0, 1, 0, T.MAP_FOREIGN).errno is Errno.OK


def test_holes_report_their_size():
    table = make()
    assert get(table, 0) == (INVALID_FRAME, T.MMIO_DM, 27)
    assert get(table, 1) == (INVALID_FRAME, T.MMIO_DM, 0)
    assert get(table, 0x200)[2] == 9
    put(table, 0x40000, 0x80000, 0)
    assert get(table, 0x40001)[2] == 0
    assert get(table, 0x40200)[2] == 9
    assert get(table, 0x80000)[2] == 18
    assert get(table, 1 << 27)[2] == 27
    assert get(table, 1 << 40)[2] == 27
    assert get(table, 0)[2] == 18
    put(table, 1 << 28, 0, 9)
    assert get(table, 0x40200)[2] == 9
    assert get(table, 1 << 27)[2] == 27


def test_max_mapped_pfn_rises_and_never_falls():
    table = make()
    put(table, 0x200, 0x400, 9)
    assert table.max_mapped_pfn == 0x3FF
    remove(table, 0x200, 9)
    remove(table, 0x5000)
    assert table.max_mapped_pfn == 0x3FF


@ALL
def test_scattered_reads_agree_with_single_ones(geometry):
    table = make(geometry)
    order = geometry.leaf_orders[1]
    for block in range(0, 40, 2):
        put(table, block << order, (block + 1) << order, order if block % 4 else 0)
    gfns = (np.arange(40, dtype=np.uint64)[::-1] * 977) % (41 << order)
    together = table.get(gfns)
    for position, gfn in enumerate(gfns.tolist()):
        assert tuple(column[position].item() for column in together) == get(table, gfn)


@ALL
def test_teardown_gives_back_every_frame(geometry):
    table = make(geometry)
    put(table, 0, 0, geometry.leaf_orders[1])
    result = put(table, 0, 5)
    put(table, 0, 0, geometry.leaf_orders[1])
    expected = table.pool_mfns()
    assert result.nr_updates == 1
    given_back = table.teardown()
    assert sorted(given_back.tolist()) == sorted(expected.tolist())
    assert given_back.size == 64
    assert (table.pool_total, table.leaves().gfns.size, table.audit()) == (0, 0, [])
    table.pool_add(given_back)
    assert table.init_root()


def test_the_pool_gives_only_what_is_free():
    table = make(pool=4)
    put(table, 0, 0)
    assert (table.pool_total, table.pool_used, table.pool_free) == (4, 4, 0)
    assert table.pool_remove(3).size == 0
    table.pool_add(frames(1, 2, 3))
    assert table.pool_remove(2).tolist() == [1, 2]
    with pytest.raises(AssertionError, match="0x3 is in the paging pool"):
        table.pool_add(frames(3))
    with pytest.raises(AssertionError, match="0x3 was not retired"):
        table.pool_return(frames(3))
    assert not P2mTable(NPT, 1).init_root()


def test_raw_frames_are_what_a_walker_follows():
    table = make()
    put(table, 0, 0x40000, 18)
    root = np.frombuffer(table.read_frame(table.root_mfn), dtype="<u8")
    below = np.frombuffer(table.read_frame(int(root[0]) >> 12), dtype="<u8")
    assert root[0] & 0xFFF == 0x067
    assert below[0] == 0x40000 << 12 | 0x0E7
    assert len(table.read_frame(0x5)) == 4096


def test_a_pae_root_entry_holds_p_alone():
    table = make(PAE)
    put(table, 0xC0000, 0, 9)
    root = np.frombuffer(table.read_frame(table.root_mfn), dtype="<u8")
    assert root[3] & 0xFFF == 0x001
    assert not root[4:].any()


def test_the_audit_sees_broken_trees():
    table = make()
    put(table, 0, 0x40000, 18)
    put(table, 0x40000, 0, 9)
    pool, root = table._pool, table._root
    slot = pool.slot(int(table.table_mfns()[1]))
    pool.rows[slot, 7] = pool.rows[slot, 1]
    assert any("reached twice" in line for line in table.audit())
    pool.rows[slot, 7] = 0xBAD067
    assert any("no table" in line for line in table.audit())
    pool.rows[slot, 7] = 0
    pool.rows[slot, 0] += 1 << 14
    assert any("misaligned" in line for line in table.audit())
    pool.rows[root, 1] = 0x0E7
    assert any("leaf at level 4" in line for line in table.audit())
    pool.rows[root] = 0
    assert any("not reached" in line for line in table.audit())
    assert pool.slot(0xBAD) == NO_SLOT


def test_unordered_and_repeated_gfns_are_written_in_order():
    table = make()
    gfns = np.concatenate((np.arange(600, dtype=np.uint64)[::-1], frames(5, 5, 9)))
    mfns = np.arange(0x1000, 0x1000 + gfns.size, dtype=np.uint64)
    result = table.set_range(gfns, mfns, 0, T.RAM_RW)
    assert result.nr_done == 603
    assert get(table, 5)[0] == 0x1000 + 601
    assert get(table, 9)[0] == 0x1000 + 602
    lost = zip(result.displaced_gfns.tolist(), result.displaced_mfns.tolist(), strict=True)
    assert sorted(lost) == [(5, 0x1000 + 594), (5, 0x1000 + 600), (9, 0x1000 + 590)]
