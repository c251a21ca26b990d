"""The page of a trace: one HTML file with its data inside, which asks nobody for anything."""

from __future__ import annotations

import base64
import gzip
import html
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any, Final, TextIO

import numpy as np

from protocols.trace import EVENT_NAMES, ID_SHIFT, NO_GFN
from services.trace.critical import Chains, slowest, tree
from services.trace.domains import LEAF_ORDERS, TYPE_NAMES
from services.trace.frame import Column, Frame, Trace
from services.trace.report import HYPERCALLS
from services.trace.superpages import GfnMaps

MESSAGES_MAX: Final = 150_000
"""Messages that a page holds; of a longer trace the slowest hypercalls whole, and a sample."""
WHOLE_TREES: Final = 2000
"""Hypercalls of a longer trace that are there with all that they caused, at most."""
TREE_MAX: Final = 400
UPDATES_MAX: Final = 150_000
EVENTS_MAX: Final = 50_000
SPANS_MAX: Final = 60_000
ASSETS: Final = "deploy.profile.assets"
SCRIPTS: Final = (
    "data", "words", "plot", "sight", "overview", "domain", "heat", "fleet", "kinds", "paths",
    "contention", "xen", "lists", "sequence", "main",
)  # fmt: skip
"""In the order in which they need one another."""
WIDTHS: Final = ((1, "<u1"), (2, "<u2"), (4, "<u4"))
ALIGNED: Final = 8
LEVEL: Final = 9


class Block:
    """Columns of numbers, small and behind each other, and where each lies."""

    def __init__(self) -> None:
        self.data = bytearray()

    def table(self, columns: Mapping[str, Column], of: int) -> dict[str, Any]:
        """Put columns of one length into the block; ``of``: how many rows the trace has."""
        rows = len(next(iter(columns.values())))
        return {
            "rows": rows,
            "of": of,
            "columns": {name: self._put(column) for name, column in columns.items()},
        }

    def _put(self, column: Column) -> dict[str, Any]:
        """Numbers as the page reads them: base plus data, or base plus their running sum."""
        values = column.astype(np.int64)
        if not len(values):
            return {"base": 0, "width": 0, "sum": 0, "at": 0}
        steps = np.diff(values, prepend=values[:1])
        rising = len(values) > 1 and int(steps.min()) >= 0
        base = int(values[0]) if rising else int(values.min())
        deltas = steps if rising else values - base
        top = int(deltas.max())
        width, kind = next((each for each in WIDTHS if top < 1 << 8 * each[0]), (8, "<f8"))
        at = len(self.data)
        if top:
            self.data += deltas.astype(kind).tobytes()
            self.data += bytes(-len(self.data) % ALIGNED)
        return {"base": base, "width": width if top else 0, "sum": int(rising), "at": at}


def write_page(trace: Trace, report: dict[str, Any], file: TextIO) -> None:
    """Write the page of a trace and of what ``services.trace.report.report`` says of it."""
    rows = chosen_messages(trace)
    flags = shatter_flags(trace, report)
    block = Block()
    data = {
        "report": report,
        "names": list(trace.names),
        "kinds": list(trace.kinds),
        "types": TYPE_NAMES,
        "events": {str(int(event)): name for event, name in EVENT_NAMES.items()},
        "hypercalls": {str(number): name for number, name in HYPERCALLS.items()},
        "flagged": flags is not None,
        "messages": _messages(trace, rows, block),
        "updates": _updates(trace, rows, flags, block),
        "memory": _events(trace, block),
        "running": _running(trace, block),
    }
    page = _asset("page.html")
    parts = {
        "TITLE": html.escape(trace.source),
        "STYLE": _asset("page.css"),
        "DATA": _packed(json.dumps(data, separators=(",", ":")).encode()),
        "BLOCK": _packed(bytes(block.data)),
        "SCRIPT": "".join(_asset(f"{name}.js") for name in SCRIPTS),
    }
    for name, text in parts.items():
        head, mark, page = page.partition(f"<!--{name}-->")
        assert mark, f"page.html has no place for {name}"
        file.write(head)
        file.write(text)
    file.write(page)


def chosen_messages(trace: Trace) -> Column:
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


def table_rows(ids: Column, wanted: Column) -> Column:
    """The row of each wanted id among ``ids``, from 1; 0 where it is not there."""
    if not len(ids):
        return np.zeros(len(wanted), dtype=np.int64)
    by_id = np.argsort(ids, kind="stable")
    at = np.minimum(np.searchsorted(ids[by_id], wanted), len(ids) - 1)
    found = by_id[at]
    return np.where((ids[found] == wanted) & (wanted > 0), found + 1, 0)


def shatter_flags(trace: Trace, report: dict[str, Any]) -> Column | None:
    """Flags of GfnMaps of every update; None where the report, which saw more, counts otherwise.

    A part of a trace does not say what was mapped before it, so its updates may break leaves that
    they do not know of.
    """
    u = trace.updates
    paging = str(trace.header.get("host", {}).get("paging", "npt"))
    maps = GfnMaps(LEAF_ORDERS[paging], ept=paging == "ept")
    flags = maps.apply(u["domid"], u["order"], u["type"], u["gfn"], u["mfn"])
    for domid, section in report.get("domains", {}).items():
        if section.get("shatters") != maps.shatters(int(domid)):
            return None
    return flags


def chosen_updates(updates: Frame, flags: Column | None, most: int) -> Column:
    """Rows of at most about ``most`` updates: those that shatter, and every n-th of the others."""
    step = max(1, -(-updates.rows // most))
    keep = np.zeros(updates.rows, dtype=np.bool_)
    keep[::step] = True
    if flags is not None:
        broke = np.flatnonzero(flags)
        keep[broke[:: max(1, -(-len(broke) // most))]] = True
    return np.flatnonzero(keep)


def _messages(trace: Trace, rows: Column, block: Block) -> dict[str, Any]:
    """The chosen messages; causes, parents and requests as rows among them, from 1."""
    m = trace.messages
    ids = m["id"][rows]
    started = m["started"][rows]
    ended = m["ended"][rows]
    columns: dict[str, Column] = {
        "started": started,
        "seq": ids & np.uint64((1 << ID_SHIFT) - 1),
        "cause": table_rows(ids, m["cause"][rows]),
        "parent": table_rows(ids, m["parent"][rows]),
        "asked": table_rows(ids, m["reply_to"][rows]),
        "isReply": m["reply_to"][rows] > 0,
        "transit": m["received"][rows] - m["sent"][rows],
        "queue": started - m["received"][rows],
        "lasted": np.where(ended >= 0, ended - started + 1, 0),
        "gfn": np.where(m["gfn"][rows] == np.uint64(NO_GFN), 0, m["gfn"][rows] + np.uint64(1)),
    }
    for name in (
        "kind", "src", "dst", "shard", "domid", "bytes", "busy", "lock_wait", "order", "nr", "rc",
    ):  # fmt: skip
        columns[name] = m[name][rows]
    return block.table(columns, m.rows)


def _updates(trace: Trace, messages: Column, flags: Column | None, block: Block) -> dict[str, Any]:
    """Updates, all that shattered something first of all; ``by``: who made each, from 1."""
    u = trace.updates
    rows = chosen_updates(u, flags, UPDATES_MAX)
    cause = u["cause"][rows]
    if trace.messages.rows:
        by = table_rows(trace.messages["id"][messages], cause)
    else:
        by = _hypercall_of(trace)[rows]
    mfn = u["mfn"][rows]
    columns: dict[str, Column] = {
        name: u[name][rows] for name in ("time", "domid", "order", "type", "gfn", "cpu")
    }
    columns["mfn"] = np.where(mfn == np.uint64((1 << 64) - 1), 0, mfn + np.uint64(1))
    columns["by"] = by
    columns["shatters"] = np.zeros(len(rows)) if flags is None else flags[rows]
    return block.table(columns, u.rows)


def _hypercall_of(trace: Trace) -> Column:
    """The number of the hypercall behind each update of a xentrace, from 1; 0 is unknown.

    A part of a trace keeps the row numbers of the whole: then nobody can tell.
    """
    calls = trace.hypercalls
    cause = trace.updates["cause"].astype(np.int64)
    made = np.bincount(cause, minlength=calls.rows + 1)[1:]
    if not np.array_equal(made, calls["updates"]):
        return np.zeros(len(cause), dtype=np.int64)
    return np.concatenate(([0], calls["op"].astype(np.int64) + 1))[cause]


def _events(trace: Trace, block: Block) -> dict[str, Any]:
    e = trace.events
    rows = np.arange(0, e.rows, max(1, -(-e.rows // EVENTS_MAX)))
    columns: dict[str, Column] = {
        name: e[name][rows] for name in ("time", "event", "domid", "order", "cpu")
    }
    gfn = e["gfn"][rows]
    columns["gfn"] = np.where(gfn == np.uint64(NO_GFN), 0, gfn + np.uint64(1))
    return block.table(columns, e.rows)


def _running(trace: Trace, block: Block) -> dict[str, Any]:
    r = trace.running
    rows = np.arange(0, r.rows, max(1, -(-r.rows // SPANS_MAX)))
    columns = {name: r[name][rows] for name in ("start", "end", "cpu", "domid", "vcpu")}
    return block.table(columns, r.rows)


def _packed(data: bytes) -> str:
    return base64.b64encode(gzip.compress(data, LEVEL, mtime=0)).decode()


def _asset(name: str) -> str:
    return files(ASSETS).joinpath(name).read_text(encoding="utf-8")
