"""The log of a tape and the rows made of it, by hand and on a real run."""

from types import SimpleNamespace

import numpy as np
import pytest

from deploy.driver.launch import Launch
from deploy.profile.open import own_trace
from deploy.scenario.model import Balloon, Build, Punch, Touch
from deploy.sim import runtime as sim_module
from deploy.sim.oracles import Seeded
from deploy.sim.runtime import SimRuntime
from deploy.world import host_config
from protocols.codec import encode_batch, encode_envelope
from protocols.envelope import Envelope
from protocols.frames import pack
from protocols.memory import DecreaseReservation, Status
from protocols.trace import DONE, HOW_BITS, ID_SHIFT, LOCK, TABLES, WAITS, MemEvent
from services.trace import tape as tape_module
from services.trace.rows import AT, CHANGED, NEVER, SEND, TapeRows
from services.trace.tape import StepClock, Tape
from tests.helpers import guest, scenario
from tests.unit.test_trace_file import Sink

ALLOCATOR, P2M = "allocator/0", "p2m/1"
GFNS = (0x200).to_bytes(8, "little") + (0x201).to_bytes(8, "little")


class Log:
    """A tape by a clock of steps, driven by hand."""

    def __init__(self):
        self.tape = Tape(StepClock())
        self.names = []
        self.rows = TapeRows(self.number)

    def number(self, name):
        if name not in self.names:
            self.names.append(name)
        return self.names.index(name)

    def request(self, number, src="toolstack/1", dst=ALLOCATOR):
        self.tape.begin(Envelope(src, dst, number, 0, DecreaseReservation(1, 0, GFNS)))
        return SimpleNamespace(arrival=None)

    def reply(self, number, asked, src=P2M, dst=ALLOCATOR):
        self.tape.begin(Envelope(src, dst, number, asked, Status(0)))

    def made(self):
        """({name: row of each id}, sends) of all parts since the last call."""
        serves, sends = {}, []
        for part in self.tape.take():
            made = self.rows.take(part)
            serves |= self.by_id(made.serves)
            sends += [dict(zip(SEND, row, strict=True)) for row in made.sends.tolist()]
        return serves, sends

    def by_id(self, rows):
        return {
            self.name(row[AT["id"]]): {name: row[at] for name, at in AT.items()}
            for row in rows.tolist()
        }

    def name(self, number):
        return f"{self.names[number >> ID_SHIFT]}#{number & ((1 << ID_SHIFT) - 1)}"


@pytest.fixture
def log():
    return Log()


def test_a_request_that_is_answered_at_once(log):
    log.tape.batch(1, b"")  # 1
    asked = log.request(7)  # 2
    log.tape.advanced(asked, 1, 1 << HOW_BITS | DONE)  # 3
    serves, sends = log.made()
    row = serves["toolstack/1#7"]
    assert (row["received"], row["started"], row["resumed"], row["ended"]) == (1, 2, 0, 3)
    assert (row["busy"], row["lock_wait"]) == (1, 0)
    assert (row["domid"], row["order"], row["nr"], row["gfn"]) == (1, 0, 2, 0x200)
    (send,) = sends
    assert log.name(send["first"]) == "allocator/0#1"
    assert log.name(send["cause"]) == log.name(send["parent"]) == "toolstack/1#7"
    assert (send["nr"], send["sent"], send["domid"]) == (1, 3, 1)


@pytest.mark.parametrize("nr_long", [0, 100])
def test_a_batch_is_kept_as_it_came_if_it_is_short(nr_long):
    """Between two batches comes what hosts of the same process sent one another."""
    first = [Envelope("toolstack/1", ALLOCATOR, n, 0, Status(0)) for n in (1, 2)]
    long = DecreaseReservation(3, 0, GFNS * (1 + nr_long))
    second = [Envelope("toolstack/2", ALLOCATOR, n, 0, long) for n in (1, 2, 3)]
    own = [Envelope("walker/1.0", P2M, n, 0, Status(0)) for n in (1, 2)]
    found = []
    for is_raw in (True, False):
        log = Log()
        log.names += [ALLOCATOR, P2M, "toolstack/1", "toolstack/2", "walker/1.0"]
        for batch in (first, second):
            log.tape.batch(len(batch), encode_batch(batch) if is_raw else b"")
            for each in (*batch, *own):
                log.tape.begin(each)
                log.tape.gathered() if each in own else log.tape.broke_off()
        found.append(log.made()[0])
    assert len(found[0]) == 5
    assert found[0] == found[1]
    row = found[0]["toolstack/2#3"]
    assert (row["nr"], row["domid"]) == (2 + 2 * nr_long, 3)
    assert row["bytes"] == len(encode_envelope(second[2]))


def test_who_waits_for_answers_and_for_a_lock(log):
    first = log.request(1)  # 1
    log.tape.advanced(first, 1, 2 << HOW_BITS | WAITS)  # 2
    second = log.request(2)  # 3
    log.tape.advanced(second, 3, LOCK)  # 4
    log.reply(10, 1)  # 5
    log.tape.gathered()  # 6
    log.reply(11, 2)  # 7
    log.tape.advanced(first, 4, 1 << HOW_BITS | DONE)  # 8
    log.tape.advanced(second, 5, 1 << HOW_BITS | DONE)  # 9
    serves, sends = log.made()
    one, two = serves["toolstack/1#1"], serves["toolstack/1#2"]
    assert (one["started"], one["resumed"], one["ended"]) == (1, 7, 8)
    assert (one["busy"], one["lock_wait"]) == (2, 0)
    assert (two["started"], two["resumed"], two["ended"]) == (3, 8, 9)
    assert (two["busy"], two["lock_wait"]) == (2, 4)
    assert (serves["p2m/1#10"]["ended"], serves["p2m/1#10"]["busy"]) == (6, 1)
    assert (serves["p2m/1#11"]["ended"], serves["p2m/1#11"]["busy"]) == (9, 2)
    told = [(log.name(s["first"]), s["nr"], log.name(s["cause"]), s["sent"]) for s in sends]
    assert told == [
        ("allocator/0#1", 2, "toolstack/1#1", 2),
        ("allocator/0#4", 1, "p2m/1#11", 8),
        ("allocator/0#5", 1, "p2m/1#11", 9),
    ]
    assert [log.name(s["parent"]) for s in sends] == ["toolstack/1#1"] * 2 + ["toolstack/1#2"]


def test_parts_may_end_anywhere(log):
    """As above, and everything is taken after each step."""
    first, second = log.request(1), None
    log.tape.advanced(first, 1, 1 << HOW_BITS | WAITS)
    serves, sends = log.made()
    assert not serves
    second = log.request(2)
    log.tape.advanced(second, 2, LOCK)
    serves |= log.made()[0]
    assert [log.name(row[AT["id"]]) for row in log.rows.rest()] == [
        "toolstack/1#1", "toolstack/1#2",
    ]  # fmt: skip
    log.reply(10, 1)
    log.tape.advanced(first, 3, 1 << HOW_BITS | DONE)
    log.tape.advanced(second, 4, 1 << HOW_BITS | DONE)
    serves, sends = log.made()
    assert (serves["toolstack/1#1"]["busy"], serves["toolstack/1#1"]["resumed"]) == (2, 5)
    assert (serves["toolstack/1#2"]["busy"], serves["toolstack/1#2"]["lock_wait"]) == (2, 2)
    assert [log.name(s["parent"]) for s in sends] == ["toolstack/1#1", "toolstack/1#2"]
    assert not len(log.rows.rest())


def test_who_is_resumed_later_is_not_of_the_step_before(log):
    first = log.request(1)  # 1
    log.tape.advanced(first, 1, LOCK)  # 2
    log.reply(10, 5)  # 3
    log.tape.gathered()  # 4
    log.tape.resumes()  # 5
    log.tape.advanced(first, 2, 1 << HOW_BITS | DONE)  # 6
    serves, sends = log.made()
    assert serves["p2m/1#10"]["ended"] == 4
    assert (serves["toolstack/1#1"]["resumed"], serves["toolstack/1#1"]["lock_wait"]) == (5, 3)
    assert serves["toolstack/1#1"]["busy"] == 2
    assert log.name(sends[0]["cause"]) == "p2m/1#10"


def test_what_a_host_failed_over_never_ends(log):
    waits = log.request(1)
    log.tape.advanced(waits, 1, 1 << HOW_BITS | WAITS)
    log.reply(10, 1)
    log.tape.broke_off()
    log.request(2)
    log.tape.broke_off()
    serves, _ = log.made()
    assert serves.keys() == {"p2m/1#10", "toolstack/1#2"}
    assert {row["ended"] for row in serves.values()} == {NEVER}
    assert {row["busy"] for row in serves.values()} == {1}
    assert log.by_id(log.rows.rest()).keys() == {"toolstack/1#1"}


def test_a_step_that_began_a_request_before_it_broke(log):
    asked = log.request(1)
    log.tape.advanced(asked, 1, 1 << HOW_BITS | WAITS)
    log.tape.broke_off()
    serves, sends = log.made()
    assert not serves
    assert len(sends) == 1
    assert log.by_id(log.rows.rest())["toolstack/1#1"]["ended"] == NEVER


def test_a_repeat_that_a_host_drops_has_no_row(log):
    asked = log.request(1)
    log.tape.advanced(asked, 1, 1 << HOW_BITS | DONE)
    log.request(1)
    log.reply(4, 9)
    serves, _ = log.made()
    assert serves.keys() == {"toolstack/1#1"}


def test_changes_are_of_the_run_that_made_them(log):
    frames = np.arange(0x200, 0x202, dtype=np.uint64)
    asked = log.request(1)  # 1
    log.tape.mem_event(MemEvent.SET_P2M_ENTRY, 1, 0, 0, frames, frames)
    log.tape.advanced(asked, 1, 1 << HOW_BITS | WAITS)  # 2
    log.tape.mem_event(MemEvent.DECREASE_RESERVATION, 1, 9, 0, frames[:1], frames[:1])
    log.tape.gathered()  # 3
    (part,) = log.tape.take()
    made = log.rows.take(part)
    changes = [dict(zip(CHANGED, row, strict=True)) for row in made.changes.tolist()]
    assert [each["time"] for each in changes] == [1, 2]
    assert [each["order"] for each in changes] == [0, 9]
    assert {log.name(each["cause"]) for each in changes} == {"toolstack/1#1"}
    assert made.gfns.tolist() == [0x200, 0x201, 0x200]


def traced():
    """The trace of a run with every kind of row, waits for locks included."""
    phases = (
        Build(), Touch(nr=300, first_gfn=0x400), Punch(superpages=3, per_superpage=2),
        Balloon("down", pages=4, first_gfn=0x400), Touch(nr=300, first_gfn=0x500),
    )  # fmt: skip
    work = scenario(guest("a", 32, vcpus=2), guest("b", 24, 64), phases=phases)
    config = host_config(work.host)
    sink = Sink(config)
    runtime = SimRuntime(config, sink=sink, oracle=Seeded(7))
    Launch(work, config, runtime).run()
    runtime.run(
        [
            (ALLOCATOR, DecreaseReservation(1, 0, pack(np.arange(first, first + 4))))
            for first in range(0x500, 0x520, 4)
        ]
    )
    runtime.close()
    return own_trace(memoryview(sink.whole()), "t")


def columns(trace):
    """All columns; addresses by name, because their numbers go by who was met first."""
    found = {
        table: {name: getattr(trace, table)[name].tolist() for name in TABLES[table]}
        for table in ("messages", "updates", "events")
    }
    for table in found.values():
        for name in {"id", "cause", "parent", "reply_to"} & table.keys():
            table[name] = [trace.name_of(number) if number else "" for number in table[name]]
        for name in {"src", "dst"} & table.keys():
            table[name] = [trace.names[number] for number in table[name]]
    return found


def test_a_trace_does_not_show_where_its_parts_were_cut(monkeypatch):
    whole = columns(traced())
    assert max(whole["messages"]["lock_wait"]) > 0
    assert max(whole["messages"]["resumed"]) > 0
    monkeypatch.setattr(sim_module, "WRITE_EVERY", 1)
    assert columns(traced()) == whole


def test_long_envelopes_are_described_as_short_ones_are(monkeypatch):
    whole = columns(traced())
    for longest in (0, 40, 60):
        monkeypatch.setattr(tape_module, "WHOLE_MAX", longest)
        assert columns(traced()) == whole
