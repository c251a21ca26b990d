"""Entries, bit by bit, against the values of a real Xen and of the manuals."""

import numpy as np
import pytest

from protocols.frames import INVALID_FRAME
from protocols.p2m_types import P2mType as T
from services.p2m.entry import (
    bits_63_52,
    decode_leaves,
    decode_one,
    encode_leaf,
    encode_table,
    flags_low12,
    is_filled,
    is_leaf,
    is_present,
    leaf_mfn,
    leaf_type,
    representable,
    split_children,
)
from services.p2m.geometry import GEOMETRIES

NPT, EPT, PAE, X32 = (GEOMETRIES[name] for name in ("npt", "ept", "pae", "x86_32"))
M = 0x123400
NX = 1 << 63


def one(geometry, mfn, p2mt, order=0):
    return encode_leaf(geometry, np.array([mfn], dtype=np.uint64), p2mt, order).item()


@pytest.mark.parametrize(
    ("p2mt", "mfn", "order", "expected"),
    [
        (T.RAM_RW, M, 0, M << 12 | 0x067),
        (T.RAM_RW, M, 9, M << 12 | 0x0E7),
        (T.RAM_RW, 0x40000, 18, 0x40000 << 12 | 0x0E7),
        (T.RAM_LOGDIRTY, M, 0, 2 << 52 | M << 12 | 0x065),
        (T.RAM_LOGDIRTY, M, 9, 2 << 52 | M << 12 | 0x0E5),
        (T.RAM_RO, M, 0, 3 << 52 | M << 12 | 0x065),
        (T.RAM_SHARED, M, 0, 12 << 52 | M << 12 | 0x065),
        (T.GRANT_MAP_RW, M, 0, NX | 7 << 52 | M << 12 | 0x067),
        (T.MAP_FOREIGN, M, 0, NX | 14 << 52 | M << 12 | 0x067),
        (T.GRANT_MAP_RO, M, 0, NX | 8 << 52 | M << 12 | 0x065),
        (T.IOREQ_SERVER, M, 0, NX | 15 << 52 | M << 12 | 0x067),
        (T.MMIO_DIRECT, M, 0, 5 << 52 | M << 12 | 0x077),
        (T.MMIO_DIRECT, INVALID_FRAME, 0, 5 << 52 | ((1 << 40) - 1) << 12 | 0x077),
        (T.INVALID, M, 0, 0),
        (T.MMIO_DM, M, 9, 0),
        (T.POPULATE_ON_DEMAND, INVALID_FRAME, 0, 0x806FFFFFFFFFF000),
        (T.POPULATE_ON_DEMAND, INVALID_FRAME, 9, 0x806FFFFFFFFFE080),
        (T.POPULATE_ON_DEMAND, INVALID_FRAME, 18, 0x806FFFFFFFFFE080),
        (T.RAM_PAGED, INVALID_FRAME, 0, 0x80AFFFFFFFFFF000),
        (T.RAM_RW, INVALID_FRAME, 0, 0),
        (T.RAM_RO, INVALID_FRAME, 9, 0),
    ],
)
def test_npt_leaf(p2mt, mfn, order, expected):
    assert f"{one(NPT, mfn, p2mt, order):#x}" == f"{expected:#x}"


@pytest.mark.parametrize(
    ("p2mt", "order", "expected"),
    [
        (T.RAM_RW, 0, 0x9C00000000000000 | M << 12 | 0x377),
        (T.RAM_RW, 9, 0x9C00000000000000 | M << 12 | 0x3F7),
        (T.RAM_LOGDIRTY, 0, 0x9C20000000000000 | M << 12 | 0x175),
        (T.RAM_RO, 0, 0x9C30000000000000 | M << 12 | 0x175),
        (T.GRANT_MAP_RW, 0, 0x9C70000000000000 | M << 12 | 0x373),
        (T.GRANT_MAP_RO, 0, 0x9C80000000000000 | M << 12 | 0x171),
        (T.MMIO_DIRECT, 0, 0x9C50000000000000 | M << 12 | 0x307),
        (T.INVALID, 0, 1 << 63),
    ],
)
def test_ept_leaf(p2mt, order, expected):
    assert f"{one(EPT, M, p2mt, order):#x}" == f"{expected:#x}"


def test_ept_pod_superpage_is_typed_but_grants_nothing():
    entry = one(EPT, INVALID_FRAME, T.POPULATE_ON_DEMAND, 9)
    assert entry & 0x7 == 0
    assert entry & 0x80
    assert (entry >> 52) & 0x3F == 6
    assert not is_present(EPT, entry)
    assert is_filled(EPT, entry)
    assert decode_one(EPT, entry, 2) == (INVALID_FRAME, T.POPULATE_ON_DEMAND)


def test_table_entries():
    assert encode_table(NPT, M) == encode_table(NPT, M, 4) == M << 12 | 0x067
    assert encode_table(EPT, M, 3) == 0x9C00000000000000 | M << 12 | 0x107
    assert encode_table(PAE, M, 2) == M << 12 | 0x067
    assert encode_table(PAE, M, 3) == M << 12 | 0x001
    assert encode_table(X32, 0xABCDE) == 0xABCDE067


def test_pae_type_is_in_the_flag_word_above_a_32_bit_frame():
    assert one(PAE, M, T.RAM_RO) == 3 << 44 | M << 12 | 0x065
    assert one(PAE, 0xFFFFFFFF, T.GRANT_MAP_RW) == NX | 7 << 44 | 0xFFFFFFFF << 12 | 0x067
    pod = one(PAE, INVALID_FRAME, T.POPULATE_ON_DEMAND, 9)
    assert pod == NX | 6 << 44 | 0xFFFFFFFE << 12 | 0x080


def test_2_level_has_the_types_of_2008():
    assert one(X32, M & 0xFFC00, T.RAM_RW, 10) == (M & 0xFFC00) << 12 | 1 << 9 | 0x0E7
    assert one(X32, 5, T.RAM_LOGDIRTY) == 5 << 12 | 2 << 9 | 0x065
    assert one(X32, 5, T.RAM_RO) == 5 << 12 | 3 << 9 | 0x065
    assert one(X32, 5, T.MMIO_DIRECT) == 5 << 12 | 5 << 9 | 0x077
    assert one(X32, INVALID_FRAME, T.MMIO_DIRECT, 10) == 0xFFC00000 | 5 << 9 | 0x0F7
    assert encode_leaf(X32, np.array([1], dtype=np.uint64), T.RAM_RW, 0).dtype == np.uint32


def test_2_level_refuses_what_three_bits_cannot_say():
    for p2mt in T:
        if representable(X32, p2mt):
            one(X32, 1, p2mt)
        else:
            with pytest.raises(ValueError, match=p2mt.name):
                one(X32, 1, p2mt)
    assert not representable(X32, T.POPULATE_ON_DEMAND)
    assert all(representable(geometry, p2mt) for geometry in (NPT, EPT, PAE) for p2mt in T)


def test_there_is_no_leaf_of_a_foreign_order():
    with pytest.raises(ValueError, match="order 10"):
        one(NPT, 0, T.RAM_RW, 10)
    with pytest.raises(ValueError, match="order 18"):
        one(PAE, 0, T.RAM_RW, 18)


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_decoding_gives_back_what_was_encoded(geometry):
    for level, order in enumerate(geometry.leaf_orders, start=1):
        mfn = 3 << order
        for p2mt in T:
            if not representable(geometry, p2mt) or p2mt in {T.INVALID, T.MMIO_DM}:
                continue
            entry = one(geometry, mfn, p2mt, order)
            no_mfn = p2mt in {T.POPULATE_ON_DEMAND, T.RAM_PAGED, T.RAM_PAGING_IN}
            expected = (INVALID_FRAME if no_mfn else mfn, p2mt)
            assert decode_one(geometry, entry, level) == expected
            entries = np.array([entry], dtype=geometry.entry_dtype)
            assert leaf_mfn(geometry, entries, level).item() == expected[0]
            assert leaf_type(geometry, entries).item() == p2mt
            assert tuple(a.item() for a in decode_leaves(geometry, entries, level)) == expected
            assert is_leaf(geometry, entry, level)
    assert not is_leaf(geometry, encode_table(geometry, 1, geometry.levels), geometry.levels)
    assert not is_filled(geometry, geometry.empty)
    assert decode_one(geometry, geometry.empty, 1)[1] == T.INVALID


def test_an_empty_entry_is_not_ram_of_frame_0():
    assert decode_one(NPT, 0, 1)[1] == T.INVALID
    assert decode_one(NPT, 0x067, 1) == (0, T.RAM_RW)


def test_invalid_mfn_amid_valid_ones_empties_its_entry_only():
    mfns = np.array([1, INVALID_FRAME, 3], dtype=np.uint64)
    assert encode_leaf(NPT, mfns, T.RAM_RW, 0).tolist() == [0x1067, 0, 0x3067]
    assert encode_leaf(EPT, mfns, T.RAM_RW, 0).tolist()[1] == 1 << 63


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_children_of_a_split_are_the_leaves_of_the_same_frames(geometry):
    for level in range(2, len(geometry.leaf_orders) + 1):
        order, below = geometry.leaf_orders[level - 1], geometry.leaf_orders[level - 2]
        base = 5 << order
        parents = np.array([one(geometry, base, T.RAM_LOGDIRTY, order)], geometry.entry_dtype)
        mfns = base + np.arange(geometry.nr_entries, dtype=np.uint64) * (1 << below)
        expected = encode_leaf(geometry, mfns, T.RAM_LOGDIRTY, below)
        np.testing.assert_array_equal(split_children(geometry, parents[0].item(), level), expected)
        np.testing.assert_array_equal(split_children(geometry, parents, level), [expected])


def test_pat_moves_between_bit_12_and_bit_7_on_a_split():
    with_pat = M << 12 | 0x0E7 | 1 << 12
    children = split_children(NPT, with_pat, 2).tolist()
    assert children[0] == M << 12 | 0x0E7
    assert children[3] == (M + 3) << 12 | 0x0E7
    one_g = 0x40000 << 12 | 0x0E7 | 1 << 12
    assert split_children(NPT, one_g, 3).tolist()[1] == 0x40200 << 12 | 0x0E7 | 1 << 12


def test_a_split_pod_leaf_keeps_its_type_in_every_child():
    children = split_children(NPT, 0x806FFFFFFFFFE080, 2)
    assert set(bits_63_52(children).tolist()) == {0x806}
    assert set(flags_low12(children).tolist()) == {0}
    assert children.tolist()[0] == 0x806FFFFFFFFFE000
    assert children.tolist()[1] == 0x806FFFFFFFFFF000
    assert split_children(NPT, 0x806FFFFFFFFFE080, 3).tolist() == [0x806FFFFFFFFFE080] * 512


def test_an_ept_pod_frame_wraps_inside_its_field():
    parent = one(EPT, INVALID_FRAME, T.POPULATE_ON_DEMAND, 9)
    children = split_children(EPT, parent, 2)
    assert (leaf_type(EPT, children) == T.POPULATE_ON_DEMAND).all()
    assert (leaf_mfn(EPT, children, 1) == INVALID_FRAME).all()
    assert children.tolist()[1] == parent & ~EPT.frame_mask & ~0x80


def test_dump_columns_of_ints_and_arrays():
    entry = one(NPT, M, T.GRANT_MAP_RO)
    assert (flags_low12(entry), bits_63_52(entry)) == (0x065, 0x808)
    array = np.array([entry], dtype=np.uint64)
    assert (flags_low12(array).item(), bits_63_52(array).item()) == (0x065, 0x808)
    assert bits_63_52(np.array([0xFFFFFFFF], dtype=np.uint32)).item() == 0
