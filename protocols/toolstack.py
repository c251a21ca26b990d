"""Jobs for the toolstack: build, run, balloon and destroy one domain.

``GuestConfig`` holds what an xl.cfg says that matters to memory; ``DomainResult`` is what ``xl``
would know afterwards.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from protocols.message import Count, Domid, Frame, Frames, Message, Order, Request, check_frames

MIB_PAGES = 256


class Vnode(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One virtual NUMA node: its physical node and size."""

    pnode: Annotated[int, msgspec.Meta(ge=0, le=254)]
    size_mib: Annotated[int, msgspec.Meta(ge=1)]


class GuestConfig(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The memory side of an xl.cfg; sizes in MiB as the file gives them."""

    name: str
    type: Annotated[str, msgspec.Meta(pattern="^(pvh|hvm)$")]
    memory_mib: Annotated[int, msgspec.Meta(ge=1)]
    maxmem_mib: Annotated[int, msgspec.Meta(ge=1)]
    vcpus: Annotated[int, msgspec.Meta(ge=1, le=512)] = 1
    shadow_memory_mib: int | None = None
    mmio_hole_mib: int | None = None
    vga: str = "none"
    videoram_mib: int = 0
    vnodes: tuple[Vnode, ...] = ()


class DomainResult(Message, frozen=True, tag="domain_result"):
    """How a job ended: an empty ``error`` means it did what was asked.

    ``populated`` counts the extents that populate_physmap was asked for and did, by order.
    """

    domid: Domid
    error: str
    populate_calls: Count = 0
    populated: dict[int, int] = {}  # noqa: RUF012 (msgspec copies the default)


class BuildDomain(Request[DomainResult], frozen=True, tag="build_domain"):
    """``xl create -p``: create, size the pool, build memory, special pages; left paused."""

    domid: Domid
    config: GuestConfig
    superpages: Annotated[str, msgspec.Meta(pattern="^(explicit|opportunistic|off)$")]
    paging: Annotated[str, msgspec.Meta(pattern="^(npt|ept|pae|x86_32)$")]
    claim: bool = True
    force_4k: Frames = b""

    def __post_init__(self) -> None:
        check_frames(self, "force_4k")


class DestroyDomain(Request[DomainResult], frozen=True, tag="destroy_domain"):
    """``xl destroy``."""

    domid: Domid


class BalloonDomain(Request[DomainResult], frozen=True, tag="balloon_domain"):
    """The guest's balloon driver gives back (``down``) or asks for the extents at these gfns."""

    domid: Domid
    down: bool
    order: Order
    gfns: Frames

    def __post_init__(self) -> None:
        check_frames(self, "gfns")


class PunchDomain(Request[DomainResult], frozen=True, tag="punch_domain"):
    """4K updates inside superpages. ``mode``: decrease, refill, retype or move.

    decrease leaves a hole at each gfn, refill populates it again, retype makes the page ram_ro,
    move sends it to the gfn of the same index in ``targets``.
    """

    domid: Domid
    mode: Annotated[str, msgspec.Meta(pattern="^(decrease|refill|retype|move)$")]
    gfns: Frames
    targets: Frames = b""

    def __post_init__(self) -> None:
        check_frames(self, "gfns", "targets")


class TouchDomain(Request[DomainResult], frozen=True, tag="touch_domain"):
    """Guest accesses: the stream is dealt out to the walkers of the domain's vCPUs."""

    domid: Domid
    vcpus: Annotated[int, msgspec.Meta(ge=1, le=512)]
    first_gfn: Frame
    nr: Count
    stride: Annotated[int, msgspec.Meta(ge=1)]
    pattern: Annotated[str, msgspec.Meta(pattern="^(sequential|random)$")]
    seed: Count
    write: bool
