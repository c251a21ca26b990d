"""xl.cfg(5): syntax, defaults of xl and libxl, and one-line errors."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errno import BadInputError
from protocols.toolstack import GuestConfig, Vnode
from services.toolstack.xl_cfg import INTERPRETED, OTHER, XlConfig, near, parse_xl_cfg
from services.toolstack.xl_syntax import read_settings

CONFIGS = sorted((Path(__file__).parent.parent / "data" / "xl").glob("*.cfg"))
PVH = "name = 'g'\ntype = 'pvh'\n"
HVM = "name = 'g'\ntype = 'hvm'\n"


def parse(text: str) -> XlConfig:
    return parse_xl_cfg(text, "g.cfg")


def error_of(text: str) -> str:
    with pytest.raises(BadInputError) as caught:
        parse(text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_configurations_of_the_captures(path):
    config = parse_xl_cfg(path.read_text(), path.name)
    assert config.type == ("hvm" if "hvm" in path.name else "pvh")
    assert config.name in path.name
    assert 64 <= config.memory_mib <= config.maxmem_mib
    assert {"on_crash", "on_reboot"} <= set(config.ignored)
    assert config.videoram_mib == 0


def test_the_syntax():
    text = """
# a comment; not = read
name="a#b" ; type = 'pvh'  # after
memory = 0x80 ; maxmem = '256'
vcpus = 010
disk = [ 'one', "two",   # first

  [ 3, 'four' ],
]
disk += [ 'five' ]
extra = 'a "b" \\' \\x41\\102\\n'
extra += "c"
vif=[]
"""
    values = {key: setting.value for key, setting in read_settings(text, "g.cfg").items()}
    assert values == {
        "name": "a#b",
        "type": "pvh",
        "memory": "0x80",
        "maxmem": "256",
        "vcpus": "010",
        "disk": ["one", "two", ["3", "four"], "five"],
        "extra": 'a "b" \' AB\nc',
        "vif": [],
    }
    config = parse(text)
    assert (config.name, config.memory_mib, config.maxmem_mib, config.vcpus) == ("a#b", 128, 256, 8)
    assert config.ignored == ("disk", "extra", "vif")


def test_a_later_assignment_replaces():
    assert parse(PVH + "memory=64\nmemory=96\n").memory_mib == 96


def test_every_key_of_the_manual_is_known():
    assert not INTERPRETED & OTHER
    assert len(INTERPRETED | OTHER) > 148, "Xen 4.17's manual alone has 148"
    text = PVH + "".join(f"{key} = 1\n" for key in sorted(OTHER))
    assert parse(text).ignored == tuple(sorted(OTHER))


def test_defaults():
    config = parse(PVH)
    assert config == XlConfig(
        name="g",
        type="pvh",
        memory_mib=32,
        maxmem_mib=32,
        vcpus=1,
        maxvcpus=1,
        hap=True,
        shadow_memory_mib=None,
        mmio_hole_mib=None,
        vga="none",
        videoram_mib=0,
        vnodes=(),
        kernel="",
        ignored=(),
    )
    assert parse(PVH + "maxmem=64").memory_mib == 64


@pytest.mark.parametrize(
    ("lines", "vga", "videoram"),
    [
        ("", "cirrus", 8),
        ("vga='none'", "none", 0),
        ("stdvga=1", "stdvga", 16),
        ("stdvga=0", "cirrus", 8),
        ("vga='stdvga'; videoram=64", "stdvga", 64),
        ("vga='qxl'", "qxl", 128),
        ("vga='cirrus'; stdvga=1", "cirrus", 8),
        ("nographic=1", "cirrus", 8),
    ],
)
def test_display(lines, vga, videoram):
    config = parse(HVM + "memory=512\n" + lines)
    assert (config.vga, config.videoram_mib) == (vga, videoram)


def test_hvm_only_keys_do_not_touch_a_pvh_guest():
    config = parse(PVH + "vga='stdvga'\nvideoram=32\nmmio_hole=512\nshadow_memory=9\nhap=0\n")
    assert (config.vga, config.videoram_mib, config.mmio_hole_mib) == ("none", 0, None)
    assert config.ignored == ("vga", "videoram", "mmio_hole")
    assert (config.shadow_memory_mib, config.hap) == (9, False)


def test_legacy_builder():
    assert parse("name='g'\nbuilder='hvm'\nmemory=64").type == "hvm"
    assert parse("name='g'\nbuilder='hvm'\ntype='hvm'\nmemory=64").type == "hvm"


@pytest.mark.parametrize(
    ("text", "memory", "vcpus"),
    [
        ("memory=' 64'", 64, 1),
        ("memory='\\t\\n+64'", 64, 1),
        ("memory='0x40'", 64, 1),
        ("memory='0X4A'", 74, 1),
        ("memory=0100", 64, 1),
        ("hap='-1';memory=64", 64, 1),
        ("memory = 64 # \xff without a newline", 64, 1),
        ("memory = 64\r\nvcpus = 2\r\n", 64, 2),
        ("\tmemory\t=\t64\t;\t;\n;;\n", 64, 1),
        ("vif=[[[],],\n#\n'a' ,\n]\nmemory=64", 64, 1),
        ("foo=1\nfoo+=2\nmemory=64", 64, 1),
    ],
)
def test_numbers_and_blanks_as_xl_has_them(text, memory, vcpus):
    config = parse(PVH + text)
    assert (config.memory_mib, config.vcpus, config.hap) == (memory, vcpus, True)


def test_a_number_is_a_string_without_quotes():
    assert parse("type='pvh'\nname=64\n").name == "64"


@pytest.mark.parametrize("letters", ["h", "hv", "hvm", ""])
def test_the_first_letters_of_a_type_will_do(letters):
    assert parse(f"name='g'\nmemory=64\ntype='{letters}'").type == "hvm"


def test_unknown_keys_are_taken_and_told_apart():
    config = parse(PVH + "memry = 96\npci.x = [[1]]\n_ = 2\n".replace("_", "qqqqqq"))
    assert config.unknown == ("memry", "pci.x", "qqqqqq")
    assert config.ignored == ()
    assert config.memory_mib == 32
    assert (near("memry"), near("qqqqqq")) == ("memory", None)


@pytest.mark.parametrize("key", ["Memory", "_memory", "-memory", "1memory", "émory"])
def test_keys_that_xl_does_not_take(key):
    assert error_of(f"{key} = 64").startswith("g.cfg:1: expected a key, got ")


def test_bytes_that_are_no_utf_8():
    text = b"\xef\xbb\xbf# \xe9\nname = 'caf\xe9'\ntype = 'pvh'\n"
    assert parse(text.decode("utf-8", "surrogateescape")).name == "caf\\xe9"


def test_vnuma():
    spec = "vnuma = [ ['pnode=0','size=512','vcpus=0-1,4','vdistances=10,20'],\n"
    spec += "  ['pnode=1','size=256','vcpus=2-3','vdistances=20,10'] ]\n"
    config = parse(PVH + spec)
    assert config.vnodes == (Vnode(0, 512), Vnode(1, 256))
    assert (config.memory_mib, config.maxmem_mib) == (768, 768)
    assert (config.vcpus, config.maxvcpus) == (5, 5)
    assert parse(PVH + spec + "memory=768\nvcpus=5\n").vnodes == config.vnodes


def test_what_travels():
    config = parse(HVM + "memory=64\nmaxmem=128\nvcpus=2\nmaxvcpus=4\nvga='none'\nmmio_hole=512")
    assert config.guest_config() == GuestConfig(
        name="g", type="hvm", memory_mib=64, maxmem_mib=128, vcpus=4, mmio_hole_mib=512
    )


ONLY_HAP = "expected 'pvh' or 'hvm' (only HAP guests are built), got a PV guest"
HUGE = "9" * 5000
VNODE = "['pnode=0','size=32','vcpus=0']"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("type='pvh'", "g.cfg:1: key 'name': expected a domain name, got none"),
        ("type='pvh'\nname=['7']", "g.cfg:2: key 'name': expected a quoted string, got ['7']"),
        (
            "name='g'\nbuilder='hvm'\ntype='pvh'",
            "g.cfg:2: key 'builder': expected 'hvm' or 'generic', as 'type' says, got 'hvm'",
        ),
        (
            "name='g'",
            f"g.cfg:1: key 'type': {ONLY_HAP}",
        ),
        (
            "name='g'\nbuilder='generic'",
            f"g.cfg:2: key 'builder': {ONLY_HAP}",
        ),
        (
            "name='g'\nbuilder='linux'",
            "g.cfg:2: key 'builder': expected 'hvm' or 'generic', got 'linux'",
        ),
        ("name='g'\ntype='pv'", "g.cfg:2: key 'type': expected 'pvh' or 'hvm' (only HAP"),
        ("name='g'\ntype='xen'", "g.cfg:2: key 'type': expected 'pvh' or 'hvm', got 'xen'"),
        (
            "name='g'\ntype=pvh",
            "g.cfg:2: key 'type': expected a quoted string, a number or a list, got pvh",
        ),
        (
            PVH + "memory='lots'",
            "g.cfg:3: key 'memory': expected a number from 1 to 16777216, got 'lots'",
        ),
        (PVH + "\nmemory=[1]", "g.cfg:4: key 'memory': expected a number from 1 to 16777216"),
        (PVH + "memory=-1", "g.cfg:3: key 'memory': expected a quoted string, a number or a list"),
        (PVH + "memory=1", "g.cfg:3: key 'memory': expected at least 2 MiB, got 1"),
        (PVH + "memory=08", "g.cfg:3: key 'memory': expected a number from 1"),
        (PVH + "memory='64 '", "g.cfg:3: key 'memory': expected a number from 1"),
        (PVH + "memory='64MB'", "g.cfg:3: key 'memory': expected a number from 1"),
        (PVH + "memory=64MB", "g.cfg:3: key 'memory': expected the end of the line or ;, got MB"),
        (PVH + "hap='on'", "g.cfg:3: key 'hap': expected a number, got 'on'"),
        (PVH + "memory=6\nmemory+=4", "g.cfg:4: key 'memory': expected a number, which +="),
        (PVH + "memory='08'", "g.cfg:3: key 'memory': expected a number from 1"),
        (
            HVM + "memory=16; vga='stdvga'",
            "g.cfg:3: key 'memory': expected at least 2 MiB beside 16 MiB of video memory, got 16",
        ),
        (
            PVH + "memory=64\nmaxmem=63",
            "g.cfg:4: key 'maxmem': expected at least memory, 64, got 63",
        ),
        (
            PVH + "vcpus=3\nmaxvcpus=2",
            "g.cfg:4: key 'maxvcpus': expected a number from 3 to 512, got 2",
        ),
        (HVM + "vga='ati'", "g.cfg:3: key 'vga': expected 'none', 'cirrus', 'stdvga' or 'qxl'"),
        (
            HVM + "videoram=4",
            "g.cfg:3: key 'videoram': expected a number from 8 to 16777216",
        ),
        (
            HVM + "mmio_hole=64",
            "g.cfg:3: key 'mmio_hole': expected a number from 256 to 3840",
        ),
        (PVH + "shadow_memory=0", "g.cfg:3: key 'shadow_memory': expected a number from 1"),
        (PVH + "memory", "g.cfg:3: key 'memory': expected = or +=, got the end of the file"),
        (PVH + "memory\n=3", "g.cfg:3: key 'memory': expected = or +=, got the end of the line"),
        (PVH + "memory=\n3", "g.cfg:3: key 'memory': expected a quoted string, a number or a list"),
        (PVH + "memory=3 vcpus=1", "g.cfg:3: key 'memory': expected the end of the line or ;"),
        (PVH + "= 3", "g.cfg:3: expected a key, got ="),
        (PVH + "'a' = 3", "g.cfg:3: expected a key, got 'a'"),
        (PVH + "%!", "g.cfg:3: expected a key, got %!"),
        (PVH + "vif=['a'\n 'b']", "g.cfg:4: key 'vif': expected , or ] in a list, got 'b'"),
        (PVH + "vif=['a',\n", "g.cfg:4: key 'vif': expected a quoted string, a number or a list"),
        (PVH + "extra='a", "g.cfg:3: key 'extra': expected a quoted string, a number or a list"),
        (
            PVH + "extra='a'\nextra+=['b']",
            "g.cfg:4: key 'extra': expected += of two lists or two strings, got a string += a list",
        ),
        (PVH + f"memory={HUGE}", "g.cfg:3: key 'memory': expected a number from 1 to"),
        (PVH + f"memory='{HUGE}'", "g.cfg:3: key 'memory': expected a number from 1 to"),
        (PVH + "vif=" + "[" * 5000, "g.cfg:3: key 'vif': expected lists nested at most 16 deep"),
        (
            PVH + "vnuma=[['pnode=0','size=2','vcpus=1-0']]",
            "g.cfg:3: key 'vnuma': expected vnode 0 with vcpus such as 0-3,5, got '1-0'",
        ),
        (PVH + "vnuma='x'", "g.cfg:3: key 'vnuma': expected a list of vnode lists, got 'x'"),
        (PVH + "vnuma=[['pnode=0','size=x']]", "g.cfg:3: key 'vnuma': expected vnode 0 with size"),
        (PVH + "vnuma=[['size=2','vcpus=0']]", "g.cfg:3: key 'vnuma': expected vnode 0 with pnode"),
        (PVH + "vnuma=[['pnode=0','size=2']]", "g.cfg:3: key 'vnuma': expected vnode 0 with vcpus"),
        (PVH + "vnuma=[['pnodes=0']]", "g.cfg:3: key 'vnuma': expected vnode 0 of 'pnode='"),
        (PVH + f"vnuma=[{VNODE},{VNODE}]", "g.cfg:3: key 'vnuma': expected each vcpu from 0 up"),
        (
            PVH + f"vnuma=[{VNODE}]\nmaxmem=64\n",
            "g.cfg:3: key 'vnuma': expected vnode sizes that sum to maxmem, 64, got 32",
        ),
        (
            PVH + f"vnuma=[{VNODE}]\nmemory=16\n",
            "g.cfg:3: key 'vnuma': expected memory equal to maxmem (no PoD with vNUMA)",
        ),
        (
            PVH + f"vnuma=[{VNODE}]\nvcpus=2\n",
            "g.cfg:3: key 'vnuma': expected vnodes with 2 vcpus in all, got 1",
        ),
        (
            PVH + "vnuma=[['pnode=0','size=32','vcpus=0','vdistances=10,20']]",
            "g.cfg:3: key 'vnuma': expected vnode 0 with 1 vdistances, got '10,20'",
        ),
        (
            HVM + "vnuma=[['pnode=0','size=8','vcpus=0'],['pnode=0','size=8','vcpus=1']]",
            "g.cfg:3: key 'vnuma': expected a vnode 0 above the 8 MiB of video memory, got 8",
        ),
    ],
)
def test_errors_name_file_line_and_key(text, line):
    assert error_of(text).startswith(line)


@given(st.text(max_size=60) | st.text(alphabet="=+[],;\n'\"#\\x01 amvcpus", max_size=40))
def test_any_text_is_a_config_or_one_line(text):
    try:
        parse(PVH + text)
    except BadInputError as error:
        line = str(error)
    else:
        line = "g.cfg:"
    assert line.startswith("g.cfg:")
    assert "\n" not in line
