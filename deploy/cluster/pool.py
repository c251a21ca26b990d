"""Plain function calls on Ray workers: bytes in, bytes out, results as they come."""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Callable, Generator, Iterable
from itertools import islice
from typing import Any, Final, cast

import ray.exceptions

from deploy.cluster.runtime import RayCluster
from protocols.errno import ShatterproofError

_ray: Any = ray

QUEUED: Final = 2
"""Tasks that a worker has: one at work and one that it can begin at once."""


class TaskFailedError(ShatterproofError):
    """A task raised, or its worker died; the text is the traceback."""


class Worker:
    """Calls one function, named ``module:function``."""

    def __init__(self, function: str) -> None:
        self._path = function
        self._function: Callable[[bytes], bytes] | None = None

    def call(self, payload: bytes) -> tuple[bytes, str]:
        """(result, ""), or what went wrong."""
        try:
            if self._function is None:
                module, _, name = self._path.partition(":")
                found = getattr(importlib.import_module(module), name)
                self._function = cast("Callable[[bytes], bytes]", found)
            return self._function(payload), ""
        except Exception:  # noqa: BLE001 (whatever it is, the caller must hear of it)
            return b"", traceback.format_exc()


def run_tasks(
    function: str, payloads: Iterable[bytes], *, jobs: int, address: str | None = None
) -> Generator[tuple[int, bytes]]:
    """Call ``module:function`` with every payload on ``jobs`` workers: (index, result), any order.

    Payloads are taken as workers become free. Closing the generator stops workers and tasks.

    Raises:
        TaskFailedError: a task raised or its worker died; the others are given up.
        BadInputError: nobody at ``address``.
    """
    assert jobs > 0, f"{jobs} jobs"
    cluster = RayCluster(address, num_cpus=jobs)
    workers: list[Any] = []
    try:
        make = _ray.remote(Worker).options(
            num_cpus=0, max_restarts=0, max_task_retries=0, enable_task_events=False
        )
        workers += [make.remote(function) for _ in range(jobs)]
        yield from _spread(workers, iter(enumerate(payloads)))
    finally:
        for worker in workers:
            _ray.kill(worker)
        cluster.close()


def _spread(workers: list[Any], tasks: Iterable[tuple[int, bytes]]) -> Generator[tuple[int, bytes]]:
    """Give every worker its share, and another task for each that is done."""
    tasks = iter(tasks)
    running: dict[Any, tuple[int, Any]] = {}

    def give(worker: Any) -> None:
        for index, payload in islice(tasks, 1):
            running[worker.call.remote(payload)] = index, worker

    for worker in workers * QUEUED:
        give(worker)
    while running:
        done, _ = _ray.wait(list(running), num_returns=1)
        index, worker = running.pop(done[0])
        try:
            result, failure = _ray.get(done[0])
        except ray.exceptions.RayActorError as error:
            raise TaskFailedError(f"task {index}: its worker died: {error}") from None
        if failure:
            raise TaskFailedError(f"task {index}:\n{failure}")
        give(worker)
        yield index, result
