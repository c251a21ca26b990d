"""The live display: phase, domains done, pages by order, messages a second; on a terminal only."""

from __future__ import annotations

import time
from collections import Counter
from types import TracebackType
from typing import Self

from rich.live import Live

from deploy.cli.terminal import Listing, Terminal, error_console
from protocols.frames import ORDER_NAMES
from protocols.message import Message
from protocols.toolstack import DomainResult

REFRESH_SECONDS = 0.1


class ProgressDisplay:
    """Watches a run; draws on stderr if that is a terminal, else costs a few additions."""

    def __init__(self, nr_domains: int, console: Terminal | None = None) -> None:
        self._console = console or error_console()
        self._live: Live | None = None
        self._nr_domains = nr_domains
        self._phase = ""
        self._done = 0
        self._failed = 0
        self._pages: Counter[int] = Counter()
        self._messages = 0
        self._rate = 0.0
        self._drawn_at = time.monotonic()
        self._drawn_messages = 0

    def __enter__(self) -> Self:
        """Start drawing."""
        if self._console.is_terminal:
            self._live = Live(
                self._draw(), console=self._console, transient=True, auto_refresh=False
            )
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Take the display away."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def phase(self, name: str) -> None:
        """A phase begins."""
        self._phase = name
        self._done = self._failed = 0
        self._redraw(force=True)

    def delivered(self, nr: int) -> None:
        """So many messages were delivered in all."""
        self._messages = nr
        self._redraw()

    def replied(self, reply: Message) -> None:
        """A reply for the client has come in."""
        if isinstance(reply, DomainResult):
            self._done += 1
            self._failed += bool(reply.error)
            for order, nr in reply.populated.items():
                self._pages[order] += nr
            self._redraw()

    def _redraw(self, *, force: bool = False) -> None:
        now = time.monotonic()
        if self._live is None or (not force and now - self._drawn_at < REFRESH_SECONDS):
            return
        if now > self._drawn_at:
            self._rate = (self._messages - self._drawn_messages) / (now - self._drawn_at)
        self._drawn_at, self._drawn_messages = now, self._messages
        self._live.update(self._draw(), refresh=True)

    def _draw(self) -> Listing:
        pages = "  ".join(
            f"{ORDER_NAMES.get(order, order)} {nr:,}"
            for order, nr in sorted(self._pages.items(), reverse=True)
        )
        failed = f" ({self._failed} failed)" if self._failed else ""
        table = Listing(header=False)
        table.add_row("phase", self._phase)
        table.add_row("domains", f"{self._done} of {self._nr_domains}{failed}")
        table.add_row("pages", pages or "-")
        table.add_row("messages", f"{self._messages:,} ({self._rate:,.0f}/s)")
        return table
