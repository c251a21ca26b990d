"""Xen's own command line, as far as superpages go; and sizes with units."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from protocols.errno import BadInputError

SWITCHES: Final = ("hap", "hap_1gb", "hap_2mb")
_TRUE: Final = frozenset({"1", "yes", "on", "true", "enable"})
_FALSE: Final = frozenset({"0", "no", "off", "false", "disable"})
_UNITS_KIB: Final = {"k": 1, "m": 1 << 10, "g": 1 << 20, "t": 1 << 30}


@dataclass(frozen=True, slots=True)
class XenSwitches:
    """The three HAP switches, and the options that do not matter here."""

    hap: bool = True
    hap_1gb: bool = True
    hap_2mb: bool = True
    ignored: tuple[str, ...] = ()


def parse_xen_cmdline(text: str, source: str = "--xen-cmdline") -> XenSwitches:
    """``hap_1gb=0 no-hap_2mb ...``: Xen's boolean options (parse_boolean), the last one counts.

    Raises:
        BadInputError: a switch with a value that is no boolean.
    """
    values: dict[str, bool] = {}
    ignored: list[str] = []
    for word in text.split():
        key, sign, value = word.partition("=")
        negated = key.startswith("no-")
        switch = key.removeprefix("no-").replace("-", "_")
        if switch not in SWITCHES:
            ignored.append(word)
            continue
        if not sign:
            values[switch] = not negated
        elif value.lower() in _TRUE | _FALSE and not negated:
            values[switch] = value.lower() in _TRUE
        else:
            raise BadInputError(f"{source}: {word}: expected {switch}=0 or {switch}=1")
    return XenSwitches(**values, ignored=tuple(ignored))


def parse_size_mib(text: str, flag: str) -> int:
    """``8GiB``, ``512M``, ``1TiB``: whole MiB.

    Raises:
        BadInputError: anything else.
    """
    match = re.fullmatch(r"([0-9]{1,15})\s*([kmgt])(i?b)?", text.strip(), re.IGNORECASE)
    kib = int(match[1]) * _UNITS_KIB[match[2].lower()] if match else 0
    if kib <= 0 or kib % 1024:
        raise BadInputError(f"{flag} {text}: expected a size in whole MiB such as 8GiB or 512MiB")
    return kib // 1024
