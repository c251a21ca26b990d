"""Traces to show: one of ours with every kind of event, one by a real clock, and real captures."""

import pytest

from deploy.cli.trace import FileSink
from deploy.driver.launch import Launch
from deploy.profile.open import own_trace
from deploy.scenario.model import Balloon, Build, Destroy, Punch, Touch
from deploy.sim.runtime import SimRuntime
from deploy.world import host_config, layout
from services.trace.writer import STEP, describe_run, ns_clock
from tests.helpers import guest, scenario

PHASES = (
    Build(),
    Touch(nr=400, first_gfn=0x400, pattern="random", write=True),
    Punch(superpages=3, per_superpage=2, first_gfn=0x1000),
    Balloon("down", pages=5, first_gfn=0x800),
)


def recorded(path, *, phases=PHASES, clock=None, guests=None):
    """A launch on the local runtime, recorded to ``path``; the trace."""
    work = scenario(*(guests or (guest("a", 32, vcpus=2), guest("pod", 24, 64))), phases=phases)
    config = host_config(work.host)
    header = describe_run(
        runtime="local", seed=None, clock=STEP if clock is None else ns_clock(0), host=config,
        machine={}, shards=layout(1, 1),
    )  # fmt: skip
    sink = FileSink(path, header)
    runtime = SimRuntime(config, sink=sink, clock=clock)
    Launch(work, config, runtime).run()
    runtime.close()
    sink.finish()
    return own_trace(memoryview(path.read_bytes()), path.name)


@pytest.fixture(scope="session")
def own_path(tmp_path_factory):
    """The file of a run that knows steps only."""
    path = tmp_path_factory.mktemp("traces") / "own.trace"
    recorded(path)
    return path


@pytest.fixture(scope="session")
def own(own_path):
    """The trace of that file."""
    return own_trace(memoryview(own_path.read_bytes()), "own.trace")


@pytest.fixture(scope="session")
def destroyed(tmp_path_factory):
    """A run that ends with nothing left."""
    path = tmp_path_factory.mktemp("traces") / "gone.trace"
    return recorded(path, phases=(*PHASES, Destroy()))
