"""What a trace keeps of a message's content: domid, order, number of extents, gfn, return code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from protocols.frames import DOMID_FIRST_RESERVED
from protocols.message import Message
from protocols.registry import MESSAGE_KINDS, TAGS
from protocols.trace import NO_DOMID, NO_NR, NO_ORDER

KINDS: Final = tuple(sorted(MESSAGE_KINDS))
"""Wire tags in the order in which the column ``kind`` numbers them."""
NUMBERS: Final = {kind: KINDS.index(tag) for kind, tag in TAGS.items()}

_DOMIDS: Final = ("domid", "owner")
_ORDERS: Final = ("extent_order", "order")
_LISTS: Final = ("extent_start", "gfns", "mfns")
_COUNTS: Final = ("nr_done", "nr_extents", "nr", "nr_pages")
_GFNS: Final = ("gpfn", "gfn", "first_gfn", "src")
_ABSENT: Final = (NO_DOMID, NO_ORDER, NO_NR, -1, 0)
Column = npt.NDArray[np.int64]


def _field(kind: type[Message], names: tuple[str, ...]) -> str:
    return next((name for name in names if name in kind.__struct_fields__), "")


_FIELDS: Final = [
    [_field(MESSAGE_KINDS[tag], names) for names in (_DOMIDS, _ORDERS, _COUNTS, _GFNS, ("rc",))]
    + [_field(MESSAGE_KINDS[tag], _LISTS)]
    for tag in KINDS
]
"""Of each kind the fields that hold domid, order, count, gfn, rc and frames; empty for none."""


def describe(bodies: Sequence[Any], kinds: npt.NDArray[Any]) -> list[Column]:
    """Columns domid, order, nr, gfn and rc of messages of the kinds so numbered.

    Absent ones are NO_DOMID, NO_ORDER, NO_NR, -1 and 0. Messages of one kind are read together.
    """
    columns = [np.full(len(bodies), absent, dtype=np.int64) for absent in _ABSENT]
    if not bodies:
        return columns
    by_kind = np.argsort(kinds, kind="stable")
    edges = np.flatnonzero(np.diff(kinds[by_kind])) + 1
    for rows in np.split(by_kind, edges):
        domid, order, count, gfn, rc, frames = _FIELDS[int(kinds[rows[0]])]
        some = [bodies[row] for row in rows.tolist()]
        if frames:
            held: list[bytes] = [getattr(body, frames) for body in some]
            columns[2][rows] = [len(data) >> 3 for data in held]
            if frames != "mfns":
                columns[3][rows] = [
                    int.from_bytes(data[:8], "little") if data else -1 for data in held
                ]
        for column, name in zip(
            columns, (domid, order, count, "" if frames else gfn, rc), strict=True
        ):
            if name:
                column[rows] = [getattr(body, name) for body in some]
    columns[0][columns[0] >= DOMID_FIRST_RESERVED] = NO_DOMID
    return columns
