"""The whole state of a P2M, for audit, dump and report."""

from __future__ import annotations

import numpy as np

from protocols.control import LeafTable, P2mSnapshotReply, SnapshotP2m
from protocols.frames import pack
from services.component.component import handles
from services.p2m.domain import P2mDomain
from services.p2m.entry import bits_63_52, flags_low12
from services.p2m.lookup import LevelScan
from services.p2m.table import P2mTable


class Snapshots(P2mDomain):
    """What an operator asks."""

    @handles(SnapshotP2m)
    async def snapshot(self, m: SnapshotP2m) -> P2mSnapshotReply:
        """The whole state, for audit, dump and report."""
        table = self._table
        if table is None:
            nothing = LeafTable(m.domid, b"", b"", b"", b"", b"", b"")
            return P2mSnapshotReply(nothing, b"", b"", 0, 0, b"", 0, {}, {}, 0, 0, [])
        scans = table.scan()
        nothing = LeafTable(m.domid, b"", b"", b"", b"", b"", b"")
        return P2mSnapshotReply(
            leaf_table(table, scans) if m.leaves else nothing,
            pack(table.table_mfns(scans)),
            pack(table.pool_mfns()),
            table.pool_free,
            self.pod.entry_count,
            pack(self.pod.frames()),
            self._outstanding_flushes + table.pool_outstanding,
            table.extents(scans),
            dict(self._shatters),
            self._nr_updates,
            max(0, table.max_mapped_pfn),
            table.audit(),
        )


def leaf_table(table: P2mTable, scans: list[LevelScan] | None = None) -> LeafTable:
    """The leaves as they travel; ``mfns`` is the frame field as it stands in the entry."""
    leaves = table.leaves(scans)
    frames = (leaves.entries.astype(np.uint64) & np.uint64(table.geometry.frame_mask)) >> 12
    return LeafTable(
        table.domid,
        pack(leaves.gfns),
        pack(frames),
        leaves.orders.tobytes(),
        leaves.types.tobytes(),
        flags_low12(leaves.entries).tobytes(),
        bits_63_52(leaves.entries).tobytes(),
    )
