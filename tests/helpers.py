"""A world on the local runtime, and the questions that tests ask of it."""

import csv
import gzip
import lzma
from collections import Counter
from pathlib import Path

import numpy as np

from deploy.driver.audit import take_audit
from deploy.driver.launch import Launch
from deploy.scenario.model import Build, DomainSpec, HostSpec, Scenario
from deploy.sim.oracles import Seeded
from deploy.sim.runtime import SimRuntime
from deploy.world import host_config
from protocols import envelope
from protocols.control import SnapshotNode, SnapshotP2m
from protocols.domctl import (
    DomctlCreateDomain,
    DomctlDestroyDomain,
    DomctlGetDomainInfo,
    DomctlSetPagingMempoolSize,
)
from protocols.frames import INVALID_FRAME, pack, unpack
from protocols.memory import DecreaseReservation, PopulatePhysmap
from protocols.p2m import P2mGetEntry, P2mTranslate
from protocols.p2m_types import P2mType
from protocols.toolstack import GuestConfig
from protocols.trace import MemEvent
from protocols.walk import Touch
from services.toolstack.xl_cfg import parse_xl_cfg

DATA = Path(__file__).parent / "data"
POD = P2mType.POPULATE_ON_DEMAND
RAM = P2mType.RAM_RW


def seeded(seed):
    """An oracle of the seed; plain FIFO for None."""
    return None if seed is None else Seeded(seed)


def spread(first, nr, order=0):
    """``nr`` gfns of extents of an order, back to back."""
    return np.arange(first, first + (nr << order), 1 << order, dtype=np.uint64)


class World:
    """A host, and short names for what one asks of it."""

    def __init__(self, memory_mib=64, *, seed=None, recorder=None, **host):
        self.config = host_config(HostSpec(memory_mib=memory_mib, **host))
        self.rt = SimRuntime(self.config, oracle=seeded(seed), recorder=recorder)

    def home(self, domid):
        return envelope.allocator(self.config.home(domid))

    def run(self, *requests):
        """Send (address, request) pairs at once; the replies."""
        return self.rt.run(list(requests))

    def ask(self, address, request):
        (reply,) = self.rt.run([(address, request)])
        return reply

    def hypercall(self, request):
        """A memory_op or domctl, at the home of its domain."""
        return self.ask(self.home(request.domid), request)

    def create(
        self, domid=1, *, max_mib=32, pool=None, superpages="explicit", force_4k=(), vcpus=1
    ):
        ranges = pack([word for pair in force_4k for word in pair])
        request = DomctlCreateDomain(domid, max_mib << 8, vcpus, superpages, ranges)
        assert self.hypercall(request).rc == 0
        if pool is not None:
            assert self.hypercall(DomctlSetPagingMempoolSize(domid, pool << 12)).rc == 0

    def destroy(self, domid=1):
        return self.hypercall(DomctlDestroyDomain(domid)).rc

    def populate(self, gfns, order=0, domid=1, *, flags=0, caller=0):
        request = PopulatePhysmap(domid, order, flags, pack(gfns), caller)
        return self.hypercall(request).nr_done

    def decrease(self, gfns, order=0, domid=1, *, caller=0):
        request = DecreaseReservation(domid, order, pack(gfns), caller)
        return self.hypercall(request).nr_done

    def info(self, domid=1):
        return self.hypercall(DomctlGetDomainInfo(domid))

    def entries(self, gfns, domid=1, *, alloc=False):
        """[(mfn or None, type, order)] as get_gfn tells them."""
        reply = self.ask(envelope.p2m(domid), P2mGetEntry(domid, pack(gfns), alloc=alloc))
        mfns = [None if mfn == INVALID_FRAME else mfn for mfn in unpack(reply.mfns).tolist()]
        return list(zip(mfns, map(P2mType, reply.types), reply.orders, strict=True))

    def translate(self, gfns, domid=1):
        reply = self.ask(envelope.p2m(domid), P2mTranslate(domid, pack(gfns)))
        return unpack(reply.mfns).tolist()

    def touch(self, gfns, domid=1, vcpu=0, *, write=False):
        """Translations, with the mfns."""
        address = envelope.walker(domid, vcpu)
        return self.ask(address, Touch(domid, pack(gfns), write, want_mfns=True))

    def p2m(self, domid=1):
        return self.ask(envelope.p2m(domid), SnapshotP2m(domid))

    def leaves(self, domid=1):
        """[(gfn, order, mfn, type)] ascending."""
        return leaf_rows(self.p2m(domid).table)

    def free(self):
        nodes = range(self.config.nr_nodes)
        requests = [(envelope.allocator(node), SnapshotNode(node, full=False)) for node in nodes]
        return [reply.free_frames for reply in self.run(*requests)]

    def node_of(self, mfn):
        (node,) = [
            node
            for node in range(self.config.nr_nodes)
            for start, nr in [self.config.node_range(node)]
            if start <= mfn < start + nr
        ]
        return node

    def m2p(self, mfn):
        """The M2P word of one frame."""
        allocator = self.rt.component(envelope.allocator(self.node_of(mfn)))
        return int(allocator.memory.frames.m2p(np.array([mfn], dtype=np.uint64))[0])

    def owned(self, domid=1):
        """Frames of a domain that no gfn maps: the orphans."""
        mapped = sum(1 << order for _, order, _, p2mt in self.leaves(domid) if p2mt != POD)
        return self.info(domid).tot_pages - mapped - len(self.p2m(domid).pod_cache) // 8

    def audit(self, *domids, walkers=()):
        """Assert that everything fits together; the report."""
        taken = take_audit(self.rt, self.config, domids, walkers)
        assert [str(violation) for violation in taken.report.violations] == []
        assert [p2m.outstanding_flushes for p2m in taken.p2ms] == [0] * len(domids)
        return taken

    def assert_empty(self):
        """No domain, and every frame back in its heap."""
        taken = self.audit()
        assert taken.host_free == taken.host_total, f"{taken.host_total - taken.host_free} lost"
        assert taken.accounts == []


def leaf_rows(table):
    """[(gfn, order, mfn, type)] of a leaf table; the mfn of a PoD entry is what the entry says."""
    columns = unpack(table.gfns).tolist(), list(table.orders), unpack(table.mfns).tolist()
    return list(zip(*columns, list(table.types), strict=True))


def shape(rows):
    """Leaves without their mfns."""
    return [(gfn, order, p2mt) for gfn, order, _, p2mt in rows]


def mapped_gfns(rows):
    """Every 4K gfn that a leaf covers."""
    return {gfn + step for gfn, order, _, _ in rows for step in range(1 << order)}


def guest(name="guest", memory=64, maxmem=None, kind="pvh", **more):
    return GuestConfig(name, kind, memory, maxmem or memory, **more)


def capture_config(capture):
    """The guest of a kept xl configuration."""
    path = DATA / "xl" / f"{capture}.cfg"
    return parse_xl_cfg(path.read_text(), path.name).guest_config()


def scenario(*guests, phases=(Build(),), superpages="explicit", force_4k=(), **host):
    """Guests with domids from 1, on a host."""
    domains = tuple(
        DomainSpec(number, config, superpages, force_4k)
        for number, config in enumerate(guests, start=1)
    )
    return Scenario("test", HostSpec(**host), domains, tuple(phases))


def launch(work, *, seed=None, recorder=None):
    """(report with tables, runtime) of a scenario on the local runtime."""
    config = host_config(work.host)
    runtime = SimRuntime(config, oracle=seeded(seed), recorder=recorder)
    return Launch(work, config, runtime, keep_tables=True).run(), runtime


def read_dump(name):
    """Leaf rows of a kept nested-page-table dump: (gfn, order, mfn, type, low12, high12)."""
    with gzip.open(DATA / "npt" / f"{name}.csv.gz", "rt") as lines:
        rows = [line.strip().split(",") for line in lines if not line.startswith("#")]
    return [
        (int(gfn, 16), int(order), int(mfn, 16), int(p2mt), int(low12, 16), int(high12, 16))
        for gfn, order, mfn, p2mt, low12, high12 in rows
        if p2mt != "T"
    ]


def decoded_updates(trace):
    """The set_p2m_entry rows of a capture, in order, as dictionaries."""
    with gzip.open(DATA / "decoded" / f"{trace}.mem.csv.gz", "rt") as lines:
        return [row for row in csv.DictReader(lines) if row["event"] == "set_p2m_entry"]


def trace_bytes(capture, form="trimmed"):
    return lzma.decompress((DATA / "traces" / f"{capture}.{form}.trace.bin.xz").read_bytes())


class UpdateRecorder:
    """What the p2m update hook says, chunk by chunk: (gfn, order, type) by domid."""

    def __init__(self):
        self.updates = {}
        self.kinds = Counter()

    def delivered(self, sent):
        self.kinds[type(sent.body)] += 1

    def mem_event(self, event, domid, order, p2mt, gfns, mfns):
        assert gfns.size == mfns.size
        if event != MemEvent.SET_P2M_ENTRY:
            return
        rows = self.updates.setdefault(domid, [])
        rows += [(gfn, order, p2mt) for gfn in gfns.tolist()]
