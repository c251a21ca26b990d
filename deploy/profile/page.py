"""The page of a trace: one HTML file with its data inside, which asks nobody for anything."""

from __future__ import annotations

import base64
import gzip
import html
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, Final, TextIO

import numpy as np
import numpy.typing as npt

from protocols.trace import EVENT_NAMES, ID_SHIFT
from services.trace.critical import Chains, slowest, tree
from services.trace.domains import TYPE_NAMES
from services.trace.frame import Column, Frame, Trace

MESSAGES_MAX: Final = 150_000
"""Messages that a page holds; of a longer trace the slowest hypercalls whole, and a sample."""
WHOLE_TREES: Final = 2000
"""Hypercalls of a longer trace that are there with all that they caused, at most."""
TREE_MAX: Final = 400
UPDATES_MAX: Final = 150_000
SPANS_MAX: Final = 60_000
ASSETS: Final = "deploy.profile.assets"
WIDTHS: Final = ((1, "<u1"), (2, "<u2"), (4, "<u4"))
LEVEL: Final = 9
Rows = npt.NDArray[np.int64]


def write_page(trace: Trace, report: dict[str, Any], file: TextIO) -> None:
    """Write the page of a trace and of what ``services.trace.report.report`` says of it."""
    rows = chosen_messages(trace)
    data = {
        "report": report,
        "names": list(trace.names),
        "kinds": list(trace.kinds),
        "types": TYPE_NAMES,
        "events": {str(int(event)): name for event, name in EVENT_NAMES.items()},
        "messages": _messages(trace, rows),
        "updates": _some(trace.updates, UPDATES_MAX, ("time", "domid", "order", "type", "gfn")),
        "memory": _some(trace.events, UPDATES_MAX // 3, ("time", "event", "domid", "gfn")),
        "running": _some(trace.running, SPANS_MAX, ("start", "end", "cpu", "domid", "vcpu")),
    }
    page = _asset("page.html")
    parts = {
        "TITLE": html.escape(trace.source),
        "STYLE": _asset("page.css"),
        "DATA": _packed(json.dumps(data, separators=(",", ":")).encode()),
        "SCRIPT": _asset("page.js"),
    }
    for name, text in parts.items():
        head, mark, tail = page.partition(f"<!--{name}-->")
        assert mark, f"page.html has no place for {name}"
        file.write(head)
        file.write(text)
        page = tail
    file.write(page)


def chosen_messages(trace: Trace) -> Rows:
    """Rows of the messages that the page holds, by the time when their handling began."""
    m = trace.messages
    if m.rows <= MESSAGES_MAX:
        return np.argsort(m["started"], kind="stable")
    chains = Chains(trace)
    keep = np.zeros(m.rows, dtype=np.bool_)
    left = MESSAGES_MAX // 2
    for request in slowest(trace, WHOLE_TREES):
        if left <= 0:
            break
        found = tree(chains, request, TREE_MAX)
        left -= len(found)
        keep[found] = True
    keep[:: -(-m.rows // (MESSAGES_MAX - int(np.count_nonzero(keep))))] = True
    rows = np.flatnonzero(keep)
    return rows[np.argsort(m["started"][rows], kind="stable")]


def _messages(trace: Trace, rows: Rows) -> dict[str, Any]:
    """Columns of the chosen messages; causes, parents and requests as rows among them, from 1."""
    m = trace.messages
    ids = m["id"][rows]
    by_id = np.argsort(ids, kind="stable")

    def row_of(name: str) -> Column:
        wanted = m[name][rows]
        if not len(rows):
            return wanted.astype(np.int64)
        at = np.minimum(np.searchsorted(ids[by_id], wanted), len(rows) - 1)
        found = by_id[at]
        return np.where((ids[found] == wanted) & (wanted > 0), found + 1, 0)

    started = m["started"][rows]
    columns: dict[str, Column] = {
        "started": started,
        "seq": (ids & np.uint64((1 << ID_SHIFT) - 1)).astype(np.int64),
        "cause": row_of("cause"),
        "parent": row_of("parent"),
        "asked": row_of("reply_to"),
        "isReply": (m["reply_to"][rows] > 0).astype(np.int64),
        "transit": m["received"][rows] - m["sent"][rows],
        "queue": started - m["received"][rows],
        "lasted": np.where(m["ended"][rows] >= 0, m["ended"][rows] - started + 1, 0),
        "gfn": np.where(m["gfn"][rows] == np.uint64((1 << 64) - 1), 0, m["gfn"][rows] + 1).astype(
            np.int64
        ),
    }
    for name in ("kind", "src", "dst", "shard", "domid", "bytes", "busy", "lock_wait"):
        columns[name] = m[name][rows].astype(np.int64)
    for name in ("order", "nr", "rc"):
        columns[name] = m[name][rows].astype(np.int64)
    return {
        "rows": len(rows),
        "of": m.rows,
        "columns": {name: _column(column) for name, column in columns.items()},
    }


def _some(frame: Frame, most: int, names: Sequence[str]) -> dict[str, Any]:
    """Columns of a frame, every n-th row if there are too many."""
    step = max(1, -(-frame.rows // most))
    return {
        "rows": -(-frame.rows // step),
        "of": frame.rows,
        "columns": {name: _column(frame[name][::step].astype(np.int64)) for name in names},
    }


def _column(values: Column) -> dict[str, Any]:
    """Numbers as the page reads them: base plus data, or base plus their running sum."""
    if not len(values):
        return {"base": 0, "width": 0, "sum": False}
    steps = np.diff(values, prepend=values[:1])
    rising = len(values) > 1 and int(steps.min()) >= 0
    base = int(values[0]) if rising else int(values.min())
    deltas = steps if rising else values - base
    top = int(deltas.max())
    width, kind = next((each for each in WIDTHS if top < 1 << 8 * each[0]), (8, "<f8"))
    return {
        "base": base,
        "width": width if top else 0,
        "sum": bool(rising),
        "data": _packed(deltas.astype(kind).tobytes()) if top else "",
    }


def _packed(data: bytes) -> str:
    return base64.b64encode(gzip.compress(data, LEVEL, mtime=0)).decode()


def _asset(name: str) -> str:
    return files(ASSETS).joinpath(name).read_text(encoding="utf-8")
