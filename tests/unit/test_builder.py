"""The build plan and the extent ladder, against Xen's documented calls and the captures."""

import csv
import gzip
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.p2m_types import MemFlag
from protocols.toolstack import GuestConfig, Vnode
from services.toolstack.builder import (
    FOUR_GIB,
    RUNGS,
    BuildPlan,
    DmRetypeStep,
    Ladder,
    LadderRequest,
    PopulateStep,
    RamRange,
    TouchStep,
    plan_build,
)
from services.toolstack.xl_cfg import parse_xl_cfg

DATA = Path(__file__).parent.parent / "data"
GIB = 1024


def guest(kind: str, memory: int, maxmem: int | None = None, **more: object) -> GuestConfig:
    return GuestConfig("g", kind, memory, maxmem or memory, **more)


def plan_of(kind: str, memory: int, maxmem: int | None = None, **more: object) -> BuildPlan:
    return plan_build(guest(kind, memory, maxmem, **more), "npt")


def drive(ladder: Ladder, served: dict[int, int] | None = None) -> list[tuple[LadderRequest, int]]:
    """All requests with the extents done; ``served`` bounds what an order may get in all."""
    left = dict(served or {})
    calls = []
    while (request := ladder.next_request()) is not None:
        nr_done = min(request.nr_extents, left.get(request.order, request.nr_extents))
        if request.order in left:
            left[request.order] -= nr_done
        ladder.done(nr_done)
        calls.append((request, nr_done))
        assert len(calls) < 100_000
    return calls


def covered(calls: list[tuple[LadderRequest, int]]) -> list[tuple[int, int]]:
    """The populated frames as maximal runs [start, end), in the order of the calls."""
    runs: list[tuple[int, int]] = []
    for request, nr_done in calls:
        start, end = request.first_gfn, request.first_gfn + (nr_done << request.order)
        assert request.first_gfn % (1 << request.order) == 0
        if runs and runs[-1][1] == start:
            runs[-1] = (runs[-1][0], end)
        elif end > start:
            runs.append((start, end))
    return runs


def extents(calls: list[tuple[LadderRequest, int]]) -> dict[int, int]:
    counts: Counter[int] = Counter()
    for request, nr_done in calls:
        counts[request.order] += nr_done
    return {order: nr for order, nr in counts.items() if nr}


# Columns: guest, rungs, what the allocator has, then calls in all and at order 0, 9, 18, and leaves
# of order 9 and 18.
NO_1G, NO_LARGE = {18: 0}, {18: 0, 9: 0}
HYPERCALLS = [
    ("hvm", 64, (18, 9, 0), {}, (10, 2, 8, 0, 31, 0)),
    ("hvm", 256, (18, 9, 0), {}, (34, 2, 32, 0, 127, 0)),
    ("hvm", 1 * GIB, (18, 9, 0), {}, (130, 2, 128, 0, 511, 0)),
    ("hvm", 2 * GIB, (18, 9, 0), {}, (131, 2, 128, 1, 511, 1)),
    ("hvm", 4 * GIB, (18, 9, 0), {}, (260, 2, 256, 2, 1023, 2)),
    ("hvm", 16 * GIB, (18, 9, 0), {}, (272, 2, 256, 14, 1023, 14)),
    ("pvh", 1 * GIB, (18, 9, 0), {}, (1, 0, 0, 1, 0, 1)),
    ("hvm", 4 * GIB, (18, 9, 0), NO_1G, (516, 2, 512, 2, 2047, 0)),
    ("hvm", 1 * GIB, (18, 9, 0), NO_LARGE, (258, 130, 128, 0, 0, 0)),
    ("hvm", 1 * GIB, (9, 0), {}, (130, 2, 128, 0, 511, 0)),
    ("hvm", 4 * GIB, (9, 0), {}, (514, 2, 512, 0, 2047, 0)),
]


@pytest.mark.parametrize(("kind", "memory", "rungs", "served", "want"), HYPERCALLS)
def test_hypercalls_of_the_ladder(kind, memory, rungs, served, want):
    plan = plan_of(kind, memory)
    ladder = Ladder(plan, rungs)
    calls = drive(ladder, served)
    by_order = Counter(request.order for request, _ in calls)
    done = extents(calls)
    got = (len(calls), by_order[0], by_order[9], by_order[18], done.get(9, 0), done.get(18, 0))
    assert got == want
    assert ladder.failed is None
    assert sum(nr << order for order, nr in done.items()) == plan.ram_pages()


@pytest.mark.parametrize(
    ("kind", "memory", "want"),
    [
        ("pvh", 64, {9: 32}),
        ("pvh", 1100, {18: 1, 9: 38}),
        ("pvh", 2303, {18: 2, 9: 127, 0: 256}),
        ("pvh", 4700, {18: 3, 9: 814}),
        ("hvm", 256, {9: 127, 0: 480}),
        ("hvm", 1100, {9: 549, 0: 480}),
        ("hvm", 4700, {18: 2, 9: 1325, 0: 480}),
    ],
)
def test_extents_seen_in_the_captures(kind, memory, want):
    assert extents(drive(Ladder(plan_of(kind, memory)))) == want


def test_no_free_1g_chunk_goes_on_with_2m():
    calls = drive(Ladder(plan_of("pvh", 1500)), {18: 0})
    assert extents(calls) == {9: 750}
    assert [request.first_gfn for request, _ in calls if request.order == 18] == [0]


def test_fragmented_host_falls_back_for_8_mib_at_a_time():
    calls = drive(Ladder(plan_of("pvh", 625)), {18: 0, 9: 239})
    assert extents(calls) == {9: 239, 0: 37632}
    cut = next(i for i, (request, _) in enumerate(calls) if request.order == 0)
    assert [(r.order, r.nr_extents, n) for r, n in calls[cut - 1 : cut + 3]] == [
        (9, 4, 3),
        (0, 512, 512),
        (9, 4, 0),
        (0, 2048, 2048),
    ]


def test_a_1g_rung_is_retried_at_the_next_boundary():
    calls = drive(Ladder(plan_of("pvh", 3 * GIB)), {18: 0})
    gfns = [request.first_gfn for request, _ in calls if request.order == 18]
    assert gfns == [0, 0x40000, 0x80000]


def test_an_exact_call_that_falls_short_fails_the_build():
    ladder = Ladder(plan_of("hvm", 256))
    low = ladder.next_request()
    assert low == LadderRequest(0, 0xA0, 0, 0, exact=True)
    ladder.done(0xA0)
    assert ladder.next_request() == LadderRequest(0xC0, 0x140, 0, 0, exact=True)
    ladder.done(0x13F)
    assert ladder.failed == 0x1FF
    assert ladder.next_request() is None


def test_the_low_call_may_fail_too():
    ladder = Ladder(plan_of("hvm", 256))
    ladder.next_request()
    ladder.done(7)
    assert (ladder.failed, ladder.next_request()) == (7, None)


def test_superpages_of_4m():
    plan = plan_build(guest("hvm", 64), "x86_32")
    calls = drive(Ladder(plan))
    assert plan.rungs == (10, 0)
    assert extents(calls) == {10: 15, 0: 0xA0 + 0x400 - 0xC0}
    assert max(request.nr_extents for request, _ in calls if request.order == 10) == 2


def test_4k_only_rung_keeps_calls_of_8_mib():
    calls = drive(Ladder(plan_of("pvh", 64), (0,)))
    assert [(r.first_gfn, r.nr_extents) for r, _ in calls] == [
        (gfn, 2048) for gfn in range(0, 64 * 256, 2048)
    ]


def test_plain_lists_of_order_0():
    calls = drive(Ladder(plan_of("hvm", 4700), plain_4k=True))
    assert [(r.first_gfn, r.nr_extents) for r, _ in calls] == [
        (0, 0xA0),
        (0xC0, 1 << 18),
        (0x400C0, 1 << 18),
        (0x800C0, 1 << 18),
        (0xC00C0, 0xF0000 - 0xC00C0),
        (FOUR_GIB, 4700 * 256 - 0xF0000),
    ]
    assert all(r.order == 0 and r.exact for r, _ in calls)
    chunks = drive(Ladder(plan_of("pvh", 64), plain_4k=True, plain_chunk=1000))
    assert [r.nr_extents for r, _ in chunks] == [1000] * 16 + [384]


@st.composite
def guests(draw: st.DrawFn) -> GuestConfig:
    kind = draw(st.sampled_from(["pvh", "hvm"]))
    vga, videoram = draw(st.sampled_from([("none", 0), ("cirrus", 8), ("stdvga", 16)]))
    sizes = draw(st.lists(st.integers(20, 6000), max_size=3))
    memory = sum(sizes) or draw(st.integers(20, 9000))
    maxmem = memory if sizes else memory + draw(st.sampled_from([0, 1, 700]))
    hole = draw(st.sampled_from([None, 256, 1000, 3840]))
    vnodes = tuple(Vnode(node, size) for node, size in enumerate(sizes))
    return GuestConfig(
        "g", kind, memory, maxmem, 1, None, hole if kind == "hvm" else None, vga, videoram, vnodes
    )


@given(guests(), st.sampled_from(sorted(RUNGS)), st.data())
def test_ram_is_populated_once_whatever_the_allocator_gives(config, paging, data):
    plan = plan_build(config, paging)
    plain = data.draw(st.booleans())
    bounded = data.draw(st.sets(st.sampled_from([9, 10, 18])))
    served = {order: data.draw(st.integers(0, 40)) for order in bounded}
    calls = drive(Ladder(plan, plain_4k=plain), served)
    runs = covered(calls)
    want: list[tuple[int, int]] = []
    for ram in plan.layout.ranges:
        if want and want[-1][1] == ram.start:
            want[-1] = (want[-1][0], ram.end)
        else:
            want.append((ram.start, ram.end))
    if config.type == "hvm":
        want[:1] = [(0, 0xA0), (0xC0, want[0][1])]
    assert runs == want
    assert sum(end - start for start, end in runs) == plan.ram_pages()
    assert all(end <= plan.layout.hole_start or start >= FOUR_GIB for start, end in runs)
    flags = {request.mem_flags & MemFlag.POPULATE_ON_DEMAND for request, _ in calls}
    assert flags == {MemFlag.POPULATE_ON_DEMAND if plan.pod else 0}


def test_vnodes_follow_each_other_and_name_their_node_exactly():
    vnodes = (Vnode(1, 1000), Vnode(0, 3500), Vnode(3, 500))
    plan = plan_of("hvm", 5000, vnodes=vnodes, vga="cirrus", videoram_mib=8)
    second = FOUR_GIB + (992 + 3500) * 256 - 0xF0000
    assert plan.layout.ranges == (
        RamRange(0, 992 * 256, 1),
        RamRange(992 * 256, 0xF0000, 0),
        RamRange(FOUR_GIB, second, 0),
        RamRange(second, second + 500 * 256, 3),
    )
    calls = [request for request, _ in drive(Ladder(plan))]
    assert calls[0].mem_flags == 0, "the frames below the VGA hole come from any node"
    for request in calls[1:]:
        ram = next(r for r in plan.layout.ranges if r.start <= request.first_gfn < r.end)
        assert ram.node is not None
        assert request.mem_flags == MemFlag.exact_node(ram.node)


def test_mmio_hole_only_grows():
    assert plan_of("hvm", 4096, mmio_hole_mib=256).layout.hole_start == 0xF0000
    assert plan_of("hvm", 4096, mmio_hole_mib=1024).layout.hole_start == 0xC0000
    assert plan_of("hvm", 4096).layout.hole_start == 0xF0000
    assert plan_of("pvh", 4096).layout.hole_start == 0xFC000


def test_page_counts():
    plan = plan_of("hvm", 1024, 2048, vcpus=4, vga="stdvga", videoram_mib=16)
    assert (plan.total_pages, plan.target_pages) == (2032 * 256, 1008 * 256)
    assert plan.pod
    assert plan.claim_pages == plan.target_pages - 0x20
    assert plan.ram_pages() == plan.total_pages - 0x20
    assert plan.max_pages == 1024 * 256 + 256
    assert plan.pool_pages == 256 * 4 + 2048
    assert plan_of("pvh", 64, shadow_memory_mib=8).pool_pages == 8 * 256
    assert plan_of("pvh", 64).claim_pages == 64 * 256


def test_a_build_stays_within_max_pages():
    for kind, vga, videoram in (("pvh", "none", 0), ("hvm", "cirrus", 8), ("hvm", "none", 0)):
        plan = plan_of(kind, 512, vga=vga, videoram_mib=videoram)
        extra = sum(step.nr for step in plan.steps if isinstance(step, PopulateStep))
        assert plan.ram_pages() + extra <= plan.max_pages


def test_steps_after_ram():
    assert plan_of("pvh", 64).steps == (
        TouchStep(0x100, 8),
        PopulateStep(0xFC008, 1),
        *(PopulateStep(0xFC000 + page, 1) for page in range(8)),
        PopulateStep(0xFEFF8, 8),
    )
    fixed = (PopulateStep(0xFEFF8, 8), PopulateStep(0xFEFF0, 8), DmRetypeStep(0xC0, 0x40))
    assert plan_of("hvm", 64).steps == (TouchStep(0x100, 0x75), *fixed)
    small = plan_of("hvm", 64, vga="cirrus", videoram_mib=8)
    assert small.steps[-2:] == (PopulateStep(56 * 256, 2048), PopulateStep(64 * 256, 16))
    large = plan_of("hvm", 4700, vga="stdvga", videoram_mib=16)
    end = FOUR_GIB + 4684 * 256 - 0xF0000
    assert large.steps[-2:] == (PopulateStep(end, 4096), PopulateStep(end + 4096, 16))


# The captures: the same guest, update for update, mfns aside.

CAPTURES = [
    "b1.pvh-1100", "b1.pvh-256", "b1.pvh-64", "b2.no1g-pvh-256", "b3.no2m-pvh-256",
    "balloon.t1-dec4k", "balloon.t5-dec-readd2m", "balloon.t7-1g-dec4k", "hvm.hvm-256",
    "logdirty.ld2", "pod.p2-touch4k", "pod.p3-splinter",
]  # fmt: skip


def recorded(capture: str) -> dict[int, list[tuple[int, int, str]]]:
    """(gfn, order, type) of every set_p2m_entry, by domid, in order."""
    found: dict[int, list[tuple[int, int, str]]] = {}
    with gzip.open(DATA / "decoded" / f"{capture}.mem.csv.gz", "rt") as lines:
        for row in csv.DictReader(lines):
            if row["event"] == "set_p2m_entry":
                update = (int(row["gfn"], 16), int(row["order"]), row["p2mt"])
                found.setdefault(int(row["domid"]), []).append(update)
    return found


def predicted(plan: BuildPlan, *, hap_2mb: bool = True) -> list[tuple[int, int, str]]:
    updates: list[tuple[int, int, str]] = []
    kind = "populate_on_demand" if plan.pod else "ram_rw"
    for request, _ in drive(Ladder(plan)):
        order = 0 if request.order == 9 and not hap_2mb else request.order
        nr = request.nr_extents << request.order >> order
        updates += [(request.first_gfn + (i << order), order, kind) for i in range(nr)]
    for step in plan.steps:
        if isinstance(step, TouchStep):
            # Superpage 0 is PoD as a whole and the first access populates it as a whole.
            updates += [(0, 9, "ram_rw")] if plan.pod else []
        else:
            updates += [(step.first_gfn + i, 0, "ram_rw") for i in range(step.nr)]
    return updates


@pytest.mark.parametrize("capture", CAPTURES)
def test_the_build_of_a_capture(capture):
    path = DATA / "xl" / f"{capture}.cfg"
    config = parse_xl_cfg(path.read_text(), path.name)
    want = predicted(plan_build(config.guest_config(), "npt"), hap_2mb="no2m" not in capture)
    (updates,) = recorded(capture).values()
    assert updates[: len(want)] == want


def test_the_concurrent_builds_of_a_capture():
    updates = recorded("conc.par-512-700")
    wants = [predicted(plan_of("pvh", memory)) for memory in (512, 700)]
    assert sorted(updates.values(), key=len) == wants
