"""The command: every flag, what it says when it is misused, and that a trace replays."""

import gzip
import json
from itertools import pairwise

import pytest

from deploy.cli.main import run
from deploy.profile.open import open_trace
from protocols.trace import NO_DOMID
from services.trace.report import report
from services.trace.select import Selection
from services.trace.superpages import GfnMap
from tests.profile.test_page import CAPTURE

WORK = """
[host]
memory = "512MiB"
nodes = 2
[[domains]]
name = "a"
type = "pvh"
memory = 32
count = 3
vcpus = 2
[[phases]]
op = "build"
[[phases]]
op = "touch"
nr = 400
[[phases]]
op = "punch"
first_gfn = 0x1000
superpages = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def says(capsys, *arguments):
    """(status, standard output) of a command that complains about nothing."""
    status = run([str(each) for each in arguments])
    out, err = capsys.readouterr()
    assert err == ""
    return status, out


def refused(capsys, *arguments):
    assert run([str(each) for each in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err.removeprefix("shatterproof: ")


def test_the_report_of_ours(own_path, capsys):
    status, out = says(capsys, "profile", own_path)
    assert status == 0
    for part in ("messages: latency", "critical path", "domains", "contention", "fairness"):
        assert part in out
    status, out = says(capsys, "profile", own_path, "--domid", 1)
    assert "domain 1 over time" in out
    assert "most updated superpages" in out


def test_json_has_what_the_contract_says(own_path, own, capsys):
    _, out = says(capsys, "profile", own_path, "--json", "-")
    found = json.loads(out)
    assert (found["format"], found["lost"], found["truncated"]) == ("shatterproof", 0, False)
    assert found["records"] == own.records
    assert found["events"] == own.event_counts()
    for kind, each in found["messages"].items():
        mine = own.messages["kind"] == own.kinds.index(kind)
        assert each["count"] == int(mine.sum())
        assert each["bytes"] == int(own.messages["bytes"][mine].sum())
        assert each["p50"] <= each["p99"] <= each["max"]
    assert sum(each["count"] for each in found["messages"].values()) == own.messages.rows
    section = found["domains"]["1"]
    assert set(section) >= {
        "p2m_updates", "decrease_reservation", "pod_populate", "pod_zero_reclaim",
        "pod_superpage_splinter", "nested_faults", "shatters", "final_extents",
    }  # fmt: skip
    assert section["shatters"] == {"18->9": 0, "9->0": 4}
    assert section["decrease_reservation"] == {"0": 11}
    assert found["domains"]["2"]["pod_populate"]["9"] > 0


def test_memory_of_a_part_ends_where_the_part_does(own):
    u = own.updates.take(own.updates["domid"] == 1)
    middle = int(u["time"][u.rows // 2])
    section = report(own, Selection(between=(0, middle)))["domains"]["1"]
    seen = u.take(u["time"] <= middle)
    assert 0 < seen.rows < u.rows
    leaves = GfnMap((0, 9, 18))
    leaves.apply(seen["order"], seen["type"], seen["gfn"], seen["mfn"])
    mapped = {int(order): frames[-1] for order, frames in section["series"]["mapped"].items()}
    assert {order: nr for order, nr in mapped.items() if nr} == leaves.frames()
    assert section["final_extents"] == report(own)["domains"]["1"]["final_extents"]


def test_a_destroyed_domain_has_nothing_left(destroyed):
    section = report(destroyed)["domains"]["1"]
    assert section["final_extents"] == {}
    assert section["shatters"]["9->0"] == 4
    mapped = section["series"]["mapped"]["9"]
    assert max(mapped) > 0
    assert mapped[-1] == 0


@pytest.mark.parametrize(
    ("flags", "column", "check"),
    [
        (["--domid", "2"], "domid", lambda value: value in {2, NO_DOMID}),
        (["--kind", "flush_tlb"], "kind", lambda value: value == "flush_tlb"),
        (["--gfn", "0x1000+512"], "gfn", lambda value: 0 <= value < 0x1200),
    ],
)
def test_selections(own_path, capsys, flags, column, check):
    sql = f"select {column} as value from messages"
    _, out = says(capsys, "profile", own_path, *flags, "--sql", sql, "--json", "-")
    values = [value for (value,) in json.loads(out)["rows"]]
    assert values
    assert all(check(value) for value in values)


def test_a_stretch_of_time(own_path, own, capsys):
    last = int(own.messages["ended"].max())
    sql = "select min(ended), max(sent) from messages"
    _, out = says(
        capsys, "profile", own_path, "--between", last // 4, last // 2, "--sql", sql, "--json", "-"
    )
    ((first, sent),) = json.loads(out)["rows"]
    assert first >= last // 4
    assert sent < last // 2
    _, out = says(capsys, "profile", own_path, "--between", 0, last // 2, "--json", "-")
    half = json.loads(out)
    _, out = says(capsys, "profile", own_path, "--json", "-")
    whole = json.loads(out)
    assert 0 < half["events"]["set_p2m_entry"] < whole["events"]["set_p2m_entry"]


def test_paths_and_sequences(own_path, own, capsys):
    asked = next(
        own.name_of(number)
        for number, kind in zip(
            own.messages["id"].tolist(), own.messages["kind"].tolist(), strict=True
        )
        if own.kinds[kind] == "decrease_reservation"
    )
    _, out = says(capsys, "profile", own_path, "--critical-path", asked, "--json", "-")
    path = json.loads(out)
    assert path["id"] == asked
    assert path["segments"][0]["start"] == path["start"]
    ends = [(each["start"], each["end"]) for each in path["segments"]]
    assert all(end == start for (_, end), (start, _) in pairwise(ends))
    assert sum(path["by_service"].values()) == path["end"] - path["start"]
    _, out = says(capsys, "profile", own_path, "--critical-path")
    assert "critical path of the whole run" in out
    _, out = says(capsys, "profile", own_path, "--sequence", asked)
    lines = out.splitlines()
    assert lines[0] == "sequenceDiagram"
    assert any("->>" in line and "decrease_reservation" in line for line in lines)
    assert any("-->>" in line and "nr_done" in line for line in lines)


def test_every_export_at_once(own_path, folder, capsys):
    flags = [
        "--html", "a.html", "--perfetto", "a.pftrace", "--xentrace", "a.bin", "--parquet",
        "a.parquet", "--csv", "a.csv", "--json", "a.json",
    ]  # fmt: skip
    status, out = says(capsys, "profile", own_path, *flags)
    assert status == 0
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [
            "a.html", "a.pftrace", "a.bin", "a.json",
            *(f"a.{name}.{kind}" for name in ("messages", "updates", "events")
              for kind in ("csv", "parquet")),
        ]
    )  # fmt: skip
    assert "a.html: " in out
    assert json.loads((folder / "a.json").read_text())["schema"] == "shatterproof.profile/1"
    _, again = says(capsys, "profile", "a.bin", "--cpu-hz", "1e9", "--json", "-")
    assert json.loads(again)["domains"]["1"]["shatters"] == {"18->9": 0, "9->0": 4}


def test_a_compressed_trace_is_read(own_path, folder, capsys):
    (folder / "t.gz").write_bytes(gzip.compress(own_path.read_bytes()))
    status, _ = says(capsys, "profile", "t.gz")
    assert status == 0


def test_a_trace_of_ours_that_was_cut(own_path, folder, capsys):
    data = own_path.read_bytes()
    (folder / "cut").write_bytes(data[: len(data) - 100])
    assert run(["profile", "cut", "--json", "-"]) == 0
    out, err = capsys.readouterr()
    assert err.startswith("shatterproof: cut: cut off: ")
    assert err.count("\n") == 1
    assert json.loads(out)["truncated"] is True


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (["--kind", "nothing"], "--kind nothing"),
        (["--gfn", "x"], "--gfn x"),
        (["--gfn", "0x20-0x10"], "--gfn 0x20-0x10"),
        (["--gfn", "5+0"], "--gfn 5+0"),
        (["--between", "2", "1"], "--between 2.0 1.0"),
        (["--sequence", "p2m/9#1"], "--sequence p2m/9#1"),
        (["--critical-path", "rubbish"], "--critical-path rubbish"),
        (["--sql", "rubbish"], "--sql"),
        (["--html", "no/where.html"], "--html no/where.html"),
        (["--perfetto", "."], "--perfetto ."),
        (["--json", "no/where.json"], "--json no/where.json"),
        (["--diff", "nothing"], "nothing: cannot be read"),
        (["--domid", "-1"], "--domid"),
    ],
)
def test_misuse_is_one_line(own_path, folder, capsys, flags, names):
    assert names in refused(capsys, "profile", own_path, *flags)
    assert list(folder.iterdir()) == []


def test_a_kind_that_no_message_has_is_told_of_a_xentrace(capsys):
    assert "no message at all" in refused(capsys, "profile", CAPTURE, "--kind", "touch")


@pytest.mark.parametrize("seed", ["0", "9"])
def test_a_trace_replays_to_the_same_tables(folder, capsys, seed):
    (folder / "w.toml").write_text(WORK)
    says(
        capsys, "launch", "w.toml", "--runtime", "local", "--seed", seed, "--trace", "t",
        "--dump-p2m", "real",
    )  # fmt: skip
    status, _ = says(capsys, "replay", "t", "--dump-p2m", "again", "--json", "r.json")
    assert status == 0
    for domid in (1, 2, 3):
        name = f"dom{domid}.csv"
        assert (folder / "again" / name).read_bytes() == (folder / "real" / name).read_bytes()
    found = json.loads((folder / "r.json").read_text())
    profiled = json.loads(says(capsys, "profile", "t", "--json", "-")[1])
    for each in found["domains"]:
        steps = profiled["domains"][str(each["domid"])]["shatters"]
        assert each["shatters"] == {step.partition("->")[0]: nr for step, nr in steps.items() if nr}


def test_what_cannot_be_replayed(own_path, folder, capsys):
    data = own_path.read_bytes()
    (folder / "cut").write_bytes(data[:-30])
    assert "a replay needs the whole run" in refused(capsys, "replay", "cut")
    assert "--updates 3" in refused(capsys, "replay", own_path, "--updates", 3)
    says(capsys, "stress", "split-storm", "--schedules", 2, "--trace", "s", "--seed", 4)
    assert open_trace("s").messages.rows > 20
    assert "which nobody sends" in refused(capsys, "replay", "s")


def test_a_counterexample_as_a_trace(folder, capsys):
    assert "--trace" in refused(capsys, "stress", "--zoo", "xsa-346", "--trace", "z")
    run(["stress", "--zoo", "table-freed-early", "--save", "."])
    (found,) = folder.glob("*.json")
    assert run(["stress", "--replay", found.name, "--trace", "z"]) == 1
    capsys.readouterr()
    trace = open_trace("z")
    assert trace.header["runtime"] == "stress"
    assert trace.messages.rows >= 3
    assert int(trace.messages["ended"][-1]) == -1, "the step that broke the invariant"
    _, out = says(capsys, "profile", "z")
    assert "runtime stress" in out
