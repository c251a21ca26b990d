"""Populate on demand: the cache, and who brings a page in."""

import pytest

from protocols.errno import Errno
from protocols.frames import INVALID_FRAME, pack, unpack
from protocols.memory import SetPodTarget
from protocols.p2m import P2mChangeType
from protocols.p2m_types import MemFlag, P2mType
from protocols.walk import Touch
from tests.helpers import POD, RAM, UpdateRecorder, World, shape, spread


def pod_world(target, *, nr=4, order=9, max_mib=8, pool=None, **more):
    """A domain with ``nr`` PoD extents from gfn 0x200 and a cache up to the target."""
    world = World(**more)
    world.create(max_mib=max_mib, pool=pool)
    first = 0x200 if order < 18 else 0
    assert world.populate(spread(first, nr, order), order, flags=MemFlag.POPULATE_ON_DEMAND) == nr
    assert world.hypercall(SetPodTarget(1, target)).rc == 0
    return world


def pod_counts(world):
    snapshot = world.p2m()
    return len(snapshot.pod_cache) // 8, snapshot.pod_entries


def test_the_target_fills_the_cache():
    world = World()
    world.create(max_mib=8)
    before = world.free()[0]
    reply = world.hypercall(SetPodTarget(1, 1200))
    assert (reply.rc, reply.tot_pages, reply.pod_cache_pages, reply.pod_entries) == (
        0,
        1200,
        1200,
        0,
    )
    assert world.free() == [before - 1200]
    again = world.hypercall(SetPodTarget(1, 1000))
    assert (again.rc, again.pod_cache_pages) == (0, 1200), (
        "a target below what is there does nothing"
    )
    assert world.hypercall(SetPodTarget(1, 8 * 256 + 1)).rc == -Errno.EINVAL
    assert world.hypercall(SetPodTarget(5, 1)).rc == -Errno.ESRCH


def test_the_cache_holds_2m_frames_and_then_single_ones():
    world = pod_world(1024 + 5)
    mfns = unpack(world.p2m().pod_cache)
    assert (mfns[:1024:512] % 512 == 0).all()
    assert (mfns[:512] == spread(int(mfns[0]), 512)).all()
    assert mfns.size == 1029
    assert [world.m2p(int(mfn)) for mfn in mfns[::100]] == [INVALID_FRAME] * 11
    world.audit(1)


def test_a_target_beyond_the_heap_fails_and_keeps_what_it_got():
    world = World(memory_mib=8)
    world.create(max_mib=32)
    free = world.free()[0]
    reply = world.hypercall(SetPodTarget(1, free + 1))
    assert (reply.rc, reply.tot_pages, reply.pod_cache_pages) == (-Errno.ENOMEM, free, free)
    world.audit()
    assert world.destroy() == 0
    world.assert_empty()


def test_a_target_grows_with_what_is_still_on_demand():
    world = pod_world(600)
    world.entries([0x200], alloc=True)
    assert pod_counts(world) == (88, 3 * 512)
    reply = world.hypercall(SetPodTarget(1, 8 * 256))
    assert (reply.rc, reply.tot_pages, reply.pod_cache_pages) == (0, 2048, 3 * 512)
    world.audit(1)


def test_looking_populates_only_if_it_says_so():
    world = pod_world(1024)
    assert world.entries([0x2AB]) == [(None, POD, 9)]
    assert world.translate([0x2AB]) == [INVALID_FRAME]
    assert pod_counts(world) == (1024, 2048)
    ((mfn, p2mt, order),) = world.entries([0x2AB], alloc=True)
    assert (p2mt, order, mfn % 512) == (RAM, 9, 0xAB)
    assert world.m2p(mfn) == 0x2AB
    assert pod_counts(world) == (512, 1536)
    assert world.info().tot_pages == 1024, "a frame of the cache was the domain's before"
    world.audit(1)


@pytest.mark.parametrize("write", [False, True])
def test_a_guest_access_populates(write):
    world = pod_world(1024)
    reply = world.touch([0x2AB, 0x3FF, 0x401, 0x2AC], write=write)
    # Faults are counted by gfn: whoever comes second finds the superpage there.
    assert (unpack(reply.mfns) != INVALID_FRAME).all()
    assert unpack(reply.mfns).tolist() == world.translate([0x2AB, 0x3FF, 0x401, 0x2AC])
    assert reply.nr_faults == 4
    assert world.touch([0x2AB, 0x401]).nr_faults == 0
    assert shape(world.leaves())[:3] == [(0x200, 9, RAM), (0x400, 9, RAM), (0x600, 9, POD)]
    assert pod_counts(world) == (0, 1024)
    world.audit(1, walkers=[(1, 0)])


def test_without_a_2m_frame_the_superpage_is_splintered():
    recorder = UpdateRecorder()
    world = pod_world(300, recorder=recorder)
    recorder.updates.clear()
    reply = world.touch([0x2AB])
    assert unpack(reply.mfns).tolist() == world.translate([0x2AB]) != [INVALID_FRAME]
    # One 4K PoD entry splits the superpage; the frame comes in with a second update.
    assert recorder.updates == {1: [(0x200, 0, POD), (0x2AB, 0, RAM)]}
    rows = {gfn: (order, p2mt) for gfn, order, p2mt in shape(world.leaves())}
    assert (rows[0x2AB], rows[0x2AA], rows[0x400]) == ((0, RAM), (0, POD), (9, POD))
    assert pod_counts(world) == (299, 2047)
    world.audit(1, walkers=[(1, 0)])


def test_a_single_frame_is_cut_from_a_2m_one():
    world = pod_world(512)
    assert world.populate([0x1000], flags=MemFlag.POPULATE_ON_DEMAND) == 1
    assert world.entries([0x1000], alloc=True)[0][1:] == (RAM, 0)
    assert pod_counts(world) == (511, 2048)
    world.audit(1)


def test_a_1g_entry_is_cut_to_2m_first():
    recorder = UpdateRecorder()
    world = pod_world(1024, nr=1, order=18, recorder=recorder)
    recorder.updates.clear()
    world.touch([0x12345])
    assert recorder.updates == {1: [(0, 9, POD), (0x12200, 9, RAM)]}
    rows = shape(world.leaves())
    assert len(rows) == 512
    assert [row for row in rows if row[2] == RAM] == [(0x12200, 9, RAM)]
    assert pod_counts(world) == (512, (1 << 18) - 512)
    world.audit(1, walkers=[(1, 0)])


def test_out_of_pod_memory_is_an_access_that_finds_nothing():
    world = pod_world(512)
    reply = world.touch([0x200, 0x400, 0x401, 0x999])
    assert [mfn == INVALID_FRAME for mfn in unpack(reply.mfns).tolist()] == [
        False,
        True,
        True,
        True,
    ]
    assert world.entries([0x400])[0][1] == POD
    assert pod_counts(world) == (0, 1536)
    world.audit(1, walkers=[(1, 0)])


def test_no_table_frame_for_a_populate_puts_the_frame_back():
    """A 4K PoD entry inside a superpage needs a table; none is left, so nothing changes."""
    world = pod_world(100, nr=1, pool=3)
    reply = world.touch([0x2AB])
    assert unpack(reply.mfns).tolist() == [INVALID_FRAME]
    assert pod_counts(world) == (100, 512)
    assert shape(world.leaves()) == [(0x200, 9, POD)]
    world.audit(1, walkers=[(1, 0)])


def test_marking_over_ram_is_refused_and_over_pod_counted_once():
    world = pod_world(1024)
    flags = MemFlag.POPULATE_ON_DEMAND
    world.populate([0x1000])
    assert world.populate([0xFFF, 0x1000, 0x1001], flags=flags) == 1
    assert world.populate([0x200, 0x1200], 9, flags=flags) == 2
    assert world.populate([0x1300, 0x1300], flags=flags) == 2
    assert pod_counts(world) == (1024, 4 * 512 + 1 + 512)
    world.audit(1)


def test_populating_an_entry_by_hand_takes_it_off_the_count():
    world = pod_world(512)
    assert world.populate([0x2AB]) == 1
    assert world.populate([0x400], 9) == 1
    assert pod_counts(world) == (512, 2048 - 1 - 512)
    world.audit(1)


def test_giving_back_what_was_never_there():
    world = pod_world(1024)
    free = world.free()[0]
    assert world.decrease(spread(0x200, 2, 9), 9) == 2
    assert pod_counts(world) == (1024, 1024)
    assert world.decrease([0x600], 9) == 1
    # The cache never holds more than could be asked for: the rest goes back to the heap.
    assert pod_counts(world) == (512, 512)
    assert (world.free(), world.info().tot_pages) == ([free + 512], 512)
    assert world.decrease(spread(0x800, 5)) == 5
    assert pod_counts(world) == (507, 507)
    assert world.entries([0x800]) == [(None, P2mType.MMIO_DM, 0)]
    world.audit(1)


def test_giving_back_a_mixture():
    world = pod_world(300)
    world.touch([0x2AB])
    free = world.free()[0]
    assert world.decrease([0x200], 9) == 1
    assert pod_counts(world) == (299, 1536)
    assert (world.free(), world.info().tot_pages) == ([free + 1], 299)
    world.audit(1, walkers=[(1, 0)])


def test_a_type_change_populates_first():
    world = pod_world(1024)
    assert world.ask("p2m/1", P2mChangeType(1, P2mType.RAM_RO, pack([0x2AB]))).rc == 0
    assert [row[1:] for row in world.entries([0x2AB, 0x2AA])] == [
        (P2mType.RAM_RO, 0),
        (RAM, 0),
    ]
    world.audit(1)


@pytest.mark.parametrize("seed", range(8))
def test_concurrent_accesses_populate_once(seed):
    world = pod_world(2048, seed=seed)
    gfns = pack(spread(0x200, 64, 5))
    touches = [(f"walker/1.{vcpu}", Touch(1, gfns, True, want_mfns=True)) for vcpu in range(4)]
    replies = world.run(*touches)
    assert len({reply.mfns for reply in replies}) == 1
    assert pod_counts(world) == (0, 0)
    assert world.info().tot_pages == 2048
    world.audit(1, walkers=[(1, vcpu) for vcpu in range(4)])


def test_destroy_returns_the_cache_too():
    world = pod_world(1300)
    world.touch([0x2AB])
    assert world.destroy() == 0
    world.assert_empty()
