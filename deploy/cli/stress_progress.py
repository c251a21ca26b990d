"""The live line of a campaign: schedules, distinct states, operations, violations, rate."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.live import Live

from deploy.campaign.chunks import Totals
from deploy.cli.terminal import Terminal, error_console

REFRESH_SECONDS = 0.2


class CampaignDisplay:
    """Draws on stderr if that is a terminal, else does nothing."""

    def __init__(self, console: Terminal | None = None) -> None:
        self._console = console or error_console()
        self._live: Live | None = None
        self._begun = self._drawn = time.monotonic()

    def __enter__(self) -> Self:
        """Start drawing."""
        if self._console.is_terminal:
            self._live = Live("", console=self._console, transient=True, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Take the line away."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def update(self, totals: Totals) -> None:
        """A chunk has come in."""
        now = time.monotonic()
        if self._live is None or now - self._drawn < REFRESH_SECONDS:
            return
        self._drawn = now
        rate = totals.nr_schedules / max(now - self._begun, 1e-9)
        text = (
            f"{totals.nr_schedules:,} schedules ({len(totals.signatures):,} distinct), "
            f"{len(totals.states):,} states, {totals.nr_operations:,} operations, "
            f"{1 if totals.failure else 0} violations, {rate:,.0f}/s"
        )
        self._live.update(text, refresh=True)

    def note(self, text: str) -> None:
        """Say what is going on."""
        if self._live is not None:
            self._live.update(text, refresh=True)
