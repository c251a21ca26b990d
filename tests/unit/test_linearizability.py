"""Hand-made histories of a gfn, right and wrong ones, and the lines that they are kept in."""

import json

import pytest

from protocols.errno import BadInputError, Errno
from protocols.frames import INVALID_FRAME, pack
from protocols.p2m_types import P2mType
from protocols.script import Operation, OperationResult
from services.spec import linearizability
from services.spec.history import Event, from_json_line, to_json_line

RW, RO, LOGDIRTY = P2mType.RAM_RW, P2mType.RAM_RO, P2mType.RAM_LOGDIRTY
POD = (INVALID_FRAME, P2mType.POPULATE_ON_DEMAND)
HOLE = (INVALID_FRAME, P2mType.MMIO_DM)
GRANT = (0x77, P2mType.GRANT_MAP_RW)
D, GFN, FREE = 1, 0x201, 0x1000
START = {(D, GFN): (0x4201, RW), (D, GFN + 1): (0x4202, RW)}


def event(client, call, ret, kind, gfn=GFN, result=None, **numbers):
    if ret is not None and result is None:
        result = OperationResult()
    return Event(client, call, ret, Operation(kind, D, gfn, **numbers), result)


def get(client, call, ret, *entries, gfn=GFN, kind="get"):
    mfns, types = zip(*entries, strict=True)
    result = OperationResult(mfns=pack(list(mfns)), types=bytes(types))
    return event(client, call, ret, kind, gfn, result, nr=len(entries))


def done(client, call, ret, kind, nr_done, gfn=GFN, rc=0, **numbers):
    return event(client, call, ret, kind, gfn, OperationResult(nr_done, rc), **numbers)


def failed(client, call, ret, kind, errno, gfn=GFN, **numbers):
    return event(client, call, ret, kind, gfn, OperationResult(0, -errno), **numbers)


def one_by_one(*makers):
    """Events of one client after the other."""
    return [make(0, 10 * at, 10 * at + 5) for at, make in enumerate(makers)]


def then(function, *args, **kwargs):
    return lambda client, call, ret: function(client, call, ret, *args, **kwargs)


def check(events, initial=START, excused=()):
    return linearizability.check(events, initial, excused)


RAM = (0x4201, RW)
SEQUENCES = {
    "nothing": [],
    "look": [then(get, RAM)],
    "look at two": [then(get, RAM, (0x4202, RW))],
    "a hole": [then(get, HOLE, gfn=FREE)],
    "decrease": [then(done, "decrease", 1), then(get, HOLE), then(done, "decrease", 0)],
    "decrease of more": [then(done, "decrease", 2, nr=3), then(get, HOLE, HOLE, HOLE)],
    "populate": [
        then(done, "populate", 1, FREE),
        then(get, (0x99, RW), gfn=FREE),
        then(get, (0x99, RW), gfn=FREE),
    ],
    "populate over RAM": [then(done, "populate", 1), then(get, (0x99, RW))],
    "populate that had no room": [then(done, "populate", 0), then(get, RAM)],
    "types": [
        then(done, "set_type", 1, target=RO),
        then(get, (0x4201, RO)),
        then(done, "set_type", 1, target=RW),
        then(get, RAM),
    ],
    "types up to a hole": [
        then(done, "decrease", 1, GFN + 1),
        then(done, "set_type", 1, rc=-Errno.EBUSY, nr=2, target=RO),
        then(get, (0x4201, RO), HOLE),
    ],
    "type that is not modelled": [
        then(done, "set_type", 1, target=P2mType.RAM_PAGED),
        then(get, (INVALID_FRAME, P2mType.RAM_PAGED)),
        then(done, "decrease", 0),
        then(done, "populate", 1),
        then(get, (5, RW)),
    ],
    "move": [
        then(event, "move", target=FREE),
        then(get, HOLE),
        then(get, RAM, gfn=FREE),
        then(done, "decrease", 1, FREE),
    ],
    "move of two by one": [
        then(event, "move", target=GFN + 1, nr=2),
        then(get, HOLE, RAM, (0x4202, RW)),
    ],
    "move down": [
        then(event, "move", GFN, target=GFN - 1, nr=2),
        then(get, RAM, (0x4202, RW), HOLE, gfn=GFN - 1),
    ],
    "move in place": [then(event, "move", target=GFN), then(get, RAM)],
    "move that failed": [
        then(failed, "move", Errno.EINVAL, FREE, target=GFN),
        then(get, RAM),
        then(get, HOLE, gfn=FREE),
    ],
    "move that failed half-way": [
        then(failed, "move", Errno.EINVAL, GFN, target=FREE, nr=3),
        then(get, HOLE, HOLE),
        then(get, RAM, (0x4202, RW), HOLE, gfn=FREE),
    ],
    "remove": [
        then(event, "remove"),
        then(get, HOLE),
        then(failed, "remove", Errno.ENOENT),
    ],
    "PoD": [
        then(done, "mark_pod", 1, FREE),
        then(get, POD, gfn=FREE),
        then(get, (0x99, RW), gfn=FREE, kind="get_alloc"),
        then(get, (0x99, RW), gfn=FREE),
        then(done, "mark_pod", 0, FREE),
        then(done, "decrease", 1, FREE),
    ],
    "PoD without memory": [
        then(done, "mark_pod", 1, FREE),
        then(get, POD, gfn=FREE, kind="get_alloc"),
        then(done, "set_type", 0, FREE, rc=-Errno.ENOMEM, target=RO),
        then(failed, "remove", Errno.ENOENT, FREE),
        then(done, "decrease", 1, FREE),
        then(get, HOLE, gfn=FREE),
    ],
    "PoD that a neighbour's access populated": [
        then(done, "mark_pod", 1, FREE),
        then(get, (0x99, RW), gfn=FREE),
    ],
    "domain again": [
        then(event, "destroy"),
        then(get, HOLE, HOLE),
        then(event, "create", target=16),
        then(done, "populate", 1),
        then(get, (9, RW)),
        then(failed, "create", Errno.EEXIST),
        then(get, (9, RW)),
    ],
    "calls on a dead domain": [
        then(event, "destroy"),
        then(done, "populate", 0),
        then(done, "decrease", 0),
        then(done, "set_type", 0, rc=-Errno.ESRCH, target=RO),
        then(failed, "remove", Errno.ESRCH),
        then(failed, "destroy", Errno.ESRCH),
    ],
    "2M out and in": [
        then(done, "decrease", 1, 0x200, order=9),
        then(get, HOLE),
        then(done, "populate", 1, 0x200, order=9),
        then(get, (0x8201, RW)),
    ],
    "2M out as far as it went": [
        then(done, "decrease", 0, 0x200, order=9),
        then(get, HOLE, (0x4202, RW)),
    ],
    "what has no gfn": [
        then(event, "pool", target=4),
        then(done, "increase", 1),
        then(event, "pod_target", target=4),
        then(get, RAM),
    ],
    "walkers are not asked": [
        then(event, "decrease", result=OperationResult(1)),
        then(event, "touch", result=OperationResult(mfns=pack([0x4201]))),
    ],
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_right_one_after_the_other(name):
    start = {**START, (D, 0x200): (0x4200, RW)}
    assert check(one_by_one(*SEQUENCES[name]), start) == []


WRONG = {
    "never written": [then(get, (0x9999, RW))],
    "RAM in a hole": [then(get, RAM, gfn=FREE)],
    "type that nobody set": [then(get, (0x4201, RO))],
    "RAM after decrease": [then(done, "decrease", 1), then(get, RAM)],
    "decrease twice": [then(done, "decrease", 1), then(done, "decrease", 1)],
    "decrease of RAM stops": [then(done, "decrease", 0), then(get, RAM)],
    "decrease of PoD stops": [then(done, "mark_pod", 1, FREE), then(done, "decrease", 0, FREE)],
    "beyond where decrease stopped": [
        then(done, "decrease", 1, GFN + 1),
        then(done, "decrease", 1, nr=3),
        then(get, HOLE, (1, RW)),
    ],
    "lost populate": [then(done, "populate", 1, FREE), then(get, HOLE, gfn=FREE)],
    "frame changes": [
        then(done, "populate", 1, FREE),
        then(get, (1, RW), gfn=FREE),
        then(get, (2, RW), gfn=FREE),
    ],
    "frame changes with its type": [
        then(done, "set_type", 1, target=RO),
        then(get, (0x4202, RO)),
    ],
    "type of a hole": [then(done, "set_type", 1, FREE, target=RO)],
    "type of RAM is refused": [then(done, "set_type", 0, rc=-Errno.EBUSY, target=RO)],
    "type was not changed": [then(done, "set_type", 1, target=RO), then(get, RAM)],
    "move left it behind": [then(event, "move", target=FREE), then(get, RAM)],
    "move lost it": [then(event, "move", target=FREE), then(get, HOLE, gfn=FREE)],
    "move of a hole": [then(event, "move", FREE, target=GFN)],
    "move in place of a hole": [then(event, "move", FREE, target=FREE)],
    "failed move left a hole": [
        then(failed, "move", Errno.ENOMEM, target=FREE),
        then(get, HOLE),
    ],
    "removed and there": [then(event, "remove"), then(get, RAM)],
    "remove of a hole": [then(event, "remove", FREE)],
    "RAM is not there to remove": [then(failed, "remove", Errno.ENOENT)],
    "PoD over RAM": [then(done, "mark_pod", 1)],
    "PoD was lost": [then(done, "mark_pod", 1, FREE), then(get, HOLE, gfn=FREE)],
    "PoD again": [
        then(done, "mark_pod", 1, FREE),
        then(get, (9, RW), gfn=FREE),
        then(get, POD, gfn=FREE),
    ],
    "memory of a dead domain": [then(event, "destroy"), then(get, RAM)],
    "2M out and one left": [then(done, "decrease", 1, 0x200, order=9), then(get, RAM)],
    "no such type": [then(event, "move", target=FREE), then(get, (0x4201, 200), gfn=FREE)],
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_one_after_the_other(name):
    start = {**START, (D, 0x200): (0x4200, RW)}
    found = check(one_by_one(*WRONG[name]), start)
    assert found
    assert {each.invariant for each in found} == {"linearizable"}
    assert "\n" not in str(found[0])


@pytest.mark.parametrize("special", [GRANT, (0x88, P2mType.MAP_FOREIGN)])
def test_special_pages_stay(special):
    start = {(D, GFN): special}
    kept = [then(done, "populate", 0), then(done, "decrease", 0), then(get, special)]
    assert check(one_by_one(*kept), start) == []
    for wrong in (
        then(done, "populate", 1),
        then(done, "decrease", 1),
        then(event, "move", FREE, target=GFN),
        then(event, "remove"),
    ):
        assert check(one_by_one(wrong), {**start, (D, FREE): (3, RW)})


def test_concurrent_operations_may_take_either_order():
    change = done(0, 0, 10, "set_type", 1, target=RO)
    for value in (RAM, (0x4201, RO)):
        assert check([change, get(1, 5, 8, value)]) == []
        assert check([change, get(1, 5, 20, value)]) == []
    assert check([change, get(1, 11, 12, RAM)])


def test_two_look_ups_cannot_see_a_change_in_two_orders():
    change = done(0, 0, 100, "set_type", 1, target=RO)
    new, old = (0x4201, RO), RAM
    assert check([change, get(1, 5, 10, old), get(1, 11, 20, new)]) == []
    assert check([change, get(1, 5, 10, new), get(2, 11, 20, old)])
    assert check([change, get(1, 5, 15, new), get(2, 11, 20, old)]) == []


def test_an_order_that_is_not_that_of_return():
    # In order of return the second decrease finds a hole; the populate came in between.
    events = [
        done(0, 0, 10, "decrease", 1),
        done(1, 1, 12, "decrease", 1),
        done(2, 2, 30, "populate", 1),
        get(3, 31, 32, HOLE),
    ]
    assert check(events) == []
    assert check([*events[:2], done(2, 13, 30, "populate", 1)])


def test_what_never_returned_may_have_happened_or_not():
    lost = event(0, 0, None, "decrease")
    assert check([lost, get(1, 5, 6, RAM), get(1, 7, 8, HOLE)]) == []
    assert check([lost, get(1, 5, 6, RAM)]) == []
    assert check([lost, get(1, 5, 6, HOLE), get(1, 7, 8, RAM)])
    late = event(0, 20, None, "decrease")
    assert check([late, get(1, 5, 6, HOLE)])


@pytest.mark.parametrize("kind", ["populate", "set_type", "move", "remove", "destroy", "create"])
def test_other_operations_that_never_returned(kind):
    lost = event(0, 0, None, kind, target=RO if kind == "set_type" else FREE)
    assert check([lost, get(1, 5, 6, RAM)]) == []
    after = {"populate": (9, RW), "set_type": (0x4201, RO)}.get(kind, HOLE)
    assert check([lost, get(1, 5, 6, RAM), get(1, 7, 8, after)]) == []
    assert check([lost, get(1, 5, 6, (9, LOGDIRTY))])


def test_the_next_call_of_a_client_at_the_position_of_the_return():
    down, up = done(0, 0, 5, "decrease", 1), done(0, 5, 9, "populate", 1)
    assert check([down, up, get(0, 9, 12, (7, RW))]) == []
    assert check([down, up, get(0, 9, 12, HOLE)])
    assert check([down, up, get(1, 9, 12, HOLE)]) == []


def test_excused_domains():
    assert check([done(0, 0, 1, "decrease", 0)])
    assert check([done(0, 0, 1, "decrease", 0), get(0, 2, 3, RAM)], excused={D}) == []
    assert check([done(0, 0, 1, "decrease", 0), get(0, 2, 3, HOLE)], excused={D})
    part = done(0, 0, 1, "populate", 0, 0x200, order=9)
    assert check([part, get(0, 2, 3, (9, RW), (0x4202, RW))], excused={D}) == []
    assert check([part, get(0, 2, 3, (9, RO))], excused={D})
    many = done(0, 0, 1, "populate", 3, 0x200, nr=1024)
    assert check([many, get(0, 2, 3, (9, RW), gfn=0x3FF)], excused={D}) == []
    assert check([many, get(0, 2, 3, (9, RW), gfn=0x3FF)])


def test_domains_and_gfns_do_not_mix():
    other = Operation("get", 2, GFN)
    nothing = OperationResult(mfns=pack([INVALID_FRAME]), types=bytes([P2mType.INVALID]))
    assert check([Event(0, 0, 1, other, nothing), get(1, 2, 3, RAM)]) == []
    seen = OperationResult(mfns=pack([0x4201]), types=bytes([RW]))
    found = check([Event(0, 0, 1, other, seen), get(1, 2, 3, RAM)])
    assert [(each.domid, each.gfn) for each in found] == [(2, GFN)]


def test_long_lists_of_extents_are_sampled():
    events = [done(0, 0, 1, "populate", 4096, FREE, nr=4096), done(0, 2, 3, "decrease", 1, FREE)]
    assert check(events) == []
    assert check([*events, done(0, 4, 5, "decrease", 1, FREE)])


def test_the_message_names_the_shortest_part_that_has_no_order():
    events = [
        done(0, 0, 1, "set_type", 1, target=RO),
        get(1, 2, 3, (0x4201, RO)),
        done(0, 4, 5, "decrease", 1),
        event(3, 4, None, "populate"),
        get(2, 6, 7, (0x4201, RO)),
        get(2, 8, 9, HOLE),
    ]
    [found] = check(events)
    assert (found.domid, found.gfn) == (D, GFN)
    assert found.message == (
        "no order of these operations explains: at first mfn 0x4201 ram_rw; "
        "c0 set_type 0x201 ram_ro -> ok; c0 decrease 0x201 -> 1 done; "
        "then c2 get 0x201 -> mfn 0x4201 ram_ro; under way c3 populate 0x201 -> no return"
    )


def test_many_concurrent_operations_are_decided():
    changes = [
        done(client, client, 100 + client, "set_type", 1, target=(RW, RO, LOGDIRTY)[client % 3])
        for client in range(12)
    ]
    assert check([*changes, get(0, 200, 201, (0x4201, LOGDIRTY))]) == []
    assert check([*changes, get(0, 200, 201, HOLE)])


def test_a_search_that_takes_too_long_passes(monkeypatch):
    monkeypatch.setattr(linearizability, "CONFIGURATIONS_MAX", 3)
    changes = [done(client, client, 50 + client, "populate", 1) for client in range(8)]
    assert check([*changes, get(0, 200, 201, HOLE)]) == []


# -- lines -------------------------------------------------------------------------------------

LINE = {
    "client": 0,
    "call": 3,
    "return": 17,
    "op": "get",
    "domid": 1,
    "gfn": 513,
    "nr": 2,
    "order": 0,
    "target": 0,
    "vcpu": 0,
    "result": {"nr_done": 0, "rc": 0, "mfns": ["0x100201", None], "types": ["ram_rw", "mmio_dm"]},
}


def test_a_line_is_what_the_format_says():
    line = to_json_line(get(0, 3, 17, (0x100201, RW), HOLE))
    assert json.loads(line) == LINE
    assert list(json.loads(line)) == list(LINE)
    assert "\n" not in line


@pytest.mark.parametrize(
    "each",
    [
        get(0, 3, 17, RAM, HOLE, POD, (5, 200)),
        event(2, 9, None, "move", target=FREE, nr=3),
        failed(1, 0, 0, "remove", Errno.ENOENT),
        done(3, 1, 2, "decrease", 7, order=9, nr=8),
        event(0, 1, 2, "translate", target=2, vcpu=3, result=OperationResult(mfns=pack([1]))),
    ],
)
def test_lines_say_all_of_an_event(each):
    assert from_json_line(to_json_line(each)) == each


def test_numbers_that_are_zero_may_be_left_out():
    short = {"client": 0, "call": 1, "return": None, "op": "destroy", "domid": 4}
    assert from_json_line(json.dumps(short)) == Event(0, 1, None, Operation("destroy", 4), None)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("domid", {"domid": 0x7FF0}),
        ("domid", {"domid": "1"}),
        ("op", {"op": "hop"}),
        ("gfn", {"gfn": -1}),
        ("nr", {"nr": 0}),
        ("return", {"return": 2}),
        ("return", {"return": "x"}),
        ("result", {"result": None}),
        ("result", {"return": None}),
        ("result.rc", {"result": {"rc": 5}}),
        ("result.mfns", {"result": {"mfns": ["12"]}}),
        ("result.mfns", {"result": {"mfns": ["0x" + "1" * 17]}}),
        ("result.types[0]", {"result": {"types": ["ram"]}}),
        ("result.types", {"result": {"types": [256]}}),
        ("more", {"more": 1}),
    ],
)
def test_a_field_that_does_not_fit_is_named(field, change):
    with pytest.raises(BadInputError) as caught:
        from_json_line(json.dumps({**LINE, **change}))
    assert field in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"client": 0}', "\ud800"])
def test_no_line_at_all(text):
    with pytest.raises(BadInputError, match="history: "):
        from_json_line(text)
