"""Open a trace file, whatever wrote it: the Python interface of ``shatterproof profile``."""

from __future__ import annotations

import mmap
from pathlib import Path

from deploy.profile import CPU_HZ
from deploy.profile.unpack import MARK_MAX, kind_of, other_kind, unpack
from protocols.errno import BadInputError
from services.trace.blocks import (
    frame_of,
    is_trace,
    read_layout,
    read_names,
    read_requests,
)
from services.trace.checked import RECORDED, Limits
from services.trace.frame import Trace
from services.trace.xen_frames import read_trace


def open_trace(path: str | Path, *, cpu_hz: float = CPU_HZ) -> Trace:
    """A trace of ours or a real xentrace (raw, .xz or .gz) as columnar frames.

    A trace of ours is mapped, not read: a column comes into memory when it is first asked for. A
    file that was cut off is read up to its last whole block or record; ``Trace.truncated`` says so
    and ``Trace.header["cut"]`` why. ``cpu_hz``: ticks per second of a xentrace's TSC.

    Raises:
        BadInputError: it cannot be read, or is neither.
    """
    source = str(path)
    data, cut = read_part(Path(path))
    own = is_trace(data)
    trace = own_trace(data, source) if own else read_trace(data, source, cpu_hz=cpu_hz)
    if cut:
        trace.truncated, trace.header["cut"] = True, cut
    return trace


def read_file(path: Path) -> memoryview:
    """The bytes of a file, mapped; unpacked if its first bytes say that it is an archive.

    Raises:
        BadInputError: it cannot be read or unpacked, or not all of it.
    """
    data, cut = read_part(path)
    if cut:
        raise BadInputError(cut)
    return data


def read_part(path: Path) -> tuple[memoryview, str]:
    """As ``read_file``; of an archive that was cut off what is in there, and a line about that.

    Raises:
        BadInputError: it cannot be read, is damaged, or nothing is in there.
    """
    try:
        with path.open("rb") as file:
            start = file.read(MARK_MAX)
            mark = kind_of(start)
            if other_kind(start):
                raise BadInputError(
                    f"{path}: a {other_kind(start)} archive; expected .xz, .gz, or none"
                )
            if mark is not None:
                data, cut = unpack(path, mark)
                return memoryview(data), cut
            if not start:
                return memoryview(b""), ""
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)), ""
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BadInputError(f"{path}: cannot be read: {reason}") from None


def own_trace(data: memoryview, source: str) -> Trace:
    """A trace of ours.

    Raises:
        BadInputError: another version, a file that breaks off in its header, or one that says what
            cannot be. Of a table that is said when one of its columns is first asked for.
    """
    header, blocks, cut = read_layout(data, source)
    names = read_names(data, blocks, source)
    limits = Limits(len(names), len(header["kinds"]))
    frames = {table: frame_of(data, blocks, table, limits, source) for table in RECORDED}
    return Trace(
        source=source,
        format="shatterproof",
        header={**header, "cut": cut},
        ticks_per_s=float(header["clock"]["ticks_per_s"]),
        kinds=header["kinds"],
        names=names,
        records=sum(frame.rows for frame in frames.values()),
        truncated=bool(cut),
        requests=read_requests(data, blocks, limits, source),
        messages=frames["messages"],
        updates=frames["updates"],
        events=frames["events"],
    )
