"""Populate calls of real xentraces: as many as each build makes, and what cannot be known."""

import lzma
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.cli.main import run
from deploy.profile.open import open_trace
from services.trace.report import report
from services.trace.select import Selection
from services.trace.xen_frames import read_trace

TRACES = Path(__file__).parent.parent / "data" / "traces"
NONE = (1 << 64) - 1
RAM, INVALID, POD = 0, 1, 6
MEMORY_OP, DM_OP = 12, 41

# 17 special pages of a PVH guest: nine calls of one extent, one of eight. 8 MiB a call of 2M.
SPECIAL = 10
BUILDS = {
    "b1.pvh-64.full": (1, 8 + SPECIAL, {"9": 32, "0": 17}),
    "b1.pvh-64.trimmed": (1, 8 + SPECIAL, {"9": 32, "0": 17}),
    "b1.pvh-256.trimmed": (2, 32 + SPECIAL, {"9": 128, "0": 17}),
    # 1 GiB, then 76 MiB.
    "b1.pvh-1100.trimmed": (4, 1 + 10 + SPECIAL, {"18": 1, "9": 38, "0": 17}),
    "b2.no1g-pvh-256.trimmed": (1, 32 + SPECIAL, {"9": 128, "0": 17}),
    # hap_2mb=0: the same extents, each mapped by 512 pages.
    "b3.no2m-pvh-256.trimmed": (1, 32 + SPECIAL, {"9": 128, "0": 17}),
    "balloon.t1-dec4k.trimmed": (1, 16 + SPECIAL, {"9": 64, "0": 17}),
    # One more by the guest: it gave 2 MiB back and took them again.
    "balloon.t5-dec-readd2m.trimmed": (5, 16 + SPECIAL + 1, {"9": 65, "0": 17}),
    "balloon.t7-1g-dec4k.trimmed": (7, 1 + 10 + SPECIAL, {"18": 1, "9": 38, "0": 17}),
    "conc.par-512-700.trimmed": (2, 64 + SPECIAL, {"9": 256, "0": 17}),
    # 0..0x9f and 0xc0..0x1ff, 254 MiB, twice eight special pages; QEMU's dm_op are none.
    "hvm.hvm-256.trimmed": (1, 2 + 32 + 2, {"9": 127, "0": 480 + 16}),
    "logdirty.ld2.trimmed": (2, 16 + SPECIAL, {"9": 64, "0": 17}),
    # Populate on demand: calls mark it, faults and reclaims are none.
    "pod.p2-touch4k.trimmed": (2, 64 + SPECIAL, {"9": 256, "0": 17}),
    "pod.p3-splinter.trimmed": (3, 32 + SPECIAL, {"9": 128, "0": 17}),
}


def test_every_capture_is_here():
    assert {path.name.removesuffix(".trace.bin.xz") for path in TRACES.glob("*.xz")} == set(BUILDS)


@pytest.mark.parametrize("name", BUILDS)
def test_the_calls_of_a_build(name):
    domid, calls, extents = BUILDS[name]
    found = report(open_trace(TRACES / f"{name}.trace.bin.xz"))["domains"]
    section = found[str(domid)]["populate"]
    assert section["calls"] == calls
    assert section["done"] == section["asked"] == extents
    assert section["fallbacks"] == {}
    assert "unknown_frames" not in section
    series = found[str(domid)]["series"]
    assert sum(series["populate_calls"]) == calls
    assert sum(series["extents"]) == sum(extents.values())
    if name.startswith("conc"):
        # 700 MiB, built after the other one.
        assert found["1"]["populate"]["calls"] == 88 + SPECIAL


def test_a_part_of_a_build():
    trace = open_trace(TRACES / "b1.pvh-256.trimmed.trace.bin.xz")
    for gfns, calls in (((0, 0x800), 1), ((0x7FF, 0x801), 2), ((0xFC000, 0xFF000), SPECIAL)):
        section = report(trace, Selection(gfns=gfns))["domains"]["2"]["populate"]
        assert section["calls"] == calls
    rows = trace.updates["time"]
    half = report(trace, Selection(between=(int(rows[0]), int(rows[64]))))["domains"]["2"]
    assert 0 < half["populate"]["calls"] < 32


# -- traces that Xen would write ----------------------------------------------------------------


class Writer:
    """An xentrace of one pcpu on which the vcpus of some domains run."""

    def __init__(self):
        self.records, self.tsc, self.mfn = [], 1000, 1 << 24

    def add(self, event, *words, tsc=True):
        header = event | len(words) << 28
        if not tsc:
            self.records.append(struct.pack(f"<{len(words) + 1}I", header, *words))
            return
        self.tsc += 100
        stamped = struct.pack("<IQ", header | 1 << 31, self.tsc)
        self.records.append(stamped + struct.pack(f"<{len(words)}I", *words))

    def runs(self, domid):
        self.add(0x0002_1101, domid << 16)

    def call(self, op=MEMORY_OP):
        self.add(0x0020_200E, op)

    def vmmcall(self, op=MEMORY_OP):
        self.add(0x0008_2012, op)

    def set(self, gfn, order, mfn, kind=RAM, domid=1):
        self.add(
            0x0010_F004, gfn & 0xFFFFFFFF, gfn >> 32, mfn & 0xFFFFFFFF, mfn >> 32, kind,
            domid | order << 16, tsc=False,
        )  # fmt: skip

    def give(self, gfn, order, nr, *, domid=1, mapped_by=None):
        """``nr`` extents, mfns handed out downwards; each mapped by pieces of a smaller order."""
        pieces = order if mapped_by is None else mapped_by
        for _ in range(nr):
            self.mfn -= 1 << order
            for piece in range(1 << order - pieces):
                step = piece << pieces
                self.set(gfn + step, pieces, self.mfn + step, domid=domid)
            gfn += 1 << order
        return gfn

    def populate(self, gfn, order, nr, **how):
        self.call()
        return self.give(gfn, order, nr, **how)

    def read(self):
        body = b"".join(self.records)
        data = struct.pack("<III", 0x2001_F003, 0, len(body)) + body
        return read_trace(memoryview(data), "t", cpu_hz=1e9)

    def domain(self, domid=1):
        return report(self.read())["domains"][str(domid)]

    def section(self, domid=1):
        return self.domain(domid).get("populate")


@pytest.fixture
def xen():
    writer = Writer()
    writer.runs(0)
    return writer


def test_a_fragmented_host(xen):
    """The last call of 2M gets three of four, the rest is 4K; each further 8 MiB is tried again."""
    gfn = 0
    for _ in range(5):
        gfn = xen.populate(gfn, 9, 4)
    gfn = xen.populate(gfn, 9, 3)
    gfn = xen.populate(gfn, 0, 512)
    for pieces in ((2048,), (1500, 548), (2048,), (2048,)):
        xen.call()  # of 2M, which fails
        for nr in pieces:
            gfn = xen.populate(gfn, 0, nr)
    xen.populate(gfn, 0, 256)
    section = xen.section()
    assert section["calls"] == 5 + 1 + 1 + 4 + 1
    assert section["done"] == {"9": 23, "0": 512 + 4 * 2048 + 256}
    assert section["asked"]["9"] == 24, "what the first 4K call filled had been asked for"
    assert section["fallbacks"] == {"9->0": 5}


def test_1g_that_fails_at_the_second_gib(xen):
    gfn = xen.populate(0, 18, 1)
    while gfn < 2 << 18:
        gfn = xen.populate(gfn, 9, 4)
    xen.populate(gfn, 9, 3)
    section = xen.section()
    assert section["calls"] == 1 + 128 + 1
    assert section["fallbacks"] == {"18->9": 1}


def test_a_ragged_tail_and_pages_elsewhere_are_no_fallback(xen):
    gfn = xen.populate(0, 18, 2)
    gfn = xen.populate(gfn, 9, 4)
    xen.populate(gfn, 0, 256)
    xen.populate(0xFEFF8, 0, 8)
    # QEMU's video memory: whole superpages of 4K, elsewhere.
    xen.populate(0xF0000, 0, 2048)
    assert xen.section()["fallbacks"] == {}


@pytest.mark.parametrize(("order", "mapped_by"), [(18, 9), (18, 0), (9, 0)])
def test_extents_that_are_mapped_in_smaller_pieces(xen, order, mapped_by):
    xen.populate(0, order, 1, mapped_by=mapped_by)
    section = xen.section()
    assert section["done"] == {str(order): 1}
    assert section["extents_per_call"]["max"] == 1


def test_a_restore_populates_pages(xen):
    gfn = 0
    for pieces in ((1024,), (199, 825), (1024,), (1000, 24)):
        for nr in pieces:
            gfn = xen.populate(gfn, 0, nr)
    section = xen.section()
    assert (section["calls"], section["done"], section["fallbacks"]) == (4, {"0": 4096}, {})


def test_pieces_that_add_up_to_nothing_known_stay_apart(xen):
    gfn = xen.populate(0, 0, 199)
    xen.populate(gfn, 0, 57)
    assert xen.section()["calls"] == 2


def test_many_small_calls_are_no_pieces_of_a_large_one(xen):
    gfn = xen.populate(0, 0, 512)
    for _ in range(512):
        gfn = xen.populate(gfn, 0, 1)
    assert xen.section()["calls"] == 513


def test_of_a_part_of_a_trace_nobody_can_tell(xen):
    xen.runs(1)
    xen.vmmcall(DM_OP)
    xen.runs(0)
    xen.populate(0, 9, 4)
    whole = xen.read()
    part = Selection(domid=1).of(whole)
    assert part.updates.rows == 4
    assert "populate" not in report(part)["domains"]["1"]
    assert report(whole, Selection(domid=1))["domains"]["1"]["populate"]["calls"] == 1


@pytest.mark.parametrize("others", [False, True])
def test_without_records_of_hypercalls_no_call_is_invented(xen, others):
    xen.give(0, 9, 8)
    if others:
        xen.call(DM_OP)
        xen.runs(0)
        xen.give(1 << 18, 9, 8)
    domain = xen.domain()
    assert "populate" not in domain
    assert domain["final_leaves"]["9"]["ram_rw"] in {8, 16}
    assert sum(domain["series"]["populate_calls"]) == 0


def test_unknown_is_no_number_on_the_terminal(xen, tmp_path, capsys):
    xen.give(0, 9, 8)
    xen.populate(0, 9, 1, domid=2)
    body = b"".join(xen.records)
    (tmp_path / "t").write_bytes(struct.pack("<III", 0x2001_F003, 0, len(body)) + body)
    assert run(["profile", str(tmp_path / "t")]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    for domid, told in ((1, ["-", "-"]), (2, ["1", "0"])):
        row = next(row for row in rows if row[:1] == [str(domid)])
        assert row[-4:-2] == told, "populates and fallbacks"


def test_only_the_guest_is_heard(xen):
    """A mask without PV hypercalls: the build is unknown, ballooning is not."""
    xen.give(0, 9, 8)
    xen.runs(1)
    for gfn in (7, 0x205, 0x300):
        xen.vmmcall()
        xen.add(0x0010_F005, gfn, 0, 1, 0, tsc=False)
        xen.set(gfn, 0, NONE, INVALID)
    for gfn in (7, 0x205):
        xen.vmmcall()
        xen.give(gfn, 0, 1)
    section = xen.section()
    assert (section["calls"], section["done"]) == (2, {"0": 2})
    assert section["unknown_frames"] == 8 * 512


def test_a_domain_that_is_only_looked_at_made_no_call(xen):
    xen.populate(0, 9, 2, domid=2)
    xen.call(DM_OP)
    xen.set(5, 0, 77, domid=1)
    assert xen.section(2)["calls"] == 1
    assert xen.section(1)["calls"] == 0


def test_moves_and_second_mappings_are_no_populates(xen):
    xen.populate(0x10000, 0, 64)
    xen.call()
    for page in range(64):
        xen.set(0x10000 + page, 0, NONE, INVALID)
        xen.set(0xF0000 + page, 0, 500 + page)
    xen.call()
    xen.set(0xF0000, 0, 7)
    assert xen.section()["calls"] == 1


def test_what_faults_populate_is_no_call(xen):
    xen.call()
    for gfn in range(0, 0x800, 0x200):
        xen.set(gfn, 9, NONE, POD)
    xen.runs(1)
    xen.vmmcall()
    # While the guest's last hypercall is the one that is known: a populate, ...
    xen.set(0, 9, 0x4000)
    xen.add(0x0010_F010, 5, 0, 0x4000, 0, 1 | 9 << 16, 0, tsc=False)
    # ... a page that was taken for zero and is not, and one that is.
    xen.set(0, 0, NONE, POD)
    xen.set(0, 0, 0x4000)
    xen.set(1, 0, NONE, POD)
    xen.add(0x0010_F011, 1, 0, 0x4001, 0, 1, 0, tsc=False)
    section = xen.section()
    assert (section["calls"], section["done"]) == (1, {"9": 4})


def test_a_guest_may_populate_what_was_to_be_populated_on_demand(xen):
    xen.call()
    xen.set(0, 9, NONE, POD)
    xen.runs(1)
    xen.vmmcall()
    xen.set(3, 0, 0x999)
    assert xen.section()["calls"] == 2


WILD = st.tuples(
    st.sampled_from([0, 1, 511, 512, 1 << 18, (1 << 52) - 1, NONE, 1 << 63]),
    st.sampled_from([0, 1, 9, 10, 18, 19, 20]),
    st.sampled_from([0, 512, 1 << 18, NONE, NONE - 1, 1 << 63]),
    st.sampled_from([RAM, INVALID, POD, 200]),
    st.sampled_from([0, 1, 0xFFFF]),
    st.sampled_from(["call", "other", "guest", "again", ""]),
)


@settings(deadline=None, max_examples=200)
@given(st.lists(WILD, min_size=1, max_size=20))
def test_nothing_that_a_file_may_say_is_too_much(rows):
    xen = Writer()
    for gfn, order, mfn, kind, domid, what in rows:
        if what == "call":
            xen.call()
        elif what == "other":
            xen.call(DM_OP)
        elif what == "guest":
            xen.runs(domid)
            xen.vmmcall()
        elif what == "again":
            xen.add(DOM_REM, domid)
            xen.add(DOM_ADD, domid)
        xen.set(gfn, order, mfn, kind, domid)
    for section in report(xen.read())["domains"].values():
        populate = section.get("populate")
        if populate is not None:
            assert sum(section["series"]["populate_calls"]) == populate["calls"]


# -- a domid that is used again -----------------------------------------------------------------

DOM_ADD, DOM_REM = 0x0004_1001, 0x0004_1002


def test_a_domid_that_is_used_again_begins_empty(xen):
    xen.add(DOM_ADD, 1)
    xen.populate(0, 9, 8)
    xen.populate(0x3000, 9, 2, domid=2)
    xen.add(DOM_REM, 1)
    gone = xen.domain()
    assert gone["final_leaves"] == {"9": {"ram_rw": 8}}, "destroying updates nothing"
    xen.add(DOM_ADD, 1)
    assert xen.domain()["final_leaves"] == {}
    xen.populate(0, 9, 3)
    xen.call()
    xen.set(5, 0, NONE, INVALID)
    domain = xen.domain()
    assert domain["final_leaves"] == {"9": {"ram_rw": 2}, "0": {"ram_rw": 511}}
    assert domain["shatters"] == {"18->9": 0, "9->0": 1}
    assert domain["p2m_updates"] == {"9": {"ram_rw": 11}, "0": {"invalid": 1}}
    assert domain["populate"]["done"] == {"9": 11}
    mapped = domain["series"]["mapped"]["9"]
    assert max(mapped) == 8 << 9
    assert mapped[-1] == 2 << 9
    # Empty from the moment on at which it is given again, and not only from its first update.
    edges = domain["series"]["edges"]
    given = xen.read().domids_given_again()[1][0]
    since = next(at for at, edge in enumerate(edges[1:]) if edge > given)
    assert mapped[since - 1] == 8 << 9
    assert mapped[since] == 0
    assert xen.domain(2)["final_leaves"] == {"9": {"ram_rw": 2}}
    for _ in range(2):
        xen.add(DOM_REM, 1)
        xen.add(DOM_ADD, 1)
        xen.populate(0, 18, 1)
    assert xen.domain()["final_leaves"] == {"18": {"ram_rw": 1}}


def test_a_first_dom_add_empties_nothing(xen):
    xen.populate(0, 9, 8)
    xen.add(DOM_ADD, 1)
    xen.add(DOM_ADD, 1)
    assert xen.domain()["final_leaves"] == {"9": {"ram_rw": 8}}


def test_nothing_of_it_in_a_capture_of_one_domain():
    for path in TRACES.glob("*.xz"):
        trace = open_trace(path)
        assert trace.domids_given_again() == {}
        assert lzma.decompress(path.read_bytes())[:4] == b"\x03\xf0\x01\x20"
