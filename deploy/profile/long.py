"""A xentrace that is too long for frames: read once, by two threads, in bounded memory."""

from __future__ import annotations

import mmap
import os
import queue
import struct
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from services.trace.xen_layout import CPU_CHANGE_HEADER

if TYPE_CHECKING:
    from services.trace.loops import Loop
    from services.trace.xen_stream import Batch

LONG_BYTES: Final = 32 << 20
"""A xentrace of more bytes, unpacked, is summarised in one pass unless a part is asked for."""
AHEAD: Final = 4
"""Batches that may wait."""
MAGIC: Final = struct.pack("<I", CPU_CHANGE_HEADER)


def long_data(path: Path) -> tuple[memoryview, str] | None:
    """The bytes of a file, if it is a xentrace of which a summary needs bounded memory.

    Of an archive that was cut off, what is in there, and a line about that.

    Raises:
        BadInputError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(MAGIC)) == MAGIC:
                if os.fstat(file.fileno()).st_size <= LONG_BYTES:
                    return None
                return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)), ""
    except OSError:
        pass
    # An archive, a trace of ours, a foreign file, or none: rarer, and they say what is wrong.
    from deploy.profile.open import is_trace, read_part  # noqa: PLC0415 (not for a raw xentrace)

    data, cut = read_part(path)
    return (data, cut) if len(data) > LONG_BYTES and not is_trace(data) else None


def long_report(
    data: memoryview,
    cut: str,
    source: str,
    *,
    cpu_hz: float,
    compiles: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """The report of a whole xentrace, with the views of a short one. ``cut``: as ``long_data``.

    ``compiles`` is told once if the loops have to be compiled first.

    Raises:
        BadInputError: it is none, or damaged.
    """
    from deploy.profile.native import Native  # noqa: PLC0415 (a short trace compiles nothing)
    from services.trace.xen_summary import summarise  # noqa: PLC0415

    told = cache(compiles or (lambda: None))

    @cache
    def runner(loop: Loop) -> Native:
        return Native(loop, told)

    found = summarise(
        data, source, cpu_hz=cpu_hz, give_back=give_back(data), runner=runner, pump=pump
    )
    if cut:
        found["truncated"], found["header"]["cut"] = True, cut
    return found


def give_back(data: memoryview) -> Callable[[int], None]:
    """Tells the kernel to forget a mapped file's pages before an offset; it reads them again."""
    mapped: Any = data.obj
    forgotten = 0

    def forget(offset: int) -> None:
        nonlocal forgotten
        size = offset // mmap.PAGESIZE * mmap.PAGESIZE
        first = forgotten if forgotten < size else 0
        if size > first and isinstance(mapped, mmap.mmap):
            mapped.madvise(mmap.MADV_DONTNEED, first, size - first)
        forgotten = size

    return forget


def pump(batches: Iterator[Batch], take: Callable[[Batch], None]) -> None:
    """Make batches in a thread of their own, take them here; the loops hold no lock of Python's."""
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(AHEAD)
    stopped = threading.Event()

    def make() -> None:
        last: BaseException | None = None
        try:
            for batch in batches:
                ready.put(batch)
                if stopped.is_set():
                    break
        except BaseException as error:  # noqa: BLE001 (raised where batches are taken)
            last = error
        ready.put(last)

    maker = threading.Thread(target=make, name="xentrace", daemon=True)
    maker.start()
    batch: Batch | BaseException | None = None
    try:
        while (batch := ready.get()) is not None:
            if isinstance(batch, BaseException):
                raise batch
            take(batch)
    finally:
        # After an error here the maker may be waiting for room: it ends with what is no batch.
        stopped.set()
        while isinstance(batch, tuple):
            batch = ready.get()
        maker.join()
