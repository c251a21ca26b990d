"""Domains come and go: pools, multicalls, and that destroy returns every frame whatever runs."""

import pytest

from protocols import envelope
from protocols.domctl import DomctlCreateDomain, DomctlDestroyDomain, DomctlSetPagingMempoolSize
from protocols.errno import Errno
from protocols.frames import INVALID_FRAME, pack, unpack
from protocols.memory import (
    MAPSPACE_GMFN,
    MAPSPACE_GMFN_RANGE,
    AddToPhysmap,
    ClaimPages,
    DecreaseReservation,
    IncreaseReservation,
    Multicall,
    PopulatePhysmap,
    RemoveFromPhysmap,
    SetPodTarget,
)
from protocols.p2m import P2mChangeType, P2mGetEntry
from protocols.p2m_types import MemFlag, P2mType
from protocols.toolstack import BuildDomain, DestroyDomain
from protocols.walk import Touch, WalkTranslate
from tests.helpers import RAM, World, guest, mapped_gfns, shape, spread

# creation


def test_a_new_domain_has_a_root_and_256_pool_frames():
    world = World()
    (total,) = world.free()
    world.create()
    assert world.free() == [total - 256]
    info = world.info()
    assert (info.rc, info.tot_pages, info.max_pages, info.paging_pool_pages) == (
        0,
        0,
        32 * 256,
        256,
    )
    assert len(world.p2m().ptps) == 8
    assert world.hypercall(DomctlCreateDomain(1, 5, 1, "off")).rc == -Errno.EEXIST
    world.audit(1)


def test_no_memory_for_the_pool_leaves_nothing():
    world = World(memory_mib=2)
    world.create(1)
    world.create(2)
    assert world.free() == [0]
    assert world.hypercall(DomctlCreateDomain(3, 5, 1, "off")).rc == -Errno.ENOMEM
    assert world.info(3).rc == -Errno.ESRCH
    assert world.destroy(2) == 0
    world.create(3)
    world.audit(1, 3)


def test_a_domid_can_be_used_again():
    """Walkers that outlive a domain know nothing of the next one with its domid."""
    world = World()
    for turn in range(3):
        world.create()
        assert world.populate([0x200 + turn], 0) == 1
        assert unpack(world.touch([0x200 + turn]).mfns).tolist() == world.translate([0x200 + turn])
        world.audit(1, walkers=[(1, 0)])
        assert world.destroy() == 0
        assert unpack(world.touch([0x200 + turn]).mfns).tolist() == [INVALID_FRAME]
        reply = world.ask("walker/1.0", WalkTranslate(1, pack([0x200])))
        assert unpack(reply.mfns).tolist() == [INVALID_FRAME]
        assert world.destroy() == -Errno.ESRCH
        world.assert_empty()


# the pool


def set_pool(world, pages, domid=1):
    return -world.hypercall(DomctlSetPagingMempoolSize(domid, pages << 12)).rc


def test_the_pool_grows_and_shrinks_but_not_below_what_is_in_use():
    world = World()
    world.create()
    (free,) = world.free()
    assert set_pool(world, 700) == Errno.OK
    assert (world.free(), world.info().paging_pool_pages) == ([free - 444], 700)
    world.populate(spread(0, 20, 9))
    in_use = len(world.p2m().ptps) // 8
    assert in_use == 3 + 20
    assert set_pool(world, 10) == Errno.ENOMEM
    assert world.info().paging_pool_pages == in_use
    assert set_pool(world, in_use) == Errno.OK
    assert world.free() == [free + 256 - in_use - 20]
    assert world.populate([0x9000]) == 0
    assert set_pool(world, in_use + 1) == Errno.OK
    assert world.populate([0x9000]) == 1
    world.audit(1)


def test_pool_sizes_that_cannot_be():
    world = World(memory_mib=4)
    world.create()
    assert world.hypercall(DomctlSetPagingMempoolSize(1, 4095)).rc == -Errno.EINVAL
    assert set_pool(world, 5, domid=9) == Errno.ESRCH
    assert set_pool(world, 2000) == Errno.ENOMEM
    assert (world.free(), world.info().paging_pool_pages) == ([0], 1024)
    assert world.populate([1]) == 0
    assert set_pool(world, 512) == Errno.OK
    assert world.populate([1]) == 1
    world.audit(1)


def test_a_pool_does_not_eat_a_claim():
    world = World(memory_mib=8)
    world.create()
    (free,) = world.free()
    assert world.hypercall(ClaimPages(1, free - 100)).rc == 0
    assert set_pool(world, 1000) == Errno.ENOMEM
    assert world.free() == [free - 100]
    assert world.populate(spread(0, free - 100)) == free - 100
    world.audit(1)


# multicall


def test_a_multicall_runs_its_entries_in_order_and_goes_on_after_a_failure():
    world = World()
    world.create(max_mib=8)
    entries = [
        PopulatePhysmap(1, 0, 0, pack([1, 2, 3])),
        DecreaseReservation(1, 0, pack([2, 9, 3])),
        AddToPhysmap(1, MAPSPACE_GMFN, 9, 10),
        AddToPhysmap(1, MAPSPACE_GMFN, 1, 10),
        RemoveFromPhysmap(1, 3),
        ClaimPages(1, 1 << 20),
        IncreaseReservation(1, 9, 7, 0),
        PopulatePhysmap(8, 0, 0, pack([1])),
    ]
    reply = world.ask("allocator/0", Multicall(entries))
    assert reply.results == [3, 1, -Errno.EINVAL, 0, 0, -Errno.EINVAL, 3, 0]
    assert mapped_gfns(world.leaves()) == {10}
    assert world.owned() == 1 + 3 * 512
    world.audit(1)


def test_others_run_between_the_entries_of_a_multicall():
    world = World(seed=3)
    world.create(1)
    world.create(2)
    moves = [AddToPhysmap(1, MAPSPACE_GMFN, step, step + 1) for step in range(200)]
    world.populate([0])
    batch = ("allocator/0", Multicall(list(moves)))
    small = ("allocator/0", PopulatePhysmap(2, 0, 0, pack([5])))
    replies = world.run(batch, small)
    assert replies[0].results == [0] * 200
    assert replies[1].nr_done == 1
    assert mapped_gfns(world.leaves()) == {200}
    world.audit(1, 2)


# the end


def test_destroy_returns_every_frame():
    world = World(memory_mib=64)
    world.create(1)
    world.create(2)
    world.populate(spread(0, 3, 9), 9)
    world.populate(spread(0x4000, 700))
    world.populate([0x4000], 0)
    world.hypercall(IncreaseReservation(1, 5, 3, 0))
    world.decrease(spread(0x210, 40))
    world.hypercall(ClaimPages(1, 7000))
    world.touch(spread(0, 512))
    world.populate(spread(0, 3, 9), 9, domid=2)
    before = world.leaves(2)
    assert world.destroy(1) == 0
    assert world.leaves(2) == before
    taken = world.audit(2)
    assert taken.host_free == (64 << 8) - 256 - 3 * 512
    assert world.destroy(2) == 0
    world.assert_empty()


def traffic(domid):
    """One of everything that a domain's end may run into."""
    home, p2m = envelope.allocator(0), envelope.p2m(domid)
    pod = MemFlag.POPULATE_ON_DEMAND
    moves = [AddToPhysmap(domid, MAPSPACE_GMFN, 0x10 + gfn, 0x5000 + gfn) for gfn in range(8)]
    return [
        (home, PopulatePhysmap(domid, 0, 0, pack(spread(0x3000, 900)))),
        (home, PopulatePhysmap(domid, 9, 0, pack(spread(0x1000, 5, 9)))),
        (home, PopulatePhysmap(domid, 9, pod, pack(spread(0x8000, 3, 9)))),
        (home, DecreaseReservation(domid, 0, pack(spread(0x200, 300)))),
        (home, DecreaseReservation(domid, 9, pack([0x6000]))),
        (home, IncreaseReservation(domid, 0, 77, 0)),
        (home, AddToPhysmap(domid, MAPSPACE_GMFN_RANGE, 0, 0x4000, 40)),
        (home, RemoveFromPhysmap(domid, 0x3F0)),
        (home, ClaimPages(domid, 6000)),
        (home, SetPodTarget(domid, 6000)),
        (home, DomctlSetPagingMempoolSize(domid, 900 << 12)),
        (home, DomctlSetPagingMempoolSize(domid, 100 << 12)),
        (home, Multicall(list(moves))),
        (p2m, P2mChangeType(domid, P2mType.RAM_RO, pack([0x20, 0x21]))),
        (p2m, P2mGetEntry(domid, pack([0x6000, 0x6200, 0x8000]), alloc=True)),
        (envelope.walker(domid, 0), Touch(domid, pack(spread(0, 700)), True)),
        (envelope.walker(domid, 1), Touch(domid, pack([0x6000, 0x6200, 0x6400]), True)),
        (envelope.walker(2, 0), WalkTranslate(domid, pack(spread(0, 60, 4)))),
    ]


def busy_world(seed):
    world = World(seed=seed)
    for domid in (1, 2):
        world.create(domid, max_mib=24)
        world.populate(spread(0, 64), domid=domid)
        world.populate([0x200], 9, domid=domid)
    flags = MemFlag.POPULATE_ON_DEMAND
    assert world.populate(spread(0x6000, 3, 9), 9, flags=flags) == 3
    assert world.hypercall(SetPodTarget(1, 1600)).rc == 0
    world.touch(spread(0, 64))
    return world


@pytest.mark.parametrize("seed", range(30))
def test_destroy_amid_everything_else_loses_no_frame(seed):
    world = busy_world(seed)
    requests = traffic(1)
    place = seed % (len(requests) + 1)
    requests[place:place] = [("allocator/0", DomctlDestroyDomain(1))]
    before = shape(world.leaves(2))
    replies = world.run(*requests)
    assert replies[place].rc == 0
    assert world.info(1).rc == -Errno.ESRCH
    assert shape(world.leaves(2)) == before
    world.audit(2, walkers=[(2, 0)])
    assert world.destroy(2) == 0
    world.assert_empty()


@pytest.mark.parametrize("seed", range(10))
def test_everything_at_once_leaves_a_consistent_host(seed):
    world = busy_world(seed)
    world.run(*traffic(1), *traffic(2))
    walkers = [(1, 0), (1, 1), (2, 0), (2, 1)]
    world.audit(1, 2, walkers=walkers)
    world.run(*traffic(2), *traffic(1))
    world.audit(1, 2, walkers=walkers)
    assert (world.destroy(1), world.destroy(2)) == (0, 0)
    world.assert_empty()


@pytest.mark.parametrize("seed", range(10))
def test_two_destroys_and_a_new_domain(seed):
    world = busy_world(seed)
    destroy = ("allocator/0", DomctlDestroyDomain(1))
    create = ("allocator/0", DomctlCreateDomain(1, 100, 1, "explicit"))
    first, new, second = (reply.rc for reply in world.run(destroy, create, destroy))
    assert sorted([first, second]) in ([-Errno.ESRCH, 0], [0, 0])
    assert new in (0, -Errno.EEXIST)
    if world.info(1).rc == 0:
        assert world.populate([7]) == 1
        world.audit(1, 2)
        assert world.destroy(1) == 0
    assert world.destroy(2) == 0
    world.assert_empty()


@pytest.mark.parametrize("seed", range(12))
def test_a_build_that_is_destroyed_meanwhile_fails_or_is_gone(seed):
    world = World(seed=seed)
    build = BuildDomain(1, guest(memory=24), "explicit", "npt")
    pod = BuildDomain(2, guest("pod", memory=8, maxmem=16), "explicit", "npt")
    calls = [("toolstack/1", build), ("toolstack/2", pod), ("toolstack/3", DestroyDomain(1))]
    calls += [("toolstack/4", DestroyDomain(2)), ("toolstack/5", DestroyDomain(1))]
    replies = world.run(*calls)
    living = [domid for domid in (1, 2) if world.info(domid).rc == 0]
    for domid in (1, 2):
        assert (replies[domid - 1].error == "") == (domid in living) or replies[
            domid - 1
        ].error == ""
    world.audit(*living)
    for domid in living:
        assert RAM in {row[2] for row in shape(world.leaves(domid))}
        assert world.destroy(domid) == 0
    world.assert_empty()
