"""What a trace keeps of a message's content: domid, order, number of extents, gfn, return code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from protocols.frames import DOMID_FIRST_RESERVED
from protocols.message import Message
from protocols.registry import MESSAGE_KINDS, TAGS
from protocols.trace import NO_DOMID, NO_NR, NO_ORDER

KINDS: Final = tuple(sorted(MESSAGE_KINDS))
"""Wire tags in the order in which the column ``kind`` numbers them."""
NUMBERS: Final = {kind: KINDS.index(tag) for kind, tag in TAGS.items()}

Details = tuple[int, int, int, int, int]
"""(domid, order, nr, gfn, rc); absent ones are NO_DOMID, NO_ORDER, NO_NR, -1 and 0."""
Describe = Callable[[Any], Details]

_DOMIDS: Final = ("domid", "owner")
_ORDERS: Final = ("extent_order", "order")
_LISTS: Final = ("extent_start", "gfns", "mfns")
_COUNTS: Final = ("nr_done", "nr_extents", "nr", "nr_pages")
_GFNS: Final = ("gpfn", "gfn", "first_gfn", "src")


def _of(kind: type[Message]) -> Describe:
    """The reader of one kind, its fields looked up once."""
    fields = kind.__struct_fields__

    def first(names: tuple[str, ...]) -> str:
        return next((name for name in names if name in fields), "")

    domid_in, order_in, list_in = first(_DOMIDS), first(_ORDERS), first(_LISTS)
    count_in, gfn_in, rc_in = first(_COUNTS), first(_GFNS), first(("rc",))
    of_gfns = list_in in {"extent_start", "gfns"}

    def describe(body: Any) -> Details:
        domid = getattr(body, domid_in) if domid_in else NO_DOMID
        if domid >= DOMID_FIRST_RESERVED:
            domid = NO_DOMID
        order = getattr(body, order_in) if order_in else NO_ORDER
        nr, gfn = NO_NR, -1
        if list_in:
            frames: bytes = getattr(body, list_in)
            nr = len(frames) >> 3
            if of_gfns and nr:
                gfn = int.from_bytes(frames[:8], "little")
        elif gfn_in:
            gfn = getattr(body, gfn_in)
        if count_in:
            nr = getattr(body, count_in)
        return domid, order, nr, gfn, getattr(body, rc_in) if rc_in else 0

    return describe


DESCRIBE: Final[dict[type[Message], Describe]] = {kind: _of(kind) for kind in TAGS}
