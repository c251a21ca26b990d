"""Operations of a script as the requests they stand for, and replies as results."""

from __future__ import annotations

from typing import Any

import numpy as np

from protocols import envelope
from protocols.domctl import DomctlCreateDomain, DomctlDestroyDomain, DomctlSetPagingMempoolSize
from protocols.frames import PAGE_SHIFT, pack
from protocols.memory import (
    MAPSPACE_GMFN,
    MAPSPACE_GMFN_RANGE,
    AddToPhysmap,
    DecreaseReservation,
    IncreaseReservation,
    NrDone,
    PopulatePhysmap,
    RemoveFromPhysmap,
    SetPodTarget,
)
from protocols.message import Message, Request
from protocols.p2m import P2mChangeType, P2mEntries, P2mGetEntry, P2mUpdated
from protocols.p2m_types import MemFlag
from protocols.script import Operation, OperationResult
from protocols.walk import Touch, Translations, WalkTranslate

Sent = tuple[str, Request[Any]]


def request_of(op: Operation, home: str) -> Sent:
    """(address, request) of an operation; ``home`` is the allocator of its domain's books."""
    step = 1 << op.order
    gfns = pack(np.arange(op.gfn, op.gfn + op.nr * step, step, dtype=np.uint64))
    if op.kind in {"get", "get_alloc", "set_type"}:
        return envelope.p2m(op.domid), _p2m_request(op, gfns)
    if op.kind in {"touch", "translate"}:
        walker = envelope.walker(op.domid, op.vcpu)
        if op.kind == "touch":
            return walker, Touch(op.domid, gfns, write=True, want_mfns=True)
        return walker, WalkTranslate(op.target, gfns)
    return home, _hypercall(op, gfns)


def _p2m_request(op: Operation, gfns: bytes) -> Request[Any]:
    if op.kind == "set_type":
        return P2mChangeType(op.domid, op.target, gfns)
    return P2mGetEntry(op.domid, gfns, alloc=op.kind == "get_alloc")


def _hypercall(op: Operation, gfns: bytes) -> Request[Any]:
    domid, order = op.domid, op.order
    match op.kind:
        case "populate":
            return PopulatePhysmap(domid, order, 0, gfns)
        case "mark_pod":
            return PopulatePhysmap(domid, order, MemFlag.POPULATE_ON_DEMAND, gfns)
        case "decrease":
            return DecreaseReservation(domid, order, gfns)
        case "increase":
            return IncreaseReservation(domid, order, op.nr, 0)
        case "move":
            space = MAPSPACE_GMFN if op.nr == 1 else MAPSPACE_GMFN_RANGE
            return AddToPhysmap(domid, space, op.gfn, op.target, op.nr)
        case "remove":
            return RemoveFromPhysmap(domid, op.gfn)
        case "pod_target":
            return SetPodTarget(domid, op.target)
        case "pool":
            return DomctlSetPagingMempoolSize(domid, op.target << PAGE_SHIFT)
        case "create":
            return DomctlCreateDomain(domid, op.target, op.nr, "explicit")
        case "destroy":
            return DomctlDestroyDomain(domid)
        case _:
            raise AssertionError(op.kind)


def result_of(reply: Message) -> OperationResult:
    """What an operation's reply says."""
    match reply:
        case NrDone():
            return OperationResult(nr_done=reply.nr_done)
        case P2mUpdated():
            return OperationResult(nr_done=reply.nr_done, rc=reply.rc)
        case P2mEntries():
            return OperationResult(mfns=reply.mfns, types=reply.types)
        case Translations():
            return OperationResult(mfns=reply.mfns)
        case _:
            return OperationResult(rc=getattr(reply, "rc"))  # noqa: B009 (Status or PodTarget)
