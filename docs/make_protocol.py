"""Write docs/protocol.md from the message classes: run it after changing a message."""

from __future__ import annotations

import typing
from pathlib import Path

import msgspec

from protocols.message import PROTOCOL_VERSION, Request
from protocols.registry import MESSAGE_KINDS

HEAD = f"""# Protocol, version {PROTOCOL_VERSION}

Made from the message classes by `python -m docs.make_protocol`; a test sees that no message is missing.

On the wire a batch is a msgpack array `[version, sender, credits, [envelope, ...]]`, an envelope `[src, dst, msg_id, in_reply_to, body]`, and a body its tag followed by its fields in the order given here. Frame numbers travel packed: `bin` of little-endian u64.
"""


def type_name(kind: object) -> str:
    """A field's type as a reader wants it: base type and range."""
    base, *meta = typing.get_args(kind) if typing.get_origin(kind) is typing.Annotated else (kind,)
    text = getattr(base, "__name__", str(base)).replace("typing.", "")
    for part in meta:
        if isinstance(part, msgspec.Meta):
            low = part.ge if part.ge is not None else part.gt
            high = (
                part.le if part.le is not None else (part.lt - 1 if part.lt is not None else None)
            )
            if low is not None or high is not None:
                text += f" {low if low is not None else ''}..{high if high is not None else ''}"
            if part.pattern is not None:
                text += f" `{part.pattern}`"
    return text.replace("|", "\\|")


def document() -> str:
    """The whole page."""
    lines = [HEAD]
    for tag, kind in MESSAGE_KINDS.items():
        role = "request" if issubclass(kind, Request) else "reply or notice"
        doc = " ".join((kind.__doc__ or "").split())
        hints = typing.get_type_hints(kind, include_extras=True)
        fields = ", ".join(
            f"{field} ({type_name(hints[field])})" for field in kind.__struct_fields__
        )
        lines.append(f"## `{tag}`\n\n{role}. {doc}\n\nFields: {fields or 'none'}.\n")
    return "\n".join(lines)


if __name__ == "__main__":
    Path(__file__).with_name("protocol.md").write_text(document())
