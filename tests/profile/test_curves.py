"""What was mapped when: the steps of the page against the report, which has it by bins."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from deploy.profile.curves import curves
from deploy.profile.open import open_trace
from services.trace.report import report
from services.trace.select import Selection

CAPTURES = Path(__file__).parent.parent / "data" / "traces"


def at_bins(found, domid, series):
    """Frames by order at the end of each bin of a series, as the report has them."""
    mine = found.steps[found.steps[:, 1] == domid]
    upto = np.searchsorted(mine[:, 0], series["edges"][1:])
    upto[-1] = len(mine)
    rows = np.vstack([np.zeros(mine.shape[1], dtype=np.int64), mine])[upto]
    columns = {str(o): (rows[:, 2 + at] << o).tolist() for at, o in enumerate(found.orders)}
    return {order: values for order, values in columns.items() if any(values)}


def check(trace, most=None):
    said = report(trace)
    found = curves(trace, said) if most is None else curves(trace, said, most)
    for domid, section in said["domains"].items():
        mapped = {o: values for o, values in section["series"]["mapped"].items() if any(values)}
        assert at_bins(found, int(domid), section["series"]) == mapped
    return found


@pytest.mark.parametrize("path", sorted(CAPTURES.glob("*trimmed*")), ids=lambda p: p.name[:20])
def test_steps_of_captures_are_those_of_the_report(path):
    found = check(open_trace(path))
    assert len(found.steps) == found.nr_steps > 0
    assert found.flags is not None


def test_steps_of_ours_are_those_of_the_report(own):
    found = check(own)
    assert int((found.flags > 0).sum()) > 0


def test_a_sample_of_steps_is_exact_where_it_has_one(own):
    every, some = (curves(own, report(own, views=False), most) for most in (1000, 10))
    assert len(some.steps) < len(every.steps) == some.nr_steps
    assert set(map(tuple, some.steps.tolist())) <= set(map(tuple, every.steps.tolist()))
    assert some.flags.tolist() == every.flags.tolist()


def test_nothing_is_mapped_after_a_teardown(destroyed):
    found = curves(destroyed, report(destroyed))
    m = destroyed.messages
    kind = list(destroyed.kinds).index("p2m_teardown")
    for row in np.flatnonzero(m["kind"] == kind).tolist():
        mine = found.steps[found.steps[:, 1] == m["domid"][row]]
        assert mine[-1].tolist() == [m["started"][row], m["domid"][row], 0, 0, 0]
        assert mine[-2, 2:].any()


def test_a_domain_that_is_built_again_begins_with_nothing(destroyed):
    """The same run twice, one after the other: twice the same steps and flags."""
    later = int(max(destroyed.messages["ended"].max(), destroyed.updates["time"].max())) + 10
    again = {
        name: type(frame).of(
            name,
            {
                column: np.concatenate((
                    values,
                    values + later if column in {"time", "started", "sent", "ended"} else values,
                ))
                for column, values in frame.items()
            },
        )
        for name, frame in (("messages", destroyed.messages), ("updates", destroyed.updates))
    }  # fmt: skip
    twice = replace(destroyed, **again)
    once, both = (curves(each, report(each)) for each in (destroyed, twice))
    half = len(once.steps)
    assert both.flags.tolist() == [*once.flags.tolist(), *once.flags.tolist()]
    assert both.steps[:half].tolist() == once.steps.tolist()
    assert both.steps[half:, 1:].tolist() == once.steps[:, 1:].tolist()


def test_a_part_without_its_beginning_has_no_steps(own):
    half = int(own.updates["time"][own.updates.rows // 2])
    for chosen, whole in (
        (Selection(domid=2), True),
        (Selection(between=(half, 1 << 60)), False),
        (Selection(gfns=(0x1000, 0x1400)), False),
    ):
        found = curves(chosen.of(own), report(own, chosen))
        assert bool(len(found.steps)) is whole


def test_steps_are_in_order_of_time(own):
    times = curves(own, report(own)).steps[:, 0].tolist()
    assert all(before <= after for before, after in pairwise(times))
