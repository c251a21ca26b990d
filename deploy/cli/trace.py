"""Trace files that commands write: appended to while the run goes on, so that none is lost."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from deploy.world import layout
from protocols.envelope import Envelope
from protocols.errno import BadInputError
from services.heap.host import HostConfig
from services.trace.tape import Part
from services.trace.writer import STEP, TraceEncoder, describe_run, ns_clock


class FileSink:
    """A ``TraceSink`` that appends whole blocks to a file, from the first part on."""

    def __init__(self, open_file: Callable[[], BinaryIO], header: dict[str, Any]) -> None:
        self._open = open_file
        self._file: BinaryIO | None = None
        self._encoder = TraceEncoder(header)

    def add(self, tape: int, part: Part, offset: int = 0) -> None:
        """See ``TraceSink.add``."""
        if self._file is None:
            self._file = self._open()
        self._encoder.add(tape, part, offset)

    def add_requests(self, envelopes: Sequence[Envelope]) -> None:
        """See ``TraceSink.add_requests``."""
        self._encoder.add_requests(envelopes)

    def flush(self) -> None:
        """Append the blocks that are complete."""
        assert self._file is not None, "nothing was ever added"
        self._file.write(self._encoder.take())

    def finish(self) -> None:
        """The rest, and the index; no file for a run that never began."""
        if self._file is not None:
            with self._file as file:
                file.write(self._encoder.finish())


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
    sink = FileSink(lambda: _open(path), header)
    try:
        yield sink
    finally:
        sink.finish()


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("wb")
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise BadInputError(f"--trace {path}: cannot be written: {reason}") from None


def _machine() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
    }
