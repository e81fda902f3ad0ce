"""Why a task was where it was at a moment of the past, from its journal and its claims.

Rules, limits, workers and the queue of that time are not recorded with a task, so the answer says where it stops.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

from minions.errors import MinionsError
from orchestrator.commands.journal_views import History, moment, time_of
from orchestrator.commands.output import zoned
from shared.errors import InvalidInput

NOT_RECORDED = "not_recorded"
QUEUE = (
    "Whether it waited for a slot, a pause, a limit or its turn at that time is not recorded with the task; the audit "
    "log has pauses and limits."
)
BETWEEN = {
    "retried": "an attempt had failed, and the next one had not begun",
    "handed_back": "a worker had handed it back, and no other had claimed it",
    "lost": "its worker was lost, and no other had claimed it",
    "suspended": "it had suspended",
}
DOING = {
    "model_call": "called the model",
    "tool_call": "called the tool",
    "function_call": "ran the function",
    "subtask": "waited for the sub-task of",
}


def why_at(history: History, at: str) -> dict[str, Any]:
    """Explain where a task was at a step or time: `state`, `reason`, `sentence`, `at`, `facts`, `not_known`.

    Args:
        at: the number of a step, whose beginning is meant; or a local or zoned time in ISO 8601.

    Raises:
        InvalidInput: there is no such step, or the time is none or before the task.
    """
    if re.fullmatch("[0-9]{1,9}", at):
        step = history.step(int(at))
        if step.get("copied_from"):
            raise InvalidInput(
                f"Step {at} was copied from task {step['copied_from']}, which made it: ask about that task."
            )
        return _answer(history, moment(step["started_at"]), step)  # type: ignore[arg-type]
    return _answer(history, _time(at), None)


def _time(written: str) -> datetime:
    try:
        found = zoned(datetime.fromisoformat(written))
    except (ValueError, MinionsError):
        found = None
    if found is None:
        raise InvalidInput(
            f"--at must be the number of a step, or a time such as 2026-11-22T21:56:44, not {written!r}."
        )
    return found


def _answer(history: History, at: datetime, step: dict[str, Any] | None) -> dict[str, Any]:
    task = history.task
    if at < task.created_at:
        raise InvalidInput(f"Task {task.id} did not exist at that time: it was submitted at {_local(task.created_at)}.")
    state, reason, sentence, not_known = _where(history, at)
    open_steps = [each for each in history.steps if _is_open(each, at)]
    if step is not None:
        sentence = f"{_about(history, step)} {sentence}"
    facts = {"step": step and step["number"], "open_steps": [each["number"] for each in open_steps]}
    if any(each["status"] == "failed" or each["claim"] > 1 for each in open_steps):
        not_known = [*not_known, "A step that was tried again has the times of its last attempt only."]
    return {
        "task_id": task.id,
        "at": at.isoformat(),
        "state": state,
        "reason": reason,
        "sentence": sentence,
        "facts": facts,
        "not_known": not_known,
    }


def _where(history: History, at: datetime) -> tuple[str, str, str, list[str]]:
    """Return state, reason, sentence, and what is not known."""
    task = history.task
    if task.finished_at is not None and at >= task.finished_at:
        return task.state, task.state, f"It had ended: {task.state} since {_local(task.finished_at)}.", []
    begun = [each for each in history.executions if _before(each["started_at"], at)]
    if not begun:
        return "pending", NOT_RECORDED, "No worker had claimed it yet.", [QUEUE]
    last = begun[-1]
    if not _before(last["finished_at"], at):
        doing = "; ".join(_doing(each) for each in history.steps if _is_open(each, at))
        what = f" It {doing}." if doing else " It was between two steps."
        return "running", "running", f"Worker {last['worker']} was running it in claim {last['claim']}.{what}", []
    return _between(history, last, at)


def _between(history: History, last: dict[str, Any], at: datetime) -> tuple[str, str, str, list[str]]:
    waits = [each for each in history.steps if _is_open(each, at) and each["kind"] in ("wait", "subtask")]
    if waits:
        reason = _reason(waits[0])
        return "waiting", reason, f"It {'; '.join(_doing(each) for each in waits)}.", []
    error = (last["error"] or {}).get("message")
    said = f": {error}" if error else ""
    what = BETWEEN.get(last["outcome"], f"claim {last['claim']} had ended ({last['outcome']})")
    return "waiting", str(last["outcome"]), f"After claim {last['claim']}, {what}{said}.", [QUEUE]


def _about(history: History, step: dict[str, Any]) -> str:
    took = time_of(history, step)["seconds"]
    ended = f"{step['status']} after {took:.3f} s" if took is not None else "not finished"
    error = (step["error"] or {}).get("message")
    return f"Step {step['number']} ({step['kind']} {step['name']}) began, {ended}{f': {error}' if error else ''}."


def _reason(step: dict[str, Any]) -> str:
    asked = step["input"] if isinstance(step["input"], dict) else {}
    if step["kind"] == "subtask":
        return "subtask"
    return next((name for name in ("approval", "signal") if asked.get(name) is not None), "timer")


def _doing(step: dict[str, Any]) -> str:
    number, name = step["number"], step["name"]
    if step["kind"] == "wait":
        if _reason(step) == "approval":
            return f"waited for an approval of {name} (step {number})"
        return f"waited for {name!r} (step {number})"
    child = f", task {step['child_id']}" if step["child_id"] else ""
    if step.get("program") == number:
        return f"ran the program of step {number}"
    return f"{DOING.get(step['kind'], step['kind'])} {name} (step {number}{child})"


def _is_open(step: dict[str, Any], at: datetime) -> bool:
    own = not step.get("copied_from")
    return own and _before(step["started_at"], at) and not _before(step["finished_at"], at)


def _before(text: str | None, at: datetime) -> bool:
    """Return whether a moment of the record is at or before a time; an open end is not."""
    found = moment(text)
    return found is not None and found <= at


def _local(when: datetime) -> str:
    return when.astimezone().isoformat(sep=" ", timespec="milliseconds")
