"""The host: an envelope in, a list of envelopes out."""

import pytest

from protocols.control import Continuation
from protocols.envelope import Envelope
from protocols.errno import ComponentFailureError
from protocols.memory import ClaimPages, NrDone, RemoveFromPhysmap, Status
from protocols.p2m import P2mGetRoot, P2mRoot
from protocols.walk import FlushTlb
from services.component.component import Component, handles
from services.component.context import Context
from services.component.host import Host
from services.component.traps import Acquire, Call, CallAll, Preempt


class Sample(Component):
    """One handler for each trap."""

    def __init__(self, context):
        super().__init__(context)
        self.lock = context.lock("sample", 1)
        self.log = []

    @handles(P2mGetRoot)
    async def get_root(self, m):
        return P2mRoot(5, "npt")

    @handles(ClaimPages)
    async def claim(self, m):
        if m.nr_pages == 99:
            raise ValueError("domid 1: 99 is broken")
        flushed = await CallAll([(f"walker/1.{n}", FlushTlb(1)) for n in range(m.nr_pages)])
        return Status(sum(reply.rc for reply in flushed))

    @handles(RemoveFromPhysmap)
    async def remove(self, m):
        await Acquire(self.lock)
        try:
            self.log.append(("enter", m.gpfn))
            root = await Call("p2m/1", P2mGetRoot(1, "x"))
            await Preempt(root.root_mfn)
            self.log.append(("leave", m.gpfn))
            return Status(0)
        finally:
            self.lock.release()


@pytest.fixture
def host():
    return Host(Sample(Context("allocator/0")))


def request(number, body, src="client/0"):
    return Envelope(src, "allocator/0", number, 0, body)


def answer(to, body):
    return Envelope(to.dst, to.src, 900 + to.msg_id, to.msg_id, body)


def test_a_request_is_answered_with_its_id(host):
    (reply,) = host.deliver(request(42, P2mGetRoot(1, "x")))
    assert reply == Envelope("allocator/0", "client/0", 1, 42, P2mRoot(5, "npt"))
    assert host.nr_parked == 0


def test_call_all_resumes_once_with_replies_in_the_order_asked(host):
    first, second = host.deliver(request(1, ClaimPages(1, 2)))
    assert (first.dst, second.dst) == ("walker/1.0", "walker/1.1")
    assert host.deliver(answer(second, Status(-2))) == []
    (reply,) = host.deliver(answer(first, Status(-1)))
    assert reply.body == Status(-3)


def test_call_all_of_nobody_does_not_wait(host):
    (reply,) = host.deliver(request(1, ClaimPages(1, 0)))
    assert reply.body == Status(0)


def test_the_lock_is_handed_on_first_come_first_served(host):
    (ask,) = host.deliver(request(1, RemoveFromPhysmap(1, 10)))
    assert host.deliver(request(2, RemoveFromPhysmap(1, 11))) == []
    assert host.deliver(request(3, RemoveFromPhysmap(1, 12))) == []
    for gpfn in (10, 11, 12):
        (note,) = host.deliver(answer(ask, P2mRoot(7, "npt")))
        assert note.body == Continuation(7)
        assert (note.src, note.dst) == ("allocator/0", "allocator/0")
        reply, *more = host.deliver(note)
        assert reply.body == Status(0)
        assert host.component.log[-1 if not more else -2] == ("leave", gpfn)
        ask = more[0] if more else None
    assert ask is None
    assert not host.component.lock.held


def test_parked_activities_say_where_they_stand(host):
    host.deliver(request(1, RemoveFromPhysmap(1, 10)))
    (line,) = host.parked()
    assert "Sample.remove:" in line
    assert "remove_from_physmap 1 of client/0" in line


@pytest.mark.parametrize(
    ("envelope", "reason"),
    [
        (request(1, NrDone(3)), "no handler for nr_done"),
        (Envelope("p2m/1", "allocator/0", 4, 77, Status(0)), "answers 77, which nobody waits for"),
        (request(1, Continuation(0)), "a continuation from client/0"),
        (request(1, ClaimPages(1, 99)), "99 is broken"),
    ],
)
def test_a_failure_carries_reason_and_story(host, envelope, reason):
    host.deliver(request(9, P2mGetRoot(1, "x")))
    with pytest.raises(ComponentFailureError) as error:
        host.deliver(envelope)
    assert reason in str(error.value)
    assert "P2mGetRoot" in str(error.value), "the story begins before the failure"


def test_two_handlers_of_one_request_are_refused():
    with pytest.raises(AssertionError, match="two handlers of FlushTlb"):

        class Twice(Component):
            @handles(FlushTlb)
            async def one(self, m):
                return Status(0)

            @handles(FlushTlb)
            async def two(self, m):
                return Status(0)


def test_two_parts_of_a_component_do_not_handle_the_same_request():
    class Part(Component):
        @handles(FlushTlb)
        async def one(self, m):
            return Status(0)

    class Other(Component):
        @handles(FlushTlb)
        async def two(self, m):
            return Status(0)

    with pytest.raises(AssertionError, match="Whole: two handlers of FlushTlb"):
        type("Whole", (Part, Other), {})


def test_awaiting_anything_else_fails():
    class Wrong(Component):
        @handles(FlushTlb)
        async def flush(self, m):
            class Foreign:
                def __await__(self):
                    yield self

            await Foreign()
            return Status(0)

    host = Host(Wrong(Context("walker/1.0")))
    with pytest.raises(ComponentFailureError, match="may await only the traps"):
        host.deliver(Envelope("client/0", "walker/1.0", 1, 0, FlushTlb(1)))


def test_a_repeated_envelope_is_dropped_where_links_may_repeat():
    host = Host(Sample(Context("allocator/0")), retried=True)
    first = request(1, ClaimPages(1, 1))
    (flush,) = host.deliver(first)
    assert host.deliver(first) == []
    assert len(host.deliver(answer(flush, Status(0)))) == 1
    assert host.deliver(answer(flush, Status(0))) == [], "a duplicated reply"
    assert host.nr_parked == 0


def test_who_got_a_lock_can_wait_for_the_runtime(host):
    (ask,) = host.deliver(request(1, RemoveFromPhysmap(1, 10)))
    host.deliver(request(2, RemoveFromPhysmap(1, 11)))
    ((waiter, lock),) = host.blocked().items()
    assert lock.waiting() == [waiter]
    assert [holder.cause.msg_id for holder in lock.holders] == [1]
    (note,) = host.deliver(answer(ask, P2mRoot(7, "npt")), drain=False)
    host.deliver(note, drain=False)
    assert len(host.ready()) == 1
    (ask,) = host.resume()
    assert (len(host.ready()), host.blocked()) == (0, {})


def test_locks_are_taken_by_rising_rank_only():
    class Wrong(Sample):
        @handles(P2mGetRoot)
        async def get_root(self, m):
            await Acquire(self.lock)
            await Acquire(self.context.lock("lower", 0))

    with pytest.raises(ComponentFailureError, match="lock order: allocator/0:lower"):
        Host(Wrong(Context("allocator/0"))).deliver(request(1, P2mGetRoot(1, "x")))
