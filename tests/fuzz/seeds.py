"""Whole files to begin with: those of ``tests/data`` and ``examples``, and some that are made."""

import lzma
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path

import msgspec

from deploy.campaign.artifact import FORMAT, VERSION, Broken, Counterexample, Found, encode
from deploy.campaign.chunks import Plan, first_run
from deploy.cli.main import run as shatterproof
from deploy.stress.builtin import WORKLOADS
from deploy.stress.run import schedule_of
from deploy.stress.workload import Overrides, adapt
from services.spec.history import to_json_line
from tests.soak.plan import FORMATS, in_format, to_toml

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
SIZE_MAX = 100_000
SHORT = ("--clients", "2", "--ops", "2")


def _run(*arguments):
    with redirect_stdout(StringIO()):
        status = shatterproof([*map(str, arguments)])
    assert status in {0, 3}, arguments


def make(directory):
    """What only the command can make, into a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    guest = DATA / "xl" / "b1.pvh-64.cfg"
    _run("launch", guest, "--runtime", "local", "--trace", directory / "launch.trace")
    for name in ("mix", "pod", "build-destroy", "split-storm"):
        trace = directory / f"{name}.trace"
        _run("stress", name, "--schedules", "1", *SHORT, "--trace", trace)
    _run("profile", directory / "launch.trace", "--xentrace", directory / "launch.bin")


@cache
def own_traces(directory):
    return tuple(path.read_bytes() for path in sorted(directory.glob("*.trace")))


@cache
def xentraces(directory):
    packed = sorted((DATA / "traces").glob("*.trimmed.trace.bin.xz"))
    found = [lzma.decompress(path.read_bytes())[:SIZE_MAX] for path in packed]
    return (*found, *(path.read_bytes() for path in sorted(directory.glob("*.bin"))))


@cache
def guests():
    paths = (*sorted((DATA / "xl").glob("*.cfg")), *sorted((ROOT / "examples").glob("*.cfg")))
    return tuple(path.read_text() for path in paths)


@cache
def scenarios():
    """The examples, with hosts and guests that are small, and one with everything in it."""
    everything = """[host]
memory = "512MiB"
nodes = 2
xen_cmdline = "hap_1gb=0"
paging = "ept"
superpages = "opportunistic"
p2m_lock = "region"
[[domains]]
name = "a"
count = 2
type = "pvh"
memory = 64
maxmem = 80
vcpus = 2
superpages = "explicit"
force_4k = ["0x1000-0x11ff", [8192, 16]]
[[phases]]
op = "build"
[[phases]]
op = "touch"
pattern = "random"
nr = 50
first_gfn = 0x800
stride = 3
write = true
[[phases]]
op = "punch"
mode = "move"
superpages = 2
first_gfn = 0x1000
offset = 7
per_superpage = 2
target_gfn = 0x50000
[[phases]]
op = "balloon"
direction = "down"
pages = 512
first_gfn = 0x2000
order = 9
[[phases]]
op = "audit"
[[phases]]
op = "pause"
seconds = 0.0
[[phases]]
op = "destroy"
"""
    small = '[[domains]]\nname = "b"\ntype = "hvm"\nmemory = 32\n[[phases]]\nop = "touch"\nnr = 9\n'
    return everything, small


@cache
def workloads():
    """Workload files: every built-in one that is built quickly, and the example."""
    example = (ROOT / "examples" / "stress" / "balloon.toml").read_text()
    quick = [each for name, each in WORKLOADS.items() if not name.endswith(("1g", "spread"))]
    every = (in_format(each, paging) for each in quick for paging in FORMATS)
    return (example, *map(to_toml, every))


@cache
def runs():
    """(plan's case, outcome) of a first schedule of each quick workload."""
    overrides = Overrides(clients=2, ops=3)
    quick = [each for name, each in WORKLOADS.items() if not name.endswith(("1g", "spread"))]
    return [first_run(Plan(adapt(each, overrides), seed=3)) for each in quick]


@cache
def counterexamples():
    """Files of schedules that broke nothing: they are told all the same."""
    broken = Broken("tlb_coherent", "gfn 0x200 was left in a TLB", 1, 0x200, 0x100, 9)
    found = []
    for case, outcome in runs():
        given = (case, schedule_of(outcome), "")
        steps = outcome.nr_steps
        found.append(
            encode(Counterexample(FORMAT, VERSION, broken, Found(0, "pct", 3), steps, *given))
        )
    return tuple(msgspec.json.decode(each) for each in found)


@cache
def histories():
    return tuple(to_json_line(event) for _, outcome in runs() for event in outcome.history)
