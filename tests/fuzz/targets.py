"""One target a format: from a source of chance to an input, its command and what judges it."""

import gzip
import json
import lzma
import re
import sys
import tomllib
from dataclasses import dataclass
from math import isfinite
from unittest import mock

import msgpack
import msgspec

from deploy.profile import long
from deploy.scenario.xen_cmdline import parse_size_mib, parse_xen_cmdline
from protocols.codec import decode_batch, decode_envelope, decode_envelopes
from protocols.envelope import Envelope
from protocols.errno import ShatterproofError
from protocols.registry import MESSAGE_KINDS
from protocols.text import LINE_MAX, shown
from services.spec.history import from_json_line
from tests.fuzz import flags, formats, mutate, seeds
from tests.fuzz.judge import judge

IN = "{in}"
OUT = "{out}"


@dataclass
class Input:
    """A file's bytes and the command line for it; ``{in}`` and ``{out}`` stand for paths."""

    data: bytes
    ending: str
    arguments: list
    call: str = ""
    """A function of ``CALLS`` instead of the command, for what no command reads."""
    twice: bool = False
    """To be read by both readers of a xentrace, which must agree."""

    def run(self, directory, data=None):
        """Judge it in an empty directory."""
        path, out = directory / f"in{self.ending}", directory / "out"
        out.mkdir()
        path.write_bytes(self.data if data is None else data)
        words = [
            word.replace(IN, str(path)).replace(OUT, str(out)) for word in map(str, self.arguments)
        ]
        if self.call:
            return judge(path.read_bytes(), call=CALLS[self.call])
        verdict = judge(words, out)
        if self.twice:
            _compare(verdict, words)
        return verdict


def _compare(verdict, words):
    """The same file through the reader of long traces; a fault if they say different things."""
    with mock.patch.object(long, "LONG_BYTES", -1):
        other = judge(words)
    for kind, what in other.faults.items():
        verdict.faults.setdefault(f"LONG {kind}", what)
    for name in ("status", "err", "out"):
        one, two = getattr(verdict, name), getattr(other, name)
        if verdict.faults:
            break
        if one == two:
            continue
        what = name
        if name == "out":
            what, one, two = _differing(_comparable(one), _comparable(two))
        if one != two:
            verdict.faults[f"DIFF {what}"] = f"short {one!s:.600} long {two!s:.600}"


def _comparable(text):
    """A report without what the long reader does not know: calls of populate_physmap."""
    report = json.loads(text)
    for domain in report["domains"].values():
        domain.pop("populate", None)
        for name in ("populate_calls", "extents"):
            domain.get("series", {}).pop(name, None)
    return report


def _differing(one, two, name=""):
    """(path, one's value, two's value) of the first difference of two reports."""
    if isinstance(one, dict) and isinstance(two, dict):
        for key in sorted(one.keys() | two.keys()):
            if one.get(key) != two.get(key):
                plain = "" if key.lstrip("-").isdigit() else f" {key}"
                return _differing(one.get(key), two.get(key), name + plain)
    return name.strip(), one, two


def _told(function):
    """A call that may only refuse by one line, as a command would tell it."""

    def call(data):
        try:
            function(data)
        except ShatterproofError as error:
            sys.stderr.write(f"{shown(str(error), LINE_MAX)}\n")
            return 2
        return 0

    return call


def _text(data):
    return data.decode("utf-8", "surrogatepass")


CALLS = {
    "decode_batch": _told(decode_batch),
    "decode_envelope": _told(decode_envelope),
    "decode_envelopes": _told(decode_envelopes),
    "from_json_line": _told(lambda data: from_json_line(_text(data))),
    "parse_xen_cmdline": _told(lambda data: parse_xen_cmdline(_text(data))),
    "parse_size_mib": _told(lambda data: parse_size_mib(_text(data), "--host-memory")),
}

GFNS = ("0x200", "0-0xfffff", "0x200+512", "5-4", "-1", "x", "0xffffffffff+99", "")
IDS = ("toolstack/1#1", "toolstack/0#1", "p2m/1#3", "client/0#1", "1099511627777", "", "x#y", "9")


def _profile(random):
    """What to ask of a trace."""
    asked = ["profile", IN]
    for flag, values, chance in (
        ("--domid", ("0", "1", "2", "32767"), 0.25),
        ("--kind", ("touch", "populate_physmap", "x"), 0.1),
        ("--gfn", GFNS, 0.15),
        ("--cpu-hz", ("1", "1e9", "1e300"), 0.05),
        ("--sequence", IDS, 0.1),
        ("--json", ("-", f"{OUT}/o.json"), 0.4),
        ("--html", (f"{OUT}/o.html",), 0.25),
        ("--perfetto", (f"{OUT}/o.pf",), 0.2),
        ("--xentrace", (f"{OUT}/o.xen",), 0.15),
        ("--csv", (f"{OUT}/o.csv",), 0.1),
        ("--parquet", (f"{OUT}/o.pq",), 0.02),
        ("--diff", (IN,), 0.1),
        ("--sql", ("select count(*) from messages",), 0.02),
    ):
        if random.random() < chance:
            asked += [flag, random.choice(values)]
    if random.random() < 0.1:
        asked += ["--between", *random.choice((("0", "1e9"), ("-1", "3"), ("5", "2"), ("0", "0")))]
    if random.random() < 0.15:
        asked.append(random.choice(("--critical-path", f"--critical-path={random.choice(IDS)}")))
    return asked


def _replay(random):
    asked = ["replay", IN, "--runtime", "local"]
    if random.random() < 0.4:
        asked += ["--json", "-"]
    if random.random() < 0.2:
        asked += ["--dump-p2m", f"{OUT}/p2m"]
    return asked


def trace(random, made):
    """A trace of ours."""
    every = seeds.own_traces(made)
    data = random.choice(every)
    if random.random() < 0.25:
        data = mutate.of_bytes(data, random, random.choice(every))
    else:
        try:
            data = formats.own_trace(data, random)
        except (OverflowError, ValueError, TypeError):
            data = mutate.of_bytes(data, random, data)
    return Input(data, ".trace", _profile(random) if random.random() < 0.7 else _replay(random))


def _xentrace(random, made):
    data = random.choice(seeds.xentraces(made))
    if random.random() < 0.3:
        return mutate.of_bytes(data[: random.choice((500, 4000, 20000))], random, data)
    return formats.xentrace(data, random)


def xentrace_short(random, made):
    """A xentrace: any question of ``profile``, and ``replay``."""
    asked = _profile(random) if random.random() < 0.7 else _replay(random)
    return Input(_xentrace(random, made), ".bin", asked)


def xentrace_long(random, made):
    """A xentrace through both readers, which must agree."""
    return Input(_xentrace(random, made), ".bin", ["profile", IN, "--json", "-"], twice=True)


def archive(random, made):
    """An archive of a trace: damaged, or whole with damage inside."""
    whole = random.choice((*seeds.own_traces(made), *seeds.xentraces(made)))[:30_000]
    inner = mutate.of_bytes(whole, random) if random.random() < 0.3 else whole
    pack, ending = random.choice(((lzma.compress, ".xz"), (_gzip, ".gz")))
    data = pack(inner)
    if random.random() < 0.1:
        data += pack(inner[:100])
    if random.random() < 0.8:
        data = mutate.of_bytes(data, random, data)
    asked = random.choice((["profile", IN, "--json", "-"], _replay(random), ["profile", IN]))
    return Input(data, ending, asked)


def _gzip(data):
    return gzip.compress(data, mtime=0)


XL_WORDS = (
    "memory", "maxmem", "vcpus", "name", "type", "'pvh'", "'hvm'", "'pv'", "hap", "vnuma",
    "[ [ 'pnode=0', 'size=32', 'vcpus=0', 'vdistances=10' ] ]", "=", "+=", "[", "]", "'", '"""',
    "firmware", "disk", "kernel", "builder", "altp2m", "nestedhvm", "passthrough", "#", "\\",
)  # fmt: skip


def xl_cfg(random, _made):
    """An xl.cfg."""
    text = mutate.of_text(random.choice(seeds.guests()), random, XL_WORDS)
    data = text.encode("utf-8", "surrogatepass")
    if random.random() < 0.3:
        data = mutate.of_bytes(data, random, data)
    asked = ["launch", IN, "--runtime", "local", "--host-memory", "1GiB"]
    if random.random() < 0.1:
        asked += ["--json", "-"]
    return Input(data, ".cfg", asked)


def _toml(random, texts, words):
    """A TOML file as text, or its tree, mutated."""
    text = random.choice(texts)
    if random.random() < 0.4:
        data = mutate.of_text(text, random, words).encode("utf-8", "surrogatepass")
    else:
        tree = mutate.of_tree(tomllib.loads(text), random, words)
        data = dump_toml(tree).encode("utf-8", "surrogatepass")
    return mutate.of_bytes(data, random, data) if random.random() < 0.1 else data


def dump_toml(tree):
    """A table as TOML, every value inline."""
    return "".join(f"{_key(key)} = {_value(value)}\n" for key, value in tree.items())


def _key(key):
    return key if re.fullmatch("[A-Za-z0-9_-]+", key) else json.dumps(key, ensure_ascii=False)


def _value(value):
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    if value is None or (isinstance(value, float) and not isfinite(value)):
        return "nan"
    return json.dumps(value, ensure_ascii=False)


SCENARIO_WORDS = (
    "host", "domains", "phases", "op", "memory", "nodes", "paging", "config", "count", "force_4k",
    "superpages", "p2m_lock", "xen_cmdline", "name", "first_gfn", "pages", "seconds", "mode",
)  # fmt: skip
WORKLOAD_WORDS = (
    "host", "domains", "operations", "scripts", "clients", "ops", "expects", "domid", "vcpus",
    "gfns", "targets", "orders", "nr", "kind", "weight", "warm", "extents", "pool_pages", "pod",
)  # fmt: skip


def scenario(random, _made):
    """A scenario."""
    data = _toml(random, seeds.scenarios(), SCENARIO_WORDS)
    asked = [random.choice(("launch", "launch", "audit")), IN, "--runtime", "local"]
    if random.random() < 0.3:
        asked += ["--json", "-"]
    return Input(data, ".toml", asked)


def workload(random, _made):
    """A workload of ``stress``."""
    data = _toml(random, seeds.workloads(), WORKLOAD_WORDS)
    asked = ["stress", IN, "--schedules", "1", "--seed", str(random.randrange(100)), "--save", OUT]
    if random.random() < 0.3:
        asked += ["--faults", "all"]
    for flag, values in (
        ("--lock", ("domain", "region", "optimistic", "none")),
        ("--domains", ("1", "2", "3")),
        ("--clients", ("1", "5")),
        ("--strategy", ("dfs", "bfs", "coverage", "pct")),
        ("--history", (f"{OUT}/h.jsonl",)),
    ):
        if random.random() < 0.12:
            asked += [flag, random.choice(values)]
    return Input(data, ".toml", asked)


def counterexample(random, _made):
    """A counterexample's file."""
    tree = random.choice(seeds.counterexamples())
    data = json.dumps(mutate.of_tree(tree, random)).encode()
    if random.random() < 0.15:
        data = mutate.of_bytes(data, random, data)
    asked = ["stress", "--replay", IN]
    for flag, values in (
        ("--json", ("-", f"{OUT}/o.json")),
        ("--until", ("0", "5", "1000000")),
        ("--diagram", (f"{OUT}/o.mmd",)),
        ("--trace", (f"{OUT}/o.trace",)),
    ):
        if random.random() < 0.2:
            asked += [flag, random.choice(values)]
    return Input(data, ".json", asked)


def history(random, _made):
    """A line of a history."""
    line = random.choice(seeds.histories())
    if random.random() < 0.7:
        line = json.dumps(mutate.of_tree(json.loads(line), random))
    else:
        line = mutate.of_text(line, random)
    return Input(line.encode("utf-8", "surrogatepass"), ".jsonl", [], call="from_json_line")


def wire(random, _made):
    """Messages on the wire: alone, in a list, in a batch."""
    kind = random.choice(sorted(MESSAGE_KINDS))
    body = [kind, *(random.choice(_FIELDS) for _ in MESSAGE_KINDS[kind].__struct_fields__)]
    case, outcome = random.choice(seeds.runs())
    if random.random() < 0.5:
        body = msgspec.to_builtins(random.choice(outcome.history).op, builtin_types=(bytes,))
        body = ["run_script", [body]]
    names = ["client/0", "toolstack/1", "p2m/1", "allocator/0", "walker/1.0"]
    tree = [*random.choices(names, k=2), random.choice((1, 7)), 0, body]
    assert len(tree) == len(Envelope.__struct_fields__), case
    call = random.choice(("decode_batch", "decode_envelope", "decode_envelopes"))
    if call != "decode_envelope":
        tree = [tree]
    if call == "decode_batch":
        tree = [random.choice((1, 2, 3, 4)), -1, 0, tree]
    try:
        data = msgpack.packb(mutate.of_tree(tree, random, real=True))
    except (OverflowError, ValueError, TypeError):
        data = msgpack.packb(tree)
    if random.random() < 0.3:
        data = mutate.of_bytes(data, random, data)
    return Input(data, ".msgpack", [], call=call)


_FIELDS = (0, 1, 9, 512, -1, b"", bytes(8), bytes(range(16)), "npt", "x", True, [], [1], None)
SWITCHES = (
    "hap=1", "hap_1gb=0", "no-hap_2mb", "hap_2mb", "hap-1gb=on", "hap=maybe", "no-hap=1", "hap=",
    "dom0_mem=4G", "loglvl=all", "=", "no-", "console=vga", "hap_1gb=TRUE", "hap=\x00",
)  # fmt: skip


def xen_cmdline(random, _made):
    """Xen's own command line, and sizes with units."""
    call = random.choice(("parse_xen_cmdline", "parse_xen_cmdline", "parse_size_mib"))
    if call == "parse_size_mib":
        text = random.choice(("8GiB", "512M", "1TiB", "4 GB", "0k", "1024k", "12", "9" * 20 + "T"))
    else:
        text = " ".join(random.choices(SWITCHES, k=random.randint(0, 6)))
    text = mutate.of_text(text, random, SWITCHES)
    data = text.encode("utf-8", "surrogatepass")
    if random.random() < 0.2 and b"\x00" not in data:
        guest = random.choice(seeds.guests()).encode()
        flag = "--host-memory" if call == "parse_size_mib" else "--xen-cmdline"
        return Input(guest, ".cfg", ["launch", IN, "--runtime", "local", f"{flag}={text}"])
    return Input(data, ".txt", [], call=call)


def command_line(random, made):
    """Flags and their values, of every command."""
    arguments, data, ending = flags.draw(random, made)
    return Input(data, ending, arguments)


TARGETS = {
    "trace": trace,
    "xentrace-short": xentrace_short,
    "xentrace-long": xentrace_long,
    "archive": archive,
    "xl-cfg": xl_cfg,
    "scenario": scenario,
    "workload": workload,
    "counterexample": counterexample,
    "history": history,
    "wire": wire,
    "xen-cmdline": xen_cmdline,
    "command-line": command_line,
}
