"""What an audit says: violations with their frames, and the counts of ``audit_p2m``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

DETAILS_MAX: Final = 32
"""So many violations of one kind are listed from one place; the others are counted."""


@dataclass(frozen=True, slots=True)
class Violation:
    """An invariant that does not hold, and the first frame at which it does not.

    ``gfn`` and ``mfn`` are that frame's own; ``order`` is that of the leaf, the block or the TLB
    entry it lies in. None where there is none to name.
    """

    invariant: str
    message: str
    domid: int | None = None
    gfn: int | None = None
    mfn: int | None = None
    order: int | None = None

    def __str__(self) -> str:  # pyright: ignore[reportImplicitOverride]
        """One line."""
        words = [self.invariant]
        if self.domid is not None:
            words.append(f"d{self.domid}")
        if self.gfn is not None:
            words.append(f"gfn {self.gfn:#x}")
        if self.mfn is not None:
            words.append(f"mfn {self.mfn:#x}")
        if self.order is not None:
            words.append(f"order {self.order}")
        return f"{' '.join(words)}: {self.message}"


@dataclass(slots=True)
class AuditReport:
    """What an audit found.

    Attributes:
        checked: Frames of leaves, free blocks, pools and PoD caches, and TLB entries, looked at.
        violations: What is wrong. A long list of one kind ends in a line that counts the rest.
        orphans: Owned frames without M2P word that no PoD cache holds: allowed, as in Xen.
        m2p_bad: Owned frames whose M2P word names a gfn that does not map them.
        p2m_bad: Frames of RAM leaves whose M2P word is another.
    """

    checked: int = 0
    violations: list[Violation] = field(default_factory=list[Violation])
    orphans: int = 0
    m2p_bad: int = 0
    p2m_bad: int = 0

    def add(
        self,
        invariant: str,
        message: str,
        domid: int | None = None,
        gfn: int | None = None,
        mfn: int | None = None,
        order: int | None = None,
    ) -> None:
        """One violation."""
        self.violations.append(Violation(invariant, message, domid, gfn, mfn, order))

    def add_each(
        self,
        which: npt.NDArray[np.bool_],
        describe: Callable[[int], Violation],
    ) -> None:
        """A violation for each True of ``which``, described by its index."""
        where = np.flatnonzero(which)
        found = [describe(index) for index in where[:DETAILS_MAX].tolist()]
        self.violations.extend(found)
        if where.size > DETAILS_MAX:
            first = found[0]
            rest = f"{where.size - DETAILS_MAX} more like these"
            self.add(first.invariant, rest, first.domid)
