"""``python -m benchmarks.run``: every benchmark, one table, one JSON (out/bench.json).

python -m benchmarks.run --only build --only walker --repeat 3
"""

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.common import medians

AIMS = {
    "transport_ratio": ("at least 50", lambda value: value >= 50),
    "build_4gib_4k_ratio": ("10 or less", lambda value: value <= 10),
    "fleet_1000_seconds": ("under 30", lambda value: value < 30),
    "fleet_1000_pss_gib": ("under 12", lambda value: value < 12),
    "stress_schedules_per_s": ("2,000", lambda value: value >= 2000),
    "stress_jobs_ratio": ("at least 1.7", lambda value: value >= 1.7),
    "zoo_seconds": ("under 180", lambda value: value < 180),
    "stress_ray_recording_cost": ("under 0.10", lambda value: value < 0.10),
    "trace_recording_cost": ("under 0.10", lambda value: value < 0.10),
    "trace_local_recording_cost": ("under 0.10", lambda value: value < 0.10),
    "profile_summary_records_per_s": ("1,000,000", lambda value: value >= 1e6),
    "profile_page_mib": ("under 9.5", lambda value: value < 9.5),
    "profile_page_usable_ms": ("under 2,000", lambda value: value < 2000),
    "xentrace_10m_ratio": ("at least 1", lambda value: value >= 1),
}
RAY = ("transport", "fleet", "shatter_ray", "ray_real", "stress_ray", "recording")


def suites():
    """Name to (function of one repetition); Ray is imported only when it is needed."""
    from benchmarks import build, local, shatter, stress, walker

    def transport():
        from benchmarks import transport as module

        return {f"transport_{key}": value for key, value in module.measure().items()}

    def recording():
        from benchmarks import trace as module

        return module.measure_recording()

    def profile():
        from benchmarks import trace as module

        return module.measure_profile()

    def xentrace():
        from benchmarks import xentrace as module

        return module.measure()

    def fleet():
        from benchmarks import fleet as module

        return module.measure()

    def ray_real():
        from benchmarks import fleet as module

        return module.measure_real()

    return {
        "build": build.measure,
        "local": local.measure,
        "walker": walker.measure,
        "shatter_local": shatter.measure_local,
        "stress": stress.measure_local,
        "stress_jobs": stress.measure_jobs,
        "zoo": stress.measure_zoo,
        "profile": profile,
        "xentrace": xentrace,
        "transport": transport,
        "ray_real": ray_real,
        "shatter_ray": shatter.measure_ray,
        "stress_ray": stress.measure_ray,
        "recording": recording,
        "fleet": fleet,
    }


def machine():
    """What the figures were measured on."""
    return {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "load_before": os.getloadavg()[0],
    }


def run(names, repeat):
    """Every repetition of every suite; Ray is started once for all that need it."""
    chosen = {name: suite for name, suite in suites().items() if not names or name in names}
    results, cluster = {}, None
    try:
        for name, suite in chosen.items():
            if name in RAY and cluster is None:
                from deploy.cluster.runtime import RayCluster

                cluster = RayCluster()
            results[name] = []
            for number in range(repeat):
                begun = time.perf_counter()
                results[name].append(suite())
                took = time.perf_counter() - begun
                sys.stderr.write(f"{name} {number + 1}/{repeat}: {took:.1f} s\n")
    finally:
        if cluster is not None:
            cluster.close()
    return results


def shown(value):
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.2f}"


def rows(results):
    """(figure, median, lowest, highest, aim) of everything measured."""
    for repetitions in results.values():
        for key, value in medians(repetitions).items():
            every = [run[key] for run in repetitions]
            aim = ""
            if key in AIMS:
                text, reached = AIMS[key]
                aim = f"{text}: {'yes' if reached(value) else 'no'}"
            yield key, shown(value), shown(min(every)), shown(max(every)), aim


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=list(suites()), help="one suite")
    parser.add_argument("--repeat", type=int, default=5, help="repetitions (5)")
    parser.add_argument("--markdown", action="store_true", help="print the table as markdown")
    arguments = parser.parse_args()
    facts = machine()
    results = run(arguments.only, arguments.repeat)
    out = Path("out")
    out.mkdir(exist_ok=True)
    report = {"schema": "shatterproof.bench/1", "machine": facts, "results": results}
    (out / "bench.json").write_text(json.dumps(report, indent=2) + "\n")
    head = ("figure", "median", "lowest", "highest", "aim")
    if arguments.markdown:
        print("| " + " | ".join(head) + " |\n| --- | ---: | ---: | ---: | --- |")
        for row in rows(results):
            print("| " + " | ".join(row) + " |")
        return
    table = Table(*head, box=None)
    for row in rows(results):
        table.add_row(*row)
    console = Console()
    console.width = max(console.width, 110)
    console.print(table)


if __name__ == "__main__":
    main()
