"""The local engine: one run of a case, every choice made by a chooser, every step watched.

A step delivers one envelope, or lets one activity go on that has got a lock. Which one is the
only choice there is, beside the faults of the schedule. Choice 0 is always the oldest.
"""

from __future__ import annotations

import zlib
from bisect import insort
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Final, Protocol

from deploy.stress.case import Case, Fault
from deploy.stress.liveness import livelock, stuck
from deploy.stress.verdict import at_rest, living
from deploy.stress.watch import ViolationError
from deploy.stress.world import Template, World
from protocols import envelope as addresses
from protocols.envelope import CLIENT, Envelope
from protocols.errno import ComponentFailureError
from protocols.p2m import (
    P2mGetRoot,
    P2mTranslate,
    ReadPageTableFrames,
)
from protocols.script import RunScript
from protocols.walk import Touch, Translations, WalkTranslate
from services.component.host import Activity, Host
from services.spec.findings import Violation
from services.spec.history import Event
from services.toolstack.script import result_of

STEPS_PER_OPERATION: Final = 400
"""A run that takes more steps than so many an operation is a livelock."""


READS: Final = frozenset({P2mGetRoot, ReadPageTableFrames, P2mTranslate})
"""Requests that change no table."""


class Channel:
    """A link, or the activities of one host that have got a lock: what can be next.

    ``queue`` holds (number, client, envelope or None, hash of what caused it), oldest first;
    ``seq`` is the number of the head, ``taken`` how many came before it.
    """

    __slots__ = ("dst", "name", "queue", "seq", "src", "taken")

    def __init__(self, src: str, dst: str) -> None:
        self.src = src
        self.dst = dst
        self.name = f"{src}>{dst}"
        self.queue: deque[tuple[int, int, Envelope | None, int]] = deque()
        self.seq = 0
        self.taken = 0

    @property
    def client(self) -> int:
        """The client whose operation the head belongs to."""
        return self.queue[0][1]

    @property
    def cause(self) -> int:
        """Names the head across runs: a hash of all that led to it."""
        return self.queue[0][3]


_by_seq = attrgetter("seq")
_PRIME: Final = 0x9E3779B97F4A7C15
_MASK: Final = (1 << 61) - 1


class Chooser(Protocol):
    """Picks what is next; called where there is more than one possibility.

    One with an attribute ``every`` that is true is shown every step.
    """

    def pick(self, enabled: Sequence[Channel]) -> int:
        """An index into ``enabled``, oldest first."""
        ...


@dataclass(slots=True)
class Step:
    """What happened at one step, for the story: ``chosen`` of ``choices`` possibilities.

    ``overtaken`` is the channel whose older message had to wait.
    """

    number: int
    channel: str
    client: int
    envelope: Envelope | None
    chosen: int
    choices: int
    fault: str = ""
    overtaken: str = ""


@dataclass(slots=True)
class Outcome:
    """How a run ended.

    ``deviations``: decisions that were not 0. ``struck``: faults that found their mark.
    ``events``: what happened that a campaign may have been meant to provoke. ``signature`` names
    the run up to reorderings that no component could notice; ``states`` so each state on the way.
    ``order``: the channel of each step.
    """

    violation: Violation | None = None
    nr_steps: int = 0
    nr_decisions: int = 0
    deviations: dict[int, int] = field(default_factory=dict[int, int])
    struck: tuple[Fault, ...] = ()
    history: list[Event] = field(default_factory=list[Event])
    events: set[str] = field(default_factory=set[str])
    signature: int = 0
    states: list[int] = field(default_factory=list[int])
    order: list[str] = field(default_factory=list[str])
    steps: list[Step] = field(default_factory=list[Step])


class Engine:
    """One run. ``keep_steps`` keeps every step for the story; ``until`` stops before the end."""

    def __init__(
        self,
        template: Template,
        case: Case,
        chooser: Chooser,
        faults: Sequence[Fault] = (),
        *,
        keep_steps: bool = False,
        until: int | None = None,
    ) -> None:
        self.case = case
        self.world: World = template.load()
        self.watch = self.world.watch
        self.outcome = Outcome()
        self._chooser = chooser
        self._every = getattr(chooser, "every", False)
        self._faults = {fault.step: fault for fault in faults}
        self._keep = keep_steps
        self._until = until
        self._limit = STEPS_PER_OPERATION * (case.nr_operations() + 1)
        self._enabled: list[Channel] = []
        self._channels: dict[tuple[str, str], Channel] = {}
        self._frozen: list[tuple[int, Channel]] = []
        self._seq = 0
        self._step = 0
        self._hashes: dict[str, int] = {}
        self._state = 0
        self._origin: dict[tuple[str, int], int] = {}
        self._logs: dict[str, list[tuple[Envelope | None, tuple[str, ...]]]] = {}
        self._said: dict[tuple[str, int], int] = {}
        self._logging = any(fault.kind == "crash" for fault in faults)
        self._calls = Calls(case, self.outcome.history)
        self._done: set[int] = set()
        self._struck: list[Fault] = []

    def run(self) -> Outcome:
        """To the end, or to the first violation."""
        outcome = self.outcome
        try:
            self._start()
            while self._enabled or self._frozen:
                if self._until is not None and self._step >= self._until:
                    break
                self._one_step()
            else:
                self._end()
        except ViolationError as error:
            outcome.violation = error.violation
        except ComponentFailureError as error:
            if isinstance(error.__cause__, ViolationError):
                outcome.violation = error.__cause__.violation
            else:
                reason = f"{error.component}: {error.reason}"
                outcome.violation = Violation("component_assertion", reason)
        self._calls.close()
        if not self._keep:
            self.world.abandon()
        outcome.nr_steps = self._step
        outcome.struck = tuple(self._struck)
        outcome.events |= self.watch.events
        outcome.signature = self._state
        return outcome

    def _end(self) -> None:
        """All is quiet: everybody has got an answer, and everything is as it should be."""
        waiting = [k for k in range(len(self.case.clients)) if k not in self._done]
        if waiting:
            raise ViolationError(stuck(self.world, waiting))
        watch = self.watch
        watch.fail_heap = watch.fail_pool = False
        with looked_at("the host at rest"):
            for domid, p2m in watch.p2ms.items():
                watch.check_table(p2m, domid)
            self.outcome.violation = at_rest(self.world, self.case, self.outcome.history)

    def pending(self) -> list[str]:
        """What is on its way, oldest first, a line each."""
        channels = [*self._enabled, *(channel for _, channel in self._frozen)]
        lines: list[str] = []
        for channel in sorted(channels, key=_by_seq):
            source, target = channel.src or "(lock)", channel.dst
            for _, _, envelope, _ in channel.queue:
                what = "goes on" if envelope is None else repr(envelope.body)[:80]
                lines.append(f"{source} -> {target}: {what}")
        return lines

    def _start(self) -> None:
        for domid, p2m in self.watch.p2ms.items():
            self.watch.watch_gfns(p2m, domid, watched_gfns(self.case, domid))
        for domid, book in living(self.world).items():
            self.watch.tot_pages[domid] = book.tot_pages
        for client, script in enumerate(self.case.clients):
            if not script:
                self._done.add(client)
                continue
            # Above all ids that were used up while the world was built.
            sent = Envelope(
                CLIENT, addresses.toolstack(client), CLIENT_ID + client, 0, RunScript(list(script))
            )
            self._post(sent, client, zlib.crc32(sent.dst.encode()))

    # -- one step ----------------------------------------------------------------------------

    def _one_step(self) -> None:
        step, enabled = self._step, self._enabled
        if self._frozen:
            self._thaw(step)
        fault = self._faults.get(step)
        nr = len(enabled)
        index = 0
        if nr == 1 and self._every:
            self._chooser.pick(enabled)
        elif nr > 1:
            index = self._chooser.pick(enabled)
            if index:
                self.outcome.deviations[self.outcome.nr_decisions] = index
            self.outcome.nr_decisions += 1
        if fault is not None:
            index = self._arm(fault, index)
        channel = enabled.pop(index)
        seq, client, envelope, cause = channel.queue.popleft()
        channel.taken += 1
        self.outcome.order.append(channel.name)
        if fault is not None and fault.kind == "duplicate" and envelope is not None:
            self._struck.append(fault)
            channel.queue.appendleft((seq, client, envelope, cause))
        if channel.queue:
            channel.seq = channel.queue[0][0]
            insort(enabled, channel, key=_by_seq)
        if self._keep:
            overtaken = enabled[0].name if index else ""
            name = "" if fault is None else fault.kind
            self.outcome.steps.append(
                Step(step, channel.name, client, envelope, index, nr, name, overtaken)
            )
        self._step = step + 1
        if step >= self._limit:
            raise ViolationError(livelock(self.world, step, self.case))
        if channel.dst == CLIENT:
            assert envelope is not None, "nothing resumes at the client"
            self._answered(envelope)
        else:
            self._execute(channel.dst, client, envelope, cause, fault)

    def _arm(self, fault: Fault, index: int) -> int:
        """Let a fault strike at this step, or lie in wait; the choice may change."""
        if fault.kind == "heap":
            self.watch.fail_heap = True
        elif fault.kind == "pool":
            self.watch.fail_pool = True
        elif fault.kind == "slow" and len(self._enabled) > 1:
            self._frozen.append((self._step + fault.length, self._enabled.pop(index)))
            self._struck.append(fault)
            return 0
        return index

    def _thaw(self, step: int) -> None:
        due = [(until, channel) for until, channel in self._frozen if until <= step]
        if not due and not self._enabled:
            due = self._frozen[:1]
        for each in due:
            self._frozen.remove(each)
            insort(self._enabled, each[1], key=_by_seq)

    def _execute(
        self, dst: str, client: int, envelope: Envelope | None, cause: int, fault: Fault | None
    ) -> None:
        watch, said = self.watch, self._said
        host = self.world.hosts.get(dst) or self.world.host(dst)
        watch.begin_step(self._step, client)
        if envelope is not None and envelope.in_reply_to and dst[0] == "t":
            self._calls.returned(_number(dst), envelope, self._step)
        out = self._drive(host, envelope)
        if watch.consumed:
            self._consumed()
        recovered = False
        if self._logging:
            self._logs.setdefault(dst, []).append((envelope, tuple(watch.consumed)))
            if fault is not None and fault.kind == "crash":
                self._struck.append(fault)
                watch.events.add("crash")
                out = self._recover(dst)
                host = self.world.hosts[dst]
                recovered = True
        state = self._advance_hash(dst, cause)
        if host.blocked():
            for activity in host.blocked():
                self._origin.setdefault(_request(activity), client)
            self._note_ready(dst, host, state)
        # What a recovered component says again was checked when it said it first.
        new = [each for each in out if (each.src, each.msg_id) not in said] if recovered else out
        with looked_at(dst):
            self._check(dst, host, envelope, new)
        for number, each in enumerate(out):
            if dst[0] == "t" and each.dst != CLIENT:
                self._calls.called(_number(dst), each, self._step)
            whose = client
            if self._logging:
                # What a recovered component says again belongs to whom it belonged before.
                whose = said.setdefault((each.src, each.msg_id), client)
            self._post(each, whose, (state + number * _PRIME) & _MASK)

    def _drive(self, host: Host, envelope: Envelope | None) -> list[Envelope]:
        """Deliver, or let an activity go on; what it sends."""
        return host.resume() if envelope is None else host.deliver(envelope, drain=False)

    def _answered(self, envelope: Envelope) -> None:
        """A client has done all it had to do."""
        self._done.add(_number(envelope.src))

    def _advance_hash(self, dst: str, cause: int) -> int:
        old = self._hashes.get(dst, 0)
        new = ((old ^ cause) * _PRIME + zlib.crc32(dst.encode())) & _MASK
        self._hashes[dst] = new
        self._state = (self._state - old + new) & _MASK
        if dst[0] == "t":
            # The order of calls and returns is part of what happened.
            old = self._hashes.get(CLIENT, 0)
            self._hashes[CLIENT] = ordered = ((old ^ cause) * _PRIME + 1) & _MASK
            self._state = (self._state - old + ordered) & _MASK
        self.outcome.states.append(self._state)
        return new

    def _consumed(self) -> None:
        """A fault that lay in wait found its mark."""
        for kind in self.watch.consumed:
            armed = [f for f in self._faults.values() if f.kind == kind and f.step < self._step]
            fresh = [f for f in armed if f not in self._struck]
            self._struck += fresh[:1]
            if kind == "pool":
                self.watch.fail_pool = False

    def _check(self, dst: str, host: Any, envelope: Envelope | None, out: list[Envelope]) -> None:
        """The oracles that look while the run goes on."""
        watch = self.watch
        if dst[0] == "p":
            if envelope is not None and type(envelope.body) in READS:
                return
            p2m, domid = host.component, int(dst[4:])
            watch.check_table(p2m, domid)
            watch.check_answers(p2m, domid, out)
        elif dst[0] == "w":
            for each in out:
                if type(each.body) is Translations and each.dst[0] == "t":
                    asked = self._calls.asked[_number(each.dst)]
                    body = asked.body
                    same = each.in_reply_to == asked.msg_id
                    if same and isinstance(body, (Touch, WalkTranslate)):
                        watch.check_use(dst, body, each.body)

    # -- posting -----------------------------------------------------------------------------

    def _post(self, envelope: Envelope, client: int, cause: int) -> None:
        key = (envelope.src, envelope.dst)
        channel = self._channels.get(key)
        if channel is None:
            channel = self._channels[key] = Channel(*key)
        self._push(channel, client, envelope, cause)

    def _push(self, channel: Channel, client: int, envelope: Envelope | None, cause: int) -> None:
        self._seq += 1
        if not channel.queue:
            channel.seq = self._seq
            if not any(channel is each for _, each in self._frozen):
                self._enabled.append(channel)
        channel.queue.append((self._seq, client, envelope, cause))

    def _note_ready(self, dst: str, host: Any, state: int) -> None:
        """Each activity that got a lock is something that can be next."""
        channel = self._channels.get(("", dst))
        if channel is None:
            channel = self._channels["", dst] = Channel("", dst)
        ready = host.ready()
        while len(channel.queue) < len(ready):
            activity = ready[len(channel.queue)]
            cause = (state ^ len(channel.queue) * _PRIME) & _MASK
            self._push(channel, self._origin[_request(activity)], None, cause)

    # -- crash and recovery ------------------------------------------------------------------

    def _recover(self, dst: str) -> list[Envelope]:
        """A new host from the checkpoint and the log; whatever it says again goes out again.

        Receivers know the ids that they have seen, so only what was lost has an effect.
        """
        watch = self.watch
        watch.muted = True
        armed = watch.fail_heap, watch.fail_pool
        self.world.hosts[dst].abandon()
        host = self.world.hosts[dst] = self.world.template.load_host(dst, watch)
        said: list[Envelope] = []
        for envelope, consumed in self._logs[dst]:
            watch.fail_heap, watch.fail_pool = "heap" in consumed, "pool" in consumed
            if envelope is None:
                said += host.resume()
            else:
                said += host.deliver(envelope, drain=False)
        watch.fail_heap, watch.fail_pool = armed
        watch.muted = False
        return said


CLIENT_ID: Final = 1 << 32


class Calls:
    """The clients' operations as they are called and return: the history."""

    def __init__(self, case: Case, history: list[Event]) -> None:
        self._case = case
        self._history = history
        self._open: dict[int, tuple[int, int]] = {}
        self._count: dict[int, int] = {}
        self.asked: dict[int, Envelope] = {}

    def called(self, client: int, envelope: Envelope, now: int) -> None:
        """A request leaves a client; once only, though it may be sent again after a crash."""
        last = self.asked.get(client)
        if last is not None and envelope.msg_id <= last.msg_id:
            return
        index = self._count.get(client, 0)
        self._count[client] = index + 1
        self.asked[client] = envelope
        self._open[client] = (now, index)

    def returned(self, client: int, envelope: Envelope, now: int) -> None:
        """The reply reaches the client."""
        call = self._open.get(client)
        if call is None or self.asked[client].msg_id != envelope.in_reply_to:
            return
        del self._open[client]
        operation = self._case.clients[client][call[1]]
        result = result_of(envelope.body)
        self._history.append(Event(client, call[0], now, operation, result))

    def close(self) -> None:
        """Calls that never returned."""
        for client, (called, index) in sorted(self._open.items()):
            operation = self._case.clients[client][index]
            self._history.append(Event(client, called, None, operation, None))


@contextmanager
def looked_at(what: str) -> Generator[None]:
    """Whoever looks on meets what a broken component has left: that is a violation, too."""
    try:
        yield
    except ViolationError:
        raise
    except Exception as error:
        reason = f"{what} cannot be looked at: {type(error).__name__}: {error}"
        raise ViolationError(Violation("component_assertion", reason)) from error


def _request(activity: Activity) -> tuple[str, int]:
    """What an activity answers: the same before and after a crash, unlike the activity."""
    return activity.cause.src, activity.cause.msg_id


def _number(address: str) -> int:
    """The number of a toolstack: that of its client."""
    return int(address.partition("/")[2])


def watched_gfns(case: Case, domid: int) -> list[int]:
    """Gfns of a domain that a run looks at: those named, their neighbours, ends of superpages."""
    gfns: set[int] = set()
    for script in case.clients:
        for op in script:
            at = op.target if op.kind == "translate" else op.domid
            if at != domid or op.kind in {"pool", "create", "destroy", "pod_target"}:
                continue
            size = op.nr << op.order
            for first in {op.gfn, op.target} if op.kind == "move" else {op.gfn}:
                gfns.update(first + (number << op.order) for number in range(op.nr))
                last = first + size - 1
                gfns |= {first, last, last + 1, first | 0x1FF, first & ~0x1FF}
                if first:
                    gfns.add(first - 1)
    return sorted(gfns)
