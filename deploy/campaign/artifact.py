"""A counterexample as a file: everything that a later process needs to see it again."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from deploy.stress.case import Case, Schedule
from deploy.stress.entry import ZooEntry, load_file
from deploy.world import KINDS, Kinds
from deploy.zoo import find
from protocols.errno import BadInputError
from services.spec.findings import Violation

FORMAT: Final = "shatterproof counterexample"
VERSION: Final = 1


class Found(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How it was found: number of the schedule in its campaign, strategy and seed."""

    schedule: int
    strategy: str
    seed: int


class Broken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The violation."""

    invariant: str
    message: str
    domid: int | None = None
    gfn: int | None = None
    mfn: int | None = None
    order: int | None = None


class Counterexample(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file. ``entry`` is the text of a zoo entry from outside, ``steps`` the run's length."""

    format: str
    version: int
    violation: Broken
    found: Found
    steps: int
    case: Case
    schedule: Schedule
    entry: str = ""


def broken(violation: Violation) -> Broken:
    """The violation as the file keeps it."""
    return Broken(
        violation.invariant,
        violation.message,
        violation.domid,
        violation.gfn,
        violation.mfn,
        violation.order,
    )


def encode(example: Counterexample) -> bytes:
    """The file's bytes: JSON, the same for the same counterexample."""
    data = msgspec.json.encode(example)
    return msgspec.json.format(data, indent=1) + b"\n"


def load(path: Path) -> Counterexample:
    """A counterexample file.

    Raises:
        BadInputError: unreadable or not what ``stress`` writes; names the field.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadInputError(f"{path}: {error.strerror}") from None
    try:
        example = msgspec.json.decode(data, type=Counterexample)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise BadInputError(f"{path}: no counterexample file: {error}") from None
    if (example.format, example.version) != (FORMAT, VERSION):
        raise BadInputError(
            f"{path}: format {example.format!r} version {example.version}, "
            f"expected {FORMAT!r} version {VERSION}"
        )
    return example


def kinds_of(bug: str, entry: str = "") -> Kinds:
    """The components of a case: broken ones if it names a bug.

    Raises:
        BadInputError: a bug that the zoo does not have.
    """
    if not bug:
        return KINDS
    return entry_named(bug, entry).kinds


def entry_named(bug: str, text: str = "") -> type[ZooEntry]:
    """The zoo's entry of a name, or the one whose text is given.

    Raises:
        BadInputError: no such entry.
    """
    return load_file(Path(f"{bug}.py"), text) if text else find(bug)
