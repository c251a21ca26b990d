"""Trace files that commands write: appended to while the run goes on, so that none is lost."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, BinaryIO, Final

from deploy.cli.trace_writer import Add, Begin, Flush, Order, Requests, encode_order
from deploy.world import layout
from protocols.errno import BadInputError
from services.heap.host import HostConfig
from services.trace.writer import STEP, describe_run, ns_clock

PIPE_BYTES: Final = 1 << 20
"""More than a part: a feeder that stops within one takes the interpreter from the run again."""
SILENT_SECONDS: Final = 2.0
"""A trace that takes longer to write is told of on a terminal."""


def has_a_core_to_spare(header: dict[str, Any]) -> bool:
    """Whether whoever writes the trace has a core that nobody else needs: the run, the system."""
    busy = len(header["shards"]) + 1 if header["runtime"] == "ray" else 1
    return busy + 1 < (os.cpu_count() or 1)


class FileSink:
    """A ``TraceSink`` whose file another process writes, from the first part on.

    A thread feeds that process, so that neither makes the run wait.
    """

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        self._path = path
        self._header = header
        self._queue: SimpleQueue[Order | None] = SimpleQueue()
        self._writer: subprocess.Popen[bytes] | None = None
        self._feeder = Thread(target=self._feed, daemon=True)

    def add(self, tape: int, part: bytes, offset: int = 0) -> None:
        """See ``TraceSink.add``."""
        self._put(Add(tape, part, offset))

    def add_requests(self, envelopes: Sequence[bytes]) -> None:
        """See ``TraceSink.add_requests``."""
        self._put(Requests(list(envelopes)))

    def flush(self) -> None:
        """Append the blocks that are complete."""
        self._put(Flush())

    def finish(self) -> None:
        """The rest, and the index; no file for a run that never began.

        Raises:
            BadInputError: the file could not be written to its end.
        """
        if self._writer is None:
            return
        self._queue.put(None)
        self._feeder.join()
        try:
            _, story = self._writer.communicate(timeout=SILENT_SECONDS)
        except subprocess.TimeoutExpired:
            if sys.stderr.isatty():
                sys.stderr.write(f"writing {self._path}\n")
            _, story = self._writer.communicate()
        if self._writer.returncode:
            raise _unwritable(self._path, story.decode())

    def _put(self, order: Order) -> None:
        if self._writer is None:
            self._writer = self._start()
            aside = None if has_a_core_to_spare(self._header) else str(self._path.parent.absolute())
            self._queue.put(Begin(self._header, aside))
            self._feeder.start()
        self._queue.put(order)

    def _start(self) -> subprocess.Popen[bytes]:
        with _open(self._path) as file:
            return subprocess.Popen(
                [sys.executable, "-m", "deploy.cli.trace_writer"],
                stdin=subprocess.PIPE, stdout=file, stderr=subprocess.PIPE, pipesize=PIPE_BYTES,
            )  # fmt: skip

    def _feed(self) -> None:
        assert self._writer is not None
        assert self._writer.stdin is not None
        try:
            while (order := self._queue.get()) is not None:
                self._writer.stdin.write(encode_order(order))
                self._writer.stdin.flush()
        except BrokenPipeError:
            # It has failed, and says why when it is waited for.
            return


@contextmanager
def trace_file(
    path: Path | None,
    config: HostConfig,
    *,
    runtime: str,
    seed: int | None,
    wall_clock: bool,
    shards: int = 1,
) -> Generator[FileSink | None]:
    """A sink that ends in a file at ``path``; None without one."""
    if path is None:
        yield None
        return
    header = describe_run(
        runtime=runtime,
        seed=seed,
        clock=ns_clock(time.time_ns()) if wall_clock else STEP,
        host=config,
        # A run without time is the same on every machine, and so must be its trace.
        machine=_machine() if wall_clock else {},
        shards=layout(shards, config.nr_nodes),
    )
    sink = FileSink(path, header)
    try:
        yield sink
    finally:
        sink.finish()


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("wb")
    except OSError as error:
        raise _unwritable(path, error.strerror or type(error).__name__) from None


def _unwritable(path: Path, reason: str) -> BadInputError:
    return BadInputError(f"--trace {path}: cannot be written: {reason}")


def _machine() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
    }
