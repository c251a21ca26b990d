"""The ``shatterproof`` command: finds the command, turns every error into one line.

Exit status: 0 good, 1 the check failed, 2 bad input, 3 no verdict.
"""

from __future__ import annotations

import sys
from typing import Final

import click

from deploy.cli.audit import audit
from deploy.cli.launch import launch
from deploy.cli.profile import profile
from deploy.cli.replay import replay
from deploy.cli.stress import stress
from protocols.errno import BadInputError, ShatterproofError

EXIT_FAILED: Final = 1
EXIT_BAD_INPUT: Final = 2


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="shatterproof")
def cli() -> None:
    """The large-page memory system of a hypervisor, as components that only talk by messages."""


cli.add_command(launch)
cli.add_command(replay)
cli.add_command(audit)
cli.add_command(stress)
cli.add_command(profile)


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
