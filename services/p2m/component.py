"""The P2M of a domain: decides and waits; every table change is one call into ring one.

Each concern has its file: the state, its commit and its flush in `domain`, and on it what each
request does, in `lifecycle`, `additions`, `removal`, `move`, `retype`, `demand` (populate on
demand), `faults`, `reads` and `snapshot`.
"""

from __future__ import annotations

from services.p2m.additions import Additions
from services.p2m.demand import Demand
from services.p2m.faults import Faults
from services.p2m.lifecycle import LifeCycle
from services.p2m.move import Moves
from services.p2m.reads import Reads
from services.p2m.removal import Removals
from services.p2m.retype import Retyping
from services.p2m.snapshot import Snapshots


class P2m(LifeCycle, Additions, Removals, Moves, Retyping, Demand, Faults, Reads, Snapshots):
    """p2m_domain of one domain."""
