"""Links between shards, and shards driven bare: coalescing, credits, fail-stop."""

from collections import deque

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.cluster.actor import ShardActor
from deploy.cluster.link import BATCH_MAX, INLINE_BYTES, WINDOW, Link, split
from deploy.cluster.shard import CLIENT_SHARD, Shard, ShardConfig
from deploy.driver.launch import Launch
from deploy.runtime import RunStuckError
from deploy.scenario.model import Build, Punch, Touch
from deploy.sim.oracles import Seeded
from deploy.world import SERVICES, host_config, make_component, shard_count, shard_of
from protocols.codec import decode_batch, encode_batch
from protocols.control import SnapshotNode
from protocols.domctl import DomctlCreateDomain
from protocols.envelope import CLIENT, Envelope
from protocols.errno import ProtocolError
from protocols.frames import pack
from protocols.p2m import P2mGetEntry, P2mTeardown, P2mUpdated
from services.component.component import handles
from services.component.context import Context
from services.p2m.component import P2m
from tests.helpers import guest, launch, leaf_rows, scenario, shape


def note(number, size=0):
    """An envelope that can be told from others; ``size`` words long."""
    return Envelope("p2m/1", "walker/1.0", number, 0, P2mGetEntry(1, bytes(8 * size)))


def answer(number):
    """The reply to an envelope of the peer."""
    return Envelope("p2m/1", "walker/1.0", number, 1, P2mUpdated(0, 0))


def numbers(batches):
    return [envelope.msg_id for data in batches for envelope in decode_batch(data).envelopes]


# links


def test_an_idle_link_sends_at_once_and_a_busy_one_waits():
    link = Link(3)
    for number in range(WINDOW):
        link.pending.append(note(number))
        (data,) = link.batches()
        assert (decode_batch(data).sender, numbers([data])) == (3, [number])
    link.pending += [note(10), note(11)]
    assert link.batches() == []
    link.pending.append(note(12))
    link.received(1, [])
    assert numbers(link.batches()) == [10, 11, 12]
    assert link.batches() == []
    assert (link.in_flight, link.pending) == (WINDOW, [])


def test_a_batch_is_bounded_and_order_kept():
    link = Link(0)
    link.pending = [note(number) for number in range((WINDOW + 1) * BATCH_MAX)]
    sent = link.batches()
    assert [len(decode_batch(data).envelopes) for data in sent] == [BATCH_MAX] * WINDOW
    link.received(WINDOW, [])
    assert numbers(sent + link.batches()) == list(range((WINDOW + 1) * BATCH_MAX))


def test_credits_ride_on_traffic_and_go_alone_only_when_asked_for():
    link = Link(1)
    link.received(0, [note(1)])
    assert (link.batches(), link.owed) == ([], 1)
    link.pending.append(note(1))
    (data,) = link.batches()
    assert (decode_batch(data).credits, link.owed) == (1, 0)
    link.received(0, [])
    assert link.batches() == [], "asked for credits that are under way already"
    for _ in range(WINDOW):
        link.received(0, [note(2)])
        assert link.batches() == []
    link.received(0, [])
    (data,) = link.batches()
    batch = decode_batch(data)
    assert (batch.credits, batch.envelopes, link.owed) == (WINDOW, [], 0)
    assert link.in_flight == 1, "credits alone cost no credit"


def test_who_waits_asks_once_and_only_when_no_answer_is_due():
    link = Link(1)
    for number in range(WINDOW):
        link.pending.append(answer(number))
        link.batches()
    link.pending.append(answer(9))
    (data,) = link.batches()
    batch = decode_batch(data)
    assert (batch.credits, batch.envelopes) == (0, [])
    assert (link.batches(), link.ask()) == ([], []), "asked twice"
    link.received(WINDOW, [])
    assert numbers(link.batches()) == [9]

    link = Link(1)
    for number in range(WINDOW + 1):
        link.pending.append(note(number))
        sent = link.batches()
    assert (sent, link.answers_due) == ([], WINDOW), "answers will bring the credits"
    assert len(link.ask()) == 1, "unless they do not come: whoever polls asks"


def test_credits_for_nothing_are_an_error():
    link = Link(1)
    with pytest.raises(AssertionError, match="2 credits for batches never sent"):
        link.received(2, [])


def test_a_batch_above_the_inline_size_is_cut_where_envelopes_allow():
    words = INLINE_BYTES // 8 // 3
    link = Link(1)
    link.owed = 5
    link.pending = [note(number, words) for number in range(4)]
    sent = link.batches()
    assert numbers(sent) == [0, 1, 2, 3]
    assert [decode_batch(data).credits for data in sent] == [5, 0]
    assert all(len(data) <= INLINE_BYTES for data in sent)
    assert link.in_flight == 2
    assert len(split([note(1, 3 * words + 99)], 1)) == 1, "one envelope is never cut"


@given(st.lists(st.integers(0, 30_000), min_size=1, max_size=12), st.integers(0, 9))
def test_split_loses_nothing(sizes, owed):
    envelopes = [note(number, size) for number, size in enumerate(sizes)]
    batches = [decode_batch(data) for data in split(envelopes, 7, owed)]
    assert [envelope for batch in batches for envelope in batch.envelopes] == envelopes
    assert [batch.credits for batch in batches] == [owed] + [0] * (len(batches) - 1)
    for data, batch in zip(split(envelopes, 7, owed), batches, strict=True):
        assert len(data) <= INLINE_BYTES or len(batch.envelopes) == 1


@given(st.lists(st.sampled_from("abAB"), max_size=60), st.integers(1, 40), st.booleans())
def test_two_links_never_deadlock(steps, size, answering):
    """Whatever the order of sending and delivering, all that was sent arrives, in order."""
    ends, wires, got, sent = {}, {"a": deque(), "b": deque()}, {"a": [], "b": []}, {"a": 0, "b": 0}
    ends["a"], ends["b"] = Link(0), Link(1)
    other = {"a": "b", "b": "a"}
    make = answer if answering else note

    def flush(end):
        wires[other[end]].extend(ends[end].batches())

    def deliver(end):
        batch = decode_batch(wires[end].popleft())
        ends[end].received(batch.credits, batch.envelopes)
        got[end] += [envelope.msg_id for envelope in batch.envelopes]
        flush(end)

    def poll():
        for end in "ab":
            wires[other[end]].extend(ends[end].ask())

    for step in steps:
        end = step.lower()
        if step.islower():
            ends[end].pending += [make(sent[end] + number) for number in range(size)]
            sent[end] += size
            flush(end)
        elif wires[end]:
            deliver(end)
    while True:
        if not (answering or wires["a"] or wires["b"]):
            poll()
        if not (wires["a"] or wires["b"]):
            break
        deliver("a" if wires["a"] else "b")
    assert got == {"a": list(range(sent["b"])), "b": list(range(sent["a"]))}
    assert not ends["a"].pending
    assert not ends["b"].pending


# shards


class Shards:
    """A runtime of bare shards: batches on links between them, delivered as an oracle says."""

    def __init__(self, config, shards=1, *, seed=0, record=False, factory=None):
        self.layout = tuple(
            (service, shard)
            for service in SERVICES
            for shard in range(shard_count(service, shards, config.nr_nodes))
        )
        self.config, self.shards_of_service = config, shards
        self.wires = {}
        self.oracle = Seeded(seed)
        self.largest = 0
        more = {} if factory is None else {"factory": factory}
        self.shards = [
            Shard(ShardConfig(config, shards, self.layout, me, record, **more), self.sender(me))
            for me in range(len(self.layout))
        ]
        self.next_id = 0

    def sender(self, me):
        def send(peer, data):
            self.wires.setdefault((me, peer), deque()).append(data)
            self.largest = max(self.largest, len(data))

        return send

    def run(self, requests):
        first = self.next_id + 1
        for dst, request in requests:
            self.next_id += 1
            place = shard_of(dst, self.shards_of_service, self.config.nr_nodes)
            number = self.layout.index(place)
            sent = Envelope(CLIENT, dst, self.next_id, 0, request)
            self.shards[number].deliver(encode_batch([sent], CLIENT_SHARD))
        while ready := [link for link, wire in self.wires.items() if wire]:
            link = ready[self.oracle.choose(len(ready))]
            self.shards[link[1]].deliver(self.wires[link].popleft())
        replies = {}
        for shard in self.shards:
            report = shard.report()
            if report.failure is not None:
                raise RuntimeError(report.failure)
            replies |= {e.in_reply_to: e.body for e in decode_batch(report.replies).envelopes}
        if len(replies) < len(requests):
            raise RunStuckError([line for shard in self.shards for line in shard.parked()])
        return [replies[number] for number in range(first, self.next_id + 1)]

    def counts(self):
        return {tag: nr for shard in self.shards for tag, nr in shard.counts().items()}

    def wait(self, seconds):
        pass

    def close(self):
        pass


PHASES = (Build(), Touch(nr=2000, first_gfn=0x400), Punch(superpages=2, per_superpage=3))


def work(nodes=1):
    guests = [guest("a", 24, vcpus=2), guest("b", 20, 40), guest("c", 36, kind="hvm")]
    return scenario(*guests, phases=PHASES, memory_mib=256, nodes=nodes)


@pytest.mark.parametrize(("shards", "nodes"), [(1, 1), (2, 1), (2, 2), (3, 2)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_shards_build_what_the_local_runtime_builds(shards, nodes, seed):
    config = host_config(work(nodes).host)
    runtime = Shards(config, shards, seed=seed)
    report = Launch(work(nodes), config, runtime, keep_tables=True).run()
    plain, _ = launch(work(nodes))
    assert (report.violations, plain.violations) == ([], [])
    for ours, theirs in zip(report.domains, plain.domains, strict=True):
        assert shape(leaf_rows(ours.table)) == shape(leaf_rows(theirs.table))
        assert ours.to_json() == theirs.to_json()
    reports = [shard.report() for shard in runtime.shards]
    assert sum(report.delivered for report in reports) == sum(
        sum(shard.counts().values()) for shard in runtime.shards
    )
    assert all(shard.parked() == [] for shard in runtime.shards)


def test_what_is_recorded_is_what_was_delivered_once():
    runtime = Shards(host_config(work().host), 2, record=True)
    config = runtime.config
    Launch(work(), config, runtime).run()
    delivered = sum(shard.report().delivered for shard in runtime.shards)
    assert sum(len(shard.arrivals()) for shard in runtime.shards) == delivered


def test_nothing_is_recorded_unless_asked():
    runtime = Shards(host_config(work().host))
    Launch(work(), runtime.config, runtime).run()
    assert [shard.arrivals() for shard in runtime.shards] == [[]] * 4


# fail-stop


@pytest.mark.parametrize(
    ("data", "story"),
    [
        (b"garbage", "Expected `array`, got `int`"),
        (b"", "truncated"),
        (encode_batch([])[:1] + b"\x63" + encode_batch([])[2:], "batch version 99"),
        (encode_batch([note(1)]), "walker/1.0 is not of this shard"),
        (
            encode_batch([Envelope(CLIENT, "p2m/x", 1, 0, P2mTeardown(1))]),
            "envelope field `dst`: 'p2m/x' names no component",
        ),
        (
            encode_batch([Envelope(CLIENT, "p2m/1", 1, 9, P2mUpdated(0, 0))]),
            "which nobody waits for",
        ),
        (encode_batch([Envelope(CLIENT, "p2m/1", 1, 0, SnapshotNode(0))]), "no handler for"),
        (encode_batch([], sender=3, credits=1), "credits for batches never sent"),
    ],
)
def test_what_a_shard_cannot_take_stops_it_with_its_story(data, story):
    runtime = Shards(host_config(work().host))
    shard = runtime.shards[runtime.layout.index(("p2m", 0))]
    shard.deliver(data)
    report = shard.report()
    assert report.failure is not None
    assert story in report.failure
    before = report.delivered
    shard.deliver(encode_batch([Envelope(CLIENT, "p2m/1", 1, 0, P2mTeardown(1))]))
    after = shard.report()
    assert (after.delivered, after.failure, after.replies) == (
        before,
        report.failure,
        encode_batch([]),
    )


class Faulty(P2m):
    """A P2M that breaks an invariant when memory is added."""

    @handles(P2mTeardown)
    async def teardown(self, m):
        raise AssertionError(f"domid {m.domid}: a table is lost")


def faulty(address, config, hook):
    if address.startswith("p2m/"):
        return Faulty(Context(address, hook), 0)
    return make_component(address, config, hook)


def test_a_component_that_fails_tells_what_it_had_received():
    runtime = Shards(host_config(work().host), factory="tests.unit.test_link:faulty")
    runtime.run([("p2m/1", P2mGetEntry(1, pack([0x1234])))])
    with pytest.raises(RuntimeError) as caught:
        runtime.run([("p2m/1", P2mTeardown(1))])
    story = str(caught.value)
    assert story.startswith("p2m/1: AssertionError: domid 1: a table is lost\n")
    assert "client/0 #1 -> p2m/1: P2mGetEntry(" in story
    assert "client/0 #2 -> p2m/1: P2mTeardown(domid=1)" in story


def test_where_a_run_stands_when_nothing_moves():
    runtime = Shards(host_config(work().host))
    allocator = runtime.shards[runtime.layout.index(("allocator", 0))]
    create = Envelope(CLIENT, "allocator/0", 99, 0, DomctlCreateDomain(1, 5, 1, "off"))
    allocator.deliver(encode_batch([create]))
    (line,) = allocator.parked()
    assert line.startswith("allocator/0: LifeCycle.create_domain:")
    assert "domctl_createdomain 99 of client/0" in line
    assert not allocator.report().busy, "a credit that is owed is no work under way"


def test_an_address_of_nobody_is_refused():
    config = host_config(work().host)
    for address in ("allocator/7", "allocator/x", "p2m/-1", "walker/3", "disk/1", "", "p2m"):
        with pytest.raises(ProtocolError, match="names no component"):
            make_component(address, config)
    for address in ("allocator/x", "p2m/-1", "disk/1", "", "p2m", "client/0"):
        with pytest.raises(ProtocolError, match="names no component"):
            shard_of(address, 2, 1)


def test_the_actor_class_is_the_shard_and_its_peers():
    sent = []

    class Peer:
        class deliver:
            @staticmethod
            def options(**options):
                assert options == {"num_returns": 0}
                return Peer.deliver

            @staticmethod
            def remote(data):
                sent.append(data)

    config = host_config(work().host)
    layout = tuple((service, 0) for service in SERVICES)
    encoded = msgspec.msgpack.encode(ShardConfig(config, 1, layout, 1, record=True))
    actor = ShardActor(encoded)
    actor.connect(dict.fromkeys((0, 2, 3), Peer))
    create = Envelope(CLIENT, "allocator/0", 1, 0, DomctlCreateDomain(1, 5, 1, "off"))
    actor.deliver(encode_batch([create]))
    (batch,) = sent
    assert [envelope.dst for envelope in decode_batch(batch).envelopes] == ["p2m/1"]
    assert (actor.report().delivered, actor.counts()) == (1, {"domctl_createdomain": 1})
    assert len(actor.parked()) == len(actor.arrivals()) == 1
