"""The syntax of xl.cfg(5): text to values with line numbers; what keys mean is not known here.

``key = value`` and ``key += value``, ended by a newline or ``;``. A value is a string in single or
double quotes with C escapes, a number, which is a string without quotes, or a list of values in
brackets over any number of lines, a comma after the last one allowed. ``#`` starts a comment.

All that xl takes (tools/libs/util/libxlu_cfg_l.l and _y.y) means the same here. Taken beyond it,
as it can mean one thing only: CRLF, a byte order mark, a comment that the file ends in, 0xABCD in
capitals, and the numeric escapes that xl's manual promises.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn, TypeAlias

from protocols.errno import BadInputError

if TYPE_CHECKING:
    from collections.abc import Iterator

Value: TypeAlias = "str | list[Value]"

KEY: Final = r"[a-z][a-z0-9._]*"
NUMBER: Final = re.compile(
    r"[ \t\n\v\f\r]*([+-]?)(?:0[xX]([0-9a-fA-F]{1,16})|0([0-7]{0,21})|([1-9][0-9]{0,18}))"
)
"""What ``strtol`` with base 0 takes whole: blanks, a sign, hexadecimal, octal or decimal."""
NUMBER_MAX: Final = (1 << 63) - 1
DEPTH_MAX: Final = 16
TOKEN: Final = re.compile(
    rf"""(?P<skip>[ \t\r]+|\#[^\n]*)
      | (?P<number>[0-9][0-9a-fA-FxX]*)
      | (?P<word>{KEY})
      | (?P<string>'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")
      | (?P<sign>\+=|[=\[\],;\n])""",
    re.VERBOSE,
)
END: Final = "the end of the file"
ESCAPE: Final = re.compile(r"\\(x[0-9a-fA-F]{2}|[0-7]{1,3}|.)")
ESCAPES: Final = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


@dataclass(frozen=True, slots=True)
class Setting:
    """A key's value, what begins a complaint about it, and whether ``+=`` made it."""

    value: Value
    where: str
    added: bool = False


def read_settings(text: str, source: str) -> dict[str, Setting]:
    """Every assignment of the file, in order of first appearance; a later one replaces.

    Raises:
        BadInputError: one line ``FILE:LINE: key 'KEY': expected ..., got ...``.
    """
    return _Reader(text, source).settings()


def number_of(text: str) -> int | None:
    """The number that a string spells for ``strtol`` with base 0; None if there is more, or none.

    Blanks may be before a number but not after it, and it fits 64 bits with its sign.
    """
    match = NUMBER.fullmatch(text)
    if match is None:
        return None
    sign, hexadecimal, octal, decimal = match.groups()
    if hexadecimal:
        number = int(hexadecimal, 16)
    else:
        number = int(decimal) if decimal else int(octal or "0", 8)
    number = -number if sign == "-" else number
    return number if -NUMBER_MAX <= number <= NUMBER_MAX else None


class _Reader:
    """Recursive descent with one token of look-ahead, which ``_text`` and ``_kind`` hold."""

    def __init__(self, text: str, source: str) -> None:
        self._source = source
        self._line = 1
        self._key = ""
        self._tokens = _tokens(text.removeprefix("\ufeff"))
        self._kind, self._text = next(self._tokens)

    def settings(self) -> dict[str, Setting]:
        found: dict[str, Setting] = {}
        while self._text != END:
            if self._text in ("\n", ";"):
                self._next()
                continue
            key, line = self._expect("word", "a key"), self._line
            self._key = key
            sign = self._expect("sign", "= or +=", "=", "+=")
            value = self._value()
            if self._text not in ("\n", ";", END):
                self._fail("the end of the line or ;", self._text)
            if sign == "+=" and key in found:
                value = self._append(found[key].value, value)
            found[key] = Setting(value, f"{self._source}:{line}: key {key!r}", added=sign == "+=")
            self._key = ""
        return found

    def _append(self, old: Value, new: Value) -> Value:
        if isinstance(old, list) and isinstance(new, list):
            return [*old, *new]
        if not isinstance(old, str) or not isinstance(new, str):
            self._fail("+= of two lists or two strings", f"{_kind(old)} += {_kind(new)}")
        return old + new

    def _value(self, depth: int = 0) -> Value:
        kind, text = self._kind, self._text
        if kind == "sign" and text == "[":
            if depth == DEPTH_MAX:
                self._fail(f"lists nested at most {DEPTH_MAX} deep", "one more")
            return self._list(depth + 1)
        if kind not in ("number", "string"):
            self._fail("a quoted string, a number or a list", text)
        self._next()
        return text if kind == "number" else _whole(ESCAPE.sub(_unescape, text[1:-1]))

    def _list(self, depth: int) -> Value:
        items: list[Value] = []
        self._next_in_list()
        while self._text != "]":
            items.append(self._value(depth))
            self._skip_newlines()
            if self._text == ",":
                self._next_in_list()
            elif self._text != "]":
                self._fail(", or ] in a list", self._text)
        self._next()
        return items

    def _next_in_list(self) -> None:
        self._next()
        self._skip_newlines()

    def _skip_newlines(self) -> None:
        while self._text == "\n":
            self._next()

    def _expect(self, kind: str, expected: str, *texts: str) -> str:
        text = self._text
        if self._kind != kind or (texts and text not in texts):
            self._fail(expected, text)
        self._next()
        return text

    def _next(self) -> None:
        if self._text == "\n":
            self._line += 1
        self._kind, self._text = next(self._tokens)

    def _fail(self, expected: str, got: str) -> NoReturn:
        about = f"key {self._key!r}: " if self._key else ""
        shown = "the end of the line" if got == "\n" else got
        raise BadInputError(f"{self._source}:{self._line}: {about}expected {expected}, got {shown}")


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    """(kind, text) of each token; a foreign one ends the stream, as no rule accepts it."""
    place = 0
    while place < len(text):
        match = TOKEN.match(text, place)
        if match is None:
            yield "foreign", text[place : place + 80].split("\n", 1)[0].strip()[:40]
            return
        place = match.end()
        kind = match.lastgroup or ""
        if kind != "skip":
            yield kind, match.group()
    yield "end", END


def _kind(value: Value) -> str:
    return "a list" if isinstance(value, list) else "a string"


def _whole(text: str) -> str:
    """Text that can be encoded: a byte that is not UTF-8 becomes its number, as it is shown."""
    if text.isascii():
        return text
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _unescape(match: re.Match[str]) -> str:
    code = match[1]
    if code[0] == "x" and len(code) > 1:
        return chr(int(code[1:], 16))
    return chr(int(code, 8)) if code[0] in "01234567" else ESCAPES.get(code, code)
