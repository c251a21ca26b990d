"""Counterexamples that carry code: nobody's code runs because a file was looked at."""

from __future__ import annotations

import sys
from pathlib import Path

from deploy.campaign.artifact import Counterexample
from deploy.cli.complain import NAME
from protocols.errno import BadInputError
from protocols.text import LINE_MAX, shown


def consent(example: Counterexample, path: Path, *, trusted: bool) -> None:
    """See that the code of a counterexample may run, if it has any.

    The zoo entry of somebody's own is kept in the file as text, and a replay executes it with all
    that the caller may do. Whoever sits at a terminal is asked; elsewhere only ``trusted`` will do.

    Raises:
        BadInputError: it may not.
    """
    if trusted or not example.entry:
        return
    lines = len(example.entry.splitlines())
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise BadInputError(
            f"{path}: field `entry` is code ({lines} lines) that a replay runs: "
            "read it, then say --trust"
        )
    question = f"{path}: field `entry` is code ({lines} lines) that a replay runs with your rights"
    sys.stderr.write(f"{NAME}: {shown(question, LINE_MAX)}. Run it? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise BadInputError(f"{path}: not trusted, so nothing of it was run")
