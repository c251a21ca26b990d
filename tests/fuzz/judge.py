"""Runs a command in this process as a shell would, and says what no input may make it do."""

import io
import os
import re
import resource
import signal
import sys
import time
import traceback
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import structlog

from deploy.cli.main import EXIT_INTERNAL, TRACEBACK
from deploy.cli.main import run as shatterproof

OWN = ("protocols", "services", "deploy")
STATUSES = (0, 1, 2, 3)
COLUMNS_MAX = 400
SECONDS_MAX = 2.0
HANG_SECONDS = 10.0
"""Of processor time, so that a busy machine changes nothing."""
MEMORY_MIB_MAX = 300
PLAIN = frozenset("\n\t")
_TRACE = "Traceback (most recent call last)"


class Hang(BaseException):
    """The command has used up its time."""


@dataclass
class Verdict:
    """What a command did. ``faults`` maps the kind of each fault to what was seen of it."""

    status: int | None
    out: str
    err: str
    seconds: float
    faults: dict[str, str] = field(default_factory=dict)


def _hang(_signal, _frame):
    raise Hang


@contextmanager
def limited(seconds):
    """At most so much processor time; ``Hang`` beyond it."""
    before = signal.signal(signal.SIGPROF, _hang)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def place(trace):
    """The innermost of our own functions in a traceback's text, as a name."""
    ours = [
        f"{module}.{function.strip('<>')}"
        for file, function in re.findall(r'File "(.*)", line \d+, in (\S+)', trace)
        if (module := _module(file)) is not None
    ]
    return ours[-1] if ours else "nowhere"


def _module(file):
    parts = Path(file).with_suffix("").parts
    tops = [at for at, part in enumerate(parts) if part in OWN]
    return ".".join(parts[tops[-1] :]) if tops else None


def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def judge(arguments, left=None, call=None):
    """Run a command line; ``left`` is a directory in which nothing half-written may be after it.

    ``call`` runs something else than the command, for formats that no command reads.
    """
    out, err = io.BytesIO(), io.BytesIO()
    stdout, stderr = (
        io.TextIOWrapper(each, "utf-8", errors="backslashreplace", write_through=True)
        for each in (out, err)
    )
    faults, status, memory = {}, None, peak_mib()
    begun = time.process_time()
    with mock.patch.multiple(sys, stdout=stdout, stderr=stderr), _as_started():
        try:
            with limited(HANG_SECONDS):
                status = (call or shatterproof)(arguments)
        except Hang:
            faults[f"HANG {place(traceback.format_exc())}"] = f"{HANG_SECONDS:g} s"
        except (Exception, SystemExit):  # noqa: BLE001 (this is what is looked for)
            traceback.print_exc()
            status = EXIT_INTERNAL
    seconds = time.process_time() - begun
    verdict = Verdict(status, _text(out), _text(err), seconds, faults)
    if status == EXIT_INTERNAL:
        faults.update(_raised(verdict.err))
    elif not faults:
        faults.update(_said(verdict))
        if seconds > SECONDS_MAX:
            faults["SLOW"] = f"{seconds:.1f} s"
    if peak_mib() - memory > MEMORY_MIB_MAX:
        faults["MEMORY"] = f"{peak_mib() - memory} MiB"
    if left is not None and (names := sorted(path.name for path in left.rglob(".*"))):
        faults["LEFT"] = ", ".join(names)
    return verdict


@contextmanager
def _as_started():
    """No state of the last command: what the process was started with."""
    with mock.patch.dict(os.environ, {TRACEBACK: "1"}):
        try:
            yield
        finally:
            structlog.reset_defaults()


def _text(stream):
    return stream.getvalue().decode("utf-8", "backslashreplace")


def _raised(err):
    """(kind, what) of the exception that a traceback on stderr is of."""
    trace = err[err.index(_TRACE) :]
    what = next(line for line in trace.splitlines()[1:] if not line.startswith(" "))
    yield f"EXC {what.partition(':')[0].rpartition('.')[2]} {place(trace)}", trace[-2000:]


def _said(verdict):
    """(kind, what) of every fault in what was printed.

    An error with status 1 is asked for its traceback too: that is not what people see.
    """
    err = verdict.err.rpartition("\nshatterproof: ")[2] if _TRACE in verdict.err else verdict.err
    if verdict.status not in STATUSES:
        yield "STATUS", repr(verdict.status)
    if verdict.status == 2 and not err.strip():
        yield "SILENT", "status 2 and no line that says why"
    if err.count("\n") > 1:
        yield "NOTONELINE", err[:COLUMNS_MAX]
    for name, text in (("ERR", err), ("OUT", verdict.out)):
        odd = {char for char in set(text) - PLAIN if not char.isprintable() and _controls(char)}
        if odd:
            yield f"CTRL_IN_{name}", repr(sorted(odd))
    longest = max(map(len, err.splitlines()), default=0)
    if longest > COLUMNS_MAX:
        yield "LONGLINE", f"{longest} columns: {err[:COLUMNS_MAX]}"


def _controls(char):
    """Whether a terminal may do something else with a character than show it."""
    number = ord(char)
    return (
        number < 0x20
        or 0x7F <= number < 0xA0
        or char in "\u2028\u2029\u200e\u200f\u061c"
        or (0x202A <= number <= 0x202E or 0x2066 <= number <= 0x2069 or 0xD800 <= number <= 0xDFFF)
    )
