"""Verdicts: what a run of a case says about the agent, at each level."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from orchestrator.cases.case import Case, Expectations
from shared.contracts.json_schema import violations
from shared.contracts.recording import RecordedStep, RecordedTask
from shared.contracts.strict_json import canonical, digest, first_difference, stable
from shared.tasks.queries import content_of

CALLS = ("tool_call", "function_call")


@dataclass(frozen=True, slots=True)
class Usage:
    """What a run used: steps, tokens, dollars, and seconds from its submission to its end."""

    steps: int
    tokens: int
    dollars: float
    seconds: float


def of_replay(case: Case, run: RecordedTask) -> list[str]:
    """Return the reasons why a run did not take the recorded path to the recorded outcome; none if it did."""
    if run.error and run.error["type"] == "recording_differs":
        return [str(run.error["message"])]
    faults = list(_missing_steps(case.task, run, ""))
    if run.state != case.task.state:
        faults.append(_another_state(case.task, run))
    elif (run.error or {}).get("type") != (case.task.error or {}).get("type"):
        faults.append(f"It failed with another error: {(run.error or {}).get('message')}")
    elif digest(run.output) != digest(case.task.output):
        faults.append(f"The output differs: {first_difference(case.task.output, run.output, 'output')}.")
    return faults


def of_shadow(case: Case, run: RecordedTask) -> list[str]:
    """Return the reasons why a run would not have had the recorded effects; none if it would."""
    if run.error and run.error["type"] == "would_have_called":
        return [str(run.error["message"])]
    recorded, made = (Counter(_unsafe_calls(task)) for task in (case.task, run))
    faults = [f"It did not call {call}, as the recording did." for call in (recorded - made)]
    if run.state != case.task.state:
        faults.append(_another_state(case.task, run))
    return faults


def of_expectations(expect: Expectations, run: RecordedTask, usage: Usage) -> list[str]:
    """Return what of the expectations does not hold."""
    if run.error and run.error["type"] == "would_have_called":
        return [str(run.error["message"])]
    faults: list[str] = []
    if expect.state is not None and run.state != expect.state:
        faults.append(f"It ended as {run.state}, not {expect.state}{_because(run)}")
    faults += _of_tools(expect, run)
    faults += _of_arguments(expect, run)
    faults += _of_limits(expect, usage)
    if "output" in expect.model_fields_set and digest(expect.output) != digest(run.output):
        faults.append(f"The output is not the expected one: {first_difference(expect.output, run.output, 'output')}.")
    if expect.output_schema is not None:
        found = violations(expect.output_schema, run.output)
        faults += [f"The output does not match: {fault['path']}: {fault['message']}." for fault in found]
    text = ("" if run.output is None else content_of(run.output)).casefold()
    faults += [f"The output does not contain {part!r}." for part in expect.text.contains if part.casefold() not in text]
    faults += [f"The output contains {part!r}." for part in expect.text.lacks if part.casefold() in text]
    return faults


def calls_of(task: RecordedTask) -> Iterator[RecordedStep]:
    """Yield the tool calls of a task and of those below it, in order."""
    for step in task.steps:
        if step.kind in CALLS:
            yield step
        elif step.task is not None:
            yield step
            yield from calls_of(step.task)


def arguments_of(step: RecordedStep) -> Any:
    """Return the arguments of a call."""
    if step.task is not None:
        return step.task.input
    request = step.request
    return request["arguments"] if isinstance(request, dict) and "arguments" in request else request


def steps_in(task: RecordedTask) -> Iterator[RecordedStep]:
    """Yield the steps of a task and of those below it."""
    for step in task.steps:
        yield step
        if step.task is not None:
            yield from steps_in(step.task)


def usage_of(run: RecordedTask, seconds: float) -> Usage:
    """Return what a run used."""
    steps = list(steps_in(run))
    used = [step.usage or {} for step in steps]
    tokens = sum(each.get("input_tokens") or 0 for each in used) + sum(each.get("output_tokens") or 0 for each in used)
    return Usage(len(steps), tokens, sum(step.cost_microdollars for step in steps) / 1e6, seconds)


def _missing_steps(recorded: RecordedTask, run: RecordedTask, where: str) -> Iterator[str]:
    made = {step.number: step for step in run.steps}
    for step in recorded.steps:
        found = made.get(step.number)
        if found is None:
            yield f"It ended before step {where}{step.number} of the recording: {step.kind} {step.name!r}."
            return
        if step.task is not None and found.task is not None:
            yield from _missing_steps(step.task, found.task, f"{where}{step.number}.")


def _unsafe_calls(task: RecordedTask) -> Iterator[str]:
    for step in steps_in(task):
        if step.effect == "unsafe" and step.error is None:
            yield f"{step.name} {canonical(stable(arguments_of(step)))}"


def _another_state(recorded: RecordedTask, run: RecordedTask) -> str:
    return f"It ended as {run.state}, and the recording as {recorded.state}{_because(run)}"


def _because(run: RecordedTask) -> str:
    return f": {run.error['message']}" if run.error else "."


def _of_tools(expect: Expectations, run: RecordedTask) -> Iterator[str]:
    called = [step.name for step in calls_of(run)]
    shown = ", ".join(called) or "none"
    yield from (f"It did not call {tool} (calls: {shown})." for tool in expect.tools.called if tool not in called)
    yield from (f"It called {tool}, which it must not." for tool in expect.tools.never if tool in called)
    rest = iter(called)
    if not all(tool in rest for tool in expect.tools.in_order):
        yield f"It did not call {', '.join(expect.tools.in_order)} in this order (calls: {shown})."
    if expect.tools.exactly is not None and called != expect.tools.exactly:
        yield f"Its calls are {shown}, not exactly {', '.join(expect.tools.exactly) or 'none'}."


def _of_arguments(expect: Expectations, run: RecordedTask) -> Iterator[str]:
    for step in calls_of(run):
        schema = expect.arguments.get(step.name)
        for fault in violations(schema, arguments_of(step)) if schema is not None else ():
            yield f"The arguments of {step.name} do not match: {fault['path']}: {fault['message']}."


def _of_limits(expect: Expectations, usage: Usage) -> Iterator[str]:
    for name in ("steps", "tokens", "dollars", "seconds"):
        most, used = getattr(expect.limits, name), getattr(usage, name)
        if most is not None and used > most:
            yield f"It used {json.dumps(round(used, 6))} {name}, and {json.dumps(most)} is the most."
