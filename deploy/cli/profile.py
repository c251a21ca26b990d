"""``shatterproof profile``: where the time, the messages and the superpages of a trace went."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple

import click

from deploy.cli.complain import complain
from deploy.profile import CPU_HZ

EPILOG: Final = """\b
Examples:
  shatterproof profile run.trace --html run.html --perfetto run.pftrace
  shatterproof profile tests/data/traces/balloon.t7-1g-dec4k.trimmed.trace.bin.xz --json -
  shatterproof profile run.trace --sql "select kind, count(*) from messages group by kind"
  shatterproof profile run.trace --critical-path toolstack/1#4 --domid 1
"""
EXIT_TRUNCATED: Final = 2
CPU_HZ_MAX: Final = 1e12
WHOLE_RUN: Final = ""
"""``--critical-path`` without an id."""


class Exports(NamedTuple):
    """Files to write: the flag of each and its path."""

    html: Path | None
    perfetto: Path | None
    xentrace: Path | None
    parquet: Path | None
    csv: Path | None

    def check(self, json_path: str | None) -> None:
        """Refuse what cannot be written before anything is read.

        Raises:
            BadInputError: a place that cannot be written.
        """
        named = {f"--{name}": path for name, path in self._asdict().items() if path is not None}
        if json_path not in {None, "-"}:
            named["--json"] = Path(str(json_path))
        if named:
            from deploy.cli.files import check_apart, check_file  # noqa: PLC0415 (seldom needed)

            check_apart(named)
            for flag, path in named.items():
                check_file(path, flag)

    def any(self) -> bool:
        """Whether there is something to write."""
        return any(path is not None for path in self)


class Asked(NamedTuple):
    """What of a trace, and what about it; all None is the report of everything."""

    domid: int | None
    kind: str | None
    between: tuple[float, float] | None
    gfn: str | None
    sql: str | None
    diff: Path | None
    path_of: str | None
    sequence: str | None

    def everything(self) -> bool:
        """Whether it is just the report."""
        return all(each is None for each in self)


class Hertz(click.FloatRange):
    """Ticks a second; NaN, which is in every range of click's, is none."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """See ``click.ParamType.convert``."""
        number = super().convert(value, param, ctx)
        if number != number:  # noqa: PLR0124 (NaN alone)
            self.fail(f"{value} is no number", param, ctx)
        return number


def warn_of(cuts: Iterable[str]) -> None:
    """One line about the traces that were cut off, when all else has been done."""
    lines = [cut for cut in dict.fromkeys(cuts) if cut]
    if lines:
        complain("; ".join(lines))


@click.command(epilog=EPILOG)
@click.argument("trace_path", metavar="TRACE", type=click.Path(path_type=Path))
@click.option("--domid", type=click.IntRange(0, 0x7FFF), default=None, help="One domain.")
@click.option("--kind", metavar="KIND", default=None, help="Messages of one kind.")
@click.option(
    "--between", type=float, nargs=2, default=None, metavar="T0 T1",
    help="Seconds since the trace began (steps, where its clock counts steps).",
)  # fmt: skip
@click.option(
    "--gfn", metavar="RANGE", default=None, help="GFN, GFN-GFN (first and last) or GFN+NR."
)
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="A page to look at.")
@click.option(
    "--perfetto", type=click.Path(path_type=Path), metavar="FILE", help="For the Perfetto UI."
)
@click.option(
    "--xentrace", type=click.Path(path_type=Path), metavar="FILE", help="For Xen's own xenalyze."
)
@click.option(
    "--parquet", type=click.Path(path_type=Path), metavar="FILE",
    help="A Parquet file a table, named after FILE.",
)  # fmt: skip
@click.option(
    "--csv", type=click.Path(path_type=Path), metavar="FILE",
    help="A CSV file a table, named after FILE.",
)  # fmt: skip
@click.option("--json", "json_path", metavar="FILE|-", default=None, help="Everything, as JSON.")
@click.option(
    "--sql", metavar="QUERY", default=None,
    help="Query the tables messages, updates, events, hypercalls and running.",
)  # fmt: skip
@click.option(
    "--diff", type=click.Path(path_type=Path), metavar="OTHER", help="Compare with another trace."
)
@click.option(
    "--critical-path", "path_of", metavar="[ID]", default=None, is_flag=False,
    flag_value=WHOLE_RUN, help="What the run, or a hypercall such as toolstack/1#4, waited for.",
)  # fmt: skip
@click.option(
    "--sequence", metavar="ID", default=None, help="A hypercall as a Mermaid sequence diagram."
)
@click.option(
    "--cpu-hz", type=Hertz(1, CPU_HZ_MAX), default=CPU_HZ, show_default=True,
    help="Ticks per second of a xentrace's TSC.",
)  # fmt: skip
def profile(
    trace_path: Path,
    domid: int | None,
    kind: str | None,
    between: tuple[float, float] | None,
    gfn: str | None,
    html: Path | None,
    perfetto: Path | None,
    xentrace: Path | None,
    parquet: Path | None,
    csv: Path | None,
    json_path: str | None,
    sql: str | None,
    diff: Path | None,
    path_of: str | None,
    sequence: str | None,
    cpu_hz: float,
) -> int:
    """Explain TRACE: of launch or stress (--trace), or a real xentrace (raw, .xz or .gz).

    Exit status 2 if a xentrace was cut off; what could be read of it is shown all the same.
    """
    asked = Asked(domid, kind, between, gfn, sql, diff, path_of, sequence)
    exports = Exports(html, perfetto, xentrace, parquet, csv)
    exports.check(json_path)
    # What this command line does not need is not loaded: that may take longer than its trace.
    if not exports.any() and asked.everything():
        from deploy.cli.profile_long import long_answer  # noqa: PLC0415

        status = long_answer(trace_path, cpu_hz, json_path)
        if status is not None:
            return status
    from deploy.cli.profile_answers import answer  # noqa: PLC0415

    return answer(trace_path, asked, exports, json_path=json_path, cpu_hz=cpu_hz)
