"""A counterexample as a person reads it: the messages in order, who overtook whom, what broke."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deploy.stress.engine import Step
from protocols.control import Continuation
from protocols.envelope import CLIENT
from protocols.frames import INVALID_FRAME, unpack
from protocols.memory import NrDone, Status
from protocols.registry import TAGS
from protocols.script import RunScript, ScriptDone
from protocols.text import mermaid_text
from services.spec.findings import Violation

FRAMES_SHOWN = 3
QUIET = frozenset({"reader", "caller", "write", "want_mfns"})
FOLDED = 30
"""A story of more than four times so many steps is a livelock: its middle is left out."""
BYTES_FIELDS = frozenset(
    {"gfns", "mfns", "extent_start", "displaced", "pool", "force_4k", "types", "orders", "data"}
)


def lines(steps: Sequence[Step], violation: Violation | None) -> list[str]:
    """One line a step, then the verdict."""
    width = max((len(_channel(step)) for step in steps), default=0)
    out: list[str] = []
    folded = range(FOLDED, len(steps) - FOLDED) if len(steps) > 4 * FOLDED else range(0)
    for step in steps:
        if step.number in folded:
            if step.number == folded[0]:
                out.append(f"      ... {len(folded)} steps more, which go on like these ...")
            continue
        text = f"{step.number:4d}  {_channel(step):{width}}  {describe(step)}"
        if step.overtaken:
            text += f"   <- overtakes {step.overtaken.replace('>', ' -> ')}"
        if step.fault:
            text += f"   [fault: {step.fault}]"
        out.append(text)
    if violation is not None:
        out.append(f"      violated: {violation}")
        pair = collided(steps, violation)
        if pair is not None:
            first, second = pair
            out.append(
                f"      collided: step {first.number} ({describe(first)} for client "
                f"{first.client}) and step {second.number} ({describe(second)} for client "
                f"{second.client})"
            )
    return out


def _channel(step: Step) -> str:
    source, _, target = step.channel.partition(">")
    return f"{source or '(lock)'} -> {target}"


def describe(step: Step) -> str:
    """What travelled, with the frames it speaks of."""
    if step.envelope is None:
        return "goes on, holding the lock"
    return describe_body(step.envelope.body)


def describe_body(body: Any) -> str:
    """A message in a few words."""
    tag = TAGS[type(body)]
    if isinstance(body, RunScript):
        return f"{tag} of {len(body.operations)}"
    if isinstance(body, (ScriptDone, Continuation)):
        return tag
    if isinstance(body, NrDone):
        return f"nr_done {body.nr_done}"
    if isinstance(body, Status):
        return f"status {body.rc}"
    words = [tag]
    for name in body.__struct_fields__:
        value = getattr(body, name)
        if isinstance(value, bytes):
            if value:
                words.append(f"{name}={_frames(name, value)}")
        elif name in QUIET or value in (None, {}, []) or (name == "nr_partial" and not value):
            continue
        elif isinstance(value, int) and name in {"gpfn", "idx", "src", "dst", "mfn", "gfn"}:
            words.append(f"{name}={value:#x}")
        elif isinstance(value, (int, str)):
            words.append(f"{name}={value}")
    return " ".join(words)


def _frames(name: str, value: bytes) -> str:
    if name in {"types", "orders", "outcome"}:
        return ",".join(str(each) for each in value[:FRAMES_SHOWN])
    if name == "data" or len(value) % 8:
        return f"{len(value)} bytes"
    frames = unpack(value).tolist()
    shown = ["none" if each == INVALID_FRAME else f"{each:#x}" for each in frames[:FRAMES_SHOWN]]
    more = f" and {len(frames) - FRAMES_SHOWN} more" if len(frames) > FRAMES_SHOWN else ""
    return ",".join(shown) + more


def collided(steps: Sequence[Step], violation: Violation) -> tuple[Step, Step] | None:
    """The two steps of different clients that came too close: the last such pair that matters.

    Both speak of the gfn or mfn that went wrong, at one component if there is such a pair; failing
    that, the step that overtook another and the one that it overtook.
    """
    wanted = {each for each in (violation.gfn, violation.mfn) if each is not None}
    near = [step for step in steps if step.envelope is not None and _speaks_of(step, wanted)]
    for same_place in (True, False):
        for second in reversed(near):
            for first in reversed(near):
                if (
                    first.number < second.number
                    and first.client != second.client
                    and (not same_place or _target(first) == _target(second))
                ):
                    return first, second
    for step in reversed(steps):
        if step.overtaken:
            for later in steps:
                if later.number > step.number and later.channel == step.overtaken:
                    return step, later
    return None


def _target(step: Step) -> str:
    return step.channel.partition(">")[2]


def _speaks_of(step: Step, wanted: set[int]) -> bool:
    assert step.envelope is not None, "asked of a message only"
    body: Any = step.envelope.body
    for name in body.__struct_fields__:
        value = getattr(body, name)
        if name in {"gpfn", "idx", "src", "dst", "mfn", "gfn"} and value in wanted:
            return True
        if isinstance(value, bytes) and value and not len(value) % 8 and name in BYTES_FIELDS:
            size = 1 << getattr(body, "order", getattr(body, "extent_order", 0))
            for frame in unpack(value)[:512].tolist():
                if any(frame <= each < frame + size for each in wanted):
                    return True
    return False


def mermaid(steps: Sequence[Step], violation: Violation | None) -> str:
    """The same as a Mermaid sequence diagram."""
    names: list[str] = []
    for step in steps:
        source, _, target = step.channel.partition(">")
        for name in (source, target):
            if name and name not in names:
                names.append(name)
    out = ["sequenceDiagram"]
    out += [f"    participant {_id(name)} as {mermaid_text(name)}" for name in names]
    for step in steps:
        source, _, target = step.channel.partition(">")
        arrow = "-->>" if step.envelope is not None and step.envelope.in_reply_to else "->>"
        text = mermaid_text(describe(step))
        if step.envelope is not None and step.envelope.dst == CLIENT:
            text = "done"
        out.append(f"    {_id(source or target)}{arrow}{_id(target)}: {step.number}. {text}")
        if step.overtaken:
            over = step.overtaken.replace(">", " to ")
            out.append(f"    Note right of {_id(target)}: overtakes {over}")
        if step.fault:
            out.append(f"    Note right of {_id(target)}: fault {step.fault}")
    if violation is not None and names:
        text = mermaid_text(str(violation))
        out.append(f"    Note over {_id(names[0])},{_id(names[-1])}: {text}")
    return "\n".join(out) + "\n"


def _id(name: str) -> str:
    return name.replace("/", "_").replace(".", "_")
