"""What must be true of tables, heaps, books and walkers together once everything is quiet.

Pure functions over snapshots: ``audit_p2m`` (mm/p2m.c) extended to every frame of the host. Each
frame is free, in a page-table pool, or a domain's; its frames and its leaves agree both ways.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from protocols.frames import DOMID_INVALID, DOMID_XEN, INVALID_FRAME, ORDER_4K, FrameArray, expand
from protocols.p2m_types import RAM_TYPES, P2mType

REPORTS_MAX: Final = 20
"""Violations of one invariant that are spelled out; the others are only counted."""

_BATCH_SHIFT: Final = 20
_ONE: Final = np.uint64(1)
_NO_FRAMES: Final[FrameArray] = np.empty(0, dtype=np.uint64)
_NO_BYTES: Final = np.empty(0, dtype=np.uint8)

BoolArray: TypeAlias = npt.NDArray[np.bool_]
ByteArray: TypeAlias = npt.NDArray[np.uint8]
IndexArray: TypeAlias = npt.NDArray[np.intp]

_IS_RAM: Final[BoolArray] = np.isin(np.arange(256), sorted(RAM_TYPES))


class FrameAccess(Protocol):
    """Owners and M2P of one node's frames; extents are base mfns, shape (n,) u64, and an order."""

    def owner(self, mfns: FrameArray) -> npt.NDArray[np.uint16]:
        """Owner of each frame, shape (n,)."""
        ...

    def owner_uniform(self, mfns: FrameArray, order: int, domid: int) -> BoolArray:
        """Whether all frames of each aligned extent have this owner, shape (n,)."""
        ...

    def m2p(self, mfns: FrameArray) -> FrameArray:
        """The gfn of each frame, INVALID_FRAME for none, shape (n,)."""
        ...

    def m2p_matches(self, mfns: FrameArray, gfns: FrameArray, order: int) -> BoolArray:
        """Whether m2p[mfn + i] == gfn + i for all i of each aligned extent, shape (n,)."""
        ...

    def owned_runs(self, domid: int) -> tuple[FrameArray, FrameArray]:
        """Runs of frames of an owner, ascending: (starts, lengths), shape (n,) each."""
        ...

    def count_owned(self, domid: int) -> int:
        """Frames of an owner."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class P2mSnapshot:
    """One P2M: every leaf as parallel arrays, ascending gfn, and its page-table pool.

    ``present`` says whether the raw entry is present. ``ptps`` are the tables that can be reached,
    ``pool`` all frames of the pool, ``pod_cache`` 4K frames; counts are in frames.
    """

    domid: int
    gfns: FrameArray
    orders: ByteArray
    mfns: FrameArray
    types: ByteArray
    present: BoolArray
    ptps: FrameArray
    pool: FrameArray
    pool_free: int
    pod_entries: int
    pod_cache: FrameArray
    outstanding_flushes: int
    problems: Sequence[str] = ()


@dataclass(frozen=True, slots=True, eq=False)
class NodeSnapshot:
    """One NUMA node: mfns [start, start + nr_frames), its free blocks, its owners and M2P."""

    node: int
    start: int
    nr_frames: int
    block_mfns: FrameArray
    block_orders: ByteArray
    free_frames: int
    frames: FrameAccess
    problems: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Account:
    """One domain's books over all nodes, in frames."""

    domid: int
    tot_pages: int
    max_pages: int
    pool_pages: int
    claim: int


@dataclass(frozen=True, slots=True, eq=False)
class TlbSnapshot:
    """What one walker holds: translations of its own domain, and copies of page-table frames."""

    domid: int
    vcpu: int
    gfns: FrameArray
    mfns: FrameArray
    orders: ByteArray
    frame_mfns: FrameArray


@dataclass(frozen=True, slots=True)
class Violation:
    """One disagreement; what does not apply (the host has no domid) is None."""

    invariant: str
    domid: int | None
    gfn: int | None
    mfn: int | None
    order: int | None
    message: str

    def __str__(self) -> str:  # pyright: ignore[reportImplicitOverride]
        """One line, frame numbers in hexadecimal."""
        parts = [f"{self.invariant}:"]
        parts += [f"domid {self.domid}"] if self.domid is not None else []
        parts += [f"gfn {self.gfn:#x}"] if self.gfn is not None else []
        parts += [f"mfn {self.mfn:#x}"] if self.mfn is not None else []
        parts += [f"order {self.order}"] if self.order is not None else []
        return f"{' '.join(parts)}: {self.message}" if parts[1:] else f"{parts[0]} {self.message}"


@dataclass(frozen=True, slots=True)
class AuditReport:
    """Verdict of an audit, frames of 4K.

    ``checked`` counts frames under RAM leaves, in PoD caches and in page-table pools. As in
    ``audit_p2m``, ``orphans`` are owned frames without M2P entry (allowed: no gfn was asked for;
    those of PoD caches are not counted), ``m2p_bad`` owned frames whose M2P entry no leaf bears
    out, ``p2m_bad`` frames under a RAM leaf that are not owned or whose M2P entry differs.
    """

    checked: int
    violations: list[Violation]
    orphans: int
    m2p_bad: int
    p2m_bad: int


def audit(
    p2ms: Sequence[P2mSnapshot],
    nodes: Sequence[NodeSnapshot],
    accounts: Sequence[Account],
    tlbs: Sequence[TlbSnapshot],
) -> AuditReport:
    """Check everything against everything; a quiet system has no violations.

    Args:
        p2ms: One for each domain.
        nodes: All nodes of the host.
        accounts: One for each domain; a domain without P2M is taken to have no leaves.
        tlbs: Any number for each domain.

    Returns:
        Counts and violations, at most ``REPORTS_MAX`` and a remainder line for each invariant.
    """
    return _Audit(p2ms, nodes, accounts).run(tlbs)


@dataclass(frozen=True, slots=True, eq=False)
class _Extents:
    domid: int
    gfns: FrameArray
    mfns: FrameArray
    order: int


class _Findings:
    """Violations by invariant, the first few of each kept."""

    def __init__(self) -> None:
        self._kept: dict[str, list[Violation]] = {}
        self._hidden: dict[str, int] = {}

    def __bool__(self) -> bool:
        return bool(self._kept)

    def add(
        self,
        invariant: str,
        message: str,
        domid: int | None = None,
        gfn: int | None = None,
        mfn: int | None = None,
        order: int | None = None,
    ) -> None:
        kept = self._kept.setdefault(invariant, [])
        if len(kept) < REPORTS_MAX:
            kept.append(Violation(invariant, domid, gfn, mfn, order, message))
        else:
            self._hidden[invariant] = self._hidden.get(invariant, 0) + 1

    def some(self, invariant: str, where: IndexArray) -> Iterator[int]:
        """The indices worth reporting one by one; the others are counted as hidden."""
        room = max(0, REPORTS_MAX - len(self._kept.get(invariant, ())))
        yield from where[:room].tolist()
        if where.size > room:
            self._hidden[invariant] = self._hidden.get(invariant, 0) + where.size - room

    def all(self) -> list[Violation]:
        found: list[Violation] = []
        for invariant, kept in self._kept.items():
            found += kept
            if more := self._hidden.get(invariant, 0):
                message = f"... and {more} more"
                found.append(Violation(invariant, None, None, None, None, message))
        return found


class _Audit:
    """One audit under way: what was found and what was counted."""

    def __init__(
        self,
        p2ms: Sequence[P2mSnapshot],
        nodes: Sequence[NodeSnapshot],
        accounts: Sequence[Account],
    ) -> None:
        self.found = _Findings()
        self.nodes = sorted(nodes, key=lambda node: node.start)
        self.starts = np.array([node.start for node in self.nodes], dtype=np.uint64)
        self.ends = np.array([n.start + n.nr_frames for n in self.nodes], dtype=np.uint64)
        self.accounts = {account.domid: account for account in accounts}
        self.p2ms = {p2m.domid: p2m for p2m in p2ms}
        assert len(self.p2ms) == len(p2ms), "two P2M snapshots of one domid"
        assert len(self.accounts) == len(accounts), "two accounts of one domid"
        for domid in self.accounts:
            self.p2ms.setdefault(domid, _nothing(domid))
        self.ram = {p2m.domid: p2m.present & _IS_RAM[p2m.types] for p2m in self.p2ms.values()}
        self.checked = self.orphans = self.m2p_bad = self.p2m_bad = 0

    def run(self, tlbs: Sequence[TlbSnapshot]) -> AuditReport:
        for node in self.nodes:
            for problem in node.problems:
                self.found.add("heap", f"node {node.node}: {problem}")
        free = sum(self._free_blocks(index) for index in range(len(self.nodes)))
        for p2m in self.p2ms.values():
            self._table(p2m)
            self._leaves(p2m)
            self._pod(p2m)
            self._pool(p2m)
        self._mapped_once()
        self._owned(free, self._pools_once())
        for tlb in tlbs:
            self._tlb(tlb)
        claims = sum(account.claim for account in self.accounts.values())
        available = sum(node.free_frames for node in self.nodes)
        if claims > available:
            self.found.add("claims", f"claims of {claims} frames on {available} free ones")
        return AuditReport(self.checked, self.found.all(), self.orphans, self.m2p_bad, self.p2m_bad)

    # -- one node ----------------------------------------------------------------------------

    def _free_blocks(self, index: int) -> int:
        """Free blocks lie in the node, apart, unowned; returns frames of which all is true."""
        node = self.nodes[index]
        mfns, orders = node.block_mfns, node.block_orders
        sizes = _sizes(orders)
        total = int(sizes.sum())
        if total != node.free_frames:
            message = f"node {node.node}: blocks of {total} frames, {node.free_frames} counted"
            self.found.add("heap", message)
        where = np.argsort(mfns, kind="stable")
        inside = (self._node_of(mfns, sizes) == index) & _aligned(mfns, orders)
        inside[where[1:]] &= (mfns + sizes)[where[:-1]] <= mfns[where[1:]]
        for i in self.found.some("heap", np.flatnonzero(~inside)):
            message = f"free block of node {node.node} is astray or overlaps another"
            self.found.add("heap", message, mfn=int(mfns[i]), order=int(orders[i]))
        owned = 0
        for order in _distinct(orders[inside]):
            bases = mfns[inside & (orders == order)]
            for base in bases[~node.frames.owner_uniform(bases, order, DOMID_INVALID)].tolist():
                owners = node.frames.owner(expand(np.array([base], dtype=np.uint64), order))
                bad = np.flatnonzero(owners != DOMID_INVALID)
                owned += bad.size
                mfn, domid = base + int(bad[0]), int(owners[bad[0]])
                message = "frame is owned, yet free in the heap"
                self.found.add("free", message, domid, None, mfn, order)
        return int(sizes[inside].sum()) - owned

    def _node_of(self, mfns: FrameArray, sizes: FrameArray) -> IndexArray:
        """Index of the node that holds each extent whole, -1 if none does."""
        if not self.nodes:
            return np.full(mfns.size, -1, dtype=np.intp)
        index = np.searchsorted(self.starts, mfns, side="right").astype(np.intp) - 1
        end = self.ends[index]
        # An end beyond 2**64 must not wrap round into the node.
        return np.where((index >= 0) & (mfns < end) & (sizes <= end - mfns), index, -1)

    def _frames(self, mfns: FrameArray, domid: int) -> tuple[BoolArray, FrameArray]:
        """Whether ``domid`` owns each frame, and the frame's M2P entry."""
        where = self._node_of(mfns, np.ones(mfns.size, dtype=np.uint64))
        owned, gfns = where >= 0, np.full(mfns.size, INVALID_FRAME, dtype=np.uint64)
        for index in _distinct(where[owned]):
            pick, node = where == index, self.nodes[index].frames
            owned[pick] = node.owner_uniform(mfns[pick], ORDER_4K, domid)
            gfns[pick] = node.m2p(mfns[pick])
        return owned, gfns

    # -- one domain --------------------------------------------------------------------------

    def _table(self, p2m: P2mSnapshot) -> None:
        """The table has no problems of its own, its leaves are apart, nothing waits for a flush."""
        domid, found = p2m.domid, self.found
        for problem in p2m.problems:
            found.add("table", problem, domid)
        over = p2m.gfns[:-1] + _sizes(p2m.orders)[:-1] > p2m.gfns[1:]
        for i in found.some("table", np.flatnonzero(over) + 1):
            message = "leaf begins before the last one ends"
            found.add("table", message, domid, *_leaf(p2m, i))
        if p2m.outstanding_flushes:
            found.add("flushes", f"{p2m.outstanding_flushes} flushes outstanding", domid)

    def _leaves(self, p2m: P2mSnapshot) -> None:
        """RAM leaves are aligned, their frames the domain's, and the M2P says the same."""
        ram = self.ram[p2m.domid]
        aligned = _aligned(p2m.gfns | p2m.mfns, p2m.orders)
        for i in self.found.some("aligned", np.flatnonzero(ram & ~aligned)):
            self.found.add("aligned", "leaf is not aligned to its order", p2m.domid, *_leaf(p2m, i))
        odd = ram & ~aligned
        for order in _distinct(p2m.orders[ram]):
            level = p2m.orders == order
            pick = ram & aligned & level
            self._extents(p2m.domid, p2m.gfns[pick], p2m.mfns[pick], order)
            # Only aligned extents can be asked about whole.
            pick = odd & level
            if pick.any():
                gfns, mfns = expand(p2m.gfns[pick], order), expand(p2m.mfns[pick], order)
                self._extents(p2m.domid, gfns, mfns, ORDER_4K)

    def _extents(self, domid: int, gfns: FrameArray, mfns: FrameArray, order: int) -> None:
        """Aligned extents of one order: each in a node, owned, and in the M2P."""
        self.checked += mfns.size << order
        where = self._node_of(mfns, np.full(mfns.size, 1 << order, dtype=np.uint64))
        for i in self.found.some("owner", np.flatnonzero(where < 0)):
            message = "the frames are of no single node"
            self.found.add("owner", message, domid, int(gfns[i]), int(mfns[i]), order)
        self.p2m_bad += int(np.count_nonzero(where < 0)) << order
        for index in _distinct(where[where >= 0]):
            node = self.nodes[index].frames
            gfn, mfn = gfns[where == index], mfns[where == index]
            owned = node.owner_uniform(mfn, order, domid)
            extents = _Extents(domid, gfn[~owned], mfn[~owned], order)
            self._differ("owner", "owner", extents, node.owner, lambda _: domid)
            gfn, mfn = gfn[owned], mfn[owned]
            right = node.m2p_matches(mfn, gfn, order)
            extents = _Extents(domid, gfn[~right], mfn[~right], order)
            self._differ("m2p", "M2P entry", extents, node.m2p, lambda gfns: gfns)

    def _differ(
        self,
        invariant: str,
        what: str,
        extents: _Extents,
        read: Callable[[FrameArray], npt.NDArray[np.unsignedinteger[Any]]],
        wanted: Callable[[FrameArray], FrameArray | int],
    ) -> None:
        """Find what is wrong in extents known to be wrong: count frames, report each first one."""
        order, gfns, mfns = extents.order, extents.gfns, extents.mfns
        step = max(1, (1 << _BATCH_SHIFT) >> order)
        for at in range(0, mfns.size, step):
            frames, names = (expand(part[at : at + step], order) for part in (mfns, gfns))
            words = read(frames)
            bad = words != wanted(names)
            self.p2m_bad += int(np.count_nonzero(bad))
            rows = bad.reshape(-1, 1 << order)
            firsts = rows.argmax(axis=1) + np.arange(0, bad.size, 1 << order, dtype=np.intp)
            for i in self.found.some(invariant, firsts):
                message = f"{what} is {int(words[i]):#x}"
                gfn, mfn = int(names[i]), int(frames[i])
                self.found.add(invariant, message, extents.domid, gfn, mfn, order)

    def _pod(self, p2m: P2mSnapshot) -> None:
        """PoD counts are those of the entries; cache frames are owned and without gfn."""
        found, domid, cache = self.found, p2m.domid, p2m.pod_cache
        pod = p2m.types == P2mType.POPULATE_ON_DEMAND
        nr = int(_sizes(p2m.orders[pod]).sum())
        if nr != p2m.pod_entries:
            found.add("pod", f"{nr} frames under PoD entries, {p2m.pod_entries} counted", domid)
        account = self.accounts.get(domid)
        if account is not None and cache.size > account.tot_pages:
            message = f"cache of {cache.size} frames, tot_pages {account.tot_pages}"
            found.add("pod", message, domid)
        self.checked += cache.size
        for mfn in _repeated(cache):
            found.add("pod", "frame is twice in the cache", domid, None, mfn, ORDER_4K)
        owned, gfns = self._frames(cache, domid)
        for bad, message in (
            (~owned, "cache frame is not the domain's"),
            (owned & (gfns != INVALID_FRAME), "cache frame has an M2P entry"),
        ):
            for i in found.some("pod", np.flatnonzero(bad)):
                found.add("pod", message, domid, None, int(cache[i]), ORDER_4K)

    def _pool(self, p2m: P2mSnapshot) -> None:
        """Tables are reached once and are of the pool; used and free make up the pool."""
        found, domid = self.found, p2m.domid
        account = self.accounts.get(domid)
        self.checked += p2m.pool.size
        for mfn in _repeated(p2m.ptps):
            found.add("ptp", "table is reached twice", domid, None, mfn, ORDER_4K)
        strangers = p2m.ptps[~np.isin(p2m.ptps, p2m.pool)]
        for i in found.some("ptp", np.arange(strangers.size)):
            message = "table is not of the pool"
            found.add("ptp", message, domid, None, int(strangers[i]), ORDER_4K)
        if p2m.pool.size - p2m.pool_free != p2m.ptps.size:
            message = f"{p2m.ptps.size} tables, pool of {p2m.pool.size} with {p2m.pool_free} free"
            found.add("pool", message, domid)
        if account is not None and account.pool_pages != p2m.pool.size:
            message = f"pool of {p2m.pool.size} frames, pool_pages {account.pool_pages}"
            found.add("pool", message, domid)
        owned, _ = self._frames(p2m.pool, DOMID_XEN)
        for i in found.some("pool", np.flatnonzero(~owned)):
            message = "pool frame is not DOMID_XEN's"
            found.add("pool", message, domid, None, int(p2m.pool[i]), ORDER_4K)

    # -- all domains -------------------------------------------------------------------------

    def _mapped_once(self) -> None:
        """No frame is under two RAM leaves, of one domain or of two."""
        p2ms = list(self.p2ms.values())
        if not p2ms:
            return
        mfns = np.concatenate([p2m.mfns[self.ram[p2m.domid]] for p2m in p2ms])
        gfns = np.concatenate([p2m.gfns[self.ram[p2m.domid]] for p2m in p2ms])
        orders = np.concatenate([p2m.orders[self.ram[p2m.domid]] for p2m in p2ms])
        owner = np.repeat(
            np.array([p2m.domid for p2m in p2ms]), [self.ram[p2m.domid].sum() for p2m in p2ms]
        )
        where = np.argsort(mfns, kind="stable")
        start, end = mfns[where], (mfns + _sizes(orders))[where]
        reach = np.maximum.accumulate(end)
        for i in self.found.some("twice", np.flatnonzero(start[1:] < reach[:-1]) + 1):
            this, other = int(where[i]), int(where[int(np.argmax(end[:i]))])
            message = (
                f"also mapped by domid {int(owner[other])} gfn {int(gfns[other]):#x} "
                f"mfn {int(mfns[other]):#x} order {int(orders[other])}"
            )
            domid, gfn, mfn = int(owner[this]), int(gfns[this]), int(mfns[this])
            self.found.add("twice", message, domid, gfn, mfn, int(orders[this]))

    def _pools_once(self) -> int:
        """No frame is in two pools, or twice in one; returns the frames of all pools."""
        frames = np.concatenate([_NO_FRAMES, *(p2m.pool for p2m in self.p2ms.values())])
        for mfn in _repeated(frames):
            holders = [domid for domid, p2m in self.p2ms.items() if mfn in p2m.pool]
            message = f"frame is twice in pools, of domids {holders}"
            self.found.add("pool", message, holders[0], None, mfn, ORDER_4K)
        return np.unique(frames).size

    def _owned(self, free: int, pools: int) -> None:
        """Frames owned are those mapped, cached or pooled, and as many as the books say."""
        held = {
            domid: int(_sizes(p2m.orders[self.ram[domid]]).sum()) + p2m.pod_cache.size
            for domid, p2m in self.p2ms.items()
        }
        total = sum(node.nr_frames for node in self.nodes)
        if self.found or free + pools + sum(held.values()) != total:
            # Otherwise every frame of the host is accounted for, each once: none can be astray,
            # and there is no need to look for it domain by domain.
            held = {domid: self._owned_frames(domid) for domid in self.p2ms}
            xen = sum(node.frames.count_owned(DOMID_XEN) for node in self.nodes)
            if xen != pools:
                message = f"DOMID_XEN owns {xen} frames, pools have {pools}"
                self.found.add("pool", message)
            owned = sum(held.values()) + xen
            if free + owned != total:
                message = f"{free} frames free + {owned} owned, of {total}"
                self.found.add("total", message)
        for domid, nr in held.items():
            account = self.accounts.get(domid)
            if account is None:
                self.found.add("account", f"no account; owns {nr} frames", domid)
                continue
            if nr != account.tot_pages:
                self.found.add("account", f"owns {nr} frames, tot_pages {account.tot_pages}", domid)
            if account.tot_pages > account.max_pages:
                message = f"tot_pages {account.tot_pages} > max_pages {account.max_pages}"
                self.found.add("account", message, domid)

    def _owned_frames(self, domid: int) -> int:
        """Count a domain's frames; those neither mapped nor cached are orphans or m2p_bad."""
        p2m, ram, owned = self.p2ms[domid], self.ram[domid], 0
        cache, ones = p2m.pod_cache, np.ones(p2m.pod_cache.size, dtype=np.uint64)
        starts = np.concatenate((p2m.mfns[ram], cache))
        cover = _union(starts, np.concatenate((_sizes(p2m.orders[ram]), ones)))
        for node in self.nodes:
            first, lengths = node.frames.owned_runs(domid)
            owned += int(lengths.sum())
            for mfns in _frames_outside(first, lengths, cover):
                gfns = node.frames.m2p(mfns)
                valid = gfns != INVALID_FRAME
                nr = int(np.count_nonzero(valid))
                self.m2p_bad += nr
                self.orphans += mfns.size - nr
                for i in self.found.some("leafless", np.flatnonzero(valid)):
                    message = "the M2P names a gfn that no leaf maps to this frame"
                    self.found.add("leafless", message, domid, int(gfns[i]), int(mfns[i]), ORDER_4K)
        return owned

    # -- walkers -----------------------------------------------------------------------------

    def _tlb(self, tlb: TlbSnapshot) -> None:
        """What a walker holds is what the table says now."""
        p2m = self.p2ms.get(tlb.domid) or _nothing(tlb.domid)
        agrees = np.zeros(tlb.gfns.size, dtype=np.bool_)
        if p2m.gfns.size:
            at = np.searchsorted(p2m.gfns, tlb.gfns, side="right").astype(np.intp) - 1
            offset = tlb.gfns - p2m.gfns[at]
            agrees = (at >= 0) & p2m.present[at] & (p2m.mfns[at] + offset == tlb.mfns)
            agrees &= offset + _sizes(tlb.orders) <= _sizes(p2m.orders)[at]
        for i in self.found.some("tlb", np.flatnonzero(~agrees)):
            message = f"vcpu {tlb.vcpu} holds a translation that the table does not have"
            at_gfn, at_mfn = int(tlb.gfns[i]), int(tlb.mfns[i])
            self.found.add("tlb", message, tlb.domid, at_gfn, at_mfn, int(tlb.orders[i]))
        strangers = tlb.frame_mfns[~np.isin(tlb.frame_mfns, p2m.ptps)]
        for i in self.found.some("tlb", np.arange(strangers.size)):
            message = f"vcpu {tlb.vcpu} holds a copy of a frame that is no table"
            self.found.add("tlb", message, tlb.domid, None, int(strangers[i]), ORDER_4K)


def _nothing(domid: int) -> P2mSnapshot:
    """A P2M without anything."""
    none, no_bytes = _NO_FRAMES, _NO_BYTES
    present = np.empty(0, dtype=np.bool_)
    return P2mSnapshot(domid, none, no_bytes, none, no_bytes, present, none, none, 0, 0, none, 0)


def _leaf(p2m: P2mSnapshot, i: int) -> tuple[int, int, int]:
    return int(p2m.gfns[i]), int(p2m.mfns[i]), int(p2m.orders[i])


def _sizes(orders: ByteArray) -> FrameArray:
    """Frames of each order."""
    return np.left_shift(_ONE, orders.astype(np.uint64))


def _aligned(frames: FrameArray, orders: ByteArray) -> BoolArray:
    return (frames & (_sizes(orders) - _ONE)) == 0


def _distinct(values: npt.NDArray[np.integer[Any]]) -> list[int]:
    return np.unique(values).tolist()


def _repeated(frames: FrameArray) -> list[int]:
    """Frames that occur more than once, ascending."""
    frames = np.sort(frames)
    return _distinct(frames[1:][frames[1:] == frames[:-1]])


def _union(starts: FrameArray, lengths: FrameArray) -> tuple[FrameArray, FrameArray]:
    """Extents in any order as disjoint ascending ranges: (starts, ends)."""
    where = np.argsort(starts, kind="stable")
    starts, reach = starts[where], np.maximum.accumulate((starts + lengths)[where])
    new = np.flatnonzero(starts[1:] > reach[:-1]) + 1
    if not starts.size:
        return starts, reach
    return starts[np.concatenate(([0], new))], reach[np.concatenate((new - 1, [starts.size - 1]))]


def _frames_outside(
    starts: FrameArray, lengths: FrameArray, cover: tuple[FrameArray, FrameArray]
) -> Iterator[FrameArray]:
    """Frames of ascending runs that disjoint ascending ranges leave uncovered, in batches."""
    gap_starts = np.concatenate((np.zeros(1, dtype=np.uint64), cover[1]))
    gap_ends = np.concatenate((cover[0], np.full(1, INVALID_FRAME, dtype=np.uint64)))
    ends = starts + lengths
    low = np.searchsorted(gap_ends, starts, side="right")
    nr = np.maximum(np.searchsorted(gap_starts, ends, side="left") - low, 0)
    run = np.repeat(np.arange(starts.size), nr)
    gap = np.arange(run.size) - np.repeat(np.cumsum(nr) - nr, nr) + np.repeat(low, nr)
    first = np.maximum(starts[run], gap_starts[gap]).tolist()
    last = np.minimum(ends[run], gap_ends[gap]).tolist()
    step = 1 << _BATCH_SHIFT
    for begin, end in zip(first, last, strict=True):
        for at in range(begin, end, step):
            yield np.arange(at, min(at + step, end), dtype=np.uint64)
