"""Who chooses what is next: randomised strategies, delay bounding, replay.

Each is made anew for every run from a seeded generator; the same seed makes the same choices in
any process. Sources: PCT, Burckhardt et al., ASPLOS 2010; partial-order sampling, Yuan et al.,
CAV 2018; delay-bounded scheduling, Emmi et al., POPL 2011; random walk, Thomson et al., PPoPP 2014.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Final, Literal

from deploy.stress.engine import Channel, Chooser

StrategyName = Literal["random", "sticky", "pct", "pos", "delay", "coverage", "dfs", "bfs"]
STRATEGIES: Final = ("random", "sticky", "pct", "pos", "delay", "coverage", "dfs", "bfs")
SAMPLING: Final = ("random", "sticky", "pct", "pos", "delay")
"""Those that need no memory of earlier runs: what a swarm is made of."""

STICKINESS: Final = 0.9


class Uniform:
    """Every possibility is as likely as every other."""

    def __init__(self, random: Random) -> None:
        self._random = random

    def pick(self, enabled: Sequence[Channel]) -> int:
        """A uniform index."""
        return int(self._random.random() * len(enabled))


class Sticky:
    """Stay with the client whose message came last, mostly: long stretches, few switches."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._client = -1

    def pick(self, enabled: Sequence[Channel]) -> int:
        """The oldest message of the same client, or a uniform one."""
        random = self._random
        if random.random() < STICKINESS:
            for index, channel in enumerate(enabled):
                if channel.client == self._client:
                    return index
        index = int(random.random() * len(enabled))
        self._client = enabled[index].client
        return index


class Pct:
    """Random priorities for clients, lowered at ``depth`` - 1 random points.

    Finds a bug of depth d in n clients and k decisions with probability at least 1 / (n k^(d-1)).
    """

    def __init__(self, random: Random, depth: int, decisions: int) -> None:
        self._random = random
        self._priority: dict[int, float] = {}
        self._changes = {random.randrange(max(1, decisions)): -at for at in range(1, depth)}
        self._count = 0

    def pick(self, enabled: Sequence[Channel]) -> int:
        """The oldest message of the client with the highest priority."""
        best, index = -1e9, 0
        for at, channel in enumerate(enabled):
            priority = self._priority.get(channel.client)
            if priority is None:
                priority = self._priority[channel.client] = self._random.random()
            if priority > best:
                best, index = priority, at
        lowered = self._changes.get(self._count)
        if lowered is not None:
            self._priority[enabled[index].client] = lowered
        self._count += 1
        return index


class PartialOrder:
    """Each message gets a random priority when first seen; races are drawn anew after each step.

    Samples partial orders nearly uniformly: only messages to the same component race.
    """

    def __init__(self, random: Random) -> None:
        self._random = random
        self._priority: dict[int, float] = {}

    def pick(self, enabled: Sequence[Channel]) -> int:
        """The highest priority."""
        priorities = self._priority
        best, index = -1.0, 0
        for at, channel in enumerate(enabled):
            priority = priorities.get(channel.seq)
            if priority is None:
                priority = priorities[channel.seq] = self._random.random()
            if priority > best:
                best, index = priority, at
        chosen = enabled[index]
        for channel in enabled:
            if channel is not chosen and channel.dst == chosen.dst:
                del priorities[channel.seq]
        return index


class Delays:
    """First come first served, but for at most ``depth`` deviations at random decisions."""

    def __init__(self, random: Random, depth: int, decisions: int) -> None:
        self._random = random
        self._at = {random.randrange(max(1, decisions)) for _ in range(depth)}
        self._count = 0

    def pick(self, enabled: Sequence[Channel]) -> int:
        """0, or at a chosen decision any other."""
        count = self._count
        self._count = count + 1
        return 1 + int(self._random.random() * (len(enabled) - 1)) if count in self._at else 0


class Replay:
    """The deviations given, 0 elsewhere.

    An index that is too large counts as 0: shrinking needs a schedule to mean something for a
    smaller case as well.
    """

    def __init__(self, deviations: Mapping[int, int]) -> None:
        self._deviations = deviations
        self._count = 0

    def pick(self, enabled: Sequence[Channel]) -> int:
        """As recorded."""
        index = self._deviations.get(self._count, 0)
        self._count += 1
        return index if index < len(enabled) else 0


class InOrder:
    """The order of another run, as far as it has the same messages.

    Shrinking replays by it when the case itself has changed and the numbers of decisions mean
    nothing any more.
    """

    def __init__(self, order: Sequence[str]) -> None:
        self._ranks: dict[str, list[int]] = {}
        for rank, name in enumerate(order):
            self._ranks.setdefault(name, []).append(rank)

    def pick(self, enabled: Sequence[Channel]) -> int:
        """Whatever came first in that run; what did not come there at all is last."""
        best, index = 1 << 60, 0
        for at, channel in enumerate(enabled):
            ranks = self._ranks.get(channel.name, ())
            rank = ranks[channel.taken] if channel.taken < len(ranks) else 1 << 59
            if rank < best:
                best, index = rank, at
        return index


class Prefix:
    """A list of choices, then the oldest; notes each decision's width and the state before it."""

    def __init__(self, choices: Mapping[int, int], states: Sequence[int]) -> None:
        self._choices = choices
        self._states = states
        self.widths: list[int] = []
        self.before: list[int] = []

    def pick(self, enabled: Sequence[Channel]) -> int:
        """As listed."""
        at = len(self.widths)
        self.widths.append(len(enabled))
        self.before.append(self._states[-1] if self._states else 0)
        return min(self._choices.get(at, 0), len(enabled) - 1)


class Mutated:
    """A recorded schedule up to a point, uniform choices after it: coverage-guided search."""

    def __init__(self, random: Random, deviations: Mapping[int, int], upto: int) -> None:
        self._replay = Replay(deviations)
        self._upto = upto
        self._random = random
        self._count = 0

    def pick(self, enabled: Sequence[Channel]) -> int:
        """As recorded, with a rare slip; later uniform."""
        index = self._replay.pick(enabled)
        count = self._count
        self._count = count + 1
        if count < self._upto and self._random.random() > 1 / 64:
            return index
        return int(self._random.random() * len(enabled))


def make(name: str, random: Random, depth: int, decisions: int) -> Chooser:
    """A chooser of one run. ``decisions``: about how many a run has."""
    match name:
        case "sticky":
            return Sticky(random)
        case "pct":
            return Pct(random, depth, decisions)
        case "pos":
            return PartialOrder(random)
        case "delay":
            return Delays(random, depth, decisions)
        case _:
            return Uniform(random)
