"""A scenario: a host, its domains, and the phases that all of them go through.

The phases are msgspec structs with Xen's ranges in their types, so that a TOML table becomes one
directly or is refused by the name of its field.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias, get_args

import msgspec

from protocols.errno import BadInputError
from protocols.frames import FRAME_MAX
from protocols.toolstack import GuestConfig
from services.guest.program import Programs

Paging: TypeAlias = Literal["npt", "ept", "pae", "x86_32"]
Superpages: TypeAlias = Literal["explicit", "opportunistic", "off"]
LockProtocol: TypeAlias = Literal["domain", "region", "optimistic", "none"]
Gfn: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=FRAME_MAX)]
Positive: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=1 << 32)]


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
    p2m_lock: str = "domain"

    def __post_init__(self) -> None:
        protocols = get_args(LockProtocol)
        if self.p2m_lock not in protocols:
            raise BadInputError(
                f"host p2m_lock {self.p2m_lock!r}: expected one of {', '.join(protocols)}"
            )


@dataclass(frozen=True, slots=True)
class DomainSpec:
    """One domain to build; ``force_4k`` are half-open gfn ranges as (gfn, nr).

    ``programs`` are what its vCPUs run, from vCPU 0 on.
    """

    domid: int
    config: GuestConfig
    superpages: str
    force_4k: tuple[tuple[int, int], ...] = ()
    programs: Programs = ()


class PhaseBase(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="op"):
    """A step that all domains take at once; the next begins when all are done."""


class Build(PhaseBase, frozen=True, tag="build"):
    """Build every domain."""


class Touch(PhaseBase, frozen=True, tag="touch"):
    """Every domain's vCPUs share out ``nr`` accesses to gfns from ``first_gfn`` on.

    sequential takes every ``stride``-th gfn, random any of the same gfns.
    """

    pattern: Literal["sequential", "random"] = "sequential"
    nr: Positive = 1024
    first_gfn: Gfn = 0
    stride: Positive = 1
    write: bool = False


class Punch(PhaseBase, frozen=True, tag="punch"):
    """4K updates inside ``superpages`` superpages of 2M from ``first_gfn`` on.

    ``per_superpage`` pages from ``offset`` in each. decrease leaves a hole, refill populates it
    again, retype makes it ram_ro, move sends it to ``target_gfn`` upwards by add_to_physmap.
    """

    superpages: Positive = 1
    first_gfn: Gfn = 0x2000
    offset: Annotated[int, msgspec.Meta(ge=0, lt=512)] = 0
    per_superpage: Annotated[int, msgspec.Meta(ge=1, le=512)] = 1
    mode: Literal["decrease", "refill", "retype", "move"] = "decrease"
    target_gfn: Gfn = 0xFD000


class Balloon(PhaseBase, frozen=True, tag="balloon"):
    """Give back (down) or ask again (up) for ``pages`` frames from ``first_gfn`` on."""

    direction: Literal["down", "up"]
    pages: Positive
    first_gfn: Gfn = 0x2000
    order: Literal[0, 9] = 0


class Run(PhaseBase, frozen=True, tag="run"):
    """Every vCPU that has a program goes on with it until it blocks or powers off.

    ``operations`` is how many accesses and hypercalls each may do.
    """

    operations: Positive = 1 << 20


class Destroy(PhaseBase, frozen=True, tag="destroy"):
    """Destroy every domain."""


class Pause(PhaseBase, frozen=True, tag="pause"):
    """Let the host come to rest; on Ray also wait for so many seconds."""

    seconds: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 0.0


class Audit(PhaseBase, frozen=True, tag="audit"):
    """Audit here, not only at the end."""


Phase: TypeAlias = Build | Touch | Punch | Balloon | Run | Destroy | Pause | Audit


@dataclass(frozen=True, slots=True)
class Scenario:
    """Everything a run needs to know; ``source`` is the file or files it came from.

    ``unknown`` are (file, key) of xl.cfg keys that nobody knows: taken, as xl does, not used.
    """

    source: str
    host: HostSpec
    domains: tuple[DomainSpec, ...]
    phases: tuple[Phase, ...] = (Build(),)
    unknown: tuple[tuple[str, str], ...] = ()
