"""Comparison of two tasks: input, steps, outcome and cost.

Ids that differ in every run (of sub-tasks, of a model's messages and of its tool calls) are compared by position; times
and the names of deciders are not compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from minions.aio.task import AsyncTask
from minions.task import Task

NOTED = frozenset({"sent_at", "at", "by", "key", "approvals"})
COSTS = ("input_tokens", "output_tokens", "cost_microdollars", "cpu_seconds")
OF_A_STEP = ("kind", "name", "input", "status", "output", "error")


@dataclass(frozen=True, slots=True)
class Record:
    """A task with its journal. `outcomes` maps the ids of its sub-tasks to their outcomes."""

    task: Task | AsyncTask
    steps: list[dict[str, Any]]
    executions: list[dict[str, Any]]
    outcomes: Mapping[str, dict[str, Any]] = field(default_factory=dict)

    def cost(self) -> dict[str, Any]:
        """Total usage of all executions. Copied steps cost nothing."""
        used = {name: sum(run[name] or 0 for run in self.executions) for name in COSTS}
        copied = sum(step.get("copied_from") is not None for step in self.steps)
        return {**used, "executions": len(self.executions), "steps": len(self.steps), "copied_steps": copied}

    def function_versions(self) -> dict[int, str]:
        """Ids of the executed function versions, by step number."""
        return {step["number"]: version for step in self.steps if (version := step.get("function_version_id"))}


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference: of the task (`step` is None) or of a step; `what` is `step` if only one task has the step."""

    step: int | None
    what: str
    a: Any
    b: Any


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two tasks and all their differences. Costs, times and versions are shown but do not count as differences."""

    a: Record
    b: Record
    differences: list[Difference]

    @property
    def equal(self) -> bool:
        """True if input, steps and outcome are equal."""
        return not self.differences

    def of_step(self, number: int) -> list[str]:
        """Names of the differences in a step."""
        return [difference.what for difference in self.differences if difference.step == number]

    def as_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON."""
        return {
            "equal": self.equal,
            "tasks": [
                {
                    "id": record.task.id,
                    "agent": record.task.agent,
                    "agent_version": record.task.agent_version,
                    "state": record.task.state,
                    "function_versions": record.function_versions(),
                    "cost": record.cost(),
                }
                for record in (self.a, self.b)
            ],
            "differences": [
                {"step": each.step, "what": each.what, "a": each.a, "b": each.b} for each in self.differences
            ],
        }


def compare(a: Record, b: Record) -> Comparison:
    """Compare two tasks."""
    ours, theirs = _task(a), _task(b)
    differences = [Difference(None, name, ours[name], theirs[name]) for name in ours if ours[name] != theirs[name]]
    mine, other = _steps(a), _steps(b)
    for number in sorted(mine.keys() | other.keys()):
        differences += _of_step(number, mine.get(number), other.get(number))
    return Comparison(a, b, differences)


def _of_step(number: int, a: dict[str, Any] | None, b: dict[str, Any] | None) -> list[Difference]:
    if a is None or b is None:
        return [Difference(number, "step", a, b)]
    return [Difference(number, name, a[name], b[name]) for name in OF_A_STEP if a[name] != b[name]]


def _task(record: Record) -> dict[str, Any]:
    task, names = record.task, _names(record)
    given = task.messages if task.messages is not None else task.input
    facts = {"agent": task.agent, "input": given, "state": task.state, "output": task.output, "error": task.error}
    return {name: _renamed(value, names) for name, value in facts.items()}


def _steps(record: Record) -> dict[int, dict[str, Any]]:
    names = _names(record)
    return {step["number"]: _renamed(_plain(step, record.outcomes), names) for step in record.steps}


def _plain(step: dict[str, Any], outcomes: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the parts of a step that are compared."""
    plain = {name: step.get(name) for name in OF_A_STEP}
    if step["kind"] == "subtask":
        # The input is the sub-task's; its hash is compared.
        plain["input"] = step["request_hash"]
        ended = step["output"] if step.get("copied_from") else outcomes.get(str(step["child_id"]))
        plain["output"] = (ended or {}).get("output")
        plain["error"] = (ended or {}).get("error")
    elif step["kind"] == "model_call" and isinstance(plain["output"], dict):
        # The form of the turns, which a release may change.
        plain["output"] = {name: value for name, value in plain["output"].items() if name != "form"}
    elif step["kind"] == "function_call" and isinstance(plain["input"], dict):
        # The journal stores the function's version next to its arguments.
        plain["input"] = plain["input"].get("arguments")
    elif step.get("program") == step["number"] and isinstance(plain["input"], dict):
        # Beside its code, a program receives the time and a seed.
        plain["input"] = plain["input"].get("arguments")
    elif step["kind"] == "wait" and isinstance(plain["output"], dict):
        plain["output"] = {name: value for name, value in plain["output"].items() if name not in NOTED}
    if plain["error"]:
        plain["error"] = {name: value for name, value in plain["error"].items() if name != "decision"}
    return plain


def _names(record: Record) -> dict[str, str]:
    """Names by position for the ids that differ in every run."""
    names = {record.task.id: "(this task)"}
    numbers = count(1)
    for step in record.steps:
        if step["kind"] == "subtask":
            copied = (step["output"] or {}).get("task_id") if step.get("copied_from") else None
            names[str(copied or step["child_id"])] = f"(sub-task of step {step['number']})"
        message = _message(step)
        if isinstance(message.get("id"), str):
            names.setdefault(message["id"], f"(message of step {step['number']})")
        for block in _blocks(message):
            if isinstance(block, dict) and str(block.get("type")).endswith("tool_use"):
                names.setdefault(str(block.get("id")), f"(tool call {next(numbers)})")
    return names


def _message(step: dict[str, Any]) -> dict[str, Any]:
    """Return the message of a finished model call."""
    output = step.get("output")
    return output if step["kind"] == "model_call" and isinstance(output, dict) else {}


def _blocks(message: dict[str, Any]) -> list[Any]:
    content = message.get("content")
    return content if isinstance(content, list) else []


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return names.get(value, value)
    if isinstance(value, list):
        return [_renamed(item, names) for item in value]
    if isinstance(value, dict):
        return {name: _renamed(item, names) for name, item in value.items()}
    return value
