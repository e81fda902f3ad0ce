"""The command that compares two tasks: diff."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from typing import Any

import typer

from minions import Comparison
from minions.comparison import Difference, Record
from orchestrator.commands.client import connect
from orchestrator.commands.output import AS_JSON, console, print_json, print_table, styled
from orchestrator.commands.task_ids import TASK

STYLES = {"-": "red", "+": "green", "@": "cyan"}
MAX_LINES = 60


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(diff)


def diff(
    a: str = TASK,
    b: str = TASK,
    as_json: bool = AS_JSON,
) -> None:
    """Compare two tasks: steps, outputs and costs; the exit code is 1 if steps or outputs differ."""
    with connect() as client:
        found = client.diff(a, b)
    if as_json:
        print_json(found.as_dict())
    else:
        print_comparison(found)
    if not found.equal:
        raise typer.Exit(1)


def print_comparison(found: Comparison) -> None:
    """Print two tasks side by side, and each difference as a unified diff."""
    print_table(("", "A", "B"), zip(_heads(), _facts(found.a), _facts(found.b), strict=True), empty="")
    console.print()
    print_table(("step", "kind", "name", "function version", "differs in"), _steps(found), empty="No steps.")
    for difference in found.differences:
        console.print()
        _print_difference(difference)
    console.print()
    console.print("No differences." if found.equal else f"Differences: {len(found.differences)}.")


def _heads() -> tuple[str, ...]:
    return ("task", "agent", "state", "steps", "tokens in", "tokens out", "cost", "cpu s", "executions")


def _facts(record: Record) -> tuple[Any, ...]:
    task, cost = record.task, record.cost()
    copied = f" ({cost['copied_steps']} copied)" if cost["copied_steps"] else ""
    return (
        task.id,
        f"{task.agent} v{task.agent_version}" if task.agent_version else task.agent,
        task.state,
        f"{cost['steps']}{copied}",
        cost["input_tokens"],
        cost["output_tokens"],
        f"${cost['cost_microdollars'] / 1e6:.6f}",
        round(cost["cpu_seconds"], 3),
        cost["executions"],
    )


def _steps(found: Comparison) -> Iterator[tuple[Any, ...]]:
    ours, theirs = ({step["number"]: step for step in record.steps} for record in (found.a, found.b))
    versions, other_versions = found.a.function_versions(), found.b.function_versions()
    for number in sorted(ours.keys() | theirs.keys()):
        step = ours.get(number) or theirs[number]
        differs = found.of_step(number)
        if differs == ["step"]:
            differs = ["only in A" if number in ours else "only in B"]
        version = None
        if number in versions and number in other_versions:
            version = "the same" if versions[number] == other_versions[number] else "another"
        yield number, step["kind"], step["name"], version, ", ".join(differs)


def _print_difference(difference: Difference) -> None:
    where = "task" if difference.step is None else f"step {difference.step}"
    console.print(styled((f"{where}: {difference.what}", "bold")))
    lines = list(difflib.unified_diff(_lines(difference.a), _lines(difference.b), "A", "B", n=2, lineterm=""))
    for line in lines[:MAX_LINES]:
        console.print(styled((line, STYLES.get(line[:1], ""))))
    if len(lines) > MAX_LINES:
        console.print(f"… {len(lines) - MAX_LINES} more lines; --json has all.")


def _lines(value: Any) -> list[str]:
    if value is None:
        return []
    return json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True).splitlines()
