"""The local engine with a tape running: one schedule as a trace that ``profile`` can explain."""

from __future__ import annotations

from typing import Any

from deploy.runtime import TraceSink
from deploy.stress.case import Case, Schedule
from deploy.stress.engine import Engine
from deploy.stress.run import template
from deploy.stress.strategies import Replay
from deploy.world import KINDS, Kinds
from protocols.codec import encode_envelope
from protocols.envelope import CLIENT, Envelope
from services.component.host import Host
from services.trace.join import CLIENT_TAPE
from services.trace.tape import StepClock, Tape


class TapedEngine(Engine):
    """As any engine; what a recovered component does over again is not taped again."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        clock = StepClock()
        self.tape, self.client_tape = Tape(clock), Tape(clock)
        self.scripts: list[Envelope] = []
        self._watched: set[Host] = set()
        self._arrivals: dict[tuple[str, int], int] = {}

    def _drive(self, host: Host, envelope: Envelope | None) -> list[Envelope]:
        tape = self.tape
        if host not in self._watched:
            self._watch(host)
        if envelope is None:
            tape.resumes()
        else:
            self._arrivals[envelope.src, envelope.msg_id] = tape.begin(envelope)
        try:
            return super()._drive(host, envelope)
        except Exception:
            # The step that broke the invariant is what the trace is for.
            tape.broke_off()
            raise

    def _watch(self, host: Host) -> None:
        self._watched.add(host)
        host.watch = self.tape
        host.component.context.on_mem_event = self.tape.mem_event
        # One that recovered has gone without a watch to where its activities are again.
        for activity in host.activities():
            cause = activity.cause
            activity.arrival = self._arrivals.get((cause.src, cause.msg_id))

    def _post(self, envelope: Envelope, client: int, cause: int) -> None:
        if envelope.src == CLIENT:
            self.scripts.append(envelope)
            self.client_tape.client_sends([envelope])
        super()._post(envelope, client, cause)

    def _answered(self, envelope: Envelope) -> None:
        self.client_tape.client_gets(envelope)
        super()._answered(envelope)


def write_schedule(case: Case, schedule: Schedule, sink: TraceSink, kinds: Kinds = KINDS) -> None:
    """Run a case under a recorded schedule once more, for its trace."""
    engine = TapedEngine(
        template(case.host, case.domains, kinds), case, Replay(schedule.deviations),
        schedule.faults, keep_steps=True,
    )  # fmt: skip
    engine.run()
    engine.world.abandon()
    sink.add_requests([encode_envelope(each) for each in engine.scripts])
    for number, tape in ((CLIENT_TAPE, engine.client_tape), (0, engine.tape)):
        for part in tape.take():
            sink.add(number, part)
    sink.flush()
