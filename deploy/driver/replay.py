"""Feed the p2m updates of a real xentrace to P2M components, in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from deploy.runtime import Runtime
from protocols import envelope
from protocols.control import LeafTable, P2mSnapshotReply, SnapshotP2m
from protocols.errno import BadInputError, Errno, ShatterproofError
from protocols.frames import EXTENTS_MAX, FrameArray, pack
from protocols.memory import Status
from protocols.message import Message, Request
from protocols.p2m import P2mCreate, P2mPoolAdd, P2mSetEntry, P2mUpdated
from protocols.p2m_types import P2mType
from services.trace.xentrace import P2mUpdates

Numbers = npt.NDArray[np.uint32]

SCHEMA = "shatterproof.replay/1"
POOL_START = 1 << 38
"""Page-table frames of a replay: far above any frame of a real host, below the 40-bit limit."""


class ReplayError(ShatterproofError):
    """An update of the trace that the P2M refused."""


@dataclass(slots=True)
class ReplayedDomain:
    """One domain of the trace after its last update."""

    domid: int
    updates: int
    extents: dict[int, int]
    pod_entries: int
    shatters: dict[int, int]
    table: LeafTable

    def to_json(self) -> dict[str, Any]:
        """The domain's object in the report."""
        return {
            "domid": self.domid,
            "updates": self.updates,
            "extents": {str(order): nr for order, nr in sorted(self.extents.items()) if nr},
            "pod_entries": self.pod_entries,
            "shatters": {str(order): nr for order, nr in sorted(self.shatters.items())},
        }


@dataclass(slots=True)
class ReplayReport:
    """Everything that replay prints."""

    source: str
    updates: int
    of: int
    domains: list[ReplayedDomain] = field(default_factory=list[ReplayedDomain])
    problems: list[str] = field(default_factory=list[str])
    messages: dict[str, int] = field(default_factory=dict[str, int])
    elapsed_s: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The report for machines."""
        return {
            "schema": SCHEMA,
            "source": self.source,
            "updates": self.updates,
            "updates_in_trace": self.of,
            "domains": [domain.to_json() for domain in self.domains],
            "problems": self.problems,
            "messages": dict(sorted(self.messages.items())),
            "elapsed_s": round(self.elapsed_s, 3),
        }


def replay(
    updates: P2mUpdates, source: str, runtime: Runtime, limit: int | None = None
) -> ReplayReport:
    """Apply the first ``limit`` updates (all without a limit), every domain in its own P2M.

    Raises:
        BadInputError: a p2m type that Xen 4.17 does not have.
        ReplayError: an update that the tables refuse.
    """
    nr = int(updates.gfn.size) if limit is None else min(limit, int(updates.gfn.size))
    domid, order = updates.domid[:nr], updates.order[:nr]
    gfn, mfn, p2mt = updates.gfn[:nr], updates.mfn[:nr], updates.p2mt[:nr]
    unknown = np.flatnonzero(p2mt > max(P2mType))
    if unknown.size:
        raise BadInputError(
            f"{source}: p2m update {unknown[0]}: type {p2mt[unknown[0]]} is none of Xen's 0 to 15"
        )
    report = ReplayReport(source, nr, int(updates.gfn.size))
    for number in np.unique(domid).tolist():
        mine = np.flatnonzero(domid == number)
        _create(runtime, number, gfn[mine], order[mine])
        requests = _requests(number, gfn[mine], mfn[mine], order[mine], p2mt[mine])
        _check(runtime.run(requests), requests)
        (reply,) = runtime.run([(envelope.p2m(number), SnapshotP2m(number))])
        snapshot = cast("P2mSnapshotReply", reply)
        report.problems += snapshot.problems
        report.domains.append(
            ReplayedDomain(
                number, int(mine.size), dict(snapshot.extents), pod_frames(snapshot.table),
                dict(snapshot.shatters), snapshot.table,
            )
        )  # fmt: skip
    report.messages = dict(runtime.counts())
    return report


def pod_frames(table: LeafTable) -> int:
    """Frames under PoD entries; a bare update keeps no count of them."""
    orders = np.frombuffer(table.orders, dtype=np.uint8).astype(np.uint64)
    types = np.frombuffer(table.types, dtype=np.uint8)
    return int((np.uint64(1) << orders)[types == P2mType.POPULATE_ON_DEMAND].sum())


def _create(runtime: Runtime, domid: int, gfn: FrameArray, order: Numbers) -> None:
    """An empty P2M with page-table frames for the worst that these updates can need."""
    nr = 1 + sum(int(np.unique(gfn[order < span] >> np.uint64(span)).size) for span in (9, 18, 27))
    pool = np.arange(POOL_START, POOL_START + nr, dtype=np.uint64)
    address = envelope.p2m(domid)
    create = P2mCreate(domid, "npt", [18, 9, 0], 0, pack(pool[:1]))
    _check_status(runtime.run([(address, create)]), domid)
    for first in range(1, nr, EXTENTS_MAX):
        add = P2mPoolAdd(domid, pack(pool[first : first + EXTENTS_MAX]))
        _check_status(runtime.run([(address, add)]), domid)


def _check_status(replies: Sequence[Message], domid: int) -> None:
    for reply in replies:
        rc = cast("Status", reply).rc
        if rc:
            raise ReplayError(f"domid {domid}: no P2M: {Errno(-rc).name}")


def _requests(
    domid: int, gfn: FrameArray, mfn: FrameArray, order: Numbers, p2mt: Numbers
) -> list[tuple[str, Request[Message]]]:
    """The updates as messages: neighbours of one order and type go together."""
    breaks = np.flatnonzero((np.diff(order) != 0) | (np.diff(p2mt) != 0)) + 1
    edges = [0, *breaks.tolist(), int(gfn.size)]
    requests: list[tuple[str, Request[Message]]] = []
    for start, end in pairwise(edges):
        for first in range(start, end, EXTENTS_MAX):
            part = slice(first, min(first + EXTENTS_MAX, end))
            update = P2mSetEntry(
                domid, int(order[start]), int(p2mt[start]), pack(gfn[part]), pack(mfn[part])
            )
            requests.append((envelope.p2m(domid), cast("Request[Message]", update)))
    return requests


def _check(replies: Sequence[Message], requests: Sequence[tuple[str, Request[Message]]]) -> None:
    for reply, (_, request) in zip(replies, requests, strict=True):
        updated, update = cast("P2mUpdated", reply), cast("P2mSetEntry", request)
        if updated.rc:
            gfn = int(np.frombuffer(update.gfns, dtype="<u8")[updated.nr_done])
            raise ReplayError(
                f"domid {update.domid}: gfn {gfn:#x} order {update.order}: "
                f"{Errno(-updated.rc).name}"
            )
