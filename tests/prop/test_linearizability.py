"""Random runs of a dict against the checker: right ones pass, however their calls overlap."""

from itertools import permutations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from protocols.errno import Errno
from protocols.frames import INVALID_FRAME, pack
from protocols.p2m_types import P2mType
from protocols.script import Operation, OperationResult
from services.spec.history import Event, from_json_line, to_json_line
from services.spec.linearizability import check

D = 1
RW, RO, LOGDIRTY = P2mType.RAM_RW, P2mType.RAM_RO, P2mType.RAM_LOGDIRTY
HOLE = (INVALID_FRAME, P2mType.MMIO_DM)
POD = (INVALID_FRAME, P2mType.POPULATE_ON_DEMAND)
GFNS = [0x200, 0x201, 0x202, 0x3FF, 0x400]
NEVER = 0xDEAD
"""A frame that no run hands out."""


class Model:
    """A domain as a dict; every operation happens at once."""

    def __init__(self, entries):
        self.entries = dict(entries)
        self.next_mfn = 0x9000
        self.rooms = 2000

    def at(self, gfn):
        return self.entries.get(gfn, HOLE)

    def run(self, op):
        return getattr(self, op.kind)(op)

    def extents(self, op, possible, change):
        for number in range(op.nr):
            first = op.gfn + (number << op.order)
            for gfn in range(first, first + (1 << op.order)):
                if not possible(gfn):
                    return OperationResult(number)
                change(gfn)
        return OperationResult(op.nr)

    def new_frame(self, gfn):
        self.next_mfn += 1
        self.rooms -= 1
        self.entries[gfn] = (self.next_mfn, RW)

    def populate(self, op):
        size = 1 << op.order
        room = lambda gfn: self.rooms >= size or (gfn - op.gfn) % size  # noqa: E731
        return self.extents(op, room, self.new_frame)

    def decrease(self, op):
        return self.extents(op, lambda gfn: self.at(gfn) != HOLE, self.entries.pop)

    def mark_pod(self, op):
        mark = lambda gfn: self.entries.update({gfn: POD})  # noqa: E731
        return self.extents(op, lambda gfn: self.at(gfn) in (HOLE, POD), mark)

    def set_type(self, op):
        for number in range(op.nr):
            gfn = op.gfn + number
            if self.at(gfn) == POD:
                self.new_frame(gfn)
            if self.at(gfn) == HOLE:
                return OperationResult(number, -Errno.EBUSY)
            self.entries[gfn] = (self.at(gfn)[0], P2mType(op.target))
        return OperationResult(op.nr)

    def move(self, op):
        back = op.gfn < op.target < op.gfn + op.nr
        for offset in sorted(range(op.nr), reverse=back):
            src, dst = op.gfn + offset, op.target + offset
            if self.at(src)[1] not in (RW, LOGDIRTY):
                return OperationResult(0, -Errno.EINVAL)
            self.entries[dst] = self.entries.pop(src)
        return OperationResult()

    def remove(self, op):
        if self.at(op.gfn) in (HOLE, POD):
            return OperationResult(0, -Errno.ENOENT)
        del self.entries[op.gfn]
        return OperationResult()

    def get(self, op):
        found = [self.at(op.gfn + number) for number in range(op.nr)]
        mfns, types = zip(*found, strict=True)
        return OperationResult(mfns=pack(list(mfns)), types=bytes(types))

    def get_alloc(self, op):
        for gfn in range(op.gfn, op.gfn + op.nr):
            if self.at(gfn) == POD:
                self.new_frame(gfn)
        return self.get(op)

    def touch(self, op):
        found = self.get_alloc(op)
        return OperationResult(mfns=found.mfns)

    def destroy(self, op):
        self.entries.clear()
        return OperationResult()


@st.composite
def operations(draw):
    kind = draw(
        st.sampled_from(
            [
                "populate",
                "decrease",
                "mark_pod",
                "set_type",
                "move",
                "remove",
                "touch",
                "destroy",
                "get",
                "get",
                "get_alloc",
                "populate",
                "decrease",
                "set_type",
                "move",
            ]
        )
    )
    gfn, nr = draw(st.sampled_from(GFNS)), draw(st.integers(1, 3))
    if kind in {"populate", "decrease", "mark_pod"} and draw(st.booleans()):
        return Operation(kind, D, draw(st.sampled_from([0x200, 0x400])), draw(st.integers(1, 2)), 9)
    target = draw(st.sampled_from([RW, RO, LOGDIRTY] if kind == "set_type" else GFNS))
    return Operation(kind, D, gfn, 1 if kind == "remove" else nr, 0, target)


STARTS = st.dictionaries(
    st.sampled_from(GFNS),
    st.one_of(st.just(POD), st.tuples(st.integers(1, 3), st.sampled_from([RW, RO]))),
)


@st.composite
def runs(draw):
    """(initial, events): each operation happens at once, somewhere between call and return."""
    entries = draw(STARTS)
    model = Model(entries)
    free_from = [0] * draw(st.integers(1, 4))
    events = []
    for number, op in enumerate(draw(st.lists(operations(), max_size=12))):
        now = 100 * number + 50
        idle = [client for client, since in enumerate(free_from) if since < now]
        if not idle:
            idle = [len(free_from)]
            free_from.append(0)
        client = draw(st.sampled_from(idle))
        call = max(free_from[client], now - draw(st.integers(0, 400)))
        ret = free_from[client] = now + draw(st.integers(1, 400))
        result = model.run(op)
        if draw(st.integers(0, 9)) == 0 and client:
            free_from[client] = 1 << 30
            events.append(Event(client, call, None, op, None))
        else:
            events.append(Event(client, call, ret, op, result))
    initial = {(D, gfn): entry for gfn, entry in entries.items()}
    return initial, draw(st.permutations(events))


@given(runs())
@settings(max_examples=100)
def test_right_runs_pass(run):
    initial, events = run
    assert check(events, initial, ()) == []
    assert check(events, initial, {D}) == []


@given(runs())
def test_lines_keep_runs(run):
    assert [from_json_line(to_json_line(event)) for event in run[1]] == run[1]


@given(runs(), st.data())
@settings(max_examples=100)
def test_a_frame_that_nobody_was_given_is_found(run, data):
    """A look-up that returns what its gfn is known not to have held."""
    initial, events = run
    reads = [at for at, each in enumerate(events) if each.op.kind == "get" and each.result]
    if not reads:
        return
    at = data.draw(st.sampled_from(reads))
    read = events[at]
    writers = [e for e in events if e.op.kind in {"populate", "get_alloc", "move"}]
    writers += [e for e in events if e.op.kind in {"touch", "mark_pod"}]
    if writers or any(entry == POD for entry in initial.values()):
        # What was populated has an unknown frame, but never this type.
        value = OperationResult(mfns=pack([NEVER]), types=bytes([P2mType.RAM_SHARED]))
        if any(e.op.kind == "move" for e in writers):
            value = OperationResult(mfns=pack([NEVER]), types=bytes([P2mType.GRANT_MAP_RO]))
    else:
        value = OperationResult(mfns=pack([NEVER]), types=bytes([RW]))
    op = Operation("get", D, read.op.gfn)
    broken = [*events[:at], Event(read.client, read.call, read.ret, op, value), *events[at + 1 :]]
    found = check(broken, initial, ())
    assert [each.gfn for each in found] == [read.op.gfn]
    assert "get" in found[0].message


# -- against every order -----------------------------------------------------------------------

GFN = 0x201
SMALL = [
    Operation("get", D, GFN),
    Operation("get", D, GFN),
    Operation("populate", D, GFN),
    Operation("decrease", D, GFN),
    Operation("set_type", D, GFN, target=RO),
    Operation("remove", D, GFN),
    Operation("destroy", D),
]
VALUES = [HOLE, (1, RW), (1, RO), (2, RW), (2, RO)]


@st.composite
def guesses(draw):
    """A few operations on one gfn with whatever results: mostly wrong histories."""
    events = []
    for client in range(draw(st.integers(1, 5))):
        op = draw(st.sampled_from(SMALL))
        result = OperationResult()
        if op.kind == "get":
            mfn, p2mt = draw(st.sampled_from(VALUES))
            result = OperationResult(mfns=pack([mfn]), types=bytes([p2mt]))
        elif op.kind in {"populate", "decrease"}:
            result = OperationResult(draw(st.integers(0, 1)))
        elif op.kind == "set_type":
            result = draw(st.sampled_from([OperationResult(1), OperationResult(0, -Errno.EBUSY)]))
        elif op.kind == "remove":
            result = draw(st.sampled_from([OperationResult(), OperationResult(0, -Errno.ENOENT)]))
        call = draw(st.integers(0, 20))
        lasts = draw(st.integers(1, 10))
        never = draw(st.integers(0, 5)) == 0
        ret = None if never else call + lasts
        events.append(Event(client, call, ret, op, None if never else result))
    return draw(st.sampled_from(VALUES)), events


def step(state, event, excused):
    """Entries that may follow an entry, in the plainest words; populated frames are 1, 2 or 3."""
    op, result = event.op, event.result
    if op.kind == "get":
        value = (int.from_bytes(result.mfns, "little"), P2mType(result.types[0]))
        return [state] if state == value else []
    if op.kind == "destroy":
        return [HOLE]
    good = result is None or (result.nr_done == 1 or (op.kind == "remove" and not result.rc))
    if op.kind == "populate":
        return [(mfn, RW) for mfn in (1, 2, 3)] if good else [state]
    if good:
        after = (state[0], RO) if op.kind == "set_type" else HOLE
        return [after] if state != HOLE else []
    return [state] if state == HOLE or (op.kind == "decrease" and excused) else []


def some_order(start, events, excused):
    """Whether any order of what returned, and any part of the rest, explains the history."""
    for order in permutations(events):
        states = {start}
        place = {id(event): at for at, event in enumerate(order)}
        if any(
            one.ret is not None and one.ret < two.call and place[id(one)] > place[id(two)]
            for one in events
            for two in events
        ):
            continue
        for event in order:
            after = set()
            if event.ret is not None or event.op.kind != "get":
                after = {new for old in states for new in step(old, event, excused)}
            states = after | states if event.ret is None else after
        if states:
            return True
    return False


@given(guesses())
@settings(max_examples=250)
@example((HOLE, [Event(0, 0, 5, SMALL[2], OperationResult(1)), Event(1, 1, 3, SMALL[3], None)]))
def test_the_verdict_is_that_of_trying_every_order(guess):
    start, events = guess
    initial = {} if start == HOLE else {(D, GFN): start}
    excused = any(each.op.kind == "destroy" for each in events)
    assert (check(events, initial, ()) == []) == some_order(start, events, excused)
