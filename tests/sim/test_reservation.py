"""populate_physmap, increase_reservation, decrease_reservation and claims, as callers see them."""

import pytest

from protocols.control import Continuation
from protocols.domctl import DomctlDestroyDomain
from protocols.envelope import CLIENT
from protocols.errno import Errno
from protocols.frames import INVALID_FRAME, pack
from protocols.memory import ClaimPages, IncreaseReservation, NrDone, PopulatePhysmap
from protocols.p2m import P2mChangeType
from protocols.p2m_types import MemFlag, P2mType
from services.heap.policy import SLICE_EXTENTS
from tests.helpers import POD, RAM, World, mapped_gfns, shape, spread


class Events:
    """Continuations and the client's replies, in order of delivery."""

    def __init__(self):
        self.seen = []

    def delivered(self, sent):
        if isinstance(sent.body, Continuation):
            self.seen.append(("continuation", sent.body.progress))
        elif sent.dst == CLIENT and isinstance(sent.body, NrDone):
            self.seen.append(("done", sent.body.nr_done))

    def mem_event(self, event, domid, order, p2mt, gfns, mfns):
        pass


# populate_physmap


def test_populate_maps_extents_and_counts_them():
    world = World()
    world.create()
    before = world.free()
    assert world.populate(spread(0x200, 4, 9), 9) == 4
    assert world.populate([7, 3], 0) == 2
    assert shape(world.leaves()) == [
        (3, 0, RAM),
        (7, 0, RAM),
        *((gfn, 9, RAM) for gfn in range(0x200, 0xA00, 0x200)),
    ]
    assert world.info().tot_pages == 4 * 512 + 2
    assert before[0] - world.free()[0] == 4 * 512 + 2
    for gfn, order, mfn, _ in world.leaves():
        assert [world.m2p(mfn), world.m2p(mfn + (1 << order) - 1)] == [gfn, gfn + (1 << order) - 1]
    world.audit(1)


def test_populate_stops_at_max_pages():
    world = World()
    world.create(max_mib=5)
    assert world.populate(spread(0, 4, 9), 9) == 2
    assert world.populate(spread(0x1000, 300)) == 256
    assert world.populate([0x2000]) == 0
    assert world.info().tot_pages == world.info().max_pages == 5 * 256
    world.audit(1)


def test_populate_stops_when_the_heap_is_exhausted():
    world = World(memory_mib=8)
    world.create()
    assert world.populate(spread(0, 8, 9), 9) == 3
    assert world.populate(spread(0x2000, 300)) == 256
    assert world.free() == [0]
    assert world.populate([0x3000]) == 0
    world.audit(1)


@pytest.mark.parametrize(("pool", "order"), [(1, 0), (1, 9), (2, 9), (3, 0)])
def test_populate_without_a_page_table_frame_gives_its_frames_back(pool, order):
    world = World()
    world.create(pool=pool)
    before = world.free()
    assert world.populate(spread(0x200, 2, order), order) == 0
    assert (world.free(), world.leaves(), world.info().tot_pages) == (before, [], 0)
    world.audit(1)


def test_an_extent_mapped_in_part_keeps_its_frames():
    """nr_done counts whole extents; the failing one keeps its frames (XSA-389)."""
    world = World()
    world.create(pool=4)
    assert world.populate([0x100]) == 1
    assert world.populate([0x1FF, 0x300], 1) == 0, "gfn 0x200 needs a fifth table"
    assert shape(world.leaves()) == [(0x100, 0, RAM), (0x1FF, 0, RAM)]
    assert world.owned() == 1
    assert world.audit(1).report.orphans == 1


def test_populate_goes_on_up_to_the_extent_without_a_table():
    world = World()
    world.create(pool=4)
    assert world.populate([1, 2, 0x1000, 3]) == 2
    assert mapped_gfns(world.leaves()) == {1, 2}
    world.audit(1)


@pytest.mark.parametrize(
    ("caller", "order", "flags", "done"),
    [
        (0, 10, 0, 1),
        (0, 19, 0, 0),
        (1, 9, 0, 1),
        (1, 10, 0, 0),
        (2, 10, 0, 0),
        (2, 10, MemFlag.POPULATE_ON_DEMAND, 1),
        (0, 18, MemFlag.POPULATE_ON_DEMAND, 1),
        (0, 19, MemFlag.POPULATE_ON_DEMAND, 0),
        (1, 9, MemFlag.POPULATE_ON_DEMAND, 0),
    ],
)
def test_order_limits_go_by_the_caller(caller, order, flags, done):
    world = World()
    world.create()
    assert world.populate([0], order, flags=flags, caller=caller) == done
    assert (world.leaves() != []) == bool(done)
    world.audit(1)


def test_nothing_asked_and_nobody_there():
    world = World()
    world.create()
    assert world.populate([]) == 0
    assert world.populate([1, 2], domid=7) == 0
    assert world.decrease([1, 2], domid=7) == 0
    assert world.hypercall(IncreaseReservation(7, 0, 5, 0)).nr_done == 0
    assert world.info(7).rc == -Errno.ESRCH


def test_misaligned_and_odd_extents_are_mapped_by_4k():
    world = World()
    world.create()
    assert world.populate([0x201], 9) == 1
    assert world.populate([0x1000], 8) == 1
    assert {order for _, order, _ in shape(world.leaves())} == {0}
    assert mapped_gfns(world.leaves()) == {*range(0x201, 0x401), *range(0x1000, 0x1100)}
    world.audit(1)


def test_a_gfn_that_is_taken_gets_the_new_frame_and_the_old_one_is_an_orphan():
    world = World()
    world.create()
    assert world.populate([0x200], 9) == 1
    old = world.translate([0x2FF])[0]
    assert world.populate([0x2FF, 0x2FF]) == 2
    (new,) = world.translate([0x2FF])
    assert new != old
    assert (world.m2p(old), world.m2p(new)) == (INVALID_FRAME, 0x2FF)
    assert world.owned() == 2
    assert world.audit(1).report.orphans == 2


def test_a_superpage_over_4k_leaves_makes_orphans_of_them():
    world = World()
    world.create()
    assert world.populate(spread(0x200, 512)) == 512
    assert world.populate([0x200], 9) == 1
    assert shape(world.leaves()) == [(0x200, 9, RAM)]
    assert world.audit(1).report.orphans == 512


@pytest.mark.parametrize("order", [0, 9])
def test_populate_ends_at_the_last_gfn_of_the_format(order):
    world = World(paging="pae")
    world.create()
    last = 0x100000 - (1 << order)
    assert world.populate([last, last + (1 << order), 0], order) == 1
    assert shape(world.leaves()) == [(last, order, RAM)]
    world.audit(1)


def test_a_long_call_is_preempted_and_others_go_first():
    events = Events()
    nr = 2 * SLICE_EXTENTS + 100
    world = World(memory_mib=(nr >> 8) + 8, recorder=events)
    world.create(1, max_mib=nr, pool=512)
    world.create(2)
    long = PopulatePhysmap(1, 0, 0, pack(spread(0, nr)))
    short = PopulatePhysmap(2, 0, 0, pack([5]))
    replies = world.run((world.home(1), long), (world.home(2), short))
    assert [reply.nr_done for reply in replies] == [nr, 1]
    assert [what for what in events.seen if what != ("done", 1)] == [
        *(("continuation", done) for done in range(SLICE_EXTENTS, nr, SLICE_EXTENTS)),
        ("done", nr),
    ]
    assert events.seen.index(("done", 1)) < events.seen.index(("done", nr))
    events.seen.clear()
    assert world.decrease(spread(0, nr)) == nr
    assert [what for what, _ in events.seen] == ["continuation", "continuation", "done"]
    assert world.info().tot_pages == 0
    world.audit(1, 2)


# decrease_reservation


def test_decrease_gives_the_frames_back_to_the_heap():
    world = World()
    world.create()
    world.populate(spread(0x200, 2, 9), 9)
    before = world.free()[0]
    gfns = [0x200, 0x3FF, 0x405]
    mfns = world.translate(gfns)
    assert world.decrease(gfns) == 3
    assert world.free() == [before + 3]
    assert world.info().tot_pages == 1024 - 3
    assert [world.m2p(mfn) for mfn in mfns] == [INVALID_FRAME] * 3
    assert mapped_gfns(world.leaves()) == set(range(0x200, 0x600)) - set(gfns)
    assert world.p2m().shatters == {9: 2}
    world.audit(1)


def test_decrease_stops_at_a_hole():
    world = World()
    world.create()
    world.populate(spread(0, 10))
    assert world.decrease([0, 1, 5000, 2]) == 2
    assert world.decrease([0]) == 0
    assert world.decrease([5, 5, 6]) == 1, "a page named again is a hole by then"
    assert mapped_gfns(world.leaves()) == {2, 3, 4, 6, 7, 8, 9}
    assert world.info().tot_pages == 7
    world.audit(1)


def test_a_failing_extent_may_lose_a_prefix():
    world = World()
    world.create()
    world.populate(spread(0x200, 2, 9), 9)
    world.decrease([0x464])
    assert world.decrease(spread(0x200, 2, 9), 9) == 1
    assert mapped_gfns(world.leaves()) == set(range(0x465, 0x600))
    assert world.info().tot_pages == 512 - 101
    world.audit(1)


def test_a_superpage_given_back_leaves_its_table_until_a_superpage_returns():
    world = World()
    world.create()
    world.populate(spread(0x200, 2, 9), 9)
    idle = world.p2m()
    assert world.decrease([0x200], 9) == 1
    hollow = world.p2m()
    assert shape(world.leaves()) == [(0x400, 9, RAM)]
    assert hollow.pool_free == idle.pool_free - 1
    assert len(hollow.ptps) == len(idle.ptps) + 8
    assert world.populate([0x200], 9) == 1
    assert shape(world.leaves()) == [(0x200, 9, RAM), (0x400, 9, RAM)]
    assert world.p2m().pool_free == idle.pool_free, "the empty table went back to the pool"
    world.audit(1)


def test_a_decrease_that_cannot_shatter_frees_nothing():
    """Without a frame for the new table the mapping stays, and so must the frame (XSA-222)."""
    world = World()
    world.create(pool=3)
    world.populate([0x200], 9)
    before, leaves = world.free(), world.leaves()
    assert world.decrease([0x280]) == 0
    assert world.decrease([0x200], 9) == 0
    assert (world.free(), world.leaves(), world.info().tot_pages) == (before, leaves, 512)
    world.audit(1)


@pytest.mark.parametrize(("caller", "done"), [(0, 1), (1, 0)])
def test_decrease_has_the_order_limit_of_its_caller(caller, done):
    world = World()
    world.create()
    world.populate(spread(0, 2, 9), 9)
    assert world.decrease([0], 10, caller=caller) == done
    assert world.info().tot_pages == (0 if done else 1024)
    world.audit(1)


def test_a_read_only_page_can_be_given_back():
    world = World()
    world.create()
    world.populate([1, 2, 3])
    set_type(world, 2, P2mType.RAM_RO)
    assert world.decrease([1, 2, 3]) == 3
    world.audit(1)


def set_type(world, gfn, p2mt):
    assert world.ask("p2m/1", P2mChangeType(1, p2mt, pack([gfn]))).rc == 0


# increase_reservation


def test_increase_gives_frames_that_no_gfn_names():
    world = World()
    world.create(max_mib=4)
    before = world.free()[0]
    assert world.hypercall(IncreaseReservation(1, 9, 1, 0)).nr_done == 1
    assert world.hypercall(IncreaseReservation(1, 0, 600, 0)).nr_done == 512
    assert (world.leaves(), world.owned(), world.free()) == ([], 1024, [before - 1024])
    assert world.hypercall(IncreaseReservation(1, 0, 1, 0)).nr_done == 0
    assert world.audit(1).report.orphans == 1024
    assert world.destroy() == 0
    world.assert_empty()


@pytest.mark.parametrize(("caller", "done"), [(0, 1), (1, 0)])
def test_increase_has_the_order_limit_of_its_caller(caller, done):
    world = World()
    world.create()
    assert world.hypercall(IncreaseReservation(1, 10, 1, 0, caller)).nr_done == done


# claim_pages


def claim(world, nr, domid=1):
    return -world.hypercall(ClaimPages(domid, nr)).rc


def test_a_claim_holds_frames_back_from_everybody_else():
    world = World(memory_mib=16)
    world.create(1)
    world.create(2)
    free = world.free()[0]
    assert claim(world, 3000) == Errno.OK
    assert world.populate(spread(0, 4000), domid=2) == free - 3000
    assert world.info(1).outstanding_claims == 3000
    assert world.populate(spread(0, 2000)) == 2000
    assert world.info(1).outstanding_claims == 1000
    assert world.populate([0x5000], domid=2) == 0
    assert claim(world, 0) == Errno.OK
    assert world.populate([0x5000], domid=2) == 1
    world.audit(1, 2)


def test_a_claim_has_rules():
    world = World(memory_mib=16)
    world.create(1, max_mib=8)
    world.create(2)
    world.populate(spread(0, 100))
    assert claim(world, 100) == Errno.EINVAL, "no more than there is already"
    assert claim(world, 8 * 256 + 1) == Errno.EINVAL, "above max_pages"
    assert claim(world, 5, domid=9) == Errno.EINVAL
    assert claim(world, 101) == Errno.OK
    assert claim(world, 200) == Errno.EINVAL, "one claim at a time"
    free = world.free()[0]
    assert claim(world, free, domid=2) == Errno.ENOMEM, "one frame is claimed by domid 1"
    assert claim(world, free - 1, domid=2) == Errno.OK
    assert world.hypercall(DomctlDestroyDomain(2)).rc == 0
    assert world.populate(spread(0x1000, 50)) == 50
    world.audit(1)


def test_a_claim_goes_with_its_domain():
    world = World(memory_mib=16)
    world.create(1)
    assert claim(world, 3000) == Errno.OK
    assert world.destroy() == 0
    world.create(2)
    assert world.populate(spread(0, 3840), domid=2) == 3840
    world.audit(2)


def test_populate_on_demand_takes_no_frames():
    world = World()
    world.create()
    before = world.free()
    assert world.populate(spread(0x200, 2, 9), 9, flags=MemFlag.POPULATE_ON_DEMAND) == 2
    assert world.populate([5], flags=MemFlag.POPULATE_ON_DEMAND) == 1
    assert shape(world.leaves()) == [(5, 0, POD), (0x200, 9, POD), (0x400, 9, POD)]
    assert (world.free(), world.info().tot_pages, world.p2m().pod_entries) == (before, 0, 1025)
    world.audit(1)
