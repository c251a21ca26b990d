"""Programs that a guest configuration brings: the command line of the kernel that runs them."""

from __future__ import annotations

from pathlib import PurePosixPath

from protocols.errno import BadInputError
from services.guest.program import KERNEL, Programs, parse_program
from services.toolstack.xl_cfg import XlConfig


def program_of(config: XlConfig) -> Programs:
    """The program of vCPU 0 if ``kernel`` is the one that runs programs, else none.

    Raises:
        BadInputError: its ``cmdline`` is no program.
    """
    setting = config.cmdline
    if PurePosixPath(config.kernel).name != KERNEL or setting is None:
        return ()
    if not isinstance(setting.value, str):
        raise BadInputError(f"{setting.where}: expected a quoted string, got {setting.value!r}")
    return (parse_program(setting.value, setting.where),)
