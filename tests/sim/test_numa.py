"""Frames come from the node asked for, books stay at home, and nothing gets lost between."""

import pytest

from protocols import envelope
from protocols.control import SnapshotNode
from protocols.domctl import DomctlDestroyDomain
from protocols.frames import INVALID_FRAME, pack
from protocols.memory import (
    MAPSPACE_GMFN,
    AddToPhysmap,
    DecreaseReservation,
    IncreaseReservation,
    PopulatePhysmap,
    SetPodTarget,
)
from protocols.p2m_types import MemFlag
from protocols.toolstack import Vnode
from protocols.walk import Touch
from tests.helpers import World, guest, launch, leaf_rows, scenario, shape, spread

NODES = [2, 3, 4]


def prefer(node):
    """A node asked for, not insisted on."""
    return (node + 1) << MemFlag.NODE_SHIFT


def nodes_of(world, gfns, domid=1):
    return [world.node_of(mfn) for mfn in world.translate(gfns, domid)]


def world_of(nodes, **more):
    world = World(memory_mib=8 * nodes, nodes=nodes, **more)
    world.create(1, max_mib=8 * nodes)
    return world


@pytest.mark.parametrize("nodes", NODES)
def test_an_exact_node_gives_its_own_frames_or_none(nodes):
    world = world_of(nodes)
    for node in range(nodes):
        (free,) = world.free()[node : node + 1]
        first = 0x10000 * (node + 1)
        assert world.populate(spread(first, 2, 9), 9, flags=MemFlag.exact_node(node)) == 2
        gfns = spread(first + 0x1000, 5000)
        assert world.populate(gfns, flags=MemFlag.exact_node(node)) == free - 1024
        assert set(nodes_of(world, gfns[: free - 1024])) == {node}
        assert world.free()[node] == 0
        assert world.populate([1], flags=MemFlag.exact_node(node)) == 0
    world.audit(1)
    assert world.destroy() == 0
    world.assert_empty()


@pytest.mark.parametrize("nodes", NODES)
@pytest.mark.parametrize("wanted", [0, 1])
def test_a_preferred_node_goes_first_and_the_others_follow(nodes, wanted):
    world = world_of(nodes)
    total = sum(world.free())
    free = world.free()
    assert world.populate(spread(0, total), flags=prefer(wanted)) == total
    found = nodes_of(world, spread(0, total))
    order = [(wanted + step) % nodes for step in range(nodes)]
    assert found == [node for node in order for _ in range(free[node])]
    assert world.free() == [0] * nodes
    world.audit(1)


@pytest.mark.parametrize("domid", [1, 2, 3])
def test_without_a_wish_the_home_node_goes_first(domid):
    world = World(memory_mib=24, nodes=3)
    world.create(domid)
    assert world.populate([5], domid=domid) == 1
    assert nodes_of(world, [5], domid) == [domid % 3]
    assert world.free()[domid % 3] == 2048 - 257


def test_what_a_guest_may_not_choose():
    world = world_of(2)
    assert world.populate([1], flags=MemFlag.exact_node(0), caller=1) == 0
    assert world.populate([1], flags=prefer(0), caller=1) == 1
    assert nodes_of(world, [1]) == [1], "a guest's wish is not heard (XSA-231)"
    assert world.populate([2], flags=MemFlag.exact_node(2)) == 0, "no such node"
    world.audit(1)


def test_an_extent_never_spans_nodes():
    world = World(memory_mib=7, nodes=2)
    assert [world.config.node_range(node)[1] for node in (0, 1)] == [512, 1280]
    world.create(1)
    done = world.populate(spread(0, 9, 9), 9)
    assert done == len(world.leaves()) == 3
    assert world.free() == [0, 0]
    for _, order, mfn, _ in world.leaves():
        assert world.node_of(mfn) == world.node_of(mfn + (1 << order) - 1)
    world.audit(1)


@pytest.mark.parametrize("nodes", NODES)
def test_frames_and_m2p_words_of_other_nodes(nodes):
    world = world_of(nodes)
    flags = MemFlag.exact_node(0)
    before = world.free()
    assert world.populate(spread(0x200, 2, 9), 9, flags=flags) == 2
    assert world.populate([7], flags=MemFlag.exact_node(1)) == 1
    (mfn, moved) = world.translate([0x2AB, 7])
    assert [world.m2p(mfn), world.m2p(moved)] == [0x2AB, 7]
    assert world.hypercall(AddToPhysmap(1, MAPSPACE_GMFN, 7, 0x2AB)).rc == 0
    assert [world.m2p(mfn), world.m2p(moved)] == [INVALID_FRAME, 0x2AB]
    assert world.decrease([0x2AC, 0x2AB]) == 2
    assert world.free() == [before[0] - 1022, *before[1:]]
    assert world.info().tot_pages == 1022
    world.audit(1)


def test_a_pod_cache_from_several_nodes():
    world = World(memory_mib=16, nodes=2)
    world.create(1, max_mib=16)
    assert world.populate(spread(0, 8, 9), 9, flags=MemFlag.POPULATE_ON_DEMAND) == 8
    assert world.hypercall(SetPodTarget(1, 3500)).rc == 0
    reply = world.touch(spread(0, 8, 9))
    assert INVALID_FRAME not in world.translate(spread(0, 6, 9))
    assert reply.nr_faults == 8
    assert {world.node_of(mfn) for mfn in world.translate(spread(0, 6, 9))} == {0, 1}
    world.audit(1, walkers=[(1, 0)])
    assert world.decrease(spread(0, 8, 9), 9) == 8
    world.audit(1, walkers=[(1, 0)])
    assert world.destroy() == 0
    world.assert_empty()


def test_a_guest_with_virtual_nodes_has_each_on_its_own_node():
    vnodes = (Vnode(2, 24), Vnode(0, 16), Vnode(1, 32))
    work = scenario(guest(memory=72, vnodes=vnodes), memory_mib=384, nodes=4)
    report, runtime = launch(work, seed=5)
    assert report.violations == []
    (domain,) = report.domains
    assert domain.status == "built"
    world = World(memory_mib=384, nodes=4)
    starts = [(0, 2), (24 << 8, 0), (40 << 8, 1), (72 << 8, None)]
    for gfn, order, mfn, _ in leaf_rows(domain.table):
        wanted = [node for start, node in starts if start <= gfn][-1]
        assert wanted in (None, world.node_of(mfn)), f"gfn {gfn:#x} order {order}"
    without, _ = launch(scenario(guest(memory=72), memory_mib=384))
    assert shape(leaf_rows(without.domains[0].table)) == shape(leaf_rows(domain.table))
    (node,) = runtime.run([("allocator/3", SnapshotNode(3, full=False))])
    assert node.nr_frames - node.free_frames == 0


def test_a_virtual_node_that_does_not_fit_fails_the_build():
    work = scenario(guest(memory=72, vnodes=(Vnode(0, 71), Vnode(1, 1))), memory_mib=128, nodes=2)
    report, runtime = launch(work)
    assert report.domains[0].error == "populate_physmap: gfn 0x4000: ENOMEM"
    assert report.violations == []
    assert report.host_free == report.host_total
    runtime.close()


@pytest.mark.parametrize("nodes", NODES)
@pytest.mark.parametrize("seed", range(8))
def test_several_homes_at_once_and_their_end(nodes, seed):
    world = World(memory_mib=16 * nodes, nodes=nodes, seed=seed)
    domids = range(1, 2 * nodes + 1)
    for domid in domids:
        world.create(domid, max_mib=12)
        world.populate(spread(0x200, 2, 9), 9, domid=domid)
    requests = []
    for domid in domids:
        home, far = world.home(domid), MemFlag.exact_node((domid + 1) % nodes)
        requests += [
            (home, PopulatePhysmap(domid, 0, far, pack(spread(0x1000, 900)))),
            (home, PopulatePhysmap(domid, 9, prefer(domid % nodes), pack(spread(0x2000, 4, 9)))),
            (home, DecreaseReservation(domid, 0, pack(spread(0x280, 200)))),
            (home, AddToPhysmap(domid, MAPSPACE_GMFN, 0x210, 0x3F0)),
            (home, IncreaseReservation(domid, 0, 50, far)),
            (envelope.walker(domid, 0), Touch(domid, pack(spread(0x200, 700)))),
        ]
        if domid % 2:
            requests.append((home, DomctlDestroyDomain(domid)))
    world.run(*requests)
    living = [domid for domid in domids if not domid % 2]
    world.audit(*living, walkers=[(domid, 0) for domid in living])
    for domid in living:
        assert world.destroy(domid) == 0
    world.assert_empty()
