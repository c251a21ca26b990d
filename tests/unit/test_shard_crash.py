"""Shards that die at any batch, over links that repeat and delay: nothing lost, nothing twice."""

from collections import deque
from contextlib import suppress
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploy.cluster.chaos import Chaos, Life, kill_plan
from deploy.cluster.durable import DurableShard, KeptLink
from deploy.cluster.link import BATCH_MAX, WINDOW
from deploy.cluster.shard import CLIENT_SHARD, ShardConfig
from deploy.cluster.write_ahead import HEADER, WriteAhead
from deploy.driver.audit import take_audit
from deploy.driver.launch import Launch
from deploy.scenario.model import Build, Punch, Touch
from deploy.world import FACTORY, SERVICES, host_config, make_component, shard_count, shard_of
from protocols.codec import decode_batch, decode_envelope, encode_batch
from protocols.control import SnapshotNode
from protocols.envelope import CLIENT, Envelope
from protocols.frames import pack
from protocols.p2m import P2mGetEntry
from protocols.script import Operation, RunScript
from services.component.host import Host
from tests.helpers import guest, launch, leaf_rows, scenario, shape
from tests.unit.test_link import note, numbers

PHASES = (Build(), Touch(nr=600, first_gfn=0x400), Punch(superpages=2, per_superpage=3))


class Died(BaseException):
    """The end of a process."""


def die():
    raise Died


def close(shard):
    """A process takes its activities with it; here they must be closed, and object."""
    shard.close()
    for host in shard._hosts.values():
        for activity in (*host.waiting().values(), *host.blocked()):
            with suppress(Exception):
                activity.coroutine.close()


class Network:
    """Bare shards, wires between their lives, and a driver that joins the dead again.

    A wire is FIFO and belongs to a pair of lives, as an actor handle does: what is sent to a life
    that is over is lost, what a dead one had sent may still come, or only the first part of it.
    """

    def __init__(self, config, directory, chaos, *, shards=2, crashes=0, factory=FACTORY):
        self.config, self.shards_of_service, self.chaos = config, shards, chaos
        self.directory, self.factory = directory, factory
        self.layout = tuple(
            (service, shard)
            for service in SERVICES
            for shard in range(shard_count(service, shards, config.nr_nodes))
        )
        self.everybody = range(len(self.layout))
        self.random = Random(f"{chaos.seed} network")
        self.plan = kill_plan(chaos, len(self.layout))
        self.crashes, self.nr_kills, self.nr_stale = crashes, 0, 0
        self.lives = [0 for _ in self.everybody]
        self.wires, self.late = {}, {}
        self.dead = set()
        self.next_id = 0
        self.sent, self.replies, self.delivered = {}, {}, [0 for _ in self.everybody]
        self.shards = [None for _ in self.everybody]
        for me in self.everybody:
            self.start(me)
        for shard in self.shards:
            shard.connect({})

    # one shard

    def start(self, me):
        ends, lived = self.plan[me], self.lives[me]
        kill_after = ends[lived] if lived < len(ends) else 0
        life = Life(self.chaos, str(self.directory / str(me)), tuple(self.lives), kill_after)
        config = ShardConfig(
            self.config, self.shards_of_service, self.layout, me, True, self.factory, life
        )

        def send(peer, data):
            # Who sends to a life that is over has not been told of the next.
            to = shard._incarnations[peer]
            self.wires.setdefault((me, lived, peer, to), deque()).append(data)

        shard = DurableShard(config, send, die)
        self.shards[me] = shard

    def end(self, me):
        """A process is gone; the write under way may have left a part of a record."""
        self.nr_kills += 1
        self.dead.add(me)
        close(self.shards[me])
        self.shards[me] = None
        if self.random.random() < 0.5:
            torn = (HEADER.pack(1, 99) + b"torn")[: self.random.randint(1, HEADER.size + 4)]
            with (self.directory / str(me)).open("ab") as file:
                file.write(torn)
        for name, wire in self.wires.items():
            if name[:2] == (me, self.lives[me]):
                self.late[name] = self.random.randint(0, 60)
                for _ in range(self.random.choice((0, self.random.randint(0, len(wire))))):
                    wire.pop()

    def call(self, me, method, *args):
        """What a driver asks of a shard; whoever sees it dead has lost the answer."""
        if me in self.dead:
            return None
        try:
            return getattr(self.shards[me], method)(*args)
        except Died:
            self.end(me)
            return None

    # the schedule

    def step(self):
        """One delivery, poll or crash; False when nothing is left to deliver."""
        waiting = [wire for wire, batches in self.wires.items() if batches]
        ready = [wire for wire in waiting if not self.late.get(wire)]
        self.late = {wire: steps - 1 for wire, steps in self.late.items() if steps}
        if ready:
            wire = self.random.choice(ready)
            data = self.wires[wire].popleft()
            sender, life, peer, to = wire
            if peer not in self.dead and to == self.lives[peer]:
                self.nr_stale += self.shards[peer]._incarnations[sender] > life
                self.call(peer, "deliver", data, life)
        if self.crashes and self.random.random() < 0.02:
            self.crashes -= 1
            victim = self.random.choice(self.everybody)
            if victim not in self.dead:
                self.end(victim)
        return bool(waiting)

    def some_steps(self):
        for _ in range(self.random.randint(0, 4)):
            self.step()

    def recover(self):
        """The driver's protocol, with deliveries between its steps."""
        again = set()
        while self.dead:
            again |= self.dead
            for me in again:
                if me not in self.dead:
                    self.end(me)
                    self.nr_kills -= 1
                self.lives[me] += 1
            self.dead = set()
            for me in again:
                self.start(me)
            marks = {}
            for me in self.everybody:
                self.some_steps()
                lives = {peer: self.lives[peer] for peer in again if peer != me}
                marks[me] = self.call(me, "reconnect", lives)
            if self.dead:
                continue
            for me in again:
                theirs = {peer: marks[peer][me] for peer in self.everybody if peer != me}
                self.call(me, "connect", theirs)
                self.some_steps()
        self.to_shards(again)

    def to_shards(self, numbers):
        """Whatever has no reply goes (again), one envelope a batch."""
        for number, (dst, request) in self.sent.items():
            place = shard_of(dst, self.shards_of_service, self.config.nr_nodes)
            me = self.layout.index(place)
            if me in numbers and number not in self.replies:
                envelope = Envelope(CLIENT, dst, number, 0, request)
                self.call(me, "deliver", encode_batch([envelope], CLIENT_SHARD))

    def poll(self):
        """Whether anybody has something to send."""
        busy = False
        for me in self.everybody:
            report = self.call(me, "report")
            if report is None:
                continue
            if report.failure is not None:
                raise RuntimeError(report.failure)
            busy |= report.busy
            self.delivered[me] = report.delivered
            for reply in decode_batch(report.replies).envelopes:
                before = self.replies.setdefault(reply.in_reply_to, reply)
                assert before == reply, "another answer the second time"
        return busy

    def run(self, requests):
        first = self.next_id + 1
        for request in requests:
            self.next_id += 1
            self.sent[self.next_id] = request
        self.to_shards(self.everybody)
        idle = 0
        while len(self.replies) < len(self.sent) or self.dead:
            moved = self.step()
            if self.dead and self.random.random() < 0.2:
                self.recover()
            if not moved or self.random.random() < 0.05:
                moved |= self.poll()
            idle = 0 if moved or self.dead else idle + 1
            assert idle < 20, [line for shard in self.shards for line in shard.parked()]
        return [self.replies[number].body for number in range(first, self.next_id + 1)]

    def counts(self):
        return {tag: nr for shard in self.shards for tag, nr in shard.counts().items()}

    def wait(self, seconds):
        pass

    def settle(self):
        """Let everything arrive that is under way; no more crashes."""
        self.crashes = 0
        while self.step() or self.poll() or self.dead:
            self.recover()

    def close(self):
        for shard in self.shards:
            if shard is not None:
                close(shard)

    def recording(self):
        sequences = {}
        for shard in self.shards:
            for _, address, data in shard.arrivals():
                sequences.setdefault(address, []).append(decode_envelope(data))
        return sequences


def check_recording(config, sequences):
    """Each component, alone and given what it was given, sends just what the others were given.

    (What the client sent, and the replies that it got.)
    """
    links, came = {}, {}
    for address, envelopes in sequences.items():
        host = Host(make_component(address, config))
        for envelope in envelopes:
            assert envelope.dst == address
            came.setdefault((envelope.src, address), []).append(envelope)
            for out in host.deliver(envelope):
                links.setdefault((address, out.dst), []).append(out)
        assert host.nr_parked == 0
    sent, answers = {}, {}
    for link in [link for link in came if link[0] == CLIENT]:
        sent |= {envelope.msg_id: (envelope.dst, envelope.body) for envelope in came.pop(link)}
    for link in [link for link in links if link[1] == CLIENT]:
        answers |= {envelope.in_reply_to: envelope for envelope in links.pop(link)}
    assert came == links
    assert sent.keys() == answers.keys()
    return sent, answers


def work(nodes=1):
    guests = [guest("a", 24, vcpus=2), guest("b", 20, 40), guest("c", 36, kind="hvm")]
    return scenario(*guests, phases=PHASES, memory_mib=256, nodes=nodes)


def scripts(domid):
    """Clients that split superpages of one domain, each its own."""
    for client in range(3):
        first = 0x400 + 0x200 * client
        operations = [
            step
            for gfn in range(first, first + 60, 20)
            for step in (
                Operation("decrease", domid, gfn),
                Operation("touch", domid, gfn + 1, nr=3),
                Operation("populate", domid, gfn),
                Operation("move", domid, gfn + 2, target=gfn + 0x1000),
            )
        ]
        yield f"toolstack/{10 * domid + client}", RunScript(operations)


def check_run(network, nodes=1):
    config = network.config
    report = Launch(work(nodes), config, network, keep_tables=True).run()
    plain, calm = launch(work(nodes))
    assert (report.violations, plain.violations) == ([], [])
    for ours, theirs in zip(report.domains, plain.domains, strict=True):
        assert shape(leaf_rows(ours.table)) == shape(leaf_rows(theirs.table))
    requests = [request for domid in (1, 2) for request in scripts(domid)]
    ours, theirs = network.run(requests), calm.run(requests)
    for mine, other in zip(ours, theirs, strict=True):
        assert [each.nr_done for each in mine.results] == [each.nr_done for each in other.results]
        assert [each.rc for each in mine.results] == [each.rc for each in other.results]
    network.settle()
    tables = {}
    for name, runtime in (("chaos", network), ("calm", calm)):
        taken = take_audit(runtime, config, (1, 2, 3), ((1, 0), (1, 1), (2, 0)))
        assert taken.report.violations == []
        tables[name] = [shape(leaf_rows(snapshot.table)) for snapshot in taken.p2ms]
    assert tables["chaos"] == tables["calm"]
    network.settle()
    assert network.delivered == [sum(shard.counts().values()) for shard in network.shards]
    sequences = network.recording()
    assert sum(map(len, sequences.values())) == sum(network.delivered)
    assert check_recording(config, sequences) == (network.sent, network.replies)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("every", "crashes", "duplicate", "delay"),
    [(0, 0, 0.3, 0.3), (4, 0, 0, 0), (6, 10, 0.2, 0.2), (0, 20, 0, 0.5)],
)
def test_whatever_fails_the_run_is_the_calm_one(tmp_path, seed, every, crashes, duplicate, delay):
    nodes = 1 + seed % 2
    chaos = Chaos(seed, every, 16, duplicate, delay)
    network = Network(host_config(work(nodes).host), tmp_path, chaos, crashes=crashes)
    check_run(network, nodes)
    assert bool(network.nr_kills) == bool(every or crashes)
    network.close()


@settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.integers(0, 1 << 32),
    st.sampled_from((0, 1, 2, 5, 20)),
    st.integers(0, 12),
    st.sampled_from((0, 0.1, 0.9)),
    st.sampled_from((0, 0.1, 0.9)),
)
def test_every_component_is_given_everything_once(seed, every, crashes, duplicate, delay):
    phases = (Build(), Punch(superpages=1, per_superpage=2))
    small = scenario(guest("a", 8), guest("b", 8), phases=phases, memory_mib=64)
    with TemporaryDirectory() as directory:
        chaos = Chaos(seed, every, 8, duplicate, delay)
        network = Network(host_config(small.host), Path(directory), chaos, crashes=crashes)
        assert Launch(small, network.config, network).run().violations == []
        network.settle()
        sequences = network.recording()
        assert check_recording(network.config, sequences) == (network.sent, network.replies)
        network.close()


def test_the_schedules_do_reach_the_nasty_places(tmp_path):
    kills = stale = 0
    for seed in range(4):
        chaos = Chaos(seed, 5, 14, 0.2, 0.3)
        (tmp_path / str(seed)).mkdir()
        network = Network(host_config(work().host), tmp_path / str(seed), chaos, crashes=10)
        Launch(work(), network.config, network).run()
        kills, stale = kills + network.nr_kills, stale + network.nr_stale
        network.close()
    assert kills > 40
    assert stale > 3, "batches of a life that is over"


def test_a_replayed_shard_keeps_what_was_recorded_and_when(tmp_path):
    network = Network(host_config(work().host), tmp_path, Chaos())
    network.run([("p2m/1", P2mGetEntry(1, pack([number]))) for number in range(3)])
    me = network.layout.index(("p2m", 1))
    before = network.shards[me].arrivals()
    network.end(me)
    network.recover()
    after = network.shards[me].arrivals()
    assert [row[1:] for row in after] == [row[1:] for row in before]
    assert all(new[0] <= old[0] for new, old in zip(after, before, strict=True))
    network.run([("p2m/1", P2mGetEntry(1, pack([7])))])
    times = [when for when, *_ in network.shards[me].arrivals()]
    assert times == sorted(times)
    assert len(times) == len(before) + 1
    network.close()


def test_a_batch_that_breaks_a_component_breaks_it_in_every_life(tmp_path):
    network = Network(host_config(work().host), tmp_path, Chaos())
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no handler for snapshot_node"):
            network.run([("p2m/1", SnapshotNode(0, full=False))])
        network.end(network.layout.index(("p2m", 1)))
        network.recover()
    network.close()


# the parts


def test_a_kept_link_sends_again_what_was_not_acknowledged_in_order():
    link = KeptLink(0, Random(0), 0)
    sent = []
    for number in range(1, WINDOW + 3):
        link.pending.append(note(number))
        sent += link.batches()
    assert len(sent) == WINDOW + 1, "credits are asked for once"
    assert link.batches() == []
    link.received(1, [note(9)])
    assert (numbers(link.batches()), link.owed) == ([WINDOW + 1, WINDOW + 2], 0)
    link.restart()
    assert (link.in_flight, link.owed) == (0, 0)
    assert numbers(link.batches()) == [2, 3, 4]
    assert link.in_flight == 1
    link.received(1, [])
    link.restart()
    assert link.batches() == []


def test_credits_can_be_asked_for_again_after_a_restart():
    link = KeptLink(0, Random(0), 0)
    link.pending += [note(number) for number in range(1, (WINDOW + 1) * BATCH_MAX)]
    for _ in range(2):
        *batches, asked = link.batches()
        assert (len(batches), decode_batch(asked).envelopes) == (WINDOW, [])
        link.restart()


def test_a_repeated_batch_costs_a_credit_and_is_not_kept():
    link = KeptLink(0, Random(0), 1)
    link.pending.append(note(1))
    assert numbers(link.batches()) == [1, 1]
    assert link.in_flight == 2
    link.received(2, [])
    link.pending.append(note(2))
    assert numbers(link.batches()) == [2, 2]
    link.restart()
    assert link.pending == [note(2)]


@given(st.lists(st.binary(max_size=30), max_size=5), st.integers(0, 60))
def test_a_write_ahead_file_gives_back_what_is_whole(batches, cut):
    with TemporaryDirectory() as directory:
        path = Path(directory) / "0"
        file = WriteAhead(str(path))
        assert list(file.records()) == []
        for when, data in enumerate(batches):
            file.append(when, data)
        file.close()
        size = path.stat().st_size
        with path.open("r+b") as torn:
            torn.truncate(max(0, size - cut))
        file = WriteAhead(str(path))
        whole = list(file.records())
        assert whole == list(enumerate(batches))[: len(whole)]
        lost = sum(HEADER.size + len(data) for data in batches[len(whole) :])
        assert lost < cut + HEADER.size + 31
        file.append(99, b"more")
        file.close()
        file = WriteAhead(str(path))
        assert list(file.records()) == [*whole, (99, b"more")]
        file.close()


def test_kills_are_planned_and_bounded():
    assert kill_plan(Chaos(kills=9), 3) == [[], [], []]
    plan = kill_plan(Chaos(1, 10, 8), 3)
    assert sorted(map(len, plan)) == [2, 3, 3]
    assert all(1 <= nr < 20 for ends in plan for nr in ends)
    assert plan == kill_plan(Chaos(1, 10, 8), 3) != kill_plan(Chaos(2, 10, 8), 3)
    with pytest.raises(msgspec.ValidationError, match="duplicate"):
        msgspec.json.decode(b'{"duplicate": 1.5}', type=Chaos)
