"""Entries written at the allocator's word, and guest_physmap_add_page."""

from __future__ import annotations

import numpy as np

from protocols.errno import Errno
from protocols.frames import FrameArray, bounds, expand, pack, unpack
from protocols.p2m import P2mAddPage, P2mSetEntry, P2mUpdated
from protocols.p2m_types import P2mType
from services.component.component import handles
from services.p2m.domain import P2mDomain
from services.p2m.kinds import IS_HOLE, IS_SPECIAL, NO_FRAMES
from services.p2m.table import SetResult


class Additions(P2mDomain):
    """p2m_set_entry and p2m_add_page."""

    @handles(P2mSetEntry)
    async def set_entry(self, m: P2mSetEntry) -> P2mUpdated:
        """p2m_set_entry for each extent."""
        gfns = unpack(m.gfns)

        async def body() -> P2mUpdated:
            result, displaced = await self.set_entries(gfns, unpack(m.mfns), m.order, m.p2mt)
            return P2mUpdated(result.nr_done, -result.errno, pack(displaced))

        return await self._update(gfns, m.order, body)

    @handles(P2mAddPage)
    async def add_page(self, m: P2mAddPage) -> P2mUpdated:
        """p2m_add_page: extents up to the first that meets a special page (-EPERM)."""
        return await self._update(unpack(m.gfns), m.order, lambda: self._add_page(m))

    async def _add_page(self, m: P2mAddPage) -> P2mUpdated:
        gfns, mfns = unpack(m.gfns), unpack(m.mfns)
        inside = self.inside(gfns, m.order)
        nr, errno, pod_frames = self._addable(gfns[:inside], m.order)
        if nr == inside < gfns.size:
            errno = Errno.EINVAL
        partial = 0

        def settle(result: SetResult) -> None:
            nonlocal partial, errno
            if pod_frames.size:
                self.pod.entry_count -= self._no_longer_pod(pod_frames)
            done = result.nr_done
            if done < nr:
                errno = result.errno
                partial = self._mapped_prefix(int(gfns[done]), int(mfns[done]), m.order)

        result, displaced = await self.set_entries(
            gfns[:nr], mfns[:nr], m.order, P2mType.RAM_RW, settle
        )
        return P2mUpdated(result.nr_done, -errno, pack(displaced), partial)

    def _addable(self, gfns: FrameArray, order: int) -> tuple[int, Errno, FrameArray]:
        """(leading extents that meet nothing special, errno, gfns among them that are PoD)."""
        table = self.table
        if not gfns.size or bounds(gfns)[0] > table.max_mapped_pfn:
            return gfns.size, Errno.OK, NO_FRAMES
        _, types, orders = table.get(gfns)
        if bool(np.all(IS_HOLE[types] & (orders >= order))):
            return gfns.size, Errno.OK, NO_FRAMES
        frames = expand(gfns, order)
        _, types, _ = table.get(frames)
        special = np.flatnonzero(IS_SPECIAL[types])
        nr = int(special[0]) >> order if special.size else gfns.size
        pod = np.unique(frames[: nr << order][types[: nr << order] == P2mType.POPULATE_ON_DEMAND])
        return nr, Errno.EPERM if special.size else Errno.OK, pod

    def _mapped_prefix(self, gfn: int, mfn: int, order: int) -> int:
        """Leading frames of a failed extent that are mapped as asked."""
        step = np.arange(1 << order, dtype=np.uint64)
        found, _, _ = self.table.get(np.uint64(gfn) + step)
        wrong = np.flatnonzero(found != np.uint64(mfn) + step)
        return int(wrong[0]) if wrong.size else 1 << order

    def _no_longer_pod(self, gfns: FrameArray) -> int:
        _, types, _ = self.table.get(gfns)
        return int(np.count_nonzero(types != P2mType.POPULATE_ON_DEMAND))
