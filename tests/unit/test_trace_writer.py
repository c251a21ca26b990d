"""The process that writes a trace: whatever becomes of the run, what had come is a whole file."""

import io
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from deploy.cli.trace import FileSink, has_a_core_to_spare
from deploy.cli.trace_writer import (
    BELL,
    IN_THE_END,
    Add,
    Begin,
    Flush,
    Requests,
    encode_order,
    write,
)
from deploy.driver.launch import Launch
from deploy.profile.open import open_trace, own_trace
from deploy.scenario.model import Build
from deploy.sim.runtime import SimRuntime
from deploy.world import host_config, layout
from protocols.errno import BadInputError
from services.trace.writer import STEP, describe_run
from tests.helpers import guest, scenario

CONFIG = host_config(scenario(guest("a", 16)).host)
HEADER = describe_run(
    runtime="local", seed=None, clock=STEP, host=CONFIG, machine={}, shards=layout(1, 1)
)


class Orders:
    """A sink that keeps the orders it would give."""

    def __init__(self):
        self.orders = [Begin(HEADER)]

    def add(self, tape, part, offset=0):
        self.orders.append(Add(tape, part, offset))

    def add_requests(self, envelopes):
        self.orders.append(Requests(list(envelopes)))

    def flush(self):
        self.orders.append(Flush())


def build(sink):
    runtime = SimRuntime(CONFIG, sink=sink)
    Launch(scenario(guest("a", 16), phases=(Build(),)), CONFIG, runtime).run()
    runtime.close()


@pytest.fixture(scope="module")
def orders():
    sink = Orders()
    build(sink)
    return [encode_order(order) for order in sink.orders]


def written(data, *, at_once=False, bells=b""):
    """The file made of a log."""
    file = io.BytesIO()
    with tempfile.TemporaryFile() as log:
        log.write(data)
        log.flush()
        write(log.fileno(), io.BytesIO(bells), file, at_once=at_once)
    return file.getvalue()


def test_a_file_by_another_process_is_the_file_made_here(orders, tmp_path):
    sink = FileSink(tmp_path / "t", HEADER)
    build(sink)
    sink.finish()
    assert (tmp_path / "t").read_bytes() == written(b"".join(orders))


def test_beside_the_run_or_after_it_the_file_is_the_same(orders):
    whole = written(b"".join(orders))
    for bells in (b"", BELL, BELL * 5):
        assert written(b"".join(orders), at_once=True, bells=bells) == whole
        assert written(b"".join(orders), bells=bells) == whole


class Growing:
    """A bell that rings after each order that is put into a log."""

    def __init__(self, log, orders):
        self.log, self.orders, self.rung = log, list(orders), 0

    def read(self, _size):
        self.rung += 1
        if not self.orders:
            return b""
        self.log.write(self.orders.pop(0))
        self.log.flush()
        return BELL


def test_a_log_that_grows_is_read_as_it_grows(orders):
    """Also in pieces: what is not there whole waits for the next bell."""
    data = b"".join(orders)
    pieces = [data[at : at + 1000] for at in range(0, len(data), 1000)]
    for given in (orders, pieces):
        file = io.BytesIO()
        with tempfile.TemporaryFile() as log:
            bell = Growing(log, given)
            write(log.fileno(), bell, file, at_once=True)
        assert file.getvalue() == written(data)
        assert bell.rung == len(given) + 1


@pytest.mark.parametrize(
    ("runtime", "cores", "free"),
    [("local", 2, False), ("local", 3, True), ("ray", 6, False), ("ray", 7, True)],
)
def test_rows_are_made_beside_the_run_where_a_core_is_free(runtime, cores, free, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    assert has_a_core_to_spare(HEADER | {"runtime": runtime}) is free


def test_a_run_that_dies_leaves_a_whole_file(orders):
    """Cut anywhere, also within an order: what had come whole is there, with its index."""
    whole = own_trace(memoryview(written(b"".join(orders))), "t")
    assert whole.messages.rows > 20
    for cut in range(2, len(orders) + 1):
        for missing in (0, 3, len(orders[cut - 1]) - 1):
            data = b"".join(orders[:cut])
            trace = own_trace(memoryview(written(data[: len(data) - missing])), "t")
            assert not trace.truncated
            assert set(trace.messages["id"].tolist()) <= set(whole.messages["id"].tolist())


def test_nothing_is_written_before_the_header_has_come(orders):
    assert written(orders[0][:-1]) == b""
    assert own_trace(memoryview(written(orders[0])), "t").records == 0


def test_the_writer_outlives_an_interrupt(orders, tmp_path):
    with (tmp_path / "t").open("wb") as file, tempfile.TemporaryFile() as log:
        log.write(b"".join(orders))
        log.flush()
        writer = subprocess.Popen(
            [sys.executable, "-m", "deploy.cli.trace_writer", str(log.fileno()), IN_THE_END],
            stdin=subprocess.PIPE, stdout=file, pass_fds=[log.fileno()],
        )  # fmt: skip
    deadline = time.monotonic() + 30
    while os.getpriority(os.PRIO_PROCESS, writer.pid) < 19 and time.monotonic() < deadline:
        time.sleep(0.01)
    writer.send_signal(signal.SIGINT)
    writer.communicate()
    assert writer.returncode == 0
    assert open_trace(tmp_path / "t").messages.rows > 20


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_a_disk_that_is_full_is_one_line(tmp_path):
    (tmp_path / "t").symlink_to("/dev/full")
    sink = FileSink(tmp_path / "t", HEADER)
    build(sink)
    with pytest.raises(BadInputError, match=r"--trace .*/t: cannot be written: No space left"):
        sink.finish()


def test_no_file_for_a_run_that_never_began(tmp_path):
    sink = FileSink(tmp_path / "t", HEADER)
    sink.finish()
    assert not (tmp_path / "t").exists()
