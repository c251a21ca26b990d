"""The hosts of a case at the moment when its clients start: built once, copied for every run.

Setting a world up costs many messages; a run begins from a pickled copy of each host instead.
The copy of one host alone is also the checkpoint from which a crashed component recovers.
"""

from __future__ import annotations

import io
import pickle
from collections import deque
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from deploy.scenario.model import HostSpec
from deploy.stress.case import DomainSetup, Host
from deploy.stress.watch import (
    Commit,
    NewTable,
    Watch,
    WatchedMemory,
    attach,
    trace_nothing,
)
from deploy.world import KINDS, Kinds, host_config, make_component
from protocols import envelope as addresses
from protocols.domctl import DomctlCreateDomain, DomctlSetPagingMempoolSize
from protocols.envelope import CLIENT, Envelope
from protocols.errno import BadInputError
from protocols.frames import PAGE_SHIFT, pack
from protocols.memory import PopulatePhysmap, SetPodTarget
from protocols.message import Message, Request
from protocols.p2m_types import MemFlag
from protocols.registry import TAGS
from protocols.walk import Touch
from services.component.component import Component
from services.component.host import Host as ComponentHost
from services.heap.component import Allocator
from services.heap.host import HostConfig, OtherNodes
from services.p2m.component import P2m

WATCH: Final = "watch"


class _Pickler(pickle.Pickler):
    """The watch is not part of any host: it is named, not copied."""

    def persistent_id(self, obj: Any) -> str | None:  # pyright: ignore[reportImplicitOverride]
        return WATCH if isinstance(obj, Watch) else None


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, watch: Watch) -> None:
        super().__init__(io.BytesIO(data))
        self._watch = watch

    def persistent_load(self, pid: Any) -> Watch:  # pyright: ignore[reportImplicitOverride]
        assert pid == WATCH, f"{pid!r} is in no world"
        return self._watch


def config_of(host: Host) -> HostConfig:
    """The host as its components know it.

    Raises:
        BadInputError: a memory size or a format that does not go together.
    """
    spec = HostSpec(
        memory_mib=host.memory_mib, nodes=host.nodes, paging=host.paging, p2m_lock=host.lock
    )
    return host_config(spec)


class Template:
    """A world ready for its clients. ``kinds`` may put broken components in place."""

    def __init__(self, host: Host, domains: tuple[DomainSetup, ...], kinds: Kinds = KINDS) -> None:
        self.config = config_of(host)
        self.domains = domains
        self._kinds = kinds
        self._saved: dict[str, bytes] = {}
        world = World(self, Watch())
        for domain in domains:
            _build(world, domain, self.config)
        self._saved = {name: _saved(each) for name, each in world.hosts.items()}

    def load(self) -> World:
        """A copy of the world, with a new watch."""
        world = World(self, Watch())
        for name in self._saved:
            world.host(name)
        return world

    def load_host(self, address: str, watch: Watch) -> ComponentHost:
        """A copy of one host as it was at the start; a new one if it did not exist yet."""
        data = self._saved.get(address)
        if data is not None:
            host: ComponentHost = _Unpickler(data, watch).load()
        else:
            host = ComponentHost(self._make(address, watch), retried=True)
        attach(watch, host)
        return host

    def _make(self, address: str, watch: Watch) -> Component:
        component = make_component(address, self.config, trace_nothing, self._kinds)
        if isinstance(component, Allocator):
            start, nr = self.config.node_range(component.node)
            memory = WatchedMemory(watch, component.node, start, nr)
            component.memory = memory
            component.others = OtherNodes(self.config, memory)
        elif isinstance(component, P2m):
            component.new_table = NewTable(watch, component.new_table)
            component.commit = Commit(watch, component.context.running, component.commit)
        return component


class World:
    """Hosts by address; they come into being when first spoken to."""

    def __init__(self, template: Template, watch: Watch) -> None:
        self.template = template
        self.config = template.config
        self.watch = watch
        self.hosts: dict[str, ComponentHost] = {}
        self._asked = 0

    def host(self, address: str) -> ComponentHost:
        """The host of an address."""
        host = self.hosts.get(address)
        if host is None:
            host = self.hosts[address] = self.template.load_host(address, self.watch)
        return host

    def abandon(self) -> None:
        """End every activity that is still under way."""
        for host in self.hosts.values():
            host.abandon()

    def ask(self, address: str, request: Request[Message]) -> Message:
        """One request, delivered first come first served until its reply is there."""
        self._asked += 1
        queue = deque([Envelope(CLIENT, address, self._asked, 0, request)])  # type: ignore[arg-type]
        reply: Message | None = None
        while queue:
            each = queue.popleft()
            if each.dst == CLIENT:
                reply = each.body
            else:
                self.watch.begin_step()
                queue.extend(self.host(each.dst).deliver(each))
        assert reply is not None, f"{address}: no reply to {request!r:.80}"
        return reply


def _saved(host: ComponentHost) -> bytes:
    assert not host.nr_parked, f"{host.name} is not at rest: {host.parked()[0]}"
    host.component.context.running[0] = None
    buffer = io.BytesIO()
    _Pickler(buffer, pickle.HIGHEST_PROTOCOL).dump(host)
    return buffer.getvalue()


def setup_requests(domain: DomainSetup, config: HostConfig) -> Iterator[tuple[str, Request[Any]]]:
    """What it takes to create and populate a domain, one request after the other."""
    domid = domain.domid
    home = addresses.allocator(config.home(domid))
    yield (
        home,
        DomctlCreateDomain(domid, domain.max_mib << 8, domain.vcpus, domain.superpages),
    )
    if domain.pool_pages is not None:
        yield home, DomctlSetPagingMempoolSize(domid, domain.pool_pages << PAGE_SHIFT)
    for extents in domain.extents:
        step = 1 << extents.order
        gfns = np.arange(extents.gfn, extents.gfn + extents.nr * step, step, dtype=np.uint64)
        flags = MemFlag.POPULATE_ON_DEMAND if extents.pod else 0
        yield home, PopulatePhysmap(domid, extents.order, flags, pack(gfns))
    if domain.pod_target_mib is not None:
        yield home, SetPodTarget(domid, domain.pod_target_mib << 8)
    for vcpu in range(domain.vcpus if domain.warm else 0):
        touch = Touch(domid, pack(np.array(domain.warm, dtype=np.uint64)), want_mfns=True)
        yield addresses.walker(domid, vcpu), touch


def _build(world: World, domain: DomainSetup, config: HostConfig) -> None:
    """Create and populate a domain.

    Raises:
        BadInputError: it does not fit the host.
    """
    for address, request in setup_requests(domain, config):
        reply: Any = world.ask(address, request)
        tag = TAGS[type(request)]
        if getattr(reply, "rc", 0) < 0:
            raise BadInputError(f"domain {domain.domid}: {tag} failed with errno {-reply.rc}")
        if isinstance(request, PopulatePhysmap):
            wanted = len(request.extent_start) // 8
            if reply.nr_done < wanted:
                raise BadInputError(
                    f"domain {domain.domid}: {reply.nr_done} of {wanted} extents of order "
                    f"{request.extent_order} populated; expected room for all"
                )
