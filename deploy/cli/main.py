"""The ``shatterproof`` command: finds the command, turns every error into one line.

Exit status: 0 good, 1 the check failed, 2 bad input, 3 no verdict.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Final

import click

from protocols.errno import BadInputError, ShatterproofError

EXIT_FAILED: Final = 1
EXIT_BAD_INPUT: Final = 2


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


def _complain(text: str) -> None:
    sys.stderr.write(f"shatterproof: {text}\n")


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the command; always leaves by ``SystemExit``."""
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """The exit status of a command line."""
    try:
        status = cli.main(arguments, prog_name="shatterproof", standalone_mode=False)
    except click.ClickException as error:
        _complain(" ".join(error.format_message().split()))
        return EXIT_BAD_INPUT
    except BadInputError as error:
        _complain(str(error))
        return EXIT_BAD_INPUT
    except (click.Abort, KeyboardInterrupt):
        _complain("interrupted")
        return 130
    except ShatterproofError as error:
        _complain(str(error))
        return EXIT_FAILED
    return status if isinstance(status, int) else 0


if __name__ == "__main__":
    main()
