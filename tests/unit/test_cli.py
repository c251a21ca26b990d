"""The command line: bad input is one line and exit 2, a failed domain exit 1; the reports."""

import gzip
import json
import lzma
import socket
import struct

import pytest
from click.testing import CliRunner

from deploy.cli.files import dump_tables, whole_file
from deploy.cli.main import cli, main, run
from deploy.cluster.runtime import _probe
from protocols.errno import BadInputError
from tests.helpers import DATA, trace_bytes

LOCAL = ["--runtime", "local"]
GUEST = "name = 'a'\ntype = 'pvh'\nmemory = 64\n"
DOMAIN = '[[domains]]\nname = "x"\nmemory = 64\ntype = "pvh"\n'
TRACE = str(DATA / "traces" / "b1.pvh-64.trimmed.trace.bin.xz")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty directory that the command runs in."""
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


@pytest.fixture
def refuse(folder, capsys):
    """Run a command line that must be refused; its one line."""

    def refuse(*arguments):
        before = sorted(path.name for path in folder.iterdir())
        status = run(list(arguments))
        out, err = capsys.readouterr()
        assert status == 2
        assert out == ""
        assert err.count("\n") == 1
        assert err.startswith("shatterproof: ")
        assert "Traceback" not in err
        assert sorted(path.name for path in folder.iterdir()) == before, "nothing is written"
        return err.removeprefix("shatterproof: ").rstrip("\n")

    return refuse


def text(folder, name, content):
    (folder / name).write_text(content)
    return name


# what a person may get wrong in a guest or a scenario


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("name = 'a'\ntype = 'pvh'\nmemory = 'much'\n", "memory"),
        ("name = 'a'\ntype = 'pvh'\nmemory = 0\n", "memory"),
        ("name = 'a'\ntype = 'pvh'\nmemory = -4\n", "memory"),
        ("name = 'a'\ntype = 'xenner'\nmemory = 64\n", "type"),
        ("type = 'pvh'\nmemory = 64\n", "name"),
        (GUEST + "maxmem = 32\n", "maxmem"),
        (GUEST + "vcpus = 0\n", "vcpus"),
        (GUEST + "hap = 0\n", "hap"),
        (GUEST + "x = [1,\n", "guest.cfg"),
        (GUEST.replace("64", "9000"), "at most the host's 8192 MiB"),
        ("\x00\x01\x02", "guest.cfg"),
        ("", "guest.cfg"),
    ],
)
def test_bad_guests(refuse, folder, content, line):
    path = text(folder, "guest.cfg", content)
    message = refuse("launch", path, *LOCAL, "--trace", "t.bin", "--dump-p2m", "out")
    assert path in message
    assert line in message


UNKNOWN = "guest.cfg: memroy (did you mean memory?), qqqqqq"


def test_unknown_keys_are_one_warning(folder, capsys):
    path = text(folder, "guest.cfg", GUEST + "memroy = 5\nqqqqqq = []\n")
    also = text(folder, "b.cfg", GUEST.replace("'a'", "'b'") + "colour = 1\n")
    assert run(["launch", path, also, *LOCAL, "--json", "r.json"]) == 0
    warning = f"shatterproof: warning: unknown keys, not used: {UNKNOWN}; b.cfg: colour\n"
    assert capsys.readouterr().err == warning
    assert json.loads((folder / "r.json").read_text())["unknown_keys"] == [
        {"source": "guest.cfg", "key": "memroy"},
        {"source": "guest.cfg", "key": "qqqqqq"},
        {"source": "b.cfg", "key": "colour"},
    ]


def test_unknown_keys_of_many_files_are_still_one_line(folder, capsys):
    lines = "".join(f"q{number} = 1\n" for number in range(30))
    paths = [
        text(folder, f"{number}.cfg", GUEST.replace("'a'", f"'g{number}'") + lines)
        for number in range(9)
    ]
    assert run(["launch", *paths, *LOCAL]) == 0
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert len(err) <= 301
    assert err.endswith("5 more\n")


def test_strict_refuses_unknown_keys(folder, refuse):
    path = text(folder, "guest.cfg", GUEST + "memroy = 5\nqqqqqq = []\n")
    for command in (["launch", *LOCAL], ["audit", "--runtime", "local"]):
        assert f"--strict: unknown keys: {UNKNOWN}" in refuse(*command, path, "--strict")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (DOMAIN + "colour = 1\n", "colour"),
        (DOMAIN + "[hosts]\n", "hosts"),
        (DOMAIN + "[host]\nmemory = 5\n", "host.memory"),
        (DOMAIN + "[host]\nmemory = '32MiB'\n", "at most the host's 32 MiB"),
        (DOMAIN + "maxmem = 8\n", "maxmem"),
        (DOMAIN + "force_4k = [[0, 16], [8, 2]]\n", "overlapping ranges at gfn 0x8"),
        (DOMAIN + "[[phases]]\nop = 'dance'\n", "phases[0].op"),
        (DOMAIN + "[[phases]]\nop = 'touch'\nnr = -1\n", "phases[0].nr"),
        ("[[domains]\n", "line 1"),
        ("", "domains"),
    ],
)
def test_bad_scenarios(refuse, folder, content, line):
    path = text(folder, "work.toml", content)
    message = refuse("launch", path, *LOCAL, "--json", "report.json")
    assert path in message
    assert line in message
    assert message == refuse("audit", path, *LOCAL, "--json", "report.json")


def test_files_that_are_not_there(refuse, folder):
    assert "none.cfg" in refuse("launch", "none.cfg", *LOCAL)
    assert "none.toml" in refuse("audit", "none.toml", *LOCAL)
    assert "none.bin" in refuse("replay", "none.bin", *LOCAL)
    (folder / "dir.toml").mkdir()
    assert "dir.toml" in refuse("launch", "dir.toml", *LOCAL)
    assert "dir.toml" in refuse("replay", "dir.toml", *LOCAL)
    (folder / "latin.toml").write_bytes(b'name = "\xff\xfe"\n')
    assert "latin.toml" in refuse("launch", "latin.toml", *LOCAL)


# traces


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x03",
        b"name = 'guest'\nmemory = 64\n",
        trace_bytes("b1.pvh-64")[:-5],
        trace_bytes("b1.pvh-64")[:1001],
        lzma.compress(trace_bytes("b1.pvh-64"))[:-20],
        gzip.compress(trace_bytes("b1.pvh-64"), mtime=0)[:-20],
        gzip.compress(b"", mtime=0),
        gzip.compress(trace_bytes("b1.pvh-64"), mtime=0)[:2] + bytes(40),
        b"\xfd7zXZ\x00" + bytes(40),
        bytes(range(64)),
    ],
)
def test_bad_traces(refuse, folder, data):
    (folder / "trace.bin").write_bytes(data)
    message = refuse("replay", "trace.bin", *LOCAL, "--dump-p2m", "out", "--json", "r.json")
    assert message.startswith("trace.bin: ")


def test_a_trace_with_a_type_that_xen_does_not_have(folder, capsys):
    body = struct.pack("<IQQIHH", 0x6010F004, 1, 2, 77, 1, 0)
    window = struct.pack("<III", 0x2001F003, 0, len(body)) + body
    (folder / "trace.bin").write_bytes(window)
    assert run(["replay", "trace.bin", *LOCAL]) == 2
    err = capsys.readouterr().err
    assert "type 77" in err
    assert err.count("\n") == 1


# flags


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--colour"], "--colour"),
        (["--nodes", "0"], "--nodes"),
        (["--nodes", "two"], "--nodes"),
        (["--paging", "vtd"], "--paging"),
        (["--superpages", "sometimes"], "--superpages"),
        (["--host-memory", "lots"], "--host-memory"),
        (["--host-memory", "12"], "--host-memory"),
        (["--host-memory", "32MiB"], "at most the host's 32 MiB"),
        (["--host-memory", "64MiB", "--nodes", "64"], "at least 2 MiB for each node"),
        (["--xen-cmdline", "hap=0"], "hap=0"),
        (["--xen-cmdline", "hap_1gb=maybe"], "hap_1gb"),
        (["--paging", "x86_32", "--host-memory", "8GiB"], "x86_32"),
        (["--seed", "-1"], "--seed"),
        (["--shards", "2"], "--shards"),
        (["--shards", "0"], "--shards"),
        (["--address", "127.0.0.1:1"], "--address"),
        (["--runtime", "slurm"], "--runtime"),
        (["--trace", "no/where/t.bin"], "--trace"),
        (["--json", "no/where/r.json"], "--json"),
        (["--trace", "."], "--trace"),
        (["--json", "."], "--json"),
        (["--dump-p2m", "guest.cfg"], "--dump-p2m"),
        (["--dump-p2m", "guest.cfg/sub"], "--dump-p2m"),
        (["--trace", "/proc/none/t.bin"], "--trace"),
        (["--dump-p2m", "/proc/none"], "--dump-p2m"),
    ],
)
def test_bad_flags(refuse, folder, flags, line):
    path = text(folder, "guest.cfg", GUEST)
    assert line in refuse("launch", path, *LOCAL, "--dump-p2m", "out", *flags)


@pytest.mark.parametrize(
    "arguments",
    [
        ["launch", *LOCAL],
        ["replay", *LOCAL],
        ["audit", *LOCAL],
        ["dance"],
        ["--colour"],
        ["replay", TRACE, "--updates", "-1", *LOCAL],
        ["replay", TRACE, "--updates", "x", *LOCAL],
        ["replay", TRACE, TRACE, *LOCAL],
        ["replay", TRACE, "--dump-p2m", TRACE, *LOCAL],
    ],
)
def test_bad_command_lines(refuse, arguments):
    refuse(*arguments)


@pytest.mark.parametrize("command", ["launch", "audit"])
@pytest.mark.parametrize("place", ["", ".", "none/report.json"])
def test_a_report_that_cannot_be_written_is_refused_before_the_run(refuse, folder, command, place):
    path = text(folder, "guest.cfg", GUEST)
    assert refuse(command, path, *LOCAL, "--json", place).startswith("--json ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["launch", *LOCAL, "--trace", "out", "--dump-p2m", "./out"],
        ["launch", *LOCAL, "--trace", "out", "--json", "out"],
        ["replay", *LOCAL, "--dump-p2m", "out", "--json", "out"],
        ["profile", "--html", "out", "--json", "out"],
        ["profile", "--csv", "out", "--perfetto", "out"],
    ],
)
def test_two_outputs_in_one_place_are_refused_before_anything(refuse, folder, arguments):
    path = TRACE if arguments[0] != "launch" else text(folder, "guest.cfg", GUEST)
    assert "the same place as that of --" in refuse(arguments[0], path, *arguments[1:])
    assert not (folder / "out").exists()


def test_two_outputs_of_stress_in_one_place(refuse, folder):
    message = refuse("stress", "mix", "--schedules", "1", "--history", "o", "--trace", "o")
    assert message == "--trace o: the same place as that of --history"
    assert list(folder.iterdir()) == []


def test_a_place_that_is_taken_meanwhile(folder):
    place = folder / "out"
    with pytest.raises(BadInputError, match="this is a directory"), whole_file(place, "--json"):
        place.mkdir()
    assert list(folder.iterdir()) == [place]
    file = folder / "file"
    file.touch()
    with pytest.raises(BadInputError, match=r"--dump-p2m .*: cannot be made: File exists"):
        dump_tables(file, [])


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense", "host:port", "127.0.0.1:99999"])
def test_a_cluster_that_is_not_there(refuse, folder, address):
    path = text(folder, "guest.cfg", GUEST)
    message = refuse("launch", path, "--address", address, "--dump-p2m", "out", "--trace", "t")
    assert message.startswith(f"--address {address}: ")


def test_an_address_where_somebody_listens_passes_the_probe():
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert _probe(f"127.0.0.1:{server.getsockname()[1]}") is None


def test_two_workloads_that_contradict_each_other(refuse, folder):
    text(folder, "a.toml", '[host]\nmemory = "1GiB"\n' + DOMAIN)
    text(folder, "b.toml", '[host]\nmemory = "2GiB"\n' + DOMAIN.replace("x", "y"))
    assert "differs from" in refuse("launch", "a.toml", "b.toml", *LOCAL)
    text(folder, "c.cfg", GUEST)
    assert "taken by" in refuse("launch", "c.cfg", "c.cfg", *LOCAL)


# reports


def launched(*arguments):
    """(exit status, JSON report) of a launch that writes its report to standard output."""
    result = CliRunner().invoke(
        cli, ["launch", *arguments, *LOCAL, "--json", "-"], standalone_mode=False
    )
    assert result.exception is None
    return result.return_value, json.loads(result.stdout)


def test_the_report_of_launch(folder):
    path = text(folder, "guest.cfg", GUEST)
    status, report = launched(path, "--host-memory", "1GiB")
    assert status == 0
    assert isinstance(report.pop("elapsed_s"), float)
    messages = report.pop("messages")
    assert messages["build_domain"] == messages["domain_result"] == 1
    assert messages["populate_physmap"] == 18
    assert all(isinstance(nr, int) for nr in messages.values())
    audit = report.pop("audit")
    assert audit["checked"] > 64 * 256
    assert (audit["violations"], audit["details"]) == (0, [])
    pool = 256 + 64
    used = 64 * 256 + 17 + pool
    assert report == {
        "schema": "shatterproof.launch/1",
        "host": {"total": 262144, "used": used, "free": 262144 - used},
        "domains": [
            {
                "name": "a",
                "domid": 1,
                "status": "built",
                "error": None,
                "memory_kib": 65536,
                "tot_pages": 64 * 256 + 17,
                "pod_entries": 0,
                "extents": {"0": 17, "9": 32},
                "shatters": 0,
                "populate_calls": 18,
            }
        ],
    }


def test_a_domain_that_does_not_fit_fails_alone(folder):
    names = []
    for name, memory in (("small", 64), ("large", 150), ("tiny", 16)):
        names.append(
            text(
                folder, f"{name}.cfg", GUEST.replace("64", str(memory)).replace("'a'", f"'{name}'")
            )
        )
    status, report = launched(*names, "--host-memory", "160MiB")
    assert status == 1
    small, large, tiny = report["domains"]
    assert (small["status"], small["error"]) == ("built", None)
    assert (tiny["status"], tiny["error"]) == ("built", None)
    assert large["status"] == "failed"
    assert "ENOMEM" in large["error"]
    assert (large["extents"], large["tot_pages"]) == ({}, 0)
    assert report["audit"]["violations"] == 0
    _, without = launched(names[0], names[2], "--host-memory", "160MiB")
    assert report["host"] == without["host"], "the frames of the failed domain came back"


def test_json_to_a_file_and_the_closing_table(folder, capsys):
    path = text(folder, "guest.cfg", GUEST)
    assert run(["launch", path, *LOCAL, "--json", "r.json", "--dump-p2m", "out"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "audit: clean" in out
    assert "built" in out
    report = json.loads((folder / "r.json").read_text())
    assert report["schema"] == "shatterproof.launch/1"
    rows = (folder / "out" / "dom1.csv").read_text().splitlines()
    assert len(rows) == 1 + 32 + 17
    assert sorted(path.name for path in folder.iterdir()) == ["guest.cfg", "out", "r.json"]


def test_the_report_of_replay(folder, capsys):
    assert run(["replay", TRACE, *LOCAL, "--json", "-"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    report = json.loads(out)
    assert report["schema"] == "shatterproof.replay/1"
    assert report["domains"] == [
        {"domid": 1, "updates": 49, "extents": {"0": 17, "9": 32}, "pod_entries": 0, "shatters": {}}
    ]


def test_the_report_of_audit(folder, capsys):
    path = text(folder, "guest.cfg", GUEST)
    assert run(["audit", path, *LOCAL, "--json", "-"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    report = json.loads(out)
    assert (report["violations"], report["orphans"], report["m2p_bad"]) == (0, 0, 0)
    assert run(["audit", path, *LOCAL]) == 0
    assert capsys.readouterr().out.startswith("audit: clean")


def test_keys_that_do_not_matter_are_told_to_who_asks(folder, capsys):
    path = text(folder, "guest.cfg", GUEST + "on_crash = 'preserve'\n")
    assert run(["launch", path, *LOCAL]) == 0
    assert capsys.readouterr().err == ""
    assert run(["launch", path, *LOCAL, "--verbose", "--log-json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["key"] for line in lines] == ["on_crash"]


# help


@pytest.mark.parametrize("command", ["launch", "replay", "audit"])
def test_help_has_an_example(command, capsys):
    assert run([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert "Example" in out
    assert f"  shatterproof {command} " in out
    assert "--runtime" in out


def test_help_and_version(capsys):
    assert run(["--help"]) == 0
    assert {"launch", "replay", "audit"} <= set(capsys.readouterr().out.split())
    assert run(["--version"]) == 0
    assert "shatterproof" in capsys.readouterr().out


def test_main_leaves_with_the_status(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["shatterproof", "dance"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
