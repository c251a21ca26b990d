"""The domain builder: where a guest's memory goes, and in which extents it is asked for.

Pure. ``plan_build`` lays the memory out as libxl does (``libxl__build_hvm``,
``libxl__vnuma_build_vmemrange_hvm``); ``Ladder`` steps through ``meminit_hvm``
(tools/libs/guest/xg_dom_x86.c): 1 GiB extents, else 2 MiB ones at most four a call, else 4 KiB
ones, each rung going on from where the one above stopped. A component drives it: it sends what
``next_request`` says and reports the extents that were done. ``BuildPlan.steps`` is what follows
once all RAM is there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from protocols.frames import ORDER_1G, ORDER_2M, ORDER_4K, ORDER_4M
from protocols.p2m_types import MemFlag
from protocols.toolstack import MIB_PAGES

if TYPE_CHECKING:
    from protocols.toolstack import GuestConfig

FOUR_GIB: Final = 0x100000
"""In frames, as every number below."""
PVH_HOLE_START: Final = 0xFC000
HVM_HOLE_START: Final = 0xF0000
LOW_EXTENTS: Final = 0xA0
"""What an HVM guest has below the VGA hole, populated by one call of its own."""
VGA_HOLE_END: Final = 0xC0
VGA_HOLE_PAGES: Final = VGA_HOLE_END - LOW_EXTENTS
MAXMEM_SLACK: Final = MIB_PAGES
"""LIBXL_MAXMEM_CONSTANT, 1024 KiB: room for the special pages and the video ROM."""

KERNEL_GFN: Final = 0x100
PVH_KERNEL_PAGES: Final = 8
"""A small kernel and its start info: gfns 0x100-0x107 hold the data in the PoD captures."""
HVM_KERNEL_PAGES: Final = 0x34 + 0x40 + 1
"""hvmloader of Xen 4.17 (0x33f40 bytes in memory), SeaBIOS (256 KiB) and the start info."""

ACPI_GFN: Final = 0xFC000
ACPI_PAGES: Final = 8
RSDP_GFN: Final = ACPI_GFN + ACPI_PAGES
SPECIAL_GFN: Final = 0xFEFF8
SPECIAL_PAGES: Final = 8
IOREQ_SERVER_GFN: Final = SPECIAL_GFN - SPECIAL_PAGES
BIOS_AREA_GFN: Final = 0xC0
BIOS_AREA_PAGES: Final = 0x40
VIDEO_ROM_PAGES: Final = 16

RUNGS: Final[dict[str, tuple[int, ...]]] = {
    "npt": (ORDER_1G, ORDER_2M, ORDER_4K),
    "ept": (ORDER_1G, ORDER_2M, ORDER_4K),
    "pae": (ORDER_2M, ORDER_4K),
    "x86_32": (ORDER_4M, ORDER_4K),
}
"""Extent orders that the builder asks for, by paging format; ``hap_1gb=`` and ``hap_2mb=`` change
what Xen maps, not what is asked."""
BATCH: Final = 2048
"""Most frames (8 MiB) in one call of any rung below 1 GiB."""
PLAIN_BATCH: Final = 1 << 18


@dataclass(frozen=True, slots=True)
class RamRange:
    """RAM at gfns ``[start, end)``; ``node`` is the one node to take it from, None for any."""

    start: int
    end: int
    node: int | None = None


@dataclass(frozen=True, slots=True)
class MemoryLayout:
    """Where RAM lies: ``ranges`` ascending, none of them in ``[hole_start, 4 GiB)``.

    ``has_vga_hole``: the builder starts the range at gfn 0 at VGA_HOLE_END, after one call for the
    LOW_EXTENTS below the hole (HVM with a device model).
    """

    ranges: tuple[RamRange, ...]
    hole_start: int
    has_vga_hole: bool


@dataclass(frozen=True, slots=True)
class PopulateStep:
    """One populate_physmap of ``nr`` extents of order 0 that must all be done, any node."""

    first_gfn: int
    nr: int


@dataclass(frozen=True, slots=True)
class TouchStep:
    """The toolstack maps these gfns and writes to them; a PoD entry is populated by it."""

    first_gfn: int
    nr: int


@dataclass(frozen=True, slots=True)
class DmRetypeStep:
    """The device model sets the type of these gfns (dm_op set_mem_type), ram_rw as they were."""

    first_gfn: int
    nr: int


Step: TypeAlias = PopulateStep | TouchStep | DmRetypeStep


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """All that building one domain's memory takes; counts are in 4K frames.

    ``total_pages`` is what the guest is told it has, the VGA hole included, video memory not.
    ``target_pages`` is less in a populate-on-demand build (``pod``). ``claim_pages`` is both the
    claim and the PoD target. ``max_pages`` follows ``memory``, not ``maxmem``
    (``libxl__build_pre``): a PoD guest must not hold more than its target. ``rungs`` are the
    paging format's. ``steps`` are for after the ladder, in order.
    """

    layout: MemoryLayout
    total_pages: int
    target_pages: int
    pod: bool
    claim_pages: int
    max_pages: int
    pool_pages: int
    rungs: tuple[int, ...]
    steps: tuple[Step, ...]

    def ram_pages(self) -> int:
        """Frames that the ladder populates."""
        hole = VGA_HOLE_PAGES if self.layout.has_vga_hole else 0
        return self.total_pages - hole


def plan_build(config: GuestConfig, paging: str) -> BuildPlan:
    """Lay out a guest as libxl does.

    Args:
        config: a checked configuration (``xl_cfg.parse_xl_cfg`` or a scenario).
        paging: the host's table format, a key of RUNGS.
    """
    assert config.memory_mib <= config.maxmem_mib, f"{config.name}: memory above maxmem"
    assert not config.vnodes or config.memory_mib == config.maxmem_mib, f"{config.name}: vNUMA, PoD"
    is_hvm = config.type == "hvm"
    video_mib = config.videoram_mib if is_hvm else 0
    assert config.memory_mib > video_mib, f"{config.name}: video memory leaves no RAM"
    total = (config.maxmem_mib - video_mib) * MIB_PAGES
    target = (config.memory_mib - video_mib) * MIB_PAGES
    layout = _layout(config, total, video_mib)
    pool = config.shadow_memory_mib
    return BuildPlan(
        layout=layout,
        total_pages=total,
        target_pages=target,
        pod=total > target,
        claim_pages=target - (VGA_HOLE_PAGES if is_hvm else 0),
        max_pages=config.memory_mib * MIB_PAGES + MAXMEM_SLACK,
        pool_pages=default_pool_pages(config) if pool is None else pool * MIB_PAGES,
        rungs=RUNGS[paging],
        steps=_hvm_steps(config, layout) if is_hvm else _pvh_steps(),
    )


def default_pool_pages(config: GuestConfig) -> int:
    """``libxl__get_required_paging_memory`` of a HAP guest: 1 MiB a vCPU and a page a MiB of RAM.

    Enough for every table of a guest mapped wholly by 4K leaves.
    """
    return 256 * config.vcpus + config.maxmem_mib


def _layout(config: GuestConfig, total: int, video_mib: int) -> MemoryLayout:
    """RAM from gfn 0 to the MMIO hole and, if more is left, from 4 GiB up.

    ``mmio_hole`` can only enlarge an HVM guest's hole. vNUMA cuts the same RAM into one piece
    after the other; video memory counts as the first vnode's.
    """
    is_hvm = config.type == "hvm"
    hole_start = HVM_HOLE_START if is_hvm else PVH_HOLE_START
    if is_hvm and config.mmio_hole_mib is not None:
        hole_start = min(hole_start, FOUR_GIB - config.mmio_hole_mib * MIB_PAGES)
    pieces: list[tuple[int, int | None]] = [
        (vnode.size_mib * MIB_PAGES, vnode.pnode) for vnode in config.vnodes
    ]
    if pieces:
        first, node = pieces[0]
        pieces[0] = (first - video_mib * MIB_PAGES, node)
    else:
        pieces = [(total, None)]
    ranges: list[RamRange] = []
    gfn = 0
    for size, node in pieces:
        left = size
        while left > 0:
            gfn = FOUR_GIB if hole_start <= gfn < FOUR_GIB else gfn
            count = min(left, hole_start - gfn) if gfn < hole_start else left
            ranges.append(RamRange(gfn, gfn + count, node))
            gfn += count
            left -= count
    laid_out = sum(ram.end - ram.start for ram in ranges)
    assert laid_out == total, f"{config.name}: {laid_out} of {total} frames laid out"
    return MemoryLayout(tuple(ranges), hole_start, has_vga_hole=is_hvm)


def _pvh_steps() -> tuple[Step, ...]:
    """Kernel, then ACPI (the RSDP first, a call a page), then the special pages."""
    acpi = (PopulateStep(ACPI_GFN + page, 1) for page in range(ACPI_PAGES))
    return (
        TouchStep(KERNEL_GFN, PVH_KERNEL_PAGES),
        PopulateStep(RSDP_GFN, 1),
        *acpi,
        PopulateStep(SPECIAL_GFN, SPECIAL_PAGES),
    )


def _hvm_steps(config: GuestConfig, layout: MemoryLayout) -> tuple[Step, ...]:
    """Kernel and special pages by the toolstack, then what QEMU does as it starts.

    QEMU re-registers the BIOS area, and puts each display memory after the end of its RAM block,
    which includes the hole once there is RAM above it (``xen_ram_init``, ``xen_ram_alloc``).
    """
    steps: tuple[Step, ...] = (
        TouchStep(KERNEL_GFN, HVM_KERNEL_PAGES),
        PopulateStep(SPECIAL_GFN, SPECIAL_PAGES),
        PopulateStep(IOREQ_SERVER_GFN, SPECIAL_PAGES),
        DmRetypeStep(BIOS_AREA_GFN, BIOS_AREA_PAGES),
    )
    if config.vga == "none":
        return steps
    video_gfn = layout.ranges[-1].end
    video_pages = config.videoram_mib * MIB_PAGES
    return (
        *steps,
        PopulateStep(video_gfn, video_pages),
        PopulateStep(video_gfn + video_pages, VIDEO_ROM_PAGES),
    )


@dataclass(frozen=True, slots=True)
class LadderRequest:
    """One populate_physmap: ``nr_extents`` of ``order``, back to back from ``first_gfn``.

    ``exact``: less than all of it fails the build; otherwise the next rung goes on.
    """

    first_gfn: int
    nr_extents: int
    order: int
    mem_flags: int
    exact: bool


class Ladder:
    """Stepper through the RAM of a plan: call ``next_request``, then ``done``, until None.

    ``plain_4k`` asks for everything in order-0 extent lists of up to ``plain_chunk``, which leaves
    the choice of leaf to the allocator. ``failed`` is the gfn of the first extent that an exact
    request did not get, None while all is well.
    """

    def __init__(
        self,
        plan: BuildPlan,
        rungs: tuple[int, ...] | None = None,
        *,
        plain_4k: bool = False,
        plain_chunk: int = PLAIN_BATCH,
    ) -> None:
        self._plan = plan
        self._rungs = (ORDER_4K,) if plain_4k else (plan.rungs if rungs is None else rungs)
        assert self._rungs[-1] == ORDER_4K, f"no order 0 at the foot of the ladder: {self._rungs}"
        assert list(self._rungs) == sorted(set(self._rungs), reverse=True), f"{self._rungs}"
        self._batch = plain_chunk if plain_4k else BATCH
        self._flags = MemFlag.POPULATE_ON_DEMAND if plan.pod else 0
        self._pending: LadderRequest | None = None
        self._low_left = LOW_EXTENTS if plan.layout.has_vga_hole else 0
        self._range: int = 0
        self._gfn = VGA_HOLE_END if plan.layout.has_vga_hole else 0
        self._rung = 0
        self._count = 0
        self.failed: int | None = None

    def next_request(self) -> LadderRequest | None:
        """The next call to make; None when all RAM is populated or the build failed."""
        assert self._pending is None, f"{self._pending} is not done"
        if self.failed is None:
            self._pending = self._low() if self._low_left else self._climb()
        return self._pending

    def done(self, nr_done: int) -> None:
        """How many leading extents of the last request exist now."""
        request = self._pending
        assert request is not None, "no request is under way"
        assert 0 <= nr_done <= request.nr_extents, f"{nr_done} extents done of {request}"
        self._pending = None
        if request.exact and nr_done < request.nr_extents:
            self.failed = request.first_gfn + nr_done
        elif self._low_left:
            self._low_left = 0
        else:
            self._gfn += nr_done << request.order
            self._count -= nr_done << request.order
            self._rung += 1

    def _low(self) -> LadderRequest:
        return LadderRequest(0, self._low_left, ORDER_4K, self._flags, exact=True)

    def _climb(self) -> LadderRequest | None:
        """Down the rungs with what the last one left; from the top when nothing is left of it."""
        ranges = self._plan.layout.ranges
        while True:
            if self._gfn == ranges[self._range].end:
                assert self._count == 0, f"gfn {self._gfn:#x}: {self._count} frames past the range"
                if self._range + 1 == len(ranges):
                    return None
                self._range += 1
                self._gfn = ranges[self._range].start
            if self._count == 0:
                self._count = ranges[self._range].end - self._gfn
                self._rung = 0
            order = self._rungs[self._rung]
            self._count = self._cut(order)
            if (self._gfn | self._count) & ((1 << order) - 1) == 0:
                return self._request(order, ranges[self._range].node)
            self._rung += 1

    def _cut(self, order: int) -> int:
        """``_count`` cut for a rung: to its batch, then to whole superpages or up to the next."""
        size = 1 << order
        count = min(self._count, size if order == ORDER_1G else self._batch)
        to_boundary = -self._gfn & (size - 1)
        if to_boundary:
            return min(count, to_boundary)
        return count & -size if count > size else count

    def _request(self, order: int, node: int | None) -> LadderRequest:
        end = self._gfn + self._count
        hole_start = self._plan.layout.hole_start
        assert end <= hole_start or self._gfn >= FOUR_GIB, (
            f"gfn {self._gfn:#x} order {order}: {end:#x} reaches into the hole at {hole_start:#x}"
        )
        flags = self._flags | (0 if node is None else MemFlag.exact_node(node))
        nr_extents = self._count >> order
        return LadderRequest(self._gfn, nr_extents, order, flags, exact=order == ORDER_4K)
