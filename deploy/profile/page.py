"""The page of a trace: one HTML file with its data inside, which asks nobody for anything."""

from __future__ import annotations

import base64
import gzip
import html
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any, Final, NamedTuple, TextIO

import numpy as np

from deploy.profile.curves import Curves, curves
from deploy.profile.sample import chosen, spread, standing
from protocols.text import shown
from protocols.trace import EVENT_NAMES, ID_SHIFT, NO_GFN
from services.trace.critical import Chains, slowest, tree
from services.trace.domains import TYPE_NAMES
from services.trace.frame import Column, Trace
from services.trace.populates import Calls, populates
from services.trace.report import HYPERCALLS
from services.trace.select import Selection
from services.trace.stats import services
from services.trace.superpages import Flags
from services.trace.xen_populates import xen_populates

MESSAGES_MAX: Final = 150_000
"""Messages that a page holds; of a longer trace the slowest hypercalls whole, and a sample."""
WHOLE_TREES: Final = 2000
"""Hypercalls of a longer trace that are there with all that they caused, at most."""
TREE_MAX: Final = 400
UPDATES_MAX: Final = 150_000
EVENTS_MAX: Final = 50_000
CALLS_MAX: Final = 50_000
HYPERCALLS_MAX: Final = 50_000
DOMID_BITS: Final = 32
SPANS_MAX: Final = 60_000
ASSETS: Final = "deploy.profile.assets"
SCRIPTS: Final = (
    "data", "words", "plot", "sight", "curves", "waits", "facts", "overview", "domain", "heat",
    "fleet", "kinds", "paths", "contention", "xen", "pcpus", "lists", "sequence", "main",
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
        rising = len(values) > 1 and bool((values[1:] >= values[:-1]).all())
        base = int(values[0]) if rising else int(values.min())
        # Modulo 2**64 no difference is too large.
        steps = np.diff(values, prepend=values[:1]) if rising else values - base
        deltas = steps.view(np.uint64)
        top = int(deltas.max())
        width, kind = next((each for each in WIDTHS if top < 1 << 8 * each[0]), (8, "<f8"))
        at = len(self.data)
        if top:
            self.data += deltas.astype(kind).tobytes()
            self.data += bytes(-len(self.data) % ALIGNED)
        return {"base": base, "width": width if top else 0, "sum": int(rising), "at": at}


def write_page(trace: Trace, report: dict[str, Any], file: TextIO) -> None:
    """Write the page of a trace and of what ``services.trace.report.report`` says of it."""
    messages = chosen_messages(trace)
    found = curves(trace, report)
    block = Block()
    data = {
        "report": report,
        "names": list(trace.names),
        "kinds": list(trace.kinds),
        "types": TYPE_NAMES,
        "events": {str(int(event)): name for event, name in EVENT_NAMES.items()},
        "hypercalls": {str(number): name for number, name in HYPERCALLS.items()},
        "flagged": found.flags is not None,
        "broken": 0 if found.flags is None else int(np.count_nonzero(found.flags)),
        "orders": found.orders,
        "messages": _messages(trace, messages, block),
        "updates": _updates(trace, messages.rows, found.flags, block),
        "steps": _steps(found, block),
        "calls": _calls(trace, block),
        "memory": _events(trace, block),
        "running": _running(trace, block),
        "made": _hypercalls(trace, block),
    }
    page = _asset("page.html")
    parts = {
        "TITLE": html.escape(shown(trace.source)),
        "STYLE": _asset("page.css"),
        "DATA": _packed(json.dumps(_visible(data), separators=(",", ":")).encode()),
        "BLOCK": _packed(bytes(block.data)),
        "SCRIPT": "".join(_asset(f"{name}.js") for name in SCRIPTS),
    }
    for name, text in parts.items():
        head, mark, page = page.partition(f"<!--{name}-->")
        assert mark, f"page.html has no place for {name}"
        file.write(head)
        file.write(text)
    file.write(page)


class Messages(NamedTuple):
    """The messages that a page holds, by the time when their handling began."""

    rows: Column
    stands: Column
    """How many messages each stands for: itself, and those of its kind to the same service for the
    same domain that are left out before it."""
    whole: Column
    """Whether all that was asked for its sake is there, too."""


def chosen_messages(trace: Trace) -> Messages:
    """All messages, or the slowest hypercalls with all that they caused, and a sample."""
    m = trace.messages
    by_time = np.argsort(m["started"], kind="stable")
    if m.rows <= MESSAGES_MAX:
        return Messages(by_time, *np.ones((2, m.rows), dtype=np.int64))
    chains = Chains(trace)
    keep, whole = np.zeros((2, m.rows), dtype=np.bool_)
    left = MESSAGES_MAX // 2
    for request in slowest(trace, WHOLE_TREES):
        if left <= 0:
            break
        found = tree(chains, request, TREE_MAX)
        left -= len(found)
        keep[found] = True
        whole[found] |= len(found) < TREE_MAX
    spread(keep, MESSAGES_MAX - int(np.count_nonzero(keep)))
    names, numbers = services(trace.names)
    kinds = m["kind"].astype(np.int64) * len(names) + numbers[m["dst"]]
    keys = kinds << DOMID_BITS | (m["domid"].astype(np.int64) + 1)
    rows, stands = standing(keys[by_time], keep[by_time])
    return Messages(by_time[rows], stands, whole[by_time[rows]])


def table_rows(ids: Column, wanted: Column) -> Column:
    """The row of each wanted id among ``ids``, from 1; 0 where it is not there."""
    if not len(ids):
        return np.zeros(len(wanted), dtype=np.int64)
    by_id = np.argsort(ids, kind="stable")
    at = np.minimum(np.searchsorted(ids[by_id], wanted), len(ids) - 1)
    found = by_id[at]
    return np.where((ids[found] == wanted) & (wanted > 0), found + 1, 0)


def _messages(trace: Trace, messages: Messages, block: Block) -> dict[str, Any]:
    """The chosen messages; causes, parents and requests as rows among them, from 1."""
    m, rows = trace.messages, messages.rows
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
        "stands": messages.stands,
        "whole": messages.whole,
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


def _steps(found: Curves, block: Block) -> dict[str, Any]:
    """What domains had mapped: leaves by order, which is the name of the column."""
    names = ("time", "domid", *(str(order) for order in found.orders))
    columns: dict[str, Column] = dict(zip(names, found.steps.T, strict=True))
    return block.table(columns, found.nr_steps)


def _calls(trace: Trace, block: Block) -> dict[str, Any]:
    """The populate_physmap calls; ``fell``: 1 + the order from which the ladder came down to it."""
    parts = [
        np.stack((
            each.started, np.full(len(each.started), domid), each.order, each.asked, each.done,
            _fell(each) + 1,
        ))
        for domid, each in _calls_of(trace).items()
    ]  # fmt: skip
    names = ("time", "domid", "order", "asked", "done", "fell")
    table = np.concatenate(parts, axis=1) if parts else np.zeros((len(names), 0), dtype=np.int64)
    table = table[:, np.argsort(table[0], kind="stable")]
    rows, stands = chosen(table[1], CALLS_MAX, table[-1])
    columns: dict[str, Column] = dict(zip(names, table[:, rows], strict=True))
    return block.table({**columns, "stands": stands}, table.shape[1])


def _calls_of(trace: Trace) -> dict[int, Calls]:
    """As the report has them; of a part of a xentrace nothing, as its causes are those of all."""
    if not trace.is_xens:
        return populates(trace, None)
    if not _knows_causes(trace):
        return {}
    return xen_populates(trace, Selection(), trace.domids_given_again()).calls


def _fell(calls: Calls) -> Column:
    if calls.fell is not None:
        return calls.fell
    short = (calls.done < calls.asked)[:-1] & (calls.order[1:] < calls.order[:-1])
    fell = np.full(len(calls.order), -1, dtype=np.int64)
    fell[1:][short] = calls.order[:-1][short]
    return fell


def _updates(trace: Trace, messages: Column, flags: Flags | None, block: Block) -> dict[str, Any]:
    """Updates, all that shattered something first of all; ``by``: who made each, from 1."""
    u = trace.updates
    by_time = np.argsort(u["time"], kind="stable")
    rows, stands = chosen(
        u["domid"][by_time], UPDATES_MAX, None if flags is None else flags[by_time]
    )
    rows = by_time[rows]
    cause = u["cause"][rows]
    if not trace.is_xens:
        by = table_rows(trace.messages["id"][messages], cause)
    else:
        by = _hypercall_of(trace)[rows]
    mfn = u["mfn"][rows]
    columns: dict[str, Column] = {
        name: u[name][rows] for name in ("time", "domid", "order", "type", "gfn", "cpu")
    }
    columns["mfn"] = np.where(mfn == np.uint64((1 << 64) - 1), 0, mfn + np.uint64(1))
    columns["by"] = by
    columns["stands"] = stands
    columns["shatters"] = np.zeros(len(rows)) if flags is None else flags[rows]
    return block.table(columns, u.rows)


def _knows_causes(trace: Trace) -> bool:
    """Whether updates of a xentrace name hypercalls in it; those of a part name rows of all."""
    calls = trace.hypercalls
    cause = trace.updates["cause"].astype(np.int64)
    made = np.bincount(cause, minlength=calls.rows + 1)[1:]
    return np.array_equal(made, calls["updates"])


def _hypercall_of(trace: Trace) -> Column:
    """The number of the hypercall behind each update of a xentrace, from 1; 0 is unknown."""
    cause = trace.updates["cause"].astype(np.int64)
    if not _knows_causes(trace):
        return np.zeros(len(cause), dtype=np.int64)
    return np.concatenate(([0], trace.hypercalls["op"].astype(np.int64) + 1))[cause]


def _events(trace: Trace, block: Block) -> dict[str, Any]:
    e = trace.events
    by_time = np.argsort(e["time"], kind="stable")
    # An event of each kind and domain stands for others of the same.
    _, codes = np.unique(e["event"], return_inverse=True)
    keys = (e["domid"].astype(np.int64) + 1) << 8 | codes
    rows, stands = chosen(keys[by_time], EVENTS_MAX)
    rows = by_time[rows]
    columns: dict[str, Column] = {
        name: e[name][rows] for name in ("time", "event", "domid", "order", "cpu")
    }
    gfn = e["gfn"][rows]
    columns["gfn"] = np.where(gfn == np.uint64(NO_GFN), 0, gfn + np.uint64(1))
    columns["stands"] = stands
    return block.table(columns, e.rows)


def _running(trace: Trace, block: Block) -> dict[str, Any]:
    r = trace.running
    by_time = np.argsort(r["start"], kind="stable")
    keys = r["cpu"].astype(np.int64) << DOMID_BITS | (r["domid"].astype(np.int64) + 1)
    rows, stands = chosen(keys[by_time], SPANS_MAX)
    rows = by_time[rows]
    columns = {name: r[name][rows] for name in ("start", "end", "cpu", "domid", "vcpu")}
    return block.table({**columns, "stands": stands}, r.rows)


def _hypercalls(trace: Trace, block: Block) -> dict[str, Any]:
    """Hypercalls of a xentrace, before all others those that made updates."""
    calls = trace.hypercalls
    by_time = np.argsort(calls["time"], kind="stable")
    rows, stands = chosen(calls["op"][by_time], HYPERCALLS_MAX, calls["updates"][by_time] > 0)
    rows = by_time[rows]
    columns = {
        name: calls[name][rows] for name in ("time", "cpu", "domid", "vcpu", "op", "updates")
    }
    return block.table({**columns, "stands": stands}, calls.rows)


def _visible(value: Any) -> Any:
    """The same with all text as people may see it; the page shows it as text, never as HTML."""
    given = value
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, Mapping):
        return {_visible(name): _visible(each) for name, each in given.items()}
    # Most lists are long and of numbers.
    if isinstance(value, (list, tuple)) and not set(map(type, given)) <= {int, float}:
        return [_visible(each) for each in given]
    return given


def _packed(data: bytes) -> str:
    return base64.b64encode(gzip.compress(data, LEVEL, mtime=0)).decode()


def _asset(name: str) -> str:
    return files(ASSETS).joinpath(name).read_text(encoding="utf-8")
