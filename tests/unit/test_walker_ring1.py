"""Nested walks over tables built by hand: every format, every leaf size, both readers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.frames import INVALID_FRAME
from services.walker.format import FORMATS, WalkStatus
from services.walker.frame_cache import NO_SLOT, FrameCache
from services.walker.nested_walk import FlatView, gfn_to_mfn_current, walk, walk_foreign

NPT, EPT, PAE, X86_32 = FORMATS.values()
ALL = pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
DONE, NOT_PRESENT, NEED_FRAME = WalkStatus
ROOT = 0x777

TABLE = {"npt": 0x067, "ept": 0xB8 << 56 | 0x107, "pae": 0x067, "x86_32": 0x067}
LEAF = {"npt": 0x067, "ept": 0xB8 << 56 | 0x377, "pae": 0x067, "x86_32": 0x267}
HOLE = {"npt": 0, "ept": 1 << 63, "pae": 0, "x86_32": 0}
PSE = 0x80


class Pages:
    """Guest-physical tables as raw words by mfn, tables allocated as entries are written."""

    def __init__(self, fmt):
        self.fmt = fmt
        self.frames = {}
        self.next_mfn = 0x5000
        self.table(ROOT)

    def table(self, mfn):
        dtype = "<u4" if self.fmt.entry_bits == 32 else "<u8"
        nr = 8 * 4096 // self.fmt.entry_bits
        self.frames[mfn] = np.full(nr, HOLE[self.fmt.name], dtype=dtype)

    def index(self, gfn, level):
        return gfn >> self.fmt.shifts[level - 1] & (1 << self.fmt.index_bits[level - 1]) - 1

    def write(self, gfn, level, word):
        """Write the entry of gfn at a level, making the tables above it. False: a leaf is there."""
        mfn = ROOT
        for above in range(self.fmt.levels, level, -1):
            at = self.index(gfn, above)
            entry = int(self.frames[mfn][at])
            if entry == HOLE[self.fmt.name]:
                self.next_mfn += 37
                self.table(self.next_mfn)
                self.frames[mfn][at] = self.next_mfn << 12 | TABLE[self.fmt.name]
                mfn = self.next_mfn
            elif entry & PSE:
                return False
            else:
                mfn = (entry & self.fmt.frame_mask) >> 12
        at = self.index(gfn, level)
        if int(self.frames[mfn][at]) != HOLE[self.fmt.name]:
            return False
        self.frames[mfn][at] = word
        return True

    def map(self, gfn, mfn, order):
        level = self.fmt.shifts.index(order) + 1
        pse = PSE if level > 1 else 0
        return self.write(gfn, level, mfn << 12 | LEAF[self.fmt.name] | pse)

    def data(self, mfns):
        return b"".join(self.frames[mfn].tobytes() for mfn in mfns.tolist())

    def cache(self):
        cache = FrameCache(self.fmt.entry_bits)
        mfns = frames(*self.frames)
        cache.put_many(mfns, self.data(mfns))
        return cache

    def walk(self, *gfns):
        return walk(self.fmt, self.cache(), ROOT, frames(*gfns))


def frames(*numbers):
    return np.array(numbers, dtype=np.uint64)


def columns(result):
    return [a.tolist() for a in (result.mfns, result.orders, result.status)]


@ALL
def test_every_leaf_size_translates_with_its_offset(fmt):
    for level in range(1, fmt.leaf_levels + 1):
        order = fmt.shifts[level - 1]
        pages = Pages(fmt)
        gfn = 1 << order
        assert pages.map(gfn, 3 << order, order)
        last = (2 << order) - 1
        result = pages.walk(gfn, last, last + 1, 0)
        nothing = INVALID_FRAME
        assert result.mfns.tolist() == [3 << order, (4 << order) - 1, nothing, nothing]
        assert result.orders.tolist() == [order, order, 0, 0]
        assert result.status.tolist() == [DONE, DONE, NOT_PRESENT, NOT_PRESENT]
        assert result.refs.tolist()[:2] == [fmt.levels - level + 1] * 2
        assert result.needed.size == 0


def test_the_exact_words_of_ordinary_ram():
    npt, ept = Pages(NPT), Pages(EPT)
    npt.write(0, 2, 0x40000 << 12 | 0x0E7)
    npt.write(1 << 18, 3, 0x80000 << 12 | 0x0E7)
    npt.write(512, 1, 0x1234 << 12 | 0x067)
    ept.write(0, 2, 0xB800000000000000 | 0x40000 << 12 | 0x3F7)
    ept.write(1 << 18, 3, 0x9C00000000000000 | 0x80000 << 12 | 0x3F7)
    ept.write(512, 1, 0xB800000000000000 | 0x1234 << 12 | 0x377)
    for pages in (npt, ept):
        result = pages.walk(5, (1 << 18) + 0x3FFFF, 512)
        assert columns(result) == [[0x40005, 0xBFFFF, 0x1234], [9, 18, 0], [DONE] * 3]
        assert result.refs.tolist() == [3, 2, 4]
        assert result.nr_refs == 9


@pytest.mark.parametrize("fmt", [NPT, PAE], ids=["npt", "pae"])
def test_the_pat_bit_of_a_superpage_is_no_frame_bit(fmt):
    pages = Pages(fmt)
    pages.write(0, 2, 0x40000 << 12 | 1 << 12 | 0x0E7)
    pages.write(512, 1, 0x40001 << 12 | 0x067 | PSE)
    result = pages.walk(0, 7, 512)
    assert columns(result) == [[0x40000, 0x40007, 0x40001], [9, 9, 0], [DONE] * 3]


def test_a_4m_leaf_has_frame_bits_22_to_31():
    pages = Pages(X86_32)
    pages.write(0xFFC00, 2, 0xFFFFF << 12 | 0x2E7)
    assert columns(pages.walk(0xFFFFF)) == [[0xFFFFF], [10], [DONE]]
    assert columns(pages.walk(0xFFC00)) == [[0xFFC00], [10], [DONE]]


def test_the_pae_frame_field_ends_at_bit_43():
    pages = Pages(PAE)
    pages.write(0xFFFFF, 1, 1 << 63 | 5 << 44 | 0xFFFFFFFE << 12 | 0x077)
    assert columns(pages.walk(0xFFFFF)) == [[0xFFFFFFFE], [0], [DONE]]


@pytest.mark.parametrize(
    ("fmt", "word"),
    [(NPT, 0x806FFFFFFFFFE080), (EPT, 0x9C6FFFFFFFFFF0C0 & ~7), (PAE, 0x80006FFFFFFFE080)],
)
def test_populate_on_demand_faults(fmt, word):
    pages = Pages(fmt)
    pages.write(0, 2, word)
    assert columns(pages.walk(3)) == [[INVALID_FRAME], [0], [NOT_PRESENT]]


@pytest.mark.parametrize("bit", [1, 2, 4])
def test_any_of_r_w_x_makes_an_ept_entry_present(bit):
    pages = Pages(EPT)
    pages.write(9, 1, 0x55 << 12 | bit)
    pages.write(10, 1, 0x55 << 12 | 0x370)
    assert pages.walk(9, 10).status.tolist() == [DONE, NOT_PRESENT]


@pytest.mark.parametrize("fmt", [NPT, EPT, PAE], ids=["npt", "ept", "pae"])
def test_pse_faults_where_it_is_reserved(fmt):
    pages = Pages(fmt)
    level = fmt.leaf_levels + 1
    pages.write(0, level, 0x40000 << 12 | LEAF[fmt.name] | PSE)
    pages.map(1 << fmt.shifts[level - 1], 0x80, 0)
    gfns = frames(0, 1 << fmt.shifts[level - 1])
    cache = pages.cache()
    assert walk(fmt, cache, ROOT, gfns).status.tolist() == [NOT_PRESENT, DONE]
    flat = gfn_to_mfn_current(fmt, cache, FlatView(fmt), ROOT, gfns)
    assert flat.status.tolist() == [NOT_PRESENT, DONE]


@ALL
def test_a_gfn_out_of_range_is_not_present(fmt):
    pages = Pages(fmt)
    pages.map(0, 0x80, 0)
    gfns = frames(0, fmt.gfn_limit, INVALID_FRAME)
    for result in (
        pages.walk(*gfns.tolist()),
        gfn_to_mfn_current(fmt, pages.cache(), FlatView(fmt), ROOT, gfns),
    ):
        assert result.status.tolist() == [DONE, NOT_PRESENT, NOT_PRESENT]
        assert result.refs.tolist()[1:] == [0, 0]


@ALL
def test_missing_frames_are_asked_for_level_by_level(fmt):
    pages = Pages(fmt)
    gfns = frames(0, 1 << fmt.shifts[1], 2 << fmt.shifts[1], 5, 0)
    for gfn in (0, 1 << fmt.shifts[1], 5):
        pages.map(gfn, 0x90000 + gfn, 0)
    cache = FrameCache(fmt.entry_bits)
    asked = []
    while (result := walk(fmt, cache, ROOT, gfns)).needed.size:
        assert cache.missing(result.needed).tolist() == result.needed.tolist()
        assert result.mfns[result.status == NEED_FRAME].tolist() == [INVALID_FRAME] * int(
            (result.status == NEED_FRAME).sum()
        )
        asked.append(result.needed.size)
        cache.put_many(result.needed, pages.data(result.needed))
    assert asked == [1] * (fmt.levels - 1) + [2]
    assert result.status.tolist() == [DONE, DONE, NOT_PRESENT, DONE, DONE]
    assert result.nr_refs == 4 * fmt.levels + fmt.levels - 1
    assert cache.mfns().tolist() == sorted(pages.frames)


def test_an_unfinished_walk_costs_nothing_yet():
    pages = Pages(NPT)
    pages.map(0, 0x80, 0)
    cache = FrameCache()
    assert walk(NPT, cache, ROOT, frames(0, 1)).needed.tolist() == [ROOT]
    cache.put_many(frames(ROOT), pages.data(frames(ROOT)))
    result = walk(NPT, cache, ROOT, frames(0, 1 << 27))
    assert result.status.tolist() == [NEED_FRAME, NOT_PRESENT]
    assert result.nr_refs == 1


@ALL
def test_the_foreign_reader_reads_every_frame_once(fmt):
    pages = Pages(fmt)
    pages.map(0, 0x80, 0)
    pages.map(1 << fmt.shifts[1], 8 << fmt.shifts[1], fmt.shifts[1])
    gfns = frames(0, (1 << fmt.shifts[1]) + 3, 1)
    asked = []

    def drive():
        data = None
        reads = walk_foreign(fmt, ROOT, gfns)
        while True:
            needed = reads.send(data)
            asked.extend(needed.tolist())
            data = pages.data(needed)

    with pytest.raises(StopIteration) as end:
        drive()
    assert columns(end.value.value) == columns(pages.walk(*gfns.tolist()))
    assert sorted(asked) == sorted(pages.frames)


@ALL
def test_the_flat_reader_spares_the_upper_levels(fmt):
    pages = Pages(fmt)
    order = fmt.shifts[1]
    pages.map(0, 0x80, 0)
    pages.map(1 << order, 8 << order, order)
    cache, view = pages.cache(), FlatView(fmt)
    result = gfn_to_mfn_current(fmt, cache, view, ROOT, frames(0, 1 << order))
    assert columns(result) == [[0x80, 8 << order], [0, order], [DONE, DONE]]
    assert result.refs.tolist() == [2, 1]


def test_the_flat_reader_consults_the_l2_entry_first():
    """RFC S14: behind a superpage the flat L1 array is guest memory, and the guest writes that."""
    pages = Pages(NPT)
    pages.map(0, 0x40000, 9)
    pages.map(1 << 18, 0x80000, 18)
    cache = pages.cache()
    forged = np.full(512, 0xBAD000 | 0x067, dtype="<u8").tobytes()
    cache.put_many(frames(0x40000, 0x80000), forged * 2)
    result = gfn_to_mfn_current(NPT, cache, FlatView(NPT), ROOT, frames(3, (1 << 18) + 3))
    assert columns(result) == [[0x40003, 0x80003], [9, 18], [DONE, DONE]]


def test_the_flat_view_does_not_outlive_what_it_shows():
    pages = Pages(NPT)
    pages.map(5, 0x80, 0)
    cache, view = pages.cache(), FlatView(NPT)
    read = lambda: gfn_to_mfn_current(NPT, cache, view, ROOT, frames(5, 1 << 18))  # noqa: E731
    assert read().status.tolist() == [DONE, NOT_PRESENT]
    cache.drop_all()
    assert read().needed.tolist() == [ROOT]
    pages.map(1 << 18, 0x40000, 18)
    mfns = frames(*pages.frames)
    cache.put_many(mfns, pages.data(mfns))
    assert columns(read()) == [[0x80, 0x40000], [0, 18], [DONE, DONE]]
    pages.frames[ROOT][:] = 0
    cache.put_many(frames(ROOT), pages.data(frames(ROOT)))
    assert read().status.tolist() == [NOT_PRESENT, NOT_PRESENT]


def test_a_flat_view_follows_the_root():
    one, other = Pages(PAE), Pages(PAE)
    one.map(0, 0x80, 0)
    cache = one.cache()
    other.next_mfn = 0x9000
    other.frames[0x778] = other.frames.pop(ROOT)
    for table in (other.frames[0x778],):
        table[0] = 0x9001 << 12 | 1
    other.table(0x9001)
    other.frames[0x9001][0] = 0x200 << 12 | 0x0E7
    mfns = frames(*other.frames)
    cache.put_many(mfns, other.data(mfns))
    view = FlatView(PAE)
    assert gfn_to_mfn_current(PAE, cache, view, ROOT, frames(0)).mfns.tolist() == [0x80]
    assert gfn_to_mfn_current(PAE, cache, view, 0x778, frames(0)).mfns.tolist() == [0x200]


def test_streams_longer_than_a_block():
    pages = Pages(NPT)
    for gfn in range(0, 1 << 13, 512):
        pages.map(gfn, 0x40000 + gfn, 9)
    rng = np.random.default_rng(7)
    gfns = rng.integers(0, 1 << 13, 100_000).astype(np.uint64)
    gfns[70_000] = 1 << 40
    cache = pages.cache()
    for result in (
        walk(NPT, cache, ROOT, gfns),
        gfn_to_mfn_current(NPT, cache, FlatView(NPT), ROOT, gfns),
    ):
        assert np.flatnonzero(result.status != DONE).tolist() == [70_000]
        result.mfns[70_000] = 0x40000 + (1 << 40)
        assert (result.mfns == gfns + 0x40000).all()
    empty = walk(NPT, cache, ROOT, frames())
    assert (empty.mfns.size, empty.needed.size, empty.nr_refs) == (0, 0, 0)


def test_the_frame_cache_finds_what_collides():
    cache = FrameCache()
    rng = np.random.default_rng(3)
    mfns = np.unique(rng.integers(0, 1 << 40, 3000).astype(np.uint64) << np.uint64(9))
    for part in np.array_split(mfns[::2], 7):
        rows = np.repeat(part[:, None], 512, axis=1).astype("<u8")
        cache.put_many(part, rows.tobytes())
    slots = cache.slots(mfns)
    assert (slots[1::2] == NO_SLOT).all()
    assert (cache.words.reshape(-1, 512)[slots[::2], 17] == mfns[::2]).all()
    assert [cache.slot(mfn) for mfn in mfns.tolist()] == slots.tolist()
    assert cache.slots(frames(INVALID_FRAME)).tolist() == [NO_SLOT]
    assert (cache.missing(mfns) == mfns[1::2]).all()
    assert len(cache) == mfns[::2].size
    cache.drop_all()
    assert (cache.slots(mfns) == NO_SLOT).all()
    assert (len(cache), cache.mfns().size) == (0, 0)


def test_frames_come_whole():
    cache = FrameCache(32)
    with pytest.raises(ValueError, match="4095 bytes for 1"):
        cache.put_many(frames(1), bytes(4095))
    assert len(cache) == 0


@st.composite
def small_tables(draw):
    fmt = draw(st.sampled_from(list(FORMATS.values())))
    pages = Pages(fmt)
    orders = fmt.shifts[: fmt.leaf_levels]
    expected = {}
    near = st.integers(0, 3)
    for _ in range(draw(st.integers(0, 12))):
        order = draw(st.sampled_from(orders))
        gfn = sum(draw(near) << shift for shift in fmt.shifts[:-1]) % fmt.gfn_limit
        mfn = draw(st.integers(1, (1 << fmt.frame_bits) - 1)) >> order << order
        if pages.map(gfn, mfn, order):
            expected[gfn >> order << order] = (mfn, order)
    held = draw(st.sets(st.sampled_from(sorted(pages.frames))))
    gfns = [sum(draw(near) << shift for shift in fmt.shifts[:-1]) for _ in range(8)]
    gfns += [gfn + 1 for gfn in expected]
    return pages, expected, held, [gfn % fmt.gfn_limit for gfn in gfns]


@settings(max_examples=150, deadline=None)
@given(small_tables())
def test_both_readers_agree_with_the_map_and_each_other(world):
    pages, expected, held, gfns = world
    fmt = pages.fmt
    cache, view = FrameCache(fmt.entry_bits), FlatView(fmt)
    cache.put_many(frames(*held), pages.data(frames(*held)))
    while True:
        flat = gfn_to_mfn_current(fmt, cache, view, ROOT, frames(*gfns))
        walked = walk(fmt, cache, ROOT, frames(*gfns))
        assert columns(flat) == columns(walked)
        assert flat.needed.tolist() == walked.needed.tolist()
        if not walked.needed.size:
            break
        cache.put_many(walked.needed, pages.data(walked.needed))
    found = dict(zip(gfns, zip(*columns(walked), strict=True), strict=True))
    for gfn, (mfn, order, status) in found.items():
        bases = ((gfn >> size << size, size) for size in fmt.shifts[: fmt.leaf_levels])
        leaf = [
            (expected[base][0] + gfn - base, size)
            for base, size in bases
            if expected.get(base, (0, -1))[1] == size
        ]
        assert len(leaf) <= 1
        want = (*leaf[0], DONE) if leaf else (INVALID_FRAME, 0, NOT_PRESENT)
        assert (mfn, order, status) == want, f"gfn {gfn:#x}"
