"""What traces say, shown and exported: pages, Perfetto, tables, comparisons."""

from typing import Final

CPU_HZ: Final = 2.6e9
"""Ticks per second of a xentrace's TSC, unless told otherwise."""
