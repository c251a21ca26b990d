"""The local engine: deterministic, watched, and clean for the components as they are."""

import os
import subprocess
import sys
from itertools import pairwise
from random import Random

import msgspec
import pytest

from deploy.campaign import chunks, search
from deploy.campaign.chunks import Plan
from deploy.stress import strategies
from deploy.stress.builtin import WORKLOADS
from deploy.stress.case import FAULT_KINDS, Case, DomainSetup, Extents, Fault, Host, Schedule
from deploy.stress.engine import Engine
from deploy.stress.run import run_schedule, run_strategy, schedule_of, template
from deploy.stress.workload import draw
from protocols.script import Operation

A = 0x200
SMALL = DomainSetup(domid=1, max_mib=8, extents=(Extents(A, 2, 9),), warm=(A + 1,))


def case(*scripts, domains=(SMALL,), **host):
    return Case("test", Host(**host), domains, tuple(tuple(script) for script in scripts))


def facts(outcome):
    return (
        outcome.nr_steps,
        outcome.deviations,
        outcome.signature,
        outcome.order,
        outcome.history,
        str(outcome.violation),
    )


def told(outcome):
    """What each client was told, in its order."""
    return sorted(
        (event.client, event.op.kind, event.result.nr_done, event.result.rc)
        for event in outcome.history
    )


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_workload_is_clean_first_come_first_served(name):
    workload = WORKLOADS[name]
    for seed in range(3):
        outcome = run_schedule(draw(workload, Random(seed)), Schedule()).outcome
        assert outcome.violation is None
        assert outcome.deviations == {}


@pytest.mark.parametrize("name", WORKLOADS)
@pytest.mark.parametrize("strategy", strategies.SAMPLING)
def test_every_workload_is_clean_under_every_strategy_and_fault(name, strategy):
    struck = set()
    for seed in range(4):
        random = Random(f"{strategy}{seed}")
        drawn = draw(WORKLOADS[name], random)
        outcome = run_strategy(drawn, strategy, random, 3, FAULT_KINDS)
        assert str(outcome.violation) == "None"
        struck |= {fault.kind for fault in outcome.struck}
    assert struck, "faults were on the menu, and none found its mark"


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_workload_provokes_what_it_is_for(name):
    workload = WORKLOADS[name]
    found = chunks.run(Plan(workload, schedules=64, faults=FAULT_KINDS))
    assert found.failure is None
    assert set(workload.expects) <= found.events


@pytest.mark.parametrize("strategy", strategies.SAMPLING)
def test_a_schedule_can_be_run_again(strategy):
    random = Random(strategy)
    drawn = draw(WORKLOADS["mix"], random)
    first = run_strategy(drawn, strategy, random, 3, FAULT_KINDS)
    again = run_schedule(drawn, schedule_of(first)).outcome
    assert facts(again) == facts(first)
    assert facts(run_schedule(drawn, schedule_of(first)).outcome) == facts(first)


SAME = """
from random import Random
from deploy.stress.builtin import WORKLOADS
from deploy.stress.case import FAULT_KINDS
from deploy.stress.run import run_strategy
from deploy.stress.workload import draw
random = Random(7)
outcome = run_strategy(draw(WORKLOADS["mix"], random), "pos", random, 3, FAULT_KINDS)
print(outcome.signature, outcome.nr_steps, outcome.order[-5:], sorted(outcome.deviations.items()))
"""


def test_a_seed_means_the_same_in_any_process():
    told = {
        subprocess.run(
            [sys.executable, "-c", SAME],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(told) == 1
    assert told.pop().strip()


def test_a_crashed_component_recovers_and_applies_nothing_twice():
    work = case(
        [Operation("decrease", 1, A), Operation("populate", 1, A), Operation("increase", 1)],
        [Operation("set_type", 1, A + 1, target=2), Operation("get", 1, A + 1)],
    )
    calm = run_schedule(work, Schedule()).outcome
    results = told(calm)
    for step in range(calm.nr_steps):
        outcome = run_schedule(work, Schedule(faults=(Fault(step, "crash"),))).outcome
        assert str(outcome.violation) == "None", f"crash at step {step}"
        assert told(outcome) == results, f"crash at step {step}"


@pytest.mark.parametrize("kind", ["duplicate", "slow", "heap", "pool"])
def test_a_fault_at_any_step_is_survived(kind):
    work = case(
        [Operation("decrease", 1, A, nr=2), Operation("populate", 1, A, nr=2)],
        [Operation("set_type", 1, A + 1, target=2), Operation("touch", 1, A + 1)],
    )
    struck = 0
    for step in range(run_schedule(work, Schedule()).outcome.nr_steps):
        outcome = run_schedule(work, Schedule(faults=(Fault(step, kind, 9),))).outcome
        assert str(outcome.violation) == "None", f"{kind} at step {step}"
        struck += len(outcome.struck)
    assert struck > 0


def test_a_failed_allocation_shows_in_nr_done_and_is_excused():
    work = case([Operation("decrease", 1, A), Operation("populate", 1, A)])
    outcome = run_schedule(work, Schedule(faults=(Fault(6, "heap"),))).outcome
    done = {event.op.kind: event.result.nr_done for event in outcome.history}
    assert done == {"decrease": 1, "populate": 0}
    assert outcome.violation is None
    assert "ENOMEM" in outcome.events


def test_depth_first_covers_every_schedule_once():
    work = case(
        [Operation("set_type", 1, A + 1, target=2)], [Operation("set_type", 1, A + 2, target=3)]
    )
    plan = Plan(WORKLOADS["split-storm"], schedules=5000)
    found = search.depth_first(plan, work, None)
    assert found.exhausted
    assert found.failure is None
    assert found.nr_schedules == len(found.signatures), "sleep sets let no equivalent pair through"
    seen = set()
    for seed in range(300):
        seen.add(run_strategy(work, "random", Random(seed), 3).signature)
    assert seen <= found.signatures, "a random schedule that the search did not cover"


def test_breadth_first_reaches_the_same_states():
    work = case([Operation("set_type", 1, A + 1, target=2)], [Operation("decrease", 1, A + 2)])
    plan = Plan(WORKLOADS["split-storm"], schedules=5000)
    deep, broad = search.depth_first(plan, work, None), search.breadth_first(plan, work, None)
    assert deep.exhausted
    assert broad.exhausted
    assert deep.states <= broad.states


def test_a_bounded_search_says_that_it_was():
    work = draw(WORKLOADS["split-storm"], Random(0))
    plan = Plan(WORKLOADS["split-storm"], schedules=20)
    assert search.depth_first(plan, work, None).exhausted is False
    assert search.breadth_first(plan, work, 1).exhausted is False


@pytest.mark.parametrize("strategy", ["swarm", "coverage", "pct"])
def test_a_campaign_is_the_same_again(strategy):
    plan = Plan(WORKLOADS["split-physmap"], strategy, schedules=40, faults=FAULT_KINDS, seed=3)
    first, again = chunks.run(plan), chunks.run(plan)
    assert first.signatures == again.signatures
    assert first.states == again.states
    assert first.failure is None
    assert first.nr_schedules == 40


def test_pct_changes_priorities_and_sticky_stays():
    def switches(strategy):
        random = Random(5)
        drawn = draw(WORKLOADS["split-storm"], random)
        world = template(drawn.host, drawn.domains, chunks.kinds_of(""))
        chooser = strategies.make(strategy, random, 3, 90)
        outcome = Engine(world, drawn, chooser, keep_steps=True).run()
        clients = [step.client for step in outcome.steps]
        return sum(a != b for a, b in pairwise(clients))

    assert switches("sticky") < switches("random")
    assert switches("pct") < switches("random")


def test_a_case_travels_as_bytes():
    drawn = draw(WORKLOADS["mix"], Random(1))
    data = msgspec.json.encode(drawn)
    assert msgspec.json.decode(data, type=Case) == drawn


def test_a_domain_destroyed_and_used_while_it_is_created_leaves_nothing_behind():
    """Found by the linearizability work: both ends of a failing create deleted the books."""
    work = case(
        [Operation("create", 1, target=0x800), Operation("create", 1, target=0x800)],
        [Operation("destroy", 1), Operation("populate", 1, A), Operation("destroy", 1)],
        [Operation("increase", 1), Operation("populate", 1, A, order=9)],
        domains=(DomainSetup(domid=2, max_mib=8),),
    )
    for seed in range(60):
        random = Random(seed)
        outcome = run_strategy(work, "random", random, 3, ("pool", "heap"))
        assert str(outcome.violation) == "None", f"seed {seed}"


def test_tear_down_of_a_large_domain_is_done_in_slices():
    """XSA-410 in our own code, found by the zoo: pool and first slice went in one step."""
    big = DomainSetup(domid=1, max_mib=1100, extents=(Extents(1 << 18, 1, 18), Extents(A, 1, 9)))
    work = case([Operation("destroy", 1)], domains=(big,), memory_mib=3072)
    assert str(run_schedule(work, Schedule()).outcome.violation) == "None"


def test_m2p_words_are_written_before_a_remote_free_is_waited_for():
    """Found by split-numa: a populate took the moved page's place during the wait."""
    domain = DomainSetup(domid=1, max_mib=28, extents=(Extents(A, 9, 9),))
    work = case(
        [Operation("move", 1, A + 1, target=0x1200)],
        [Operation("populate", 1, 0x1200)],
        domains=(domain,),
        memory_mib=32,
        nodes=2,
    )
    plan = Plan(WORKLOADS["split-numa"], schedules=5000)
    found = search.depth_first(plan, work, None)
    assert found.exhausted
    assert found.failure is None


def test_what_a_recovered_walker_repeats_is_not_held_against_it():
    """An old answer comes again after its frame was given back: nobody uses it."""
    work = case(
        [Operation("touch", 1, A + 1)],
        [Operation("decrease", 1, A + 1), Operation("touch", 1, A + 2)],
    )
    calm = run_schedule(work, Schedule()).outcome
    for step in range(calm.nr_steps):
        outcome = run_schedule(work, Schedule(faults=(Fault(step, "crash"),))).outcome
        assert str(outcome.violation) == "None", f"crash at step {step}"
