"""Play the crash matrix and print its table.

    python -m tests.crash_matrix.run [--share 0.1] [--seed S] [--only TEXT] [--lanes N] [--list] [--json FILE]
                                     [--logs FOLDER]

Exits with 1 if a promise is broken. docs/crash-matrix.md explains the cells and the marks.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.crash_matrix.cells import VICTIMS, Cell, Strike, share_of
from tests.crash_matrix.matrix import Result, all_cells, lanes, play_all
from tests.crash_matrix.verdict import NEEDED, requests_made


def main() -> None:
    """Play the cells that the arguments name."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--share", type=float, default=1.0, help="of the cells, evenly spread (1)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="repeats a choice")
    parser.add_argument("--only", default="", metavar="TEXT", help="cells with this text in their names")
    parser.add_argument("--lanes", type=int, default=3, help="systems that play at the same time (3)")
    parser.add_argument("--list", action="store_true", help="name the cells, and play none")
    parser.add_argument("--json", type=Path, help="also write the result of each cell to this file")
    parser.add_argument("--logs", type=Path, help="also keep the output of the processes in this folder")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    begun = time.monotonic()
    with lanes(options.lanes, options.logs) as opened:
        cells = [cell for cell in all_cells(opened) if options.only in str(cell)]
        chosen = share_of(cells, options.share, options.seed) if options.share < 1 else cells
        if options.list:
            print("\n".join(map(str, chosen)))
            return
        print(f"seed {options.seed}, {len(chosen)} of {len(cells)} cells", flush=True)
        results = play_all(opened, chosen, report_cell)
        findings = [lane.findings() for lane in opened]
    print(f"\n{table(results)}\n")
    if options.json:
        options.json.write_text(json.dumps([as_json(result) for result in results], indent=1) + "\n")
    faults = [f"{result.cell}: {promise}" for result in results for promise in result.broken]
    faults += [f"the records: {found}" for lane in findings for found in lane]
    again = sum(len(result.again) for result in results)
    print(f"{len(results)} cells in {time.monotonic() - begun:.0f} s; {again} runs were disturbed and played again.")
    print("\n".join(faults) or "Every promise held.")
    sys.exit(bool(faults))


def report_cell(result: Result) -> None:
    """Print a line about a cell as soon as it has been played."""
    verdict = "; ".join(result.broken) or mark(result)
    again = f" (again: {', '.join(result.again)})" if result.again else ""
    print(f"{result.played.seconds:5.1f} s  {result.cell}: {verdict}{again}", flush=True)


def mark(result: Result) -> str:
    """Return a cell of the table: `ok`, and the cost of the kill."""
    if result.broken:
        return "**BROKEN**"
    extra = requests_made(result.played) - NEEDED
    notes = [f"+{extra} request"] if extra else []
    notes += ["asked"] if result.played.questions else []
    return ", ".join(["ok", *notes])


def table(results: Sequence[Result]) -> str:
    """Return the matrix: a row per point, a column per victim."""
    rows: dict[tuple[tuple[Strike, ...], str], dict[str, str]] = {}
    for result in results:
        before, last = result.cell.strikes[:-1], result.cell.strikes[-1]
        rows.setdefault((before, str(last.point)), {})[last.victim] = mark(result)
    lines: list[str] = []
    section: tuple[Strike, ...] | None = None
    for (first, point), marks in rows.items():
        if first != section:
            section = first
            lines += ["", f"After {Cell(first)}:"] if first else []
            lines += ["", f"| point | {' | '.join(VICTIMS)} |", f"|---|{'---|' * len(VICTIMS)}"]
        lines.append(f"| {point} | {' | '.join(marks.get(victim, '') for victim in VICTIMS)} |")
    return "\n".join(lines).strip()


def as_json(result: Result) -> dict[str, object]:
    """Return all facts about a cell, for a file."""
    played = result.played
    return {
        "cell": str(result.cell),
        "broken": result.broken,
        "again": result.again,
        "state": played.state,
        "requests": requests_made(played),
        "questions": played.questions,
        "claims": played.claims,
        "done": [[done.agent, done.what, done.phase, done.key] for done in played.done],
        "seconds": round(played.seconds, 2),
    }


if __name__ == "__main__":
    main()
