"""Guests that run their programs: bounds, turns, several vCPUs, and what cannot be run."""

import json

import pytest
from click.testing import CliRunner

from deploy.cli.main import cli
from deploy.driver.launch import Launch
from deploy.scenario.model import Build, DomainSpec, HostSpec, Run, Scenario
from deploy.sim.runtime import SimRuntime
from deploy.world import host_config
from protocols.errno import BadInputError
from protocols.guest import LoadProgram, RunGuest
from protocols.walk import GuestAccess
from services.guest.program import parse_program
from tests.helpers import guest, seeded


def launched(*programs, runs=(Run(),), seed=None, memory=16, vcpus=1, maxmem=None, domains=1):
    config = guest("g", memory, maxmem, vcpus=vcpus)
    words = tuple(parse_program(text, "test") if text else () for text in programs)
    specs = tuple(
        DomainSpec(domid, config, "explicit", (), words) for domid in range(1, domains + 1)
    )
    work = Scenario("test", HostSpec(memory_mib=512), specs, (Build(), *runs))
    runtime = SimRuntime(host_config(work.host), oracle=seeded(seed))
    report = Launch(work, runtime.config, runtime, keep_tables=True).run()
    assert report.violations == []
    return report, runtime


def test_a_program_goes_on_where_its_bound_stopped_it():
    text = "w:200000:400000:1000 l:200000:210000:8000:3 d:300:2:1:0 d:310:1:1:0 s:1 b d:380:1:1:0"
    whole, _ = launched(text)
    (domain,) = whole.domains
    assert (domain.operations, domain.failed_calls) == (512 + 6 + 3, 0)
    assert domain.vcpus == {0: "blocked"}
    for bound in (1, 7, 512, 513, 600):
        parts, _ = launched(text, runs=[Run(operations=bound)] * (521 // bound + 1))
        (again,) = parts.domains
        assert again.operations == 521
        assert again.vcpus == {0: "blocked"}
        assert again.table.gfns == domain.table.gfns
        assert again.table.orders == domain.table.orders


def test_a_loop_without_end_runs_until_the_bound():
    report, _ = launched("L:200000:300000:1000", runs=[Run(operations=1000), Run(operations=77)])
    (domain,) = report.domains
    assert (domain.operations, domain.vcpus) == (1077, {0: "running"})


def test_each_vcpu_has_its_program_and_all_domains_run_at_once():
    report, runtime = launched(
        "w:200000:400000:1000 x", "", "d:300:4:1:0", vcpus=3, domains=2, seed=5
    )
    for domain in report.domains:
        assert domain.vcpus == {0: "shutdown", 2: "blocked"}
        assert domain.operations == 516
        assert domain.shatters == 1
    assert runtime.counts()["run_guest"] == 4


def test_calls_that_did_not_do_all_are_counted():
    # A page twice, one that is not there, an order that a guest may not ask for.
    report, _ = launched("d:300:2:0:0 D:7000:4:0 P:4000:1:12 D:310:2:0 b")
    (domain,) = report.domains
    assert (domain.operations, domain.failed_calls) == (5, 3)


def test_accesses_of_a_program_are_one_after_the_other():
    """Each page of a PoD superpage that has to be filled faults once; what is there does not."""
    report, runtime = launched("w:400000:a00000:1000 b", memory=8, maxmem=16)
    (domain,) = report.domains
    assert domain.operations == 3 * 512
    assert runtime.counts()["nested_page_fault"] == 3


def test_nothing_is_there_and_the_program_goes_on():
    report, _ = launched("w:20000000:20004000:1000 r:20000000:20004000:1000 b", memory=16)
    (domain,) = report.domains
    assert (domain.operations, domain.vcpus) == (8, {0: "blocked"})


def test_a_vcpu_that_runs_gets_no_other_kernel():
    _, runtime = launched("L:200000:300000:1000", runs=[Run(operations=1)])
    program = list(parse_program("b", "test"))
    replies = runtime.run(
        [("guest/1.0", RunGuest(1, 100_000)), ("guest/1.0", LoadProgram(1, program))]
    )
    assert replies[1].rc == -16
    assert runtime.run([("guest/1.0", LoadProgram(1, program))])[0].rc == 0
    (ran,) = runtime.run([("guest/1.0", RunGuest(1, 100))])
    assert (ran.nr_done, ran.state) == (0, "blocked")


def test_accesses_of_a_program_survive_flushes_in_between():
    program = "l:200000:a00000:1000:4 b", "d:300:40:8:0 p:300:40:8:0 d:500:40:8:0 b"
    for seed in range(20):
        report, runtime = launched(*program, vcpus=2, seed=seed)
        (domain,) = report.domains
        assert domain.operations == 4 * 2048 + 3 * 64
        assert domain.failed_calls == 0
        assert runtime.counts()["flush_tlb"] > 0


TOML = """
[[domains]]
name = "g"
type = "pvh"
memory = 16
vcpus = 2
program = {}
[[phases]]
op = "run"
operations = {}
"""


@pytest.mark.parametrize(
    ("program", "bound", "reason"),
    [
        ('"w:1:2"', 5, "domains[0].program: position 0: w:1:2: STEP 0 never ends"),
        ('""', 5, "domains[0].program: empty"),
        ('["b", "b", "b"]', 5, "domains[0].program: 3 programs, expected one for each of 2 vcpus"),
        ("7", 5, "domains[0].program: expected"),
        ('"b"', 0, "phases[0].operations: expected"),
    ],
)
def test_a_scenario_with_a_program_that_is_none(program, bound, reason, tmp_path):
    path = tmp_path / "s.toml"
    path.write_text(TOML.format(program, bound))
    ran = CliRunner().invoke(
        cli, ["launch", str(path), "--runtime", "local"], standalone_mode=False
    )
    assert isinstance(ran.exception, BadInputError)
    assert str(ran.exception).startswith(f"{path}: {reason}")


def test_run_asks_for_a_program(tmp_path):
    path = tmp_path / "g.cfg"
    path.write_text("name='g'\ntype='pvh'\nkernel='/boot/vmlinuz'\ncmdline='b'\n")
    ran = CliRunner().invoke(
        cli, ["launch", str(path), "--run", "--runtime", "local"], standalone_mode=False
    )
    assert isinstance(ran.exception, BadInputError)
    assert "has a program" in str(ran.exception)
    path.write_text("name='g'\ntype='pvh'\nkernel='tiny.elf'\ncmdline='b oops'\n")
    ran = CliRunner().invoke(cli, ["launch", str(path)], standalone_mode=False)
    assert str(ran.exception).startswith(f"{path}:4: key 'cmdline': position 2: oops: expected")


def test_the_report_of_a_run(tmp_path):
    path = tmp_path / "s.toml"
    path.write_text(TOML.format('["w:200000:300000:1000 d:300:1:1:0", "L:200000:300000:4"]', 300))
    said = tmp_path / "r.json"
    ran = CliRunner().invoke(cli, ["launch", str(path), "--runtime", "local", "--json", str(said)])
    assert ran.exit_code == 0
    assert "557 operations, blocked, running" in ran.output
    (domain,) = json.loads(said.read_text())["domains"]
    assert domain["program"] == {
        "operations": 557, "failed_calls": 0, "states": ["blocked", "running"],
    }  # fmt: skip


def test_what_a_walker_counts_of_a_program():
    _, runtime = launched("b", memory=16)
    gfns = b"".join(gfn.to_bytes(8, "little") for gfn in [0x200, 0x201, 0x200, 0x9999, 0x400])
    (first,) = runtime.run([("walker/1.0", GuestAccess(1, gfns, False))])
    assert (first.nr_faults, first.nr_tlb_hits) == (1, 2)
    (again,) = runtime.run([("walker/1.0", GuestAccess(1, gfns, False))])
    assert (again.nr_faults, again.nr_tlb_hits) == (1, 4)
