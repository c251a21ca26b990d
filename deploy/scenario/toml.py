"""Scenario files: TOML to checked tables. Every complaint is one line that names file and field."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar, cast, get_args

import msgspec

from deploy.scenario.model import Build, LockProtocol, Paging, Phase, Superpages
from deploy.scenario.program import program_of
from deploy.scenario.read import read_text, read_toml
from protocols.errno import BadInputError
from protocols.frames import FRAME_MAX
from services.guest.program import Programs, parse_program
from services.toolstack.xl_cfg import KNOWN, XlConfig, interpret, near
from services.toolstack.xl_syntax import Setting, Value, read_settings

T = TypeVar("T")

DOMAIN_KEYS: Final = frozenset({"count", "config", "superpages", "force_4k", "program"})
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
    program: str | list[str] | None = None


@dataclass(frozen=True, slots=True)
class DomainTable:
    """One ``[[domains]]`` table: its ``config`` interpreted, ``where`` names it in complaints.

    ``unknown`` are the keys of the xl.cfg that it names, if it names one, which nobody knows.
    """

    where: str
    config: XlConfig
    unknown: tuple[tuple[str, str], ...]
    count: int
    superpages: str | None
    force_4k: tuple[tuple[int, int], ...]
    programs: Programs


@dataclass(frozen=True, slots=True)
class ScenarioFile:
    """A checked file."""

    host: HostTable
    domains: tuple[DomainTable, ...]
    phases: tuple[Phase, ...]


def read_scenario(path: Path) -> ScenarioFile:
    """A scenario file.

    Raises:
        BadInputError: not TOML, an unknown key, a wrong type or value.
    """
    table = _convert(read_toml(path), ScenarioTable, str(path), "")
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
    where = f"{path}: {at}"
    settings: dict[str, Setting] = {}
    file = ""
    if own.config is not None:
        there = path.parent / own.config
        if "\0" in own.config or not there.is_file():
            raise BadInputError(f"{where}.config: there is no file {own.config}")
        file = str(there)
        settings = read_settings(read_text(there), file)
    unknown = tuple((file, key) for key in settings if key not in KNOWN)
    for key, value in entry.items():
        place = f"{where}.{key}"
        if key in DOMAIN_KEYS:
            continue
        if key not in KNOWN:
            close = near(key)
            hint = f"did you mean '{close}'?" if close else "expected one of xl.cfg(5)'s"
            raise BadInputError(f"{place}: unknown key, {hint}")
        settings[key] = Setting(_xl_value(value, place), place)
    ranges = tuple(sorted(_range(item, f"{where}.force_4k") for item in own.force_4k))
    for (first, nr), (second, _) in pairwise(ranges):
        if first + nr > second:
            raise BadInputError(
                f"{where}.force_4k: overlapping ranges at gfn {second:#x}, expected disjoint ones"
            )
    config = interpret(settings, lambda key: f"{where}.{key}")
    programs = _programs(own.program, config, where)
    return DomainTable(where, config, unknown, own.count, own.superpages, ranges, programs)


def _programs(given: str | list[str] | None, config: XlConfig, where: str) -> Programs:
    """What each vCPU runs; without a program given, what the kernel runs.

    In a list, an empty text is a vCPU that runs nothing.
    """
    if given is None:
        return program_of(config)
    texts = [given] if isinstance(given, str) else given
    if len(texts) > config.vcpus:
        raise BadInputError(
            f"{where}.program: {len(texts)} programs, expected one for each of {config.vcpus} vcpus"
        )
    return tuple(
        () if not text and isinstance(given, list) else parse_program(text, f"{where}.program")
        for text in texts
    )


def _xl_value(value: object, where: str) -> Value:
    """A TOML value as xl.cfg's syntax has it: strings, and lists of such."""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, int | str):
        return str(value)
    if isinstance(value, list):
        return [_xl_value(item, where) for item in cast("list[object]", value)]
    raise BadInputError(f"{where}: expected a number, a string or a list, got {value!r}")


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
