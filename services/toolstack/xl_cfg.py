"""Guest configuration files: xl.cfg(5) text in, what matters to memory out.

Every key of Xen 4.17's manual, and those that ``xl`` reads beyond it, is known: the ones that
shape memory are interpreted as xl and libxl do, the others are parsed, returned by name and
otherwise left alone. A key that nobody knows is an error here, although xl skips it: a misspelt
``maxmem`` would silently build another guest.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Final, NoReturn

from protocols.errno import BadInputError
from protocols.toolstack import GuestConfig, Vnode
from services.toolstack.xl_syntax import NUMBER, Setting, Value, number_of, read_settings

INTERPRETED_NAMES: Final = """
    name type builder memory maxmem vcpus maxvcpus hap shadow_memory vnuma mmio_hole videoram vga
    stdvga kernel
"""
OTHER_NAMES: Final = """
    acpi acpi_firmware acpi_laptop_slate acpi_s3 acpi_s4 altp2m altp2mhvm apic bios
    bios_path_override blkdev_start boot bootloader bootloader_args cap channel cmdline cpu_weight
    cpuid cpus cpus_soft device_model device_model_args device_model_args_hvm device_model_args_pv
    device_model_override device_model_stubdomain_override device_model_stubdomain_seclabel
    device_model_user device_model_version device_tree disk display dm_restrict driver_domain dtdev
    e820_host extra extratime firmware firmware_override gfx_passthru gic_version hdtype hpet
    init_seclabel iomem ioports irqs keymap latency localtime max_event_channels max_grant_frames
    max_grant_version max_maptrack_frames mca_caps ms_vm_genid msr_relaxed nestedhvm nographic
    nomigrate nx on_crash on_poweroff on_reboot on_soft_reset on_watchdog oos opengl p9 pae
    passthrough pci pci_msitranslate pci_permissive pci_power_mgmt pci_seize period pool pvcalls
    pvshim pvshim_cmdline pvshim_extra pvshim_path ramdisk rdm rdm_mem_boundary root rtc_timeoffset
    sdl seclabel serial slice smbios_firmware soundhw spice spice_clipboard_sharing
    spice_image_compression spice_streaming_video spiceagent_mouse spicedisable_ticketing spicehost
    spicepasswd spiceport spicetls_port spiceusbredirection spicevdagent stubdomain_cmdline
    stubdomain_kernel stubdomain_memory stubdomain_ramdisk tee timer_mode tsc_mode usb usbctrl
    usbdev usbdevice usbversion uuid vdispl vendor_device vfb vif vif2 viridian vkb vkb_device
    vmtrace_buf_kb vnc vncdisplay vnclisten vncpasswd vncunused vncviewer vpmu vpt_align vsnd vtpm
    vuart xauthority xen_platform_pci xend_suspend_evtchn_compat
"""
INTERPRETED: Final = frozenset(INTERPRETED_NAMES.split())
OTHER: Final = frozenset(OTHER_NAMES.split())
HVM_ONLY: Final = frozenset({"mmio_hole", "videoram", "vga", "stdvga"})
"""Interpreted keys that xl reads, and libxl uses, for an HVM guest alone."""

MEMORY_DEFAULT_MIB: Final = 32
MEMORY_MIN_MIB: Final = 2
"""Below it there is no room at gfn 0x100 for a kernel or hvmloader."""
MEMORY_MAX_MIB: Final = 1 << 24
VCPUS_MAX: Final = 512
PNODE_MAX: Final = 254
MMIO_HOLE_MIB: Final = (256, 3840)
"""HVM_BELOW_4G_MMIO_LENGTH and _START: what xl accepts."""
VIDEORAM_MIB: Final = {"none": 0, "cirrus": 8, "stdvga": 16, "qxl": 128}
"""libxl's default, and its least value, for each display of qemu-xen."""


@dataclass(frozen=True, slots=True)
class XlConfig:
    """What an xl.cfg says about memory; sizes in MiB, defaults filled in as xl and libxl do.

    ``ignored`` names the keys of the file that have no bearing on memory for this guest type.
    ``hap`` is carried, not judged: the host decides whether it can serve it.
    """

    name: str
    type: str
    memory_mib: int
    maxmem_mib: int
    vcpus: int
    maxvcpus: int
    hap: bool
    shadow_memory_mib: int | None
    mmio_hole_mib: int | None
    vga: str
    videoram_mib: int
    vnodes: tuple[Vnode, ...]
    kernel: str
    ignored: tuple[str, ...]

    def guest_config(self) -> GuestConfig:
        """The part that travels; its ``vcpus`` is maxvcpus, by which libxl sizes the domain."""
        return GuestConfig(
            name=self.name,
            type=self.type,
            memory_mib=self.memory_mib,
            maxmem_mib=self.maxmem_mib,
            vcpus=self.maxvcpus,
            shadow_memory_mib=self.shadow_memory_mib,
            mmio_hole_mib=self.mmio_hole_mib,
            vga=self.vga,
            videoram_mib=self.videoram_mib,
            vnodes=self.vnodes,
        )


def parse_xl_cfg(text: str, source: str) -> XlConfig:
    """Interpret an xl.cfg(5).

    Args:
        text: the file's text.
        source: its name, for error lines.

    Raises:
        BadInputError: one line ``FILE:LINE: key 'KEY': expected ..., got ...``.
    """
    settings = _Settings(source, read_settings(text, source))
    settings.check_known()
    name = settings.string("name")
    if not name:
        settings.fail("name", "a domain name", settings.describe("name"))
    guest_type = _guest_type(settings)
    vnodes, vnode_vcpus = _vnuma(settings)
    vcpus = settings.integer("vcpus", vnode_vcpus or 1, 1, VCPUS_MAX)
    maxvcpus = settings.integer("maxvcpus", max(vcpus, vnode_vcpus), vcpus, VCPUS_MAX)
    vga, videoram = _display(settings) if guest_type == "hvm" else ("none", 0)
    memory, maxmem = _memory(settings, videoram, vnodes)
    if vnodes and vnode_vcpus != maxvcpus:
        settings.fail("vnuma", f"vnodes with {maxvcpus} vcpus in all", f"{vnode_vcpus}")
    if vnodes and vnodes[0].size_mib <= videoram:
        got = f"{vnodes[0].size_mib}"
        settings.fail("vnuma", f"a vnode 0 above the {videoram} MiB of video memory", got)
    hole = None
    if guest_type == "hvm" and "mmio_hole" in settings.values:
        hole = settings.integer("mmio_hole", 0, *MMIO_HOLE_MIB)
    pool = None
    if "shadow_memory" in settings.values:
        pool = settings.integer("shadow_memory", 0, 1, MEMORY_MAX_MIB)
    unused = OTHER if guest_type == "hvm" else OTHER | HVM_ONLY
    return XlConfig(
        name=name,
        type=guest_type,
        memory_mib=memory,
        maxmem_mib=maxmem,
        vcpus=vcpus,
        maxvcpus=maxvcpus,
        hap=settings.boolean("hap", default=True),
        shadow_memory_mib=pool,
        mmio_hole_mib=hole,
        vga=vga,
        videoram_mib=videoram,
        vnodes=vnodes,
        kernel=settings.string("kernel"),
        ignored=tuple(key for key in settings.values if key in unused),
    )


class _Settings:
    """Parsed values with their lines: typed access, and errors that name file, line and key."""

    def __init__(self, source: str, values: dict[str, Setting]) -> None:
        self.source = source
        self.values = values

    def check_known(self) -> None:
        """Refuse the first key that no xl.cfg has."""
        known = INTERPRETED | OTHER
        for key in self.values:
            if key not in known:
                close = difflib.get_close_matches(key, sorted(known), n=1)
                hint = f" (did you mean {close[0]!r}?)" if close else ""
                self.fail(key, "a key of xl.cfg(5)", f"an unknown one{hint}")

    def value(self, key: str, default: Value) -> Value:
        """The value as parsed, of whatever kind."""
        return self.values[key].value if key in self.values else default

    def string(self, key: str) -> str:
        """A string, '' if the key is absent."""
        value = self.value(key, "")
        if not isinstance(value, str):
            self.fail(key, "a quoted string", self.describe(key))
        return value

    def integer(self, key: str, default: int, least: int, most: int) -> int:
        """A number, quoted or not as xl takes it, within [least, most]."""
        value = self.value(key, default)
        if isinstance(value, str) and re.fullmatch(NUMBER, value):
            value = number_of(value)
        if not isinstance(value, int) or not least <= value <= most:
            self.fail(key, f"a number from {least} to {most}", self.describe(key))
        return value

    def boolean(self, key: str, *, default: bool) -> bool:
        """A number read as xl reads a boolean: anything but 0 is true."""
        return self.integer(key, int(default), 0, MEMORY_MAX_MIB) != 0

    def describe(self, key: str) -> str:
        """The value as a person wrote it, for an error line."""
        return repr(self.values[key].value) if key in self.values else "none"

    def fail(self, key: str, expected: str, got: str) -> NoReturn:
        """Raise the one-line error about a key; line 1 if the file does not have it."""
        line = self.values[key].line if key in self.values else 1
        raise BadInputError(f"{self.source}:{line}: key {key!r}: expected {expected}, got {got}")


def _guest_type(settings: _Settings) -> str:
    """``type``, else the older ``builder``, else xl's default for x86, which is pv."""
    key = "type" if "type" in settings.values or "builder" not in settings.values else "builder"
    value = settings.string(key) or "pv"
    if key == "builder":
        if value not in ("hvm", "generic"):
            settings.fail(key, "'hvm' or 'generic'", settings.describe(key))
        value = {"hvm": "hvm", "generic": "pv"}[value]
    if value == "pv":
        settings.fail(key, "'pvh' or 'hvm' (only HAP guests are built)", "a PV guest")
    if value not in ("pvh", "hvm"):
        settings.fail(key, "'pvh' or 'hvm'", settings.describe(key))
    return value


def _display(settings: _Settings) -> tuple[str, int]:
    """(vga, videoram in MiB) of an HVM guest, with libxl's defaults and least sizes."""
    if "vga" in settings.values:
        vga = settings.string("vga")
        if vga not in VIDEORAM_MIB:
            settings.fail("vga", "'none', 'cirrus', 'stdvga' or 'qxl'", settings.describe("vga"))
    else:
        vga = "stdvga" if settings.boolean("stdvga", default=False) else "cirrus"
    least = VIDEORAM_MIB[vga]
    return vga, settings.integer("videoram", least, least, MEMORY_MAX_MIB)


def _memory(settings: _Settings, videoram: int, vnodes: tuple[Vnode, ...]) -> tuple[int, int]:
    """(memory, maxmem) in MiB, each the other's default; vnodes fix maxmem and forbid PoD."""
    total = sum(vnode.size_mib for vnode in vnodes)
    fallback = settings.integer("memory", total or MEMORY_DEFAULT_MIB, 1, MEMORY_MAX_MIB)
    maxmem = settings.integer("maxmem", total or fallback, 1, MEMORY_MAX_MIB)
    memory = settings.integer("memory", maxmem, 1, MEMORY_MAX_MIB)
    if maxmem < memory:
        settings.fail("maxmem", f"at least memory, {memory}", f"{maxmem}")
    if memory < videoram + MEMORY_MIN_MIB:
        beside = f" beside {videoram} MiB of video memory" if videoram else ""
        settings.fail("memory", f"at least {MEMORY_MIN_MIB} MiB{beside}", f"{memory}")
    if vnodes and total != maxmem:
        settings.fail("vnuma", f"vnode sizes that sum to maxmem, {maxmem}", f"{total}")
    if vnodes and memory != maxmem:
        settings.fail("vnuma", "memory equal to maxmem (no PoD with vNUMA)", f"memory {memory}")
    return memory, maxmem


def _vnuma(settings: _Settings) -> tuple[tuple[Vnode, ...], int]:
    """(vnodes, vCPUs they hold together); the vCPUs must be 0..n-1, each in one vnode."""
    specs = settings.value("vnuma", [])
    if not isinstance(specs, list):
        settings.fail("vnuma", "a list of vnode lists", settings.describe("vnuma"))
    vnodes: list[Vnode] = []
    vcpus: list[int] = []
    for number, spec in enumerate(specs):
        options = _vnode_options(settings, number, spec)
        pnode = _vnode_number(settings, number, "pnode", options, (0, PNODE_MAX))
        size = _vnode_number(settings, number, "size", options, (1, MEMORY_MAX_MIB))
        vnodes.append(Vnode(pnode=pnode, size_mib=size))
        vcpus.extend(_vnode_vcpus(settings, number, options))
        distances = options.get("vdistances")
        if distances is not None and not re.fullmatch(
            rf"\s*\d+\s*(,\s*\d+\s*){{{len(specs) - 1}}}", distances
        ):
            settings.fail("vnuma", f"vnode {number} with {len(specs)} vdistances", repr(distances))
    if sorted(vcpus) != list(range(len(vcpus))):
        settings.fail("vnuma", "each vcpu from 0 up in one vnode", f"{sorted(vcpus)}")
    return tuple(vnodes), len(vcpus)


def _vnode_options(settings: _Settings, number: int, spec: Value) -> dict[str, str]:
    options: dict[str, str] = {}
    for option in spec if isinstance(spec, list) else [spec]:
        key, sign, value = option.partition("=") if isinstance(option, str) else ("", "", "")
        key = key.strip()
        if not sign or key not in ("pnode", "size", "vcpus", "vdistances") or key in options:
            expected = f"vnode {number} of 'pnode=', 'size=', 'vcpus=' and 'vdistances='"
            settings.fail("vnuma", expected, repr(option))
        options[key] = value.strip()
    return options


def _vnode_number(
    settings: _Settings, number: int, key: str, options: dict[str, str], bounds: tuple[int, int]
) -> int:
    text = options.get(key, "")
    if not re.fullmatch(r"[0-9]{1,9}", text) or not bounds[0] <= int(text) <= bounds[1]:
        expected = f"vnode {number} with {key} from {bounds[0]} to {bounds[1]}"
        settings.fail("vnuma", expected, repr(text) if text else "none")
    return int(text)


def _vnode_vcpus(settings: _Settings, number: int, options: dict[str, str]) -> list[int]:
    """The vCPUs of a cpu list such as ``0-3,5``."""
    found: list[int] = []
    for part in options.get("vcpus", "").split(","):
        match = re.fullmatch(r"\s*(\d{1,3})\s*(?:-\s*(\d{1,3})\s*)?", part)
        if match is None or int(match[1]) > int(match[2] or match[1]):
            expected = f"vnode {number} with vcpus such as 0-3,5"
            settings.fail("vnuma", expected, repr(options.get("vcpus", "")))
        first = int(match[1])
        found.extend(range(first, int(match[2] or first) + 1))
    return found
