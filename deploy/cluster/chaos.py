"""What goes wrong on purpose: kills, repeated batches, late batches; all drawn from one seed."""

from __future__ import annotations

from random import Random
from typing import Annotated

import msgspec

Probability = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Chaos(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Faults of one run, none of which may show in its results.

    A shard dies after handling some ``kill_every`` batches (0: never) and before it sends what the
    last one caused; all shards together at most ``kills`` times. ``duplicate``: the probability
    that a batch is sent twice. ``delay``: that a link sends nothing until the next delivery or
    poll.
    """

    seed: int = 0
    kill_every: Annotated[int, msgspec.Meta(ge=0)] = 0
    kills: Annotated[int, msgspec.Meta(ge=0)] = 4
    duplicate: Probability = 0.0
    delay: Probability = 0.0


class Life(msgspec.Struct, frozen=True):
    """One life of a shard: it begins with the write-ahead file of the lives before."""

    chaos: Chaos
    write_ahead: str
    incarnations: tuple[int, ...]
    """Of every shard, its own included, when this life begins."""
    kill_after: int
    """The batch that kills it; 0: none."""


def kill_plan(chaos: Chaos, nr_shards: int) -> list[list[int]]:
    """For each shard, after how many batches each of its lives ends; the last never does."""
    plan: list[list[int]] = [[] for _ in range(nr_shards)]
    if not chaos.kill_every:
        return plan
    random = Random(f"{chaos.seed} kills")  # noqa: S311
    victims: list[int] = []
    for _ in range(chaos.kills):
        if not victims:
            victims = random.sample(range(nr_shards), nr_shards)
        plan[victims.pop()].append(random.randint(1, 2 * chaos.kill_every - 1))
    return plan
