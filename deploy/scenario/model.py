"""A scenario: a host, its domains, and the phases that all of them go through."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from protocols.toolstack import GuestConfig


@dataclass(frozen=True, slots=True)
class HostSpec:
    """The host: memory in MiB, NUMA nodes, table format, Xen's own switches, default policy."""

    memory_mib: int = 8192
    nodes: int = 1
    paging: str = "npt"
    superpages: str = "explicit"
    hap: bool = True
    hap_1gb: bool = True
    hap_2mb: bool = True


@dataclass(frozen=True, slots=True)
class DomainSpec:
    """One domain to build; ``force_4k`` are half-open gfn ranges as (gfn, nr)."""

    domid: int
    config: GuestConfig
    superpages: str
    force_4k: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Build:
    """Build every domain, all at once."""


@dataclass(frozen=True, slots=True)
class Touch:
    """Every vCPU accesses guest memory: ``nr`` gfns from ``first_gfn`` on, or random ones."""

    pattern: str = "sequential"
    nr: int = 1024
    first_gfn: int = 0
    stride: int = 1
    write: bool = False


@dataclass(frozen=True, slots=True)
class Punch:
    """A 4K update in each of ``superpages`` superpages from ``first_gfn`` on.

    ``mode``: decrease (leave a hole), refill (decrease, then populate again), retype (ram_ro),
    move (add_to_physmap to ``target_gfn`` upwards).
    """

    superpages: int = 1
    first_gfn: int = 0x2000
    offset: int = 0
    per_superpage: int = 1
    mode: str = "decrease"
    target_gfn: int = 0xFD000


@dataclass(frozen=True, slots=True)
class Balloon:
    """Give back (``down``) or ask again for ``pages`` frames from ``first_gfn`` up."""

    down: bool
    pages: int
    first_gfn: int = 0x2000
    order: int = 0


@dataclass(frozen=True, slots=True)
class Destroy:
    """Destroy every domain."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Let the host come to rest; on Ray also wait for so many seconds."""

    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Audit:
    """Audit here, not only at the end."""


Phase: TypeAlias = Build | Touch | Punch | Balloon | Destroy | Pause | Audit


@dataclass(frozen=True, slots=True)
class Scenario:
    """Everything a run needs to know; ``source`` is the file or files it came from."""

    source: str
    host: HostSpec
    domains: tuple[DomainSpec, ...]
    phases: tuple[Phase, ...] = field(default=(Build(),))
