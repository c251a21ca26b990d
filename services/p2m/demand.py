"""Populate on demand (p2m-pod.c): marking gfns, and giving them memory when they are looked at."""

from __future__ import annotations

import numpy as np

from protocols.errno import Errno
from protocols.frames import ORDER_2M, FrameArray, bounds, expand, pack, unpack
from protocols.heap import SetM2p
from protocols.p2m import P2mMarkPod, P2mPodCacheAdd, P2mPodState, P2mUpdated
from protocols.p2m_types import P2mType
from protocols.trace import MemEvent
from services.component.component import handles
from services.component.traps import Call
from services.p2m.domain import P2mDomain
from services.p2m.kinds import IS_HOLE, invalid, one, repeated
from services.p2m.set_result import SetResult


class Demand(P2mDomain):
    """PoD entries and the cache of frames for them."""

    @handles(P2mMarkPod)
    async def mark_pod(self, m: P2mMarkPod) -> P2mUpdated:
        """guest_physmap_mark_populate_on_demand: RAM in the way is -EBUSY."""
        return await self._update(unpack(m.gfns), m.order, lambda: mark(self, m))

    @handles(P2mPodCacheAdd)
    async def pod_cache_add(self, m: P2mPodCacheAdd) -> P2mPodState:
        """p2m_pod_cache_add; with no frames it only tells the counts."""
        self.pod.add(unpack(m.mfns), m.order)
        return P2mPodState(self.pod.count, self.pod.entry_count)


async def mark(p2m: P2mDomain, m: P2mMarkPod) -> P2mUpdated:
    """guest_physmap_mark_populate_on_demand, extent by extent; RAM in the way is -EBUSY.

    Frames that are PoD already are counted once.
    """
    gfns = unpack(m.gfns)
    nr = p2m.inside(gfns, m.order)
    errno = Errno.OK if nr == gfns.size else Errno.EINVAL
    known = np.zeros(0, dtype=np.bool_)
    below, above = gfns[: max(0, nr - 1)], gfns[1:nr]
    apart = bool(((above > below) & (above - below >= 1 << m.order)).all())
    if nr and (not apart or bounds(gfns[:nr])[0] <= p2m.table.max_mapped_pfn):
        frames = expand(gfns[:nr], m.order)
        _, types, _ = p2m.table.get(frames)
        already = types == P2mType.POPULATE_ON_DEMAND
        busy = np.flatnonzero(~(already | IS_HOLE[types]))
        if busy.size:
            nr, errno = int(busy[0]) >> m.order, Errno.EBUSY
        known = already | repeated(frames)
    pod = P2mType.POPULATE_ON_DEMAND

    def settle(result: SetResult) -> None:
        done = result.nr_done << m.order
        p2m.pod.entry_count += done - int(np.count_nonzero(known[:done]))

    result, _ = await p2m.set_entries(gfns[:nr], invalid(nr), m.order, pod, settle)
    if result.nr_done < nr:
        errno = Errno(result.errno)
    return P2mUpdated(result.nr_done, -errno)


def any_pod(p2m: P2mDomain, gfns: FrameArray) -> bool:
    """Whether one of the gfns is still to be populated."""
    table = p2m.table_now
    if table is None or not gfns.size:
        return False
    _, types, _ = table.get(gfns)
    return bool((types == P2mType.POPULATE_ON_DEMAND).any())


async def populate(p2m: P2mDomain, gfn: int) -> Errno:
    """p2m_pod_demand_populate until the gfn is no longer PoD; inside an exclusive span.

    A 1G entry is first cut to 2M, a 2M one to 4K when the cache has no 2M frame left; each
    turn works on a smaller order, so three turns suffice (XSA-246: never retry for ever).
    """
    for _ in range(len(p2m.table.geometry.leaf_orders) + 1):
        _, types, orders = p2m.table.get(one(gfn))
        if int(types[0]) != P2mType.POPULATE_ON_DEMAND:
            return Errno.OK
        order = int(orders[0])
        base = gfn >> order << order
        if order > ORDER_2M:
            errno = await _remark(p2m, base, ORDER_2M)
        elif order and p2m.pod.count < 1 << ORDER_2M:
            errno = await _remark(p2m, base, 0)
            if not errno:
                p2m.trace(MemEvent.POD_SUPERPAGE_SPLINTER, gfn, order, invalid(1))
        else:
            errno = await _fill(p2m, gfn, order)
        if errno:
            return errno
    raise AssertionError(f"{p2m.context.name}: gfn {gfn:#x} is still PoD")


async def _remark(p2m: P2mDomain, gfn: int, order: int) -> Errno:
    """Write one smaller PoD entry, which splits the larger one that it lies in."""
    pod = P2mType.POPULATE_ON_DEMAND
    result, _ = await p2m.set_entries(one(gfn), invalid(1), order, pod)
    return Errno(result.errno)


async def _fill(p2m: P2mDomain, faulting: int, order: int) -> Errno:
    """A frame of the cache for a PoD entry, and its M2P word before the span ends."""
    gfn = faulting >> order << order
    mfn = p2m.pod.take(order)
    if mfn is None:
        return Errno.ENOMEM

    def settle(result: SetResult) -> None:
        if result.errno:
            p2m.pod.put_back(mfn, order)
        else:
            p2m.pod.entry_count -= 1 << order

    result, _ = await p2m.set_entries(one(gfn), one(mfn), order, P2mType.RAM_RW, settle)
    if result.errno:
        return Errno(result.errno)
    p2m.trace(MemEvent.POD_POPULATE, faulting, order, one(mfn))
    await Call(p2m.home, SetM2p(p2m.table.domid, order, pack([mfn]), pack([gfn])))
    return Errno.OK
