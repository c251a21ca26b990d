"""Loops that go record by record: plain Python, which a compiler may take as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

HASH: Final = 0x9E37_79B1


class Loop(NamedTuple):
    """A function of arrays, whole numbers and NamedTuples of them that returns a whole number.

    ``parts``: the functions that it calls, those called before those that call them. Nothing in it
    may raise.
    """

    function: Any
    parts: tuple[Any, ...] = ()


Runner = Callable[[Loop], Callable[..., int]]
"""Makes a loop something that can be called: compiled, say (``deploy.profile.native``)."""


def plain(loop: Loop) -> Callable[..., int]:
    """The loop as Python, which is slow."""
    return loop.function


def place_of(keys: Any, key: Any) -> Any:
    """Where a key that is not negative is in an open hash table, or would be; -1 if it is full.

    ``keys`` has a power of two of entries, -1 where there is none.
    """
    mask = len(keys) - 1
    # Both factors are so short that the product is the same in Python and in a machine word.
    at = ((key ^ key >> 31) & 0x7FFF_FFFF) * HASH >> 20 & mask
    for _ in range(len(keys)):
        if keys[at] == key or keys[at] < 0:
            return at
        at = at + 1 & mask
    return -1
