"""Scenario files: TOML to checked tables. Every complaint is one line that names file and field."""

from __future__ import annotations

import difflib
import re
import tomllib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar, cast, get_args

import msgspec

from deploy.scenario.model import Build, LockProtocol, Paging, Phase, Superpages
from protocols.errno import BadInputError
from protocols.frames import FRAME_MAX

T = TypeVar("T")

DOMAIN_KEYS: Final = frozenset({"count", "config", "superpages", "force_4k"})
"""Keys of a ``[[domains]]`` table that are not xl's."""
COUNT_MAX: Final = 20_000


class HostTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[host]``: what the file says, None where it is silent."""

    memory: str | None = None
    nodes: Annotated[int, msgspec.Meta(ge=1, le=64)] | None = None
    xen_cmdline: str | None = None
    paging: Paging | None = None
    superpages: Superpages | None = None
    p2m_lock: LockProtocol | None = None


class ScenarioTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    host: HostTable = msgspec.field(default_factory=HostTable)
    domains: list[dict[str, Any]] = msgspec.field(default_factory=list[dict[str, Any]])
    phases: list[Phase] = msgspec.field(default_factory=list[Phase])


class OwnKeys(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The keys of a ``[[domains]]`` table that are not xl's."""

    count: Annotated[int, msgspec.Meta(ge=1, le=COUNT_MAX)] = 1
    config: str | None = None
    superpages: Superpages | None = None
    force_4k: list[str | tuple[int, int]] = msgspec.field(
        default_factory=list[str | tuple[int, int]]
    )


@dataclass(frozen=True, slots=True)
class DomainTable:
    """One ``[[domains]]`` table: ``text`` is an xl.cfg, ``where`` names it in complaints."""

    where: str
    text: str
    count: int
    superpages: str | None
    force_4k: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class ScenarioFile:
    """A checked file."""

    host: HostTable
    domains: tuple[DomainTable, ...]
    phases: tuple[Phase, ...]


def read_text(path: Path) -> str:
    """A text file.

    Raises:
        BadInputError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadInputError(f"{path}: byte {error.start} is not UTF-8 text") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise BadInputError(f"{path}: cannot be read: {reason}") from None


def read_scenario(path: Path) -> ScenarioFile:
    """A scenario file.

    Raises:
        BadInputError: not TOML, an unknown key, a wrong type or value.
    """
    try:
        raw = tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise BadInputError(f"{path}: {error}") from None
    table = _convert(raw, ScenarioTable, str(path), "")
    if not table.domains:
        raise BadInputError(f"{path}: domains: expected at least one [[domains]] table")
    domains = tuple(
        _domain(path, f"domains[{number}]", entry) for number, entry in enumerate(table.domains)
    )
    phases = tuple(table.phases)
    if not any(isinstance(phase, Build) for phase in phases):
        phases = (Build(), *phases)
    return ScenarioFile(table.host, domains, phases)


def _convert(raw: object, kind: type[T], source: str, at: str) -> T:
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise BadInputError(f"{source}: {_explain(str(error), at)}") from None


def _explain(text: str, at: str) -> str:
    """Msgspec's words with the field first, and the nearest known key for an unknown one."""
    what, _, path = text.partition(" - at `$")
    where = at + path.rstrip("`")
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", what)
    if unknown:
        key = unknown[1]
        where = f"{where}.{key}".lstrip(".")
        return f"{where}: unknown key{_nearest(key, where)}"
    return f"{where.lstrip('.') or 'file'}: {what[0].lower()}{what[1:]}"


def _nearest(key: str, where: str) -> str:
    kinds: list[type[Any]] = [HostTable] if where.startswith("host.") else []
    if where.startswith("phases"):
        kinds = list(get_args(Phase))
    elif not kinds:
        kinds = [ScenarioTable]
    known = {name for kind in kinds for name in kind.__struct_fields__}
    close = difflib.get_close_matches(key, sorted(known), n=1)
    return f", did you mean '{close[0]}'?" if close else f", expected {', '.join(sorted(known))}"


def _domain(path: Path, at: str, entry: dict[str, Any]) -> DomainTable:
    own = _convert(
        {key: value for key, value in entry.items() if key in DOMAIN_KEYS}, OwnKeys, str(path), at
    )
    text = ""
    where = f"{path}: {at}"
    if own.config is not None:
        config = path.parent / own.config
        if not config.is_file():
            raise BadInputError(f"{where}.config: there is no file {own.config}")
        text = read_text(config) + "\n"
    for key, value in entry.items():
        if key not in DOMAIN_KEYS:
            text += f"{key} = {_xl_value(value, f'{where}.{key}')}\n"
    ranges = tuple(sorted(_range(item, f"{where}.force_4k") for item in own.force_4k))
    for (first, nr), (second, _) in pairwise(ranges):
        if first + nr > second:
            raise BadInputError(
                f"{where}.force_4k: overlapping ranges at gfn {second:#x}, expected disjoint ones"
            )
    return DomainTable(where, text, own.count, own.superpages, ranges)


def _xl_value(value: object, where: str) -> str:
    """A TOML value in xl.cfg's syntax."""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str) and "\n" not in value and not {"'", '"'} <= set(value):
        return f'"{value}"' if "'" in value else f"'{value}'"
    if isinstance(value, list):
        items = cast("list[object]", value)
        return "[" + ", ".join(_xl_value(item, where) for item in items) + "]"
    raise BadInputError(f"{where}: expected a number, a one-line string or a list, got {value!r}")


def _range(item: str | tuple[int, int], where: str) -> tuple[int, int]:
    """``"0x1000-0x1fff"`` (both ends inside) or ``[first_gfn, nr]`` as (gfn, nr)."""
    if isinstance(item, str):
        first, sign, last = item.partition("-")
        try:
            gfn, nr = int(first, 0), int(last, 0) - int(first, 0) + 1
        except ValueError:
            sign = ""
            gfn, nr = 0, 0
        if not sign:
            raise BadInputError(f"{where}: {item!r}: expected a gfn range such as 0x1000-0x1fff")
    else:
        gfn, nr = item
    if gfn < 0 or nr < 1 or gfn + nr - 1 > FRAME_MAX:
        raise BadInputError(f"{where}: {item!r}: expected gfns from 0 to {FRAME_MAX:#x}, ascending")
    return gfn, nr
