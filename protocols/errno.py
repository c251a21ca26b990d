"""Xen's error numbers, and the tree of our exceptions.

Expected outcomes of a hypercall are values (``Errno`` in a reply, negative on the wire as Xen
returns them). Exceptions are for input that is not ours to interpret and for our own bugs::

    ShatterproofError
    ├── BadInputError        a file, flag, scenario or trace that a person gave: exit status 2
    ├── ProtocolError        bytes or a message that do not fit their schema
    └── ComponentFailureError  a component broke an invariant; carries its story
"""

from __future__ import annotations

from enum import IntEnum


class Errno(IntEnum):
    """The subset of ``public/errno.h`` that the memory calls return; positive here."""

    OK = 0
    EPERM = 1
    ENOENT = 2
    ESRCH = 3
    E2BIG = 7
    ENOMEM = 12
    EACCES = 13
    EFAULT = 14
    EBUSY = 16
    EEXIST = 17
    EXDEV = 18
    EINVAL = 22
    ENOSYS = 38
    ENOTEMPTY = 39
    EOVERFLOW = 75
    EILSEQ = 84
    ERESTART = 85
    EOPNOTSUPP = 95


class ShatterproofError(Exception):
    """Root of every exception that this project raises on purpose."""


class BadInputError(ShatterproofError):
    """Input from a person that cannot be used; the text is the one line they see."""


class ProtocolError(ShatterproofError):
    """A message that does not fit its schema; names the field. The receiver is unchanged."""


class ComponentFailureError(ShatterproofError):
    """A component failed an assertion; ``story`` is the tail of what it had received."""

    def __init__(self, component: str, reason: str, story: list[str]) -> None:
        super().__init__(component, reason, story)
        self.component = component
        self.reason = reason
        self.story = story

    def __str__(self) -> str:
        """Reason first, then the story, oldest message first."""
        lines = "\n".join(f"    {line}" for line in self.story)
        return f"{self.component}: {self.reason}\n{lines}"
