"""Files that commands write: checked before the run, complete or absent after it."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from protocols.errno import BadInputError
from protocols.frames import unpack

if TYPE_CHECKING:
    from protocols.control import LeafTable

CSV_COLUMNS = "gfn,order,mfn,p2mt,pteflags_low12,pte_bits_63_52"


def reason_of(error: OSError) -> str:
    """Why a file could not be read or written, in a few words."""
    return error.strerror or type(error).__name__


def check_directory(directory: Path, flag: str) -> None:
    """See that files could be written in a directory, made if need be, leaving nothing there.

    Raises:
        BadInputError: it cannot be made or written.
    """
    try:
        there = next(path for path in (directory, *directory.absolute().parents) if path.exists())
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise BadInputError(
            f"{flag} {directory}: expected a directory to write to: {reason_of(error)}"
        ) from None


def check_file(path: Path, flag: str) -> None:
    """See that a file could be written at ``path``, leaving nothing there.

    Raises:
        BadInputError: it is a directory, or its directory is missing or not writable.
    """
    try:
        directory, parent = path.is_dir(), path.parent.is_dir()
    except OSError as error:
        raise BadInputError(f"{flag} {path}: cannot be written: {reason_of(error)}") from None
    if directory:
        raise BadInputError(f"{flag} {path}: expected a file, this is a directory")
    if not parent:
        raise BadInputError(f"{flag} {path}: there is no directory {path.parent}")
    check_directory(path.parent, flag)


def check_json(target: str | None) -> None:
    """See that ``--json`` names what could be written: a file, or standard output (``-``).

    Raises:
        BadInputError: see ``check_file``.
    """
    if target not in {None, "-"}:
        check_file(Path(str(target)), "--json")


def check_apart(named: Mapping[str, Path | str | None]) -> None:
    """See that no two flags have their output written to one place; ``-`` and None are none.

    Raises:
        BadInputError: with both flags.
    """
    flags: dict[Path, str] = {}
    for flag, given in named.items():
        if given is None or given == "-":
            continue
        first = flags.setdefault(Path(given).absolute(), flag)
        if first != flag:
            raise BadInputError(f"{flag} {given}: the same place as that of {first}")


@contextmanager
def whole_file(path: Path, flag: str) -> Generator[BinaryIO]:
    """A file that appears at ``path`` only when all of it was written."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise BadInputError(f"{flag} {path}: cannot be written: {reason_of(error)}") from None
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except IsADirectoryError:
        # It was none when the flags were checked.
        Path(name).unlink(missing_ok=True)
        raise BadInputError(f"{flag} {path}: expected a file, this is a directory") from None
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_json(report: dict[str, Any], target: str) -> None:
    """The report to a file, or to standard output for ``-``."""
    text = indented(report).replace("\x7f", "\\u007f") + "\n"
    if target == "-":
        sys.stdout.write(text)
        return
    with whole_file(Path(target), "--json") as file:
        file.write(text.encode())


def indented(value: Any, begin: str = "\n") -> str:
    """What ``json.dumps(value, indent=2)`` writes; lists of numbers take a tenth of its time.

    ``begin``: the line break and the indentation where the value stands.
    """
    inner, given = begin + "  ", value
    if isinstance(value, dict) and value:
        parts = [f"{json.dumps(name)}: {indented(each, inner)}" for name, each in given.items()]
        return "{" + inner + f",{inner}".join(parts) + begin + "}"
    if isinstance(value, list) and value:
        if set(map(type, given)) <= {int, float}:
            return "[" + inner + json.dumps(given)[1:-1].replace(", ", f",{inner}") + begin + "]"
        return "[" + inner + f",{inner}".join(indented(each, inner) for each in given) + begin + "]"
    return json.dumps(value)


def csv_rows(table: LeafTable) -> Iterator[str]:
    """The lines of a dump, header first; the columns of the captures' page-table dumps."""
    yield CSV_COLUMNS + "\n"
    columns = (
        unpack(table.gfns).tolist(),
        list(table.orders),
        unpack(table.mfns).tolist(),
        list(table.types),
        np.frombuffer(table.low12, dtype="<u2").tolist(),
        np.frombuffer(table.high12, dtype="<u2").tolist(),
    )
    for gfn, order, mfn, p2mt, low, high in zip(*columns, strict=True):
        yield f"{gfn:#x},{order},{mfn:#x},{p2mt},{low:#x},{high:#x}\n"


def dump_tables(directory: Path, tables: list[LeafTable]) -> None:
    """One CSV a domain, in a directory that is made if need be."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInputError(f"--dump-p2m {directory}: cannot be made: {reason_of(error)}") from None
    for table in tables:
        with whole_file(directory / f"dom{table.domid}.csv", "--dump-p2m") as file:
            file.write("".join(csv_rows(table)).encode())
