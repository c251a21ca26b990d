"""Options that several commands share, and the logging that they set up."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any, TypeVar

import click
import structlog

from protocols.text import shown

F = TypeVar("F", bound=Callable[..., Any])


workload_arguments = click.argument(
    "workloads",
    metavar="WORKLOAD...",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path),
)
strict_option = click.option(
    "--strict", is_flag=True, help="Refuse an xl.cfg with keys that nobody knows (default: warn)."
)
json_option = click.option(
    "--json",
    "json_path",
    metavar="FILE|-",
    default=None,
    help="Write the report as JSON; - is standard output.",
)


def runtime_options(function: F) -> F:
    """--runtime, --address, --shards, --seed."""
    for option in (
        click.option(
            "--seed", type=click.IntRange(0, 2**63 - 1), default=None,
            help="Local runtime: choose the order of messages from this seed (default: FIFO). "
            "Also seeds random access patterns.",
        ),
        click.option(
            "--shards", type=click.IntRange(1, 64), default=1, show_default=True,
            help="Ray actors for each service.",
        ),
        click.option(
            "--address", metavar="ADDR", default=None,
            help="Use the Ray cluster at HOST:PORT (default: start a private one).",
        ),
        click.option(
            "--runtime", type=click.Choice(["ray", "local"]), default="ray", show_default=True,
            help="Ray actors, or one seeded deterministic process.",
        ),
    ):  # fmt: skip
        function = option(function)
    return function


def output_options(function: F) -> F:
    """--dump-p2m, --json, --log-json, --verbose."""
    for option in (
        click.option("-v", "--verbose", is_flag=True, help="Log debug lines, too."),
        click.option("--log-json", is_flag=True, help="Logs as JSON lines (on stderr)."),
        json_option,
        click.option(
            "--dump-p2m", "dump_p2m", metavar="DIR", type=click.Path(path_type=Path), default=None,
            help="Write the leaf entries of each domain's tables to DIR/dom<domid>.csv.",
        ),
    ):  # fmt: skip
        function = option(function)
    return function


def setup_logging(*, verbose: bool, as_json: bool) -> None:
    """Logs go to stderr: for people on a terminal, as JSON lines with --log-json."""
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if as_json
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _as_text,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.DEBUG if verbose else logging.INFO
        ),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def _as_text(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A processor: what the line quotes is text."""
    del logger, method
    return {
        name: shown(value) if isinstance(value, str) else value for name, value in event.items()
    }
