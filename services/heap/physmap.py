"""add_to_physmap and remove_from_physmap: pages that move or leave without being freed.

Source of the rules: xenmem_add_to_physmap_one and xenmem_remove_from_physmap, Xen 4.17.
"""

from __future__ import annotations

import numpy as np

from protocols import envelope
from protocols.errno import Errno
from protocols.frames import FRAME_MAX, INVALID_FRAME, pack, unpack
from protocols.memory import (
    MAPSPACE_GMFN,
    MAPSPACE_GMFN_RANGE,
    AddToPhysmap,
    RemoveFromPhysmap,
    Status,
)
from protocols.p2m import P2mGetEntry, P2mMove, P2mUnmap
from protocols.p2m_types import RAM_TYPES, P2mType
from services.component.component import handles
from services.component.traps import Acquire, Call, Preempt
from services.heap.accounts import DomainBook
from services.heap.node import Node

RANGE_SLICE = 16
"""Pages of a gmfn_range between preemption points."""


class Physmap(Node):
    """Pages that change their place."""

    @handles(AddToPhysmap)
    async def add_to_physmap(self, m: AddToPhysmap) -> Status:
        """XENMEM_add_to_physmap."""
        return Status(-await add(self, m))

    @handles(RemoveFromPhysmap)
    async def remove_from_physmap(self, m: RemoveFromPhysmap) -> Status:
        """XENMEM_remove_from_physmap."""
        return Status(-await remove(self, m))


async def add(allocator: Node, m: AddToPhysmap) -> Errno:
    """Move the page at ``idx`` to ``gpfn``; a range moves page by page and can be preempted.

    A range whose destination overlaps its source from above runs backwards.
    """
    book = allocator.living(m.domid)
    if book is None:
        return Errno.ESRCH
    if m.space not in {MAPSPACE_GMFN, MAPSPACE_GMFN_RANGE}:
        return Errno.ENOSYS
    size = m.size if m.space == MAPSPACE_GMFN_RANGE else 1
    if max(m.idx, m.gpfn) + size - 1 > FRAME_MAX:
        return Errno.EOVERFLOW
    backwards = m.idx < m.gpfn < m.idx + size
    await Acquire(book.lock, exclusive=False)
    try:
        if book.dying:
            return Errno.ESRCH
        for step in range(size):
            if step and step % RANGE_SLICE == 0:
                await Preempt(step)
                if book.dying:
                    return Errno.EINVAL
            offset = size - 1 - step if backwards else step
            errno = await _move(allocator, book, m.idx + offset, m.gpfn + offset)
            if errno:
                return errno
        return Errno.OK
    finally:
        book.lock.release()


async def _move(allocator: Node, book: DomainBook, src: int, dst: int) -> Errno:
    address = envelope.p2m(book.domid)
    found = await Call(address, P2mGetEntry(book.domid, pack([src])))
    mfn = unpack(found.mfns)
    if P2mType(found.types[0]) not in {P2mType.RAM_RW, P2mType.RAM_LOGDIRTY}:
        return Errno.EINVAL
    if allocator.memory.local(mfn) and int(allocator.memory.frames.m2p(mfn)[0]) != src:
        return Errno.EXDEV
    if src == dst:
        return Errno.OK
    # The entry at src may have changed while we waited: the P2M checks the mfn again.
    reply = await Call(address, P2mMove(book.domid, src, dst, int(mfn[0])))
    if reply.rc:
        return Errno(-reply.rc)
    displaced = unpack(reply.displaced)
    # Before anything is awaited: whoever takes the page away from dst meanwhile must come later.
    await allocator.set_m2p(mfn, np.array([dst], dtype=np.uint64), 0, book.domid)
    await allocator.free_frames(displaced, 0, book.domid)
    book.unassign(int(displaced.size))
    return Errno.OK


async def remove(allocator: Node, m: RemoveFromPhysmap) -> Errno:
    """Unmap one page; the frame stays owned, with an invalid M2P word: an orphan."""
    book = allocator.living(m.domid)
    if book is None:
        return Errno.ESRCH
    await Acquire(book.lock, exclusive=False)
    try:
        if book.dying:
            return Errno.ESRCH
        address = envelope.p2m(m.domid)
        found = await Call(address, P2mGetEntry(m.domid, pack([m.gpfn])))
        mfn = int(unpack(found.mfns)[0])
        if mfn == INVALID_FRAME or P2mType(found.types[0]) not in RAM_TYPES:
            return Errno.ENOENT
        reply = await Call(address, P2mUnmap(m.domid, m.gpfn, mfn))
        if reply.rc:
            return Errno(-reply.rc)
        await allocator.set_m2p(unpack(reply.displaced), None, 0, m.domid)
        return Errno.OK
    finally:
        book.lock.release()
