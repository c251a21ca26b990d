"""The soak's log: one line of JSON a campaign, only ever appended to, and its summary."""

import fcntl
import json
from collections import Counter, defaultdict
from pathlib import Path

GOOD = ("clean", "no verdict", "skipped")
"""Verdicts of a campaign that say nothing against the program: see ``run.judge``."""


class Log:
    """The records of one soak. Held by one process at a time."""

    def __init__(self, path, seed):
        self._path = path
        self.seed = seed
        self.records = {}
        self._file = None

    def read(self):
        """What earlier runs found: the last record of each campaign of this seed."""
        text = self._path.read_text() if self._path.exists() else ""
        for line in text.splitlines():
            record = json.loads(line) if line.endswith("}") else {}
            if record.get("soak_seed") == self.seed:
                self.records[record["campaign"]] = record
        return self

    def open(self):
        """Append from here on; a line that a killed run left unfinished goes.

        Raises:
            BlockingIOError: another process has it open.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("ab+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise
        self._file.seek(0)
        data = self._file.read()
        self._file.truncate(data.rfind(b"\n") + 1)
        return self.read()

    def add(self, record):
        """Keep a campaign's record, on disk before this returns."""
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()
        self.records[record["campaign"]] = record

    def close(self):
        """Let others have it."""
        if self._file is not None:
            self._file.close()

    def schedules(self):
        """Schedules run in all campaigns."""
        return sum(record["schedules"] for record in self.records.values())

    def failed(self):
        """Records that say something is wrong, by campaign."""
        records = sorted(self.records.values(), key=lambda record: record["campaign"])
        return [record for record in records if record["verdict"] not in GOOD]


def summary(log):
    """Lines: totals, schedules by workload, format and lock, by faults and strategy, failures."""
    records = list(log.records.values())
    verdicts = Counter(record["verdict"] for record in records)
    faulty = sum(record["schedules"] for record in records if record["faults"] != "none")
    seconds = sum(record["seconds"] for record in records)
    revisions = sorted({record["revision"] for record in records})
    yield (
        f"seed {log.seed}: {len(records):,} campaigns, {log.schedules():,} schedules "
        f"({faulty:,} with faults), {seconds:,.0f} s of campaigns, of {', '.join(revisions)}"
    )
    yield ", ".join(f"{nr:,} {verdict}" for verdict, nr in verdicts.most_common())
    yield ""
    yield from _matrix(records)
    for key in ("faults", "strategy"):
        yield ""
        by = Counter()
        for record in records:
            by[record[key]] += record["schedules"]
        yield f"{key}: " + ", ".join(f"{name} {nr:,}" for name, nr in by.most_common())
    skipped = Counter(
        f"{record['workload']} {record['paging']}: {record['message']}"
        for record in records
        if record["verdict"] == "skipped"
    )
    for reason, nr in skipped.items():
        yield f"skipped: {nr} of {reason}"
    for record in log.failed():
        yield line_of(record)


def _matrix(records):
    """Schedules of each workload and format, by lock, without and with faults."""
    cells = defaultdict(Counter)
    columns = sorted({record["lock"] for record in records})
    for record in records:
        column = (record["lock"], record["faults"] != "none")
        cells[record["workload"], record["paging"]][column] += record["schedules"]
    yield f"{'schedules without + with faults':32}" + "".join(f"{lock:>18}" for lock in columns)
    for (workload, paging), row in sorted(cells.items()):
        shown = (f"{row[lock, False]:,} + {row[lock, True]:,}" for lock in columns)
        yield f"{workload:20}{paging:12}" + "".join(f"{each:>18}" for each in shown)


def line_of(record):
    """A failure on one line, with what repeats it."""
    where = f"campaign {record['campaign']}: {record['verdict']}"
    what = str(record["message"]).strip().splitlines()[-1:] or [""]
    if record["file"] and Path(record["file"]).suffix == ".json":
        return f"{where}: {what[0]}: shatterproof stress --replay {record['file']}"
    return f"{where}: {what[0]}: {record['command']}"
