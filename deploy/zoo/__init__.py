"""The bug zoo: one module an entry, each overriding one step of one component."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from deploy.stress.entry import ZooEntry, entry_of
from protocols.errno import BadInputError


@cache
def entries() -> dict[str, type[ZooEntry]]:
    """Every entry of the zoo by name, in order of their modules."""
    found = [
        entry_of(importlib.import_module(f"{__name__}.{info.name}"), info.name)
        for info in sorted(pkgutil.iter_modules(__path__), key=lambda info: info.name)
    ]
    return {entry.name: entry for entry in found}


def find(name: str) -> type[ZooEntry]:
    """The entry of a name.

    Raises:
        BadInputError: there is none.
    """
    entry = entries().get(name)
    if entry is None:
        raise BadInputError(f"--zoo {name}: no such entry; `stress --zoo list` shows them all")
    return entry
