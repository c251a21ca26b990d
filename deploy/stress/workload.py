"""Workloads: what a campaign's clients may do, as data; each seed draws a case from it."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Annotated

import msgspec

from deploy.stress.case import Case, DomainSetup, Host
from protocols.errno import BadInputError
from protocols.frames import FRAME_MAX
from protocols.script import Operation, OperationKind
from protocols.text import NAME_MAX, shown

Gfn = int
"""Checked in ``check``: msgspec 0.22 confuses a constrained int with a fixed tuple beside it."""


class OperationSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One kind of operation with the ranges that its numbers are drawn from.

    ``gfns``, ``targets``: candidates, single gfns or [first, end) pairs. ``domids``: which
    domains; all of the workload if empty. ``clients``: which clients may draw it; all if empty.
    """

    kind: OperationKind
    weight: Annotated[int, msgspec.Meta(ge=1)] = 1
    gfns: tuple[Gfn | tuple[Gfn, Gfn], ...] = (0,)
    targets: tuple[Gfn | tuple[Gfn, Gfn], ...] = (0,)
    orders: tuple[Annotated[int, msgspec.Meta(ge=0, le=18)], ...] = (0,)
    nr: tuple[Annotated[int, msgspec.Meta(ge=1, le=4096)], ...] = (1,)
    domids: tuple[int, ...] = ()
    clients: tuple[int, ...] = ()


class Workload(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A named mix. ``expects`` lists events that a campaign must have provoked to mean anything.

    ``scripts`` fixes what the clients do; otherwise each of ``clients`` draws ``ops`` operations.
    """

    name: str
    summary: str
    host: Host = msgspec.field(default_factory=Host)
    domains: tuple[DomainSetup, ...] = ()
    operations: tuple[OperationSpec, ...] = ()
    scripts: tuple[tuple[Operation, ...], ...] = ()
    clients: Annotated[int, msgspec.Meta(ge=1, le=64)] = 4
    ops: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 4
    expects: tuple[str, ...] = ()

    def domids(self) -> list[int]:
        """The domains that there are at the start."""
        return [domain.domid for domain in self.domains]


class Overrides(msgspec.Struct, frozen=True):
    """What the command line says beside the workload; None where it says nothing."""

    domains: int | None = None
    clients: int | None = None
    vcpus: int | None = None
    ops: int | None = None
    lock: str | None = None


def adapt(workload: Workload, overrides: Overrides) -> Workload:
    """The workload with the command line's numbers.

    Raises:
        BadInputError: a number that the workload cannot take.
    """
    domains = workload.domains
    if overrides.domains is not None and overrides.domains != len(domains):
        if not domains or overrides.domains < 1:
            raise BadInputError(f"--domains {overrides.domains}: expected at least 1")
        copies = range(overrides.domains)
        domains = tuple(
            msgspec.structs.replace(domains[at % len(domains)], domid=at + 1) for at in copies
        )
        need = sum(domain.max_mib for domain in domains)
        host = msgspec.structs.replace(
            workload.host, memory_mib=max(workload.host.memory_mib, 2 * need)
        )
        workload = msgspec.structs.replace(workload, host=host)
    if overrides.vcpus is not None:
        domains = tuple(
            msgspec.structs.replace(domain, vcpus=overrides.vcpus) for domain in domains
        )
    if workload.scripts and (overrides.clients is not None or overrides.ops is not None):
        raise BadInputError(
            f"workload {workload.name}: its scripts are fixed; --clients and --ops do not apply"
        )
    host = workload.host
    if overrides.lock is not None:
        host = msgspec.structs.replace(host, lock=overrides.lock)
    return msgspec.structs.replace(
        workload,
        domains=domains,
        clients=overrides.clients or workload.clients,
        ops=overrides.ops or workload.ops,
        host=host,
    )


def draw(workload: Workload, random: Random, only: frozenset[str] = frozenset()) -> Case:
    """A case: every client's script. ``only``: kinds to draw from, all if empty."""
    scripts = workload.scripts
    if not scripts:
        scripts = tuple(
            _script(workload, client, random, only) for client in range(workload.clients)
        )
    return Case(workload.name, workload.host, workload.domains, scripts)


def _script(
    workload: Workload, client: int, random: Random, only: frozenset[str]
) -> tuple[Operation, ...]:
    mine = [spec for spec in workload.operations if not spec.clients or client in spec.clients]
    some = [spec for spec in mine if spec.kind in only] or mine
    weights = [spec.weight for spec in some]
    chosen = random.choices(some, weights, k=workload.ops)
    return tuple(_operation(workload, spec, random) for spec in chosen)


def _operation(workload: Workload, spec: OperationSpec, random: Random) -> Operation:
    domid = random.choice(spec.domids or workload.domids())
    order = random.choice(spec.orders)
    gfn = _gfn(spec.gfns, random) >> order << order
    vcpus = {domain.domid: domain.vcpus for domain in workload.domains}
    return Operation(
        spec.kind,
        domid,
        gfn,
        random.choice(spec.nr),
        order,
        _gfn(spec.targets, random),
        random.randrange(vcpus.get(domid, 1)),
    )


def _gfn(candidates: Sequence[int | tuple[int, int]], random: Random) -> int:
    chosen = random.choice(candidates)
    return chosen if isinstance(chosen, int) else random.randrange(*chosen)


def load(path: Path) -> Workload:
    """A workload file (TOML).

    Raises:
        BadInputError: unreadable, no TOML, or a field that does not fit.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInputError(f"{path}: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadInputError(f"{path}: no TOML: {error}") from None
    data.setdefault("name", shown(path.stem, NAME_MAX))
    data.setdefault("summary", "")
    try:
        workload = msgspec.convert(data, Workload)
    except msgspec.ValidationError as error:
        raise BadInputError(f"{path}: {error}") from None
    check(workload, str(path))
    return workload


def check(workload: Workload, where: str) -> None:
    """Refuse what the fields alone cannot rule out.

    Raises:
        BadInputError: with the field.
    """
    domids = workload.domids()
    if not domids:
        raise BadInputError(f"{where}: `domains`: expected at least one")
    if len(set(domids)) < len(domids):
        raise BadInputError(f"{where}: `domains`: a domid appears twice")
    if not workload.operations and not workload.scripts:
        raise BadInputError(f"{where}: expected `operations` or `scripts`")
    for number, spec in enumerate(workload.operations):
        for name, values in (("gfns", spec.gfns), ("targets", spec.targets)):
            if not values:
                raise BadInputError(f"{where}: `operations[{number}].{name}`: expected a gfn")
            for value in values:
                ends = (value, value) if isinstance(value, int) else (value[0], value[1] - 1)
                if not 0 <= min(ends) <= max(ends) <= FRAME_MAX:
                    raise BadInputError(
                        f"{where}: `operations[{number}].{name}`: {value} is no range of gfns"
                    )
                if isinstance(value, tuple) and value[0] >= value[1]:
                    raise BadInputError(
                        f"{where}: `operations[{number}].{name}`: [{value[0]}, {value[1]}) is empty"
                    )
        if not spec.orders or not spec.nr:
            raise BadInputError(f"{where}: `operations[{number}]`: `orders` and `nr` need a value")
    if not workload.scripts:
        for client in range(workload.clients):
            if not any(not s.clients or client in s.clients for s in workload.operations):
                raise BadInputError(f"{where}: client {client} has no operation to draw")
