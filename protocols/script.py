"""A client's script: hypercalls issued one after the other, as stress campaigns run them.

``Operation`` is data that a person can read and a shrinker can drop: it names one hypercall with
the few numbers that matter. The toolstack that runs the script turns it into the real request.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from protocols.message import Domid, Frame, Message, Order, Request

OperationKind = Literal[
    "populate",
    "decrease",
    "increase",
    "mark_pod",
    "pod_target",
    "move",
    "remove",
    "set_type",
    "get",
    "get_alloc",
    "touch",
    "translate",
    "pool",
    "create",
    "destroy",
]


class Operation(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One hypercall or guest access. Which fields count depends on ``kind``.

    populate, decrease, mark_pod: ``nr`` extents of ``order`` from ``gfn``. increase: ``nr``
    extents. move: add_to_physmap of ``nr`` pages from ``gfn`` to ``target``. remove: the page at
    ``gfn``. set_type: ``nr`` gfns get the p2m type ``target``. get, get_alloc: look-up of ``nr``
    gfns, the second populating PoD. touch: vCPU ``vcpu`` writes to ``nr`` gfns. translate: walker
    ``vcpu`` of ``domid`` reads the tables of domain ``target``. pool: paging pool of ``target``
    pages. pod_target: ``target`` pages. create: a domain of at most ``target`` pages with ``nr``
    vCPUs. destroy.
    """

    kind: OperationKind
    domid: Domid
    gfn: Frame = 0
    nr: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 1
    order: Order = 0
    target: Frame = 0
    vcpu: Annotated[int, msgspec.Meta(ge=0, le=511)] = 0


class OperationResult(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What the hypercall returned: ``nr_done`` where it counts, else 0 or -errno in ``rc``.

    ``mfns`` are packed u64 and ``types`` u8, for look-ups and accesses, one a gfn.
    """

    nr_done: int = 0
    rc: int = 0
    mfns: bytes = b""
    types: bytes = b""


class ScriptDone(Message, frozen=True, tag="script_done"):
    """The results of a script, one an operation."""

    results: list[OperationResult]


class RunScript(Request[ScriptDone], frozen=True, tag="run_script"):
    """Issue the operations in order, each when the one before has been answered."""

    operations: Annotated[list[Operation], msgspec.Meta(max_length=1 << 16)]


COUNTED: Final = frozenset({"populate", "decrease", "increase", "mark_pod"})
"""Kinds that answer with ``nr_done`` and never with an errno."""
