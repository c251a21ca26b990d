"""The allocator of one NUMA node: memory hypercalls, domain life cycle, M2P words.

May decide and wait; every change of frames, owners and M2P is a single call into ring one. A
domain's books live in its home allocator (domid modulo nodes), which asks the other nodes for
frames when its own will not do. Under the domain's lock, shared, hypercalls of one domain may
interleave at every await; destroy takes it exclusively.

Each concern has its file: what all of them work with in `node`, and on it what each request does,
in `reservation` (populate, increase, decrease), `pod`, `physmap`, `claims`, `lifecycle`, `peers`
and `snapshot`.
"""

from __future__ import annotations

from protocols.memory import Multicall, MulticallReply, NrDone
from services.component.component import handles
from services.component.traps import Preempt
from services.heap.claims import ClaimCalls
from services.heap.lifecycle import LifeCycle
from services.heap.peers import Peers
from services.heap.physmap import Physmap
from services.heap.pod import PodTargets
from services.heap.reservation import Reservations
from services.heap.snapshot import Snapshots


class Allocator(Reservations, PodTargets, Physmap, ClaimCalls, LifeCycle, Peers, Snapshots):
    """Answers memory_op and domctl for the domains at home here, and frames for other nodes."""

    @handles(Multicall)
    async def multicall(self, m: Multicall) -> MulticallReply:
        """do_multicall: each entry runs as if it had come alone; preemptible between entries."""
        results: list[int] = []
        for entry in m.entries:
            if results:
                await Preempt(len(results))
            handler = self.handlers()[type(entry)]
            reply = await handler(entry)
            results.append(reply.nr_done if isinstance(reply, NrDone) else reply.rc)
        return MulticallReply(results)
