"""Foreign text as people may see it: one line, nothing hidden, nothing that is obeyed.

Names, paths and messages come from files of others. Whatever shows them goes through ``shown``;
the other functions are for media that would take some printable characters as orders.
"""

from __future__ import annotations

import re
from typing import Final

LINE_MAX: Final = 300
"""Characters of a line that quotes others."""
NAME_MAX: Final = 64
"""Characters of a name in a table or a drawing."""
FILE_NAME_MAX: Final = 100
MARK: Final = "[...]"
"""Stands for what was cut."""

_SHORT: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_BYTES: Final = range(0xDC80, 0xDD00)
"""How ``os.fsdecode`` keeps a byte that is not UTF-8: 0xDC00 above it."""
_INVISIBLE: Final = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u3164\ufe00-\ufe0f\uffa0]")
"""Letters and marks by their category, yet nothing to see."""
_MERMAID: Final = re.compile(r"""[#;<>&%$"`]""")
_FORMULA: Final = ("=", "+", "-", "@")
_NO_FILE_NAME: Final = re.compile(r"[^A-Za-z0-9._-]")


def shown(text: str, limit: int = LINE_MAX) -> str:
    r"""Text on one line: what cannot be seen as ``\n``, ``\x1b`` or ``\u202e``; at most ``limit``.

    Escaped are control and format characters, line separators, blanks other than the space, bytes
    that are not UTF-8, surrogates, and characters without a glyph. What is too long is cut in the
    middle, since both its beginning (a file) and its end (what is wrong) tell something. Text that
    was shown is shown as it is.
    """
    if len(text) <= limit and text.isprintable() and not _INVISIBLE.search(text):
        return text
    # No character becomes shorter: of a long text its ends will do.
    if len(text) > 2 * limit:
        text = text[:limit] + text[-limit:]
    units = [_visible(each) for each in text]
    if sum(map(len, units)) <= limit:
        return "".join(units)
    room = max(limit - len(MARK), 0)
    tail = _within(units[::-1], room // 2)
    head = _within(units, room - sum(map(len, tail)))
    return "".join(head) + MARK + "".join(tail[::-1])


def _visible(character: str) -> str:
    code = ord(character)
    if character.isprintable() and not _INVISIBLE.match(character):
        return character
    if character in _SHORT:
        return _SHORT[character]
    if code in _BYTES:
        return f"\\x{code - 0xDC00:02x}"
    if code < 1 << 8:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 1 << 16 else f"\\U{code:08x}"


def _within(units: list[str], room: int) -> list[str]:
    """The first units that fit, none of them in part."""
    for at, unit in enumerate(units):
        room -= len(unit)
        if room < 0:
            return units[:at]
    return units


def mermaid_text(text: str, limit: int = LINE_MAX) -> str:
    """Text of a Mermaid diagram, on one line and all of it text.

    What would end a statement, or begin a comment, a directive, HTML or a formula, stands as the
    entity of its number.
    """
    return _MERMAID.sub(lambda found: f"#{ord(found[0])};", shown(text, limit))


def csv_text(text: str) -> str:
    """Text of a CSV cell that no spreadsheet takes for a formula; quoting is the writer's."""
    text = shown(text)
    return f"'{text}" if text.startswith(_FORMULA) else text


def file_name(text: str) -> str:
    """Text as a part of a file's name: no directory, no blank, never hidden, never empty."""
    name = _NO_FILE_NAME.sub("_", text)[:FILE_NAME_MAX]
    return f"_{name}" if not name or name[0] in ".-" else name
