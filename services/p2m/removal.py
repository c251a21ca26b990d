"""The p2m part of decrease_reservation: what goes, in which order, and where it stops."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from protocols.errno import Errno
from protocols.frames import INVALID_FRAME, ORDER_2M, FrameArray, expand, pack, unpack
from protocols.heap import PodCacheRequest
from protocols.p2m import P2mRemovePages, P2mUpdated
from protocols.p2m_types import HOLE_TYPES, P2mType
from services.component.traps import Call
from services.p2m.kinds import IS_RAM, NO_FRAMES, invalid, repeated

if TYPE_CHECKING:
    from services.p2m.component import P2m


async def remove_pages(p2m: P2m, m: P2mRemovePages) -> P2mUpdated:
    """Extent by extent up to the first that cannot go; whole PoD extents by one write each."""
    displaced: list[FrameArray] = []
    extents = unpack(m.gfns)
    extents = extents[: p2m.inside(extents, m.order)]
    if not extents.size:
        return P2mUpdated(0, -Errno.ENOENT if m.gfns else 0)
    _, types, orders = p2m.table.get(extents)
    whole_pod = (types == P2mType.POPULATE_ON_DEMAND) & (orders >= m.order)
    whole_pod &= (extents & np.uint64((1 << m.order) - 1)) == 0
    whole_pod &= ~repeated(extents)
    # Neighbours of one kind are removed together; the order of the extents is kept.
    breaks = np.flatnonzero(np.diff(whole_pod)) + 1
    done = 0
    for part, is_pod in zip(np.split(extents, breaks), np.split(whole_pod, breaks), strict=True):
        if bool(is_pod[0]):
            result, _ = await p2m.set_entries(part, invalid(part.size), m.order, P2mType.INVALID)
            p2m.pod.entry_count -= result.nr_done << m.order
            nr, errno = result.nr_done, result.errno
        else:
            nr, errno, mfns = await _remove_frames(p2m, part, m.order)
            displaced.append(mfns)
        done += nr
        if nr < part.size:
            return await _removed(p2m, m.domid, done, errno, displaced)
    errno = Errno.OK if done << 3 == len(m.gfns) else Errno.ENOENT
    return await _removed(p2m, m.domid, done, errno, displaced)


async def _removed(
    p2m: P2m, domid: int, done: int, errno: int, displaced: list[FrameArray]
) -> P2mUpdated:
    if p2m.pod.count > p2m.pod.entry_count:
        big, small = p2m.pod.shrink_to_entries()
        for order, mfns in ((ORDER_2M, big), (0, small)):
            if mfns.size:
                await Call(p2m.home, PodCacheRequest(domid, order, pack(mfns)))
    mfns = np.concatenate([NO_FRAMES, *displaced])
    return P2mUpdated(done, -errno, pack(mfns))


async def _remove_frames(p2m: P2m, extents: FrameArray, order: int) -> tuple[int, int, FrameArray]:
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
    result, displaced = await p2m.set_entries(frames[:nr], invalid(nr), 0, P2mType.INVALID)
    p2m.pod.entry_count -= int(np.count_nonzero(pod[: result.nr_done]))
    if result.nr_done < nr:
        errno = result.errno
    return result.nr_done >> order, errno, displaced


def _removal_errno(p2mt: P2mType) -> Errno:
    """guest_remove_page's verdict on an entry that is not ordinary RAM."""
    if p2mt in HOLE_TYPES:
        return Errno.ENOENT
    return Errno.EPERM if p2mt == P2mType.MMIO_DIRECT else Errno.EINVAL
