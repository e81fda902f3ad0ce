"""Displays a task's events as they arrive: for people on standard error, for programs as JSON lines."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from rich.text import Text

from minions import TaskEvent
from orchestrator.commands.output import STATE_STYLES, print_json_line, stderr, styled
from shared.contracts.visible_text import one_line

MISSED = "[…]"
GUTTER = "│ "  # before each line of streamed text, to distinguish it from events


def print_lines(task_id: str, events: Iterable[TaskEvent]) -> None:
    """Print each event immediately, as a JSON object on its own line."""
    for event in events:
        print_json_line({"task_id": task_id, "id": event.id, "type": event.type, "data": event.data})


def show_events(task_id: str, events: Iterable[TaskEvent]) -> None:
    """Show the task's id, streamed text as it arrives, and steps and states in a short line each."""
    stderr.print(styled((f"task {task_id}", "bold")))
    in_text = False
    heard: dict[int, int] = {}
    for event in events:
        if event.type == "step.text":
            text = _missed(event, heard) + event.data["text"]
            stderr.print(styled("" if in_text else GUTTER, text.replace("\n", f"\n{GUTTER}")), end="")
            in_text = True
            continue
        if in_text:
            stderr.print()
        in_text = False
        if event.type == "step.restarted":
            heard.pop(event.data["step"], None)
        stderr.print(event_line(event))


def _missed(event: TaskEvent, heard: dict[int, int]) -> str:
    """Return a mark if text was lost before this event; `heard` counts the characters received of each step."""
    step, begins = event.data["step"], event.data["from"]
    missed = begins > heard.get(step, 0)
    heard[step] = begins + len(event.data["text"])
    return MISSED if missed else ""


def event_line(event: TaskEvent) -> Text:
    """Return an event as a line: its time, its subject, and the facts."""
    subject, _, what = event.type.partition(".")
    title, details = _step(what, event.data) if subject == "step" else _state(what, event.data)
    return styled((f"{_time(event)} ", "dim"), (one_line(title), STATE_STYLES.get(what, "")), one_line(details))


def _state(state: str, data: dict[str, Any]) -> tuple[str, str]:
    facts = {
        "accepted": data.get("agent"),
        "running": f"claim {data.get('claim')}",
        "waiting": " until ".join(filter(None, (data.get("reason"), _local(data.get("due_at"))))),
    }
    return state, _details(facts.get(state), data)


def _step(what: str, data: dict[str, Any]) -> tuple[str, str]:
    names = " ".join(str(data[name]) for name in ("kind", "name") if name in data)
    if what == "restarted":
        return f"step {data['step']} restarted", ": its streamed text is void"
    child = f"task {data['child_id']}" if "child_id" in data else None
    return f"step {data['step']} {what}", f" {names}{_details(child, data)}"


def _details(fact: str | None, data: dict[str, Any]) -> str:
    error = (data.get("error") or {}).get("message")
    return (f" ({fact})" if fact else "") + (f": {error}" if error else "")


def _time(event: TaskEvent) -> str:
    return _local(event.data.get("at")) or datetime.now().astimezone().strftime("%H:%M:%S")


def _local(moment: str | None) -> str | None:
    return datetime.fromisoformat(moment).astimezone().strftime("%H:%M:%S") if moment else None
