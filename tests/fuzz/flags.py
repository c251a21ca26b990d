"""Command lines: every flag that a command declares, with values that fit and values that do not.

Left out is what may rightly take for ever or go elsewhere: Ray, more schedules than one, the zoo.
"""

import click

from deploy.cli.main import COMMANDS
from tests.fuzz import mutate, seeds

LEFT_OUT = {"address", "jobs", "compare_locks", "zoo", "runtime", "help", "trust", "shards",
            "verbose", "log_json"}  # fmt: skip
NUMBERS = (
    *map(str, range(4)),
    "-1",
    "1.5",
    "x",
    "",
    "nan",
    "1e3",
    "0x10",
    "9" * 30,
    " 1",
    "\u0661",
)
FEW = {
    "schedules": ("1", "1", "0", "-1", "x", "1.0"),
    "seconds": ("0.1", "0", "-1", "x", "nan"),
    "ops": ("1", "3", "0", "10001", "x"),
    "host_memory": ("8GiB", "64MiB", "0", "-1GiB", "8", "1TiB", "9" * 20 + "T", "1 G", "x", ""),
    "faults": ("all", "none", "heap", "heap,crash", "heap,,", ",", "x", ""),
    "xen_cmdline": ("hap=0", "hap_1gb=0 no-hap_2mb", "hap=x", "", "="),
    "gfn": ("0x200", "0-0x1ff", "5-4", "x", "", "-1", "0+0", "0x200+1"),
    "sql": ("select 1", "select count(*) from updates", "drop table messages", "x", "",
            "select * from read_csv('/etc/hostname')", "copy messages to 'x.csv'"),
}  # fmt: skip
WORDS = ("x", "", "touch", "[/x]", "\x1b[31m", "a\nb", "é", "\udcff", "=1", "-", "toolstack/1#1")
PATHS = (
    "{out}/o", "{out}/é", "{out}/no/such/o", "{out}", "{out}/a\nb", "{out}/\x1b[31m",
    "{out}/\udcff", "{out}/" + "n" * 300, "", ".", "-",
)  # fmt: skip


def draw(random, made):
    """(arguments, input, its ending) of one command line."""
    name = random.choice(sorted(COMMANDS))
    command = COMMANDS[name]()
    data, ending, fixed = _subject(name, random, made)
    arguments = [name, "{in}", *fixed]
    if random.random() < 0.05:
        arguments.insert(1, random.choice(WORDS))
    options = [
        each
        for each in command.params
        if isinstance(each, click.Option) and each.name not in LEFT_OUT
    ]
    for option in random.sample(options, min(len(options), random.randint(1, 3))):
        arguments += _given(option, random)
    if random.random() < 0.05:
        arguments.append(random.choice(("--nope", "-x", "--", "--js", "--seed", "x")))
    return arguments, data, ending


def _subject(name, random, made):
    if name in {"launch", "audit"}:
        return random.choice(seeds.guests()[:3]).encode(), ".cfg", ["--runtime", "local"]
    if name == "stress":
        return seeds.workloads()[0].encode(), ".toml", ["--schedules", "1", "--save", "{out}"]
    fixed = ["--runtime", "local"] if name == "replay" else []
    if random.random() < 0.5:
        return random.choice(seeds.own_traces(made)), ".trace", fixed
    return seeds.xentraces(made)[-1], ".bin", fixed


def _given(option, random):
    flag = max(option.opts, key=len)
    if option.is_flag:
        return [flag]
    values = [str(_value(option, random)) for _ in range(max(1, option.nargs))]
    if len(values) == 1 and random.random() < 0.3:
        return [f"{flag}={values[0]}"]
    return [flag, *values]


def _value(option, random):
    if option.name in FEW:
        return random.choice(FEW[option.name])
    kind = option.type
    if isinstance(kind, click.Choice):
        return random.choice((*kind.choices, *kind.choices, *WORDS))
    if isinstance(kind, click.types.IntParamType | click.types.FloatParamType):
        return random.choice((*NUMBERS, str(random.choice(mutate.NUMBERS))))
    if isinstance(kind, click.Path) or option.name == "json_path":
        return random.choice(PATHS)
    return random.choice(WORDS)
