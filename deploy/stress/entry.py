"""An entry of the bug zoo: a historical bug, put back by overriding one step of one component.

A file with one subclass of ``ZooEntry`` is an entry, wherever it lies: ``stress --zoo FILE``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import ClassVar

from deploy.stress.case import FaultKind
from deploy.stress.workload import Workload, check
from deploy.world import Kinds
from protocols.errno import BadInputError


class ZooEntry:
    """What an entry says of itself. The docstring of a subclass tells the mechanism.

    Attributes:
        name: Short, as the command line names it.
        source: The advisory or the commit of the fix.
        invariant: What it must break (a name that the oracles use).
        also: Other invariants that may be seen to break first in some schedules.
        faults: Faults that it needs to show.
        kinds: The components, one of them a subclass with the broken step.
        workload: What can show it.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    invariant: ClassVar[str]
    also: ClassVar[tuple[str, ...]] = ()
    faults: ClassVar[tuple[FaultKind, ...]] = ()
    kinds: ClassVar[Kinds]
    workload: ClassVar[Workload]

    @classmethod
    def mechanism(cls) -> str:
        """The docstring, as one line."""
        return " ".join((cls.__doc__ or "").split())

    @classmethod
    def broken(cls) -> frozenset[str]:
        """Every invariant whose violation counts as having found the bug."""
        return frozenset({cls.invariant, *cls.also})


REQUIRED = ("name", "source", "invariant", "kinds", "workload")


def entry_of(module: ModuleType, where: str) -> type[ZooEntry]:
    """The one entry that a module defines.

    Raises:
        BadInputError: none, several, or one that lacks an attribute.
    """
    found = [
        each
        for each in vars(module).values()
        if isinstance(each, type)
        and issubclass(each, ZooEntry)
        and each is not ZooEntry
        and each.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise BadInputError(f"{where}: {len(found)} subclasses of ZooEntry, expected one")
    entry = found[0]
    for name in REQUIRED:
        if not hasattr(entry, name):
            raise BadInputError(f"{where}: {entry.__name__} lacks `{name}`")
    if not entry.mechanism():
        raise BadInputError(f"{where}: {entry.__name__} needs a docstring that tells the mechanism")
    check(entry.workload, where)
    return entry


def load_file(path: Path, source: str | None = None) -> type[ZooEntry]:
    """An entry from a file of somebody's own, or from its text as a counterexample kept it.

    Raises:
        BadInputError: unreadable, no Python, or no entry.
    """
    name = f"zoo_file_{path.stem}"
    if source is None:
        try:
            source = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadInputError(f"{path}: {error}") from None
    module = ModuleType(name)
    module.__file__ = str(path)
    # Copies of a world are made with pickle, which finds classes by the name of their module.
    sys.modules[name] = module
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)  # noqa: S102 (the user's own file)
    except Exception as error:  # noqa: BLE001 (whatever that file does wrong is its user's)
        raise BadInputError(f"{path}: {type(error).__name__}: {error}") from None
    return entry_of(module, str(path))
