"""The p2m part of decrease_reservation: what goes, in which order, and where it stops."""

from __future__ import annotations

import numpy as np

from protocols.errno import Errno
from protocols.frames import INVALID_FRAME, ORDER_2M, FrameArray, expand, pack, unpack
from protocols.heap import PodCacheRequest
from protocols.p2m import P2mRemovePages, P2mUnmap, P2mUpdated
from protocols.p2m_types import HOLE_TYPES, P2mType
from protocols.trace import MemEvent
from services.component.component import handles
from services.component.traps import Call
from services.p2m.domain import P2mDomain
from services.p2m.kinds import IS_RAM, NO_FRAMES, invalid, one, repeated
from services.p2m.set_result import SetResult, Update


class Removals(P2mDomain):
    """What takes pages out of the tables."""

    @handles(P2mRemovePages)
    async def remove_pages(self, m: P2mRemovePages) -> P2mUpdated:
        """p2m_pod_decrease_reservation, then guest_remove_page for each page."""
        return await self._update(
            unpack(m.gfns),
            m.order,
            lambda: remove_pages(self, m),
            several=lambda: takes_several(self, m),
        )

    @handles(P2mUnmap)
    async def unmap(self, m: P2mUnmap) -> P2mUpdated:
        """p2m_remove_page of one page: exactly this mapping, or -EILSEQ and no change."""

        async def body() -> P2mUpdated:
            found, _, _ = self.table.get(one(m.gfn))
            if int(found[0]) != m.mfn:
                return P2mUpdated(0, -Errno.EILSEQ)
            result, displaced = await self.set_entries(one(m.gfn), invalid(1), 0, P2mType.INVALID)
            return P2mUpdated(result.nr_done, -result.errno, pack(displaced))

        return await self._update(one(m.gfn), 0, body)


async def remove_pages(p2m: P2mDomain, m: P2mRemovePages) -> P2mUpdated:
    """Extent by extent up to the first that cannot go; whole PoD extents by one write each."""
    displaced: list[FrameArray] = []
    parts = _parts(p2m, m)
    if not parts:
        _trace(p2m, unpack(m.gfns)[:1], m.order, [])
        return P2mUpdated(0, -Errno.ENOENT if m.gfns else 0)
    done = 0
    for part, is_pod in parts:
        if is_pod:
            nr, errno = await _remove_pod(p2m, part, m.order)
        else:
            nr, errno, mfns = await _remove_frames(p2m, part, m.order)
            displaced.append(mfns)
        done += nr
        if nr < part.size:
            return await _removed(p2m, m.domid, done, errno, displaced)
    errno = Errno.OK
    if done << 3 < len(m.gfns):
        errno = Errno.ENOENT
        _trace(p2m, unpack(m.gfns)[done : done + 1], m.order, [])
    return await _removed(p2m, m.domid, done, errno, displaced)


def takes_several(p2m: P2mDomain, m: P2mRemovePages) -> bool:
    """Whether the removal commits more than once."""
    return p2m.table_now is not None and len(_parts(p2m, m)) > 1


def _parts(p2m: P2mDomain, m: P2mRemovePages) -> list[tuple[FrameArray, bool]]:
    """Neighbouring extents of one kind, which are removed together: (extents, whole PoD).

    The order of the extents is kept; those beyond the gfn space are left out.
    """
    extents = unpack(m.gfns)
    extents = extents[: p2m.inside(extents, m.order)]
    if not extents.size:
        return []
    _, types, orders = p2m.table.get(extents)
    whole_pod = (types == P2mType.POPULATE_ON_DEMAND) & (orders >= m.order)
    whole_pod &= (extents & np.uint64((1 << m.order) - 1)) == 0
    whole_pod &= ~repeated(extents)
    breaks = np.flatnonzero(np.diff(whole_pod)) + 1
    kinds = np.split(whole_pod, breaks)
    return [
        (part, bool(kind[0])) for part, kind in zip(np.split(extents, breaks), kinds, strict=True)
    ]


async def _remove_pod(p2m: P2mDomain, extents: FrameArray, order: int) -> tuple[int, int]:
    """Extents that hold no memory yet: (extents done, errno)."""

    def settle(result: SetResult) -> None:
        p2m.pod.entry_count -= result.nr_done << order
        _trace(p2m, extents[: result.nr_done + 1], order, result.updates)

    nothing = invalid(extents.size)
    result, _ = await p2m.set_entries(extents, nothing, order, P2mType.INVALID, settle)
    return result.nr_done, result.errno


async def _removed(
    p2m: P2mDomain, domid: int, done: int, errno: int, displaced: list[FrameArray]
) -> P2mUpdated:
    if p2m.pod.count > p2m.pod.entry_count:
        big, small = p2m.pod.shrink_to_entries()
        for order, mfns in ((ORDER_2M, big), (0, small)):
            if mfns.size:
                await Call(p2m.home, PodCacheRequest(domid, order, pack(mfns)))
    mfns = np.concatenate([NO_FRAMES, *displaced])
    return P2mUpdated(done, -errno, pack(mfns))


async def _remove_frames(
    p2m: P2mDomain, extents: FrameArray, order: int
) -> tuple[int, int, FrameArray]:
    """4K by 4K up to the first page that cannot go: (extents done, errno, frames removed).

    A frame is only reported as removed when its entry really went (XSA-247).
    """
    frames = expand(extents, order)
    found, types, _ = p2m.table.get(frames)
    pod = types == P2mType.POPULATE_ON_DEMAND
    good = pod | (IS_RAM[types] & (found != INVALID_FRAME))
    # A page named again is a hole by the time its second turn comes.
    again = repeated(frames)
    bad = np.flatnonzero(~good | again)
    nr, errno = frames.size, Errno.OK
    if bad.size:
        nr = int(bad[0])
        errno = Errno.ENOENT if again[nr] else _removal_errno(P2mType(int(types[nr])))

    def settle(result: SetResult) -> None:
        p2m.pod.entry_count -= int(np.count_nonzero(pod[: result.nr_done]))
        _trace(p2m, extents[: (result.nr_done >> order) + 1], order, result.updates)

    gone = frames[:nr]
    result, displaced = await p2m.set_entries(gone, invalid(nr), 0, P2mType.INVALID, settle)
    if result.nr_done < nr:
        errno = result.errno
    return result.nr_done >> order, errno, displaced


def _trace(p2m: P2mDomain, extents: FrameArray, order: int, updates: list[Update]) -> None:
    """What Xen traces, extent by extent: that it is to go, then the entries written for it.

    ``updates``, which are in the order of the extents, are traced here and taken out.
    """
    hook = p2m.context.on_mem_event
    if hook is None:
        return
    domid = p2m.table.domid
    behind = 0
    for number in range(extents.size):
        extent = extents[number : number + 1]
        hook(MemEvent.DECREASE_RESERVATION, domid, order, 0, extent, invalid(1))
        behind += 1 << order
        while updates and behind > 0:
            gfns, mfns, written, p2mt = updates[0]
            nr = min(gfns.size, -(-behind >> written))
            hook(MemEvent.SET_P2M_ENTRY, domid, written, p2mt, gfns[:nr], mfns[:nr])
            behind -= nr << written
            updates[0] = (gfns[nr:], mfns[nr:], written, p2mt)
            if nr == gfns.size:
                updates.pop(0)
    assert not updates, f"domid {domid}: {len(updates)} updates of no extent"


def _removal_errno(p2mt: P2mType) -> Errno:
    """guest_remove_page's verdict on an entry that is not ordinary RAM."""
    if p2mt in HOLE_TYPES:
        return Errno.ENOENT
    return Errno.EPERM if p2mt == P2mType.MMIO_DIRECT else Errno.EINVAL
