"""The page: what it holds is what the trace says, and a real browser shows it without a network."""

import base64
import gzip
import io
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import deploy.profile.page as page_module
from deploy.profile.open import open_trace
from deploy.profile.page import chosen_messages, write_page
from protocols.trace import ID_SHIFT
from services.trace.critical import Chains, request_path, tree
from services.trace.frame import Frame, Trace
from services.trace.report import report
from services.trace.select import Selection
from services.trace.sequence import mermaid
from services.trace.superpages import GfnMap

HERE = Path(__file__).parent
CAPTURES = HERE.parent / "data" / "traces"
CAPTURE = CAPTURES / "pod.p3-splinter.trimmed.trace.bin.xz"
TYPES = {1: "<u1", 2: "<u2", 4: "<u4", 8: "<f8"}
BUDGET = 10_000_000


def written(trace, said=None):
    file = io.StringIO()
    write_page(trace, report(trace) if said is None else said, file)
    return file.getvalue()


def unpack(text):
    return gzip.decompress(base64.b64decode(text))


def embedded(page, name):
    return unpack(re.search(rf'id="{name}">([^<]*)</script>', page)[1])


def held(page):
    """The data of a page."""
    return json.loads(embedded(page, "data"))


def column(packed, rows, block):
    """As data.js reads it."""
    if not packed["width"]:
        return np.full(rows, packed["base"], dtype=float)
    kind = TYPES[packed["width"]]
    deltas = np.frombuffer(block, dtype=kind, count=rows, offset=packed["at"]).astype(float)
    return packed["base"] + (np.cumsum(deltas) if packed["sum"] else deltas)


def columns(page, table):
    frame, block = held(page)[table], embedded(page, "block")
    return {name: column(each, frame["rows"], block) for name, each in frame["columns"].items()}


def test_the_page_holds_the_trace(own):
    page = written(own)
    data = held(page)
    m = columns(page, "messages")
    order = np.argsort(own.messages["started"], kind="stable")
    ours = {name: own.messages[name][order] for name in own.messages}
    for name in ("started", "kind", "src", "dst", "domid", "bytes", "busy", "order", "nr"):
        assert m[name].tolist() == ours[name].astype(float).tolist(), name
    ids = (m["src"].astype(int) << ID_SHIFT) + m["seq"].astype(int)
    assert ids.tolist() == ours["id"].tolist()
    causes = [ids[int(row) - 1] if row else 0 for row in m["cause"]]
    assert causes == ours["cause"].tolist()
    assert data["names"] == own.names
    updates = columns(page, "updates")
    for name in ("time", "domid", "order", "type", "gfn", "cpu"):
        assert updates[name].tolist() == own.updates[name].astype(float).tolist(), name
    makers = [ids[int(row) - 1] if row else 0 for row in updates["by"]]
    assert makers == own.updates["cause"].tolist()
    broken = sum(sum(each["shatters"].values()) for each in data["report"]["domains"].values())
    assert int((updates["shatters"] > 0).sum()) == broken > 0
    assert data["flagged"] is True
    assert data["report"]["domains"].keys() == {"1", "2"}


def test_the_page_asks_nobody(own):
    page = written(own)
    outside = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?:https?:)?//""", page)
    assert outside == []
    assert "https://" not in page
    assert page.count("http://") == page.count("http://www.w3.org/2000/svg")
    assert "default-src 'none'" in page


def test_names_from_outside_stay_text(own, tmp_path):
    name = '<img src=x onerror="window.__broken=1">&amp;'
    own_source, own.source = own.source, name
    try:
        page = written(own)
    finally:
        own.source = own_source
    assert "<img" not in page
    assert "&lt;img src=x" in page
    assert held(page)["report"]["source"] == name
    assert tmp_path.is_dir()


def test_a_long_trace_is_cut_to_the_slowest_and_a_sample(own, monkeypatch):
    monkeypatch.setattr(page_module, "MESSAGES_MAX", 60)
    rows, stands, whole = chosen_messages(own)
    assert stands.sum() == own.messages.rows
    kept = set(rows.tolist())
    chains = Chains(own)
    for row in rows[whole].tolist():
        assert kept >= set(tree(chains, row, 1000))
    assert 20 < whole.sum() < len(rows)
    assert 60 <= len(rows) < own.messages.rows // 2
    assert len(set(rows.tolist())) == len(rows)
    started = own.messages["started"][rows]
    assert (np.diff(started) >= 0).all()
    data = held(written(own))
    assert (data["messages"]["rows"], data["messages"]["of"]) == (len(rows), own.messages.rows)


@pytest.mark.parametrize("path", sorted(CAPTURES.glob("*trimmed*")), ids=lambda p: p.name[:20])
def test_pages_of_captures_are_small(path):
    assert len(written(open_trace(path)).encode()) < BUDGET // 10


def test_updates_of_a_capture_name_their_hypercall():
    trace = open_trace(CAPTURE)
    page = written(trace)
    made = columns(page, "updates")["by"].astype(int)
    cause = trace.updates["cause"].astype(int)
    assert [number for number in made.tolist() if number] == [
        int(trace.hypercalls["op"][row - 1]) + 1 for row in cause.tolist() if row
    ]
    assert held(page)["flagged"] is True


def test_a_part_of_a_trace_names_no_wrong_hypercall():
    """Causes are rows of the whole trace, which need not be there any more."""
    whole = open_trace(CAPTURE)
    op = np.append(whole.hypercalls["op"].astype(int) + 1, 0)
    right = op[whole.updates["cause"].astype(int) - 1]
    half = int(whole.updates["time"][whole.updates.rows // 2])
    for chosen in (
        Selection(domid=3),
        Selection(between=(0, half)),
        Selection(between=(half, 1 << 60)),
    ):
        page = written(chosen.of(whole), report(whole, chosen))
        made, mine = columns(page, "updates")["by"], right[chosen.updates(whole.updates)]
        assert len(made) == len(mine) > 0
        assert ((made == 0) | (made == mine)).all()


def test_a_part_of_a_trace_guesses_no_shatter(own):
    """What was mapped before is gone with the rest, so updates of the rest break nothing known."""
    page = written(own)
    first = int(np.flatnonzero(columns(page, "updates")["shatters"])[0])
    chosen = Selection(between=(int(own.updates["time"][first]), 1 << 60))
    said = report(own, chosen)
    assert sum(sum(each["shatters"].values()) for each in said["domains"].values()) > 0
    part = written(chosen.of(own), said)
    assert held(part)["flagged"] is False
    assert not columns(part, "updates")["shatters"].any()
    assert held(written(Selection(domid=2).of(own), report(own, Selection(domid=2))))["flagged"]


# In a browser


def find_playwright():
    place = os.environ.get("PLAYWRIGHT") or str(
        HERE.parent.parent / ".browser" / "node_modules" / "playwright-core"
    )
    return place if Path(place).is_dir() else None


@pytest.fixture
def browse(tmp_path):
    """Open a page, take steps: what they gave, and that nothing went wrong or went out."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    node, playwright = shutil.which("node"), find_playwright()
    if not (chromium and node and playwright):
        pytest.skip("needs chromium, node and playwright-core (make browser)")

    def run(trace, *steps, said=None):
        (tmp_path / "page.html").write_text(written(trace, said), encoding="utf-8")
        (tmp_path / "steps.json").write_text(json.dumps(steps))
        command = [
            node, HERE / "browser.cjs", chromium, playwright, tmp_path / "page.html",
            tmp_path / "steps.json",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert (found["errors"], found["requests"]) == ([], [])
        return found["results"]

    return run


def look(code):
    return {"do": "eval", "code": code}


def link(part):
    """The page's address, as soon as it says so: it does not change with every movement."""
    return look(
        "new Promise(done => { const look = () => location.hash.includes(" + json.dumps(part)
        + ") ? done(location.hash) : setTimeout(look, 20); look(); })"
    )  # fmt: skip


VISIBLE = (
    "[...document.querySelectorAll('main section')].filter(s => s.offsetHeight).map(s => s.id)"
)


@pytest.mark.slow
def test_every_view_of_ours_is_there(own, browse):
    visible, facts, rows = browse(
        own, {"do": "window"}, look(VISIBLE),
        look("document.querySelector('#facts').textContent"),
        look("document.querySelectorAll('#kinds-table tbody tr').length"),
    )  # fmt: skip
    assert visible == [
        "overview", "domain", "heat", "fleet", "kinds", "paths", "contention", "messages",
        "updates",
    ]  # fmt: skip
    assert "2 domains" in facts
    assert rows == len(np.unique(own.messages["kind"]))


@pytest.mark.slow
def test_zoom_moves_every_view(own, browse):
    before, after, heading, back = browse(
        own, {"do": "window"}, look("document.querySelector('#messages-count').textContent"),
        {"do": "drag", "on": "#overview-plot", "from": 0.3, "to": 0.5},
        look("document.querySelector('#messages-count').textContent"),
        look("document.querySelector('#zoomed').textContent"), {"do": "press", "key": "Escape"},
        look("document.querySelector('#messages-count').textContent"),
    )  # fmt: skip
    assert before == back
    assert int(after.split()[0].replace(",", "")) < int(before.split()[0].replace(",", ""))
    assert " to " in heading


ZOOM = {"do": "drag", "on": "#overview-plot", "from": 0.495, "to": 0.545}
MEMORY = look(
    "({edges: [...memoryShown.edges], mapped: Object.fromEntries(Object.entries(memoryShown.mapped)"
    ".map(([order, values]) => [order, [...values]])), span: [state.t0, state.t1]})"
)


@pytest.mark.slow
def test_the_whole_picture_is_what_the_report_says(browse):
    trace = open_trace(CAPTURE)
    said = report(trace)["domains"]["3"]["series"]
    mapped, lanes = browse(
        trace, {"do": "window"},
        look(f"levelsAt(levels(-1), {json.dumps(said['edges'])}, false).mapped"),
        look("Object.fromEntries(memoryShown.strips.map(name => [name, "
             "memoryShown.lanes[name].values.reduce((a, b) => a + b, 0)]))"),
    )  # fmt: skip
    assert {order: list(values.values()) for order, values in mapped.items()} == said["mapped"]
    assert lanes == {
        name: sum(said[name]) for name in (
            "shatters", "updates", "populate_calls", "extents", "nested_faults", "pod_populate",
            "pod_splinter", "pod_reclaim",
        )
    }  # fmt: skip


@pytest.mark.slow
def test_zoomed_in_each_step_is_where_it_happened(browse):
    trace = open_trace(CAPTURE)
    shown, updates = browse(
        trace, {"do": "window"}, ZOOM, MEMORY,
        look("[...memoryShown.lanes.updates.values].filter(n => n).length"),
    )  # fmt: skip
    u = trace.updates
    first, last = shown["span"]
    map_ = GfnMap((0, 9, 18))
    done, tops = 0, []
    for begin in shown["edges"][:-1]:
        upto = int(np.searchsorted(u["time"], begin, side="right"))
        part = slice(done, upto)
        map_.apply(u["order"][part], u["type"][part], u["gfn"][part], u["mfn"][part])
        done = upto
        tops.append(map_.frames())
    assert shown["mapped"] == {
        str(order): [each.get(order, 0) for each in tops] for order in (0, 9)
    }
    inside = np.unique(u["time"][(u["time"] >= first) & (u["time"] <= last)])
    assert sorted({first, *inside.tolist(), last}) == shown["edges"]
    assert len(inside) > 200
    assert updates > 20


@pytest.mark.slow
def test_lists_wait_while_one_moves(own, browse):
    counted = look("document.querySelector('#messages-count').textContent")
    before, moving, after = browse(
        own, {"do": "window"}, counted,
        look("(zoomBy(0.1), new Promise(done => requestAnimationFrame(() => "
             "done(document.querySelector('#messages-count').textContent))))"),
        look("new Promise(done => setTimeout(() => "
             "done(document.querySelector('#messages-count').textContent), 400))"),
    )  # fmt: skip
    assert before == moving
    assert after != before


@pytest.mark.slow
def test_facts_of_a_part_are_counted_as_the_report_counts(own, browse):
    found = browse(
        own, {"do": "window"}, look("[factsReported(), factsInSight()]"),
        {"do": "select", "on": "#domid", "value": "1"}, look("[factsReported(), factsInSight()]"),
        {"do": "drag", "on": "#overview-plot", "from": 0.6, "to": 0.99},
        look("document.querySelector('#domain-facts').textContent"),
        look("[state.t0, state.t1, hottestInSight('1')]"),
    )  # fmt: skip
    for reported, counted in found[:2]:
        broken = {step: nr for step, nr in reported["shatters"].items() if nr}
        assert {**reported, "shatters": broken} == counted
        assert sum(broken.values()) > 0
    assert found[2].startswith("in sight:p2m updates")
    first, last, hottest = found[3]
    u = own.updates
    inside = (u["time"] >= first) & (u["time"] <= last) & (u["domid"] == 1)
    bases, counts = np.unique(u["gfn"][inside] >> np.uint64(9), return_counts=True)
    assert {each["gfn"] >> 9: each["updates"] for _, each in hottest} == dict(
        zip(bases.tolist(), counts.tolist(), strict=True)
    )


@pytest.mark.slow
def test_a_page_with_a_sample_counts_all(own, browse, monkeypatch):
    """Rows stand for those left out before them, so zoomed views count every record."""
    for name, most in (("MESSAGES_MAX", 60), ("UPDATES_MAX", 50), ("EVENTS_MAX", 60)):
        monkeypatch.setattr(page_module, name, most)
    whole = look("Object.values(figuresInSight('messages').figures).map(each => each.count)")
    held_, titles, lanes, all_kinds, mine, map_ = browse(
        own, {"do": "window"}, look("[M.rows, U.rows, E.rows]"),
        look("[0, 1].map(whole => { state.row = M.whole.indexOf(whole); drawSequence();"
             " return document.querySelector('#sequence-title').textContent; })"),
        look("[sum(memoryShown.lanes.updates.values), sum(memoryShown.lanes.shatters.values),"
             " sum(memoryShown.lanes.nested_faults.values)]"),
        whole, {"do": "select", "on": "#domid", "value": "1"}, whole,
        look("map.rows.reduce((n, row) => n + row.cells.reduce((a, b) => a + b, 0), 0)"),
    )  # fmt: skip
    said = report(own)
    assert held_[0] < own.messages.rows
    assert "of this page's sample" in titles[0]
    assert "sample" not in titles[1]
    assert held_[1] < own.updates.rows
    assert held_[2] < own.events.rows
    series = [each["series"] for each in said["domains"].values()]
    assert lanes == [
        sum(sum(each[name]) for each in series) for name in ("updates", "shatters", "nested_faults")
    ]
    assert sum(all_kinds) == own.messages.rows
    assert sum(mine) == np.count_nonzero(own.messages["domid"] == 1)
    assert map_ == np.count_nonzero(own.updates["domid"] == 1)


@pytest.mark.slow
def test_figures_of_one_domain_are_those_of_the_report(own, browse):
    """The page counts again what is in sight; of one domain the report can count it, too."""
    kinds, services = browse(
        own, {"do": "window"}, {"do": "select", "on": "#domid", "value": "1"},
        look("figuresInSight('messages').figures"), look("figuresInSight('services').figures"),
    )  # fmt: skip
    said = report(own, Selection(domid=1))
    for figures in (*kinds.values(), *services.values()):
        for times in ("queue", "service", "awaiting", "lock"):
            assert set(figures[times]) == {"p50", "p90", "p99", "max", "total"}
    flat = {kind: {**each} for kind, each in kinds.items()}
    for each in flat.values():
        each.pop("total")
    assert flat == said["messages"]
    assert services.keys() == said["services"].keys()


@pytest.mark.slow
def test_percentiles_are_of_what_one_chooses(own, browse):
    first = look("document.querySelector('#kinds-table tbody td:nth-child(5)').textContent")
    kind = look("document.querySelector('#kinds-table tbody td').textContent")
    name, latency, queue, address, title = browse(
        own, {"do": "window"}, kind, first, {"do": "click", "on": "[data-of=queue]"}, first,
        link("of="), look("document.querySelector('#latency-name').textContent"),
    )  # fmt: skip
    said = report(own)["messages"][name]
    assert (latency, queue) == (f"{said['p50']:,}", f"{said['queue']['p50']:,}")
    assert "of=queue" in address
    assert title == "Queue time"


@pytest.mark.slow
def test_contention_of_one_domain_is_that_of_the_report(own, browse):
    all_boxes, boxes, locks, even = browse(
        own, {"do": "window"}, look("contentionOfRows().mailboxes"),
        {"do": "select", "on": "#domid", "value": "1"},
        look("contentionInSight().mailboxes"), look("contentionInSight().locks"),
        look("contentionInSight().fairness"),
    )  # fmt: skip
    by_shard = {each["shard"]: each for each in report(own)["contention"]["mailboxes"]}
    assert {each["shard"]: each for each in all_boxes} == by_shard
    said = report(own, Selection(domid=1))["contention"]
    for mine, alone in zip(
        sorted(boxes, key=lambda box: box["shard"]), said["mailboxes"], strict=True
    ):
        # The queue that a domain waits in is made of the messages of all.
        assert alone["longest"] <= mine.pop("longest") <= by_shard[mine["shard"]]["longest"]
        assert mine.pop("at") > 0
        assert mine == {name: each for name, each in alone.items() if name not in {"longest", "at"}}
    assert locks == said["locks"]
    whole = report(own)["contention"]["fairness"]
    assert even["jain"] == pytest.approx(whole["jain"])
    assert even["domains"] == whole["domains"]


@pytest.mark.slow
def test_every_request_has_the_critical_path_that_the_command_prints(own, browse):
    chains = Chains(own)
    m = own.messages
    requests = np.flatnonzero((m["reply_to"] == 0) & (m["ended"] >= 0) & (m["src"] != m["dst"]))
    expected = {}
    for row in requests.tolist():
        path = request_path(chains, row)
        if path is not None:
            expected[path["id"]] = [
                path["start"], path["end"], path["messages"], path["segments"], path["by_service"],
            ]  # fmt: skip
    (found,) = browse(
        own, {"do": "window"},
        look(f"Object.fromEntries({json.dumps(list(expected))}.map(id => {{"
             "const path = requestPath(rowOf(id));"
             "return [id, [path.start, path.end, path.messages, path.segments, path.by_service]];"
             "}))"),
    )  # fmt: skip
    assert len(expected) > 40
    assert found == expected


@pytest.mark.slow
def test_a_chosen_message_shows_its_critical_path(own, browse):
    row = next(
        at for at, kind in enumerate(own.messages["kind"].tolist())
        if own.kinds[kind] == "decrease_reservation"
    )  # fmt: skip
    name = own.name_of(int(own.messages["id"][row]))
    shown, domain = browse(
        own, {"do": "window"}, {"do": "search", "text": name},
        look("document.querySelector('#chosen-path').textContent"),
        {"do": "press", "key": "Escape"},
        {"do": "search", "text": "d2"}, look("state.domid"),
    )  # fmt: skip
    assert shown.startswith(f"{name}decrease_reservation")
    assert "spent in" in shown
    assert domain == "2"


@pytest.mark.slow
def test_the_strip_and_the_keys_move_what_is_in_sight(own, browse):
    window = look("[state.t0, state.t1]")
    whole, dragged, moved, wider, later = browse(
        own, {"do": "window"}, window,
        {"do": "drag", "on": "#context-plot", "from": 0.3, "to": 0.5}, window,
        {"do": "drag", "on": "#context-plot", "from": 0.4, "to": 0.6}, window,
        {"do": "press", "key": "-"}, window, {"do": "press", "key": "ArrowRight"}, window,
    )  # fmt: skip
    length = whole[1] - whole[0]
    assert 0.1 * length < dragged[1] - dragged[0] < 0.3 * length
    assert moved[1] - moved[0] == pytest.approx(dragged[1] - dragged[0])
    assert moved[0] > dragged[0] + 0.1 * length
    assert wider[1] - wider[0] > moved[1] - moved[0]
    assert later[0] > wider[0]


@pytest.mark.slow
def test_the_map_goes_from_domains_to_gfns_to_one_superpage(own, browse):
    rows = look("map.rows.map(row => [row.of, row.low, row.high])")
    cells = look("map.rows.reduce((n, row) => n + row.cells.reduce((a, b) => a + b, 0), 0)")
    domains, gfns, updates, shatters, inside, back, marked = browse(
        own, {"do": "window"}, rows, {"do": "click", "on": "#heat-plot", "x": 300, "y": 200},
        rows, cells, {"do": "click", "on": "[data-metric=shatters]"}, cells,
        {"do": "drag", "on": "#heat-plot", "from": 0.2, "to": 0.95, "top": 0.9, "bottom": 0.7},
        look("[state.g0, state.g1, map.rows.length]"),
        {"do": "click", "on": "#gfns"}, look("[state.g0, map.rows.length]"),
        {"do": "click", "on": ".chip"}, look("state.gfn"),
    )  # fmt: skip
    said = report(own)["domains"]["1"]
    assert [row[0] for row in domains] == ["1", "2"]
    assert [row[1] for row in gfns] == said["heat"]["gfn_edges"][:-1]
    assert updates == sum(map(sum, said["heat"]["updates"]))
    assert shatters == sum(map(sum, said["heat"]["shatters"])) > 0
    assert 0 <= inside[0] < inside[1] < said["heat"]["gfn_edges"][-1]
    assert 1 <= inside[2] < len(gfns)
    assert marked == said["hottest"][0]["gfn"]
    assert back == [-1, len(gfns)]


@pytest.mark.slow
def test_more_domains_than_pixels_share_rows(browse):
    nr = 300
    domid = np.repeat(np.arange(1, nr + 1), 2)
    domid[-1] = 200  # has more than its neighbours
    trace = Trace("many.bin", "xentrace", {}, 1e9)
    trace.updates = Frame.of(
        "updates",
        {"time": np.arange(2 * nr) * 1000, "domid": domid, "gfn": np.arange(2 * nr), "mfn": domid},
    )
    rows, choices, listed, calls, unseen, chosen = browse(
        trace, {"do": "window"},
        look("map.rows.map(row => [row.domids.map(Number), row.cells.reduce((a, b) => a + b, 0)])"),
        look("document.querySelectorAll('#domid option').length"),
        look("lists['fleet-table'].rows.length"),
        look("(R.domains[1].populate = {calls: 7, extents_per_call: {p50: 1, max: 1},"
             " fallbacks: {}, unknown_frames: 512},"
             " fleetRows = null, fleetDrawn = '', drawFleet(), drawDomainFacts(),"
             " [...document.querySelectorAll('#fleet-table tbody tr')].slice(0, 2)"
             ".map(row => row.lastChild.textContent))"),
        look("document.querySelector('#domain-facts').textContent"),
        look("(clickHeat({clientY: document.querySelector('#heat-plot').getBoundingClientRect().top"
             " + 8 + (272 - 28) * (1 - 66.5 / 100)}), state.domid)"),
    )  # fmt: skip
    assert [row for row, _ in rows] == [[at, at + 1, at + 2] for at in range(1, nr, 3)]
    assert sum(made for _, made in rows) == 2 * nr
    assert (choices, listed) == (nr + 1, nr)
    assert calls == ["7", "-"]
    assert "not traced 2 MiB" in unseen
    assert chosen == "200"


@pytest.mark.slow
def test_a_page_of_little_says_what_is_missing(own, browse):
    visible, missing = browse(
        Trace("empty.trace", "shatterproof", {}, 0.0), {"do": "window"}, look(VISIBLE),
        look("document.querySelector('#missing').textContent"), said={"source": "empty.trace"},
    )  # fmt: skip
    assert visible == ["overview"]
    assert "No p2m update" in missing
    (bare,) = browse(own, {"do": "window"}, look(VISIBLE), said={"source": "own.trace"})
    assert bare == ["overview", "messages", "updates"]


@pytest.mark.slow
def test_search_finds_messages_gfns_and_kinds(own, browse):
    row = next(
        at for at, kind in enumerate(own.messages["kind"].tolist())
        if own.kinds[kind] == "decrease_reservation"
    )  # fmt: skip
    name = own.name_of(int(own.messages["id"][row]))
    title, arrows, diagram, listed, address, gfns, kind, nothing = browse(
        own, {"do": "window"}, {"do": "search", "text": name},
        look("document.querySelector('#sequence-title').textContent"),
        look("document.querySelectorAll('#sequence-plot .step').length"), look("diagram"),
        look("document.querySelector('#messages-table tr.on td:nth-child(2)').textContent"),
        link("id="), {"do": "press", "key": "Escape"},
        {"do": "search", "text": "0x2000"},
        look("[...document.querySelectorAll('#updates-table tbody tr td:last-child')]"
             ".map(cell => parseInt(cell.textContent) >> 9)"),
        {"do": "press", "key": "Escape"}, {"do": "search", "text": "flush_tlb"},
        look("new Set([...document.querySelectorAll('#messages-table tbody tr td:nth-child(4)')]"
             ".map(cell => cell.textContent)).size"),
        {"do": "press", "key": "Escape"}, {"do": "search", "text": "no such thing"},
        look("document.querySelector('#tip').textContent"),
    )  # fmt: skip
    assert title.startswith(f"{name} decrease_reservation")
    assert arrows >= 4
    assert diagram == mermaid(Chains(own), row)
    assert listed == name
    assert name.replace("/", "%2F").replace("#", "%23") in address
    assert set(gfns) == {0x2000 >> 9}
    assert kind == 1
    assert nothing.startswith("nothing is called no such thing")


@pytest.mark.slow
def test_a_link_opens_the_same_view(own, browse):
    gfn, metric = browse(
        own, {"do": "window", "hash": "#domid=2&gfn=0x600&metric=shatters"},
        look("document.querySelector('#heat-title').textContent"),
        look("document.querySelector('[data-metric=shatters]').getAttribute('aria-pressed')"),
    )  # fmt: skip
    assert "domain 2" in gfn
    assert "0x600" in gfn
    assert metric == "true"


@pytest.mark.slow
def test_light_and_dark(own, browse):
    colour = look("getComputedStyle(document.body).backgroundColor")
    dark, light = browse(
        own, {"do": "window", "scheme": "dark"}, colour, {"do": "click", "on": "#theme"}, colour
    )
    assert dark == "rgb(15, 20, 26)"
    assert light == "rgb(243, 245, 248)"


@pytest.mark.slow
def test_a_real_capture_has_its_own_views(browse):
    visible, calls, broken, runs, lane, seen = browse(
        open_trace(CAPTURE), {"do": "window", "width": 500, "height": 800}, look(VISIBLE),
        look("document.querySelector('#hypercalls-body tbody td').textContent"),
        look("document.documentElement.scrollWidth <= 500"),
        look("lists['runs-body'].rows.map(i => H.updates[i])"),
        {"do": "drag", "on": "#overview-plot", "from": 0.5, "to": 0.6},
        look("[isWhole(), overview.rate]"),
        look("[[state.t0, state.t1], sum(sharesInSight(300).map(s => sum(s.bins) / 300)),"
             " hypercallsInSight()]"),
    )  # fmt: skip
    assert visible == [
        "overview", "domain", "heat", "hypercalls", "runs", "events", "pcpus", "updates",
    ]  # fmt: skip
    assert calls == "memory_op"
    assert lane == [False, None], "zoomed or not, it has no messages"
    assert runs[0] == max(open_trace(CAPTURE).hypercalls["updates"].tolist())
    half, share, named = seen
    trace = open_trace(CAPTURE)
    calls = trace.hypercalls
    inside = (calls["time"] >= half[0]) & (calls["time"] <= half[1])
    assert sum(each["count"] for each in named.values()) == np.count_nonzero(inside)
    assert sum(each["updates"] for each in named.values()) == int(calls["updates"][inside].sum())
    r = trace.running
    ran = np.minimum(r["end"], half[1]) - np.maximum(r["start"], half[0])
    busy = int(ran[(ran > 0) & (r["domid"] < 0x7FF0)].sum())
    assert share == pytest.approx(busy / (half[1] - half[0]), rel=1e-3)
    assert broken is True, "a narrow window needs no scrolling sideways"


@pytest.mark.slow
def test_hostile_names_do_nothing(own, browse):
    own_source, own.source = own.source, '<img src=x onerror="window.__broken=1">'
    try:
        title, broken = browse(
            own, {"do": "window"}, look("document.querySelector('#source').textContent"),
            look("window.__broken === undefined"),
        )  # fmt: skip
    finally:
        own.source = own_source
    assert title.startswith("<img")
    assert broken is True
