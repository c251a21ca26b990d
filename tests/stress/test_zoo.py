"""The zoo: every bug put back on purpose is found, shrunk and told; without it all is clean."""

import msgspec
import pytest

from deploy.campaign import chunks
from deploy.campaign.artifact import encode, entry_named, kinds_of, load
from deploy.campaign.hunt import hunt, plan_of
from deploy.stress import story
from deploy.stress.entry import load_file
from deploy.stress.run import run_schedule
from deploy.zoo import entries
from protocols.errno import BadInputError

CLEAN = 64


@pytest.mark.parametrize("name", entries())
def test_the_bug_is_found_and_the_same_work_is_clean_without_it(name):
    entry = entry_named(name)
    found = chunks.run(plan_of(entry, 0, bug=True))
    assert found.failure is not None, f"{name} was not found"
    assert found.failure.violation.invariant in entry.broken()
    clean = msgspec.structs.replace(plan_of(entry, 0, bug=False), schedules=CLEAN)
    assert chunks.run(clean).failure is None


def test_the_zoo_is_as_large_as_it_must_be():
    assert len(entries()) >= 20
    assert len({entry.invariant for entry in entries().values()}) >= 8


def test_a_counterexample_is_small_repeatable_and_the_same_twice(tmp_path):
    first, again = hunt("xsa-346"), hunt("xsa-346")
    assert first.example is not None
    assert encode(first.example) == encode(again.example)
    path = tmp_path / "example.json"
    path.write_bytes(encode(first.example))
    example = load(path)
    assert example == first.example
    assert example.case.nr_operations() <= 2
    engine = run_schedule(
        example.case, example.schedule, kinds_of(example.case.bug), keep_steps=True
    )
    violation = engine.outcome.violation
    assert violation.invariant == example.violation.invariant
    assert engine.outcome.nr_steps == example.steps
    lines = story.lines(engine.outcome.steps, violation)
    assert any("guest_remove_page" in line for line in lines)
    assert any("violated: tlb_coherent" in line for line in lines)
    drawn = story.mermaid(engine.outcome.steps, violation)
    assert drawn.startswith("sequenceDiagram\n")
    assert drawn.count("->>") == len(engine.outcome.steps)


OWN = '''
"""Mine."""

from deploy.stress.case import DomainSetup, Extents
from deploy.stress.entry import ZooEntry
from deploy.stress.workload import Workload
from deploy.world import Kinds
from protocols.script import Operation
from services.p2m.component import P2m


class NoFlush(P2m):
    """Forgets to flush."""

    async def flush(self, domid):
        """Nothing."""


class Mine(ZooEntry):
    """A flush that is never sent."""

    name = "mine"
    source = "my own"
    invariant = "tlb_coherent"
    also = ("flushed_before_free",)
    kinds = Kinds(p2m=NoFlush)
    workload = Workload(
        "mine",
        "one client",
        domains=(DomainSetup(extents=(Extents(0x200, 1, 9),), warm=(0x200,)),),
        scripts=((Operation("decrease", 1, 0x200),),),
    )
'''


def test_an_entry_from_outside(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    entry = load_file(path)
    found = hunt(entry.name, text=OWN)
    assert found.row.found
    assert found.row.clean
    assert found.example.entry == OWN, "the file must stand alone"
    outcome = run_schedule(
        found.example.case, found.example.schedule, kinds_of("mine", found.example.entry)
    ).outcome
    assert outcome.violation.invariant == found.example.violation.invariant


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("source = ", "sauce = "), "lacks `source`"),
        (("class Mine(ZooEntry)", "class Mine(object)"), "0 subclasses of ZooEntry"),
        (("import Kinds", "import Kindness"), "ImportError"),
        (("    name =", "   name ="), "IndentationError"),
        (('    """A flush that is never sent."""\n', ""), "needs a docstring"),
    ],
)
def test_an_entry_that_is_none_is_refused(tmp_path, change, complaint):
    path = tmp_path / "mine.py"
    path.write_text(OWN.replace(*change))
    with pytest.raises(BadInputError, match=complaint):
        load_file(path)
