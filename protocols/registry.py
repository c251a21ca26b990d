"""One table of every message: the union that the codec accepts, by wire tag."""

from __future__ import annotations

from typing import Final, TypeAlias, get_args

from protocols.control import (
    Continuation,
    LeafTable,
    NodeSnapshotReply,
    P2mSnapshotReply,
    SnapshotNode,
    SnapshotP2m,
    SnapshotWalker,
    WalkerSnapshotReply,
)
from protocols.domctl import (
    DomainInfo,
    DomctlCreateDomain,
    DomctlDestroyDomain,
    DomctlGetDomainInfo,
    DomctlSetPagingMempoolSize,
)
from protocols.guest import GuestRan, LoadProgram, RunGuest
from protocols.heap import (
    AllocHeapPages,
    FreeHeapPages,
    HeapPages,
    PodCacheRequest,
    RelinquishMemory,
    SetM2p,
)
from protocols.memory import (
    AddToPhysmap,
    ClaimPages,
    DecreaseReservation,
    IncreaseReservation,
    Multicall,
    MulticallReply,
    NrDone,
    PodTarget,
    PopulatePhysmap,
    RemoveFromPhysmap,
    SetPodTarget,
    Status,
)
from protocols.message import Message
from protocols.p2m import (
    P2mAddPage,
    P2mChangeType,
    P2mCreate,
    P2mEntries,
    P2mGetEntry,
    P2mGetRoot,
    P2mMarkPod,
    P2mMove,
    P2mPodCacheAdd,
    P2mPodState,
    P2mPoolAdd,
    P2mPoolFrames,
    P2mPoolRemove,
    P2mRemovePages,
    P2mRoot,
    P2mSetEntry,
    P2mTeardown,
    P2mTranslate,
    P2mUnmap,
    P2mUpdated,
    PageTableFrames,
    ReadPageTableFrames,
)
from protocols.script import RunScript, ScriptDone
from protocols.toolstack import (
    BalloonDomain,
    BuildDomain,
    DestroyDomain,
    DomainResult,
    PunchDomain,
    TouchDomain,
)
from protocols.walk import (
    Accessed,
    FaultOutcome,
    FlushTlb,
    GuestAccess,
    NestedPageFault,
    Touch,
    Translations,
    WalkTranslate,
)

AnyMessage: TypeAlias = (
    PopulatePhysmap
    | IncreaseReservation
    | DecreaseReservation
    | AddToPhysmap
    | RemoveFromPhysmap
    | ClaimPages
    | SetPodTarget
    | PodTarget
    | NrDone
    | Status
    | Multicall
    | MulticallReply
    | DomctlCreateDomain
    | DomctlDestroyDomain
    | DomctlSetPagingMempoolSize
    | DomctlGetDomainInfo
    | DomainInfo
    | AllocHeapPages
    | FreeHeapPages
    | HeapPages
    | PodCacheRequest
    | RelinquishMemory
    | SetM2p
    | P2mAddPage
    | P2mChangeType
    | P2mCreate
    | P2mEntries
    | P2mGetEntry
    | P2mGetRoot
    | P2mMarkPod
    | P2mMove
    | P2mPodCacheAdd
    | P2mPodState
    | P2mPoolAdd
    | P2mPoolFrames
    | P2mPoolRemove
    | P2mRemovePages
    | P2mRoot
    | P2mSetEntry
    | P2mTeardown
    | P2mTranslate
    | P2mUnmap
    | P2mUpdated
    | PageTableFrames
    | ReadPageTableFrames
    | FlushTlb
    | Touch
    | GuestAccess
    | Accessed
    | WalkTranslate
    | Translations
    | NestedPageFault
    | FaultOutcome
    | BuildDomain
    | DestroyDomain
    | BalloonDomain
    | PunchDomain
    | TouchDomain
    | DomainResult
    | LoadProgram
    | RunGuest
    | GuestRan
    | RunScript
    | ScriptDone
    | Continuation
    | LeafTable
    | SnapshotP2m
    | P2mSnapshotReply
    | SnapshotNode
    | NodeSnapshotReply
    | SnapshotWalker
    | WalkerSnapshotReply
)


def tag_of(kind: type[Message]) -> str:
    """The name of a message kind on the wire."""
    tag = kind.__struct_config__.tag
    assert isinstance(tag, str), f"{kind.__name__} has no wire tag"
    return tag


MESSAGE_KINDS: Final[dict[str, type[Message]]] = {
    tag_of(kind): kind for kind in get_args(AnyMessage)
}
"""Wire tag to class, every message there is."""

TAGS: Final[dict[type[Message], str]] = {kind: tag for tag, kind in MESSAGE_KINDS.items()}
"""Class to wire tag: a dict look-up, for counting in hot paths."""
