"""From a host specification to components, names and shards: the same for every runtime."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, cast

from deploy.scenario.model import HostSpec
from protocols.errno import BadInputError, ProtocolError
from services.component.component import Component
from services.component.context import Context, MemEventHook
from services.guest.component import Guest
from services.heap.component import Allocator
from services.heap.host import HostConfig
from services.p2m.component import P2m
from services.p2m.geometry import GEOMETRIES
from services.toolstack.component import Toolstack
from services.walker.component import Walker

SERVICES: Final = ("toolstack", "allocator", "p2m", "walker")
FACTORY: Final = "deploy.world:make_component"
RAM_START: Final = 0x100000
"""First mfn of the modelled host: 4 GiB. Below it are Xen, dom0 and the firmware."""
RAM_START_32BIT: Final = 0x400
"""First mfn where a table format reaches only 4 GiB."""


def host_config(host: HostSpec) -> HostConfig:
    """The host as its components know it.

    Raises:
        BadInputError: HAP switched off, or more memory than the table format can name.
    """
    geometry = GEOMETRIES[host.paging]
    if not host.hap:
        raise BadInputError(
            "xen-cmdline: hap=0 leaves no way to build a guest (no shadow paging here); "
            "expected hap=1"
        )
    frames = host.memory_mib << 8
    start = RAM_START if geometry.mfn_limit > RAM_START + frames else RAM_START_32BIT
    if start + frames > geometry.mfn_limit:
        limit = (geometry.mfn_limit - start) >> 8
        raise BadInputError(
            f"host memory {host.memory_mib} MiB: {host.paging} tables reach at most {limit} MiB"
        )
    allowed = {18: host.hap_1gb, 9: host.hap_2mb, 10: host.hap_2mb, 0: True}
    orders = tuple(sorted((o for o in geometry.leaf_orders if allowed[o]), reverse=True))
    return HostConfig(start, frames, host.nodes, host.paging, orders, host.p2m_lock)


@dataclass(frozen=True, slots=True)
class Kinds:
    """The class of each service; a subclass with one step changed takes a component's place."""

    toolstack: type[Toolstack] = Toolstack
    allocator: type[Allocator] = Allocator
    p2m: type[P2m] = P2m
    walker: type[Walker] = Walker


KINDS: Final = Kinds()


def make_component(
    address: str,
    config: HostConfig,
    on_mem_event: MemEventHook | None = None,
    kinds: Kinds = KINDS,
) -> Component:
    """The component behind an address; components come into being when first spoken to.

    Raises:
        ProtocolError: an address that names no component of this world.
    """
    service, _, instance = address.partition("/")
    context = Context(address, on_mem_event)
    if service == "p2m" and instance.isdecimal():
        return kinds.p2m(context, config.home(int(instance)), config.p2m_lock)
    if service in {"walker", "guest"}:
        domid, _, vcpu = instance.partition(".")
        if domid.isdecimal() and vcpu.isdecimal():
            if service == "walker":
                return kinds.walker(context, int(domid), int(vcpu))
            return Guest(context, int(domid), int(vcpu), config.nr_nodes)
    if service == "toolstack" and instance.isdecimal():
        return kinds.toolstack(context, config.nr_nodes)
    if service == "allocator" and instance.isdecimal() and int(instance) < config.nr_nodes:
        return kinds.allocator(context, config, int(instance))
    raise ProtocolError(f"envelope field `dst`: {address!r} names no component")


Factory = Callable[[str, HostConfig, MemEventHook | None], Component]
"""Makes the component of an address; another one than ``make_component`` overrides components."""


def load_factory(path: str) -> Factory:
    """The factory at ``module:function``, as a shard is told by name."""
    module, _, name = path.partition(":")
    return cast("Factory", getattr(importlib.import_module(module), name))


def shard_of(address: str, shards: int, nr_nodes: int) -> tuple[str, int]:
    """(service, shard) that holds a component.

    P2M and walker by domain, allocator by NUMA node, toolstack by build job. What a vCPU runs is
    where its walker is.

    Raises:
        ProtocolError: an address that names no component of this world.
    """
    service, _, instance = address.partition("/")
    number = instance.partition(".")[0]
    if service == "guest":
        service = "walker"
    if service not in SERVICES or not number.isdecimal():
        raise ProtocolError(f"envelope field `dst`: {address!r} names no component")
    return service, int(number) % shard_count(service, shards, nr_nodes)


def layout(shards: int, nr_nodes: int) -> tuple[tuple[str, int], ...]:
    """(service, shard) of every actor; the position is its number."""
    return tuple(
        (service, shard)
        for service in SERVICES
        for shard in range(shard_count(service, shards, nr_nodes))
    )


def shard_count(service: str, shards: int, nr_nodes: int) -> int:
    """Shards of a service: an allocator shard without a node would be idle."""
    return min(shards, nr_nodes) if service == "allocator" else shards
