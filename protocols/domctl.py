"""Domain control (``__HYPERVISOR_domctl``), answered by the home allocator of the domain."""

from __future__ import annotations

from typing import Annotated

import msgspec

from protocols.memory import Status
from protocols.message import Count, Domid, Frames, Message, Request, ReturnCode, check_frames


class DomctlCreateDomain(Request[Status], frozen=True, tag="domctl_createdomain"):
    """XEN_DOMCTL_createdomain with max_mem and max_vcpus: an empty HAP domain.

    ``superpages``: populate policy of the domain. ``force_4k``: packed (gfn, nr) pairs that must
    be mapped by 4K whatever the policy.
    """

    domid: Domid
    max_pages: Count
    vcpus: Annotated[int, msgspec.Meta(ge=1, le=512)]
    superpages: Annotated[str, msgspec.Meta(pattern="^(explicit|opportunistic|off)$")]
    force_4k: Frames = b""

    def __post_init__(self) -> None:
        check_frames(self, "force_4k")
        if len(self.force_4k) % 16:
            msg = "field `force_4k`: expected (gfn, nr) pairs of u64"
            raise ValueError(msg)


class DomctlDestroyDomain(Request[Status], frozen=True, tag="domctl_destroydomain"):
    """XEN_DOMCTL_destroydomain: tables torn down, then every frame back to the heap."""

    domid: Domid


class DomctlSetPagingMempoolSize(
    Request[Status], frozen=True, tag="domctl_set_paging_mempool_size"
):
    """XEN_DOMCTL_set_paging_mempool_size, in bytes; no page multiple is -EINVAL."""

    domid: Domid
    size: Count


class DomainInfo(Message, frozen=True, tag="domain_info"):
    """XEN_DOMCTL_getdomaininfo: what the accounting says, in frames."""

    rc: ReturnCode
    tot_pages: Count
    max_pages: Count
    outstanding_claims: Count
    paging_pool_pages: Count


class DomctlGetDomainInfo(Request[DomainInfo], frozen=True, tag="domctl_getdomaininfo"):
    """XEN_DOMCTL_getdomaininfo."""

    domid: Domid
