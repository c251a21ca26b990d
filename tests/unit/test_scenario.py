"""Workloads to scenarios: what is accepted, and the one line for what is not."""

from pathlib import Path

import pytest

from deploy.scenario.load import load_workloads
from deploy.scenario.model import Balloon, Build, Punch, Touch
from deploy.scenario.xen_cmdline import parse_size_mib, parse_xen_cmdline
from protocols.errno import BadInputError

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
GUEST = "type = 'pvh'\nmemory = 64\n"


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def load(path, **flags):
    return load_workloads([path], flags)


def test_the_examples_load():
    files = sorted(EXAMPLES.glob("*.toml")) + sorted(EXAMPLES.glob("*.cfg"))
    assert len(files) >= 5
    for path in files:
        scenario, _ = load(path)
        assert scenario.domains
        assert isinstance(scenario.phases[0], Build)


def test_the_fleet_has_64_domains_with_their_own_names_and_domids():
    scenario, _ = load(EXAMPLES / "fleet.toml")
    assert [spec.domid for spec in scenario.domains] == list(range(1, 65))
    assert len({spec.config.name for spec in scenario.domains}) == 64


def test_several_workloads_share_a_host(write):
    cfg = write("a.cfg", "name = 'a'\n" + GUEST)
    toml = write(
        "s.toml", '[host]\nmemory = "2GiB"\n[[domains]]\nname = "b"\nmemory = 64\ntype = "pvh"\n'
    )
    scenario, _ = load_workloads([cfg, toml], {})
    assert [(spec.domid, spec.config.name) for spec in scenario.domains] == [(1, "a"), (2, "b")]
    assert scenario.host.memory_mib == 2048


def test_flags_go_before_the_file(write):
    path = write(
        "s.toml",
        '[host]\nmemory = "2GiB"\npaging = "ept"\nsuperpages = "off"\nxen_cmdline = "hap_1gb=0"\n'
        '[[domains]]\nmemory = 64\ntype = "pvh"\nname = "x"\n',
    )
    host = load(path, memory="1GiB", paging="npt", xen_cmdline="hap_2mb=0")[0].host
    assert (host.memory_mib, host.paging, host.superpages) == (1024, "npt", "off")
    assert (host.hap_1gb, host.hap_2mb) == (True, False)


def test_inline_keys_go_before_those_of_the_config(write):
    write("base.cfg", "name = 'base'\nvcpus = 2\n" + GUEST)
    path = write("s.toml", '[[domains]]\nconfig = "base.cfg"\nmemory = 128\ncount = 2\n')
    scenario, _ = load(path)
    assert [spec.config.name for spec in scenario.domains] == ["base-1", "base-2"]
    assert {(spec.config.memory_mib, spec.config.vcpus) for spec in scenario.domains} == {(128, 2)}


def test_phases_and_ranges(write):
    path = write(
        "s.toml",
        '[[domains]]\nname = "x"\nmemory = 64\ntype = "pvh"\n'
        'force_4k = ["0x1000-0x1fff", [0, 16]]\n'
        '[[phases]]\nop = "touch"\nnr = 10\npattern = "random"\n'
        '[[phases]]\nop = "punch"\nmode = "move"\n'
        '[[phases]]\nop = "balloon"\ndirection = "up"\npages = 4\n',
    )
    scenario, _ = load(path)
    assert scenario.domains[0].force_4k == ((0, 16), (0x1000, 0x1000))
    assert scenario.phases == (
        Build(),
        Touch(nr=10, pattern="random"),
        Punch(mode="move"),
        Balloon(direction="up", pages=4),
    )


def test_keys_that_do_not_matter_are_named(write):
    path = write("a.cfg", "name = 'a'\non_crash = 'preserve'\ndisk = ['x']\n" + GUEST)
    _, ignored = load(path, xen_cmdline="console=com1")
    assert (str(path), "on_crash") in ignored
    assert (str(path), "disk") in ignored
    assert ("--xen-cmdline", "console=com1") in ignored


DOMAIN = '[[domains]]\nname = "x"\nmemory = 64\ntype = "pvh"\n'


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "domains: expected at least one [[domains]] table"),
        ("[[domains]\n", "(at line 1"),
        (DOMAIN + "[hosts]\n", "hosts: unknown key, did you mean 'host'?"),
        (DOMAIN + "[host]\nmemroy = '1GiB'\n", "host.memroy: unknown key, did you mean 'memory'?"),
        (DOMAIN + "[host]\nmemory = 8\n", "host.memory: expected `str | null`, got `int`"),
        (DOMAIN + "[host]\nmemory = '8'\n", "host.memory 8: expected a size in whole MiB"),
        (DOMAIN + "[host]\nmemory = '32MiB'\n", "memory 64 MiB: expected at most the host's 32"),
        (DOMAIN + "[host]\npaging = 'vtd'\n", "host.paging: invalid enum value 'vtd'"),
        (DOMAIN + "[host]\nnodes = 0\n", "host.nodes: expected `int` >= 1"),
        (DOMAIN + "memroy = 3\n", "domains[0].memroy: unknown key, did you mean 'memory'?"),
        (DOMAIN + "maxmem = 32\n", "domains[0].maxmem: expected at least memory, 64"),
        (DOMAIN + "hap = 0\n", "hap=0: expected hap=1"),
        (DOMAIN + "count = 0\n", "domains[0].count: expected `int` >= 1"),
        (DOMAIN + "config = 'none.cfg'\n", "domains[0].config: there is no file none.cfg"),
        (DOMAIN + "force_4k = ['5-1']\n", "domains[0].force_4k: '5-1': expected gfns"),
        (DOMAIN + "force_4k = ['x']\n", "expected a gfn range such as 0x1000-0x1fff"),
        (DOMAIN + "force_4k = [[0, 9], [8, 1]]\n", "overlapping ranges at gfn 0x8"),
        (DOMAIN + "[[phases]]\nop = 'dance'\n", "phases[0].op: invalid value 'dance'"),
        (DOMAIN + "[[phases]]\nnr = 1\n", "phases[0]: object missing required field `op`"),
        (DOMAIN + "[[phases]]\nop = 'touch'\nnr = 0\n", "phases[0].nr: expected `int` >= 1"),
        (DOMAIN + "[[phases]]\nop = 'touch'\nnumber = 1\n", "phases[0].number: unknown key"),
        (DOMAIN + "[[phases]]\nop = 'balloon'\npages = 1\n", "missing required field `direction`"),
        (DOMAIN + DOMAIN, "name 'x': taken by"),
        (
            "[host]\nnodes = 2\n"
            + DOMAIN
            + "vcpus = 1\nvnuma = [['pnode=2', 'size=64', 'vcpus=0']]\n",
            "vnuma: pnode 2: expected one of the host's 2 nodes",
        ),
        (
            "[host]\npaging = 'pae'\n" + DOMAIN.replace("64", "4200"),
            "expected all below 0x100000 with pae tables",
        ),
    ],
)
def test_what_does_not_fit_is_one_line_that_names_file_and_field(write, text, line):
    path = write("bad.toml", text)
    with pytest.raises(BadInputError) as error:
        load(path)
    assert str(error.value).startswith(str(path))
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read(tmp_path):
    for path in (tmp_path, tmp_path / "none.cfg", tmp_path / "none.toml"):
        with pytest.raises(BadInputError, match="cannot be read"):
            load(path)
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"name = '\xff'")
    with pytest.raises(BadInputError, match="byte 8 is not UTF-8"):
        load(binary)


def test_scenarios_that_disagree_about_the_host(write):
    first = write("a.toml", DOMAIN + "[host]\nnodes = 2\n")
    second = write("b.toml", DOMAIN.replace("x", "y"))
    with pytest.raises(BadInputError, match="host: differs from"):
        load_workloads([first, second], {})


@pytest.mark.parametrize(
    ("text", "switches"),
    [
        ("", (True, True, True)),
        ("hap_1gb=0", (True, False, True)),
        ("hap_2mb=off no-hap_1gb", (True, False, False)),
        ("hap_1gb=no hap_1gb", (True, True, True)),
        ("no-hap", (False, True, True)),
        ("dom0_mem=1200M,max:1200M loglvl=all", (True, True, True)),
    ],
)
def test_xen_switches(text, switches):
    parsed = parse_xen_cmdline(text)
    assert (parsed.hap, parsed.hap_1gb, parsed.hap_2mb) == switches


@pytest.mark.parametrize("text", ["hap_1gb=2", "hap=", "no-hap_2mb=1"])
def test_a_switch_with_another_value_is_refused(text):
    with pytest.raises(BadInputError, match=r"--xen-cmdline: .*: expected hap"):
        parse_xen_cmdline(text)


@pytest.mark.parametrize(
    ("text", "mib"),
    [
        ("8GiB", 8192),
        ("512M", 512),
        ("1tib", 1 << 20),
        ("2048 KiB", 2),
        ("4g", 4096),
        ("1GB", 1024),
    ],
)
def test_sizes(text, mib):
    assert parse_size_mib(text, "--host-memory") == mib


@pytest.mark.parametrize("text", ["", "8", "GiB", "-1GiB", "1.5GiB", "100KiB", "0GiB", "8PiB"])
def test_sizes_that_are_none(text):
    with pytest.raises(BadInputError, match="expected a size in whole MiB"):
        parse_size_mib(text, "--host-memory")
