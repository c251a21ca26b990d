"""The envelope: what travels on a link, and all that travels.

An address names a component, never an actor: ``toolstack/<job>``, ``allocator/<node>``,
``p2m/<domid>``, ``walker/<domid>.<vcpu>``, ``guest/<domid>.<vcpu>``; ``client/<n>`` is whoever
drives the run. A link is an ordered pair of addresses; both runtimes keep the order of one link and
promise nothing more.
``msg_id`` counts the envelopes of its source from 1; a reply repeats the id of its request in
``in_reply_to``, which is 0 on everything else.
"""

from __future__ import annotations

import msgspec

from protocols.registry import AnyMessage


class Envelope(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """One message on its way."""

    src: str
    dst: str
    msg_id: int
    in_reply_to: int
    body: AnyMessage


def toolstack(job: int) -> str:
    """Address of a build job's toolstack."""
    return f"toolstack/{job}"


def allocator(node: int) -> str:
    """Address of a NUMA node's allocator."""
    return f"allocator/{node}"


def p2m(domid: int) -> str:
    """Address of a domain's P2M."""
    return f"p2m/{domid}"


def walker(domid: int, vcpu: int) -> str:
    """Address of a vCPU's HAP walker."""
    return f"walker/{domid}.{vcpu}"


def guest(domid: int, vcpu: int) -> str:
    """Address of what a vCPU runs."""
    return f"guest/{domid}.{vcpu}"


CLIENT = "client/0"
