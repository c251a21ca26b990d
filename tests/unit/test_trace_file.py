"""The trace file: every column comes back; cut anywhere, it is read as far as it is whole."""

import io

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as some

from deploy.driver.launch import Launch
from deploy.profile.open import open_trace, own_trace
from deploy.scenario.model import Balloon, Build, Punch, Touch
from deploy.sim.runtime import SimRuntime
from deploy.world import host_config, layout
from protocols.errno import BadInputError
from protocols.trace import TABLES
from services.trace import blocks as blocks_module
from services.trace import writer as writer_module
from services.trace.blocks import (
    TRAILER_BYTES,
    encode_frame,
    pack_column,
    read_layout,
    unpack_column,
)
from services.trace.frame import Frame
from services.trace.writer import STEP, TraceEncoder, describe_run
from tests.helpers import guest, scenario


class Sink:
    """A trace in memory."""

    def __init__(self, config, **more):
        self.encoder = TraceEncoder(
            describe_run(
                **{"runtime": "local", "seed": None, "clock": STEP, "host": config, "machine": {}}
                | {"shards": layout(1, 1)}
                | more
            )
        )
        self.data = b""
        self.add, self.add_requests = self.encoder.add, self.encoder.add_requests

    def flush(self):
        self.data += self.encoder.take()

    def whole(self):
        self.data += self.encoder.finish()
        return self.data


PHASES = (
    Build(),
    Touch(nr=500, first_gfn=0x400),
    Punch(superpages=3, per_superpage=2),
    Balloon("down", pages=4, first_gfn=0x400),
)


def run(block_rows=None, monkeypatch=None, **more):
    """(file, runtime's counts) of a small run."""
    if block_rows is not None:
        monkeypatch.setattr(writer_module, "BLOCK_ROWS", block_rows)
    work = scenario(guest("a", 32, vcpus=2), guest("b", 24, 64), phases=PHASES)
    config = host_config(work.host)
    sink = Sink(config)
    runtime = SimRuntime(config, sink=sink, **more)
    Launch(work, config, runtime).run()
    runtime.close()
    return sink.whole(), runtime.counts()


@pytest.fixture(scope="module")
def file():
    return run()[0]


@given(
    st.sampled_from(["<u8", "<i8", "<u4", "<i4", "<u2", "<i2", "u1"]).flatmap(
        lambda dtype: some.arrays(np.dtype(dtype), st.integers(0, 40))
    )
)
def test_columns_come_back(column):
    dtype = column.dtype.str.replace("|", "")
    packed = msgpack.unpackb(msgpack.packb(pack_column(column)))
    back = unpack_column(packed, len(column), dtype)
    assert back.dtype == column.dtype
    assert back.tolist() == column.tolist()


def test_columns_are_as_narrow_as_their_range():
    times = np.arange(1 << 40, (1 << 40) + 200, dtype="<i8")
    assert pack_column(times)[:2] == (1 << 40, 1)
    assert pack_column(np.full(9, (1 << 64) - 1, dtype="<u8")) == (-1, 0, b"")


def test_every_delivery_is_a_row(monkeypatch):
    data, counts = run()
    trace = own_trace(memoryview(data), "t")
    kinds, nr = np.unique(trace.messages["kind"], return_counts=True)
    assert {trace.kinds[kind]: n for kind, n in zip(kinds, nr, strict=True)} == counts
    assert trace.header["cut"] == ""
    assert not trace.truncated
    small, _ = run(64, monkeypatch)
    assert len(read_layout(memoryview(small), "t").blocks) > len(
        read_layout(memoryview(data), "t").blocks
    )
    again = own_trace(memoryview(small), "t")
    for name in TABLES["messages"]:
        assert again.messages[name].tolist() == trace.messages[name].tolist()


def test_rows_tell_one_story(file):
    trace = own_trace(memoryview(file), "t")
    m = trace.messages
    ids = {number: at for at, number in enumerate(m["id"].tolist())}
    assert len(ids) == m.rows, "ids are unique"
    for times in (("sent", "received"), ("received", "started"), ("started", "ended")):
        assert (m[times[0]] <= m[times[1]]).all(), times
    for at in range(m.rows):
        cause, reply_to = int(m["cause"][at]), int(m["reply_to"][at])
        if cause:
            before = ids[cause]
            assert m["dst"][before] == m["src"][at], "who sends is who was spoken to"
            assert m["started"][before] < m["sent"][at]
        else:
            assert trace.names[m["src"][at]] == "client/0"
        if reply_to:
            request = ids[reply_to]
            assert (m["src"][request], m["dst"][request]) == (m["dst"][at], m["src"][at])
            assert m["ended"][request] == m["sent"][at], "answered when the answer was sent"
            assert m["domid"][request] == m["domid"][at]
    waits = m["ended"] - m["started"] - m["busy"] - m["lock_wait"]
    assert (waits[m["ended"] >= 0] >= 0).all()


def test_updates_and_events_know_their_cause(file):
    trace = own_trace(memoryview(file), "t")
    ids = set(trace.messages["id"].tolist())
    for frame in (trace.updates, trace.events):
        assert frame.rows
        assert set(frame["cause"].tolist()) <= ids
        assert (np.diff(frame["time"]) >= 0).all()
    m = trace.messages
    asked = m["kind"] == trace.kinds.index("decrease_reservation")
    done = dict(zip(m["reply_to"].tolist(), m["nr"].tolist(), strict=True))
    tried = [
        min(nr, done[number] + 1)
        for number, nr in zip(m["id"][asked].tolist(), m["nr"][asked].tolist(), strict=True)
    ]
    assert len(tried) > 2
    assert trace.event_counts()["decrease_reservation"] == sum(tried)
    causes = trace.updates["cause"].tolist()
    at = {number: row for row, number in enumerate(trace.messages["id"].tolist())}
    names = {trace.names[trace.messages["dst"][at[cause]]] for cause in causes}
    assert names == {"p2m/1", "p2m/2"}


def test_a_file_cut_anywhere_is_read_up_to_the_last_whole_block(file):
    layout = read_layout(memoryview(file), "t")
    ends = [block.start + block.size for block in layout.blocks]
    cuts = {*range(len(file) - TRAILER_BYTES - 40, len(file), 7), *ends, *(e - 1 for e in ends)}
    for cut in sorted(cuts | set(range(ends[0], len(file), 997))):
        found = read_layout(memoryview(file[:cut]), "t")
        assert found.cut.startswith("t: cut off: ")
        assert found.blocks == [
            block for block, end in zip(layout.blocks, ends, strict=True) if end <= cut
        ]
        trace = own_trace(memoryview(file[:cut]), "t")
        assert trace.truncated
        assert trace.messages["id"].shape == (trace.messages.rows,)


def test_a_file_cut_in_its_header_is_refused(file):
    with pytest.raises(BadInputError, match="offset 0: truncated in the header"):
        own_trace(memoryview(file[:70]), "t")


def test_a_damaged_block_is_named(file):
    block = read_layout(memoryview(file), "t").blocks[-1]
    bad = bytearray(file)
    bad[block.start + 3] ^= 1
    trace = own_trace(memoryview(bytes(bad)), "t")
    frame = getattr(trace, block.table)
    with pytest.raises(BadInputError, match=f"{block.start}: {block.table} block is damaged"):
        frame["domid"]


def test_a_damaged_block_ends_a_file_without_index(file):
    blocks = read_layout(memoryview(file), "t").blocks
    bad = bytearray(file[:-1])
    bad[blocks[2].start] ^= 1
    assert read_layout(memoryview(bytes(bad)), "t").blocks == blocks[:2]


def test_another_version_is_refused(file):
    at = file.index(b"\xa7version") + 8
    bad = bytearray(file)
    bad[at] = 9
    with pytest.raises(BadInputError, match="t: trace version 9, expected 2"):
        own_trace(memoryview(bytes(bad)), "t")


def test_opening_reads_no_column(file, tmp_path, monkeypatch):
    (tmp_path / "t").write_bytes(file)
    read = []
    real = blocks_module.read_body
    monkeypatch.setattr(
        blocks_module, "read_body", lambda data, block, source, kind: read.append(block.table)
        or real(data, block, source, kind)
    )  # fmt: skip
    trace = open_trace(tmp_path / "t")
    assert set(read) == {"names", "requests"}
    assert trace.messages["sent"].size == trace.messages.rows
    assert "messages" in read


def test_any_msgpack_reader_can_read_it(file):
    """As docs/trace-format.md tells another program to."""
    header, *objects = msgpack.Unpacker(io.BytesIO(file), strict_map_key=False)
    assert header["format"] == "shatterproof-trace"
    assert dict(header["tables"]["messages"])["gfn"] == "<u8"
    *found, _trailer = objects
    table, rows, _, _, _, body = next(each for each in found if each[0] == "updates")
    base, width, data = msgpack.unpackb(body)["gfn"]
    values = [
        (base + int.from_bytes(data[at * width : (at + 1) * width], "little")) % (1 << 64)
        for at in range(rows)
    ]
    assert table == "updates"
    assert values == own_trace(memoryview(file), "t").updates["gfn"].tolist()[:rows]


def test_frames_refuse_what_they_do_not_have():
    frame = Frame.of("updates", {"gfn": [1, 2, 3]})
    assert frame["order"].tolist() == [0, 0, 0]
    assert frame.take(np.array([2, 0]))["gfn"].tolist() == [3, 1]
    assert frame.take(frame["gfn"] > 1).rows == 2
    with pytest.raises(KeyError):
        frame["nothing"]
    assert encode_frame(frame)[1].rows == 3
