"""What traces say: the events of Xen that concern memory, and the columns of every trace table.

Traces of our own and real xentrace files are read into the same tables, so whatever profiles one
profiles the other. Every table is a set of columns of one length, little-endian numpy arrays. Times
are i64 ticks of the trace's clock since its first record.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class MemEvent(IntEnum):
    """Events of TRC_MEM (public/trace.h) and the nested page fault, by Xen's number."""

    PAGE_GRANT_MAP = 0x0010_F001
    PAGE_GRANT_UNMAP = 0x0010_F002
    PAGE_GRANT_TRANSFER = 0x0010_F003
    SET_P2M_ENTRY = 0x0010_F004
    DECREASE_RESERVATION = 0x0010_F005
    POD_POPULATE = 0x0010_F010
    POD_ZERO_RECLAIM = 0x0010_F011
    POD_SUPERPAGE_SPLINTER = 0x0010_F012
    NPF = 0x0008_2021


EVENT_NAMES: Final = {event: event.name.lower() for event in MemEvent}

NO_DOMID: Final = -1
NO_ORDER: Final = -1
NO_NR: Final = -1
NO_GFN: Final = (1 << 64) - 1
WAITS: Final = 0
"""An activity stopped: it sent what it waits for."""
LOCK: Final = 1
"""An activity stopped: it waits for a lock."""
DONE: Final = 2
"""An activity stopped: it has answered."""
HOW_BITS: Final = 2
"""Why an activity stopped stands in so many bits below how many messages it sent."""

ID_SHIFT: Final = 40
"""A message id is ``number of its source << ID_SHIFT | msg_id``; 0 is no message."""

MESSAGES: Final = {
    "id": "<u8",
    "cause": "<u8",
    "parent": "<u8",
    "reply_to": "<u8",
    "kind": "<u2",
    "src": "<u4",
    "dst": "<u4",
    "shard": "<u2",
    "domid": "<i4",
    "bytes": "<u4",
    "sent": "<i8",
    "received": "<i8",
    "started": "<i8",
    "resumed": "<i8",
    "ended": "<i8",
    "busy": "<i8",
    "lock_wait": "<i8",
    "order": "<i2",
    "nr": "<i8",
    "gfn": "<u8",
    "rc": "<i4",
}
"""One row a delivered message.

``id``: source and number (ID_SHIFT). ``cause``: the message whose delivery made the sender send
this one (happens-before; 0: the client on its own). ``parent``: the request being served by the
activity that sent it (0: the client). ``reply_to``: the request that it answers, 0 if it is none.
``kind``, ``src``, ``dst``: numbers in the trace's lists of kinds and addresses. ``shard``: the
actor that it was delivered to, 65535 for the client. ``bytes``: encoded size of the envelope.

``sent``: the step that sent it ended. ``received``: it came into the receiver's shard. ``started``:
its handling began. ``resumed``: of a request, when its handler went on for the last time after
waiting (0: it never waited). ``ended``: of a request, when it was answered (-1: never); else the
end of the step. ``busy``: ticks during which its handler ran. ``lock_wait``: ticks it waited for
locks. Queue time is ``started - received``, awaiting others is
``ended - started - busy - lock_wait``.

``order``, ``nr``, ``gfn``, ``rc``: extent order, number of extents (of a reply: nr_done), first gfn
and return code, where the message has such (NO_ORDER, NO_NR, NO_GFN, 0).
"""

UPDATES: Final = {
    "time": "<i8",
    "domid": "<u2",
    "order": "u1",
    "type": "u1",
    "gfn": "<u8",
    "mfn": "<u8",
    "cause": "<u8",
    "cpu": "<u2",
    "seq": "<u8",
}
"""One row a p2m update (set_p2m_entry), in the order in which they were executed.

``mfn`` is all ones for INVALID_MFN. ``cause``: of our traces the message whose handling made it; of
a xentrace 1 + the row in HYPERCALLS, 0 if none was under way. ``cpu``: pcpu, or shard. ``seq``
rises with each update and event of a cpu, whichever of the two tables it is in.
"""

EVENTS: Final = {
    "time": "<i8",
    "event": "<u4",
    "domid": "<i4",
    "order": "<i2",
    "gfn": "<u8",
    "mfn": "<u8",
    "cause": "<u8",
    "cpu": "<u2",
    "seq": "<u8",
}
"""One row an event of MemEvent other than set_p2m_entry, in order; ``gfn`` as in MESSAGES."""

HYPERCALLS: Final = {
    "time": "<i8",
    "cpu": "<u2",
    "domid": "<i4",
    "vcpu": "<i4",
    "op": "<u4",
    "subcall": "u1",
    "updates": "<u4",
}
"""xentrace only: one row a hypercall record; ``updates``: p2m updates until the pcpu's next one.

``op`` is the hypercall's number (public/xen.h; 12 is memory_op), ``domid`` and ``vcpu`` who ran on
the pcpu, -1 where the trace does not say yet.
"""

RUNNING: Final = {
    "cpu": "<u2",
    "domid": "<i4",
    "vcpu": "<i4",
    "start": "<i8",
    "end": "<i8",
}
"""xentrace only: one row a span in which a vcpu ran on a pcpu, by start."""

TABLES: Final = {
    "messages": MESSAGES,
    "updates": UPDATES,
    "events": EVENTS,
    "hypercalls": HYPERCALLS,
    "running": RUNNING,
}
LATER: Final = frozenset({"seq"})
"""Columns that files of this version may be without: they were written before these were added."""
