"""All systems on the same private servers in one run: `make bench`.

    python -m benchmarks [--quick] [--only NAME …] [--systems TEXT …] [--rounds N] [--output FOLDER]

Prints the tables, and writes them to the folder as `report.json`, `report.md` and `report.svg`.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.environment import Environment
from benchmarks.machine import describe
from benchmarks.picture import draw
from benchmarks.report import Report, machine_line
from benchmarks.samples import Figures, Table
from benchmarks.systems import SYSTEMS, System
from benchmarks.workloads import WORKLOADS

RESULTS = Path(__file__).with_name("results")


def main() -> None:
    """Run the chosen workloads, print the tables and write the files. Exit with 1 if a system failed."""
    options = parse()
    report = run(options)
    print(report.as_text())
    write(report, options.output)
    print(f"written to {options.output}: report.json, report.md, report.svg")
    sys.exit(1 if has_failures(report) else 0)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser("benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer tasks and rounds: three minutes, low precision")
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), help="these workloads")
    parser.add_argument(
        "--systems",
        nargs="+",
        metavar="TEXT",
        type=systems_named,
        default=[SYSTEMS],
        help="systems whose names contain one of these texts",
    )
    parser.add_argument("--rounds", type=int, help="repetitions of each measurement (3; quick: 1)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the files")
    options = parser.parse_args(arguments)
    options.systems = tuple(kind for kind in SYSTEMS if any(kind in named for named in options.systems))
    return options


def systems_named(text: str) -> list[type[System]]:
    """Return the systems whose names contain the text.

    Raises:
        ArgumentTypeError: there is none.
    """
    named = [kind for kind in SYSTEMS if text in kind.name]
    if not named:
        raise argparse.ArgumentTypeError(f"no system is named {text!r}: {'; '.join(kind.name for kind in SYSTEMS)}")
    return named


def run(options: argparse.Namespace) -> Report:
    """Measure."""
    machine = describe()
    tables: list[Table] = []
    with Environment() as environment:
        bench = Bench(environment, options.quick, options.rounds or (1 if options.quick else 3), options.systems)
        for name in WORKLOADS:
            if name in options.only:
                print(f"{name} ...", file=sys.stderr, flush=True)
                tables += WORKLOADS[name].run(bench)
        machine |= {**environment.versions(), "rounds": bench.rounds, "load_after": round(os.getloadavg()[0], 2)}
        systems = {kind.name: {"keeps": kind.keeps, "settings": kind.settings} for kind in bench.chosen}
    kept = {name: about for name, about in systems.items() if name not in bench.left_out}
    return Report(machine, tables, bench.left_out, kept)


def write(report: Report, folder: Path) -> None:
    """Write the report in three forms."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(report.as_json())
    (folder / "report.md").write_text(report.as_markdown())
    figures = [table for table in report.tables if isinstance(table, Figures)]
    (folder / "report.svg").write_text(draw(figures, machine_line(report.machine)))


def has_failures(report: Report) -> bool:
    """Return whether a system that is installed could not be measured."""
    failed = any(samples.failures for table in report.tables if isinstance(table, Figures)
                 for samples in table.samples.values())  # fmt: skip
    return failed or any(not reason.startswith("not installed") for reason in report.left_out.values())


if __name__ == "__main__":
    main()
