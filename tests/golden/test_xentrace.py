"""Every decoded row of every capture, against the independent decoder's tables."""

import csv
import gzip
import lzma
import re
import struct
from pathlib import Path

import numpy as np
import pytest

from protocols.errno import BadInputError
from protocols.frames import INVALID_FRAME
from protocols.p2m_types import P2mType
from services.trace.xen_summary import summarise
from services.trace.xentrace import XenTrace, decode_xentrace

DATA = Path(__file__).parent.parent / "data"
TRACES = sorted((DATA / "traces").glob("*.trace.bin.xz"))
CPU_CHANGE = 0x2001F003
SET_P2M = 0x6010F004


def decoded(trace: Path) -> list[dict[str, str]]:
    name = trace.name.replace(".trimmed", "").replace(".full", "")
    table = DATA / "decoded" / name.replace(".trace.bin.xz", ".mem.csv.gz")
    with gzip.open(table, "rt") as lines:
        return list(csv.DictReader(lines))


def frame(text: str) -> int:
    return INVALID_FRAME if text in ("INVALID", "") else int(text, 16)


def p2mt(text: str) -> int:
    return P2mType[text.upper()].value


def expected(rows: list[dict[str, str]], event: str) -> list[tuple[int, ...]]:
    """Rows of one event as (gfn, mfn, type, domid, order, tsc), -1 where it has no such field."""
    return [
        (
            frame(row["gfn"]),
            frame(row["mfn"]),
            p2mt(row["p2mt"]) if row["p2mt"] else -1,
            int(row["domid"] or -1),
            int(row["order"] or -1),
            int(row["tsc_last"]),
        )
        for row in rows
        if row["event"] == event
    ]


def columns(rows: object, *names: str) -> list[tuple[int, ...]]:
    size = rows.gfn.size
    lists = [getattr(rows, name).tolist() if name else [-1] * size for name in names]
    return list(zip(*lists, strict=True))


def tables(trace: XenTrace) -> dict[str, tuple[object, list[tuple[int, ...]]]]:
    extent = ("gfn", "mfn", "", "domid", "order", "tsc")
    updates, faults = trace.p2m_updates(), trace.nested_faults()
    found = {
        "set_p2m_entry": (
            updates,
            columns(updates, "gfn", "mfn", "p2mt", "domid", "order", "tsc"),
        ),
        "npf": (faults, columns(faults, "gfn", "mfn", "p2mt", "", "", "tsc")),
    }
    for event, rows in (
        ("decrease_reservation", trace.decrease_reservations()),
        ("pod_populate", trace.pod_populates()),
        ("pod_zero_reclaim", trace.pod_zero_reclaims()),
        ("pod_superpage_splinter", trace.pod_splinters()),
    ):
        found[event] = (rows, columns(rows, *extent))
    return found


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.name.removesuffix(".trace.bin.xz"))
def test_every_row_of_a_capture(path):
    trace = decode_xentrace(lzma.decompress(path.read_bytes()), path.name)
    rows = decoded(path)
    found = tables(trace)
    for event, (_, got) in found.items():
        want = expected(rows, event)
        if event == "pod_superpage_splinter":
            want = [(*row[:4], 9, row[5]) for row in want]
        assert got == want, event
    # The kinds interleave as Xen did them: one merged order, not one order for each kind.
    kinds = [(table, event) for event, (table, _) in found.items()]
    record = np.concatenate([table.record for table, _ in kinds])
    tsc = np.concatenate([table.tsc for table, _ in kinds])
    names = np.repeat([event for _, event in kinds], [table.tsc.size for table, _ in kinds])
    merged = names[np.lexsort((record, tsc))].tolist()
    assert merged == [row["event"] for row in rows if row["event"] in found]
    assert trace.lost == 0
    assert trace.records == sum(trace.events.values())


def test_full_and_trimmed_trace_say_the_same():
    full, trimmed = (
        decode_xentrace(
            lzma.decompress((DATA / "traces" / f"b1.pvh-64.{form}.trace.bin.xz").read_bytes()), form
        )
        for form in ("full", "trimmed")
    )
    assert full.records == 109328, "README's record count of the untrimmed trace"
    assert full.unknown == 0, "every event of it has a name"
    assert full.events["set_p2m_entry"] == trimmed.events["set_p2m_entry"] == 49
    for name in ("gfn", "mfn", "p2mt", "domid", "order", "tsc"):
        assert np.array_equal(
            getattr(full.p2m_updates(), name), getattr(trimmed.p2m_updates(), name)
        )


def test_scalar_decoder_agrees_on_the_full_trace():
    data = lzma.decompress((DATA / "traces" / "b1.pvh-64.full.trace.bin.xz").read_bytes())
    trace = decode_xentrace(data, "full")
    place, cpu, last, want = 0, -1, {}, []
    while place < len(data):
        (header,) = struct.unpack_from("<I", data, place)
        payload = place + 4 + 8 * (header >> 31)
        if header == CPU_CHANGE:
            (cpu,) = struct.unpack_from("<I", data, payload)
        if header >> 31:
            (last[cpu],) = struct.unpack_from("<Q", data, place + 4)
        want.append((cpu, last.get(cpu, 0)))
        place = payload + 4 * (header >> 28 & 7)
    assert list(zip(trace.cpu.tolist(), trace.tsc.tolist(), strict=True)) == want


def window(cpu: int, body: bytes) -> bytes:
    return struct.pack("<III", CPU_CHANGE, cpu, len(body)) + body


def set_p2m(gfn: int, order: int = 0, header: int = SET_P2M) -> bytes:
    return struct.pack("<IQQIHH", header, gfn, gfn + 1, 0, 7, order)


def with_tsc(event: int, tsc: int, *words: int) -> bytes:
    header = 1 << 31 | len(words) << 28 | event
    return struct.pack(f"<IQ{len(words)}I", header, tsc, *words)


def test_order_follows_the_tsc_of_the_pcpu_then_the_file():
    data = (
        window(0, set_p2m(1) + with_tsc(0x41001, 50, 7) + set_p2m(2) + set_p2m(3))
        + window(1, with_tsc(0x41001, 40, 7) + set_p2m(4) + with_tsc(0x41001, 60, 7) + set_p2m(5))
        + window(0, set_p2m(6))
        + window(1, b"")
    )
    updates = decode_xentrace(data, "t").p2m_updates()
    assert updates.gfn.tolist() == [1, 4, 2, 3, 6, 5]
    assert updates.tsc.tolist() == [0, 40, 50, 50, 50, 60]
    assert updates.domid.tolist() == [7] * 6


def test_an_update_with_a_tsc_of_its_own():
    header = SET_P2M | 1 << 31
    body = struct.pack("<IQQQIHH", header, 99, 0x200, INVALID_FRAME, 6, 3, 9)
    updates = decode_xentrace(window(0, body), "t").p2m_updates()
    assert (updates.gfn[0], updates.mfn[0], updates.p2mt[0], updates.tsc[0]) == (
        0x200,
        INVALID_FRAME,
        6,
        99,
    )
    assert (updates.domid[0], updates.order[0]) == (3, 9)


def test_lost_wrap_and_unknown_records_are_counted():
    wrap = struct.pack("<III", 2 << 28 | 0x1F002, 0xDEAD, CPU_CHANGE)
    lost = with_tsc(0x1F001, 9, 41, 0, 0, 0)
    data = window(0, lost + wrap + with_tsc(0x0ABC_D123, 11) + lost) + window(1, set_p2m(1))
    trace = decode_xentrace(data, "t")
    assert trace.lost == 82
    assert trace.unknown == 1
    assert trace.events == {
        "cpu_change": 2,
        "lost_records": 2,
        "wrap_buffer": 1,
        "0x0abcd123": 1,
        "set_p2m_entry": 1,
    }


def test_runstate_changes_are_one_event_whatever_the_states():
    data = window(0, with_tsc(0x21021, 1, 0) + with_tsc(0x21101, 2, 0))
    trace = decode_xentrace(data, "t")
    assert trace.events["runstate_change"] == 2
    assert trace.unknown == 0


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "t: offset 0: expected an xentrace binary, got an empty file"),
        (b"\x03", "t: offset 0: expected a cpu_change record of an xentrace binary, got 03"),
        (b"name = 'guest'\nmemory = 64\n", "t: offset 0: expected a cpu_change record"),
        (b"\xfd7zXZ\x00" * 8, "t: offset 0: expected a cpu_change record"),
        (set_p2m(1), "t: offset 0: expected a cpu_change record"),
        (window(0, set_p2m(1))[:-1], "t: offset 0: truncated before the first whole record"),
        (window(0, b"")[:8], "t: offset 0: truncated before the first whole record"),
        (
            window(3, set_p2m(1) + set_p2m(2))[:-28],
            "t: offset 40: truncated: 28 bytes of pcpu 3's last window are missing",
        ),
        (
            window(3, set_p2m(1) + set_p2m(2))[:-1],
            "t: offset 40: truncated: 28 bytes of pcpu 3's last window are missing",
        ),
        (
            window(3, set_p2m(1)) + window(4, b"")[:9],
            "t: offset 40: truncated in the cpu_change record of a window",
        ),
        (window(3, b"") + b"\x03", "t: offset 12: truncated in the cpu_change record of a window"),
        (
            window(3, set_p2m(1)) + b"\x03\xf0\x01\x30",
            "t: offset 40: expected the cpu_change record of a window, got 0x3001f003",
        ),
        (
            struct.pack("<III", CPU_CHANGE, 0, 4) + set_p2m(1),
            "t: offset 12: inconsistent: the record leaves its window",
        ),
        (
            window(0, set_p2m(1)) + struct.pack("<III", CPU_CHANGE, 1, 2) + window(1, b""),
            "t: offset 40: inconsistent: the window of pcpu 1 says 2 bytes, expected whole words",
        ),
        (window(65536, b""), "t: offset 0: a window of pcpu 65536, expected less than 65536"),
        (
            window(0, struct.pack("<III", 0x2010F004, 1, 2)),
            "t: offset 12: set_p2m_entry record has 2 payload words, expected 6",
        ),
        (
            window(0, struct.pack("<IIII", 0x3001F003, 1, 0, 0)),
            "t: offset 12: inconsistent: a cpu_change record inside a window",
        ),
        (window(0, window(1, b"")), "t: offset 12: inconsistent: a cpu_change record inside"),
        (
            window(0, with_tsc(0x82007, 1) + with_tsc(0x82007, 1 << 62)),
            "t: offset 24: io_write record with a TSC of 0x4000000000000000, expected less than",
        ),
        (window(0, set_p2m(1, 21)), "t: offset 12: set_p2m_entry record of order 21, expected at"),
        (
            window(0, with_tsc(0x10F001, 1, 65536)),
            "t: offset 12: page_grant_map record of domain 65536, expected at most 65535",
        ),
        (
            # The first of two, by its place in the file and not by its time.
            window(0, with_tsc(0x41001, 90, 1 << 31)) + window(1, with_tsc(0x41002, 5)),
            "t: offset 12: dom_add record of domain 2147483648, expected at most 65535",
        ),
        (
            window(0, with_tsc(0x41002, 5)) + bytes(12),
            "t: offset 12: dom_rem record has 0 payload words, expected 1",
        ),
    ],
)
def test_malformed_files_are_one_line_with_an_offset(data, reason):
    with pytest.raises(BadInputError) as caught:
        decode_xentrace(data, "t")
    assert str(caught.value).startswith(reason)
    assert "\n" not in str(caught.value)
    if "truncated" not in reason:
        with pytest.raises(BadInputError, match=f"^{re.escape(str(caught.value))}$"):
            summarise(memoryview(data), "t", cpu_hz=1e9)


def test_a_capture_cut_anywhere_is_refused_or_ends_at_a_window():
    path = DATA / "traces" / "b1.pvh-64.trimmed.trace.bin.xz"
    data = lzma.decompress(path.read_bytes())
    ends, place = {0}, 0
    while place < len(data):
        place += 12 + struct.unpack_from("<I", data, place + 8)[0]
        ends.add(place)
    for cut in [*range(1, 2000), *range(2000, len(data), 97)]:
        if cut in ends:
            assert decode_xentrace(data[:cut], "t").records
        else:
            with pytest.raises(BadInputError, match=r"^t: offset \d+: "):
                decode_xentrace(data[:cut], "t")
