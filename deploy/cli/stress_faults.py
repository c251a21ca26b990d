"""What ``--faults`` means."""

from __future__ import annotations

from deploy.stress.case import FAULT_KINDS, FaultKind
from protocols.errno import BadInputError


def faults_of(text: str) -> tuple[FaultKind, ...]:
    """The faults that ``--faults`` names.

    Raises:
        BadInputError: one that there is not.
    """
    if text == "none":
        return ()
    if text == "all":
        return FAULT_KINDS
    chosen = [name.strip() for name in text.split(",")]
    for name in chosen:
        if name not in FAULT_KINDS:
            raise BadInputError(
                f"--faults {text}: {name!r} is none; expected all, none or some of "
                f"{', '.join(FAULT_KINDS)}"
            )
    return tuple(kind for kind in FAULT_KINDS if kind in chosen)
