"""Names from files in every command and every output: shown as they are, obeyed by nobody.

Whatever a command prints is compared with what may be there: printable lines of bounded length.
"""

import base64
import csv
import gzip
import html
import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from deploy.campaign.artifact import Counterexample, load
from deploy.campaign.hunt import ZooRow
from deploy.cli.main import run
from deploy.cli.stress import save
from deploy.cli.stress_render import print_zoo
from protocols.text import csv_text, mermaid_text, shown

ESCAPES = "\x1b[2J\x1b]0;title\x07\x9b31m"
NASTY = [
    "[/x]", "[bold red]x[/]", ":smile:", ESCAPES, "a\0b\x7fc", "a\nb\r\nc", "\u202eevil\u2028x",
    "n" * 10_000, "=cmd()|x!A0", "</script><script>alert(1)</script>", "x;end", "%%{init:{}}%%",
    'a "quoted, cell"', "../../../x",
]  # fmt: skip
LINE = 4200
LAUNCH = ["--runtime", "local", "--host-memory", "64MiB"]


@pytest.fixture
def tells(capsys, tmp_path, monkeypatch):
    """Run a command line in an empty directory: its status, and what it said, which is text."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)

    def tells(*arguments):
        status = run([str(each) for each in arguments])
        out, err = capsys.readouterr()
        for line in (*out.split("\n"), *err.split("\n")):
            assert line.isprintable()
            assert len(line) <= LINE or out.startswith("{")
        assert "internal error" not in err, err
        assert err.count("\n") <= 1
        assert sorted(tmp_path.iterdir()) == [here], "nothing is written elsewhere"
        return status, out

    return tells


def toml(text):
    """A basic string of TOML."""
    return json.dumps(text).replace("\x7f", "\\u007f")


@pytest.mark.parametrize("name", NASTY)
def test_names_of_domains(tells, name):
    Path("x.toml").write_text(
        f'[[domains]]\nname = {toml(name)}\nmemory = 4\ntype = "pvh"\n', encoding="utf-8"
    )
    status, out = tells("launch", *LAUNCH, "x.toml", "--trace", "t", "--dump-p2m", "d", "-v")
    if status == 0:
        assert f"  {shown(name, 64)}  built" in out
        status, out = tells("launch", *LAUNCH, "x.toml", "--json", "-")
        assert json.loads(out)["domains"][0]["name"] == name
        assert [path.name for path in Path("d").iterdir()] == ["dom1.csv"]
        assert tells("profile", "t")[0] == 0
        assert tells("replay", "--runtime", "local", "t")[0] == 0
        assert tells("audit", "--runtime", "local", "x.toml")[0] == 0
    else:
        assert status == 2
        assert out == ""


@pytest.mark.parametrize("name", [each for each in NASTY if "\n" not in each and '"' not in each])
def test_names_of_xl_cfg(tells, name):
    Path("x.cfg").write_bytes(f'name = "{name}"\nmemory = 4\ntype = "pvh"\n'.encode())
    status, out = tells("launch", *LAUNCH, "x.cfg")
    assert status == 2 or f"  {shown(name, 64)}  built" in out
    Path("x.cfg").write_bytes(f'name = "a"\nmemory = 4\ntype = "pvh"\n{name} = 1\n'.encode())
    tells("launch", *LAUNCH, "x.cfg")
    Path("x.cfg").write_bytes(f'name = "a"\nmemory = "{name}"\n'.encode())
    assert tells("launch", *LAUNCH, "x.cfg")[0] == 2


STRESS = """
clients = 2
ops = 1
[host]
memory_mib = 32
[[domains]]
max_mib = 8
extents = [{gfn = 0x200, nr = 1, order = 9}]
[[operations]]
kind = "decrease"
gfns = [[0x200, 0x210]]
"""
EXAMPLE = {
    "format": "shatterproof counterexample", "version": 1,
    "violation": {"invariant": "use_after_free", "message": "x"},
    "found": {"schedule": 1, "strategy": "pct", "seed": 0}, "steps": 24,
    "case": {
        "workload": "x", "host": {"memory_mib": 64, "nodes": 1, "paging": "npt", "lock": "domain"},
        "domains": [{
            "domid": 1, "max_mib": 8, "vcpus": 1, "pool_pages": None, "superpages": "explicit",
            "extents": [{"gfn": 512, "nr": 1, "order": 9, "pod": False}], "pod_target_mib": None,
            "warm": [],
        }],
        "clients": [[["touch", 1, 513, 1, 0, 0, 0]], [["decrease", 1, 513, 1, 0, 0, 0]]],
    },
    "schedule": {"deviations": {}, "faults": []}, "entry": "",
}  # fmt: skip


@pytest.mark.parametrize("name", NASTY)
def test_names_of_workloads_and_cases(tells, name):
    Path("w.toml").write_text(f"name = {toml(name)}\n{STRESS}", encoding="utf-8")
    status, out = tells("stress", "w.toml", "--schedules", "2")
    assert status == 2 or out.startswith(f"{shown(name, 4000)[:1000]}")
    tells("stress", "w.toml", "--schedules", "2", "--json", "-")
    example = json.loads(json.dumps(EXAMPLE))
    example["case"]["workload"] = example["violation"]["message"] = name
    example["violation"]["invariant"] = example["found"]["strategy"] = name
    Path("e.json").write_text(json.dumps(example))
    status, out = tells("stress", "--replay", "e.json", "--diagram", "d.mmd", "--trace", "t")
    assert status in {0, 2}
    assert status == 2 or shown(name, 3000)[:100] in out
    tells("stress", "--replay", "e.json", "--until", "3")
    tells("stress", "--replay", "e.json", "--json", "-")
    for place in ("bug", "entry"):
        bad = json.loads(json.dumps(example))
        bad["case"]["bug"] = bad[place] = name
        Path("e.json").write_text(json.dumps(bad).replace('"bug": ', '"x": ', place != "bug"))
        assert tells("stress", "--replay", "e.json")[0] in {0, 2}


@pytest.mark.parametrize("name", NASTY)
def test_a_counterexample_stays_in_the_directory_that_is_given(tmp_path, name):
    example = json.loads(json.dumps(EXAMPLE))
    example["case"]["workload"] = example["violation"]["invariant"] = name
    kept = save(msgspec.convert(example, Counterexample), tmp_path / "kept")
    assert kept.parent == tmp_path / "kept"
    assert [kept] == list(kept.parent.iterdir())
    assert [kept.parent] == list(tmp_path.iterdir())
    assert re.fullmatch(r"[\w.-]+\.json", kept.name)
    assert load(kept).case.workload == name


def test_the_table_of_the_zoo(capsys):
    print_zoo([ZooRow(name, name, name, True, 1, 1, 1.0, True, 1, [name]) for name in NASTY])
    out = capsys.readouterr().out
    assert all(line.isprintable() for line in out.split("\n"))
    for name in NASTY:
        # Of a line that is too long the middle is left out.
        assert len(name) > 1000 or f"also seen: {shown(name, 4000)[:25]}" in out


# a trace whose components and messages have such names


KNOWN = ("populate_physmap", "p2m_teardown")
"""Kinds that the reports look for."""


@pytest.fixture(params=[NASTY[::3], NASTY[1::3], NASTY[2::3]], ids=["a", "b", "c"])
def named(request, own, monkeypatch):
    """A trace in which nearly all have such names, and the names."""
    names, kinds = itertools.cycle(request.param), itertools.cycle(request.param)
    trace = replace(
        own,
        source=request.param[0],
        names=[
            each if each.startswith(("client", "toolstack")) else f"{next(names)}{number}"
            for number, each in enumerate(own.names)
        ],
        kinds=[each if each in KNOWN else f"{next(kinds)}{each}" for each in own.kinds],
    )
    monkeypatch.setattr("deploy.cli.profile_answers.open_trace", lambda *_, **__: trace)
    return trace


def asked(trace):
    """A hypercall that went through several components."""
    m = trace.messages
    first = np.flatnonzero((m["reply_to"] == 0) & (m["ended"] > 0) & (m["parent"] > 0))[0]
    return trace.name_of(int(m["id"][first]))


def test_reports_of_a_trace(tells, named):
    Path("t").write_bytes(b"is looked at, lest it is a long xentrace")
    for rest in ([], ["--domid", "1"], ["--diff", "u"], ["--critical-path"]):
        assert tells("profile", "t", *rest)[0] == 0
        status, out = tells("profile", "t", "--json", "-", *rest)
        assert status == 0
        json.loads(out)
    assert tells("profile", "t", "--kind", named.names[-1])[0] == 2
    assert tells("profile", "t", "--kind", named.kinds[-1])[0] == 0
    assert tells("profile", "t", "--sequence", named.names[-1])[0] == 2
    status, out = tells("profile", "t", "--sql", "select distinct src, kind from messages")
    assert status == 0
    for name in named.names:
        assert len(name) > 20 or shown(name) in out


def test_diagrams_of_a_trace(tells, named):
    request = asked(named)
    status, out = tells("profile", "t", "--sequence", request)
    assert status == 0
    lines = out.splitlines()
    participants = [line for line in lines if line.startswith("    participant ")]
    arrows = [line for line in lines if re.match(r"    c\d+--?>>c\d+: ", line)]
    assert 1 + len(participants) + len(arrows) == len(lines)
    shown_names = {line.partition(" as ")[2] for line in participants}
    assert shown_names <= {mermaid_text(name) for name in named.names}
    assert all(re.search(r" #35;\d+", line) for line in arrows), "Mermaid ends a text at a bare #"
    for line in arrows:
        entities = re.sub(r"#\d+;", "", line.replace(">>", ""))
        assert not set('#;<>&%$"`') & set(entities)


def test_files_made_of_a_trace(tells, named):
    status, _ = tells(
        "profile", "t", "--html", "x.html", "--perfetto", "x.pf", "--csv", "x.csv",
        "--parquet", "x.parquet", "--xentrace", "x.xen",
    )  # fmt: skip
    assert status == 0
    page = Path("x.html").read_text(encoding="utf-8")
    assert f"<title>{html.escape(shown(named.source))} " in page
    assert page.count("<script") == page.count("</script>") == 3
    packed = re.search(r'id="data">([^<]*)</script>', page)[1]
    data = json.loads(gzip.decompress(base64.b64decode(packed)))
    assert data["names"] == [shown(name) for name in named.names]
    assert set(data["report"]["messages"]) <= set(data["kinds"])
    slices = Path("x.pf").read_bytes()
    assert all(shown(name).encode() in slices for name in named.kinds)
    with Path("x.messages.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == named.messages.rows
    assert {row["dst"] for row in rows} <= {csv_text(name) for name in named.names}
    for row in rows:
        for column in ("src", "dst", "kind", "service", "id_text", "cause_text"):
            assert row[column].isprintable()
            assert not row[column].startswith(("=", "+", "-", "@"))
