"""Archives that were cut off: what is in them is shown, one line and the status tell."""

import gzip
import json
import lzma

import pytest

from deploy.cli.main import run
from deploy.profile import unpack
from deploy.profile.open import open_trace, read_file
from protocols.errno import BadInputError
from tests.profile.test_page import CAPTURE

RAW = lzma.decompress(CAPTURE.read_bytes())
PACKED = {
    "xz": CAPTURE.read_bytes(),
    "gz": gzip.compress(RAW, mtime=0),
    "two.xz": lzma.compress(RAW[: len(RAW) // 2]) + bytes(8) + lzma.compress(RAW[len(RAW) // 2 :]),
    "two.gz": gzip.compress(RAW[:999]) + gzip.compress(RAW[999:]) + bytes(40),
}


@pytest.fixture
def shown(tmp_path, monkeypatch, capsys):
    """(status, JSON or None, lines of complaint) of a file with these bytes."""
    monkeypatch.chdir(tmp_path)

    def show(data, name="t"):
        (tmp_path / name).write_bytes(data)
        status = run(["profile", name, "--json", "-"])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return status, json.loads(out) if out else None, err

    return show


@pytest.mark.parametrize("kind", PACKED)
def test_a_whole_archive(shown, kind):
    status, found, err = shown(PACKED[kind])
    assert (status, err) == (0, "")
    assert found["records"] == open_trace(CAPTURE).records
    assert not found["truncated"]


@pytest.mark.parametrize("kind", PACKED)
def test_one_that_was_cut_anywhere(shown, kind):
    packed, records = PACKED[kind], []
    for cut in range(7, len(packed) - 41, len(packed) // 23):
        status, found, err = shown(packed[:cut])
        assert status == 2
        assert err.startswith("shatterproof: t: ")
        assert err.count("\n") == 1
        if found is None:
            assert not records, "less of it said more"
            continue
        assert "the archive ends early" in err
        assert found["truncated"] is True
        assert found["header"]["cut"] in err
        records.append(found["records"])
    assert records == sorted(records)
    assert records[-1] > 0.5 * open_trace(CAPTURE).records


@pytest.mark.parametrize("kind", ["xz", "gz"])
def test_one_that_lacks_its_last_bytes_is_all_there(shown, kind):
    status, found, err = shown(PACKED[kind][:-3])
    assert status == 2
    assert err.count("\n") == 1
    assert found["truncated"] is True
    assert found["records"] == open_trace(CAPTURE).records


@pytest.mark.parametrize("pack", [lzma.compress, gzip.compress], ids=["xz", "gz"])
@pytest.mark.parametrize("data", [b"", b"no trace at all", bytes(400)])
def test_a_foreign_or_empty_archive_is_one_line(shown, pack, data):
    for packed in (pack(data), pack(data)[:20], pack(data)[:-2]):
        status, found, err = shown(packed)
        assert (status, found) == (2, None)
        assert err.count("\n") == 1


@pytest.mark.parametrize("kind", ["xz", "gz"])
def test_a_damaged_archive_is_one_line(shown, kind):
    packed = bytearray(PACKED[kind])
    for at in range(20, len(packed), len(packed) // 11):
        packed[at] ^= 0x55
        status, _, err = shown(bytes(packed))
        packed[at] ^= 0x55
        assert status == 2
        assert err.count("\n") == 1


def test_ours(shown, own_path, own):
    packed = gzip.compress(own_path.read_bytes(), mtime=0)
    records = []
    for cut in (len(packed) // 3, len(packed) // 2, len(packed) - 30, len(packed) - 4):
        _, found, err = shown(packed[:cut])
        assert "the archive ends early" in err
        assert found["truncated"] is True
        records.append(found["records"])
    assert records == sorted(records)
    assert records[-1] == own.records


def test_what_needs_all_of_it_is_refused(tmp_path, capsys):
    path = tmp_path / "t.xz"
    path.write_bytes(PACKED["xz"][:-100])
    with pytest.raises(BadInputError, match="the archive ends early"):
        read_file(path)
    assert run(["replay", str(path), "--runtime", "local"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1


@pytest.mark.parametrize("pack", [lzma.compress, gzip.compress], ids=["xz", "gz"])
def test_a_small_archive_may_not_hold_much(shown, pack, monkeypatch):
    monkeypatch.setattr(unpack, "ROOM", 1 << 20)
    status, found, err = shown(pack(bytes(8 << 20)))
    assert (status, found) == (2, None)
    assert "that holds more than 100 times as many and 1 MiB" in err
    parts = b"".join(pack(bytes(1 << 18)) for _ in range(8))
    assert "that holds more than 100 times" in shown(parts)[2]
    monkeypatch.setattr(unpack, "ROOM", 0)
    assert shown(pack(RAW))[0] == 0


def test_a_small_archive_may_not_ask_for_much(shown):
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 30}]
    packed = lzma.compress(RAW[:999], filters=filters)
    assert shown(packed)[2] == "shatterproof: t: damaged archive: Memory usage limit exceeded\n"


@pytest.mark.parametrize("pack", [lzma.compress, gzip.compress], ids=["xz", "gz"])
@pytest.mark.parametrize("inner", ["xz", "gz"])
def test_an_archive_in_an_archive_is_one_line(shown, pack, inner):
    status, found, err = shown(pack(PACKED[inner]))
    assert (status, found) == (2, None)
    assert err == "shatterproof: t: an archive in an archive; expected a trace in it\n"


@pytest.mark.parametrize("kind", PACKED)
def test_what_is_behind_an_archive_is_told(shown, kind):
    status, found, err = shown(PACKED[kind] + b"\0garbage")
    assert status == 2
    assert err.startswith("shatterproof: t: 7 bytes behind the archive are none: the first ")
    assert err.count("\n") == 1
    assert found["records"] == open_trace(CAPTURE).records


@pytest.mark.parametrize(
    ("start", "name"), [(b"\x28\xb5\x2f\xfd", "zstd"), (b"BZh9", "bzip2"), (b"PK\3\4", "zip")]
)
def test_other_archives_are_named(shown, start, name):
    status, found, err = shown(start + bytes(60))
    assert (status, found) == (2, None)
    assert err == f"shatterproof: t: a {name} archive; expected .xz, .gz, or none\n"
