"""The only consoles there are: whatever they are given is text, never markup, never an order."""

from __future__ import annotations

from typing import Any, Final, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from protocols.text import LINE_MAX, shown

WIDTH_MIN: Final = 120
"""Columns of a table that goes to a file or a pipe."""
TEXT_MAX: Final = 4096
"""Characters of one piece of text, such as a line of a story."""
BARS: Final = " ▁▂▃▄▅▆▇█"
BARS_ASCII: Final = str.maketrans(BARS, " .:-=+*#@")


class Terminal(Console):
    """A console that shows a string as it is, one line of it.

    Rich makes text of every string in ``render_str``: printed ones, cells, titles, live displays.
    """

    def __init__(self, file: TextIO | None = None, *, stderr: bool = False) -> None:
        super().__init__(
            file=file, stderr=stderr, markup=False, emoji=False, highlight=False,
            soft_wrap=not stderr,
        )  # fmt: skip
        if not self.is_terminal:
            self.width = max(self.width, WIDTH_MIN)

    def render_str(self, text: str, **how: Any) -> Text:
        """See ``Console.render_str``; nothing in the text is obeyed."""
        text = shown(text, TEXT_MAX)
        if not self.encoding.lower().startswith("utf"):
            text = text.translate(BARS_ASCII)
        how["markup"] = how["emoji"] = False
        return super().render_str(text, **how)


class Listing(Table):
    """A table without a frame, whose cells are short."""

    def __init__(self, title: str | None = None, *, header: bool = True) -> None:
        super().__init__(
            title=title, title_justify="left", box=None, pad_edge=False, header_style="bold",
            show_header=header,
        )  # fmt: skip

    def add_row(self, *cells: str, **how: Any) -> None:  # type: ignore[override]
        """See ``Table.add_row``; a cell that is too long is cut."""
        super().add_row(*(shown(cell, LINE_MAX) for cell in cells), **how)


def output_console(file: TextIO | None = None) -> Terminal:
    """Standard output: as wide as the terminal, and never narrow where there is none."""
    return Terminal(file)


def error_console() -> Terminal:
    """Standard error, for displays of what is going on."""
    return Terminal(stderr=True)
