"""Programs as text, and the accesses that their operations stand for.

The words are those of the small kernel of the captured guests: ``OP:NUMBER:...``, between blanks,
numbers in hexadecimal and without a prefix, a missing one is 0.
"""

from __future__ import annotations

import re
from typing import Final, TypeAlias, cast

import numpy as np

from protocols.errno import BadInputError
from protocols.frames import PAGE_SHIFT, FrameArray
from protocols.guest import PROGRAM_MAX, GuestOperation, OpCode
from protocols.text import shown

KERNEL: Final = "tiny.elf"
"""File name of the kernel whose command line is a program."""
HYPERCALL_EXTENTS: Final = 1024
"""Extents that the kernel's one extent list holds."""
ACCESS_BATCH: Final = 1 << 14
"""Accesses in one array."""
WORD_SHOWN: Final = 40

Programs: TypeAlias = tuple[tuple[GuestOperation, ...], ...]
"""What each vCPU of a guest runs, from vCPU 0 on."""

ACCESSES: Final = frozenset("wrzlL")
HYPERCALLS: Final = frozenset("dDpP")

_NUMBERS: Final[dict[OpCode, tuple[str, ...]]] = {
    "w": ("START", "END", "STEP"),
    "r": ("START", "END", "STEP"),
    "z": ("START", "END"),
    "d": ("GFN", "N", "STEP", "ORDER"),
    "D": ("GFN", "N", "ORDER"),
    "p": ("GFN", "N", "STEP", "ORDER"),
    "P": ("GFN", "N", "ORDER"),
    "L": ("START", "END", "STEP"),
    "l": ("START", "END", "STEP", "N"),
    "s": ("TENTHS",),
    "b": (),
    "x": (),
}
_ORDER_MAX: Final = 31
_WORD: Final = re.compile(r"\S+")


def parse_program(text: str, where: str) -> tuple[GuestOperation, ...]:
    """A program.

    Args:
        text: words such as ``w:1000000:1400000:200000``.
        where: names the program in complaints.

    Raises:
        BadInputError: one line with the position of the word that is no operation.
    """
    program = tuple(
        _operation(word[0], f"{where}: position {word.start()}: {shown(word[0], WORD_SHOWN)}")
        for word in _WORD.finditer(text)
    )
    if not program:
        raise BadInputError(f"{where}: empty, expected operations such as w:100000:200000:1000")
    if len(program) > PROGRAM_MAX:
        raise BadInputError(f"{where}: {len(program)} operations, expected at most {PROGRAM_MAX}")
    return program


def _operation(word: str, where: str) -> GuestOperation:
    letter, *numbers = word.split(":")
    names = _NUMBERS.get(cast("OpCode", letter))
    if names is None:
        raise BadInputError(f"{where}: expected one of {', '.join(_NUMBERS)}")
    if len(numbers) > len(names):
        form = ":".join((letter, *names))
        raise BadInputError(f"{where}: expected {form}, got {len(numbers)} numbers")
    if not all(re.fullmatch(r"[0-9a-f]{1,8}", number) for number in numbers):
        raise BadInputError(f"{where}: expected numbers of up to 8 digits 0-9 and a-f")
    op = GuestOperation(cast("OpCode", letter), *(int(number, 16) for number in numbers))
    wrong = _wrong_accesses(op) if op.code in ACCESSES else _wrong_extents(op)
    if wrong:
        raise BadInputError(f"{where}: {wrong}")
    return op


def _wrong_accesses(op: GuestOperation) -> str:
    """Why the kernel would never be done with the operation, if so."""
    if op.code == "L" and op.a >= op.b:
        return "does nothing for ever, expected START below END"
    if op.code != "z" and op.a < op.b and not op.c:
        return "STEP 0 never ends, expected at least 1"
    return ""


def _wrong_extents(op: GuestOperation) -> str:
    """Which of the kernel's words could not hold the extents, if so."""
    if op.code not in HYPERCALLS or not op.b:
        return ""
    several = op.code in "DP"
    order = op.c if several else op.d
    if order > _ORDER_MAX:
        return f"ORDER: expected at most {_ORDER_MAX:x}"
    if several and op.b > HYPERCALL_EXTENTS:
        return f"N: expected at most {HYPERCALL_EXTENTS:x} extents in one call"
    last = op.a + (op.b - 1) * (1 << order if several else op.c)
    if last >= 1 << 32:
        return f"reaches gfn {last:#x}, expected all below 100000000"
    return ""


def nr_accesses(op: GuestOperation) -> int:
    """Accesses of one turn of w, r, l and L; of z, one a page."""
    if op.b <= op.a:
        return 0
    if op.code == "z":
        return ((op.b - 1) >> PAGE_SHIFT) - (op.a >> PAGE_SHIFT) + 1
    return -(-(op.b - op.a) // op.c)


def accesses(op: GuestOperation, first: int, nr: int) -> FrameArray:
    """The gfns of ``nr`` accesses of one turn, from number ``first`` on, in their order."""
    numbers = np.arange(first, first + nr, dtype=np.uint64)
    if op.code == "z":
        return (op.a >> PAGE_SHIFT) + numbers
    return (op.a + numbers * np.uint64(op.c)) >> np.uint64(PAGE_SHIFT)


def nr_hypercalls(op: GuestOperation) -> int:
    """Hypercalls of d, p, D and P."""
    return op.b if op.code in "dp" else 1


def extents(op: GuestOperation, number: int) -> tuple[int, FrameArray]:
    """(order, gfns) of one hypercall."""
    if op.code in "dp":
        return op.d, np.array([op.a + number * op.c], dtype=np.uint64)
    return op.c, op.a + (np.arange(op.b, dtype=np.uint64) << np.uint64(op.c))
