"""Workloads of a command line to one scenario; what cannot run is refused before it starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from deploy.scenario.model import Build, DomainSpec, HostSpec, Phase, Scenario
from deploy.scenario.program import program_of
from deploy.scenario.read import read_text
from deploy.scenario.toml import HostTable, read_scenario
from deploy.scenario.xen_cmdline import parse_size_mib, parse_xen_cmdline
from protocols.errno import BadInputError
from protocols.frames import DOMID_FIRST_RESERVED
from protocols.text import NAME_MAX, shown
from protocols.toolstack import GuestConfig
from services.guest.program import Programs
from services.toolstack.builder import plan_build
from services.toolstack.xl_cfg import XlConfig, near, parse_xl_cfg

T = TypeVar("T")

GFN_LIMIT_32BIT: Final = 0x100000
"""PAE and 2-level tables reach gfns below 4 GiB."""

KEYS_SHOWN: Final = 8
FILES_SHOWN: Final = 4

Ignored = tuple[str, str]
"""(source, key) of something accepted that does not matter to memory."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    """One or more alike domains, before they have domids."""

    source: str
    config: XlConfig
    count: int
    superpages: str | None
    force_4k: tuple[tuple[int, int], ...]
    programs: Programs


def load_workloads(
    paths: Sequence[Path], flags: Mapping[str, str | int]
) -> tuple[Scenario, list[Ignored]]:
    """xl.cfg files and ``.toml`` scenarios as one scenario; domids from 1 in order.

    Args:
        paths: the workloads; several may be mixed.
        flags: host settings given on the command line (memory, nodes, xen_cmdline, paging,
            superpages, p2m_lock); they go before a scenario's own.

    Raises:
        BadInputError: anything that cannot be run, as one line.
    """
    wanted: list[_Wanted] = []
    phases: dict[str, tuple[Phase, ...]] = {}
    hosts: dict[str, HostTable] = {}
    unknown: list[Ignored] = []
    for path in paths:
        source = str(path)
        if path.suffix == ".toml":
            file = read_scenario(path)
            phases[source], hosts[source] = file.phases, file.host
            wanted += [
                _Wanted(
                    table.where,
                    table.config,
                    table.count,
                    table.superpages,
                    table.force_4k,
                    table.programs,
                )
                for table in file.domains
            ]
            unknown += [each for table in file.domains for each in table.unknown]
        else:
            config = parse_xl_cfg(read_text(path), source)
            wanted.append(_Wanted(source, config, 1, None, (), program_of(config)))
            unknown += [(source, key) for key in config.unknown]
    host, ignored = _host(hosts, flags)
    domains = _domains(wanted, host)
    ignored += [(each.source, key) for each in wanted for key in each.config.ignored]
    chosen = _one_of(phases, "phases") or (Build(),)
    source = ", ".join(str(path) for path in paths)
    return Scenario(source, host, domains, chosen, tuple(dict.fromkeys(unknown))), ignored


def unknown_keys(unknown: Sequence[Ignored]) -> str:
    """Keys that no xl.cfg has, by file, each with a known one that is like it; empty for none."""
    files: dict[str, list[str]] = {}
    for source, key in unknown:
        close = near(key)
        hint = f" (did you mean {close}?)" if close else ""
        files.setdefault(shown(source, NAME_MAX), []).append(f"{shown(key, NAME_MAX)}{hint}")
    lists = (f"{source}: {_some(keys, KEYS_SHOWN)}" for source, keys in files.items())
    return _some(list(lists), FILES_SHOWN, "; ")


def _some(words: Sequence[str], most: int, between: str = ", ") -> str:
    rest = len(words) - most
    return between.join([*words[:most], *([f"{rest} more"] if rest > 0 else [])])


def _one_of(by_source: Mapping[str, T], what: str) -> T | None:
    """The single value of several files."""
    first: tuple[str, T] | None = None
    for source, value in by_source.items():
        if first is None:
            first = (source, value)
        elif value != first[1]:
            raise BadInputError(f"{source}: {what}: differs from {first[0]}, expected the same")
    return None if first is None else first[1]


def _host(
    hosts: Mapping[str, HostTable], flags: Mapping[str, str | int]
) -> tuple[HostSpec, list[Ignored]]:
    table = _one_of(hosts, "host") or HostTable()
    source = next(iter(hosts), "")

    def chosen(name: str, default: str | int) -> tuple[str | int, str]:
        flag = "--host-memory" if name == "memory" else f"--{name.replace('_', '-')}"
        if name in flags:
            return flags[name], flag
        value = getattr(table, name)
        return (default, flag) if value is None else (value, f"{source}: host.{name}")

    memory, where = chosen("memory", "8GiB")
    memory_mib = parse_size_mib(str(memory), where)
    text, where = chosen("xen_cmdline", "")
    switches = parse_xen_cmdline(str(text), where)
    nodes = int(chosen("nodes", 1)[0])
    if memory_mib < 2 * nodes:
        raise BadInputError(f"host memory {memory_mib} MiB: expected at least 2 MiB for each node")
    host = HostSpec(
        memory_mib,
        nodes,
        str(chosen("paging", "npt")[0]),
        str(chosen("superpages", "explicit")[0]),
        switches.hap,
        switches.hap_1gb,
        switches.hap_2mb,
        str(chosen("p2m_lock", "domain")[0]),
    )
    return host, [(where, word) for word in switches.ignored]


def _domains(wanted: Sequence[_Wanted], host: HostSpec) -> tuple[DomainSpec, ...]:
    specs: list[DomainSpec] = []
    names: dict[str, str] = {}
    for each in wanted:
        _check(each, host)
        for number in range(1, each.count + 1):
            guest = each.config.guest_config()
            if each.count > 1:
                guest = _renamed(guest, f"{guest.name}-{number}")
            if guest.name in names:
                raise BadInputError(
                    f"{each.source}: name '{guest.name}': taken by {names[guest.name]}"
                )
            names[guest.name] = each.source
            policy = each.superpages or host.superpages
            domid = len(specs) + 1
            specs.append(DomainSpec(domid, guest, policy, each.force_4k, each.programs))
    if len(specs) >= DOMID_FIRST_RESERVED:
        raise BadInputError(f"{len(specs)} domains: expected fewer than {DOMID_FIRST_RESERVED}")
    return tuple(specs)


def _renamed(guest: GuestConfig, name: str) -> GuestConfig:
    return msgspec.structs.replace(guest, name=name)


def _check(each: _Wanted, host: HostSpec) -> None:
    """What a configuration alone cannot know: whether this host could ever hold the guest."""
    config = each.config
    if not config.hap:
        raise BadInputError(f"{each.source}: hap=0: expected hap=1, only HAP guests can be built")
    if config.memory_mib > host.memory_mib:
        raise BadInputError(
            f"{each.source}: memory {config.memory_mib} MiB: expected at most the host's "
            f"{host.memory_mib} MiB"
        )
    for vnode in config.vnodes:
        if vnode.pnode >= host.nodes:
            raise BadInputError(
                f"{each.source}: vnuma: pnode {vnode.pnode}: expected one of the host's "
                f"{host.nodes} nodes"
            )
    guest = config.guest_config()
    top = plan_build(guest, host.paging).layout.ranges[-1].end
    if host.paging in {"pae", "x86_32"} and top > GFN_LIMIT_32BIT:
        raise BadInputError(
            f"{each.source}: memory {config.maxmem_mib} MiB: reaches gfn {top:#x}, expected "
            f"all below {GFN_LIMIT_32BIT:#x} with {host.paging} tables"
        )
