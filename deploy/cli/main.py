"""The ``shatterproof`` command: finds the command, turns every error into one line.

Exit status: 0 good, 1 the check failed, 2 bad input, 3 no verdict, 70 a fault of this program.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final

import click

from deploy.cli.complain import NAME, complain
from protocols.errno import BadInputError, ShatterproofError
from protocols.text import NAME_MAX, shown

EXIT_FAILED: Final = 1
EXIT_BAD_INPUT: Final = 2
EXIT_INTERNAL: Final = 70
"""EX_SOFTWARE of sysexits.h: no verdict about anything but this program."""
TRACEBACK: Final = "SHATTERPROOF_TRACEBACK"
"""Set in the environment: the traceback, or a component's story, before the one line."""


def _audit() -> click.Command:
    from deploy.cli.audit import audit  # noqa: PLC0415 (so are all: see Commands)

    return audit


def _launch() -> click.Command:
    from deploy.cli.launch import launch  # noqa: PLC0415

    return launch


def _profile() -> click.Command:
    from deploy.cli.profile import profile  # noqa: PLC0415

    return profile


def _replay() -> click.Command:
    from deploy.cli.replay import replay  # noqa: PLC0415

    return replay


def _stress() -> click.Command:
    from deploy.cli.stress import stress  # noqa: PLC0415

    return stress


COMMANDS: Final[dict[str, Callable[[], click.Command]]] = {
    "audit": _audit,
    "launch": _launch,
    "profile": _profile,
    "replay": _replay,
    "stress": _stress,
}


class Commands(click.Group):
    """Commands that are loaded when they are called: all of them take longer than most traces."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names."""
        del ctx
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name, if there is one."""
        del ctx
        return COMMANDS[cmd_name]() if cmd_name in COMMANDS else None


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="shatterproof")
def cli() -> None:
    """The large-page memory system of a hypervisor, as components that only talk by messages."""


def _complain_of_ourselves(error: Exception) -> None:
    """What was raised, and where, for whoever reports it."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{'/'.join(Path(frames[-1].filename).parts[-3:])}:{frames[-1].lineno}"
    complain(
        f"internal error: {type(error).__name__} at {place}: {shown(str(error), 2 * NAME_MAX)} "
        f"({TRACEBACK}=1 shows more)"
    )


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the command; always leaves by ``SystemExit``."""
    for stream in (sys.stdout, sys.stderr):
        # What a terminal cannot show is still no reason to fall over.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """The exit status of a command line."""
    try:
        status = cli.main(arguments, prog_name=NAME, standalone_mode=False)
    except click.ClickException as error:
        complain(" ".join(error.format_message().split()))
        return EXIT_BAD_INPUT
    except BadInputError as error:
        complain(str(error))
        return EXIT_BAD_INPUT
    except (click.Abort, KeyboardInterrupt):
        complain("interrupted")
        return 130
    except Exception as error:  # noqa: BLE001 (whatever it is, people are told in one line)
        if os.environ.get(TRACEBACK):
            traceback.print_exception(error)
        if isinstance(error, ShatterproofError):
            complain(str(error).partition("\n")[0])
            return EXIT_FAILED
        _complain_of_ourselves(error)
        return EXIT_INTERNAL
    return status if isinstance(status, int) else 0


if __name__ == "__main__":
    main()
