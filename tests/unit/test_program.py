"""Programs of guests: what is one, what its operations stand for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errno import BadInputError
from protocols.guest import PROGRAM_MAX, GuestOperation
from services.guest.program import accesses, extents, nr_accesses, nr_hypercalls, parse_program


def test_words_and_numbers():
    text = " w:1000000:1400000:200000   d:2000:8:200:0 D:2000:200  b"
    assert parse_program(text, "f") == (
        GuestOperation("w", 0x1000000, 0x1400000, 0x200000),
        GuestOperation("d", 0x2000, 8, 0x200),
        GuestOperation("D", 0x2000, 0x200),
        GuestOperation("b"),
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty, expected operations"),
        ("b q:1", "position 2: q:1: expected one of w, r, z"),
        ("console=hvc0 root=/dev/xvda1", "position 0: console=hvc0: expected one of"),
        ("b w:1:2:3:4", "position 2: w:1:2:3:4: expected w:START:END:STEP, got 4 numbers"),
        ("w:1g:2:3", "expected numbers of up to 8 digits"),
        ("w:0x10:20:1", "expected numbers of up to 8 digits"),
        ("w:1::1", "expected numbers of up to 8 digits"),
        ("r:0:100000000:1", "expected numbers of up to 8 digits"),
        ("w:0:1000", "STEP 0 never ends"),
        ("L:1000:1000:4", "does nothing for ever"),
        ("D:0:401:0", "N: expected at most 400 extents"),
        ("P:0:1:20", "ORDER: expected at most 1f"),
        ("d:ffffffff:2:1:0", "reaches gfn 0x100000000"),
        ("D:fffffe00:2:9", "reaches gfn 0x100000000"),
        (" ".join("b" * (PROGRAM_MAX + 1)), f"expected at most {PROGRAM_MAX}"),
        ("\x1b[31m", "position 0: \\x1b[31m: expected one of"),
    ],
)
def test_what_is_no_program_is_told_with_its_position(text, reason):
    with pytest.raises(BadInputError) as error:
        parse_program(text, "g.cfg:3")
    assert str(error.value).startswith("g.cfg:3: ")
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def stepped(start, end, step):
    """As the kernel's loop goes."""
    found = []
    while start < end:
        found.append(start >> 12)
        start += step
    return found


@given(
    st.integers(0, 1 << 20), st.integers(0, 1 << 20), st.integers(1, 1 << 14), st.integers(1, 999)
)
def test_accesses_are_those_of_the_loop(start, end, step, part):
    op = GuestOperation("w", start, end, step)
    total = nr_accesses(op)
    found = []
    for first in range(0, min(total, 4000), part):
        found += accesses(op, first, min(part, total - first)).tolist()
    assert found[:4000] == stepped(start, min(end, start + 4000 * step), step)[:4000]


@given(st.integers(0, 1 << 20), st.integers(0, 1 << 20))
def test_zeroing_meets_each_page_once(start, end):
    op = GuestOperation("z", start, end)
    pages = sorted({address >> 12 for address in range(start, end)})
    assert accesses(op, 0, nr_accesses(op)).tolist() == pages


def test_extents_of_the_hypercalls():
    single, several = GuestOperation("p", 0x2000, 3, 0x10, 2), GuestOperation("P", 0x2000, 3, 9)
    assert [extents(single, at)[1].tolist() for at in range(nr_hypercalls(single))] == [
        [0x2000], [0x2010], [0x2020],
    ]  # fmt: skip
    assert nr_hypercalls(several) == 1
    order, gfns = extents(several, 0)
    assert (order, gfns.tolist()) == (9, [0x2000, 0x2200, 0x2400])
