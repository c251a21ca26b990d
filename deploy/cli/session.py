"""Start the runtime that the flags ask for, with progress and trace, and stop it again."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.cli.files import check_apart, check_directory, check_file, check_json
from deploy.cli.progress import ProgressDisplay
from deploy.cli.trace import trace_file
from deploy.runtime import Runtime, TraceSink
from deploy.sim.oracles import Seeded
from deploy.sim.runtime import SimRuntime
from protocols.errno import BadInputError
from services.heap.host import HostConfig


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The flags of a run, as given."""

    runtime: str
    address: str | None
    shards: int
    seed: int | None
    trace: Path | None = None
    dump_p2m: Path | None = None
    json_path: str | None = None
    wall_clock: bool = False

    def check(self) -> None:
        """Refuse what cannot work before anything starts.

        Raises:
            BadInputError: a flag that contradicts another, or a place that cannot be written.
        """
        if self.runtime == "local" and self.address is not None:
            raise BadInputError("--address: needs --runtime ray")
        if self.runtime == "local" and self.shards != 1:
            raise BadInputError("--shards: needs --runtime ray, the local one is one process")
        named = {"--trace": self.trace, "--dump-p2m": self.dump_p2m, "--json": self.json_path}
        check_apart(named)
        if self.trace is not None:
            check_file(self.trace, "--trace")
        check_json(self.json_path)
        if self.dump_p2m is not None:
            check_directory(self.dump_p2m, "--dump-p2m")


@contextmanager
def started(
    options: RunOptions, config: HostConfig, progress: ProgressDisplay
) -> Generator[Runtime]:
    """A runtime for the block; its trace is written meanwhile."""
    local = options.runtime == "local"
    with trace_file(
        options.trace, config, runtime=options.runtime, seed=options.seed if local else None,
        wall_clock=options.wall_clock or not local, shards=options.shards,
    ) as sink, _runtime(options, config, progress, sink) as runtime:  # fmt: skip
        yield runtime


@contextmanager
def _runtime(
    options: RunOptions, config: HostConfig, progress: ProgressDisplay, sink: TraceSink | None
) -> Generator[Runtime]:
    if options.runtime == "local":
        oracle = None if options.seed is None else Seeded(options.seed)
        clock = time.perf_counter_ns if options.wall_clock else None
        local = SimRuntime(config, oracle=oracle, sink=sink, clock=clock, progress=progress)
        try:
            yield local
        finally:
            local.close()
        return
    # Ray takes over a second to import; the local runtime must not pay for it.
    from deploy.cluster.runtime import RayCluster, RayRuntime  # noqa: PLC0415

    progress.phase("starting Ray")
    cluster = RayCluster(options.address)
    try:
        runtime = RayRuntime(config, shards=options.shards, sink=sink, progress=progress)
        try:
            yield runtime
        finally:
            runtime.close()
    finally:
        cluster.close()
