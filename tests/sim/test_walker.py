"""Walkers under concurrent change: what was acknowledged as gone is never seen again."""

import itertools

import numpy as np
import pytest

from deploy.sim.oracles import Seeded
from deploy.sim.runtime import SimRuntime
from deploy.world import make_component
from protocols import envelope
from protocols.envelope import CLIENT, Envelope
from protocols.frames import INVALID_FRAME, pack, unpack
from protocols.memory import (
    MAPSPACE_GMFN,
    AddToPhysmap,
    DecreaseReservation,
    PopulatePhysmap,
    SetPodTarget,
    Status,
)
from protocols.p2m import (
    P2mAddPage,
    P2mCreate,
    P2mGetRoot,
    P2mRemovePages,
    P2mUpdated,
    ReadPageTableFrames,
)
from protocols.p2m_types import MemFlag
from protocols.walk import FlushTlb, Touch, WalkTranslate
from services.component.context import Context
from services.component.host import Host
from services.p2m.component import P2m
from tests.helpers import UpdateRecorder, World, spread

HOLES = spread(0x5000, 200)
GFNS = np.concatenate((spread(0, 300), spread(0x200, 2048), HOLES, spread(0x6000, 1024)))
VCPUS = 3


class Timeline:
    """When each client request was answered, and when each was first delivered."""

    def __init__(self):
        self.begun = {}
        self.done = {}
        self.now = 0

    def delivered(self, sent):
        self.now += 1
        if sent.src == CLIENT:
            self.begun[sent.msg_id] = self.now
        elif sent.dst == CLIENT:
            self.done[sent.in_reply_to] = self.now

    def mem_event(self, event, domid, order, p2mt, gfns, mfns):
        pass


def mutations(random):
    """Requests of one round, each with the gfns that it alone changes."""
    home = envelope.allocator(0)
    bases = iter(random.permutation(spread(0x200, 4, 9)).tolist())
    singles = iter(np.split(random.permutation(spread(0, 300)), 6))
    some = next(singles)
    yield (home, DecreaseReservation(1, 0, pack(some))), some
    inside = np.sort(random.permutation(spread(next(bases), 512))[:40])
    yield (home, DecreaseReservation(1, 0, pack(inside))), inside
    base = next(bases)
    yield (home, DecreaseReservation(1, 9, pack([base]))), spread(base, 512)
    base = next(bases)
    yield (home, PopulatePhysmap(1, 9, 0, pack([base]))), spread(base, 512)
    inside = spread(next(bases), 512)[::7]
    yield (home, PopulatePhysmap(1, 0, 0, pack(inside))), inside
    holes = iter(HOLES.tolist())
    yield (home, PopulatePhysmap(1, 0, 0, pack(HOLES[100:]))), HOLES[100:]
    for src in next(singles)[:8].tolist():
        dst = next(holes)
        move = AddToPhysmap(1, MAPSPACE_GMFN, src, dst)
        yield (home, move), np.array([src, dst], dtype=np.uint64)


def readers(random):
    """Accesses of three vCPUs, and look-ups by them and by another domain's walker."""
    for number in range(12):
        gfns = np.sort(random.choice(GFNS, 250))
        vcpu = number % VCPUS
        yield (envelope.walker(1, vcpu), Touch(1, pack(gfns), bool(number & 1), True)), gfns
        foreign = envelope.walker(2, 0) if number & 1 else envelope.walker(1, vcpu)
        yield (foreign, WalkTranslate(1, pack(gfns))), gfns


def start(seed, factory=make_component):
    """A domain with 4K pages, superpages, PoD and holes, walkers warm."""
    world = World(memory_mib=64)
    timeline = Timeline()
    world.rt = SimRuntime(world.config, oracle=Seeded(seed), recorder=timeline, factory=factory)
    world.create(max_mib=48)
    assert world.populate(spread(0, 300)) == 300
    assert world.populate(spread(0x200, 4, 9), 9) == 4
    assert world.populate(spread(0x6000, 2, 9), 9, flags=MemFlag.POPULATE_ON_DEMAND) == 2
    assert world.hypercall(SetPodTarget(1, 300 + 2048 + 1024)).rc == 0
    for vcpu in range(VCPUS):
        world.touch(GFNS[:2500], vcpu=vcpu)
    return world, timeline


def play(world, timeline, random):
    """One round of everything at once; the translations that no honest walker could have given."""
    changes, reads = list(mutations(random)), list(readers(random))
    order = random.permutation(len(changes) + len(reads)).tolist()
    before = dict(zip(GFNS.tolist(), world.translate(GFNS), strict=True))
    requests = [request for request, _ in [*changes, *reads]]
    first = max(timeline.begun) + 1
    replies = world.run(*(requests[place] for place in order))
    number = {place: first + sent for sent, place in enumerate(order)}
    after = dict(zip(GFNS.tolist(), world.translate(GFNS), strict=True))
    acknowledged = {}
    for place, (_, gfns) in enumerate(changes):
        for gfn in gfns.tolist():
            acknowledged[gfn] = timeline.done[number[place]]
    wrong = []
    for place, (_, gfns) in enumerate(reads, start=len(changes)):
        (reply,) = [replies[sent] for sent, which in enumerate(order) if which == place]
        begun = timeline.begun[number[place]]
        for gfn, mfn in zip(gfns.tolist(), unpack(reply.mfns).tolist(), strict=True):
            right = {after[gfn]}
            if acknowledged.get(gfn, 1 << 60) > begun:
                right.add(before[gfn])
            if mfn not in right:
                wrong.append((gfn, mfn))
    return wrong


@pytest.mark.parametrize("seed", range(16))
def test_no_translation_is_stale_once_a_change_was_acknowledged(seed):
    world, timeline = start(seed)
    random = np.random.default_rng(seed)
    walkers = [(1, vcpu) for vcpu in range(VCPUS)]
    for _ in range(2):
        assert play(world, timeline, random) == []
        world.audit(1, walkers=walkers)
    assert world.destroy() == 0
    world.assert_empty()


class Unflushed(P2m):
    """A P2M that answers before its walkers have forgotten anything."""

    async def flush(self, domid):
        self._readers.clear()


def with_p2m(kind):
    """A factory whose P2M of domid 1 is another one."""

    def factory(address, config, hook):
        if address == envelope.p2m(1):
            return kind(Context(address, hook), 0)
        return make_component(address, config, hook)

    return factory


def test_a_walker_that_reads_while_others_flush_is_in_the_next_flush():
    """The P2M alone, in the order that matters: A has acknowledged, B has not, A reads again."""
    host = Host(make_component("p2m/1", World().config))
    ids = itertools.count(1)

    def deliver(src, body, answers=0):
        return host.deliver(Envelope(src, "p2m/1", next(ids), answers, body))

    deliver("allocator/0", P2mCreate(1, "npt", [9, 0], 2, pack(spread(0x1000, 9))))
    deliver("allocator/0", P2mAddPage(1, 0, pack([1, 2]), pack([0x2001, 0x2002])))
    for walker in ("walker/1.0", "walker/1.1"):
        deliver(walker, P2mGetRoot(1, walker))
    flushes = deliver("allocator/0", P2mRemovePages(1, 0, pack([1])))
    assert [(out.dst, out.body) for out in flushes] == [
        ("walker/1.0", FlushTlb(1)),
        ("walker/1.1", FlushTlb(1)),
    ]
    assert deliver("walker/1.0", Status(0), flushes[0].msg_id) == []
    (read,) = deliver("walker/1.0", ReadPageTableFrames(1, "walker/1.0", pack([0x1000])))
    assert len(read.body.data) == 4096
    (done,) = deliver("walker/1.1", Status(0), flushes[1].msg_id)
    assert done.body == P2mUpdated(1, 0, pack([0x2001]))
    (flush,) = deliver("allocator/0", P2mRemovePages(1, 0, pack([2])))
    assert (flush.dst, flush.body) == ("walker/1.0", FlushTlb(1)), "walker/1.1 read nothing since"
    (done,) = deliver("walker/1.0", Status(0), flush.msg_id)
    assert done.body == P2mUpdated(1, 0, pack([0x2002]))
    assert host.nr_parked == 0


def test_a_missing_flush_is_caught():
    """The check of the stale translations has teeth."""
    wrong = []
    for seed in range(4):
        world, timeline = start(seed, with_p2m(Unflushed))
        wrong += play(world, timeline, np.random.default_rng(seed))
    assert wrong


# one at a time


@pytest.mark.parametrize("paging", ["npt", "ept", "pae", "x86_32"])
def test_look_ups_do_not_fault_and_accesses_do(paging):
    world = World(paging=paging)
    world.create()
    world.populate([5, 6])
    reply = world.ask("walker/1.0", WalkTranslate(1, pack([5, 7, 6])))
    assert unpack(reply.mfns).tolist() == world.translate([5, 7, 6])
    assert (reply.nr_faults, reply.nr_tlb_hits) == (0, 0)
    reply = world.touch([5, 7, 6, 7])
    assert unpack(reply.mfns).tolist() == world.translate([5, 7, 6, 7])
    assert reply.nr_faults == 1, "a hole asked for twice at once is one fault"
    assert world.touch([5, 7]).nr_faults == 1, "a hole is never remembered"


def test_an_entry_that_was_filled_is_seen_without_a_flush():
    recorder = UpdateRecorder()
    world = World(recorder=recorder)
    world.create()
    world.populate([5])
    assert unpack(world.touch([6, 0x300]).mfns).tolist() == [INVALID_FRAME] * 2
    world.populate([6, 0x300])
    assert unpack(world.touch([6, 0x300]).mfns).tolist() == world.translate([6, 0x300])
    reply = world.ask("walker/1.0", WalkTranslate(1, pack([6, 0x300])))
    assert unpack(reply.mfns).tolist() == world.translate([6, 0x300])


@pytest.mark.parametrize(("order", "refs", "flat"), [(18, 2, 2), (9, 3, 1), (0, 4, 2)])
def test_what_a_walk_costs(order, refs, flat):
    """An entry a level from the root; by the flat view an L2 entry, and an L1 entry below it."""
    world = World(memory_mib=2048)
    world.create(max_mib=2048)
    assert world.populate([1 << 18], order) == 1
    reply = world.ask("walker/2.0", WalkTranslate(1, pack([1 << 18])))
    assert reply.nr_walk_refs == refs
    reply = world.ask("walker/1.0", WalkTranslate(1, pack([1 << 18])))
    assert (reply.nr_walk_refs, reply.nr_tlb_hits) == (flat, 0)
    assert world.touch([1 << 18]).nr_walk_refs == flat
    again = world.touch([1 << 18])
    assert (again.nr_walk_refs, again.nr_tlb_hits) == (0, 1)
    other = world.touch([(1 << 18) + 1])
    assert other.nr_tlb_hits == (1 if order else 0), "a superpage is one entry"


def test_touch_without_mfns_only_counts():
    world = World()
    world.create()
    world.populate([5])
    reply = world.ask("walker/1.0", Touch(1, pack([5, 6])))
    assert (reply.mfns, reply.nr_faults) == (b"", 1)


def test_a_walker_of_nobody():
    world = World()
    assert unpack(world.touch([5], domid=3).mfns).tolist() == [INVALID_FRAME]
    reply = world.ask("walker/3.0", WalkTranslate(4, pack([5])))
    assert unpack(reply.mfns).tolist() == [INVALID_FRAME]
