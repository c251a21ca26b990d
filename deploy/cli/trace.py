"""Trace files that commands write: what was recorded is in a log at once, so that none is lost."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO, Final, cast

from deploy.cli.complain import tell
from deploy.cli.files import reason_of
from deploy.cli.trace_writer import (
    AT_ONCE,
    BELL,
    IN_THE_END,
    Add,
    Begin,
    Flush,
    Order,
    Requests,
    encode_order,
)
from deploy.world import layout
from protocols.errno import BadInputError
from services.heap.host import HostConfig
from services.trace.writer import STEP, describe_run, ns_clock

SILENT_SECONDS: Final = 2.0
"""A trace that takes longer to write is told of on a terminal."""


def has_a_core_to_spare(header: dict[str, Any]) -> bool:
    """Whether whoever writes the trace has a core that nobody else needs: the run, the system."""
    busy = len(header["shards"]) + 1 if header["runtime"] == "ray" else 1
    return busy + 1 < (os.cpu_count() or 1)


class FileSink:
    """A ``TraceSink`` whose file another process writes, from the first part on.

    What is recorded goes into a log beside the file, which nobody else sees: neither that process
    nor a full pipe ever makes the run wait.
    """

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        self._path = path
        self._header = header
        self._log: BinaryIO | None = None
        self._writer: subprocess.Popen[bytes] | None = None

    def add(self, tape: int, part: bytes, offset: int = 0) -> None:
        """See ``TraceSink.add``."""
        self._put(Add(tape, part, offset))

    def add_requests(self, envelopes: Sequence[bytes]) -> None:
        """See ``TraceSink.add_requests``."""
        self._put(Requests(list(envelopes)))

    def flush(self) -> None:
        """Append the blocks that are complete."""
        self._put(Flush())
        assert self._writer is not None
        assert self._writer.stdin is not None
        try:
            self._writer.stdin.write(BELL)
        except (BlockingIOError, BrokenPipeError):
            # It has enough bells to hear, or has failed and says why when it is waited for.
            return

    def finish(self) -> None:
        """The rest, and the index; no file for a run that never began.

        Raises:
            BadInputError: the file could not be written to its end.
        """
        if self._writer is None or self._log is None:
            return
        self._log.close()
        try:
            _, story = self._writer.communicate(timeout=SILENT_SECONDS)
        except subprocess.TimeoutExpired:
            tell(f"writing {self._path}")
            _, story = self._writer.communicate()
        if self._writer.returncode:
            raise _unwritable(self._path, story.decode())

    def _put(self, order: Order) -> None:
        try:
            if self._log is None:
                self._log = self._start()
                self._log.write(encode_order(Begin(self._header)))
            self._log.write(encode_order(order))
            self._log.flush()
        except OSError as error:
            raise _unwritable(self._path, reason_of(error)) from None

    def _start(self) -> BinaryIO:
        """The log, and whoever reads it."""
        log = TemporaryFile(dir=self._path.parent)  # noqa: SIM115 (closed when all is over)
        when = AT_ONCE if has_a_core_to_spare(self._header) else IN_THE_END
        with self._path.open("wb") as file:
            self._writer = subprocess.Popen(  # noqa: S603 (a module of ours)
                [sys.executable, "-m", "deploy.cli.trace_writer", str(log.fileno()), when],
                stdin=subprocess.PIPE, stdout=file, stderr=subprocess.PIPE, bufsize=0,
                pass_fds=[log.fileno()],
            )  # fmt: skip
        assert self._writer.stdin is not None
        os.set_blocking(self._writer.stdin.fileno(), False)
        return cast("BinaryIO", log)


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


def _unwritable(path: Path, reason: str) -> BadInputError:
    return BadInputError(f"--trace {path}: cannot be written: {reason}")


def _machine() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
    }
