"""``shatterproof profile``: where the time, the messages and the superpages of a trace went."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import click
from rich.console import Console

from deploy.cli.files import check_file, whole_file, write_json
from deploy.cli.profile_render import (
    print_comparison,
    print_path,
    print_profile,
    print_rows,
)
from deploy.cli.render import output_console
from deploy.profile.open import CPU_HZ, give_back, is_long_xentrace, open_trace, read_file
from protocols.errno import BadInputError
from services.trace.critical import Chains, request_path, run_path
from services.trace.frame import Trace
from services.trace.report import report
from services.trace.select import Selection
from services.trace.sequence import mermaid

EPILOG: Final = """\b
Examples:
  shatterproof profile run.trace --html run.html --perfetto run.pftrace
  shatterproof profile tests/data/traces/balloon.t7-1g-dec4k.trimmed.trace.bin.xz --json -
  shatterproof profile run.trace --sql "select kind, count(*) from messages group by kind"
  shatterproof profile run.trace --critical-path toolstack/1#4 --domid 1
"""
EXIT_TRUNCATED: Final = 2
WHOLE_RUN: Final = ""
"""``--critical-path`` without an id."""


@dataclass(frozen=True)
class Exports:
    """Files to write: the flag of each and its path."""

    html: Path | None
    perfetto: Path | None
    xentrace: Path | None
    parquet: Path | None
    csv: Path | None

    def check(self) -> None:
        """Refuse what cannot be written before anything is read.

        Raises:
            BadInputError: a place that cannot be written.
        """
        for name, path in vars(self).items():
            if path is not None:
                check_file(path, f"--{name}")

    def any(self) -> bool:
        """Whether there is something to write."""
        return any(path is not None for path in vars(self).values())


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
    "--cpu-hz", type=click.FloatRange(min=1), default=CPU_HZ, show_default=True,
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
    exports = Exports(html, perfetto, xentrace, parquet, csv)
    exports.check()
    if json_path not in {None, "-"}:
        check_file(Path(str(json_path)), "--json")
    console = Console(file=io.StringIO()) if json_path == "-" else output_console()
    answer: Any
    found: dict[str, Any] | None = None
    asked = (domid, kind, between, gfn, sql, diff, path_of, sequence)
    if not exports.any() and all(each is None for each in asked) and is_long_xentrace(trace_path):
        answer = _long(trace_path, cpu_hz, console)
        if json_path is not None:
            write_json(answer, json_path)
        return EXIT_TRUNCATED if answer["truncated"] else 0
    trace = _open(trace_path, cpu_hz)
    selection = _selection(trace, domid, kind, between, gfn)
    if sql is not None:
        answer = _query(trace, selection, sql, console)
    elif diff is not None:
        answer = _compare(trace, _open(diff, cpu_hz), selection, console)
    elif sequence is not None:
        answer = _sequence(trace, sequence, console)
    elif path_of is not None:
        answer = _critical_path(trace, path_of, console)
    else:
        found = answer = report(trace, selection)
        print_profile(answer, console, domid=domid)
    if json_path is not None:
        write_json(answer, json_path)
    _export(exports, trace, selection, found, console)
    return EXIT_TRUNCATED if trace.truncated and trace.format == "xentrace" else 0


def _long(path: Path, cpu_hz: float, console: Console) -> Any:
    """The summary of a xentrace that is too long to be looked at in full."""
    from services.trace.xen_summary import summarise  # noqa: PLC0415 (compiles its loops)

    data = read_file(path)
    answer = summarise(data, str(path), cpu_hz=cpu_hz, give_back=give_back(data))
    if answer["truncated"]:
        sys.stderr.write(f"shatterproof: {answer['header']['cut']}\n")
    print_profile(answer, console)
    console.print("a long trace: --domid, --between, --gfn or --html look into parts of it")
    return answer


def _open(path: Path, cpu_hz: float) -> Trace:
    trace = open_trace(path, cpu_hz=cpu_hz)
    if trace.truncated:
        sys.stderr.write(f"shatterproof: {trace.header['cut']}\n")
    return trace


def _selection(
    trace: Trace,
    domid: int | None,
    kind: str | None,
    between: tuple[float, float] | None,
    gfn: str | None,
) -> Selection:
    """What the flags choose.

    Raises:
        BadInputError: a kind that no message has, or a range that is none.
    """
    if kind is not None and kind not in trace.kinds:
        known = ", ".join(trace.kinds) if trace.messages.rows else "no message at all"
        raise BadInputError(f"--kind {kind}: expected a message kind of {trace.source}: {known}")
    span = None
    if between is not None:
        rate = trace.ticks_per_s or 1.0
        span = int(between[0] * rate), int(between[1] * rate)
        if span[0] >= span[1]:
            raise BadInputError(f"--between {between[0]} {between[1]}: expected T0 below T1")
    return Selection(domid, kind, span, None if gfn is None else parse_gfns(gfn))


def parse_gfns(text: str) -> tuple[int, int]:
    """A half-open range of gfns from ``G``, ``G-G`` (both included) or ``G+NR``.

    Raises:
        BadInputError: none of these, or an empty range.
    """
    try:
        for mark in "-+":
            first, found, second = text.partition(mark)
            if found:
                low, other = int(first, 0), int(second, 0)
                high = other + 1 if mark == "-" else low + other
                break
        else:
            low = int(text, 0)
            high = low + 1
    except ValueError:
        low, high = 0, 0
    if not 0 <= low < high <= 1 << 52:
        raise BadInputError(f"--gfn {text}: expected GFN, GFN-GFN or GFN+NR, as 0x1000-0x11ff")
    return low, high


def _row(trace: Trace, flag: str, text: str) -> tuple[Chains, int]:
    """The row of the message that a flag names.

    Raises:
        BadInputError: no such message in the trace.
    """
    chains = Chains(trace)
    try:
        row = chains.row(trace.id_of(text))
    except (ValueError, OverflowError):
        row = None
    if row is None:
        raise BadInputError(
            f"{flag} {text}: no such message in {trace.source}; expected an id such as "
            "toolstack/1#4"
        )
    return chains, row


def _query(trace: Trace, selection: Selection, sql: str, console: Console) -> Any:
    from deploy.profile.tables import query  # noqa: PLC0415 (an engine that others need not load)

    columns, rows = query(selection.of(trace), sql)
    print_rows(columns, rows, console)
    return {"columns": columns, "rows": rows}


def _compare(one: Trace, other: Trace, selection: Selection, console: Console) -> Any:
    from deploy.profile.diff import compare  # noqa: PLC0415 (so is this)

    found = compare(selection.of(one), selection.of(other))
    print_comparison(found, console)
    return found


def _sequence(trace: Trace, text: str, console: Console) -> Any:
    chains, row = _row(trace, "--sequence", text)
    diagram = mermaid(chains, row)
    console.print(diagram, end="", markup=False, highlight=False)
    return {"id": text, "mermaid": diagram}


def _critical_path(trace: Trace, text: str, console: Console) -> Any:
    if text == WHOLE_RUN:
        path = run_path(Chains(trace))
    else:
        chains, row = _row(trace, "--critical-path", text)
        path = request_path(chains, row)
    if path is None:
        what = "the run" if text == WHOLE_RUN else text
        raise BadInputError(f"--critical-path: {what} has no answer in {trace.source}")
    print_path(path, trace.ticks_per_s, console)
    return path


def _export(
    exports: Exports,
    trace: Trace,
    selection: Selection,
    found: dict[str, Any] | None,
    console: Console,
) -> None:
    """Write the files asked for; each is whole or absent. ``found``: the report, if it is there."""
    if not exports.any():
        return
    chosen = selection.of(trace)

    def write(path: Path | None, flag: str, fill: Callable[[BinaryIO], None]) -> None:
        if path is not None:
            with whole_file(path, flag) as file:
                fill(file)
            console.print(f"{path}: {path.stat().st_size:,} bytes")

    write(
        exports.html, "--html", lambda file: _page(chosen, found or report(trace, selection), file)
    )
    write(exports.perfetto, "--perfetto", lambda file: _perfetto(chosen, file))
    write(exports.xentrace, "--xentrace", lambda file: _xentrace(chosen, file))
    if exports.parquet is not None or exports.csv is not None:
        from deploy.profile.tables import write_csv, write_parquet  # noqa: PLC0415

        for path, fill in ((exports.parquet, write_parquet), (exports.csv, write_csv)):
            if path is not None:
                for made in fill(chosen, path):
                    console.print(f"{made}: {made.stat().st_size:,} bytes")


def _page(trace: Trace, found: dict[str, Any], file: BinaryIO) -> None:
    from deploy.profile.page import write_page  # noqa: PLC0415

    text = io.TextIOWrapper(file, encoding="utf-8", write_through=True)
    write_page(trace, found, text)
    text.detach()


def _perfetto(trace: Trace, file: BinaryIO) -> None:
    from deploy.profile.perfetto import write_perfetto  # noqa: PLC0415

    write_perfetto(trace, file)


def _xentrace(trace: Trace, file: BinaryIO) -> None:
    from services.trace.xen_write import encode  # noqa: PLC0415

    file.write(encode(trace))
