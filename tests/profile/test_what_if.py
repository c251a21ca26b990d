"""What is won if a component takes no time: by hand, and against doing the run again for real."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.cli.main import run
from protocols.trace import ID_SHIFT
from services.trace import what_if
from services.trace.critical import Chains, request_path, run_path
from services.trace.frame import Frame, Trace
from services.trace.what_if import NOBODY, TRANSPORT, WhatIf
from tests.profile.conftest import recorded

NAMES = ("client", "a/0", "b/0", "c/0")
CLIENT, A, B, C = range(4)


def trace_of(rows, header=None):
    """A trace of [(cause, src, dst, sent, received, started, ended, reply_to)], ids from 1 on."""
    columns = {"shard": [], "id": [], "resumed": []}
    for number, row in enumerate(rows):
        for name, value in zip(
            ("cause", "src", "dst", "sent", "received", "started", "ended", "reply_to", "resumed"),
            (*row, 0)[:9],
            strict=True,
        ):
            columns.setdefault(name, []).append(value)
        columns["id"].append(number + 1)
        columns["shard"].append(row[2] or 65535)
    columns["domid"] = [0] * len(rows)
    columns["busy"] = np.array(columns["ended"]) - columns["started"]
    assert len(rows) < 1 << ID_SHIFT
    return Trace(
        "t", "shatterproof", header or {}, 1e9, kinds=["k"], names=NAMES,
        messages=Frame.of("messages", columns),
    )  # fmt: skip


def branches(b, c):
    """The client asks a, which asks b and c at once and answers when both have.

    b and c work for so many ticks; every message takes 1.
    """
    late, early = (4 + b, 4 + c)
    replies = [
        (2, B, A, late, late + 1, late + 1, late + 1, 2),
        (3, C, A, early, early + 1, early + 1, early + 1, 3),
    ]
    end = max(late, early) + 1
    last = 4 if b > c else 5
    return [
        (0, CLIENT, A, 1, 2, 2, end, 0, end),
        (1, A, B, 3, 4, 4, late, 0),
        (1, A, C, 3, 4, 4, early, 0),
        *replies,
        (last, A, CLIENT, end, end + 1, end + 1, end + 1, 1),
    ]  # fmt: skip


def test_of_two_branches_only_what_the_longer_has_over_the_other_is_won():
    trace = trace_of(branches(100, 90))
    for path in (run_path(Chains(trace)), request_path(Chains(trace), 0)):
        assert path["by_service"]["b"] == 100
        assert path["if_free"]["b"] == 10
        assert path["if_free"].get("c", 0) == 0
        assert path["if_free"]["a"] == 1
    # The way to b, the way back, and of the run the first and the last.
    assert run_path(Chains(trace))["if_free"][TRANSPORT] == 4
    assert request_path(Chains(trace), 0)["if_free"][TRANSPORT] == 2


def test_of_equal_branches_neither_wins_anything():
    path = run_path(Chains(trace_of(branches(50, 50))))
    assert path["by_service"]["c"] == 50
    assert path["if_free"]["c"] == path["if_free"].get("b", 0) == 0


def test_what_queues_behind_a_free_step_comes_earlier():
    rows = [
        (0, CLIENT, B, 1, 2, 2, 12, 0),
        (0, CLIENT, B, 1, 2, 12, 20, 0),
        (1, B, A, 12, 13, 13, 14, 0),
    ]
    path = run_path(Chains(trace_of(rows)))
    assert path["if_free"]["b"] == 20 - 4, "b was through at 20, and then a is at 4"


def test_what_the_client_thinks_stays():
    rows = [
        (0, CLIENT, B, 1, 2, 2, 12, 0),
        (1, B, CLIENT, 12, 13, 13, 13, 1),
        (0, CLIENT, B, 113, 114, 114, 124, 0),
        (3, B, CLIENT, 124, 125, 125, 125, 3),
    ]
    trace = trace_of(rows)
    assert run_path(Chains(trace))["if_free"] == {"client": 100, "b": 20, TRANSPORT: 4}
    one = request_path(Chains(trace), 2)
    assert (one["end"] - one["start"], one["if_free"]["b"]) == (10, 10)


def test_one_process_is_one_shard():
    rows = [
        (0, CLIENT, A, 1, 1, 2, 12, 0),
        (0, CLIENT, B, 1, 1, 13, 23, 0),
    ]
    assert run_path(Chains(trace_of(rows)))["if_free"].get("a", 0) == 0
    alone = trace_of(rows, {"runtime": "local"})
    assert run_path(Chains(alone))["if_free"]["a"] == 10


# -- against a run done again -------------------------------------------------------------------


@st.composite
def programs(draw):
    """[(cause or -1, service, offset, transit, length, sent by the client)] in the order of work.

    A step sends while it lasts; every service is a shard.
    """
    steps = []
    for number in range(draw(st.integers(1, 25))):
        cause = draw(st.integers(-1, number - 1))
        length = draw(st.integers(0, 30))
        room = steps[cause][4] if cause >= 0 else 40
        steps.append(
            (
                cause, draw(st.integers(A, C)), draw(st.integers(0, room)),
                draw(st.integers(0, 20)), length,
            )
        )  # fmt: skip
    return steps


def done(program, free=None):
    """[(sent, received, started, ended)] if a service, or the transport, takes no time."""
    begun, times = {}, []
    for cause, service, offset, transit, length in program:
        sent = offset + 1
        if cause >= 0:
            sent = times[cause][2] + (0 if program[cause][1] == free else offset)
        received = sent + (0 if free == TRANSPORT else transit)
        started = max(received, begun.get(service, 0))
        ended = started + (0 if service == free else length)
        begun[service] = ended
        times.append((sent, received, started, ended))
    return times


def end_of(times):
    return max(each[3] for each in times)


@settings(deadline=None, max_examples=300)
@given(programs())
def test_it_is_what_doing_it_again_gives(program):
    times = done(program)
    rows = [
        (cause + 1, CLIENT if cause < 0 else program[cause][1], service, *when, 0)
        for (cause, service, *_), when in zip(program, times, strict=True)
    ]
    trace = trace_of(rows)
    started = [each[2] for each in times]
    if len(set(started)) < len(started):
        # Which of two steps of no length was first, nobody can tell for sure.
        return
    path = run_path(Chains(trace))
    assert path["end"] == end_of(times)
    for name, free in (("a", A), ("b", B), ("c", C), (TRANSPORT, TRANSPORT)):
        won = end_of(times) - max(end_of(done(program, free)), 0)
        assert path["if_free"].get(name, 0) == won, name


TIME = st.integers(-3, 60)
WILD = st.lists(
    st.tuples(
        st.integers(0, 12), st.integers(0, 3), st.integers(0, 3), TIME, TIME, TIME, TIME,
        st.integers(0, 12), st.integers(0, 40),
    ),
    min_size=1,
    max_size=12,
)  # fmt: skip


@settings(deadline=None, max_examples=300)
@given(WILD)
def test_nobody_wins_less_than_nothing_or_more_than_all(rows):
    """Whatever a file may say: times that run backwards, causes that came later."""
    trace = trace_of(rows)
    chains = Chains(trace)
    again, _ = chains.what_if._times(NOBODY, -100, 0, len(rows))
    assert again == chains.what_if._started.tolist()
    begin = int(trace.messages["sent"].min())
    for won in chains.what_if.run().values():
        assert 0 <= won <= chains.what_if.end - begin
    for request in range(len(rows)):
        path = request_path(chains, request)
        if path is not None:
            assert all(0 <= won <= path["end"] - path["start"] for won in path["if_free"].values())


@settings(deadline=None, max_examples=20)
@given(WILD)
def test_the_compiled_loop_does_the_same(rows):
    trace = trace_of(rows)
    plain = Chains(trace)
    limit, what_if.COMPILE_FROM = what_if.COMPILE_FROM, 0
    try:
        compiled = Chains(trace)
        assert compiled.what_if.run() == plain.what_if.run()
    finally:
        what_if.COMPILE_FROM = limit
    for free in (NOBODY, what_if.ON_THE_WAY, 0, 1, 2):
        for first in range(len(rows)):
            one, other = (
                each.what_if._times(free, 5, first, len(rows)) for each in (plain, compiled)
            )
            assert (list(one[0]), one[1]) == (list(other[0]), other[1])


@pytest.mark.parametrize("clock", ["steps", "ns"])
def test_of_a_real_run_every_time_is_found_again(tmp_path, clock):
    now = iter(range(1000, 1 << 40, 37))
    trace = recorded(tmp_path / "t", clock=None if clock == "steps" else lambda: next(now))
    chains = Chains(trace)
    found = chains.what_if
    again, end = found._times(NOBODY, 0, 0, trace.messages.rows)
    assert again == found._started.tolist()
    assert end == found.end == int(trace.messages["ended"].max())
    path = run_path(chains)
    whole = path["end"] - path["start"]
    # One thread did everything: what each service wins is what its steps took.
    parts = {name: ticks for name, ticks in path["if_free"].items() if name != "client"}
    assert 0 < sum(parts.values()) <= whole
    assert list(path["if_free"].values()) == sorted(path["if_free"].values(), reverse=True)


def test_an_empty_trace_has_no_path():
    trace = Trace("t", "shatterproof", {}, 1e9)
    assert run_path(Chains(trace)) is None
    assert isinstance(Chains(trace).what_if, WhatIf)


def test_both_are_told(own_path, capsys):
    assert run(["profile", str(own_path), "--json", "-"]) == 0
    path = json.loads(capsys.readouterr().out)["critical_path"]["run"]
    whole = path["end"] - path["start"]
    assert sum(path["by_service"].values()) == whole
    assert all(0 <= ticks <= whole for ticks in path["if_free"].values())
    assert run(["profile", str(own_path)]) == 0
    out = capsys.readouterr().out
    assert "won if free" in out
    assert run(["profile", str(own_path), "--critical-path"]) == 0
    out = capsys.readouterr().out
    assert "of the path, and won if it were free" in out
    assert "at most if" not in out
