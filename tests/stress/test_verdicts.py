"""Verdicts that were wrong once, in either direction: each with the mistake that it missed."""

from pathlib import Path
from random import Random

import pytest

from deploy.campaign import chunks, search
from deploy.campaign.artifact import load as load_example
from deploy.campaign.chunks import Plan
from deploy.stress.case import FAULT_KINDS, Case, DomainSetup, Extents, Fault, Host, Schedule
from deploy.stress.engine import Engine, watched_gfns
from deploy.stress.run import draw_faults, run_schedule, template
from deploy.stress.strategies import SAMPLING, make
from deploy.stress.workload import draw, load
from deploy.world import KINDS, Kinds
from deploy.zoo import entries
from protocols.control import SnapshotP2m
from protocols.domctl import DomctlDestroyDomain
from protocols.p2m import P2mChangeType
from protocols.script import Operation
from services.component.component import handles
from services.component.traps import Preempt
from services.heap.component import Allocator
from services.p2m.component import P2m
from services.p2m.locking import Optimistic
from services.walker.component import Walker
from services.walker.frame_cache import FrameCache

CASES = Path(__file__).parent.parent / "data" / "cases" / "stress"
A = 0x200
SMALL = DomainSetup(domid=1, max_mib=8, extents=(Extents(A, 2, 9),), warm=(A + 1,))


def case(*scripts, domains=(SMALL,), **host):
    return Case("test", Host(**host), domains, tuple(tuple(script) for script in scripts))


def broken(found):
    return None if found.violation is None else found.violation.invariant


def hunt(workload, kinds, nr=300, faults=()):
    """The first violation of a sampling of schedules."""
    for seed in range(nr):
        random = Random(seed)
        drawn = draw(workload, random)
        steps = 6 * drawn.nr_operations()
        struck = draw_faults(random, faults, steps) if faults else ()
        world = template(drawn.host, drawn.domains, kinds)
        strategy = SAMPLING[seed % len(SAMPLING)]
        found = Engine(world, drawn, make(strategy, random, 3, steps), struck).run()
        if found.violation is not None:
            return found.violation.invariant
    return None


def sampled(work, seed, kinds):
    """What one random schedule of a case breaks."""
    strategy = make("random", Random(seed), 3, 40)
    return broken(Engine(template(work.host, work.domains, kinds), work, strategy).run())


# -- what the walker keeps -------------------------------------------------------------------


class KeepsAll(FrameCache):
    """A cache that does not know when it was last emptied."""

    nr_drops = property(lambda _: 0, lambda *_: None)


class KeepsOldFrames(Walker):
    """A walker that keeps what was on its way when the frames were forgotten."""

    async def _foreign(self, domid):
        tables = await super()._foreign(domid)
        tables.cache = KeepsAll(tables.paging.entry_bits)
        return tables


@pytest.mark.parametrize("name", ["absent2", "absent3"])
def test_a_frame_on_its_way_does_not_bring_back_a_hole(name):
    workload = load(CASES / f"{name}.toml")
    work = draw(workload, Random(0))
    plan = Plan(workload, schedules=20_000)
    assert hunt(workload, Kinds(walker=KeepsOldFrames)) == "access_current"
    found = search.depth_first(plan, work, 3)
    assert found.failure is None
    assert hunt(workload, KINDS) is None


@pytest.mark.parametrize("name", ["absent2", "absent3", "translate", "crowd"])
@pytest.mark.parametrize("faults", [(), FAULT_KINDS])
def test_the_right_system_is_clean(name, faults):
    plan = Plan(load(CASES / f"{name}.toml"), schedules=96, faults=faults, seed=2)
    assert chunks.run(plan).failure is None


# -- flushes that are outstanding ------------------------------------------------------------


class Alone(Optimistic):
    """Updates that never see each other."""

    def crowded(self):
        """Never."""
        return False


class NeverCrowded(P2m):
    """A P2M that does not wait for the flush of another update of the same page."""

    def __init__(self, *args):
        super().__init__(*args)
        self.locking = Alone(self.context, self.lock)


def test_an_update_is_not_answered_while_an_older_translation_is_in_use():
    workload = load(CASES / "crowd.toml")
    assert hunt(workload, Kinds(p2m=NeverCrowded)) == "tlb_coherent"


class NeverFlushes(P2m):
    """A P2M that tells no walker."""

    async def flush(self, domid):
        """Nothing is sent."""


def test_every_gfn_of_a_cached_superpage_is_looked_at():
    """The entry's first gfn is as it was, and the frame that moved away was not freed."""
    work = case([Operation("move", 1, A + 3, target=0x1000), Operation("get", 1, A)])
    found = run_schedule(work, Schedule(), Kinds(p2m=NeverFlushes)).outcome
    assert broken(found) == "tlb_coherent"
    assert found.violation.gfn == A + 3
    calm = run_schedule(work, Schedule()).outcome
    assert calm.violation is None
    assert found.nr_steps < calm.nr_steps / 2, "seen when the update was answered, not at the end"


class FlushesNoDyingDomain(Allocator):
    """An allocator that frees the memory of a domain before its P2M has flushed anybody."""

    @handles(DomctlDestroyDomain)
    async def destroy_domain(self, m):
        """Some memory goes first."""
        self.memory.free_owned(m.domid, 1024)
        return await super().destroy_domain(m)


def test_frames_of_a_dying_domain_are_out_of_reach_when_they_are_freed():
    work = case([Operation("destroy", 1)])
    assert run_schedule(work, Schedule()).outcome.violation is None
    found = run_schedule(work, Schedule(), Kinds(allocator=FlushesNoDyingDomain)).outcome
    assert broken(found) == "flushed_before_free"


def test_tables_that_a_walk_from_another_domain_follows_are_not_free_yet():
    # The table of 1G is read and the one below it on its way when a superpage replaces both.
    below = DomainSetup(domid=1, max_mib=1100, extents=(Extents(1 << 18, 1, 0),))
    work = case(
        [Operation("populate", 1, 1 << 18, order=18)],
        [Operation("translate", 2, (1 << 18) + 3, target=1)],
        domains=(below, DomainSetup(domid=2, max_mib=8, extents=(Extents(A, 1, 9),))),
        memory_mib=4096,
    )
    early = entries()["table-freed-early"].kinds
    assert {sampled(work, seed, KINDS) for seed in range(40)} == {None}
    assert {sampled(work, seed, early) for seed in range(40)} == {
        None,
        "flushed_before_table_reuse",
    }


def test_the_gfns_of_a_translate_are_those_of_the_domain_that_is_read():
    work = case([Operation("translate", 2, 0x345, target=1), Operation("touch", 2, 0x777)])
    assert 0x345 in watched_gfns(work, 1)
    assert 0x345 not in watched_gfns(work, 2)
    assert 0x777 in watched_gfns(work, 2)


# -- crashes ---------------------------------------------------------------------------------


class Attributing(Engine):
    """An engine that sees to it that a message belongs to one client, whoever says it again."""

    def _post(self, envelope, client, cause):
        owners = self.__dict__.setdefault("owners", {})
        assert owners.setdefault((envelope.src, envelope.msg_id), client) == client
        super()._post(envelope, client, cause)

    def _push(self, channel, client, envelope, cause):
        if envelope is None:
            activity = self.world.hosts[channel.dst].ready()[len(channel.queue)]
            request = activity.cause.src, activity.cause.msg_id
            assert self.owners[request] == client, "resumed for somebody else"
        super()._push(channel, client, envelope, cause)


SETS = [Operation("set_type", 1, A + 1, target=2), Operation("get", 1, A + 1)]


def test_a_recovered_component_speaks_for_whom_it_spoke_before():
    work = case(
        SETS,
        [Operation("set_type", 1, A + 2, target=3), Operation("touch", 1, A + 2)],
        [Operation("decrease", 1, A + 1), Operation("populate", 1, A + 1)],
    )
    world = template(work.host, work.domains, KINDS)
    calm = run_schedule(work, Schedule()).outcome
    for step in range(calm.nr_steps):
        for seed in range(2):
            chooser = make("random", Random(seed), 3, 60)
            found = Attributing(world, work, chooser, (Fault(step, "crash"),)).run()
            assert str(found.violation) == "None", f"crash at step {step}, seed {seed}"


@pytest.mark.parametrize("name", ["pod-access_current", "false-alarm-attribution"])
def test_what_was_a_false_alarm_is_clean(name):
    example = load_example(CASES / f"{name}.json")
    assert run_schedule(example.case, example.schedule).outcome.violation is None


class Particular(P2m):
    """A P2M whose last words cannot be said in the middle of its work."""

    @handles(P2mChangeType)
    async def change_type(self, m):
        """Waits where nothing has been done yet, and expects to have done all at its end."""
        done = False
        try:
            await Preempt(0)
            reply = await super().change_type(m)
            done = True
            return reply
        finally:
            assert done, "cut off"


def test_the_last_words_of_a_crashed_component_mean_nothing():
    kinds = Kinds(p2m=Particular)
    work = case(SETS, SETS)
    calm = run_schedule(work, Schedule(), kinds).outcome
    assert calm.violation is None
    for step in range(calm.nr_steps):
        found = run_schedule(work, Schedule(faults=(Fault(step, "crash"),)), kinds).outcome
        assert str(found.violation) == "None", f"crash at step {step}"


class NoSnapshot(P2m):
    """A P2M that has lost its tables' sizes when somebody asks."""

    @handles(SnapshotP2m)
    async def snapshot(self, m):
        """Fails."""
        raise IndexError(m.domid)


def test_what_cannot_be_looked_at_is_a_violation():
    found = run_schedule(case(SETS), Schedule(), Kinds(p2m=NoSnapshot)).outcome
    assert broken(found) == "component_assertion"
    assert "IndexError" in found.violation.message
