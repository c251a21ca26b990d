"""What people read on standard error: whole lines, each of them short and nothing but text."""

from __future__ import annotations

import sys
from typing import Final

from protocols.text import LINE_MAX, shown

NAME: Final = "shatterproof"


def complain(text: str) -> None:
    """One line, whatever the text quotes."""
    sys.stderr.write(f"{NAME}: {shown(text, LINE_MAX - len(NAME) - 2)}\n")


def warn(text: str) -> None:
    """One line about something that did not stop the command."""
    complain(f"warning: {text}")


def tell(text: str) -> None:
    """What takes a while, to whoever watches; nobody reads it from a file."""
    if sys.stderr.isatty():
        sys.stderr.write(f"{shown(text)}\n")
