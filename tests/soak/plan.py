"""What campaign k of a soak is: drawn from (seed, k) alone, so that any of them can be repeated.

The combinations of workload, table format and lock protocol are gone through in rounds, each round
in an order of its own; faults, strategy and sizes are drawn.
"""

from dataclasses import dataclass
from functools import cache
from itertools import product
from random import Random

import msgspec

from deploy.stress.builtin import WORKLOADS
from deploy.stress.case import FAULT_KINDS

FORMATS = ("npt", "ept", "pae", "x86_32")
LOCKS = ("domain", "region", "optimistic")
"""Those that are meant to be right: ``none`` is there to be broken."""
COMBINATIONS = tuple(product(WORKLOADS, FORMATS, LOCKS))
LARGEST_ORDER = {"npt": 18, "ept": 18, "pae": 9, "x86_32": 10}

CHUNK = 32
SLOW = {"split-spread": 1 / 8, "split-storm-1g": 1 / 2}
"""Workloads whose runs are long, and the share of schedules that they get for it."""
SEARCHED = 1 / 4
"""And of those that a search gets, which looks at every step of a run."""
SAMPLING = ("random", "sticky", "pct", "pos", "delay", "coverage")
SEARCHES = ("dfs", "bfs")


@dataclass(frozen=True)
class Campaign:
    """One campaign as a command line; ``workload`` names the built-in one that it comes from."""

    number: int
    workload: str
    paging: str
    lock: str
    faults: str
    strategy: str
    arguments: tuple[str, ...]

    def command(self):
        """What to type to see it again."""
        return " ".join(("shatterproof stress", *self.arguments))


@cache
def _round(seed, number):
    order = list(COMBINATIONS)
    Random(f"{seed}/round/{number}").shuffle(order)
    return order


def campaign(seed, number, directory):
    """Campaign ``number``; ``directory`` holds the workload files of the other formats."""
    turn, place = divmod(number, len(COMBINATIONS))
    workload, paging, lock = _round(seed, turn)[place]
    random = Random(f"{seed}/{number}")
    faults = _faults(random)
    strategy = _strategy(random)
    if strategy in SEARCHES:
        faults = "none"
    schedules = CHUNK * random.randint(2, 8)
    share = SLOW.get(workload, 1) * (SEARCHED if strategy in SEARCHES else 1)
    schedules = max(CHUNK // 4, int(schedules * share))
    name = workload if paging == "npt" else str(file_of(directory, workload, paging))
    arguments = [name, "--lock", lock, "--schedules", str(schedules)]
    arguments += ["--seed", str(random.randrange(1 << 63)), "--faults", faults]
    if strategy != "swarm":
        arguments += ["--strategy", strategy]
        if random.random() < 0.3:
            arguments += ["--depth", str(random.randint(1, 6))]
    for flag, most in (("--clients", 8), ("--ops", 10), ("--vcpus", 4), ("--domains", 3)):
        if random.random() < 0.3:
            arguments += [flag, str(random.randint(1, most))]
    return Campaign(number, workload, paging, lock, faults, strategy, tuple(arguments))


def _faults(random):
    """A value of ``--faults``: all, one kind, some, or none."""
    what = random.choices(("all", "one", "some", "none"), (40, 25, 25, 10))[0]
    if what == "one":
        return random.choice(FAULT_KINDS)
    if what == "some":
        kinds = random.sample(FAULT_KINDS, random.randint(2, len(FAULT_KINDS) - 1))
        return ",".join(kind for kind in FAULT_KINDS if kind in kinds)
    return what


def _strategy(random):
    what = random.choices(("swarm", "one", "search"), (75, 20, 5))[0]
    if what == "swarm":
        return what
    return random.choice(SAMPLING if what == "one" else SEARCHES)


def file_of(directory, workload, paging):
    """Where a workload is for a table format that ``stress`` has no flag for."""
    return directory / "workloads" / f"{workload}-{paging}.toml"


def write_workloads(directory):
    """Every built-in workload in every format but its own, as files for ``stress``."""
    (directory / "workloads").mkdir(parents=True, exist_ok=True)
    for name, paging in product(WORKLOADS, FORMATS[1:]):
        workload = in_format(WORKLOADS[name], paging)
        file_of(directory, name, paging).write_text(to_toml(workload))


def in_format(workload, paging):
    """The workload on a host with another table format, with the same superpages to split.

    A 2-level table has superpages of 4M: each of 2M becomes one, the gfns near its start and its
    end stay near them, and the domains are twice as large.
    """
    host = msgspec.structs.replace(workload.host, paging=paging)
    workload = msgspec.structs.replace(workload, host=host)
    orders = {10 if paging == "x86_32" else 9, *((18,) if LARGEST_ORDER[paging] == 18 else ())}
    names = {"shatter 9": "shatter 10"} if paging == "x86_32" else {}
    expects = [names.get(event, event) for event in workload.expects]
    kept = [e for e in expects if not e.startswith("shatter ") or int(e.split()[1]) in orders]
    workload = msgspec.structs.replace(workload, expects=tuple(kept))
    return _twice_as_large(workload) if paging == "x86_32" else workload


def _twice_as_large(workload):
    replace = msgspec.structs.replace
    wide = any(extents.order == 18 for domain in workload.domains for extents in domain.extents)
    times = 1 if wide else 2

    def gfn(value):
        if wide or value < 0x200:
            return value
        region, offset = divmod(value, 0x200)
        return region << 10 | (offset if offset < 0x100 else offset + 0x200)

    def gfns(values):
        return tuple(
            gfn(each) if isinstance(each, int) else (gfn(each[0]), gfn(each[1])) for each in values
        )

    def order(value):
        return 10 if value == 9 else value

    domains = tuple(
        replace(
            domain,
            max_mib=times * domain.max_mib,
            pod_target_mib=domain.pod_target_mib and times * domain.pod_target_mib,
            warm=gfns(domain.warm),
            extents=tuple(
                replace(each, gfn=gfn(each.gfn), order=order(each.order)) for each in domain.extents
            ),
        )
        for domain in workload.domains
    )
    operations = tuple(
        replace(
            spec,
            gfns=gfns(spec.gfns),
            targets=gfns(spec.targets) if spec.kind in {"move", "create"} else spec.targets,
            orders=tuple(map(order, spec.orders)),
        )
        for spec in workload.operations
    )
    host = replace(workload.host, memory_mib=times * workload.host.memory_mib)
    return replace(workload, host=host, domains=domains, operations=operations)


def to_toml(workload):
    """The workload as the TOML that ``stress`` reads."""
    table = msgspec.to_builtins(workload)
    return "".join(f"{key} = {_value(value)}\n" for key, value in table.items())


def _value(value):
    if isinstance(value, dict):
        given = ((key, each) for key, each in value.items() if each is not None)
        return "{" + ", ".join(f"{key} = {_value(each)}" for key, each in given) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return msgspec.json.encode(value).decode()
