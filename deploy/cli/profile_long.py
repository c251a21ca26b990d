"""``profile`` of a xentrace that is too long for tables: the report, and nothing else loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deploy.cli.complain import tell
from deploy.cli.profile import EXIT_TRUNCATED, warn_of
from deploy.profile.long import long_data, long_report


def long_answer(path: Path, cpu_hz: float, json_path: str | None) -> int | None:
    """Say what there is to say about a long xentrace; None if the file is none.

    Raises:
        BadInputError: it cannot be read.
    """
    read = long_data(path)
    if read is None:
        return None
    found = long_report(*read, str(path), cpu_hz=cpu_hz, compiles=_compiles)
    if json_path != "-":
        _print(found)
    if json_path is not None:
        from deploy.cli.files import write_json  # noqa: PLC0415 (see the command)

        write_json(found, json_path)
    warn_of([found["header"]["cut"]])
    return EXIT_TRUNCATED if found["truncated"] else 0


def _compiles() -> None:
    tell("compiling the loops for long traces, once on this machine")


def _print(found: dict[str, Any]) -> None:
    from deploy.cli.profile_render import print_profile  # noqa: PLC0415 (see the command)
    from deploy.cli.terminal import output_console  # noqa: PLC0415

    console = output_console()
    print_profile(found, console)
    console.print("a long trace: --domid, --between, --gfn or --html look into parts of it")
