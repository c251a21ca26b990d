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
from services.trace.report import report

HERE = Path(__file__).parent
CAPTURES = HERE.parent / "data" / "traces"
CAPTURE = CAPTURES / "pod.p3-splinter.trimmed.trace.bin.xz"
TYPES = {1: "<u1", 2: "<u2", 4: "<u4", 8: "<f8"}
BUDGET = 10_000_000


def written(trace):
    file = io.StringIO()
    write_page(trace, report(trace), file)
    return file.getvalue()


def unpack(text):
    return gzip.decompress(base64.b64decode(text))


def held(page):
    """The data of a page."""
    return json.loads(unpack(re.search(r'id="data">([^<]*)</script>', page)[1]))


def column(packed, rows):
    """As page.js reads it."""
    if not packed["width"]:
        return np.full(rows, packed["base"], dtype=float)
    deltas = np.frombuffer(unpack(packed["data"]), dtype=TYPES[packed["width"]]).astype(float)
    return packed["base"] + (np.cumsum(deltas) if packed["sum"] else deltas)


def columns(frame):
    return {name: column(each, frame["rows"]) for name, each in frame["columns"].items()}


def test_the_page_holds_the_trace(own):
    page = written(own)
    data = held(page)
    m = columns(data["messages"])
    order = np.argsort(own.messages["started"], kind="stable")
    ours = {name: own.messages[name][order] for name in own.messages}
    for name in ("started", "kind", "src", "dst", "domid", "bytes", "busy", "order", "nr"):
        assert m[name].tolist() == ours[name].astype(float).tolist(), name
    ids = (m["src"].astype(int) << ID_SHIFT) + m["seq"].astype(int)
    assert ids.tolist() == ours["id"].tolist()
    causes = [ids[int(row) - 1] if row else 0 for row in m["cause"]]
    assert causes == ours["cause"].tolist()
    assert data["names"] == own.names
    updates = columns(data["updates"])
    assert updates["gfn"].tolist() == own.updates["gfn"].tolist()
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
    rows = chosen_messages(own)
    assert 30 <= len(rows) <= 90
    assert len(set(rows.tolist())) == len(rows)
    started = own.messages["started"][rows]
    assert (np.diff(started) >= 0).all()
    data = held(written(own))
    assert (data["messages"]["rows"], data["messages"]["of"]) == (len(rows), own.messages.rows)


@pytest.mark.parametrize("path", sorted(CAPTURES.glob("*trimmed*")), ids=lambda p: p.name[:20])
def test_pages_of_captures_are_small(path):
    assert len(written(open_trace(path)).encode()) < BUDGET // 10


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

    def run(trace, *steps):
        (tmp_path / "page.html").write_text(written(trace), encoding="utf-8")
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


VISIBLE = (
    "[...document.querySelectorAll('main > section')].filter(s => s.offsetHeight).map(s => s.id)"
)


@pytest.mark.slow
def test_every_view_of_ours_is_there(own, browse):
    visible, facts, rows = browse(
        own, {"do": "window"}, look(VISIBLE),
        look("document.querySelector('#facts').textContent"),
        look("document.querySelectorAll('#kinds-table tbody tr').length"),
    )  # fmt: skip
    assert visible == [
        "overview", "domain", "heat", "kinds", "paths", "contention", "messages", "updates",
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


@pytest.mark.slow
def test_search_finds_messages_gfns_and_kinds(own, browse):
    row = next(
        at for at, kind in enumerate(own.messages["kind"].tolist())
        if own.kinds[kind] == "decrease_reservation"
    )  # fmt: skip
    name = own.name_of(int(own.messages["id"][row]))
    title, arrows, link, gfns, kind, nothing = browse(
        own, {"do": "window"}, {"do": "search", "text": name},
        look("document.querySelector('#sequence-title').textContent"),
        look("document.querySelectorAll('#sequence-plot .step').length"),
        look("location.hash"), {"do": "press", "key": "Escape"},
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
    assert name.replace("/", "%2F").replace("#", "%23") in link
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
    assert dark == "rgb(17, 22, 29)"
    assert light == "rgb(245, 246, 248)"


@pytest.mark.slow
def test_a_real_capture_has_its_own_views(browse):
    visible, calls, broken = browse(
        open_trace(CAPTURE), {"do": "window", "width": 500, "height": 800}, look(VISIBLE),
        look("document.querySelector('#hypercalls-body tbody td').textContent"),
        look("document.documentElement.scrollWidth <= 500"),
    )  # fmt: skip
    assert visible == ["overview", "domain", "heat", "hypercalls", "pcpus", "updates"]
    assert calls == "memory_op"
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
