"""Text and TOML from files of others: bounded, and made of what TOML's users can mean."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any, Final, cast

from protocols.errno import BadInputError

FILE_MAX: Final = 16 << 20
"""Bytes; a thousand guests as tables of their own are a tenth of a MiB."""
DEPTH_MAX: Final = 32
"""Tables and lists inside each other."""
INT_MAX: Final = (1 << 63) - 1
"""TOML promises no more."""


def read_bytes(path: Path) -> bytes:
    """A file of at most FILE_MAX bytes.

    Raises:
        BadInputError: it cannot be read, or is larger.
    """
    try:
        with path.open("rb") as file:
            data = file.read(FILE_MAX + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BadInputError(f"{path}: cannot be read: {reason}") from None
    if len(data) > FILE_MAX:
        raise BadInputError(f"{path}: expected at most {FILE_MAX >> 20} MiB")
    return data


def read_text(path: Path) -> str:
    """An xl.cfg's text; bytes that are not UTF-8 are kept as surrogates (PEP 383), as xl takes any.

    Raises:
        BadInputError: it cannot be read.
    """
    return read_bytes(path).decode("utf-8", "surrogateescape")


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as plain values: numbers of 64 bits, finite floats, no deep nesting.

    Raises:
        BadInputError: it cannot be read, is no TOML, or has a value beyond that, by its field.
    """
    data = read_bytes(path)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInputError(f"{path}: byte {error.start} is not UTF-8 text") from None
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadInputError(f"{path}: no TOML: {error}") from None
    except ValueError as error:
        # A date that there is not, or a decimal number of thousands of digits.
        raise BadInputError(f"{path}: no TOML: {error}") from None
    except RecursionError:
        raise BadInputError(_too_deep(path)) from None
    _check(path, table)
    return table


def _check(path: Path, table: dict[str, Any]) -> None:
    """Refuse values that no field takes, wherever they are; without recursion."""
    left: list[tuple[str, int, object]] = [("", 0, table)]
    while left:
        where, depth, value = left.pop()
        if isinstance(value, int) and not -INT_MAX <= value <= INT_MAX:
            raise BadInputError(f"{path}: {where}: expected a number of 64 bits")
        if isinstance(value, float) and not math.isfinite(value):
            raise BadInputError(f"{path}: {where}: expected a finite number, got {value}")
        if not isinstance(value, dict | list):
            continue
        if depth == DEPTH_MAX:
            raise BadInputError(_too_deep(path))
        if isinstance(value, dict):
            entries = cast("dict[str, object]", value)
            inside = [(f"{where}.{key}".lstrip("."), each) for key, each in entries.items()]
        else:
            items = cast("list[object]", value)
            inside = [(f"{where}[{number}]", each) for number, each in enumerate(items)]
        left += [(at, depth + 1, each) for at, each in reversed(inside)]


def _too_deep(path: Path) -> str:
    return f"{path}: expected tables and lists nested at most {DEPTH_MAX} deep"
