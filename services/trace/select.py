"""The part of a trace that somebody asks for: a domain, a kind, a time, a range of gfns."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from protocols.frames import FRAME_MAX
from services.trace.frame import Column, Frame, Mask, Trace


@dataclass(frozen=True)
class Selection:
    """What is asked for; None asks for all. ``between`` and ``gfns`` are half-open."""

    domid: int | None = None
    kind: str | None = None
    between: tuple[int, int] | None = None
    gfns: tuple[int, int] | None = None

    @property
    def everything(self) -> bool:
        """Whether nothing is left out."""
        return self == Selection()

    def updates(self, frame: Frame) -> Mask:
        """Rows of an UPDATES frame: of the domain, in time, overlapping the gfns."""
        keep = np.ones(frame.rows, dtype=np.bool_)
        if self.domid is not None:
            keep &= frame["domid"] == self.domid
        if self.between is not None:
            keep &= (frame["time"] >= self.between[0]) & (frame["time"] < self.between[1])
        if self.gfns is not None:
            size = np.uint64(1) << np.maximum(frame["order"], 0).astype(np.uint64)
            keep &= _overlaps(frame, size, self.gfns)
        return keep

    def messages(self, frame: Frame, kinds: list[str]) -> Mask:
        """Rows of a MESSAGES frame: under way in the time, naming a gfn of the range."""
        keep = np.ones(frame.rows, dtype=np.bool_)
        if self.domid is not None:
            keep &= frame["domid"] == self.domid
        if self.kind is not None:
            number = kinds.index(self.kind) if self.kind in kinds else -1
            keep &= frame["kind"] == number
        if self.between is not None:
            end = np.where(frame["ended"] >= 0, frame["ended"], frame["started"])
            keep &= (end >= self.between[0]) & (frame["sent"] < self.between[1])
        if self.gfns is not None:
            extents = np.clip(frame["nr"], 1, FRAME_MAX).astype(np.uint64)
            size = extents << np.maximum(frame["order"], 0).astype(np.uint64)
            known = frame["gfn"] != np.uint64((1 << 64) - 1)
            keep &= known & _overlaps(frame, np.where(known, size, np.uint64(0)), self.gfns)
        return keep

    def of(self, trace: Trace) -> Trace:
        """The rows asked for; what the tables held before them is gone with the rest."""
        if self.everything:
            return trace
        running = trace.running
        alive = np.ones(running.rows, dtype=np.bool_)
        calls = np.ones(trace.hypercalls.rows, dtype=np.bool_)
        if self.domid is not None:
            alive &= running["domid"] == self.domid
            calls &= trace.hypercalls["domid"] == self.domid
        if self.between is not None:
            first, last = self.between
            alive &= (running["end"] >= first) & (running["start"] < last)
            time = trace.hypercalls["time"]
            calls &= (time >= first) & (time < last)
        chosen = replace(
            trace,
            messages=trace.messages.take(self.messages(trace.messages, list(trace.kinds))),
            updates=trace.updates.take(self.updates(trace.updates)),
            events=trace.events.take(self.updates(trace.events)),
            hypercalls=trace.hypercalls.take(calls),
            running=running.take(alive),
            events_by_name={},
        )
        chosen.records = sum(
            frame.rows
            for frame in (
                chosen.messages, chosen.updates, chosen.events, chosen.hypercalls, chosen.running,
            )
        )  # fmt: skip
        return chosen


def _overlaps(frame: Frame, size: Column, gfns: tuple[int, int]) -> Mask:
    """Rows whose frames from ``gfn`` on, ``size`` many, meet the range; no sum can wrap around."""
    gfn, first, end = frame["gfn"], np.uint64(gfns[0]), np.uint64(gfns[1])
    reaches = size > first - np.minimum(gfn, first)
    return (gfn < end) & ((gfn >= first) | reaches)
