"""Mutators: of bytes, of lines, and of trees such as JSON, TOML and msgpack decode to."""

import copy
import math

NUMBERS = (
    0, 1, -1, 2, 3, 7, 8, 9, 10, 18, 19, 20, 63, 64, 127, 128, 255, 256, 511, 512, 4095, 4096,
    65535, 65536, 0x7FEF, 0x7FF0, 0x7FFF, 0x8000, 1 << 20, 1 << 24, (1 << 31) - 1, 1 << 31,
    (1 << 32) - 1, 1 << 32, (1 << 40) - 1, 1 << 40, 1 << 52, 1 << 62, (1 << 63) - 1, 1 << 63,
    (1 << 64) - 1, 1 << 64, 10**30, -(1 << 31), -(1 << 63), -(1 << 63) - 1,
)  # fmt: skip
REALS = (0.0, -0.0, 0.5, -1.5, 1e-300, 1e18, 1e300, math.inf, -math.inf, math.nan)
TEXTS = (
    "", " ", "0", "-1", "[/x]", "[bold]", "a" * 5000, "\x00", "\x1b[31m", "\x7f", "\x9b31m", "\n",
    "\r\n", "\t", "é", "\u202e", "\u2028", "\ud800", "\U0010ffff", "=1+1", "@x", "../x", "/", ".",
    "nan", "inf", "1e999", "0x", "0x1g", "1_000", "\u0661", "null", "true", "{}", "%s", "{0}",
    "p2m/1#1", "toolstack/1#1", "dom0", "domain", "-", "--", "1" * 5000,
)  # fmt: skip


def of_bytes(data, random, other=b""):
    """The bytes with one to four faults: bits, words, runs cut, doubled or foreign."""
    data = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 2, 4))):
        at = random.randrange(len(data) + 1)
        nr = random.choice((1, 2, 4, 8, 16, random.randint(1, 200)))
        what = random.randrange(9)
        if what == 0 and at < len(data):
            data[at] ^= 1 << random.randrange(8)
        elif what == 1 and at < len(data):
            data[at] = random.choice((0, 1, 0x7F, 0x80, 0xFF, 0x1B, 0x0A, random.randrange(256)))
        elif what == 2:
            width = random.choice((2, 4, 8))
            value = random.choice(NUMBERS) % (1 << 8 * width)
            at &= ~(width - 1)
            data[at : at + width] = value.to_bytes(width, random.choice(("little", "big")))
        elif what == 3:
            del data[at : at + nr]
        elif what == 4:
            data[at:at] = data[at : at + nr]
        elif what == 5:
            data[at:at] = random.randbytes(nr)
        elif what == 6:
            del data[at:]
        elif what == 7:
            begin = random.randrange(len(other) + 1)
            data[at : at + nr] = other[begin : begin + nr]
        else:
            data[at : at + nr] = bytes(len(data[at : at + nr]))
    return bytes(data)


def of_text(text, random, words=()):
    """The text with a line dropped, doubled, moved or written over, or a word of it replaced."""
    lines = text.splitlines(keepends=True) or [""]
    for _ in range(random.choice((1, 1, 2, 3))):
        at = random.randrange(len(lines))
        what = random.randrange(7)
        if what == 0 and len(lines) > 1:
            del lines[at]
        elif what == 1:
            lines.insert(at, random.choice(lines))
        elif what == 2:
            lines[at], lines[-1] = lines[-1], lines[at]
        elif what == 3:
            place = random.randrange(len(lines[at]) + 1)
            lines[at] = lines[at][:place] + random.choice(TEXTS) + lines[at][place:]
        else:
            lines[at] = _other_word(lines[at], random, words)
    return "".join(lines)


def _other_word(line, random, words):
    parts = line.split(" ")
    at = random.randrange(len(parts))
    new = random.choice((str(random.choice(NUMBERS)), random.choice(TEXTS)))
    if words and random.random() < 0.5:
        new = random.choice(words)
    parts[at] = new if random.random() < 0.7 else f"'{new}'\n"
    return " ".join(parts)


def of_tree(tree, random, words=(), real=False):
    """A copy of the tree with one to three values, keys or items changed; ``words`` may be keys."""
    tree = copy.deepcopy(tree)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        places = list(_places(tree))
        if not places:
            return tree
        holder, key = random.choice(places)
        value = holder[key]
        new = _other(value, random, real)
        what = random.random()
        if what < 0.12:
            del holder[key]
        elif what < 0.2 and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(value))
        elif what < 0.2:
            holder[random.choice(words or TEXTS)] = copy.deepcopy(value)
        elif what < 0.27:
            there, elsewhere = random.choice(places)
            if not any(place is there for place, _ in _places([value])):
                there[elsewhere] = copy.deepcopy(value)
        else:
            holder[key] = new
    return tree


def _places(tree):
    """(container, key) of everything in a tree."""
    if isinstance(tree, dict):
        items = list(tree.items())
    elif isinstance(tree, list):
        items = list(enumerate(tree))
    else:
        return
    for key, value in items:
        yield tree, key
        yield from _places(value)


def _other(value, random, real):
    """Something else: near the value as a rule, of another type now and then."""
    if random.random() < 0.2:
        return random.choice(
            (None, True, [], {}, [[]], "x", 0, -1, 1.5, b"x" if real else "x", {"x": 1}, [0] * 50)
        )
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return random.choice((*NUMBERS, value + 1, value - 1, value * 2, -value, value << 9))
    if isinstance(value, float):
        return random.choice(REALS)
    if isinstance(value, str):
        return random.choice((*TEXTS, value + random.choice(TEXTS), value[1:], value.upper()))
    if isinstance(value, bytes):
        return of_bytes(value, random)
    if isinstance(value, list):
        return random.choice((value[:-1], value[::-1], value + value, value[:1] * 20, []))
    if isinstance(value, dict):
        return dict(list(value.items())[:-1])
    return random.choice(NUMBERS)
