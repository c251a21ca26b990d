"""The driver of one component: an envelope in, a list of envelopes out.

No clock, no I/O, no runtime. Between two deliveries the component is at rest or its activities
are parked: at a call, at a lock, or at their own continuation. Every envelope out is caused by
the envelope in.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Final, Protocol, cast

from protocols.control import Continuation
from protocols.envelope import Envelope
from protocols.errno import ComponentFailureError
from protocols.message import Message
from protocols.registry import TAGS
from protocols.trace import DONE, HOW_BITS, LOCK, WAITS
from services.component.component import Component
from services.component.locks import Lock
from services.component.traps import Acquire, Call, CallAll, Preempt

STORY_LENGTH = 24

ANSWERED: Final = 1 << HOW_BITS | DONE


class Watch(Protocol):
    """Is told whenever an activity has run; what it knows of time is its own affair."""

    def advanced(self, activity: Activity, first: int, sent: int) -> None:
        """An activity has stopped, and sent messages from number ``first`` on.

        ``sent`` is how many, and in its lowest HOW_BITS why it stopped: it WAITS for answers, it
        waits for a LOCK and sent nothing, or it is DONE and sent its own.
        """
        ...

    def gathered(self) -> None:
        """An answer came, and the activity that it is for waits for more."""
        ...


class Activity:
    """One running handler: its coroutine and the envelope that it must answer.

    ``replies`` and ``slots`` exist while it waits for several: the replies so far, and where the
    reply to each message goes. ``held`` are the locks it holds, in order of rank. ``arrival`` is
    for whoever watches the host.
    """

    __slots__ = ("arrival", "cause", "coroutine", "held", "missing", "replies", "slots")

    replies: list[Any]
    slots: dict[int, int]

    def __init__(self, coroutine: Coroutine[Any, Any, Message], cause: Envelope) -> None:
        self.coroutine = coroutine
        self.cause = cause
        self.missing = 0
        self.held: list[Any] = []
        self.arrival: int | None = None

    def where(self) -> str:
        """Handler, line and what started it, for the report of who is stuck."""
        frames: list[str] = []
        inner: Any = self.coroutine
        while inner is not None and getattr(inner, "cr_frame", None) is not None:
            frames.append(f"{inner.__qualname__}:{inner.cr_frame.f_lineno}")
            inner = inner.cr_await
        what = TAGS[type(self.cause.body)]
        return f"{' > '.join(frames)} for {what} {self.cause.msg_id} of {self.cause.src}"


class Host:
    """Drives one component.

    ``retried``: links may deliver an envelope again, after a crash or by a fault. Ids of one source
    only rise and links keep order, so whatever is not above the last id was here before and is
    dropped.
    """

    __slots__ = (
        "_blocked",
        "_component",
        "_handlers",
        "_next_id",
        "_parked",
        "_ready",
        "_running",
        "_seen",
        "_story",
        "name",
        "watch",
    )

    def __init__(
        self, component: Component, *, retried: bool = False, watch: Watch | None = None
    ) -> None:
        self.name = component.context.name
        self._component = component
        self._handlers = component.handlers()
        self._ready = component.context.ready
        self._running = component.context.running
        self._next_id = 0
        self._seen: dict[str, int] | None = {} if retried and component.recognises_repeats else None
        self._parked: dict[int, Activity] = {}
        self._blocked: dict[Activity, Lock] = {}
        self._story: deque[Envelope] = deque(maxlen=STORY_LENGTH)
        self.watch = watch

    @property
    def component(self) -> Component:
        """The component behind the messages; for its runtime's own reports, never for peers."""
        return self._component

    def deliver(self, envelope: Envelope, *, drain: bool = True) -> list[Envelope]:
        """Handle one envelope; the envelopes that it causes, in order.

        Whoever got a lock that was released goes on at once; without ``drain``, when the runtime
        says so (``resume``).

        Raises:
            ComponentFailureError: an assertion or any other exception of a handler, with the story.
        """
        if self._seen is not None:
            if envelope.msg_id <= self._seen.get(envelope.src, 0):
                return []
            self._seen[envelope.src] = envelope.msg_id
        self._story.append(envelope)
        out: list[Envelope] = []
        body = envelope.body
        try:
            if envelope.in_reply_to:
                activity = self._parked.pop(envelope.in_reply_to, None)
                assert activity is not None, (
                    f"{TAGS[type(body)]} from {envelope.src} answers {envelope.in_reply_to}, "
                    "which nobody waits for"
                )
                if activity.missing:
                    self._gather(activity, envelope, out)
                else:
                    self._advance(activity, body, out)
            else:
                handler = self._handlers.get(type(body))
                if handler is None:
                    activity = self._continued(envelope)
                else:
                    activity = Activity(handler(body), envelope)
                self._advance(activity, None, out)
            ready = self._ready
            while ready and drain:
                self._resume(out)
        except ComponentFailureError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise ComponentFailureError(self.name, reason, self.story()) from error
        return out

    def ready(self) -> deque[Activity]:
        """Activities that got a lock and wait for ``resume``, oldest first."""
        return self._ready

    def resume(self) -> list[Envelope]:
        """The oldest activity that got a lock goes on; the envelopes that it causes.

        Raises:
            ComponentFailureError: as ``deliver``.
        """
        out: list[Envelope] = []
        try:
            self._resume(out)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise ComponentFailureError(self.name, reason, self.story()) from error
        return out

    def _resume(self, out: list[Envelope]) -> None:
        activity = self._ready.popleft()
        del self._blocked[activity]
        self._advance(activity, None, out)

    def _continued(self, envelope: Envelope) -> Activity:
        """The activity that its own continuation sets going again."""
        body = envelope.body
        assert type(body) is Continuation, f"no handler for {TAGS[type(body)]}"
        assert envelope.src == self.name, f"a continuation from {envelope.src}"
        return self._parked.pop(envelope.msg_id)

    def _gather(self, activity: Activity, envelope: Envelope, out: list[Envelope]) -> None:
        """One of several replies; the last sets the activity going."""
        activity.replies[activity.slots.pop(envelope.in_reply_to)] = envelope.body
        activity.missing -= 1
        if not activity.missing:
            replies, activity.replies = activity.replies, []
            self._advance(activity, replies, out)
        elif self.watch is not None:
            self.watch.gathered()

    def _advance(self, activity: Activity, value: Any, out: list[Envelope]) -> None:
        """Run an activity to its next trap or its end."""
        self._next_id = number = self._next_id + 1
        self._running[0] = activity
        try:
            trap: Any = activity.coroutine.send(value)
        except StopIteration as done:
            cause = activity.cause
            assert not activity.held, f"{activity.held[0].name} still held after the reply"
            out.append(Envelope(self.name, cause.src, number, cause.msg_id, done.value))
            if self.watch is not None:
                self.watch.advanced(activity, number, ANSWERED)
            return
        kind = cast("object", type(trap))
        if kind is Call:
            self._parked[number] = activity
            out.append(Envelope(self.name, trap.dst, number, 0, trap.request))
        elif kind is CallAll:
            activity.missing = len(trap.calls)
            activity.replies = [None] * activity.missing
            activity.slots = {}
            for slot, (dst, request) in enumerate(trap.calls):
                self._parked[number + slot] = activity
                activity.slots[number + slot] = slot
                out.append(Envelope(self.name, dst, number + slot, 0, request))
            self._next_id = number + activity.missing - 1
        elif kind is Acquire:
            self._blocked[activity] = trap.lock
            trap.lock.park(activity, exclusive=trap.exclusive)
        else:
            assert kind is Preempt, f"a handler may await only the traps, not {trap!r}"
            self._parked[number] = activity
            note = Continuation(trap.progress)
            out.append(Envelope(self.name, self.name, number, 0, note))
        if self.watch is not None:
            sent = LOCK if kind is Acquire else self._next_id - number + 1 << HOW_BITS | WAITS
            self.watch.advanced(activity, number, sent)

    def trust_links(self) -> None:
        """From here on every envelope comes once, in whatever order."""
        self._seen = None

    def abandon(self) -> None:
        """The component dies here: close what was under way, so that nothing of it runs later.

        Closing runs the ``finally`` clauses, which a crash does not: what they say about a
        component that is cut off in the middle of its work means nothing.
        """
        for activity in [*dict.fromkeys(self._parked.values()), *self._blocked]:
            self._running[0] = activity
            with suppress(Exception):
                activity.coroutine.close()
        self._parked.clear()
        self._blocked.clear()
        self._ready.clear()

    def blocked(self) -> dict[Activity, Lock]:
        """Who waits for which lock (or has just got it)."""
        return self._blocked

    def waiting(self) -> dict[int, Activity]:
        """Who waits for an answer, by the id of the message sent."""
        return self._parked

    def activities(self) -> list[Activity]:
        """Everybody who has not answered yet."""
        return list(dict.fromkeys([*self._parked.values(), *self._blocked]))

    @property
    def nr_parked(self) -> int:
        """Activities waiting for a message or a lock; 0 when the component is at rest."""
        return len(self._parked) + len(self._blocked)

    def parked(self) -> list[str]:
        """Where each parked activity stands: the report of a run that stopped."""
        lines = [
            f"{self.name}: {activity.where()}" for activity in dict.fromkeys(self._parked.values())
        ]
        for activity, lock in self._blocked.items():
            lines.append(f"{self.name}: {activity.where()} waits for lock {lock.name}")
        return lines

    def story(self) -> list[str]:
        """The last messages received, oldest first, a line each."""
        lines: list[str] = []
        for envelope in self._story:
            body = repr(envelope.body)
            shown = body if len(body) <= 160 else body[:157] + "..."
            lines.append(f"{envelope.src} #{envelope.msg_id} -> {envelope.dst}: {shown}")
        return lines


def count_kinds(envelopes: list[Envelope], counts: Counter[str]) -> None:
    """Add each envelope's message kind to the counts."""
    for envelope in envelopes:
        counts[TAGS[type(envelope.body)]] += 1
