"""The search for an order of steps that explains what they told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from services.spec.history import Event
from services.spec.register_rules import LOOKS, State
from services.spec.register_steps import Step


def in_order_of_return(steps: Sequence[Step], state: State) -> bool:
    """Whether the plainest order explains all; what never returned had no effect in it."""
    for event, rule, operand in steps:
        if event.ret is None:
            break
        outcomes = rule(operand, state)
        if not outcomes:
            return False
        state = outcomes[0]
    return True


def precedes(one: Event, other: Event) -> bool:
    """Whether an event had returned when the other was called."""
    if one.ret is None or one.ret > other.call:
        return False
    return one.ret < other.call or (one.client == other.client and one.call < one.ret)


def _predecessors(steps: Sequence[Step]) -> list[int]:
    """For each step the set of those that must come before it, as bits."""
    masks: list[int] = []
    for at, step in enumerate(steps):
        mask = 0
        if at and steps[at - 1].event is step.event:
            mask = 1 << (at - 1)
        for before, other in enumerate(steps):
            if other.event.ret is None or other.event.ret > step.event.call:
                break
            if precedes(other.event, step.event):
                mask |= 1 << before
        masks.append(mask)
    return masks


Path: TypeAlias = "tuple[Step, Path] | None"
"""Steps taken, the last one first."""


def explain(steps: Sequence[Step], nr: int, start: State, limit: int) -> list[Step] | None:
    """An order of the first ``nr`` steps that explains them, or None.

    ``steps`` are in order of return; those from ``nr`` on may come in or not. A search that has
    seen more than ``limit`` configurations gives up, and the order of return stands for one.
    """
    before = _predecessors(steps)
    goal = (1 << nr) - 1
    seen = {(0, start)}
    stack: list[tuple[int, State, Path]] = [(0, start, None)]
    while stack:
        done, state, path = stack.pop()
        if done & goal == goal:
            return _unwound(path)
        if len(seen) > limit:
            return list(steps[:nr])
        branches: list[tuple[int, State, Path]] = []
        for at, step in enumerate(steps):
            bit = 1 << at
            if done & bit or before[at] & ~done:
                continue
            outcomes = step.rule(step.operand, state)
            if outcomes == (state,) and step.rule in LOOKS:
                # It fits here and changes nothing: no order is lost by taking it at once.
                branches = [(done | bit, state, (step, path))]
                break
            branches += [(done | bit, outcome, (step, path)) for outcome in outcomes]
        for branch in reversed(branches):
            if branch[:2] not in seen:
                seen.add(branch[:2])
                stack.append(branch)
    return None


def _unwound(path: Path) -> list[Step]:
    order: list[Step] = []
    while path is not None:
        step, path = path
        order.append(step)
    return order[::-1]
