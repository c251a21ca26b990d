"""Samples of long tables whose rows stand for those that are left out."""

from __future__ import annotations

import numpy as np

from services.trace.frame import Column
from services.trace.stats import groups


def spread(keep: Column, nr: int) -> None:
    """Keep so many more rows, evenly spread over those that are not kept yet."""
    rest = np.flatnonzero(~keep)
    nr = min(nr, len(rest))
    keep[rest[np.arange(nr) * len(rest) // max(nr, 1)]] = True


def standing(keys: Column, keep: Column) -> tuple[Column, Column]:
    """The rows to keep, with the last of each key, and how many rows each stands for.

    Those of its key that are left out before it, and itself: so counts of many rows are right.
    """
    keep = keep.copy()
    stands = np.zeros(len(keys), dtype=np.int64)
    for _, rows in groups(keys):
        keep[rows[-1]] = True
        kept = np.flatnonzero(keep[rows])
        stands[rows[kept]] = np.diff(kept, prepend=-1)
    return np.flatnonzero(keep), stands[keep]


def chosen(keys: Column, most: int, first: Column | None = None) -> tuple[Column, Column]:
    """At most about ``most`` rows, as ``standing``; those of ``first`` before any others."""
    nr = len(keys)
    if nr <= most:
        return np.arange(nr), np.ones(nr, dtype=np.int64)
    keep = np.zeros(nr, dtype=np.bool_)
    if first is not None:
        rare = np.flatnonzero(first)
        keep[rare[:: max(1, -(-2 * len(rare) // most))]] = True
    spread(keep, most - int(np.count_nonzero(keep)))
    return standing(keys, keep)
