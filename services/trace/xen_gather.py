"""What the domains of a long xentrace add up to, as large as they are, whatever its length.

Bins are cut from the whole span. Domains share as many cells as a hundred have with all bins; when
there are more, neighbouring bins become one. Of superpages, neighbours become one for the heat when
there are too many cells.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from protocols.frames import ORDER_2M
from services.trace.domains import (
    BINS_MIN,
    LEAF_ORDERS,
    SERIES_BINS,
    SERIES_CELLS,
    halved,
)
from services.trace.loops import Runner
from services.trace.stats import edges_of, groups
from services.trace.superpages import DOMIDS, REGION_BITS, GfnMaps, Leaves
from services.trace.xen_layout import Ints, Words
from services.trace.xen_stream import Batch
from services.trace.xen_views import (
    ACTION_SHIFT,
    BASE,
    BIN,
    BIN_BITS,
    CELL,
    CELLS,
    CHILDREN,
    CONSUME,
    COUNT_MASK,
    CROWDED,
    CURVES,
    GRAIN,
    MARKS,
    ORDER_SHIFT,
    REGION,
    REHASH,
    SLOT_SHIFT,
    TALLIES,
    TALLY,
    Views,
    settle,
)

CELLS_MAX: Final = 1 << 22
"""Entries of the table of heat from which on it is made coarser first."""
GRAIN_MAX: Final = 9


class Cells(NamedTuple):
    """Heat of a domain; arrays of shape (n,)."""

    gfn: npt.NDArray[np.uint64]
    """The first of the superpage, or of neighbours that count as one."""
    bin: Ints
    updates: Ints
    shatters: Ints
    """Updates that shattered something."""


class Gathered:
    """Takes the batches of a Stream in order. ``span``: first and last TSC."""

    def __init__(self, words: Words, span: tuple[int, int], runner: Runner) -> None:
        self._words = words
        self._consume, self._rehash = runner(CONSUME), runner(REHASH)
        self.maps = GfnMaps(LEAF_ORDERS["npt"])
        edges = edges_of((0, span[1] - span[0]), SERIES_BINS)
        bins, nr = len(edges) - 1, SERIES_CELLS // SERIES_BINS
        marks = np.zeros(MARKS, dtype=np.int64)
        marks[BASE] = span[0]
        marks[[REGION, TALLY, CELL]] = -1
        self.views = Views(
            edges=np.array(edges, dtype=np.int64),
            series=np.zeros((nr, CURVES, bins), dtype=np.int64),
            mapped=np.zeros((nr, 3, bins), dtype=np.int64),
            reached=np.zeros(nr, dtype=np.int64),
            removed=np.zeros(DOMIDS, dtype=np.uint8),
            hits=np.zeros((len(self.maps.state.high), CHILDREN), dtype=np.int64),
            tally=np.full(256, -1, dtype=np.int64),
            nr_tally=np.zeros(256, dtype=np.int64),
            cells=np.full(1 << 14, -1, dtype=np.int64),
            nr_cells=np.zeros(1 << 14, dtype=np.int64),
            marks=marks,
        )

    def take(self, batch: Batch) -> None:
        """The events of a batch."""
        done, nr = 0, len(batch.what)
        while (
            done := self._consume(
                self._words, batch.what, batch.when, self.maps.state, self.views, done
            )
        ) < nr:
            self._grow()

    def finish(self) -> None:
        """Everything was taken: the last bins are what is mapped now."""
        bins = len(self.views.edges) - 1
        for slot in self.slots().values():
            settle(self.maps.state.counts, self.views, slot, bins)

    def slots(self) -> dict[int, int]:
        """The slot of each domid, ascending."""
        slots = self.maps.state.slots
        return {domid: int(slots[domid]) for domid in np.flatnonzero(slots >= 0).tolist()}

    def tallies(self) -> dict[int, list[tuple[int, int, int, int]]]:
        """By slot (action, order, type, count), ascending."""
        views = self.views
        found: dict[int, list[tuple[int, int, int, int]]] = {}
        used = np.flatnonzero(views.tally >= 0)
        for at in used[np.argsort(views.tally[used])].tolist():
            key = int(views.tally[at])
            order = key >> ORDER_SHIFT & 0xFFFF
            found.setdefault(key >> SLOT_SHIFT, []).append(
                (key >> ACTION_SHIFT & 0xFF, order, key & 0xFF, int(views.nr_tally[at]))
            )
        return found

    def leaves(self, domid: int) -> Leaves:
        """Of the end."""
        return self.maps.leaves(domid)

    def superpages(self, domid: int) -> tuple[npt.NDArray[np.uint64], Ints, Ints]:
        """(first gfn, updates, shatters) of the 2M ranges that were updated, ascending."""
        rows, regions = self._regions(domid)
        hits = self.views.hits[rows]
        shift, inside = np.uint64(ORDER_2M), np.arange(CHILDREN, dtype=np.uint64)
        gfns = ((regions[:, np.newaxis] << shift) + inside) << shift
        used = hits > 0
        return gfns[used], hits[used] & COUNT_MASK, hits[used] >> 32

    def heat(self) -> dict[int, Cells]:
        """By domid the cells that are not 0."""
        views, state = self.views, self.maps.state
        used = np.flatnonzero(views.cells >= 0)
        key, numbers = views.cells[used], views.nr_cells[used]
        region_of = np.zeros(len(state.high), dtype=np.int64)
        index = state.regions[state.regions[:, 0] >= 0]
        region_of[index[:, 1]] = index[:, 0]
        place = key >> BIN_BITS
        region = region_of[place // CHILDREN]
        inside = region & ((1 << REGION_BITS) - 1)
        gfn = (inside.astype(np.uint64) << np.uint64(9)) + (place % CHILDREN).astype(np.uint64)
        domids = region >> REGION_BITS
        first, at = gfn << np.uint64(ORDER_2M), key & ((1 << BIN_BITS) - 1)
        updates, shatters = numbers & COUNT_MASK, numbers >> 32
        return {
            domid: Cells(first[rows], at[rows], updates[rows], shatters[rows])
            for domid, rows in groups(domids)
        }

    def _regions(self, domid: int) -> tuple[Ints, npt.NDArray[np.uint64]]:
        """(row, number) of a domain's regions, ascending."""
        index = self.maps.state.regions
        mine = index[(index[:, 0] >= 0) & (index[:, 0] >> REGION_BITS == domid)]
        region = mine[:, 0] & ((1 << REGION_BITS) - 1)
        order = np.argsort(region)
        return mine[order, 1], region[order].astype(np.uint64)

    def _grow(self) -> None:
        """More of whatever the loop stopped for."""
        if self.views.marks[CROWDED]:
            self.views.marks[CROWDED] = 0
            self._more_domains()
        self.maps.grow()
        views = self.views
        rows = len(self.maps.state.high)
        if len(views.hits) < rows:
            views = views._replace(hits=_padded(views.hits, rows))
        if 2 * int(views.marks[TALLIES]) >= len(views.tally):
            _, keys, numbers = self._rehashed(views.tally, views.nr_tally, 2 * len(views.tally))
            views = views._replace(tally=keys, nr_tally=numbers)
            views.marks[TALLY] = -1
        if 2 * int(views.marks[CELLS]) >= len(views.cells):
            size = len(views.cells)
            if size < CELLS_MAX or int(views.marks[GRAIN]) == GRAIN_MAX:
                views = self._heat_of(views, views.cells, 2 * size)
            else:
                # Twice as many superpages together.
                views.marks[GRAIN] += 1
                low = ((1 << int(views.marks[GRAIN])) - 1) << BIN_BITS
                views = self._heat_of(
                    views, np.where(views.cells < 0, -1, views.cells & ~low), size
                )
        self.views = views

    def _more_domains(self) -> None:
        """Room for twice as many, by half as many bins as long as that may be."""
        views = self.views
        if len(views.edges) - 1 > BINS_MIN:
            views = self._folded(views)
        nr = 2 * len(views.series)
        self.views = views._replace(
            series=_padded(views.series, nr), mapped=_padded(views.mapped, nr),
            reached=_padded(views.reached, nr),
        )  # fmt: skip

    def _rehashed(self, keys: Ints, numbers: Ints, size: int) -> tuple[int, Ints, Ints]:
        """How many keys there are, and a hash table of a size with them; equal ones are added."""
        found: Ints = np.full(size, -1, dtype=np.int64)
        sums: Ints = np.zeros(size, dtype=np.int64)
        return self._rehash(keys, numbers, found, sums), found, sums

    def _heat_of(self, views: Views, keys: Ints, size: int) -> Views:
        """The heat with other keys in a table of another size."""
        nr, cells, sums = self._rehashed(keys, views.nr_cells, size)
        views.marks[CELLS], views.marks[CELL] = nr, -1
        return views._replace(cells=cells, nr_cells=sums)

    def _folded(self, views: Views) -> Views:
        """Pairs of bins as one each."""
        nr = len(views.edges) - 1
        edges = np.array(halved(views.edges.tolist()), dtype=np.int64)
        bins = len(edges) - 1
        last = np.minimum(2 * np.arange(bins) + 1, nr - 1)
        folded = views._replace(
            edges=edges,
            series=np.add.reduceat(views.series, np.arange(0, nr, 2), axis=2),
            mapped=np.ascontiguousarray(views.mapped[:, :, last]),
            reached=views.reached >> 1,
        )
        folded.marks[BIN] >>= 1
        place, at = views.cells >> BIN_BITS, views.cells & ((1 << BIN_BITS) - 1)
        keys = np.where(views.cells < 0, -1, place << BIN_BITS | at >> 1)
        return self._heat_of(folded, keys, len(views.cells))


def _padded(array: npt.NDArray[Any], rows: int) -> npt.NDArray[Any]:
    made = np.zeros((rows, *array.shape[1:]), dtype=array.dtype)
    made[: len(array)] = array
    return made
