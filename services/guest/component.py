"""A vCPU of a guest: runs its program, one access or hypercall after the other."""

from __future__ import annotations

from protocols import envelope
from protocols.errno import Errno
from protocols.frames import pack
from protocols.guest import GuestOperation, GuestRan, GuestState, LoadProgram, RunGuest
from protocols.memory import DecreaseReservation, NrDone, PopulatePhysmap, Status
from protocols.message import Request
from protocols.walk import GuestAccess
from services.component.component import Component, handles
from services.component.context import Context
from services.component.traps import Call
from services.guest.program import (
    ACCESS_BATCH,
    ACCESSES,
    HYPERCALLS,
    accesses,
    extents,
    nr_accesses,
    nr_hypercalls,
)


class Guest(Component):
    """Where the vCPU is in its program: the operation, its turn, and how much of it is done."""

    def __init__(self, context: Context, domid: int, vcpu: int, nr_nodes: int) -> None:
        super().__init__(context)
        self.domid = domid
        self.vcpu = vcpu
        self._home = envelope.allocator(domid % nr_nodes)
        self._walker = envelope.walker(domid, vcpu)
        self._runs = False
        self._program: list[GuestOperation] = []
        self._state: GuestState = "blocked"
        self._pc = 0
        self._turn = 0
        self._at = 0

    @handles(LoadProgram)
    async def load(self, m: LoadProgram) -> Status:
        """A new kernel: whatever ran before is gone."""
        if self._runs:
            return Status(-Errno.EBUSY)
        self._program = list(m.program)
        self._state = "running"
        self._next()
        self._pc = 0
        return Status(0)

    @handles(RunGuest)
    async def run(self, m: RunGuest) -> GuestRan:
        """Operation by operation, until the program blocks or the bound is met."""
        assert not self._runs, f"{self.context.name}: two runs of domid {self.domid} at once"
        self._runs = True
        done = failed = 0
        while self._state == "running" and done < m.operations:
            if self._pc == len(self._program):
                self._state = "blocked"
                break
            op = self._program[self._pc]
            if op.code in ACCESSES:
                done += await self._access(op, m.operations - done)
            elif op.code in HYPERCALLS:
                failed += not await self._hypercall(op)
                done += 1
            else:
                self._pause(op)
        self._runs = False
        return GuestRan(self.domid, self.vcpu, done, failed, self._state)

    def _next(self) -> None:
        self._pc += 1
        self._turn = self._at = 0

    def _pause(self, op: GuestOperation) -> None:
        """Sleep, block or power off; no time passes here, so a sleep is over at once."""
        if op.code == "b":
            self._state = "blocked"
        elif op.code == "x":
            self._state = "shutdown"
        else:
            self._next()

    async def _access(self, op: GuestOperation, most: int) -> int:
        """The next accesses of the operation; how many."""
        turns = {"l": op.d, "L": self._turn + 1}.get(op.code, 1)
        total = nr_accesses(op)
        if self._turn >= turns or not total:
            self._next()
            return 0
        nr = min(total - self._at, most, ACCESS_BATCH)
        gfns = pack(accesses(op, self._at, nr))
        await Call(self._walker, GuestAccess(self.domid, gfns, op.code != "r"))
        self._at += nr
        if self._at == total:
            self._at = 0
            self._turn += 1
        return nr

    async def _hypercall(self, op: GuestOperation) -> bool:
        """The next hypercall of the operation; whether it did all of it."""
        order, gfns = extents(op, self._at)
        call: Request[NrDone]
        if op.code in "dD":
            call = DecreaseReservation(self.domid, order, pack(gfns), self.domid)
        else:
            call = PopulatePhysmap(self.domid, order, 0, pack(gfns), self.domid)
        reply = await Call(self._home, call)
        self._at += 1
        if self._at >= nr_hypercalls(op):
            self._next()
        return reply.nr_done == gfns.size
