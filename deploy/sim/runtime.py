"""Deliver envelopes one at a time, in an order that the oracle alone decides.

Per-link order is kept; between links any order is possible. Without an oracle the order is global
FIFO, which needs no look at the links at all and is the fast path.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence

from deploy.runtime import Progress, Recorder, RunStuckError, TraceSink
from deploy.sim.oracles import Oracle
from deploy.world import Factory, make_component
from protocols.codec import encode_envelope
from protocols.envelope import CLIENT, Envelope
from protocols.errno import ComponentFailureError
from protocols.message import Message, Request
from protocols.registry import TAGS
from services.component.component import Component
from services.component.host import Host
from services.heap.host import HostConfig
from services.trace.join import CLIENT_TAPE
from services.trace.tape import StepClock, Tape

PROGRESS_EVERY = 4096
WRITE_EVERY = 1 << 12
"""Deliveries between two writes of the trace."""


class SimRuntime:
    """All components in this process.

    ``sink`` takes a trace of the run, by a clock that counts steps unless ``clock`` tells time.
    """

    def __init__(
        self,
        config: HostConfig,
        *,
        oracle: Oracle | None = None,
        recorder: Recorder | None = None,
        sink: TraceSink | None = None,
        clock: Callable[[], int] | None = None,
        factory: Factory = make_component,
        progress: Progress | None = None,
    ) -> None:
        self.config = config
        self._hosts: dict[str, Host] = {}
        self._oracle = oracle
        self._recorder = recorder
        self._sink = sink
        clock = clock or StepClock()
        self._tape = None if sink is None else Tape(clock)
        self._client_tape = Tape(clock)
        self._make = factory
        self._progress = progress
        self._next_id = 0
        self._kinds: Counter[type[Message]] = Counter()
        self.nr_delivered = 0

    def counts(self) -> Counter[str]:
        """Messages delivered so far, by kind."""
        return Counter({TAGS[kind]: nr for kind, nr in self._kinds.items()})

    def close(self) -> None:
        """What was under way is traced as it stands."""
        self._write()

    def _write(self) -> None:
        if self._sink is None or self._tape is None:
            return
        for number, tape in ((CLIENT_TAPE, self._client_tape), (0, self._tape)):
            for part in tape.take():
                self._sink.add(number, part)
        self._sink.flush()

    def wait(self, seconds: float) -> None:
        """No time passes here."""

    def component(self, address: str) -> Component:
        """A component, for tests that look behind the messages."""
        return self._host(address).component

    def run(self, requests: Sequence[tuple[str, Request[Message]]]) -> list[Message]:
        """Send all requests at once and deliver until nothing is left; the replies in order.

        Raises:
            ComponentFailureError: a component failed.
            RunStuckError: all is quiet, and somebody still waits.
        """
        first = self._next_id + 1
        sent: list[Envelope] = []
        for dst, request in requests:
            self._next_id += 1
            sent.append(Envelope(CLIENT, dst, self._next_id, 0, request))  # type: ignore[arg-type]
        replies: dict[int, Message] = {}
        if self._sink is not None:
            self._client_tape.client_sends(sent)
            self._sink.add_requests([encode_envelope(each) for each in sent])

        def to_client(envelope: Envelope) -> None:
            if self._recorder is not None:
                self._recorder.delivered(envelope)
            if self._sink is not None:
                self._client_tape.client_gets(envelope)
            self._kinds[type(envelope.body)] += 1
            replies[envelope.in_reply_to] = envelope.body
            if self._progress is not None:
                self._progress.replied(envelope.body)

        if self._oracle is None:
            self._pump_fifo(sent, to_client)
        else:
            self._pump_links(sent, to_client, self._oracle)
        if len(replies) < len(sent):
            raise RunStuckError(self._parked())
        return [replies[number] for number in range(first, first + len(sent))]

    def _host(self, address: str) -> Host:
        host = self._hosts.get(address)
        if host is None:
            watch = self._tape or self._recorder
            hook = None if watch is None else watch.mem_event
            host = Host(self._make(address, self.config, hook), watch=self._tape)
            self._hosts[address] = host
        return host

    def _deliver(self, envelope: Envelope) -> list[Envelope]:
        self.nr_delivered += 1
        self._kinds[type(envelope.body)] += 1
        if self._recorder is not None:
            self._recorder.delivered(envelope)
        if self._progress is not None and self.nr_delivered % PROGRESS_EVERY == 0:
            self._progress.delivered(self.nr_delivered)
        host = self._hosts.get(envelope.dst) or self._host(envelope.dst)
        if self._tape is None:
            return host.deliver(envelope)
        self._tape.begin(envelope)
        try:
            caused = host.deliver(envelope)
        except ComponentFailureError:
            self._tape.broke_off()
            raise
        if self.nr_delivered % WRITE_EVERY == 0:
            self._write()
        return caused

    def _pump_fifo(self, sent: list[Envelope], to_client: Callable[[Envelope], None]) -> None:
        queue = deque(sent)
        while queue:
            envelope = queue.popleft()
            if envelope.dst == CLIENT:
                to_client(envelope)
            else:
                queue.extend(self._deliver(envelope))

    def _pump_links(
        self, sent: list[Envelope], to_client: Callable[[Envelope], None], oracle: Oracle
    ) -> None:
        links: dict[tuple[str, str], deque[Envelope]] = {}
        ready: list[deque[Envelope]] = []

        def post(envelopes: list[Envelope]) -> None:
            for envelope in envelopes:
                queue = links.setdefault((envelope.src, envelope.dst), deque())
                if not queue:
                    ready.append(queue)
                queue.append(envelope)

        post(sent)
        while ready:
            index = oracle.choose(len(ready))
            queue = ready[index]
            envelope = queue.popleft()
            if not queue:
                ready[index] = ready[-1]
                ready.pop()
            if envelope.dst == CLIENT:
                to_client(envelope)
            else:
                post(self._deliver(envelope))

    def _parked(self) -> list[str]:
        return [line for host in self._hosts.values() for line in host.parked()]
