"""Guest programs: what a vCPU does, operation by operation, and how far it came.

The operations are those of the small kernel that the captured guests of ``tests/data`` ran.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

import msgspec

from protocols.memory import Status
from protocols.message import Count, Domid, Message, Request

PROGRAM_MAX: Final = 4096
"""Operations of one program."""

OpCode: TypeAlias = Literal["w", "r", "z", "d", "D", "p", "P", "L", "l", "s", "b", "x"]
Word: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
GuestState: TypeAlias = Literal["running", "blocked", "shutdown"]


class GuestOperation(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One operation; addresses in bytes, below 4 GiB.

    w, r: write, read a dword every ``c`` bytes of [``a``, ``b``). z: zero [``a``, ``b``). d, p:
    decrease_reservation, populate_physmap of ``b`` extents of order ``d`` at gfns ``a``,
    ``a`` + ``c``, ..., one a hypercall. D, P: of ``b`` neighbouring extents of order ``c`` from
    gfn ``a`` in one hypercall. l: ``d`` times w. L: w without end. s: sleep. b: block. x: power
    off.
    """

    code: OpCode
    a: Word = 0
    b: Word = 0
    c: Word = 0
    d: Word = 0


class LoadProgram(Request[Status], frozen=True, tag="load_program"):
    """The domain builder has put a kernel there; the vCPU will start at its first operation."""

    domid: Domid
    program: Annotated[list[GuestOperation], msgspec.Meta(max_length=PROGRAM_MAX)]


class GuestRan(Message, frozen=True, tag="guest_ran"):
    """Where a vCPU stands.

    ``nr_done`` counts the accesses and hypercalls of this run, ``nr_failed`` those among the
    hypercalls that did less than they were asked for.
    """

    domid: Domid
    vcpu: Annotated[int, msgspec.Meta(ge=0, le=511)]
    nr_done: Count
    nr_failed: Count
    state: GuestState


class RunGuest(Request[GuestRan], frozen=True, tag="run_guest"):
    """Go on with the program for at most so many accesses and hypercalls."""

    domid: Domid
    operations: Annotated[int, msgspec.Meta(ge=1, le=1 << 62)]
