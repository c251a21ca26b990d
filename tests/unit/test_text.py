"""Foreign text: on one line, of bounded length, with nothing in it that anybody obeys."""

import io
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.cli.main import main, run
from deploy.cli.terminal import Listing, output_console
from protocols.text import MARK, csv_text, file_name, mermaid_text, shown

NASTY = [
    "[/x]", "[bold red]x[/]", ":smile:", "\x1b[2J\x1b]0;t\x07", "a\0b", "a\nb\r\nc", "\x85\x9b31m",
    "\u202eevil\u202c", "zero\u200bwidth", "line\u2028end\u2029", "\udcff\udc80", "\ud800",
    "=cmd()", "+1", "-1", "@x", "</script><script>alert(1)</script>", "a;end", "#35;",
    "n" * 10_000, "%%{init:{}}%%", "../../x", "/x", ".hidden", "\U000e0041", "\u3164", "\x7f",
]  # fmt: skip
anything = st.text(st.characters(exclude_categories=())) | st.sampled_from(NASTY)


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("dom-é 漢字 [/x] 100%", "dom-é 漢字 [/x] 100%"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x1b[31m\x7f\x9b", r"\x1b[31m\x7f\x9b"),
        ("\u202ex\u200b\u2028\ufeff", r"\u202ex\u200b\u2028\ufeff"),
        ("caf\udce9", r"caf\xe9"),
        ("\ud800 \U000e0041", r"\ud800 \U000e0041"),
        ("a\u3164b\xa0c", r"a\u3164b\xa0c"),
        ("back\\slash", "back\\slash"),
    ],
)
def test_what_cannot_be_seen_is_written_out(text, seen):
    assert shown(text) == seen


def test_a_long_text_loses_its_middle():
    text = "guest.cfg:1: " + "x" * 10_000 + ": expected a key"
    assert shown(text, 60) == "guest.cfg:1: " + "x" * 15 + MARK + "x" * 11 + ": expected a key"
    assert len(shown("\x1b" * 10_000, 50)) <= 50
    assert shown("\x1b" * 10_000, 50).replace(MARK, "").count("\\x1b") == 11, "none in part"


@given(anything, st.integers(len(MARK), 400))
def test_shown_text_is_one_line_that_fits_and_stays(text, limit):
    seen = shown(text, limit)
    assert len(seen) <= limit
    assert seen.isprintable()
    assert all(unicodedata.category(each)[0] != "C" for each in seen)
    assert shown(seen, limit) == seen
    seen.encode()


@given(anything)
def test_a_terminal_prints_what_it_is_given_and_obeys_nothing(text):
    file = io.StringIO()
    console = output_console(file)
    console.print(text, end="|")
    assert file.getvalue() == shown(text, 4096) + "|"


@pytest.mark.parametrize("text", NASTY)
def test_a_table_shows_titles_headers_and_cells_as_they_are(text):
    file = io.StringIO()
    console = output_console(file)
    made = Listing(text)
    made.add_column(text)
    made.add_row(text)
    console.width = 1000
    console.print(made)
    lines = [line.rstrip() for line in file.getvalue().splitlines()]
    seen = shown(text).rstrip()
    assert lines[-1] == seen
    assert len(text) > 1000 or lines == [seen] * 3


@given(anything)
def test_text_of_a_diagram_ends_no_statement(text):
    seen = mermaid_text(text)
    rest = seen.replace(";", "#").split("#")
    assert all(each.isdecimal() for each in rest[1::2]), "nothing but entities of numbers"
    assert not set("<>&%$\n") & set(seen)


def test_a_cell_is_no_formula():
    assert [csv_text(each) for each in ("=cmd()", "+1", "-1", "@x", "a=b", "", "\t=x")] == [
        "'=cmd()", "'+1", "'-1", "'@x", "a=b", "", "\\t=x",
    ]  # fmt: skip


@given(anything)
def test_a_file_name_stays_where_it_is_put(text):
    name = file_name(text)
    assert name
    assert name[0] not in ".-"
    assert "/" not in name
    assert name.isascii()
    assert name.isprintable()
    assert len(name) <= 101


def test_a_usual_file_name_is_itself():
    assert file_name("split-storm") == "split-storm"
    assert file_name("../../x") == "_.._.._x"


class Ascii(io.TextIOWrapper):
    """A terminal that knows little."""

    def __init__(self):
        super().__init__(io.BytesIO(), encoding="ascii", errors="backslashreplace")


def test_bars_on_a_terminal_without_them():
    file = Ascii()
    output_console(file).print("|▁▄█| é")
    file.flush()
    assert file.buffer.getvalue() == b"|.=@| \\xe9\n"


# lines of complaint


@pytest.fixture
def complaint(capsys):
    """The status and the one line of a command line."""

    def complaint(*arguments):
        status = run(list(arguments))
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("shatterproof: ")
        assert err.endswith("\n")
        assert err[:-1].isprintable()
        assert len(err) <= 301
        return status, err[:-1].removeprefix("shatterproof: ")

    return complaint


@pytest.mark.parametrize("text", NASTY)
@pytest.mark.parametrize(
    "arguments",
    [
        ["{}"],
        ["--{}"],
        ["launch", "--{}"],
        ["launch", "--runtime", "{}", "x.cfg"],
        ["launch", "--runtime", "local", "{}.cfg"],
        ["launch", "--runtime", "local", "{}.toml"],
        ["launch", "--runtime", "local", "--host-memory", "{}", "x.cfg"],
        ["launch", "--runtime", "local", "--dump-p2m", "{}", "x.cfg"],
        ["audit", "--runtime", "local", "{}.toml"],
        ["replay", "--runtime", "local", "{}.trace"],
        ["replay", "--seed", "{}", "x.trace"],
        ["profile", "{}.trace"],
        ["profile", "--html", "{}/missing/x", "x.trace"],
        ["profile", "--between", "0", "{}", "x.trace"],
        ["stress", "{}"],
        ["stress", "{}.toml"],
        ["stress", "--replay", "{}.json"],
        ["stress", "--zoo", "{}"],
        ["stress", "--zoo", "{}.py"],
        ["stress", "--faults", "{}"],
    ],
)
def test_whatever_is_quoted_a_complaint_is_one_line(
    complaint, tmp_path, monkeypatch, arguments, text
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.cfg").write_text("memory = 1z")
    # No argument of a process holds a NUL, or a surrogate that stands for no byte.
    given = text.replace("\0", "\x01").replace("\ud800", "\udced")
    filled = [each.format(given) for each in arguments]
    assert complaint(*filled)[0] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["x.cfg"]


def fail(text):
    def failing(*_):
        raise RuntimeError(text)

    return failing


def test_a_fault_of_ours_is_one_line_with_its_place(complaint, monkeypatch):
    monkeypatch.setattr("deploy.cli.stress._check", fail("first\nsecond \x1b[2J" + "x" * 1000))
    monkeypatch.delenv("SHATTERPROOF_TRACEBACK", raising=False)
    status, line = complaint("stress")
    assert status == 70
    here = f"tests/unit/{Path(__file__).name}:{fail.__code__.co_firstlineno + 2}"
    assert line.startswith(rf"internal error: RuntimeError at {here}: first\nsecond \x1b[2Jxxx")
    assert line.endswith("xxx (SHATTERPROOF_TRACEBACK=1 shows more)")


def test_a_fault_of_ours_tells_more_if_asked(capsys, monkeypatch):
    monkeypatch.setattr("deploy.cli.stress._check", fail("why"))
    monkeypatch.setenv("SHATTERPROOF_TRACEBACK", "1")
    assert run(["stress"]) == 70
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Traceback (most recent call last):\n")
    assert "RuntimeError: why\nshatterproof: internal error" in err


def test_output_that_its_encoding_has_not_is_written_out(monkeypatch, tmp_path):
    (tmp_path / "guest.cfg").write_text("name = 'caf\u00e9'\nmemory = 4\ntype = 'pvh'\n")
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", out)
    with pytest.raises(SystemExit) as error:
        main(["launch", "--runtime", "local", str(tmp_path / "guest.cfg")])
    assert error.value.code == 0
    out.flush()
    assert b" caf\\xe9 " in out.buffer.getvalue()
