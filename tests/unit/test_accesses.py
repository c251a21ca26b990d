"""Hand-made accesses of a gfn: what a walker may still find, and what nobody can know any more."""

import pytest

from protocols.frames import INVALID_FRAME, pack
from protocols.script import Operation, OperationResult
from services.spec import accesses
from services.spec.accesses import NOBODY, Version
from services.spec.history import Event

D, GFN = 1, 0x201
OLD, NEW, NEWER, HOLE = 0x4201, 0x5000, 0x6000, INVALID_FRAME
START = Version(-1, NOBODY, OLD)


def update(client, call, ret, kind="populate"):
    return Event(client, call, ret, Operation(kind, D, GFN), OperationResult(nr_done=1))


def touch(client, call, ret, mfn, kind="touch", order=0, gfn=GFN):
    op = Operation(kind, D, gfn, order=order, target=D)
    return Event(client, call, ret, op, OperationResult(mfns=pack([mfn])))


def explained(*events, versions):
    found = accesses.check(events, {(D, GFN): versions})
    assert found is None or (found.invariant, found.domid, found.gfn) == ("access_current", D, GFN)
    return found is None


@pytest.mark.parametrize("kind", ["touch", "translate"])
@pytest.mark.parametrize(
    ("call", "ret", "mfn", "good"),
    [
        (0, 9, OLD, True),  # before the update
        (0, 9, NEW, False),  # of the future
        (12, 40, OLD, True),  # begun while the update was under way
        (12, 40, NEW, True),
        (19, 40, OLD, True),
        (21, 40, OLD, False),  # the update was answered at 20
        (21, 40, NEW, True),
        (21, 40, NEWER, False),  # never there
        (21, 40, HOLE, False),
    ],
)
def test_an_update_holds_for_all_once_it_was_answered(kind, call, ret, mfn, good):
    versions = [START, Version(15, 0, NEW)]
    assert explained(update(0, 10, 20), touch(1, call, ret, mfn, kind), versions=versions) is good


def test_a_clients_own_last_update_counts():
    """The answer and the next call of a client are at one position."""
    versions = [Version(-1, NOBODY, HOLE), Version(15, 0, NEW)]
    for mfn, good in ((HOLE, False), (NEW, True)):
        assert explained(update(0, 10, 20), touch(0, 20, 30, mfn), versions=versions) is good


def test_a_later_update_that_was_answered_counts_whatever_the_next_one_does():
    """The next update's caller waits for a flush, the one after it has been told already."""
    versions = [START, Version(12, 0, HOLE), Version(15, 1, NEW)]
    waiting, answered = update(0, 10, 50, "decrease"), update(1, 11, 20)
    for mfn, good in ((OLD, False), (HOLE, False), (NEW, True)):
        events = [waiting, answered, touch(2, 25, 30, mfn)]
        assert explained(*events, versions=versions) is good
    # Before the second was answered, all three may be found.
    for mfn in (OLD, HOLE, NEW):
        assert explained(waiting, answered, touch(2, 19, 30, mfn), versions=versions)


def test_an_update_that_never_returned_may_never_be_seen():
    versions = [START, Version(12, 0, NEW)]
    for mfn in (OLD, NEW):
        never = Event(0, 10, None, Operation("populate", D, GFN), None)
        assert explained(never, touch(1, 100, 110, mfn), versions=versions)


def test_an_update_that_comes_after_its_answer_comes_too_late():
    versions = [START, Version(35, 0, NEW)]
    assert not explained(update(0, 10, 20), touch(1, 25, 30, OLD), versions=versions)
    assert not explained(update(0, 10, 20), touch(1, 25, 40, OLD), versions=versions)
    assert explained(update(0, 10, 20), touch(1, 18, 30, OLD), versions=versions)


def test_a_frame_that_comes_back_may_be_found_again():
    versions = [START, Version(12, 0, HOLE), Version(32, 0, OLD)]
    events = [update(0, 10, 20, "decrease"), update(0, 30, 40)]
    assert explained(*events, touch(1, 45, 50, OLD), versions=versions)
    assert not explained(*events, touch(1, 21, 31, OLD), versions=versions)
    assert explained(*events, touch(1, 21, 33, OLD), versions=versions)


def test_calls_of_many_extents_are_looked_at_gfn_by_gfn():
    op = Operation("touch", D, 0x100, nr=2, order=8)
    event = Event(1, 25, 30, op, OperationResult(mfns=pack([0x9, OLD])))
    versions = [START, Version(15, 0, NEW)]
    found = accesses.check([update(0, 10, 20), event], {(D, 0x200): versions})
    assert found is not None
    assert (found.gfn, found.mfn) == (0x200, OLD)


def test_many_operations_of_one_gfn_take_no_time():
    """Quadratic once: ten seconds for a file of a few lines."""
    nr = 20_000
    versions = [START, *(Version(10 * at + 5, 0, 0x10000 + at) for at in range(nr))]
    events = [update(0, 10 * at, 10 * (at + 1)) for at in range(nr)]
    events += [touch(1, 10 * at + 1, 10 * at + 9, 0x10000 + at) for at in range(nr)]
    assert explained(*events, versions=versions)
