"""The answers of ``profile`` that need the tables of a trace, and the files made of them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Final

from deploy.cli.files import whole_file, write_json
from deploy.cli.profile import EXIT_TRUNCATED, WHOLE_RUN, Asked, Exports, warn_of
from deploy.cli.profile_render import (
    print_comparison,
    print_path,
    print_profile,
    print_rows,
)
from deploy.cli.terminal import Terminal, output_console
from deploy.profile.open import open_trace
from protocols.errno import BadInputError
from services.trace.critical import Chains, request_path, run_path
from services.trace.frame import Trace
from services.trace.report import report
from services.trace.select import Selection
from services.trace.sequence import mermaid

TICKS_MAX: Final = float(1 << 62)
"""No trace reaches further."""


def answer(
    path: Path, asked: Asked, exports: Exports, *, json_path: str | None, cpu_hz: float
) -> int:
    """Say what is asked for, write the files; the exit status.

    Raises:
        BadInputError: the trace cannot be read, or has not what is asked for.
    """
    console = output_console(io.StringIO() if json_path == "-" else None)
    found: dict[str, Any] | None = None
    said: Any
    trace = open_trace(path, cpu_hz=cpu_hz)
    traces = [trace]
    selection = _selection(trace, asked)
    if asked.sql is not None:
        said = _query(trace, selection, asked.sql, console)
    elif asked.diff is not None:
        other = open_trace(asked.diff, cpu_hz=cpu_hz)
        traces.append(other)
        said = _compare(trace, other, selection, console)
    elif asked.sequence is not None:
        said = _sequence(trace, asked.sequence, console)
    elif asked.path_of is not None:
        said = _critical_path(trace, asked.path_of, console)
    else:
        found = said = report(trace, selection)
        print_profile(said, console, domid=asked.domid)
    if json_path is not None:
        write_json(said, json_path)
    _export(exports, trace, selection, found, console)
    warn_of(each.header["cut"] for each in traces if each.truncated)
    is_cut = any(each.truncated and each.format == "xentrace" for each in traces)
    return EXIT_TRUNCATED if is_cut else 0


def _selection(trace: Trace, asked: Asked) -> Selection:
    """What the flags choose.

    Raises:
        BadInputError: a kind that no message has, or a range that is none.
    """
    domid, kind, between, gfn = asked[:4]
    if kind is not None and kind not in trace.kinds:
        known = ", ".join(trace.kinds) if trace.messages.rows else "no message at all"
        raise BadInputError(f"--kind {kind}: expected a message kind of {trace.source}: {known}")
    span = None
    if between is not None:
        rate = trace.ticks_per_s or 1.0
        first, last = (max(-TICKS_MAX, min(each * rate, TICKS_MAX)) for each in between)
        span = int(first), int(last)
        # NaN is below nothing.
        if not between[0] < between[1] or span[0] >= span[1]:
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


def _query(trace: Trace, selection: Selection, sql: str, console: Terminal) -> Any:
    from deploy.profile.tables import query  # noqa: PLC0415 (an engine that others need not load)

    columns, rows = query(selection.of(trace), sql)
    print_rows(columns, rows, console)
    return {"columns": columns, "rows": rows}


def _compare(one: Trace, other: Trace, selection: Selection, console: Terminal) -> Any:
    from deploy.profile.diff import compare  # noqa: PLC0415 (so is this)

    found = compare(selection.of(one), selection.of(other))
    print_comparison(found, console)
    return found


def _sequence(trace: Trace, text: str, console: Terminal) -> Any:
    chains, row = _row(trace, "--sequence", text)
    diagram = mermaid(chains, row)
    for line in diagram.splitlines():
        console.print(line)
    return {"id": text, "mermaid": diagram}


def _critical_path(trace: Trace, text: str, console: Terminal) -> Any:
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
    console: Terminal,
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
