"""The workloads that come with the program, by name."""

from __future__ import annotations

from typing import Final

from deploy.stress.case import DomainSetup, Extents, Host
from deploy.stress.workload import OperationSpec, Workload
from protocols.p2m_types import P2mType

_A, _B, _C = 0x200, 0x400, 0x600
"""Three superpages side by side; the gfns below lie in them, two by two next to each other."""
_HOT: Final = (_A + 1, _A + 2, _A + 0x1FF, _B, _B + 1, _B + 0x80)
_FREE: Final = (0x1000, 0x1001, 0x1200)
"""Gfns where nothing is mapped at the start."""
_ACROSS: Final = (_A, _A + 1, 0x1200, 0x1201)
"""Gfns whose frames lie on different nodes where a domain is larger than one."""
_TYPES: Final = (P2mType.RAM_RW, P2mType.RAM_RO, P2mType.RAM_LOGDIRTY)

_SMALL: Final = DomainSetup(
    domid=1, max_mib=12, vcpus=2, extents=(Extents(_A, 3, 9),), warm=(_A + 1, _B, _C)
)
_SETTYPE: Final = OperationSpec("set_type", 4, gfns=_HOT, targets=_TYPES)
_GET: Final = OperationSpec("get", 2, gfns=_HOT)
_TOUCH: Final = OperationSpec("touch", 3, gfns=_HOT)

_GIB: Final = 1 << 18

WORKLOADS: Final = {
    each.name: each
    for each in (
        Workload(
            "split-storm",
            "4K updates by many clients inside the same and neighbouring 2M superpages",
            domains=(_SMALL,),
            operations=(_SETTYPE, _GET, _TOUCH),
            expects=("shatter 9", "flush"),
        ),
        Workload(
            "split-storm-1g",
            "4K and 2M updates inside a 1G superpage: two levels shatter",
            host=Host(memory_mib=3072),
            domains=(
                DomainSetup(
                    domid=1,
                    max_mib=1040,
                    vcpus=2,
                    extents=(Extents(_GIB, 1, 18),),
                    warm=(_GIB, _GIB + 0x200),
                ),
            ),
            operations=(
                OperationSpec(
                    "set_type", 4, gfns=(_GIB, _GIB + 1, _GIB + 0x200, _GIB + 0x3FF), targets=_TYPES
                ),
                OperationSpec("decrease", 1, gfns=(_GIB + 0x400, _GIB + 0x201)),
                OperationSpec("populate", 1, gfns=(_GIB + 0x400, _GIB + 0x201)),
                OperationSpec("get", 2, gfns=(_GIB, _GIB + 0x201, _GIB + 0x3FF)),
                OperationSpec("touch", 2, gfns=(_GIB, _GIB + 0x200, _GIB + 0x201)),
            ),
            expects=("shatter 18", "shatter 9", "flush"),
        ),
        Workload(
            "split-translate",
            "vCPUs and another domain's walker translate while superpages shatter",
            domains=(
                _SMALL,
                DomainSetup(domid=2, max_mib=8, vcpus=1, extents=(Extents(_A, 1, 9),)),
            ),
            operations=(
                OperationSpec("set_type", 3, gfns=_HOT, targets=_TYPES, domids=(1,)),
                OperationSpec("decrease", 1, gfns=_HOT, domids=(1,)),
                OperationSpec("touch", 4, gfns=_HOT, domids=(1,)),
                OperationSpec("translate", 2, gfns=_HOT, targets=(1,), domids=(2,)),
            ),
            expects=("shatter 9", "flush"),
        ),
        Workload(
            "split-reservation",
            "decrease_reservation and populate_physmap of the same gfns inside superpages",
            domains=(_SMALL,),
            operations=(
                OperationSpec("decrease", 4, gfns=_HOT, nr=(1, 2)),
                OperationSpec("decrease", 1, gfns=_HOT, orders=(9,)),
                OperationSpec("populate", 4, gfns=_HOT, nr=(1, 2)),
                OperationSpec("populate", 1, gfns=_HOT, orders=(9,)),
                _GET,
                _TOUCH,
            ),
            expects=("shatter 9", "flush"),
        ),
        Workload(
            "split-physmap",
            "add_to_physmap and remove_from_physmap against 4K updates of the same superpages",
            domains=(_SMALL,),
            operations=(
                OperationSpec("move", 4, gfns=_HOT, targets=(*_HOT, *_FREE), nr=(1, 1, 2)),
                OperationSpec("remove", 1, gfns=_HOT),
                OperationSpec("decrease", 1, gfns=_HOT),
                OperationSpec("populate", 1, gfns=(*_HOT, *_FREE)),
                _SETTYPE,
                _GET,
                _TOUCH,
            ),
            expects=("shatter 9", "flush"),
        ),
        Workload(
            "exchange",
            "two domains exchange frames through a nearly empty heap: freed here, reused there",
            host=Host(memory_mib=20),
            domains=(
                DomainSetup(
                    domid=1, max_mib=8, vcpus=1, extents=(Extents(_A, 4, 9),), warm=(_A, _B)
                ),
                DomainSetup(
                    domid=2, max_mib=16, vcpus=1, extents=(Extents(_A, 4, 9),), warm=(_A, _B)
                ),
            ),
            operations=(
                OperationSpec("decrease", 3, gfns=(_A, _A + 1, _B), nr=(1, 2)),
                OperationSpec("decrease", 2, gfns=(_A, _B), orders=(9,)),
                OperationSpec("populate", 3, gfns=(_A, _A + 1, _B, 0x1000)),
                OperationSpec("populate", 2, gfns=(_A, _B, 0x1000), orders=(9,)),
                OperationSpec("touch", 4, gfns=(_A, _A + 1, _B)),
                OperationSpec("get", 1, gfns=(_A, _A + 1, _B)),
            ),
            expects=("shatter 9", "flush"),
        ),
        Workload(
            "build-destroy",
            "domains are built, used and destroyed at once, their domids used again",
            domains=(
                _SMALL,
                DomainSetup(domid=2, max_mib=8, vcpus=1, extents=(Extents(_A, 2, 9),), warm=(_A,)),
            ),
            operations=(
                OperationSpec("destroy", 2),
                OperationSpec("create", 2, targets=(0x800,)),
                OperationSpec("populate", 3, gfns=(_A, _B), orders=(9, 0)),
                OperationSpec("decrease", 1, gfns=(_A, _B)),
                _SETTYPE,
                OperationSpec("touch", 4, gfns=_HOT),
            ),
            expects=("teardown", "flush"),
        ),
        Workload(
            "split-numa",
            "a domain whose frames lie on two nodes: words and frees travel between allocators",
            host=Host(memory_mib=32, nodes=2),
            domains=(DomainSetup(domid=1, max_mib=28, vcpus=1, extents=(Extents(_A, 9, 9),)),),
            operations=(
                OperationSpec("move", 4, gfns=(_A, _A + 1, 0x1200, 0x1201), targets=_ACROSS),
                OperationSpec("decrease", 4, gfns=_ACROSS, nr=(1, 2)),
                OperationSpec("populate", 3, gfns=_ACROSS, nr=(1, 2)),
                OperationSpec("get", 1, gfns=_ACROSS),
                OperationSpec("touch", 1, gfns=_ACROSS),
            ),
            expects=("shatter 9",),
        ),
        Workload(
            "split-pool",
            "superpages shatter while the paging pool is all but used up",
            domains=(
                DomainSetup(
                    domid=1,
                    max_mib=24,
                    vcpus=1,
                    pool_pages=5,
                    extents=(Extents(_A, 6, 9),),
                    warm=(_A, _B),
                ),
            ),
            operations=(
                OperationSpec("set_type", 3, gfns=(_A, _B, _C, 0x800, 0xA00), targets=_TYPES),
                OperationSpec("decrease", 3, gfns=(_A, _B, _C, 0x800, 0xA00), nr=(1, 2)),
                OperationSpec("move", 1, gfns=(_A, _B), targets=(0x1000, 0x801)),
                OperationSpec("pool", 1, targets=(4, 5, 6, 8)),
                OperationSpec("populate", 2, gfns=(_A, _B, _C), orders=(0, 9)),
                _TOUCH,
                _GET,
            ),
            expects=("pool exhausted", "shatter 9"),
        ),
        Workload(
            "pod",
            "populate on demand: faults, look-ups and decreases inside PoD superpages",
            domains=(
                DomainSetup(
                    domid=1,
                    max_mib=16,
                    vcpus=2,
                    extents=(Extents(_A, 3, 9, pod=True),),
                    pod_target_mib=4,
                ),
            ),
            operations=(
                OperationSpec("touch", 4, gfns=_HOT),
                OperationSpec("get_alloc", 2, gfns=_HOT),
                OperationSpec("decrease", 2, gfns=_HOT),
                OperationSpec("set_type", 2, gfns=_HOT, targets=_TYPES),
                OperationSpec("populate", 1, gfns=_HOT),
            ),
            expects=("shatter 9", "flush"),
        ),
        Workload(
            "pod-move",
            "pages move onto populate-on-demand gfns that others fault on and give back",
            domains=(
                DomainSetup(
                    domid=1,
                    max_mib=16,
                    vcpus=2,
                    extents=(Extents(_A, 1, 9), Extents(_B, 2, 9, pod=True)),
                    pod_target_mib=4,
                ),
            ),
            operations=(
                OperationSpec("move", 5, gfns=(_A, _A + 1, _A + 2), targets=(_B, _B + 1, _C)),
                OperationSpec("touch", 3, gfns=(_B, _B + 1, _C)),
                OperationSpec("decrease", 2, gfns=(_B, _B + 1, _C, _A + 1)),
                OperationSpec("set_type", 1, gfns=(_B, _A + 1), targets=_TYPES),
                OperationSpec("get", 1, gfns=(_A, _A + 1, _B)),
            ),
            expects=("shatter 9", "flush"),
        ),
        Workload(
            "split-spread",
            "4K updates and look-ups over 32 superpages: what a lock protocol costs",
            host=Host(memory_mib=256),
            domains=(DomainSetup(domid=1, max_mib=80, vcpus=2, extents=(Extents(_A, 32, 9),)),),
            operations=(
                OperationSpec("set_type", 4, gfns=((_A, _A + (32 << 9)),), targets=_TYPES),
                OperationSpec(
                    "move",
                    1,
                    gfns=((_A, _A + (32 << 9)),),
                    targets=((0x8000, 0x8400), (_A, _A + (32 << 9))),
                ),
                OperationSpec("get", 3, gfns=((_A, _A + (32 << 9)),)),
                OperationSpec("touch", 2, gfns=((_A, _A + (32 << 9)),)),
            ),
            ops=32,
            expects=("shatter 9", "flush"),
        ),
        Workload(
            "mix",
            "everything at once, over two domains",
            domains=(
                _SMALL,
                DomainSetup(
                    domid=2, max_mib=12, vcpus=2, extents=(Extents(_A, 2, 9),), warm=(_A, _B)
                ),
            ),
            operations=(
                _SETTYPE,
                _GET,
                _TOUCH,
                OperationSpec("decrease", 3, gfns=_HOT, nr=(1, 2), orders=(0, 0, 9)),
                OperationSpec("populate", 3, gfns=(*_HOT, *_FREE), orders=(0, 0, 9)),
                OperationSpec("move", 3, gfns=_HOT, targets=(*_HOT, *_FREE), nr=(1, 2)),
                OperationSpec("remove", 1, gfns=_HOT),
                OperationSpec("translate", 1, gfns=_HOT, targets=(1, 2)),
                OperationSpec("increase", 1),
                OperationSpec("pool", 1, targets=(6, 16, 256)),
                OperationSpec("destroy", 1, domids=(2,)),
                OperationSpec("create", 1, domids=(2,), targets=(0xC00,)),
            ),
            expects=("shatter 9", "flush"),
        ),
    )
}
"""Every built-in workload."""
