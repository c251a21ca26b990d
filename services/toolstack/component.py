"""The toolstack of one build job: libxl and libxenguest as far as memory goes.

Asks; never touches a frame. A build that fails destroys what it made, so that its frames come back
whatever the reason.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

import numpy as np

from protocols import envelope
from protocols.domctl import (
    DomctlCreateDomain,
    DomctlDestroyDomain,
    DomctlSetPagingMempoolSize,
)
from protocols.errno import Errno
from protocols.frames import PAGE_SHIFT, FrameArray, pack, unpack
from protocols.memory import (
    MAPSPACE_GMFN,
    AddToPhysmap,
    ClaimPages,
    DecreaseReservation,
    Multicall,
    PopulatePhysmap,
    SetPodTarget,
)
from protocols.p2m import P2mChangeType, P2mGetEntry
from protocols.p2m_types import P2mType
from protocols.script import OperationResult, RunScript, ScriptDone
from protocols.toolstack import (
    BalloonDomain,
    BuildDomain,
    DestroyDomain,
    DomainResult,
    PunchDomain,
    TouchDomain,
)
from protocols.walk import Touch
from services.component.component import Component, handles
from services.component.context import Context
from services.component.traps import Call, CallAll
from services.toolstack.access import access_stream
from services.toolstack.builder import (
    BuildPlan,
    Ladder,
    PopulateStep,
    Step,
    TouchStep,
    plan_build,
)
from services.toolstack.script import request_of, result_of

TOUCH_BATCH: Final = 1 << 16
"""Accesses of one vCPU in one message."""
BALLOON_BATCH: Final = 1024
"""Extents of one balloon call, as the Linux balloon driver's frame list holds."""
MULTICALL_MOVES: Final = 64


class BuildFailedError(Exception):
    """A step of a build failed; the text says which and why."""


class Toolstack(Component):
    """Builds, balloons and destroys the domain of one job."""

    def __init__(self, context: Context, nr_nodes: int) -> None:
        super().__init__(context)
        self._nr_nodes = nr_nodes

    def _home(self, domid: int) -> str:
        return envelope.allocator(domid % self._nr_nodes)

    # -- build -------------------------------------------------------------------------------

    @handles(BuildDomain)
    async def build(self, m: BuildDomain) -> DomainResult:
        """libxl__domain_build: all of it, or nothing stays."""
        build = _Build(m, self._home(m.domid))
        try:
            await build.run()
        except BuildFailedError as error:
            if build.created:
                await Call(build.home, DomctlDestroyDomain(m.domid))
            return DomainResult(m.domid, str(error), build.calls, dict(build.populated))
        return DomainResult(m.domid, "", build.calls, dict(build.populated))

    @handles(RunScript)
    async def run_script(self, m: RunScript) -> ScriptDone:
        """A client of a stress campaign: one hypercall after the other."""
        results: list[OperationResult] = []
        for op in m.operations:
            address, request = request_of(op, self._home(op.domid))
            results.append(result_of(await Call(address, request)))
        return ScriptDone(results)

    @handles(DestroyDomain)
    async def destroy(self, m: DestroyDomain) -> DomainResult:
        """libxl_domain_destroy."""
        reply = await Call(self._home(m.domid), DomctlDestroyDomain(m.domid))
        return DomainResult(m.domid, errno_text("destroydomain", reply.rc))

    # -- what a guest does -------------------------------------------------------------------

    @handles(BalloonDomain)
    async def balloon(self, m: BalloonDomain) -> DomainResult:
        """The guest's balloon driver: extents in calls of its frame list's length."""
        gfns = unpack(m.gfns)
        calls = 0
        populated: Counter[int] = Counter()
        for first in range(0, gfns.size, BALLOON_BATCH):
            part = gfns[first : first + BALLOON_BATCH]
            if m.down:
                down = DecreaseReservation(m.domid, m.order, pack(part), m.domid)
                done = (await Call(self._home(m.domid), down)).nr_done
            else:
                up = PopulatePhysmap(m.domid, m.order, 0, pack(part), m.domid)
                done = (await Call(self._home(m.domid), up)).nr_done
                calls += 1
                populated[m.order] += done
            if done < part.size:
                verb = "decrease_reservation" if m.down else "populate_physmap"
                error = f"{verb}: gfn {int(part[done]):#x} order {m.order}: {done} of {part.size}"
                return DomainResult(m.domid, error, calls, dict(populated))
        return DomainResult(m.domid, "", calls, dict(populated))

    @handles(PunchDomain)
    async def punch(self, m: PunchDomain) -> DomainResult:
        """4K updates inside superpages, by the call that each mode stands for."""
        gfns = unpack(m.gfns)
        if m.mode == "retype":
            request = P2mChangeType(m.domid, P2mType.RAM_RO, m.gfns)
            reply = await Call(envelope.p2m(m.domid), request)
            return DomainResult(m.domid, errno_text("p2m_change_type", reply.rc))
        if m.mode == "move":
            return await self._move(m.domid, gfns, unpack(m.targets))
        return await self.balloon(BalloonDomain(m.domid, m.mode == "decrease", 0, m.gfns))

    async def _move(self, domid: int, gfns: FrameArray, targets: FrameArray) -> DomainResult:
        """add_to_physmap of single pages, batched in multicalls as a guest kernel would."""
        pairs = list(zip(gfns.tolist(), targets.tolist(), strict=True))
        for first in range(0, len(pairs), MULTICALL_MOVES):
            part = pairs[first : first + MULTICALL_MOVES]
            moves = [AddToPhysmap(domid, MAPSPACE_GMFN, gfn, target) for gfn, target in part]
            reply = await Call(self._home(domid), Multicall(list(moves)))
            for (gfn, _), rc in zip(part, reply.results, strict=True):
                if rc:
                    return DomainResult(domid, errno_text(f"add_to_physmap: gfn {gfn:#x}", rc))
        return DomainResult(domid, "")

    @handles(TouchDomain)
    async def touch(self, m: TouchDomain) -> DomainResult:
        """Deal the access stream out to the walkers, a batch each at a time."""
        for first in range(0, m.nr, TOUCH_BATCH * m.vcpus):
            nr = min(m.nr - first, TOUCH_BATCH * m.vcpus)
            stream = access_stream(m, first, nr)
            calls = [
                (envelope.walker(m.domid, vcpu), Touch(m.domid, pack(part), m.write))
                for vcpu, part in enumerate(np.array_split(stream, m.vcpus))
                if part.size
            ]
            await CallAll(calls)
        return DomainResult(m.domid, "")


def errno_text(what: str, rc: int) -> str:
    """Empty for success, else ``what: ERRNO``."""
    return f"{what}: {Errno(-rc).name}" if rc else ""


class _Build:
    """One build under way."""

    def __init__(self, m: BuildDomain, home: str) -> None:
        self.home = home
        self.created = False
        self.calls = 0
        self.populated: Counter[int] = Counter()
        self._m = m
        self._plan: BuildPlan = plan_build(m.config, m.paging)

    async def run(self) -> None:
        """Domain create, pool, claim, PoD target, RAM, then the special pages."""
        m, plan = self._m, self._plan
        vcpus = m.config.vcpus
        create = DomctlCreateDomain(m.domid, plan.max_pages, vcpus, m.superpages, m.force_4k)
        self._check("createdomain", (await Call(self.home, create)).rc)
        self.created = True
        size = plan.pool_pages << PAGE_SHIFT
        pool = DomctlSetPagingMempoolSize(m.domid, size)
        self._check("set_paging_mempool_size", (await Call(self.home, pool)).rc)
        if m.claim:
            claim = ClaimPages(m.domid, plan.claim_pages)
            self._check("claim_pages", (await Call(self.home, claim)).rc)
        if plan.pod:
            target = SetPodTarget(m.domid, plan.claim_pages)
            self._check("set_pod_target", (await Call(self.home, target)).rc)
        await self._populate_ram()
        if m.claim:
            self._check("claim_pages", (await Call(self.home, ClaimPages(m.domid, 0))).rc)
        for step in plan.steps:
            await self._step(step)

    def _check(self, what: str, rc: int) -> None:
        if rc:
            raise BuildFailedError(errno_text(what, rc))

    def _ladder(self) -> Ladder:
        if self._m.superpages == "explicit":
            return Ladder(self._plan)
        return Ladder(self._plan, plain_4k=True)

    async def _populate_ram(self) -> None:
        ladder = self._ladder()
        while (request := ladder.next_request()) is not None:
            gfns = np.arange(
                request.first_gfn,
                request.first_gfn + (request.nr_extents << request.order),
                1 << request.order,
                dtype=np.uint64,
            )
            ladder.done(await self._populate(gfns, request.order, request.mem_flags))
        if ladder.failed is not None:
            raise BuildFailedError(f"populate_physmap: gfn {ladder.failed:#x}: ENOMEM")

    async def _populate(self, gfns: FrameArray, order: int, mem_flags: int) -> int:
        self.calls += 1
        request = PopulatePhysmap(self._m.domid, order, mem_flags, pack(gfns))
        done = (await Call(self.home, request)).nr_done
        if done:
            self.populated[order] += done
        return done

    async def _step(self, step: Step) -> None:
        domid = self._m.domid
        gfns = np.arange(step.first_gfn, step.first_gfn + step.nr, dtype=np.uint64)
        if isinstance(step, PopulateStep):
            done = await self._populate(gfns, 0, 0)
            if done < step.nr:
                raise BuildFailedError(f"populate_physmap: gfn {int(gfns[done]):#x}: ENOMEM")
        elif isinstance(step, TouchStep):
            look = P2mGetEntry(domid, pack(gfns), alloc=True)
            await Call(envelope.p2m(domid), look)
        else:
            retype = P2mChangeType(domid, P2mType.RAM_RW, pack(gfns))
            self._check("set_mem_type", (await Call(envelope.p2m(domid), retype)).rc)
