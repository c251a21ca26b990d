"""Recordings: replayed to the same tables, refused when they do not hang together."""

from random import Random

import pytest

from deploy.campaign import recorded
from deploy.driver.audit import take_audit
from deploy.sim.oracles import Seeded
from deploy.sim.runtime import SimRuntime
from deploy.stress.builtin import WORKLOADS
from deploy.stress.workload import draw
from deploy.stress.world import config_of, setup_requests
from deploy.world import make_component
from protocols import envelope
from protocols.codec import encode_envelope
from protocols.script import RunScript


class Recording:
    """What each component was given."""

    def __init__(self):
        self.sequences = {}
        self.arrivals = []

    def delivered(self, sent):
        if sent.dst != envelope.CLIENT:
            data = encode_envelope(sent)
            self.sequences.setdefault(sent.dst, []).append(data)
            self.arrivals.append(data)

    def mem_event(self, event, domid, order, p2mt, gfns, mfns):
        """Not needed."""


def recorded_run(seed):
    case = draw(WORKLOADS["split-physmap"], Random(seed))
    config, recording = config_of(case.host), Recording()
    runtime = SimRuntime(config, oracle=Seeded(seed), recorder=recording)
    for domain in case.domains:
        for address, request in setup_requests(domain, config):
            runtime.run([(address, request)])
    first = len(recording.arrivals)
    runtime.run([(envelope.toolstack(n), RunScript(list(s))) for n, s in enumerate(case.clients)])
    taken = take_audit(
        SimRuntimeView(runtime), config, [domain.domid for domain in case.domains], []
    )
    return case, config, recording, taken, first


class SimRuntimeView:
    """Snapshots must not be part of the recording."""

    def __init__(self, runtime):
        self._runtime = runtime

    def run(self, requests):
        recorder, self._runtime._recorder = self._runtime._recorder, None
        try:
            return self._runtime.run(requests)
        finally:
            self._runtime._recorder = recorder


@pytest.mark.parametrize("seed", range(4))
def test_a_recording_gives_the_same_tables_and_history(seed):
    case, config, recording, taken, first = recorded_run(seed)
    hosts = recorded.replay(recording.sequences, config, make_component)
    for theirs in taken.p2ms:
        domid = theirs.table.domid
        ours = recorded.tables_of(hosts, [domid])[domid]
        assert (ours.table, ours.ptps, ours.pool) == (theirs.table, theirs.ptps, theirs.pool)
    history = recorded.history_of(recording.arrivals[first:], case)
    assert len(history) == case.nr_operations()
    for client, script in enumerate(case.clients):
        mine = [event for event in history if event.client == client]
        assert [event.op for event in mine] == list(script)
        assert all(event.call < event.ret for event in mine)


def test_a_recording_with_a_hole_is_refused():
    _, config, recording, _, _ = recorded_run(0)
    broken = {**recording.sequences, "allocator/0": recording.sequences["allocator/0"][:-2]}
    with pytest.raises(recorded.ReplayDivergedError, match="is not sent in the replay"):
        recorded.replay(broken, config, make_component)
