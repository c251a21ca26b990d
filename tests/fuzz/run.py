"""``python -m tests.fuzz.run``: mutated inputs of every format through the command, judged.

FUZZ_SECONDS bounds it (120), or FUZZ_INPUTS, a number shared out evenly; FUZZ_JOBS processes share
it; FUZZ_SEED draws it, and input k of a format is the same for the same seed; a second run goes on
where the first one ended. FUZZ_DIR (out/fuzz) gets state.json, findings.jsonl and the smallest file
of each kind of fault. Exit status: 0 no fault, 1 there was one, 2 bad usage.
"""

import argparse
import json
import os
import re
import resource
import shlex
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random

from tests.fuzz import seeds
from tests.fuzz.targets import IN, OUT, TARGETS, Input
from tests.soak.run import revision, say
from tests.workers import Lost, Terminated, peak_mib, run_tasks, terminate

SECONDS = 120
BATCH_SECONDS = 2.0
BATCH_MAX = 400
STUCK_SECONDS = 90
"""Of real time: what hangs in Python is stopped by the judge long before."""
SMALLER_SECONDS = 8
"""For making an input smaller."""
ROOM_BYTES = 3 << 30
"""Address space that a worker may take beyond what it has after its first inputs."""
RECYCLE_MIB = 700
COSTLY = ("HANG", "SLOW", "MEMORY", "LOST")
"""Kinds that are not made smaller: each try takes as long as the fault."""


def make(target, seed, index, made):
    """Input ``index`` of a format."""
    return TARGETS[target](Random(f"{seed}/{target}/{index}"), made)


def run_one(given, data=None):
    """Judge an input in a directory of its own."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        return given.run(Path(name), data)


def work(task, mark):
    """A worker's task: a batch of a format, or a finding to make smaller."""
    _settle(task["made"])
    if task["what"] == "smaller":
        return smaller(make(task["target"], task["seed"], task["index"], task["made"]), task, mark)
    statuses, findings = Counter(), {}
    begun = time.monotonic()
    for index in range(task["first"], task["first"] + task["nr"]):
        mark.value = index + 1
        verdict = run_one(make(task["target"], task["seed"], index, task["made"]))
        statuses[str(verdict.status)] += 1
        for kind, seen in verdict.faults.items():
            findings.setdefault(kind, (index, seen))
    seconds = time.monotonic() - begun
    return {"statuses": statuses, "findings": findings, "seconds": seconds, "peak": peak_mib()}


_settled = False


def _settle(made):
    """Once in each worker: what takes time the first time, and the limit on memory."""
    global _settled  # noqa: PLW0603 (one a process)
    if _settled:
        return
    _settled = True
    os.chdir(made)
    for target in TARGETS:
        run_one(make(target, "first", 0, made))
    run_one(Input(seeds.xentraces(made)[0], ".bin", ["profile", IN, "--json", "-"], twice=True))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    room = pages * resource.getpagesize() + ROOM_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (room, resource.RLIM_INFINITY))


def smaller(given, task, mark):
    """The input's bytes, with every part taken away that the kind of fault does not need."""
    data, kind = given.data, task["kind"]
    deadline = time.monotonic() + SMALLER_SECONDS
    nr = len(data) // 2
    while nr and time.monotonic() < deadline and not kind.startswith(COSTLY):
        at = 0
        while at < len(data) and time.monotonic() < deadline:
            mark.value += 1
            fewer = data[:at] + data[at + nr :]
            if kind in run_one(given, fewer).faults:
                data = fewer
            else:
                at += nr
        nr //= 2
    return {"data": data}


class Fuzz:
    """A run: how far each format has come, what was found."""

    def __init__(self, directory, seed, made, names):
        self.directory, self.seed, self.made = directory, seed, made
        self.state = directory / "state.json"
        known = json.loads(self.state.read_text()) if self.state.exists() else {}
        self.all_next = known
        self.next = known.setdefault(str(seed), {})
        self.seconds = dict.fromkeys(names, 0.0)
        self.inputs = Counter(dict.fromkeys(names, 0))
        self.under_way = Counter()
        self.statuses = {name: Counter() for name in names}
        self.faults = {name: Counter() for name in names}
        self.files = {}
        self._smaller = []
        self._retry = []

    def tasks(self, seconds, inputs):
        """Batches: of the format that has had the least time, or the fewest inputs."""
        deadline = time.monotonic() + seconds if seconds else float("inf")
        while True:
            if self._smaller:
                yield self._smaller.pop()
                continue
            if time.monotonic() >= deadline:
                return
            if self._retry:
                yield self._retry.pop()
                continue
            task = self._batch(inputs)
            if task is None:
                return
            yield task

    def _batch(self, inputs):
        each = -(-inputs // len(self.seconds)) if inputs else None
        given = {name: self.inputs[name] + self.under_way[name] for name in self.seconds}
        open_ = [name for name in self.seconds if each is None or given[name] < each]
        if not open_:
            return None
        rates = {name: self._rate(name) for name in open_}
        name = min(open_, key=lambda name: given[name] / (1 if each else rates[name]))
        nr = max(4, min(BATCH_MAX, int(rates[name] * BATCH_SECONDS)))
        nr = nr if each is None else min(nr, each - given[name])
        first = self.next.get(name, 0)
        self.next[name] = first + nr
        self.under_way[name] += nr
        return self._task("batch", name, first=first, nr=nr)

    def _rate(self, name):
        return max(self.inputs[name], 1) / self.seconds[name] if self.seconds[name] else 10.0

    def _task(self, what, target, **more):
        return {"what": what, "target": target, "seed": self.seed, "made": self.made, **more}

    def take(self, task, result):
        """Count a batch in, or keep a finding's file."""
        name = task["target"]
        if task["what"] == "smaller":
            data = None if isinstance(result, Lost) else result["data"]
            self._save(task, data)
            return
        self.under_way[name] -= task["nr"]
        if isinstance(result, Lost):
            result = self._lost(task, result)
        self.seconds[name] += result["seconds"]
        self.inputs[name] += sum(result["statuses"].values())
        self.statuses[name].update(result["statuses"])
        for kind, (index, seen) in result["findings"].items():
            self.faults[name][kind] += 1
            if (name, kind) not in self.files:
                self.files[name, kind] = None
                self._smaller.append(self._task("smaller", name, index=index, kind=kind, seen=seen))
        self.state.write_text(json.dumps(self.all_next))

    def _lost(self, task, lost):
        """A batch whose worker hung or died at one input: that is a fault; the rest comes again."""
        index = max(task["first"], lost.mark - 1)
        after = task["first"] + task["nr"] - index - 1
        if after:
            self.under_way[task["target"]] += after
            self._retry.append({**task, "first": index + 1, "nr": after})
        return {
            "statuses": Counter({"lost": index + 1 - task["first"]}),
            "findings": {"LOST": (index, lost.reason)},
            "seconds": 1.0,
        }

    def _save(self, task, data):
        """A file, its command, and one line for people."""
        given = make(task["target"], self.seed, task["index"], self.made)
        slug = re.sub(r"[^\w.]+", "_", f"{task['kind']}-{task['target']}")[:100]
        path = self.directory / (slug + given.ending)
        path.write_bytes(given.data if data is None else data)
        out = self.directory / "out"
        words = [
            str(each).replace(IN, str(path)).replace(OUT, str(out)) for each in given.arguments
        ]
        command = f"shatterproof {shlex.join(words)}" if words else f"tests.fuzz: {given.call}"
        self.files[task["target"], task["kind"]] = path
        with (self.directory / "findings.jsonl").open("a") as file:
            row = {
                "kind": task["kind"],
                "target": task["target"],
                "seed": self.seed,
                "index": task["index"],
                "file": str(path),
                "command": command,
                "seen": task["seen"],
                "revision": revision(),
            }
            file.write(json.dumps(row) + "\n")
        say(f"{task['target']}: {task['kind']}: {command!a}")

    def report(self):
        """The numbers by format."""
        head = ("format", "inputs", "a second", "status 0", "1", "2", "3", "faults", "kinds")
        yield f"{head[0]:16}" + "".join(f"{each:>10}" for each in head[1:])
        total = Counter()
        for name, statuses in self.statuses.items():
            faults = sum(self.faults[name].values())
            rate = self.inputs[name] / self.seconds[name] if self.seconds[name] else 0
            row = (self.inputs[name], round(rate), *(statuses[s] for s in "0123"), faults)
            total.update(dict(enumerate(row)))
            yield f"{name:16}" + "".join(f"{n:>10,}" for n in (*row, len(self.faults[name])))
        row = (total[0], "", *(total[at] for at in range(2, 7)), len(self.files))
        yield f"{'all':16}" + "".join(f"{n:>10,}" if n != "" else " " * 10 for n in row)


def _one(target, seed, index, made):
    """Show one input and what is said of it; the exit status."""
    given = make(target, seed, index, made)
    verdict = run_one(given)
    say(f"{shlex.join(map(str, given.arguments)) or given.call}\n{given.data[:4000]!r}")
    say(f"status {verdict.status}, {verdict.seconds:.2f} s\nstdout {verdict.out[-2000:]!a}")
    say(f"stderr {verdict.err[-4000:]}")
    for kind, seen in verdict.faults.items():
        say(f"{kind}: {seen}")
    return 1 if verdict.faults else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=list(TARGETS), help="one format")
    parser.add_argument("--index", type=int, help="show this one input of --only FORMAT")
    arguments = parser.parse_args()
    env = os.environ
    directory = Path(env.get("FUZZ_DIR", "out/fuzz")).absolute()
    directory.mkdir(parents=True, exist_ok=True)
    seed = int(env.get("FUZZ_SEED", "1"))
    inputs = int(env.get("FUZZ_INPUTS", "0"))
    seconds = float(env.get("FUZZ_SECONDS", "0" if inputs else str(SECONDS)))
    jobs = int(env.get("FUZZ_JOBS") or os.cpu_count() or 1)
    signal.signal(signal.SIGTERM, terminate)
    status = 0
    with tempfile.TemporaryDirectory(prefix="fuzz-seeds-") as name:
        made = Path(name)
        seeds.make(made)
        if arguments.index is not None:
            sys.exit(_one(arguments.only[0], seed, arguments.index, made))
        fuzz = Fuzz(directory, seed, made, arguments.only or list(TARGETS))
        results = run_tasks(
            "tests.fuzz.run:work",
            fuzz.tasks(seconds, inputs),
            jobs=jobs,
            limit_seconds=STUCK_SECONDS,
            recycle_mib=RECYCLE_MIB,
        )
        try:
            for task, result in results:
                fuzz.take(task, result)
        except KeyboardInterrupt:
            status = 130
        except Terminated as end:
            status = end.code
        finally:
            results.close()
    say("\n".join(fuzz.report()))
    sys.exit(status or (1 if fuzz.files else 0))


if __name__ == "__main__":
    main()
