"""Encoding and decoding of p2m entries, bit by bit, for every geometry.

**x86 formats** (npt, pae, x86_32; AMD64 APM vol. 2, 5.3-5.4; Xen ``p2m_type_to_flags``). A present
leaf is P+US+A+D = 0x065, with RW (0x067) where the type allows writing; a superpage adds PSE
(0x080). mmio_direct adds PCD (0x077). Grants, foreign and ioreq_server pages carry NX. Types that
no access may reach (populate_on_demand, paging, broken) are not present: NX and the type, and PSE
on a superpage. invalid and mmio_dm are never stored: the entry is emptied. Where the type lies:

* npt: bits 52-58. Populate on demand 4K is 0x806ffffffffff000, 2M and 1G 0x806fffffffffe080: an
  INVALID_MFN is clipped to the frame field, in a superpage without its PAT bit (bit 12).
* pae: bits 44-50. The frame field has 32 bits (12-43), and Xen's 32-bit flag word is the low 12
  bits of an entry and its bits 44-63; the type is in bits 12-18 of that word, NX is its top bit.
  A root (L3) entry holds P alone, the other bits being reserved by the architecture.
* x86_32: bits 9-11, with the numbers of 2008: ram_rw 1, ram_logdirty 2, ram_ro 3, mmio_direct 5.
  There is no NX, and no other type is representable. A 4M leaf has frame bits 22-31.

**EPT** (Intel SDM vol. 3, 28.3.2; Xen ``ept_p2m_type_to_flags``), in the layout of Xen 4.17:
r, w, x in bits 0-2, memory type in 3-5, ipat 6, sp 7, accessed 8, dirty 9, frame 12-51, type 52-57,
access 58-61, suppress_ve 63. Derivation of ordinary RAM without devices: rwx 0x007, write-back
6 << 3 = 0x030, ipat 0x040, A and D 0x300: 0x377 (sp: 0x3f7). Access rwx is 7 << 58 =
0x1c00000000000000; with suppress_ve 0x9c00000000000000. So RAM 4K is
``0x9c00000000000000 | M << 12 | 0x377`` and a table (rwx and A) ``0x9c00000000000000 | M << 12 |
0x107``. An empty entry is bit 63 alone. A is set on what can be accessed, D where w is set; both
only on present entries. mmio_direct is uncached without ipat, all else write-back with ipat.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, TypeAlias, overload

import numpy as np
import numpy.typing as npt

from protocols.frames import INVALID_FRAME, PAGE_SHIFT, FrameArray
from protocols.p2m_types import GRANT_TYPES, INVALID_MFN_TYPES, P2mType
from services.p2m.geometry import BIT_NX, BIT_PRESENT, BIT_PSE, BIT_SUPPRESS_VE

if TYPE_CHECKING:
    from services.p2m.geometry import Geometry

EntryArray: TypeAlias = npt.NDArray[Any]
"""Raw entries, u64 or u32 as the geometry's ``entry_dtype`` says; any shape."""
TypeArray: TypeAlias = npt.NDArray[np.uint8]
"""p2m types, in Xen's numbers of today whatever the format stores."""
BoolArray: TypeAlias = npt.NDArray[np.bool_]

BIT_RW: Final = 1 << 1
BIT_PCD: Final = 1 << 4
BIT_PSE_PAT: Final = 1 << 12
_BASE_FLAGS: Final = 0x065
_EPT_R, _EPT_W, _EPT_X = 1, 2, 4
_EPT_WB_IPAT: Final = (6 << 3) | (1 << 6)
_EPT_ACCESSED: Final = 1 << 8
_EPT_DIRTY: Final = 1 << 9
_EPT_ACCESS_RWX: Final = 7 << 58

_WRITABLE: Final = frozenset(
    {
        P2mType.RAM_RW,
        P2mType.MMIO_DIRECT,
        P2mType.GRANT_MAP_RW,
        P2mType.MAP_FOREIGN,
        P2mType.IOREQ_SERVER,
    }
)
_READ_ONLY: Final = frozenset(
    {P2mType.RAM_LOGDIRTY, P2mType.RAM_RO, P2mType.GRANT_MAP_RO, P2mType.RAM_SHARED}
)
_NOT_EXECUTABLE: Final = GRANT_TYPES | {P2mType.MAP_FOREIGN, P2mType.IOREQ_SERVER}
NEVER_STORED: Final = frozenset({P2mType.INVALID, P2mType.MMIO_DM})
"""Types that empty the entry they are written to."""
ORDER_0_ONLY: Final = frozenset({P2mType.MAP_FOREIGN, P2mType.IOREQ_SERVER})
"""Types that ``p2m_entry_modify`` refuses (BUG) above level 1."""
_WITHOUT_MFN: Final = NEVER_STORED | {
    P2mType.POPULATE_ON_DEMAND,
    P2mType.RAM_PAGED,
    P2mType.RAM_PAGING_IN,
}
_CODES_2008: Final = {
    P2mType.RAM_RW: 1,
    P2mType.RAM_LOGDIRTY: 2,
    P2mType.RAM_RO: 3,
    P2mType.MMIO_DIRECT: 5,
}


_INVALID: Final = int(P2mType.INVALID)


def _lookup_table(types: frozenset[P2mType]) -> BoolArray:
    table = np.zeros(128, dtype=np.bool_)
    table[list(types)] = True
    return table


_LACKS_MFN: Final = _lookup_table(_WITHOUT_MFN)
_MAY_LACK_MFN: Final = _lookup_table(INVALID_MFN_TYPES)


def representable(geometry: Geometry, p2mt: int) -> bool:
    """Whether the format can store the type; the 2-level format's 3 bits hold only a few."""
    return geometry.type_bits > 3 or p2mt in _CODES_2008 or p2mt in NEVER_STORED


def _type_code(geometry: Geometry, p2mt: P2mType) -> int:
    if geometry.type_bits > 3:
        return int(p2mt)
    if p2mt not in _CODES_2008:
        raise ValueError(f"{geometry.name} cannot store p2m type {p2mt.name}")
    return _CODES_2008[p2mt]


def _x86_flags(geometry: Geometry, p2mt: P2mType, order: int) -> int:
    flags = _type_code(geometry, p2mt) << geometry.type_shift
    nx = BIT_NX if geometry.entry_bits == 64 else 0
    if order:
        flags |= BIT_PSE
    if p2mt in _WRITABLE or p2mt in _READ_ONLY:
        flags |= _BASE_FLAGS | (BIT_RW if p2mt in _WRITABLE else 0)
        flags |= nx if p2mt in _NOT_EXECUTABLE else 0
        return flags | (BIT_PCD if p2mt is P2mType.MMIO_DIRECT else 0)
    return flags | nx


def _ept_flags(geometry: Geometry, p2mt: P2mType, order: int) -> int:
    flags = BIT_SUPPRESS_VE | _EPT_ACCESS_RWX | _type_code(geometry, p2mt) << geometry.type_shift
    if order:
        flags |= BIT_PSE
    if p2mt is not P2mType.MMIO_DIRECT:
        flags |= _EPT_WB_IPAT
    if p2mt in _WRITABLE or p2mt in _READ_ONLY:
        flags |= _EPT_R | _EPT_ACCESSED
        flags |= (_EPT_W | _EPT_DIRTY) if p2mt in _WRITABLE else 0
        flags |= 0 if p2mt in _NOT_EXECUTABLE else _EPT_X
    return flags


@lru_cache(maxsize=256)
def leaf_template(geometry: Geometry, p2mt: int, order: int) -> tuple[int, int]:
    """What makes a leaf of a frame: ``(mfn << 12) & mask | flags``.

    Returns:
        ``(mask, flags)``. The mask clips INVALID_MFN to the frame field, and in an x86 superpage
        clears the bits below the frame (PAT; in a 4M leaf all of bits 12-21). For a type that is
        never stored the mask is 0 and the flags are the empty entry.

    Raises:
        ValueError: the format cannot store the type, or has no leaf of the order.
    """
    kind = P2mType(p2mt)
    if order not in geometry.leaf_orders:
        raise ValueError(f"{geometry.name} has no leaf of order {order}")
    if kind in NEVER_STORED:
        return 0, geometry.empty
    mask = geometry.frame_mask
    if geometry.is_ept:
        return mask, _ept_flags(geometry, kind, order)
    if order and geometry.entry_bits == 32:
        mask &= ~((1 << (PAGE_SHIFT + order)) - 1)
    elif order:
        mask &= ~BIT_PSE_PAT
    return mask, _x86_flags(geometry, kind, order)


def encode_leaf(geometry: Geometry, mfns: FrameArray, p2mt: int, order: int) -> EntryArray:
    """Leaf entries that map ``mfns`` (shape (n,), aligned to ``order``) with a type.

    INVALID_FRAME under a type that does not allow it, and any frame under invalid and mmio_dm,
    gives an empty entry.

    Raises:
        ValueError: as ``leaf_template``.
    """
    mask, flags = leaf_template(geometry, p2mt, order)
    if mask == 0:
        return np.full(mfns.shape, flags, dtype=geometry.entry_dtype)
    entries: EntryArray = mfns << PAGE_SHIFT
    entries &= mask
    entries |= flags
    if p2mt not in INVALID_MFN_TYPES:
        invalid = mfns == INVALID_FRAME
        if invalid.any():
            entries[invalid] = geometry.empty
    return entries.astype(geometry.entry_dtype, copy=False)


def encode_table(geometry: Geometry, mfn: int, level: int = 2) -> int:
    """The entry at ``level`` that points to the table in frame ``mfn`` (one level below)."""
    if geometry.is_ept:
        rwxa = _EPT_R | _EPT_W | _EPT_X | _EPT_ACCESSED
        return BIT_SUPPRESS_VE | _EPT_ACCESS_RWX | mfn << PAGE_SHIFT | rwxa
    if geometry.levels == level == 3:
        return mfn << PAGE_SHIFT | BIT_PRESENT
    return mfn << PAGE_SHIFT | _BASE_FLAGS | BIT_RW


@overload
def is_present(geometry: Geometry, entries: int) -> bool: ...
@overload
def is_present(geometry: Geometry, entries: EntryArray) -> BoolArray: ...
def is_present(geometry: Geometry, entries: int | EntryArray) -> bool | BoolArray:
    """Whether hardware can follow the entry: P, or for the EPT any of r, w, x."""
    return (entries & geometry.present_mask) != 0


@overload
def is_filled(geometry: Geometry, entries: int) -> bool: ...
@overload
def is_filled(geometry: Geometry, entries: EntryArray) -> BoolArray: ...
def is_filled(geometry: Geometry, entries: int | EntryArray) -> bool | BoolArray:
    """Whether the entry holds anything, present or not (a PoD entry is filled)."""
    return (entries & geometry.filled_mask) != 0


@overload
def is_leaf(geometry: Geometry, entries: int, level: int) -> bool: ...
@overload
def is_leaf(geometry: Geometry, entries: EntryArray, level: int) -> BoolArray: ...
def is_leaf(geometry: Geometry, entries: int | EntryArray, level: int) -> bool | BoolArray:
    """Whether a filled entry is a leaf: at level 1 always, above by PSE or sp, present or not."""
    return (entries & (geometry.filled_mask if level == 1 else BIT_PSE)) != 0


@lru_cache(maxsize=8)
def _types_by_code(geometry: Geometry) -> TypeArray:
    table = np.full(1 << geometry.type_bits, P2mType.MMIO_DM, dtype=np.uint8)
    for p2mt, code in _CODES_2008.items():
        table[code] = p2mt
    return table


@lru_cache(maxsize=8)
def offset_masks(geometry: Geometry) -> FrameArray:
    """By level (index 0 unused): the gfn bits below the index, i.e. the offset in a leaf."""
    masks = np.array([0, *((1 << shift) - 1 for shift in geometry.shifts)], dtype=np.uint64)
    masks.setflags(write=False)
    return masks


def leaf_type(geometry: Geometry, entries: EntryArray) -> TypeArray:
    """The p2m type of leaves, shape as given; an entry without flags reads as INVALID.

    Xen's ``p2m_flags_to_type``: without that rule an all-zero entry would be RAM of frame 0.
    """
    types: TypeArray = ((entries >> geometry.type_shift) & geometry.type_mask).astype(np.uint8)
    if geometry.type_bits == 3:
        types = _types_by_code(geometry)[types]
    types[(entries & (geometry.filled_mask & ~geometry.frame_mask)) == 0] = _INVALID
    return types


def decode_leaves(
    geometry: Geometry, entries: EntryArray, level: int | npt.NDArray[np.integer[Any]]
) -> tuple[FrameArray, TypeArray]:
    """First frame (u64) and type (u8) of each leaf; shapes (n,) as ``entries``.

    ``level`` is one for all or one an entry. A leaf maps no frame, INVALID_FRAME, if its type never
    does (PoD, paged), or if its frame field is all ones under a type that may lack an mfn.
    """
    offset = offset_masks(geometry)[level]
    frames: FrameArray = (entries & geometry.frame_mask).astype(np.uint64, copy=False)
    frames >>= PAGE_SHIFT
    types = leaf_type(geometry, entries)
    if types.any():
        none = _LACKS_MFN[types]
        none |= _MAY_LACK_MFN[types] & ((frames | offset) == geometry.mfn_limit - 1)
        frames &= ~offset
        frames[none] = INVALID_FRAME
    else:
        frames &= ~offset
    return frames, types


def leaf_mfn(
    geometry: Geometry, entries: EntryArray, level: int | npt.NDArray[np.integer[Any]]
) -> FrameArray:
    """The frames of ``decode_leaves``."""
    return decode_leaves(geometry, entries, level)[0]


def decode_one(geometry: Geometry, entry: int, level: int) -> tuple[int, int]:
    """``(mfn, p2mt)`` of one leaf, as ``decode_leaves``."""
    p2mt = (entry >> geometry.type_shift) & geometry.type_mask
    if geometry.type_bits == 3:
        p2mt = _types_by_code(geometry).item(p2mt)
    if not entry & geometry.filled_mask & ~geometry.frame_mask:
        p2mt = _INVALID
    offset = (1 << geometry.shifts[level - 1]) - 1
    frame = (entry & geometry.frame_mask) >> PAGE_SHIFT
    if p2mt:
        all_ones = frame | offset == geometry.mfn_limit - 1
        if p2mt in _WITHOUT_MFN or (all_ones and p2mt in INVALID_MFN_TYPES):
            return INVALID_FRAME, p2mt
    return frame & ~offset, p2mt


def split_children(geometry: Geometry, entries: int | EntryArray, level: int) -> EntryArray:
    """The leaves of ``level - 1`` that map the same as superpage leaves of ``level``.

    Shape (512,) or (1024,) for an int, (..., 512) or (..., 1024) for an array. x86: bit 12 of a
    superpage is its PAT bit and bit 7 its PSE; in a 4K leaf bit 7 is PAT and bit 12 frame, so a set
    PAT bit moves down and a clear one takes PSE with it. The child's frame is the parent's OR its
    index, so that the all-ones frame of a PoD leaf cannot carry into the type. EPT: a bit-field
    addition that wraps inside the frame field (``p2m_next_level``, ``ept_split_super_page``).
    """
    assert 2 <= level <= len(geometry.leaf_orders), f"{geometry.name}: no leaf at level {level}"
    parents: EntryArray = np.asarray(entries, dtype=geometry.entry_dtype)[..., None]
    order = geometry.leaf_orders[level - 2]
    steps: EntryArray = np.arange(geometry.nr_entries, dtype=geometry.entry_dtype)
    steps <<= PAGE_SHIFT + order
    full = geometry.filled_mask | geometry.empty
    if geometry.is_ept:
        frames = ((parents & geometry.frame_mask) + steps) & geometry.frame_mask
        keep = full & ~geometry.frame_mask & ~(BIT_PSE if level == 2 else 0)
        return (parents & keep) | frames
    if level == 2:
        without_pat = parents & (full & ~BIT_PSE)
        with_pat = parents & (full & ~BIT_PSE_PAT)
        parents = np.where((parents & BIT_PSE_PAT) != 0, with_pat, without_pat)
    return parents | steps


@overload
def flags_low12(entries: int) -> int: ...
@overload
def flags_low12(entries: EntryArray) -> npt.NDArray[np.uint16]: ...
def flags_low12(entries: int | EntryArray) -> int | npt.NDArray[np.uint16]:
    """Entry bits 11..0, as a dump shows them."""
    if isinstance(entries, int):
        return entries & 0xFFF
    return (entries & 0xFFF).astype(np.uint16)


@overload
def bits_63_52(entries: int) -> int: ...
@overload
def bits_63_52(entries: EntryArray) -> npt.NDArray[np.uint16]: ...
def bits_63_52(entries: int | EntryArray) -> int | npt.NDArray[np.uint16]:
    """Entry bits 63..52, as a dump shows them; 0 for a 32-bit entry."""
    if isinstance(entries, int):
        return entries >> 52
    return (entries.astype(np.uint64) >> 52).astype(np.uint16)
