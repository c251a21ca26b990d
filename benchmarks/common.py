"""What the benchmarks share: guests, hosts, timing."""

import time
from statistics import median

from deploy.scenario.model import HostSpec
from deploy.sim.runtime import SimRuntime
from deploy.world import host_config
from protocols import envelope
from protocols.toolstack import BuildDomain, GuestConfig


def guest(domid, memory_mib):
    return GuestConfig(f"bench-{domid}", "pvh", memory_mib, memory_mib)


def build_request(domid, memory_mib, superpages="explicit"):
    job = BuildDomain(domid, guest(domid, memory_mib), superpages, "npt")
    return envelope.toolstack(domid), job


def world(**host):
    return host_config(HostSpec(**host))


def checked(replies):
    failed = [reply.error for reply in replies if reply.error]
    assert not failed, failed[0]
    return replies


def local_build(config, *requests):
    """(runtime, seconds) of builds on the local runtime."""
    runtime = SimRuntime(config)
    seconds = timed(lambda: checked(runtime.run(list(requests))))
    return runtime, seconds


def timed(function):
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


def medians(repetitions):
    """The median of each figure over the repetitions."""
    return {key: median(run[key] for run in repetitions) for key in repetitions[0]}
