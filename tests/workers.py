"""Processes of our own that run tasks for the soak and for the fuzzer, and may die of them.

Each worker takes one task at a time over a pipe and marks what it is at in shared memory, so that
whoever hangs or dies can be named. Workers end with their parent; a full one is replaced.
"""

import importlib
import multiprocessing
import resource
import signal
import time
from dataclasses import dataclass
from multiprocessing import connection

PAGE_KIB = 1024
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Lost:
    """A task that never came back: why, and the mark of what was under way."""

    reason: str
    mark: int


class Terminated(SystemExit):
    """SIGTERM has come."""


def terminate(*_):
    raise Terminated(143)


def peak_mib():
    """The most memory that this process has held, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // PAGE_KIB


def _work(pipe, mark, name, recycle_mib):
    """A worker: tasks in, results out, until the pipe closes or its memory has grown too large."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    module, _, function = name.partition(":")
    run = getattr(importlib.import_module(module), function)
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        result = run(task, mark)
        full = peak_mib() > recycle_mib
        try:
            pipe.send((result, full))
        except BrokenPipeError:
            return
        if full:
            return


class _Worker:
    def __init__(self, context, name, recycle_mib):
        self.mark = context.RawValue("q", 0)
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=_work, args=(theirs, self.mark, name, recycle_mib), daemon=True
        )
        self.process.start()
        theirs.close()
        self.task = None
        self._seen, self._since = 0, time.monotonic()

    def give(self, task):
        self.task = task
        self.mark.value = 0
        self._seen, self._since = 0, time.monotonic()
        self.pipe.send(task)

    def stuck(self, limit):
        """Whether the mark has not moved for ``limit`` seconds."""
        if self.task is None or self.mark.value != self._seen:
            self._seen, self._since = self.mark.value, time.monotonic()
        return time.monotonic() - self._since > limit

    def end(self):
        self.pipe.close()
        self.process.kill()
        self.process.join()


def run_tasks(name, tasks, *, jobs, limit_seconds, recycle_mib):
    """``module:function`` of (task, mark) on ``jobs`` processes; yields (task, result or Lost).

    No task is taken from ``tasks`` before a worker is free for it.
    """
    context = multiprocessing.get_context("spawn")
    tasks = iter(tasks)
    workers = []
    more = True
    try:
        while more or any(worker.task is not None for worker in workers):
            idle = [worker for worker in workers if worker.task is None]
            while more and (idle or len(workers) < jobs):
                task = next(tasks, None)
                more = task is not None
                if not more:
                    break
                if not idle:
                    workers.append(_Worker(context, name, recycle_mib))
                    idle.append(workers[-1])
                idle.pop().give(task)
            busy = [worker for worker in workers if worker.task is not None]
            connection.wait([worker.pipe for worker in busy], timeout=POLL_SECONDS)
            for worker in busy:
                answer = _answer(worker, limit_seconds)
                if answer is None:
                    continue
                result, full = answer
                task, worker.task = worker.task, None
                if full:
                    workers.remove(worker)
                    worker.end()
                yield task, result
    finally:
        for worker in workers:
            worker.end()


def _answer(worker, limit_seconds):
    """What has come from a worker: (result, whether it must be replaced), None if nothing yet."""
    if worker.pipe.poll():
        try:
            return worker.pipe.recv()
        except (EOFError, ConnectionError):
            worker.process.join()
            reason = f"the worker died with exit code {worker.process.exitcode}"
            return Lost(reason, worker.mark.value), True
    if worker.stuck(limit_seconds):
        return Lost(f"no result in {limit_seconds:g} s", worker.mark.value), True
    return None
