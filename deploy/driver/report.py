"""What a run leaves: the state of each domain, the host, the audit. The ``--json`` of launch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from protocols.control import LeafTable
from protocols.guest import GuestRan, GuestState
from services.spec.findings import AuditReport

SCHEMA = "shatterproof.launch/1"


@dataclass(slots=True)
class DomainStatus:
    """One domain as the run sees it. ``extents`` counts present leaves by order."""

    name: str
    domid: int
    memory_kib: int
    status: str = "defined"
    error: str | None = None
    extents: dict[int, int] = field(default_factory=dict[int, int])
    shatters: int = 0
    populate_calls: int = 0
    tot_pages: int = 0
    pod_entries: int = 0
    table: LeafTable | None = None
    operations: int = 0
    failed_calls: int = 0
    vcpus: dict[int, GuestState] = field(default_factory=dict[int, GuestState])

    def ran(self, ran: GuestRan) -> None:
        """Count what one of its vCPUs has done of its program."""
        self.operations += ran.nr_done
        self.failed_calls += ran.nr_failed
        self.vcpus[ran.vcpu] = ran.state

    def to_json(self) -> dict[str, Any]:
        """The domain's object in the report; ``program`` if a vCPU has run one."""
        states = [state for _, state in sorted(self.vcpus.items())]
        program = {
            "operations": self.operations,
            "failed_calls": self.failed_calls,
            "states": states,
        }
        return {
            "name": self.name,
            "domid": self.domid,
            "status": self.status,
            "error": self.error,
            "memory_kib": self.memory_kib,
            "tot_pages": self.tot_pages,
            "pod_entries": self.pod_entries,
            "extents": {str(order): nr for order, nr in sorted(self.extents.items()) if nr},
            "shatters": self.shatters,
            "populate_calls": self.populate_calls,
            **({"program": program} if states else {}),
        }


@dataclass(slots=True)
class RunReport:
    """Everything that launch prints."""

    domains: list[DomainStatus]
    host_total: int = 0
    host_free: int = 0
    audits: list[AuditReport] = field(default_factory=list[AuditReport])
    messages: dict[str, int] = field(default_factory=dict[str, int])
    elapsed_s: float = 0.0
    unknown_keys: tuple[tuple[str, str], ...] = ()

    @property
    def violations(self) -> list[str]:
        """One line each, all audits."""
        return [str(violation) for audit in self.audits for violation in audit.violations]

    @property
    def good(self) -> bool:
        """Whether every domain did what it was asked and every audit is clean."""
        return not self.violations and all(domain.error is None for domain in self.domains)

    def to_json(self) -> dict[str, Any]:
        """The report for machines; frames are 4 KiB; ``unknown_keys`` if there are any."""
        violations = self.violations
        last = self.audits[-1] if self.audits else None
        unknown = [{"source": source, "key": key} for source, key in self.unknown_keys]
        return {
            "schema": SCHEMA,
            "host": {
                "total": self.host_total,
                "free": self.host_free,
                "used": self.host_total - self.host_free,
            },
            "domains": [domain.to_json() for domain in self.domains],
            "audit": {
                "checked": sum(audit.checked for audit in self.audits),
                "violations": len(violations),
                "orphans": last.orphans if last is not None else 0,
                "m2p_bad": last.m2p_bad if last is not None else 0,
                "p2m_bad": last.p2m_bad if last is not None else 0,
                "details": violations,
            },
            "messages": dict(sorted(self.messages.items())),
            "elapsed_s": round(self.elapsed_s, 3),
            **({"unknown_keys": unknown} if unknown else {}),
        }
