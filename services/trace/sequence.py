"""A hypercall as a Mermaid sequence diagram: who asked whom for what, in order of sending."""

from __future__ import annotations

from typing import Final

from protocols.text import mermaid_text
from services.trace.critical import Chains, tree
from services.trace.frame import Trace

MESSAGES_MAX: Final = 200
"""Arrows of one diagram; more cannot be read."""


def mermaid(chains: Chains, request: int, limit: int = MESSAGES_MAX) -> str:
    """The diagram of the request in a row: solid arrows ask, dashed ones answer."""
    trace = chains.trace
    m = trace.messages
    rows = tree(chains, request, limit)
    lines = ["sequenceDiagram"]
    seen: dict[str, str] = {}
    for row in rows:
        for name in (trace.names[int(m["src"][row])], trace.names[int(m["dst"][row])]):
            if name not in seen:
                seen[name] = f"c{len(seen)}"
                lines.append(f"    participant {seen[name]} as {mermaid_text(name)}")
    for row in rows:
        src, dst = trace.names[int(m["src"][row])], trace.names[int(m["dst"][row])]
        arrow = "-->>" if m["reply_to"][row] else "->>"
        lines.append(f"    {seen[src]}{arrow}{seen[dst]}: {mermaid_text(label(trace, row))}")
    if len(rows) == limit:
        served = seen[trace.names[int(m["dst"][request])]]
        lines.append(f"    Note over {served}: cut at {limit} messages")
    return "\n".join(lines) + "\n"


def label(trace: Trace, row: int) -> str:
    """What a message says, in a few words."""
    m = trace.messages
    words = [trace.kinds[int(m["kind"][row])], f"#{int(m['id'][row]) & ((1 << 40) - 1)}"]
    if m["order"][row] >= 0:
        words.append(f"o{m['order'][row]}")
    if m["nr"][row] >= 0:
        words.append(f"x{m['nr'][row]}")
    if int(m["gfn"][row]) != (1 << 64) - 1:
        words.append(f"gfn {int(m['gfn'][row]):#x}")
    if m["rc"][row]:
        words.append(f"rc {m['rc'][row]}")
    return " ".join(words)
