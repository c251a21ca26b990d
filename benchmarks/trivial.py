"""Handlers that do nothing: what a build costs when only its messages remain."""

from deploy.world import Factory  # noqa: F401 (the signature that make_component has)
from protocols import envelope
from protocols.frames import pack
from protocols.memory import NrDone, PopulatePhysmap
from protocols.p2m import P2mAddPage, P2mUpdated
from protocols.toolstack import BuildDomain, DomainResult
from services.component.component import Component, handles
from services.component.context import Context
from services.component.traps import Call

CALLS = 200
"""populate_physmap calls of one trivial build: about those of a 1.6 GiB guest in 2M pages."""
EXTENTS = pack([0x200, 0x400, 0x600, 0x800])
MFNS = pack([0x1FFE00, 0x1FFC00, 0x1FFA00, 0x1FF800])


class Toolstack(Component):
    @handles(BuildDomain)
    async def build(self, m):
        populate = PopulatePhysmap(m.domid, 9, 0, EXTENTS)
        for _ in range(CALLS):
            await Call("allocator/0", populate)
        return DomainResult(m.domid, "", CALLS)


class Allocator(Component):
    @handles(PopulatePhysmap)
    async def populate(self, m):
        add = P2mAddPage(m.domid, m.extent_order, m.extent_start, MFNS)
        return NrDone((await Call(envelope.p2m(m.domid), add)).nr_done)


class P2m(Component):
    @handles(P2mAddPage)
    async def add(self, m):  # noqa: ARG002
        return P2mUpdated(4, 0)


KINDS = {"toolstack": Toolstack, "allocator": Allocator, "p2m": P2m}


def make_component(address, config, on_mem_event=None):
    """The factory that a shard is told by name."""
    del config, on_mem_event
    return KINDS[address.partition("/")[0]](Context(address))
