"""Play the fault scenarios and print the results.

    python -m tests.chaos.run [--tasks N] [--seed S] [--lease SECONDS] [--only NAME …] [--no-celery]
                               [--json FILE] [--logs FOLDER]

Exits with 1 if a promise is broken. docs/chaos.md explains each column.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
from dataclasses import asdict
from pathlib import Path

from tests.chaos import mixed
from tests.chaos.scenarios import BY_NAME, SCENARIOS, Result, play

COLUMNS = (
    "scenario",
    "tasks",
    "finished",
    "finished twice",
    "effects by fenced claims",
    "effects missing / double",
    "stuck",
    "illegal transitions",
    "recovery (s)",
    "longest pause (s)",
    "messages refused",
    "called more than once",
    "Celery: lost / doubled",
)


def main() -> None:
    """Play the scenarios that the arguments name."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog="\n".join(
            f"  {name:22} {what}"
            for name, what in [*((scenario.name, scenario.what) for scenario in SCENARIOS), (mixed.NAME, mixed.WHAT)]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tasks", type=int, default=2000, help="tasks per scenario (2000)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="repeats a run")
    parser.add_argument("--lease", type=float, default=3.0, help="seconds until a silent worker is lost (3)")
    parser.add_argument("--only", nargs="+", choices=[*BY_NAME, mixed.NAME], metavar="NAME", help="some of those below")
    parser.add_argument(
        "--celery", action=argparse.BooleanOptionalAction, default=True, help="play on plain Celery too"
    )
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    parser.add_argument("--logs", type=Path, help="also keep the output of the processes in this folder")
    options = parser.parse_args()
    if options.logs:
        options.logs.mkdir(parents=True, exist_ok=True)
    # Servers, mounts and folders are removed on exit.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    chosen = [scenario for scenario in SCENARIOS if not options.only or scenario.name in options.only]
    print(f"seed {options.seed}, {options.tasks} tasks per scenario, lease {options.lease:g} s\n")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    results: list[Result] = []
    for scenario in chosen:
        result = play(scenario, options.tasks, options.seed, options.lease, celery=options.celery, logs=options.logs)
        results.append(result)
        print(row(result), flush=True)
    if not options.only or mixed.NAME in options.only:
        together = mixed.play(options.tasks, options.seed, options.lease, logs=options.logs)
        results.append(together)
        print(row(together), flush=True)
        print(f"\n{mixed.NAME}: {together.summary}")
    if options.json:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n")
    print()
    broken = [f"{result.name}: {promise}" for result in results for promise in result.broken()]
    print("\n".join(broken) or "Every promise held.")
    sys.exit(bool(broken))


def row(result: Result) -> str:
    """Return a result as a line of the table."""
    found = result.findings
    if found is None:
        return f"| {result.name} | skipped: {result.skipped} {'|' * (len(COLUMNS) - 1)}"
    cells = (
        result.name,
        result.tasks,
        found.finished,
        found.finished_twice,
        found.fenced_effects,
        f"{found.effects_missing} / {found.effects_double}",
        found.stuck,
        found.illegal_transitions,
        "–" if result.recovery is None else f"{result.recovery:.1f}",
        "–" if result.pause is None else f"{result.pause:.1f}",
        result.refused,
        found.repeated_calls,
        f"{result.celery.lost} / {result.celery.doubled}" if result.celery else "–",
    )
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main()
