"""The short and the long reader of a xentrace say the same of every file, damaged or not."""

import random
import struct
from functools import cache

import pytest

from deploy.profile.native import Native
from protocols.errno import BadInputError
from services.trace.loops import plain
from services.trace.report import report
from services.trace.xen_frames import read_trace
from services.trace.xen_summary import summarise
from tests.golden.test_profile_xen import differences
from tests.golden.test_xentrace import set_p2m, window, with_tsc
from tests.helpers import DATA

runner = cache(Native)
CASES = sorted((DATA / "cases" / "xentrace").glob("*.bin"))


def short(data):
    """The report of the tables, or the line of what is wrong."""
    try:
        return report(read_trace(memoryview(data), "t", cpu_hz=1e9))
    except BadInputError as error:
        return {"refused": str(error)}


def long(data, by=runner):
    """The same of one pass."""
    try:
        return summarise(memoryview(data), "t", cpu_hz=1e9, runner=by)
    except BadInputError as error:
        return {"refused": str(error)}


def agree(data, by=runner):
    found = short(data)
    assert differences(found, long(data, by)) == []
    return found


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
@pytest.mark.parametrize("by", [plain, runner], ids=["plain", "native"])
def test_cases_are_read_alike(path, by):
    agree(path.read_bytes(), by)


# -- times ----------------------------------------------------------------------------------------


def test_time_never_falls_on_a_pcpu():
    """Its records come in the order of the file, whatever their TSCs say."""
    data = window(
        0,
        with_tsc(0x21101, 500, 7 << 16) + set_p2m(1, 9) + with_tsc(0x21101, 100, 8 << 16)
        + set_p2m(2, 0) + with_tsc(0x82012, 400, 12) + with_tsc(0x21101, 900, 9 << 16),
    )  # fmt: skip
    data += window(1, with_tsc(0x28004, 600, 1))
    found = agree(data)
    assert found["span"] == [0, 400]
    assert found["domains"]["7"]["shatters"] == {"18->9": 0, "9->0": 1}
    assert found["pcpus"]["0"]["by_domid"] == {"7": 0, "8": 400, "9": 0}
    trace = read_trace(memoryview(data), "t", cpu_hz=1e9)
    assert trace.updates["time"].tolist() == [0, 0]
    assert trace.hypercalls["time"].tolist() == [0]


def test_who_ran_before_the_first_tsc_ran_from_the_first_of_the_trace_on():
    body = struct.pack("<II", 0x21101 | 1 << 28, 7 << 16) + with_tsc(0x21101, 1 << 50, 8 << 16)
    found = agree(window(0, body) + window(1, with_tsc(0x28004, (1 << 50) - 3, 1)))
    assert found["pcpus"]["0"]["by_domid"] == {"7": 3, "8": 0}


def test_a_runstate_change_without_a_tsc_still_says_who_runs():
    body = struct.pack("<II", 0x21101 | 1 << 28, 5 << 16)
    body += struct.pack("<IQQII", 6 << 28 | 0x82021, 0x1000, 1, 0, 0)
    assert agree(window(0, body))["domains"]["5"]["nested_faults"] == 1


def test_an_update_in_the_tick_of_a_dom_add_is_before_or_behind_it_as_in_the_file():
    body = with_tsc(0x41002, 5, 7) + set_p2m(0, 9) + with_tsc(0x41001, 5, 7) + set_p2m(512, 9)
    found = agree(window(0, with_tsc(0x28004, 5, 1) + body))
    assert found["domains"]["7"]["final_leaves"] == {"9": {"ram_rw": 1}}


def test_continuing_to_run_is_no_change_of_runstate():
    found = agree(window(0, with_tsc(0x21101, 1, 7 << 16) + with_tsc(0x21002, 9, 7 << 16)))
    assert found["events"] == {"cpu_change": 1, "runstate_change": 1, "continue_running": 1}
    assert found["pcpus"]["0"]["by_domid"] == {"7": 8}


# -- tables that grow ------------------------------------------------------------------------------


@pytest.mark.parametrize("by", [plain, runner], ids=["plain", "native"])
def test_as_many_kinds_of_events_hypercalls_and_pairs_as_there_are(by):
    records = [struct.pack("<I", 0x0080_5000 + number) for number in range(3000)]
    records += [struct.pack("<II", 0x82012 | 1 << 28, number * 77) for number in range(900)]
    records += [with_tsc(0x21101, 5 + at, at << 16) for at in range(900)]
    found = agree(window(0, b"".join(records)), by)
    assert len(found["events"]) == 3003
    assert len(found["hypercalls"]) == 900
    assert len(found["pcpus"]["0"]["by_domid"]) == 900
    many = [window(cpu, with_tsc(0x21101, 9, cpu << 16)) for cpu in range(400)]
    assert len(agree(b"".join(many), by)["pcpus"]) == 400


def test_more_domains_than_bins_have_room_for_share_them_alike():
    draw = random.Random(3)
    body = b""
    for at in range(1500):
        body += with_tsc(0x28004, 10 + 7 * at, 1)
        gfn = draw.randrange(4) << 9
        body += struct.pack("<IQQIHH", 0x6010F004, gfn, 5, 0, draw.randrange(1, 251), 9)
    found = agree(window(0, body))
    assert {len(each["series"]["updates"]) for each in found["domains"].values()} == {60}


# -- records of extents before and since Xen 4.18 --------------------------------------------------


def extent(event, gfn, first, second, mfn=None):
    words = (gfn,) if mfn is None else (gfn, mfn)
    payload = struct.pack(f"<{len(words)}QII", *words, first, second)
    return struct.pack("<I", len(payload) // 4 << 28 | event) + payload


def test_orders_are_words_of_their_own_since_4_18():
    body = extent(0x10F005, 5, 7, 18) + extent(0x10F010, 512, 7, 9, 512)
    body += (
        extent(0x10F011, 1024, 7, 9, 5) + extent(0x10F012, 513, 7, 9) + extent(0x10F005, 6, 7, 0)
    )
    section = agree(window(0, body))["domains"]["7"]
    assert section["decrease_reservation"] == {"0": 1, "18": 1}
    assert (section["pod_populate"], section["pod_zero_reclaim"]) == ({"9": 1}, {"9": 1})
    assert section["pod_superpage_splinter"] == 1
    events = read_trace(memoryview(window(0, body)), "t", cpu_hz=1e9).events
    assert events["order"].tolist() == [18, 9, 9, 9, 0]


@pytest.mark.parametrize(
    "telling",
    [
        extent(0x10F005, 6, 7 | 9 << 16, 0),
        extent(0x10F010, 6, 7, 0xFFFF_8290, 1),
        extent(0x10F012, 6, 7 | 0x35B7 << 16, 0),
    ],
    ids=["halves", "rubble", "splinter"],
)
def test_before_orders_were_halves_and_what_followed_rubble(telling):
    body = extent(0x10F005, 5, 7, 8) + extent(0x10F010, 512, 7, 3, 512)
    new = agree(window(0, body))["domains"]["7"]
    assert (new["decrease_reservation"], new["pod_populate"]) == ({"8": 1}, {"3": 1})
    # One record anywhere in the file tells which Xen wrote all of them.
    old = agree(window(0, body) + window(1, telling))["domains"]["7"]
    assert old["decrease_reservation"]["0"] == 1
    assert old["pod_populate"]["0"] >= 1
    assert "3" not in old["pod_populate"]


# -- anything --------------------------------------------------------------------------------------

EVENTS = {
    0x1F001: 4, 0x1F002: 2, 0x21001: 1, 0x21101: 1, 0x21002: 1, 0x41001: 1, 0x41002: 1, 0x82012: 1,
    0x82021: 6, 0x10F001: 1, 0x10F003: 1, 0x10F004: 6, 0x10F005: 4, 0x10F010: 6, 0x10F011: 6,
    0x10F012: 4, 0x20100D: 1, 0x20200E: 2, 0x81003: 2, 0x81103: 3, 0x28004: 0, 0x0FF12345: 1,
}  # fmt: skip
ODD = [0, 1, 0xFFFF, 0x10000, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 0x2001_F003]


def drawn(draw):
    """Windows of records that make some sense."""
    clock, parts = draw.choice([0, 7, 1 << 40, (1 << 62) - 4000]), []
    for _ in range(draw.randrange(1, 8)):
        body = b""
        for _ in range(draw.choice([0, 2, 9, 40])):
            event = draw.choice([0x10F004, draw.choice(list(EVENTS))])
            # Who runs is in the upper half; elsewhere there would be an order of 7.
            mine = 7 << 16 if event >> 12 == 0x21 else 7
            words = [draw.choice([0, 0, 1, 9, mine]) for _ in range(EVENTS[event])]
            if event == 0x10F004:
                words[5] |= draw.choice([0, 9, 18]) << 16
            header = len(words) << 28 | event
            if draw.random() < 0.5:
                clock += draw.choice([0, 0, 1, 30])
                body += struct.pack("<IQ", 1 << 31 | header, max(clock - draw.choice([0, 0, 9]), 0))
            else:
                body += struct.pack("<I", header)
            body += struct.pack(f"<{len(words)}I", *words)
        parts.append(window(draw.choice([0, 0, 1, 5, 65535]), body))
    return bytearray(b"".join(parts))


def damage(draw, data):
    for _ in range(draw.choice([0, 1, 1, 2, 4])):
        at = draw.randrange(len(data)) if data else 0
        match draw.randrange(5) if data else -1:
            case 0:
                data[at] ^= 1 << draw.randrange(8)
            case 1 | 2:
                word = draw.choice([*ODD, draw.getrandbits(32)])
                data[at // 4 * 4 : at // 4 * 4 + 4] = struct.pack("<I", word)
            case 3:
                del data[at : at + draw.choice([1, 4, 12, 28, 1 << 20])]
            case 4:
                data[at:at] = data[at : at + draw.choice([1, 4, 28])]
            case _:
                pass
    return bytes(data)


def test_whatever_is_in_a_file_is_read_alike():
    """So were 22,000 longer ones once, almost half of them made of the captures."""
    read = 0
    for seed in range(400):
        draw = random.Random(seed)
        data = damage(draw, drawn(draw))
        found = agree(data)
        read += "refused" not in found
    assert read > 100
