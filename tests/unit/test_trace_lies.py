"""Traces of ours whose checksums are right and whose contents are not: refused in one line."""

import numpy as np
import pytest

from deploy.profile.open import own_trace
from protocols.errno import BadInputError
from protocols.trace import ID_SHIFT, TABLES, MemEvent
from services.trace.blocks import encode_block, encode_header, encode_index, pack_column
from services.trace.checked import NAME_MAX, TIME_MAX
from tests.trace_files import rebuilt
from tests.unit.test_trace_file import run as recorded


@pytest.fixture(scope="module")
def file():
    return recorded()[0]


def opened(data):
    trace = own_trace(memoryview(data), "t")
    for table in ("messages", "updates", "events"):
        for name in TABLES[table]:
            getattr(trace, table)[name]
    return trace


def refused(data, match):
    with pytest.raises(BadInputError, match=match) as error:
        opened(data)
    assert "\n" not in str(error.value)


def test_what_is_not_changed_is_accepted(file):
    assert rebuilt(file) == file
    assert opened(file).records


def put(column, row, value):
    """A change of one value of a column of a block's body."""

    def change(body, rows):
        dtype = "<u8" if TABLES["messages"].get(column, "<i8") == "<u8" else "<i8"
        base, width, data = body[column]
        values = np.frombuffer(data, f"<u{width}").astype("<u8") if width else np.zeros(rows, "<u8")
        values = (values + np.uint64(base % (1 << 64))).view(dtype)
        values[row] = value
        body[column] = pack_column(values)

    return change


LIES = {
    ("messages", "src", 10**6): "column `src`: 1000000, expected 0 to",
    ("messages", "dst", -1): "column `dst`: -1, expected 0 to",
    ("messages", "kind", 5000): "column `kind`: 5000, expected 0 to",
    ("messages", "id", 99 << ID_SHIFT): "column `id`: ",
    ("messages", "cause", 1 << 63): "column `cause`: ",
    ("messages", "parent", 99 << ID_SHIFT): "column `parent`: ",
    ("messages", "reply_to", (1 << 64) - 1): "column `reply_to`: ",
    ("messages", "started", TIME_MAX + 1): f"column `started`: {TIME_MAX + 1}, expected -",
    ("messages", "ended", -TIME_MAX - 1): "column `ended`: ",
    ("messages", "busy", -2): "column `busy`: -2, expected 0 to",
    ("messages", "domid", 0x7FF0): "column `domid`: 32752, expected -1 to 32751",
    ("messages", "shard", 1 << 16): "column `shard`: 65536, expected 0 to 65535",
    ("messages", "order", 21): "column `order`: 21, expected -1 to 20",
    ("messages", "nr", -7): "column `nr`: -7, expected -1 to",
    ("updates", "type", 16): "column `type`: 16, expected 0 to 15",
    ("updates", "order", 200): "column `order`: 200, expected 0 to 20",
    ("updates", "cause", 5 << ID_SHIFT << 12): "column `cause`: ",
    ("updates", "time", 1 << 62): "column `time`: ",
    ("events", "event", 1): "column `event`: 0x1 is no memory event",
    ("events", "event", MemEvent.SET_P2M_ENTRY): "column `event`: 0x10f004 is no memory event",
    ("events", "domid", -2): "column `domid`: -2, expected -1 to",
}


@pytest.mark.parametrize(("table", "column", "value"), LIES)
def test_a_value_that_cannot_be(file, table, column, value):
    data = rebuilt(file, {table: put(column, 1, value)})
    refused(data, rf"t: offset \d+: {table} block: {LIES[table, column, value]}")


def change(name, packed):
    return lambda body, _rows: body.update({name: packed})


WRONG = {
    "width": (change("src", (0, 3, b"123" * 9)), r"27 bytes, expected \d+ rows"),
    "short": (change("src", (0, 2, b"12")), r"2 bytes, expected \d+ rows"),
    "long": (change("src", (0, 0, b"1")), r"1 bytes, expected \d+ rows"),
    "type": (change("src", (0, 1, 7)), "Expected `bytes`, got `int`"),
    "float": (change("src", (0.5, 1, b"")), "Expected `int`, got `float`"),
    "fields": (change("src", (0, 1)), "Expected `array` of length 3, got 2"),
    "none": (change("src", None), "Expected `array`, got `None`"),
    "missing": (
        lambda body, _: body.pop("src") and None,
        "20 columns, expected those of its table",
    ),
    "more": (change("x", (0, 0, b"")), "22 columns, expected those of its table"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_column_that_is_none(file, what):
    spoil, match = WRONG[what]
    refused(rebuilt(file, {"messages": spoil}), rf"t: offset \d+: messages block.*: {match}")


BODIES = {
    "list": [1, 2], "nil": b"\xc0", "int": 7, "empty": {}, "keys": {1: 2}, "names": {"names": 3},
    "numbers": {"names": [3]}, "deep": {"names": [[[[]]]]},
}  # fmt: skip


@pytest.mark.parametrize("table", ["names", "requests", "messages", "index"])
@pytest.mark.parametrize("what", BODIES)
def test_a_body_of_another_kind(file, table, what):
    refused(
        rebuilt(file, {table: lambda _body, _rows: BODIES[what]}),
        rf"t: offset \d+: {table} block: ",
    )


@pytest.mark.parametrize(
    "body",
    [b"\xdd\xff\xff\xff\xff", b"\x91" * 5000, b"\x81\xa5names\xdd\xff\xff\xff\xff", b"", b"\xc1",
     b"\x81\xa5names\x91\xa1\xff", b"\x81\xa5names\x91\xa3\xed\xa0\x80", b"\x80\x80"],
)  # fmt: skip
@pytest.mark.parametrize("table", ["names", "requests", "messages"])
def test_bytes_that_are_no_body(file, table, body):
    """Claims of billions of items, nesting, text that is none: nothing is made room for."""
    refused(rebuilt(file, {table: lambda _body, _rows: body}), rf"{table} block: ")


@pytest.mark.parametrize("name", ["", "a\nb", "\x1b[31m", "\x7f", "\u202e", "a" * (NAME_MAX + 1)])
def test_a_name_that_is_none(file, name):
    def spoil(body, _rows):
        body["names"][0] = name

    refused(rebuilt(file, {"names": spoil}), "names block: names: number 0 is no name")

    def kinds(header):
        header["kinds"][3] = name

    refused(rebuilt(file, header=kinds), "offset 0: header: kinds: number 3 is no name")


HEADERS = {
    "kinds": 7, "tables": [], "clock": None, "host": {}, "seed": "x", "shards": [["a"]],
    "machine": {"cores": b"x"}, "runtime": 5, "protocol": "1", "definitions": {"a": 1},
}  # fmt: skip


@pytest.mark.parametrize("field", HEADERS)
def test_a_header_field_of_another_type_or_none_at_all(file, field):
    refused(rebuilt(file, header=lambda it: it.update({field: HEADERS[field]})), "header: ")
    refused(
        rebuilt(file, header=lambda it: it.pop(field)),
        f"^t: offset 0: header: Object missing required field `{field}`",
    )


INNER = {
    ("clock", "ticks_per_s"): [5, -1, 1e9, float("nan"), 1_000_000_000],
    ("clock", "unit"): ["s", "ns", None],
    ("host", "paging"): ["mips", "", 4],
    ("host", "nr_nodes"): [0, 1000, -1],
    ("host", "ram_frames"): [1 << 60, -5, 0],
    ("host", "leaf_orders"): [[], [3], [[]], "0"],
    ("tables", "updates"): [[], [["time", "<u8"]]],
}


@pytest.mark.parametrize(("map_", "field"), INNER)
def test_a_value_in_the_header_that_cannot_be(file, map_, field):
    for value in INNER[map_, field]:
        data = rebuilt(file, header=lambda it, value=value: it[map_].update({field: value}))
        refused(data, "^t: offset 0: header: ")


def test_a_clock_is_of_one_kind(file):
    data = rebuilt(file, header=lambda it: it["clock"].update(ticks_per_s=10**9))
    refused(data, "header: clock `step` with 1000000000 ticks a second")


def places(spoil):
    return lambda body, _rows: spoil(body["blocks"])


INDEX = {
    "twice": (lambda it: it.append(it[-1]), "a .*-byte block at .*, expected it between"),
    "before": (lambda it: it[0].__setitem__(5, 3), "a .*-byte block at 3, expected it between"),
    "behind": (lambda it: it[-1].__setitem__(6, 1 << 40), "a 1099511627776-byte block at"),
    "rows": (lambda it: it[-1].__setitem__(1, 1 << 40), "1099511627776 rows, expected at most a"),
    "negative": (lambda it: it[-1].__setitem__(1, -1), "Expected `int` >= 0"),
    "table": (lambda it: it[-1].__setitem__(0, "running"), "a block of an unknown table"),
    "fields": (lambda it: it[-1].append(7), "Expected `array` of length 7, got 8"),
}


@pytest.mark.parametrize("what", INDEX)
def test_an_index_that_lies(file, what):
    spoil, match = INDEX[what]
    refused(rebuilt(file, {"index": places(spoil)}), match)


def test_rows_that_take_no_bytes_are_not_made_up():
    """Billions of rows in constant columns: a file says at most a row a byte."""
    trace = opened(recorded()[0])
    header = encode_header(
        {key: trace.header[key] for key in trace.header if key not in {"format", "version", "cut"}}
    )
    rows = 1 << 45
    data, block = encode_block(
        "updates", rows, (0, 0), dict.fromkeys(TABLES["updates"], (0, 0, b""))
    )
    blocks = [block._replace(start=block.start + len(header))]
    whole = header + data + encode_index(blocks, len(header) + len(data))
    refused(whole, f"updates block: {rows} rows, expected at most")
    refused(whole[:-3], f"updates block: {rows} rows, expected at most")
