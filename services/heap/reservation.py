"""The reservation calls of memory.c: populate, increase, decrease.

Each runs in slices. A slice reserves room in the books, takes frames, has the P2M map them, and
only then writes M2P words for what was mapped and gives back the rest; between slices the call is
preempted and everybody else may run.
"""

from __future__ import annotations

import numpy as np

from protocols import envelope
from protocols.frames import MAX_ORDER, FrameArray, expand, pack, unpack
from protocols.memory import (
    DecreaseReservation,
    IncreaseReservation,
    NrDone,
    PopulatePhysmap,
)
from protocols.p2m import P2mAddPage, P2mMarkPod, P2mRemovePages
from protocols.p2m_types import MemFlag
from services.component.component import handles
from services.component.traps import Acquire, Call, Preempt
from services.heap.accounts import DomainBook
from services.heap.node import Node
from services.heap.policy import max_order, opportunistic_extents, slice_extents


class Reservations(Node):
    """memory_op's calls on a domain's reservation."""

    @handles(PopulatePhysmap)
    async def populate_physmap(self, m: PopulatePhysmap) -> NrDone:
        """XENMEM_populate_physmap; never an error code, only how far it came."""
        return NrDone(await populate(self, m))

    @handles(IncreaseReservation)
    async def increase_reservation(self, m: IncreaseReservation) -> NrDone:
        """XENMEM_increase_reservation."""
        return NrDone(await increase(self, m))

    @handles(DecreaseReservation)
    async def decrease_reservation(self, m: DecreaseReservation) -> NrDone:
        """XENMEM_decrease_reservation."""
        return NrDone(await decrease(self, m))


async def populate(allocator: Node, m: PopulatePhysmap) -> int:
    """populate_physmap: extents done, counted from the first; stops at the first failure."""
    book = allocator.living(m.domid)
    pod = bool(m.mem_flags & MemFlag.POPULATE_ON_DEMAND)
    limit = MAX_ORDER if pod else max_order(m.caller)
    if book is None or m.extent_order > limit or (pod and m.caller == m.domid):
        return 0
    gfns = unpack(m.extent_start)
    await Acquire(book.lock, exclusive=False)
    try:
        if book.dying:
            return 0
        if pod:
            return await _mark_pod(allocator, book, gfns, m.extent_order)
        nodes = _nodes(allocator, m)
        if book.superpages == "opportunistic" and m.extent_order == 0:
            return await _populate_opportunistic(allocator, book, gfns, nodes)
        return await _populate_slices(allocator, book, gfns, m.extent_order, nodes)
    finally:
        book.lock.release()


def _nodes(allocator: Node, m: PopulatePhysmap | IncreaseReservation) -> list[int]:
    """Nodes to take frames from; only the control domain may insist on one (XSA-231)."""
    wanted = MemFlag.get_node(m.mem_flags)
    exact = bool(m.mem_flags & MemFlag.EXACT_NODE_REQUEST)
    if m.caller:
        return [] if exact else allocator.others.order_of_trial(None, exact=False)
    return allocator.others.order_of_trial(wanted, exact=exact)


async def _populate_slices(
    allocator: Node, book: DomainBook, gfns: FrameArray, order: int, nodes: list[int]
) -> int:
    done = 0
    step = slice_extents(order)
    while done < gfns.size:
        if done:
            await Preempt(done)
            if book.dying:
                break
        part = gfns[done : done + step]
        nr = await _populate_some(allocator, book, part, order, nodes)
        done += nr
        if nr < part.size:
            break
    return done


async def _populate_opportunistic(
    allocator: Node, book: DomainBook, gfns: FrameArray, nodes: list[int]
) -> int:
    """Serve plain 4K extents with the largest frames they allow, falling back silently."""
    orders = [*(order for order in allocator.config.leaf_orders if order), 0]
    done = 0
    for order, bases in opportunistic_extents(gfns, orders):
        frames = int(bases.size) << order
        nr = 0
        for smaller in orders[orders.index(order) :]:
            rest = _tail(bases, order, nr, smaller)
            nr += (await _populate_slices(allocator, book, rest, smaller, nodes)) << smaller
            if nr == frames or book.dying:
                break
        done += nr
        if nr < frames or book.dying:
            break
        if done < gfns.size:
            await Preempt(done)
    return done


def _tail(bases: FrameArray, order: int, done: int, smaller: int) -> FrameArray:
    """What is left of contiguous extents after ``done`` frames, as extents of a smaller order."""
    first, end = int(bases[0]) + done, int(bases[-1]) + (1 << order)
    return np.arange(first, end, 1 << smaller, dtype=np.uint64)


async def _populate_some(
    allocator: Node, book: DomainBook, gfns: FrameArray, order: int, nodes: list[int]
) -> int:
    """One slice: as many leading extents as there is room, memory and page-table frames for."""
    wanted = min(int(gfns.size), book.room() >> order)
    done = 0
    for node in nodes:
        while done < wanted:
            mfns = await allocator.take(book, node, order, wanted - done)
            if not mfns.size:
                break
            part = gfns[done : done + mfns.size]
            nr = await _map(allocator, book, part, mfns, order)
            done += nr
            if nr < mfns.size or book.dying:
                return done
    return done


async def _map(
    allocator: Node, book: DomainBook, gfns: FrameArray, mfns: FrameArray, order: int
) -> int:
    """guest_physmap_add_page for each pair; M2P for what stands, the rest back to the heap.

    Of an extent that failed half-way the mapped frames keep their mapping and get their M2P words;
    its other frames stay owned as orphans, as in Xen. Whole extents behind it were never touched.
    """
    add = P2mAddPage(book.domid, order, pack(gfns), pack(mfns))
    reply = await Call(envelope.p2m(book.domid), add)
    nr = reply.nr_done
    if reply.nr_partial:
        # All words in one go: a page may be taken away while the last of them are on their way.
        step = np.arange(reply.nr_partial, dtype=np.uint64)
        words = np.concatenate((expand(mfns[:nr], order), mfns[nr] + step))
        names = np.concatenate((expand(gfns[:nr], order), gfns[nr] + step))
        await allocator.set_m2p(words, names, 0, book.domid)
    else:
        await allocator.set_m2p(mfns[:nr], gfns[:nr], order, book.domid)
    if reply.displaced:
        # Last, since a gfn named twice displaces a frame that this very call had mapped.
        await allocator.set_m2p(unpack(reply.displaced), None, 0, book.domid)
    unused = mfns[nr + (1 if reply.nr_partial else 0) :]
    if unused.size:
        await allocator.free_frames(unused, order, book.domid)
        book.unassign(int(unused.size) << order)
    return nr


async def _mark_pod(allocator: Node, book: DomainBook, gfns: FrameArray, order: int) -> int:
    done = 0
    step = slice_extents(order)
    while done < gfns.size:
        if done:
            await Preempt(done)
            if book.dying:
                break
        part = gfns[done : done + step]
        mark = P2mMarkPod(book.domid, order, pack(part))
        reply = await Call(envelope.p2m(book.domid), mark)
        if reply.displaced:
            await allocator.set_m2p(unpack(reply.displaced), None, 0, book.domid)
        done += reply.nr_done
        if reply.nr_done < part.size:
            break
    return done


async def increase(allocator: Node, m: IncreaseReservation) -> int:
    """increase_reservation: frames only; a translated domain cannot see where they are."""
    book = allocator.living(m.domid)
    if book is None or m.extent_order > max_order(m.caller):
        return 0
    await Acquire(book.lock, exclusive=False)
    try:
        done = 0
        for node in _nodes(allocator, m):
            while done < m.nr_extents and not book.dying:
                nr = min(m.nr_extents - done, slice_extents(m.extent_order))
                mfns = await allocator.take(book, node, m.extent_order, nr)
                if not mfns.size:
                    break
                done += int(mfns.size)
                if done < m.nr_extents:
                    await Preempt(done)
        return done
    finally:
        book.lock.release()


async def decrease(allocator: Node, m: DecreaseReservation) -> int:
    """decrease_reservation: extents wholly removed; the failing one may have lost a prefix."""
    book = allocator.living(m.domid)
    if book is None or m.extent_order > max_order(m.caller):
        return 0
    gfns = unpack(m.extent_start)
    await Acquire(book.lock, exclusive=False)
    try:
        done = 0
        if book.dying:
            return done
        step = slice_extents(m.extent_order)
        while done < gfns.size:
            if done:
                await Preempt(done)
                if book.dying:
                    break
            part = gfns[done : done + step]
            remove = P2mRemovePages(book.domid, m.extent_order, pack(part))
            reply = await Call(envelope.p2m(book.domid), remove)
            mfns = unpack(reply.displaced)
            await allocator.free_frames(mfns, 0, book.domid)
            book.unassign(int(mfns.size))
            done += reply.nr_done
            if reply.nr_done < part.size:
                break
        return done
    finally:
        book.lock.release()
