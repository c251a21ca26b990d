"""Guest configuration files: xl.cfg(5) text in, what matters to memory out.

Every key of Xen 4.17's manual, and those that ``xl`` reads beyond it, is known: the ones that
shape memory are interpreted as xl and libxl do, the others are parsed, returned by name and
otherwise left alone. So are keys that nobody knows, as xl takes any; they are told apart, since a
misspelt ``maxmem`` builds another guest. Where xl warns of a value and goes on with its default
(a list as ``memory``, ``memory = "64 MB"``) the file is refused, for the same reason.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, NoReturn

from protocols.errno import BadInputError
from protocols.toolstack import GuestConfig, Vnode
from services.toolstack.xl_syntax import Setting, Value, number_of, read_settings

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
KNOWN: Final = INTERPRETED | OTHER
HVM_ONLY: Final = frozenset({"mmio_hole", "videoram", "vga", "stdvga"})
"""Interpreted keys that xl reads, and libxl uses, for an HVM guest alone."""

MEMORY_DEFAULT_MIB: Final = 32
MEMORY_MIN_MIB: Final = 2
"""Below it there is no room at gfn 0x100 for a kernel or hvmloader."""
MEMORY_MAX_MIB: Final = 1 << 24
VCPUS_MAX: Final = 512
TYPES: Final = {
    "type": {"hvm": "hvm", "pv": "pv", "pvh": "pvh"},
    "builder": {"hvm": "hvm", "generic": "pv"},
}
"""Guest type by the values of the two keys that give it, in the order in which xl compares."""
NAME_MAX: Final = 1024
"""Characters of a domain's name; a path in xenstore, which holds it, has no more."""
PNODE_MAX: Final = 254
MMIO_HOLE_MIB: Final = (256, 3840)
"""HVM_BELOW_4G_MMIO_LENGTH and _START: what xl accepts."""
DISTANCE: Final = re.compile(r"\s*[0-9]+\s*")
VIDEORAM_MIB: Final = {"none": 0, "cirrus": 8, "stdvga": 16, "qxl": 128}
"""libxl's default, and its least value, for each display of qemu-xen."""


@dataclass(frozen=True, slots=True)
class XlConfig:
    """What an xl.cfg says about memory; sizes in MiB, defaults filled in as xl and libxl do.

    ``ignored`` names the keys of the file that have no bearing on memory for this guest type,
    ``unknown`` those that are no keys of xl.cfg(5).
    ``cmdline`` is there as it stands: it means something to some kernels only.
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
    unknown: tuple[str, ...] = ()
    cmdline: Setting | None = None

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
    return interpret(read_settings(text, source), lambda key: f"{source}:1: key {key!r}")


def near(key: str) -> str | None:
    """The key of xl.cfg(5) that an unknown one is most like, if it is like any."""
    close = difflib.get_close_matches(key[:NAME_MAX], sorted(KNOWN), n=1)
    return close[0] if close else None


def interpret(values: Mapping[str, Setting], absent: Callable[[str], str]) -> XlConfig:
    """Interpret settings, of whatever syntax.

    Args:
        values: the settings by key.
        absent: what begins a complaint about a key that there is not.

    Raises:
        BadInputError: one line ``WHERE: expected ..., got ...``.
    """
    settings = _Settings(values, absent)
    name = settings.string("name")
    if not 0 < len(name) <= NAME_MAX:
        expected = f"a domain name of at most {NAME_MAX} characters" if name else "a domain name"
        settings.fail("name", expected, settings.describe("name"))
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
        cmdline=values.get("cmdline"),
        ignored=tuple(key for key in values if key in unused),
        unknown=tuple(key for key in values if key not in KNOWN),
    )


class _Settings:
    """Parsed values: typed access, and errors that say where a key is."""

    def __init__(self, values: Mapping[str, Setting], absent: Callable[[str], str]) -> None:
        self.values = values
        self._absent = absent

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
        number = self._number(key, default)
        if number is None or not least <= number <= most:
            self.fail(key, f"a number from {least} to {most}", self.describe(key))
        return number

    def _number(self, key: str, default: int) -> int | None:
        setting = self.values.get(key)
        if setting is None:
            return default
        if setting.added:
            self.fail(key, "a number, which += cannot make", self.describe(key))
        return number_of(setting.value) if isinstance(setting.value, str) else None

    def boolean(self, key: str, *, default: bool) -> bool:
        """A number read as xl reads a boolean: anything but 0 is true."""
        number = self._number(key, int(default))
        if number is None:
            self.fail(key, "a number", self.describe(key))
        return number != 0

    def describe(self, key: str) -> str:
        """The value much as a person wrote it, for an error line."""
        value = self.value(key, "none")
        bare = key not in self.values or (isinstance(value, str) and re.fullmatch(r"\d+", value))
        return str(value) if bare else repr(value)

    def fail(self, key: str, expected: str, got: str) -> NoReturn:
        """Raise the one-line error about a key."""
        where = self.values[key].where if key in self.values else self._absent(key)
        raise BadInputError(f"{where}: expected {expected}, got {got}")


def _guest_type(settings: _Settings) -> str:
    """``type`` and the older ``builder``, which must agree; else xl's default for x86, which is pv.

    Xl compares as many letters as are given: 'h' will do for 'hvm', and 'p' is 'pv'.
    """
    where, chosen = "type", ""
    for key, names in TYPES.items():
        if key not in settings.values:
            continue
        given = settings.string(key)
        found = [name for name in names if name.startswith(given)]
        expected = " or ".join(repr(name) for name in sorted(names, reverse=True) if name != "pv")
        if not found or chosen not in ("", names[found[0]]):
            agreeing = f"{expected}, as 'type' says" if found else expected
            settings.fail(key, agreeing, settings.describe(key))
        where, chosen = key, names[found[0]]
    if chosen in ("", "pv"):
        settings.fail(where, "'pvh' or 'hvm' (only HAP guests are built)", "a PV guest")
    return chosen


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
    if len(specs) > VCPUS_MAX:
        settings.fail("vnuma", f"at most {VCPUS_MAX} vnodes", f"{len(specs)}")
    vnodes: list[Vnode] = []
    vcpus: list[int] = []
    for number, spec in enumerate(specs):
        options = _vnode_options(settings, number, spec)
        pnode = _vnode_number(settings, number, "pnode", options, (0, PNODE_MAX))
        size = _vnode_number(settings, number, "size", options, (1, MEMORY_MAX_MIB))
        vnodes.append(Vnode(pnode=pnode, size_mib=size))
        vcpus.extend(_vnode_vcpus(settings, number, options))
        if len(vcpus) > VCPUS_MAX:
            settings.fail("vnuma", f"at most {VCPUS_MAX} vcpus", "more")
        distances = options.get("vdistances")
        numbers = [] if distances is None else distances.split(",")
        if distances is not None and (
            len(numbers) != len(specs) or not all(map(DISTANCE.fullmatch, numbers))
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
        match = re.fullmatch(r"\s*([0-9]{1,3})\s*(?:-\s*([0-9]{1,3})\s*)?", part)
        if match is None or int(match[1]) > int(match[2] or match[1]):
            expected = f"vnode {number} with vcpus such as 0-3,5"
            settings.fail("vnuma", expected, repr(options.get("vcpus", "")))
        first = int(match[1])
        found.extend(range(first, int(match[2] or first) + 1))
    return found
