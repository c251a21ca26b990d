"""add_to_physmap and remove_from_physmap: pages that move, and pages that leave."""

import pytest

from protocols.control import Continuation
from protocols.errno import Errno
from protocols.frames import FRAME_MAX, INVALID_FRAME, pack
from protocols.memory import (
    MAPSPACE_GMFN,
    MAPSPACE_GMFN_RANGE,
    AddToPhysmap,
    RemoveFromPhysmap,
)
from protocols.p2m import P2mChangeType, P2mSetEntry
from protocols.p2m_types import MemFlag, P2mType
from tests.helpers import RAM, UpdateRecorder, World, mapped_gfns, shape, spread


@pytest.fixture
def world():
    world = World()
    world.create()
    assert world.populate(spread(0, 32)) == 32
    assert world.populate([0x200], 9) == 1
    return world


def add(world, idx, gpfn, size=None, domid=1):
    space = MAPSPACE_GMFN if size is None else MAPSPACE_GMFN_RANGE
    return -world.hypercall(AddToPhysmap(domid, space, idx, gpfn, size or 1)).rc


def remove(world, gfn, domid=1):
    return -world.hypercall(RemoveFromPhysmap(domid, gfn)).rc


def set_entry(world, gfn, mfn, p2mt):
    request = P2mSetEntry(1, 0, p2mt, pack([gfn]), pack([mfn]))
    assert world.ask("p2m/1", request).rc == 0


def test_a_page_moves(world):
    (mfn,) = world.translate([5])
    before = world.info().tot_pages, world.free()
    assert add(world, 5, 0x1000) == Errno.OK
    assert world.translate([5, 0x1000]) == [INVALID_FRAME, mfn]
    assert world.m2p(mfn) == 0x1000
    assert (world.info().tot_pages, world.free()) == before
    world.audit(1)


def test_what_was_at_the_destination_goes_back_to_the_heap(world):
    source, target = world.translate([5, 6])
    (free,) = world.free()
    assert add(world, 5, 6) == Errno.OK
    assert world.translate([5, 6]) == [INVALID_FRAME, source]
    assert (world.free(), world.info().tot_pages) == ([free + 1], 512 + 31)
    assert world.m2p(target) == INVALID_FRAME
    world.audit(1)


def test_a_page_of_a_superpage_shatters_it(world):
    assert add(world, 0x2AB, 0x300) == Errno.OK
    assert mapped_gfns(world.leaves()) == {*range(32), *range(0x200, 0x400)} - {0x2AB}
    assert world.p2m().shatters == {9: 1}
    world.audit(1)


def test_a_page_moves_onto_populate_on_demand(world):
    assert world.populate([0x400], 9, flags=MemFlag.POPULATE_ON_DEMAND) == 1
    (mfn,) = world.translate([5])
    assert add(world, 5, 0x410) == Errno.OK
    assert world.translate([0x410]) == [mfn]
    assert world.p2m().pod_entries == 511
    world.audit(1)


def test_a_page_moves_to_itself(world):
    leaves = world.leaves()
    assert add(world, 5, 5) == Errno.OK
    assert add(world, 0x2AB, 0x2AB) == Errno.OK
    assert world.leaves() == leaves


def test_what_cannot_move(world):
    leaves = world.leaves()
    assert add(world, 0x900, 0x1000) == Errno.EINVAL, "nothing there"
    assert add(world, 5, 6, domid=4) == Errno.ESRCH
    assert add(world, 5, FRAME_MAX, size=2) == Errno.EOVERFLOW
    assert -world.hypercall(AddToPhysmap(1, 0, 5, 6)).rc == Errno.ENOSYS
    assert world.leaves() == leaves
    world.audit(1)


def test_a_read_only_page_does_not_move(world):
    assert world.ask("p2m/1", P2mChangeType(1, P2mType.RAM_RO, pack([7]))).rc == 0
    assert add(world, 7, 0x1000) == Errno.EINVAL
    assert add(world, 5, 7) == Errno.OK, "but it can be replaced"
    world.audit(1)


def test_the_m2p_must_agree(world):
    (mfn,) = world.translate([5])
    set_entry(world, 0x2000, mfn, RAM)
    assert add(world, 0x2000, 0x1000) == Errno.EXDEV
    assert world.translate([5, 0x2000, 0x1000]) == [mfn, mfn, INVALID_FRAME]


def test_device_memory_is_not_overwritten(world):
    set_entry(world, 0x3000, 0x7777, P2mType.MMIO_DIRECT)
    assert add(world, 5, 0x3000) == Errno.EPERM
    assert world.entries([0x3000]) == [(0x7777, P2mType.MMIO_DIRECT, 0)]
    assert world.populate([9000, 0x3000, 9001]) == 1
    assert world.decrease([0x3000]) == 0
    assert world.translate([5]) != [INVALID_FRAME]


def test_without_a_table_for_the_destination_the_page_stays():
    world = World()
    world.create(pool=4)
    world.populate([5])
    leaves = world.leaves()
    assert add(world, 5, 0x1000) == Errno.ENOMEM
    assert world.leaves() == leaves
    assert world.m2p(leaves[0][2]) == 5
    world.audit(1)


@pytest.mark.parametrize("shift", [4, 3, 1, -1, -3, 0x1000])
def test_a_range_moves_as_memmove_would(world, shift):
    mfns = world.translate(spread(10, 4))
    assert add(world, 10, 10 + shift, size=4) == Errno.OK
    assert world.translate(spread(10 + shift, 4)) == mfns
    assert [world.m2p(mfn) for mfn in mfns] == [10 + shift + step for step in range(4)]
    left = [gfn for gfn in range(10, 14) if not 10 + shift <= gfn < 14 + shift]
    assert world.translate(left) == [INVALID_FRAME] * len(left)
    world.audit(1)


def test_a_range_stops_at_the_first_page_that_cannot_move(world):
    world.decrease([12])
    assert add(world, 10, 0x1000, size=5) == Errno.EINVAL
    gone = [gfn for gfn in range(10, 15) if world.translate([gfn]) == [INVALID_FRAME]]
    assert gone == [10, 11, 12]
    world.audit(1)


def test_a_long_range_is_preempted():
    recorder = UpdateRecorder()
    world = World(recorder=recorder)
    world.create()
    world.populate([0x200], 9)
    assert add(world, 0x200, 0x1000, size=100) == Errno.OK
    assert recorder.kinds[Continuation] == 6
    assert mapped_gfns(world.leaves()) == {*range(0x264, 0x400), *range(0x1000, 0x1064)}
    world.audit(1)


def test_a_removed_page_stays_owned(world):
    (mfn,) = world.translate([0x234])
    before = world.free()
    assert remove(world, 0x234) == Errno.OK
    assert world.translate([0x234]) == [INVALID_FRAME]
    assert (world.m2p(mfn), world.owned(), world.free()) == (INVALID_FRAME, 1, before)
    assert (0x233, 0, RAM) in shape(world.leaves())
    assert world.audit(1).report.orphans == 1
    assert world.destroy() == 0
    world.assert_empty()


def test_what_cannot_be_removed(world):
    world.populate([0x400], 9, flags=MemFlag.POPULATE_ON_DEMAND)
    assert remove(world, 0x900) == Errno.ENOENT
    assert remove(world, 0x400) == Errno.ENOENT, "populate on demand is no page"
    assert remove(world, 5, domid=4) == Errno.ESRCH
    assert remove(world, 5) == Errno.OK
    assert remove(world, 5) == Errno.ENOENT
    world.audit(1)
