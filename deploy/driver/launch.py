"""Drive a scenario: every phase for all domains at once, then audit and report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np

from deploy.driver.audit import take_audit
from deploy.driver.report import DomainStatus, RunReport
from deploy.runtime import Runtime
from deploy.scenario.model import (
    Audit,
    Balloon,
    Build,
    Destroy,
    DomainSpec,
    Pause,
    Phase,
    Punch,
    Run,
    Scenario,
    Touch,
)
from protocols import envelope
from protocols.frames import ORDER_2M, pack
from protocols.guest import GuestRan, LoadProgram, RunGuest
from protocols.message import Message, Request
from protocols.toolstack import (
    BalloonDomain,
    BuildDomain,
    DestroyDomain,
    DomainResult,
    PunchDomain,
    TouchDomain,
)
from services.heap.host import HostConfig

PhaseHook = Callable[[str], None]
"""Told the name of each phase as it begins."""


class Launch:
    """One run of a scenario on a runtime."""

    def __init__(
        self,
        scenario: Scenario,
        config: HostConfig,
        runtime: Runtime,
        *,
        seed: int = 0,
        keep_tables: bool = False,
        on_phase: PhaseHook | None = None,
    ) -> None:
        self._scenario = scenario
        self._config = config
        self._runtime = runtime
        self._seed = seed
        self._keep_tables = keep_tables
        self._on_phase = on_phase
        self._specs = {spec.domid: spec for spec in scenario.domains}
        self._domains = {
            spec.domid: DomainStatus(spec.config.name, spec.domid, spec.config.memory_mib << 10)
            for spec in scenario.domains
        }
        self._touched = False
        self._loaded: set[tuple[int, int]] = set()

    def run(self) -> RunReport:
        """All phases, then the final audit."""
        report = RunReport(list(self._domains.values()))
        for number, phase in enumerate(self._scenario.phases):
            self._announce(type(phase).__name__.lower())
            if isinstance(phase, Pause):
                self._runtime.wait(phase.seconds)
            elif isinstance(phase, Audit):
                self._audit(report)
            else:
                self._run_phase(phase, number)
        self._announce("audit")
        self._audit(report)
        report.messages = dict(self._runtime.counts())
        return report

    def _announce(self, name: str) -> None:
        if self._on_phase is not None:
            self._on_phase(name)

    def _audit(self, report: RunReport) -> None:
        living = [domid for domid, domain in self._domains.items() if domain.status == "built"]
        walkers = [
            (domid, vcpu)
            for domid in living
            if self._touched
            for vcpu in range(self._specs[domid].config.vcpus)
        ]
        taken = take_audit(self._runtime, self._config, living, walkers)
        report.audits.append(taken.report)
        report.host_total = taken.host_total
        report.host_free = taken.host_free
        for snapshot in taken.p2ms:
            domain = self._domains[snapshot.table.domid]
            domain.extents = dict(snapshot.extents)
            domain.shatters = sum(snapshot.shatters.values())
            domain.pod_entries = snapshot.pod_entries
            if self._keep_tables:
                domain.table = snapshot.table
        for account in taken.accounts:
            if account.domid in self._domains:
                self._domains[account.domid].tot_pages = account.tot_pages

    def _run_phase(self, phase: Phase, number: int) -> None:
        wanted = "defined" if isinstance(phase, Build) else "built"
        domids = [domid for domid, domain in self._domains.items() if domain.status == wanted]
        if isinstance(phase, Touch):
            self._touched = True
        if isinstance(phase, Run):
            self._run_guests(phase, domids)
            return
        for step in self._requests(phase, domids, number):
            for message in self._runtime.run(step):
                self._settle(phase, cast("DomainResult", message))

    def _run_guests(self, phase: Run, domids: Sequence[int]) -> None:
        """All vCPUs that have a program, at once; each starts its own at its first run."""
        vcpus = [
            (domid, vcpu, program)
            for domid in domids
            for vcpu, program in enumerate(self._specs[domid].programs)
            if program
        ]
        self._touched |= bool(vcpus)
        fresh = [each for each in vcpus if each[:2] not in self._loaded]
        self._loaded.update(each[:2] for each in fresh)
        self._runtime.run(
            [
                (envelope.guest(domid, vcpu), LoadProgram(domid, list(program)))
                for domid, vcpu, program in fresh
            ]
        )
        run = [
            (envelope.guest(domid, vcpu), RunGuest(domid, phase.operations))
            for domid, vcpu, _ in vcpus
        ]
        for message in self._runtime.run(run):
            ran = cast("GuestRan", message)
            self._domains[ran.domid].ran(ran)

    def _settle(self, phase: Phase, result: DomainResult) -> None:
        domain = self._domains[result.domid]
        domain.populate_calls += result.populate_calls
        if result.error:
            domain.error = result.error
            if isinstance(phase, Build):
                domain.status = "failed"
        elif isinstance(phase, Build):
            domain.status = "built"
        elif isinstance(phase, Destroy):
            domain.status = "destroyed"
            domain.extents = {}

    def _requests(
        self, phase: Phase, domids: Sequence[int], number: int
    ) -> list[list[tuple[str, Request[Message]]]]:
        """The requests of a phase, in steps that wait for one another."""
        match phase:
            case Punch(mode="refill"):
                modes = ["decrease", "refill"]
            case Punch():
                modes = [phase.mode]
            case _:
                modes = [""]
        return [
            [
                (envelope.toolstack(domid), self._request(phase, domid, mode, number))
                for domid in domids
            ]
            for mode in modes
        ]

    def _request(self, phase: Phase, domid: int, mode: str, number: int) -> Request[Message]:
        spec = self._specs[domid]
        match phase:
            case Build():
                return self._build(spec)
            case Destroy():
                return DestroyDomain(domid)
            case Touch():
                seed = (self._seed * 1_000_003 + number * 1009 + domid) & 0xFFFFFFFF
                vcpus = spec.config.vcpus
                return TouchDomain(
                    domid, vcpus, phase.first_gfn, phase.nr, phase.stride, phase.pattern, seed,
                    phase.write,
                )  # fmt: skip
            case Punch():
                gfns, targets = punch_gfns(phase)
                return PunchDomain(domid, mode, gfns, targets)
            case Balloon():
                step = 1 << phase.order
                last = phase.first_gfn + phase.pages // step * step
                gfns = pack(np.arange(phase.first_gfn, last, step, dtype=np.uint64))
                return BalloonDomain(domid, phase.direction == "down", phase.order, gfns)
            case Pause() | Audit() | Run():
                raise AssertionError(f"{phase} asks nothing of a domain")

    def _build(self, spec: DomainSpec) -> BuildDomain:
        ranges = [word for gfn_nr in spec.force_4k for word in gfn_nr]
        return BuildDomain(
            spec.domid,
            spec.config,
            spec.superpages,
            self._config.paging,
            # A claim is host-wide in Xen; with several allocators nobody could promise it.
            self._config.nr_nodes == 1,
            pack(ranges),
        )


def punch_gfns(phase: Punch) -> tuple[bytes, bytes]:
    """The gfns that a punch updates, and where mode ``move`` sends them."""
    size = 1 << ORDER_2M
    bases = phase.first_gfn // size * size + size * np.arange(phase.superpages, dtype=np.uint64)
    inside = (phase.offset + np.arange(phase.per_superpage, dtype=np.uint64)) % np.uint64(size)
    gfns = (bases[:, None] + inside).reshape(-1)
    if phase.mode != "move":
        return pack(gfns), b""
    return pack(gfns), pack(phase.target_gfn + np.arange(gfns.size, dtype=np.uint64))
