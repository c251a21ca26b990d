"""The P2M's lock protocols: three keep everything true under any schedule, one is broken by design.

The messages of one P2M are delivered by hand where the order matters: what it sends, and what it
does not send yet, shows who waits for whom.
"""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest

from deploy.driver.launch import Launch
from deploy.scenario.load import load_workloads
from deploy.scenario.model import HostSpec
from deploy.sim.runtime import SimRuntime
from deploy.world import host_config
from protocols import envelope
from protocols.domctl import DomctlDestroyDomain
from protocols.envelope import Envelope
from protocols.errno import BadInputError, Errno
from protocols.frames import pack
from protocols.heap import SetM2p
from protocols.memory import MAPSPACE_GMFN, AddToPhysmap, SetPodTarget, Status
from protocols.p2m import (
    P2mAddPage,
    P2mChangeType,
    P2mCreate,
    P2mEntries,
    P2mGetEntry,
    P2mGetRoot,
    P2mMarkPod,
    P2mMove,
    P2mPodCacheAdd,
    P2mPoolFrames,
    P2mRemovePages,
    P2mTeardown,
    P2mUpdated,
    ReadPageTableFrames,
)
from protocols.p2m_types import MemFlag, P2mType
from protocols.walk import FlushTlb, NestedPageFault, Touch
from services.component.context import Context
from services.component.host import Host
from services.p2m.component import P2m
from services.p2m.locking import LOCK_PROTOCOLS, REGIONS_MAX, RETRIES_MAX, make_locking
from tests.helpers import POD, World, guest, scenario, spread
from tests.sim import test_random_mix as random_mix

CORRECT = ("domain", "region", "optimistic")
A, B, C = 0x200, 0x400, 0x600
"""Superpages in regions of their own."""


class Bench:
    """One P2M, its messages delivered by hand."""

    def __init__(self, protocol, *, pod=False, readers=("walker/1.0",)):
        self.host = Host(P2m(Context("p2m/1"), 0, protocol))
        self.p2m = self.host.component
        self._sent = 0
        self._queue = []
        pool = pack(range(0x100, 0x140))
        self.ask(P2mCreate(1, "npt", [0, 9, 18], 1, pool))
        gfns, mfns = pack([A, B, C]), pack([0x1000, 0x1200, 0x1400])
        if pod:
            self.ask(P2mMarkPod(1, 9, gfns))
            self.ask(P2mPodCacheAdd(1, 9, mfns))
        else:
            self.ask(P2mAddPage(1, 9, gfns, mfns))
        self.read(*readers)

    def read(self, *readers):
        for reader in readers:
            self.ask(P2mGetRoot(1, reader))

    def send(self, request, src="client/0"):
        """Deliver a request; the envelopes that it causes."""
        self._sent += 1
        return self.host.deliver(Envelope(src, "p2m/1", self._sent, 0, request))

    def ask(self, request):
        (reply,) = self.send(request)
        return reply.body

    def reply(self, sent, body=Status(0)):
        """Answer one of the P2M's messages; the envelopes that this causes."""
        self._sent += 1
        return self.host.deliver(Envelope(sent.dst, "p2m/1", self._sent, sent.msg_id, body))

    def echo(self, sent):
        """A continuation comes back."""
        return self.host.deliver(sent)


@pytest.fixture
def make_bench():
    """Benches; what is still under way on one at the end of the test dies there."""
    benches = []

    def make(*args, **more):
        benches.append(Bench(*args, **more))
        return benches[-1]

    yield make
    for bench in benches:
        bench.host.abandon()


def kinds(envelopes):
    return [type(each.body) for each in envelopes]


def retype(*gfns, p2mt=P2mType.RAM_RO):
    return P2mChangeType(1, p2mt, pack(gfns))


# who waits for whom


@pytest.mark.parametrize("protocol", ["region", "optimistic", "none"])
def test_updates_of_different_regions_do_not_wait_for_each_other(make_bench, protocol):
    bench = make_bench(protocol)
    (first,) = bench.send(retype(A))
    (second,) = bench.send(retype(B))
    assert kinds([first, second]) == [FlushTlb, FlushTlb]
    (answer,) = bench.reply(second)
    assert answer.body == P2mUpdated(1, 0)
    assert bench.p2m.outstanding_flushes == 1
    (answer,) = bench.reply(first)
    assert answer.body == P2mUpdated(1, 0)


def test_updates_of_one_domain_queue_under_its_lock(make_bench):
    bench = make_bench("domain")
    (first,) = bench.send(retype(A))
    assert bench.send(retype(B)) == []
    assert kinds(bench.reply(first)) == [P2mUpdated, P2mUpdated], "the walker has not read again"


@pytest.mark.parametrize("protocol", ["domain", "region"])
def test_updates_of_one_region_queue(make_bench, protocol):
    bench = make_bench(protocol)
    (first,) = bench.send(retype(A))
    assert bench.send(retype(A + 1)) == []
    assert bench.send(P2mGetEntry(1, pack([A + 2]))) == []
    assert bench.send(NestedPageFault(1, pack([A + 3]), False)) == []
    assert len(bench.reply(first)) == 4


def test_optimistic_updates_of_one_region_flush_at_the_same_time(make_bench):
    bench = make_bench("optimistic")
    (first,) = bench.send(retype(A))
    (second,) = bench.send(retype(A + 1))
    assert kinds([first, second]) == [FlushTlb, FlushTlb]
    assert kinds(bench.reply(first)) == [P2mUpdated]
    assert kinds(bench.reply(second)) == [P2mUpdated]
    assert bench.p2m.locking.retries == 0


@pytest.mark.parametrize("protocol", CORRECT)
def test_moves_take_both_regions(make_bench, protocol):
    bench = make_bench(protocol)
    (flush,) = bench.send(P2mMove(1, A, B, 0x1000))
    waiting = []
    for gfn in (A + 1, B + 1):
        waiting += bench.send(P2mGetEntry(1, pack([gfn])))
    if protocol == "optimistic":
        assert [each.dst for each in waiting] == ["p2m/1"] * 2
    else:
        assert waiting == []
    (elsewhere, *_) = bench.send(P2mGetEntry(1, pack([C]))) or [None]
    assert (elsewhere is None) == (protocol == "domain")
    bench.read("walker/1.0")
    (second,) = bench.reply(flush)
    assert type(second.body) is FlushTlb
    done = bench.reply(second)
    for each in waiting:
        done += bench.echo(each)
    assert kinds(done).count(P2mEntries) == 2 + (protocol == "domain")
    assert kinds(done).count(P2mUpdated) == 1


def test_an_optimistic_lookup_tries_again_and_then_queues(make_bench):
    bench = make_bench("optimistic")
    (flush,) = bench.send(retype(A))
    turns = bench.send(P2mGetEntry(1, pack([A])))
    for _ in range(RETRIES_MAX - 1):
        (note,) = turns
        assert note.dst == "p2m/1"
        turns = bench.echo(note)
    (note,) = turns
    assert bench.echo(note) == [], "it queues by now"
    assert bench.p2m.locking.retries == RETRIES_MAX
    updated, entries = bench.reply(flush)
    assert (updated.body.nr_done, entries.body.types) == (1, bytes([P2mType.RAM_RO]))


def test_an_update_after_an_unfinished_flush_waits_for_its_walkers(make_bench):
    """The removal is not answered yet, so the walker may still use the frame that is gone."""
    bench = make_bench("optimistic")
    (flush,) = bench.send(P2mRemovePages(1, 9, pack([A])))
    (again,) = bench.send(P2mAddPage(1, 9, pack([A]), pack([0x2000])))
    assert type(again.body) is FlushTlb
    (elsewhere,) = bench.send(P2mAddPage(1, 9, pack([0x800]), pack([0x2200])))
    assert type(elsewhere.body) is P2mUpdated, "nothing was there that a walker could know"
    assert kinds(bench.reply(flush)) == [P2mUpdated]
    assert kinds(bench.reply(again)) == [P2mUpdated]


def test_a_flush_includes_walkers_that_have_not_acknowledged_another(make_bench):
    bench = make_bench("region", readers=("walker/1.0", "walker/1.1"))
    first = bench.send(retype(A))
    assert [each.dst for each in first] == ["walker/1.0", "walker/1.1"]
    bench.read("walker/1.2")
    second = bench.send(retype(B))
    assert [each.dst for each in second] == ["walker/1.0", "walker/1.1", "walker/1.2"]
    for each in first:
        answer = bench.reply(each)
    assert kinds(answer) == [P2mUpdated]
    (third, *_) = bench.send(retype(C))
    assert third.dst == "walker/1.0"


@pytest.mark.parametrize("protocol", CORRECT)
def test_the_m2p_word_of_a_populated_page_is_written_before_it_can_be_removed(make_bench, protocol):
    bench = make_bench(protocol, pod=True)
    (m2p,) = bench.send(NestedPageFault(1, pack([A]), True))
    assert type(m2p.body) is SetM2p
    assert bench.p2m.pod.entry_count == 2 << 9, "the count changes with the entry"
    later = bench.send(P2mRemovePages(1, 0, pack([A])))
    assert kinds(later) == [] or later[0].dst == "p2m/1"
    done = bench.reply(m2p)
    for each in later:
        done += bench.echo(each)
    assert FlushTlb in kinds(done)


@pytest.mark.parametrize("protocol", CORRECT)
def test_requests_for_very_much_take_the_whole_table(make_bench, protocol):
    bench = make_bench(protocol)
    extents = P2mAddPage(
        1, 9, pack(spread(0x8000, REGIONS_MAX + 1, 9)), pack(spread(0x8000, REGIONS_MAX + 1, 9))
    )
    (flush,) = bench.send(retype(A))
    assert bench.send(extents) == []
    assert kinds(bench.reply(flush)) == [P2mUpdated, P2mUpdated]
    assert not bench.p2m.lock.held
    assert bench.host.nr_parked == 0


def regions(protocol, gfns, order, *, shift=9):
    locking = make_locking(protocol, Context("p2m/1"), None)
    locking.region_shift = shift
    return locking._touched(np.array(gfns, dtype=np.uint64), order)


def test_the_regions_of_extents():
    assert regions("region", [0x3FF, 0x200, 0x5], 0) == [0, 1]
    assert regions("region", [0x3FF, 0x200, 0x5], 0, shift=10) == [0]
    assert regions("region", [0x200, 0xA00], 9) == [1, 5]
    assert regions("region", [0x201, 0xA00, 0x4000], 9) == [1, 2, 5, 0x20]
    assert regions("region", [0x400, 0x4000], 11) == [2, 3, 4, 5, 0x20, 0x21, 0x22, 0x23]
    assert regions("region", [], 0) == []
    assert regions("region", [0], 18) is None
    assert regions("region", spread(0, REGIONS_MAX, 9), 9) == list(range(REGIONS_MAX))
    assert regions("region", spread(0, REGIONS_MAX + 1, 9), 9) is None
    assert regions("region", [0], 0, shift=None) is None
    top = (1 << 64) - 1
    assert regions("optimistic", [top, 0], 0) == [0, top >> 9]


def test_a_protocol_that_there_is_not():
    with pytest.raises(BadInputError, match="p2m_lock 'mutex': expected one of domain, region,"):
        HostSpec(p2m_lock="mutex")
    with pytest.raises(AssertionError, match="no lock protocol 'mutex'"):
        P2m(Context("p2m/1"), 0, "mutex")
    assert host_config(HostSpec(p2m_lock="region")).p2m_lock == "region"


def test_a_scenario_names_the_protocol(tmp_path):
    path = tmp_path / "work.toml"
    table = (
        "[[domains]]\nname = 'a'\ntype = 'pvh'\nkernel = 'k'\nmemory = 64\n[host]\np2m_lock = {}\n"
    )
    path.write_text(table.format("'optimistic'"))
    assert load_workloads([path], {})[0].host.p2m_lock == "optimistic"
    path.write_text(table.format("'mutex'"))
    with pytest.raises(BadInputError, match=r"host\.p2m_lock: invalid enum value 'mutex'"):
        load_workloads([path], {})


# teardown


def test_tables_are_out_of_reach_before_the_last_flush(make_bench):
    """A walker that reads between its acknowledgement and the end must find nothing to keep."""
    bench = make_bench("domain")
    root = bench.p2m.table.root_mfn
    (flush,) = bench.send(P2mTeardown(1))
    assert type(flush.body) is FlushTlb
    assert bench.ask(P2mGetRoot(1, "walker/1.0")).root_mfn == 0
    assert not any(bench.ask(ReadPageTableFrames(1, "walker/1.0", pack([root]))).data)
    (frames,) = bench.reply(flush)
    assert type(frames.body) is P2mPoolFrames
    assert len(frames.body.mfns) == 0x40 * 8


@pytest.mark.parametrize("protocol", LOCK_PROTOCOLS)
@pytest.mark.parametrize("seed", range(12))
def test_no_walker_keeps_a_table_of_a_domain_that_is_gone(protocol, seed):
    world = World(seed=seed, p2m_lock=protocol)
    world.create(vcpus=3)
    world.populate(spread(A, 4, 9), 9)
    world.touch([A])
    touches = [
        (envelope.walker(1, vcpu), Touch(1, pack(spread(A + vcpu, 6, 6)), True)) for vcpu in (0, 1)
    ]
    retypes = [(envelope.p2m(1), retype(A + 7, B + 7)), (envelope.p2m(1), retype(A + 9))]
    world.run(*touches, ("allocator/0", DomctlDestroyDomain(1)), *retypes, *touches)
    for vcpu in (0, 1):
        walker = world.rt.component(envelope.walker(1, vcpu))
        assert [mfn for mfn in walker.cached_tables().tolist() if mfn] == []
        assert walker.tlb.entries()[0].size == 0
    world.assert_empty()


@pytest.mark.parametrize("protocol", LOCK_PROTOCOLS)
def test_requests_under_way_survive_the_end_of_the_tables(make_bench, protocol):
    bench = make_bench(protocol)
    asked = [
        retype(A, B),
        P2mMove(1, A + 1, C, 0x1001),
        P2mAddPage(1, 9, pack([C]), pack([0x2000])),
    ]
    queue = [sent for request in asked for sent in bench.send(request)]
    queue += bench.send(P2mTeardown(1))
    replies = []
    while queue:
        sent = queue.pop(0)
        if sent.dst == "p2m/1":
            queue += bench.echo(sent)
        elif sent.dst == "client/0":
            replies.append(sent.body)
        else:
            queue += bench.reply(sent)
    assert len(replies) == 4
    assert bench.host.nr_parked == 0
    assert bench.p2m.table_now is None
    errnos = {-reply.rc for reply in replies if type(reply) is P2mUpdated}
    assert errnos <= {Errno.OK, Errno.ESRCH}
    assert Errno.ESRCH in errnos or protocol != "none"


# any schedule


@pytest.mark.parametrize("protocol", CORRECT)
@pytest.mark.parametrize("seed", range(500, 512))
def test_any_mix_leaves_a_clean_host_under_every_correct_protocol(monkeypatch, protocol, seed):
    monkeypatch.setattr(
        random_mix,
        "host_config",
        lambda spec: host_config(dataclasses.replace(spec, p2m_lock=protocol)),
    )
    random_mix.test_any_mix_of_requests_leaves_a_clean_host(seed)


def hot_world(protocol, seed):
    """Two regions of RAM, one of PoD, with walkers that know them."""
    world = World(seed=seed, p2m_lock=protocol)
    world.create(max_mib=16, vcpus=2)
    world.populate([A, B], 9)
    assert world.populate([C], 9, flags=MemFlag.POPULATE_ON_DEMAND) == 1
    assert world.hypercall(SetPodTarget(1, 1400)).rc == 0
    for vcpu in (0, 1):
        world.touch([A, B], vcpu=vcpu)
    return world


def hot_requests(seed):
    """Moves, removals, types and accesses that meet on a few pages of three regions."""
    rng = np.random.default_rng(seed)
    pages = [A, A + 1, B, B + 1, C, C + 1, 0x800]

    def some(nr):
        return [pages[index] for index in rng.choice(len(pages), nr, replace=False)]

    home, p2m = "allocator/0", envelope.p2m(1)
    requests = []
    for _ in range(10):
        src, dst = some(2)
        touch = Touch(1, pack(some(3)), True, want_mfns=True)
        requests += [
            (home, AddToPhysmap(1, MAPSPACE_GMFN, src, dst)),
            (p2m, P2mChangeType(1, int(rng.choice([0, 2, 3])), pack(some(2)))),
            (envelope.walker(1, int(rng.integers(2))), touch),
            (p2m, P2mGetEntry(1, pack(some(2)), alloc=bool(rng.integers(2)))),
        ]
    return [requests[index] for index in rng.permutation(len(requests))]


def run_hot(protocol, seed):
    world = hot_world(protocol, seed)
    try:
        world.run(*hot_requests(seed))
        world.run(("allocator/0", SetPodTarget(1, 1600)), *hot_requests(seed + 1000))
        world.audit(1, walkers=[(1, 0), (1, 1)])
        assert world.destroy() == 0
        world.assert_empty()
    finally:
        for host in world.rt._hosts.values():
            host.abandon()


@pytest.mark.parametrize("protocol", CORRECT)
@pytest.mark.parametrize("seed", range(15))
def test_a_few_hot_pages_stay_consistent(protocol, seed):
    run_hot(protocol, seed)


def test_without_a_lock_a_few_hot_pages_do_not():
    broken = 0
    for seed in range(15):
        try:
            run_hot("none", seed)
        except Exception:  # noqa: BLE001 (an audit that fails or an assertion inside)
            broken += 1
    assert broken


@pytest.mark.parametrize("protocol", LOCK_PROTOCOLS)
def test_two_moves_onto_one_page_on_demand(make_bench, protocol):
    """Both find a PoD entry, one of them replaces it; without a lock it is counted twice."""
    bench = make_bench(protocol, pod=True)
    bench.ask(P2mAddPage(1, 0, pack([0x800, 0x801]), pack([0x2000, 0x2001])))
    bench.read("walker/1.0")
    queue = bench.send(P2mMove(1, 0x800, A, 0x2000)) + bench.send(P2mMove(1, 0x801, A, 0x2001))
    done = []
    while queue:
        sent = queue.pop(0)
        if sent.dst == "client/0":
            done.append(sent.body)
        else:
            queue += bench.echo(sent) if sent.dst == "p2m/1" else bench.reply(sent)
    assert [reply.rc for reply in done] == [0, 0]
    frames = bench.ask(P2mGetEntry(1, pack(spread(A, 512))))
    still = frames.types.count(POD) + (2 << 9)
    assert (bench.p2m.pod.entry_count == still) == (protocol != "none")


# the same tables


def test_one_request_after_the_other_gives_the_same_tables():
    """Who never meets anybody cannot tell the protocols apart."""
    tables = []
    for protocol in LOCK_PROTOCOLS:
        world = hot_world(protocol, None)
        for seed in range(4):
            for request in hot_requests(seed):
                world.run(request)
        world.audit(1, walkers=[(1, 0), (1, 1)])
        assert world.rt.component(envelope.p2m(1)).locking.retries == 0
        tables.append((world.leaves(), world.p2m().extents, world.p2m().pod_entries))
    assert all(one == other for one, other in pairwise(tables))
    assert len(tables[0][0]) > 500


def test_builds_give_the_same_tables():
    work = scenario(guest("a", 24), guest("b", 16, maxmem=32), memory_mib=256)
    reports = []
    for protocol in LOCK_PROTOCOLS:
        host = dataclasses.replace(work.host, p2m_lock=protocol)
        config = host_config(host)
        runtime = SimRuntime(config)
        Launch(dataclasses.replace(work, host=host), config, runtime).run()
        world = World.__new__(World)
        world.rt, world.config = runtime, config
        world.audit(1, 2)
        reports.append([world.leaves(domid) for domid in (1, 2)])
    assert all(one == other for one, other in pairwise(reports))
