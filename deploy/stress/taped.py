"""The local engine with a tape running: one schedule as a trace that ``profile`` can explain."""

from __future__ import annotations

from typing import Any

from deploy.runtime import TraceSink
from deploy.stress.case import Case, Schedule
from deploy.stress.engine import Engine
from deploy.stress.run import template
from deploy.stress.strategies import Replay
from deploy.world import KINDS, Kinds
from protocols.envelope import CLIENT, Envelope
from services.component.host import Host
from services.trace.tape import StepClock, Tape


class TapedEngine(Engine):
    """As any engine; what a recovered component does over again is not taped again."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tape = Tape(StepClock())
        self.scripts: list[Envelope] = []
        self._watched: set[Host] = set()

    def _drive(self, host: Host, envelope: Envelope | None) -> list[Envelope]:
        tape = self.tape
        if host not in self._watched:
            self._watched.add(host)
            host.watch = tape
            host.component.context.on_mem_event = tape.mem_event
        if envelope is None:
            tape.resume()
            return super()._drive(host, envelope)
        began = tape.begin(envelope)
        try:
            out = super()._drive(host, envelope)
        except Exception:
            # The step that broke the invariant is what the trace is for.
            tape.broke_off(envelope, began)
            raise
        tape.end(envelope, began)
        return out

    def _post(self, envelope: Envelope, client: int, cause: int) -> None:
        if envelope.src == CLIENT:
            self.scripts.append(envelope)
            self.tape.client_sends([envelope])
        super()._post(envelope, client, cause)

    def _answered(self, envelope: Envelope) -> None:
        self.tape.client_gets(envelope)
        super()._answered(envelope)


def write_schedule(case: Case, schedule: Schedule, sink: TraceSink, kinds: Kinds = KINDS) -> None:
    """Run a case under a recorded schedule once more, for its trace."""
    engine = TapedEngine(
        template(case.host, case.domains, kinds), case, Replay(schedule.deviations),
        schedule.faults, keep_steps=True,
    )  # fmt: skip
    engine.run()
    for host in engine.world.hosts.values():
        for activity in host.activities():
            engine.tape.unfinished(activity)
    engine.world.abandon()
    sink.add(0, engine.tape.take())
    sink.add_requests(engine.scripts)
    sink.flush()
