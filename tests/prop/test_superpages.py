"""What shatters, against the page tables themselves, plain and compiled."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errno import Errno
from protocols.frames import INVALID_FRAME
from protocols.p2m_types import P2mType
from services.p2m.entry import representable
from services.p2m.geometry import GEOMETRIES
from services.p2m.table import P2mTable
from services.trace import superpages
from services.trace.superpages import GfnMap, GfnMaps

ORDERS = {"npt": (0, 9, 18), "ept": (0, 9, 18), "pae": (0, 9), "x86_32": (0, 10)}
TYPES = (P2mType.RAM_RW, P2mType.INVALID, P2mType.POPULATE_ON_DEMAND, P2mType.RAM_RO)


def types_of(paging):
    """The types that the format can store."""
    return [kind for kind in TYPES if representable(GEOMETRIES[paging], kind)]


@st.composite
def updates(draw):
    """(format, [(order, type, gfn, mfn)]): few regions, so that updates meet."""
    paging = draw(st.sampled_from(sorted(ORDERS)))
    rows = []
    for _ in range(draw(st.integers(1, 40))):
        order = draw(st.sampled_from(ORDERS[paging]))
        top = 1 if paging == "x86_32" else 3
        region = draw(st.integers(0, top)) << (20 if paging == "x86_32" else 18)
        inside = draw(st.sampled_from([0, 1, 2, 511, 512, 513, 1024, 2047, 5000]))
        gfn = (region + inside) >> order << order
        kind = draw(st.sampled_from(types_of(paging)))
        none = kind in {P2mType.INVALID, P2mType.POPULATE_ON_DEMAND}
        mfn = INVALID_FRAME if none else (gfn + (1 << 18)) >> order << order
        rows.append((order, int(kind), gfn, mfn))
    if paging == "x86_32":
        rows = [row for row in rows if row[2] < 1 << 20]
    return paging, rows


def table_of(paging, rows):
    """(shatters of each row, leaves at the end) by the real tables."""
    geometry = GEOMETRIES[paging]
    table = P2mTable(geometry, 1)
    table.pool_add(np.arange(1 << 17, (1 << 17) + 6000, dtype=np.uint64))
    assert table.init_root()
    shatters = []
    for order, kind, gfn, mfn in rows:
        gfns, mfns = (np.array([each], dtype=np.uint64) for each in (gfn, mfn))
        result = table.set_range(gfns, mfns, order, P2mType(kind))
        assert result.errno == Errno.OK
        table.pool_return(result.retired)
        shatters.append({f: n for f, n in result.nr_shatters.items() if n})
    leaves = {}
    found = table.leaves()
    for order, kind in zip(found.orders.tolist(), found.types.tolist(), strict=True):
        kinds = leaves.setdefault(order, {})
        kinds[kind] = kinds.get(kind, 0) + 1
    return shatters, leaves


def columns(rows):
    order, kind, gfn, mfn = zip(*rows, strict=True)
    return (
        np.array(order, dtype=np.uint8),
        np.array(kind, dtype=np.uint8),
        np.array(gfn, dtype=np.uint64),
        np.array(mfn, dtype=np.uint64),
    )


def check(paging, rows, cut):
    gfn_map = GfnMap(ORDERS[paging], ept=paging == "ept")
    parts = [columns(part) for part in (rows[:cut], rows[cut:]) if part]
    flags = np.concatenate([gfn_map.apply(*part) for part in parts])
    shatters, leaves = table_of(paging, rows)
    for at, real in enumerate(shatters):
        steps = gfn_map.shatters(flags[at : at + 1])
        by_order = {int(step.partition("->")[0]): nr for step, nr in steps.items() if nr}
        assert by_order == real, (rows[: at + 1], steps)
    assert gfn_map.leaves() == leaves
    assert gfn_map.frames() == {
        order: sum(nr for kind, nr in kinds.items() if kind != 6) << order
        for order, kinds in leaves.items()
    }


@settings(deadline=None)
@given(updates(), st.integers(0, 40))
def test_shatters_and_leaves_are_those_of_the_tables(case, cut):
    paging, rows = case
    if rows:
        check(paging, rows, cut)


@pytest.mark.parametrize("paging", sorted(ORDERS))
def test_the_compiled_loop_does_the_same(paging, monkeypatch):
    random = np.random.default_rng(7)
    monkeypatch.setattr(superpages, "COMPILE_FROM", 1)
    regions = 1 if paging == "x86_32" else 3
    for _ in range(3):
        rows = []
        for _ in range(300):
            order = int(random.choice(ORDERS[paging]))
            gfn = int(random.integers(0, regions << 18)) & 0xC3FFF >> order << order
            kind = int(random.choice(types_of(paging)))
            none = kind in {P2mType.INVALID, P2mType.POPULATE_ON_DEMAND}
            rows.append((order, kind, gfn, INVALID_FRAME if none else gfn))
        check(paging, rows, 120)


WILD = st.tuples(
    st.integers(0, 3),
    st.sampled_from([0, 1, 5, 8, 9, 10, 17, 18, 19, 63, 255]),
    st.sampled_from([0, 1, 6, 200, 255]),
    st.sampled_from([0, 1, 511, 513, 1 << 18, (1 << 36) + 7, (1 << 64) - 1, 1 << 63]),
    st.sampled_from([0, INVALID_FRAME]),
)


def domains_of(maps):
    return {domid: (maps.leaves(domid), maps.shatters(domid)) for domid in maps.domids()}


@settings(deadline=None)
@given(st.lists(WILD, min_size=1, max_size=60))
def test_domains_do_not_mix_and_nothing_that_a_file_may_say_leaves_the_arrays(rows):
    """Orders that no table has, gfns of 64 bits and unknown types, plain and compiled."""
    domid, *rest = (np.array(each, dtype=np.uint64) for each in zip(*rows, strict=True))
    maps, compiled = GfnMaps(ORDERS["npt"]), GfnMaps(ORDERS["npt"])
    compiled._seen = superpages.COMPILE_FROM
    flags = maps.apply(domid, *rest)
    assert compiled.apply(domid, *rest).tolist() == flags.tolist()
    assert domains_of(compiled) == domains_of(maps)
    for number in np.unique(domid).tolist():
        mine = domid == number
        alone = GfnMap(ORDERS["npt"])
        found = alone.apply(*(each[mine] for each in rest))
        assert found.tolist() == flags[mine].tolist()
        assert alone.leaves() == maps.leaves(number)
        assert alone.shatters(found) == maps.shatters(number)


def test_memory_is_that_of_the_guest_and_not_of_the_trace():
    maps = GfnMaps(ORDERS["npt"])
    none = np.zeros(1 << 13, dtype=np.uint64)
    maps._seen = superpages.COMPILE_FROM
    sizes = set()
    for _ in range(40):
        # Every 2M of a GiB is shattered by a hole, then made whole again.
        holes = np.arange(1 << 9, dtype=np.uint64) << np.uint64(9)
        for order, gfn in ((9, holes), (0, holes), (9, holes)):
            nothing = none[: len(gfn)]
            maps.apply(nothing, nothing + np.uint64(order), nothing, gfn, gfn)
        sizes.add(sum(array.nbytes for array in maps._state if isinstance(array, np.ndarray)))
    assert len(sizes) == 1
    assert maps.shatters(0) == {"18->9": 0, "9->0": 40 * 512}
    assert maps.leaves(0) == {9: {0: 512}}
