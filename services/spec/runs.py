"""Runs of frames: (starts, lengths) arrays, and what is left when others are taken away."""

from __future__ import annotations

import numpy as np

from protocols.frames import FrameArray, runs_of
from services.spec.snapshots import Runs

NO_FRAMES: FrameArray = np.empty(0, dtype=np.uint64)
NO_RUNS: Runs = (NO_FRAMES, NO_FRAMES)


def total(runs: Runs) -> int:
    """Frames in disjoint runs."""
    return int(runs[1].sum(dtype=np.uint64))


def together(parts: list[Runs]) -> Runs:
    """All runs of the parts, in their order; they may touch or overlap."""
    if not parts:
        return NO_RUNS
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def of_frames(frames: FrameArray) -> Runs:
    """Frames in any order, each taken once, as maximal runs."""
    ascending = np.sort(frames)
    first = np.ones(ascending.size, dtype=np.bool_)
    first[1:] = ascending[1:] != ascending[:-1]
    return runs_of(ascending[first])


def subtract(runs: Runs, taken: Runs) -> Runs:
    """The frames of ``runs`` that are in no run of ``taken``: maximal disjoint runs, ascending.

    Either side may be unsorted and overlap itself.
    """
    starts, lengths = runs
    if not starts.size:
        return NO_RUNS
    taken_starts, taken_lengths = taken
    ends, taken_ends = starts + lengths, taken_starts + taken_lengths
    edges = np.concatenate((starts, ends, taken_starts, taken_ends))
    inside = np.repeat([1, -1, 0, 0], [starts.size] * 2 + [taken_starts.size] * 2)
    covered = np.repeat([0, 0, 1, -1], [starts.size] * 2 + [taken_starts.size] * 2)
    where = np.argsort(edges, kind="stable")
    edges = edges[where]
    left = (inside[where].cumsum() > 0) & (covered[where].cumsum() == 0)
    # Of edges at one place only the last one knows what follows.
    last = np.append(edges[1:] != edges[:-1], True)
    edges, left = edges[last], left[last]
    before = np.concatenate(([False], left[:-1]))
    opens, closes = edges[left & ~before], edges[~left & before]
    return opens, closes - opens
