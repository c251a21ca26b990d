"""What one run needs, as data: the world at the start, the clients' scripts, the schedule.

A ``Case`` and a ``Schedule`` together determine a run of the local engine, message by message, in
any process. That is all a counterexample keeps.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from protocols.script import Operation

LockProtocol = Literal["domain", "region", "optimistic", "none"]
LOCK_PROTOCOLS: Final = ("domain", "region", "optimistic", "none")

FaultKind = Literal["heap", "pool", "slow", "duplicate", "crash"]
FAULT_KINDS: Final[tuple[FaultKind, ...]] = ("heap", "pool", "slow", "duplicate", "crash")
"""heap: the next allocation finds nothing. pool: the next page-table page cannot be had. slow: a
link stands still for a while. duplicate: an envelope is delivered twice. crash: the component
that was just spoken to dies before it sends anything, and recovers from its log."""


class Extents(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``nr`` extents of ``order`` from ``gfn``, populated before the clients start."""

    gfn: Annotated[int, msgspec.Meta(ge=0)]
    nr: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 1
    order: Annotated[int, msgspec.Meta(ge=0, le=18)] = 9
    pod: bool = False


class DomainSetup(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A domain at the start. ``pool_pages``: paging pool (256 is the least that Xen gives)."""

    domid: Annotated[int, msgspec.Meta(ge=1, le=0x7FEF)] = 1
    max_mib: Annotated[int, msgspec.Meta(ge=1)] = 16
    vcpus: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    pool_pages: Annotated[int, msgspec.Meta(ge=0)] | None = None
    superpages: Literal["explicit", "opportunistic", "off"] = "explicit"
    extents: tuple[Extents, ...] = ()
    pod_target_mib: Annotated[int, msgspec.Meta(ge=0)] | None = None
    warm: tuple[int, ...] = ()
    """Gfns that every vCPU has touched already, so that its TLB holds them."""


class Host(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The machine. ``lock`` is the P2M's lock protocol."""

    memory_mib: Annotated[int, msgspec.Meta(ge=4)] = 64
    nodes: Annotated[int, msgspec.Meta(ge=1, le=8)] = 1
    paging: Literal["npt", "ept", "pae", "x86_32"] = "npt"
    lock: LockProtocol = "domain"


class Case(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A world and what its clients do; ``bug`` names an entry of the zoo, empty for none."""

    workload: str
    host: Host
    domains: tuple[DomainSetup, ...]
    clients: tuple[tuple[Operation, ...], ...]
    bug: str = ""

    def nr_operations(self) -> int:
        """Operations of all clients."""
        return sum(len(script) for script in self.clients)


class Fault(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A fault that strikes at a step of the run; ``length`` is the wait of a slow link."""

    step: int
    kind: FaultKind
    length: int = 0


class Schedule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Every choice of a run: what is not named is 0, the oldest message first.

    ``deviations`` maps a decision (a step with more than one choice, counted from 0) to the index
    of the choice taken, oldest first.
    """

    deviations: dict[int, int] = msgspec.field(default_factory=dict[int, int])
    faults: tuple[Fault, ...] = ()
