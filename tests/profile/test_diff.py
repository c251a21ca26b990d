"""Two traces compared: nothing against itself, what differs against another, and no more."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.profile.diff import _holm, compare
from deploy.profile.open import open_trace
from deploy.scenario.model import Build, Punch
from tests.profile.conftest import PHASES, recorded
from tests.profile.test_page import CAPTURES


def capture(name):
    return open_trace(CAPTURES / f"{name}.trimmed.trace.bin.xz")


def test_a_trace_does_not_differ_from_itself(own):
    found = compare(own, own)
    assert found["same"] is True
    assert (found["counts"], found["events"], found["domains"]) == ({}, {}, {})
    assert found["divergence"] is None
    assert not any(each["differs"] for each in found["latency"].values())


def test_the_first_divergence_is_named(own, tmp_path):
    phases = (*PHASES[:2], Punch(superpages=3, per_superpage=3, first_gfn=0x1000), *PHASES[3:])
    other = recorded(tmp_path / "other", phases=phases)
    parting = compare(own, other)["divergence"]
    rows = [np.argsort(each.messages["started"], kind="stable") for each in (own, other)]
    for each, order in zip((own, other), rows, strict=True):
        assert each.kinds[each.messages["kind"][order[parting["row"]]]] == "punch_domain"
    assert parting["table"] == "messages"
    assert "punch_domain" in parting["one"]
    domains = compare(own, other)["domains"]
    assert domains["1"]["decrease_reservation o0"] == [11, 14]


def test_one_that_goes_on_parts_where_the_other_ends(own, tmp_path):
    short = recorded(tmp_path / "short", phases=(Build(),))
    parting = compare(short, own)["divergence"]
    assert parting is not None
    assert parting["row"] <= short.messages.rows


def test_captures_with_and_without_superpages():
    found = compare(capture("b1.pvh-256"), capture("b3.no2m-pvh-256"))
    assert found["events"]["set_p2m_entry"] == [145, 65553]
    assert found["domains"]["1"]["updates o0 ram_rw"] == [None, 65553]
    assert found["divergence"]["table"] == "updates"
    assert found["same"] is False


def test_captures_of_one_configuration_make_the_same_updates():
    one, other = capture("b1.pvh-256"), capture("b1.pvh-256")
    assert compare(one, other)["same"] is True


def slowed(own_clock, factor):
    """A clock whose ticks are ``factor`` nanoseconds."""
    return lambda: next(own_clock) * factor


def test_slower_is_called_slower_only_when_it_is(tmp_path):
    runs = [
        recorded(tmp_path / str(at), clock=slowed(itertools.count(1), factor))
        for at, factor in enumerate((1000, 1000, 1500))
    ]
    alike, apart = compare(runs[0], runs[1]), compare(runs[0], runs[2])
    assert not any(each["differs"] for each in alike["latency"].values())
    slower = apart["latency"]["populate_physmap"]
    assert slower["differs"]
    assert slower["delta"] > 0
    assert slower["other"]["p50"] == pytest.approx(1.5 * slower["one"]["p50"], rel=0.01)
    assert alike["divergence"] is None, "times are not compared step by step"


def test_clocks_of_two_kinds_are_not_compared(own, tmp_path):
    timed = recorded(tmp_path / "t", clock=time.perf_counter_ns)
    assert compare(own, timed)["latency"] == {}


@given(st.dictionaries(st.text(min_size=1), st.floats(0, 1), max_size=20))
def test_holm_is_holm(values):
    ours = _holm(values)
    ordered = sorted(values.items(), key=lambda item: item[1])
    worst = 0.0
    for rank, (name, p) in enumerate(ordered):
        worst = max(worst, min(1.0, p * (len(ordered) - rank)))
        assert ours[name] == pytest.approx(worst)
