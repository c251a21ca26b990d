"""``stress --zoo``: list the entries, hunt one, hunt them all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from deploy.campaign.artifact import Counterexample
from deploy.campaign.chunks import Runner
from deploy.campaign.hunt import HuntResult, HuntTask, ZooRow, hunt_task
from deploy.cli import stress_render as render
from deploy.cli.files import write_json
from deploy.cli.stress_progress import CampaignDisplay
from deploy.cli.terminal import output_console
from deploy.stress.entry import ZooEntry, load_file
from deploy.zoo import entries, find
from protocols.errno import BadInputError

EXIT_VIOLATION: Final = 1
EXIT_NO_VERDICT: Final = 3
HUNT_TASK: Final = "deploy.campaign.hunt:hunt_task"


def zoo(options: dict[str, Any]) -> int:
    """list: 0. One entry: 1 if its bug was found, as for any violation. all: 0 if all were."""
    name: str = options["zoo"]
    if name == "list":
        return _list(options)
    texts: dict[str, str] = {}
    if name.endswith(".py"):
        path = Path(name)
        entry = load_file(path)
        texts[entry.name] = path.read_text(encoding="utf-8")
        chosen = [entry]
    else:
        chosen = list(entries().values()) if name == "all" else [find(name)]
    results = _hunt(chosen, texts, options)
    rows = [result.row for result in results]
    if options["json_path"] is not None:
        write_json(to_json(rows), options["json_path"])
    if options["json_path"] != "-":
        render.print_zoo(rows)
    if name == "all":
        good = all(row.found and row.clean for row in rows)
        return 0 if good else EXIT_VIOLATION
    return _one(results[0], options)


def hunt_all(options: dict[str, Any]) -> list[ZooRow]:
    """The rows of every entry, as ``--zoo all`` shows them."""
    return [result.row for result in _hunt(list(entries().values()), {}, options)]


def _one(result: HuntResult, options: dict[str, Any]) -> int:
    """The story of the one bug; the last line names its file."""
    from deploy.cli.stress import save, show  # noqa: PLC0415 (stress imports this module)

    example: Counterexample | None = result.example
    if example is None:
        return EXIT_NO_VERDICT
    path = save(example, options["save"])
    if options["json_path"] != "-":
        show(example, diagram=options["diagram"])
        output_console().print(str(path))
    return EXIT_VIOLATION


def to_json(rows: list[ZooRow]) -> dict[str, Any]:
    """The table as ``--json`` gives it."""
    return {"zoo": [msgspec.to_builtins(row) for row in rows]}


def _list(options: dict[str, Any]) -> int:
    found = [
        {
            "name": entry.name,
            "source": entry.source,
            "invariant": entry.invariant,
            "mechanism": entry.mechanism(),
            "workload": entry.workload.summary,
        }
        for entry in entries().values()
    ]
    if options["json_path"] is not None:
        write_json({"zoo": found}, options["json_path"])
    if options["json_path"] != "-":
        console = output_console()
        for each in found:
            console.print(f"{each['name']}  ({each['source']}; breaks {each['invariant']})")
            console.print(f"    {each['mechanism']}")
    return 0


def _hunt(
    chosen: list[type[ZooEntry]], texts: dict[str, str], options: dict[str, Any]
) -> list[HuntResult]:
    """Every entry hunted, in order; on workers with ``--jobs``.

    Raises:
        BadInputError: --seconds or --schedules, which a hunt chooses itself.
    """
    for flag in ("schedules", "seconds", "strategy", "lock", "clients", "ops", "domains"):
        if options[flag] is not None:
            raise BadInputError(f"--{flag}: the zoo's entries say that themselves")
    tasks = [
        msgspec.msgpack.encode(HuntTask(each.name, options["seed"], texts.get(each.name, "")))
        for each in chosen
    ]
    results: dict[int, HuntResult] = {}
    with CampaignDisplay() as display:
        for index, data in _runner(options)(tasks):
            results[index] = msgspec.msgpack.decode(data, type=HuntResult)
            display.note(f"{len(results)} of {len(tasks)} entries")
    return [results[index] for index in range(len(tasks))]


def _runner(options: dict[str, Any]) -> Runner:
    if options["jobs"] == 1:

        def here(payloads: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
            for index, payload in enumerate(payloads):
                yield index, hunt_task(payload)

        return here
    from deploy.cluster.pool import run_tasks  # noqa: PLC0415 (Ray takes a second to import)

    def spread(payloads: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
        return run_tasks(HUNT_TASK, payloads, jobs=options["jobs"], address=options["address"])

    return spread
