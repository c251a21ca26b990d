"""Who chooses which link delivers next. Choice 0 is the oldest message: plain FIFO."""

from __future__ import annotations

from random import Random
from typing import Protocol


class Oracle(Protocol):
    """One decision method; everything else is a decorator around it."""

    def choose(self, n: int) -> int:
        """An index below ``n``, the number of links with a message waiting."""
        ...


class Seeded:
    """Uniform choices from a seed; the same seed makes the same choices in any process."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)  # noqa: S311 (a schedule, not a secret)

    def choose(self, n: int) -> int:
        """A uniform index."""
        return self._random.randrange(n)
