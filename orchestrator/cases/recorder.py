"""Recording of tasks through the API, with the rights of the caller."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from minions import Client, Task
from minions.errors import MinionsError
from orchestrator.cases.case import FORMAT, parse_case
from orchestrator.cases.redaction import redact
from shared import __version__
from shared.access.roles import MASK
from shared.errors import Conflict, Forbidden, InvalidInput

SUMMARY = {"summary", "through"}
"""Members of the output of a step that summarised a conversation."""


def record(client: Client, task_id: str, *, name: str | None, redacted: list[str]) -> dict[str, Any]:
    """Return a task that has ended as a case.

    Args:
        name: of the case; by default the agent's, with the beginning of the task's id.
        redacted: JSON paths whose values are replaced.

    Raises:
        Conflict: the task has not ended.
        Forbidden: the caller must not see payloads.
        InvalidInput: the task cannot be recorded, or a path leads to nothing.
    """
    task = client.get(task_id)
    _refuse_later_of_conversation(client, task)
    agents: dict[str, int] = {}
    case = {
        "minions_case": FORMAT,
        "name": name or f"{task.agent}-{task.id[:13]}",
        "recorded": {
            "task": task.id,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "release": __version__,
            **({"redacted": redacted} if redacted else {}),
        },
        "agents": agents,
        "tools": _tools_of(client, task),
        "task": recording_of(client, task, agents),
    }
    if not case["tools"]:
        del case["tools"]
    case = redact(case, redacted) if redacted else case
    parse_case(case, where="The case")
    return case


def recording_of(client: Client, task: Task, agents: dict[str, int] | None = None) -> dict[str, Any]:
    """Return a task with its journal and its sub-tasks.

    Args:
        agents: receives the versions of the agents that took part.
    """
    if not task.final:
        raise Conflict(
            f"Task {task.id} is {task.state}: record it when it has ended. `minion follow` shows its progress."
        )
    steps = [_step(client, step, agents) for step in client.steps(task) if step["status"] != "started"]
    _refuse_masked(task, steps)
    if agents is not None and task.agent_version is not None:
        agents[str(task.agent)] = task.agent_version
    given = {"messages": task.messages} if task.messages is not None else {"input": task.input}
    found = {
        "id": task.id,
        "agent": task.agent,
        "version": task.agent_version,
        **given,
        "steps": steps,
        "state": task.state,
        "output": task.output,
        "error": task.error,
    }
    return {name: value for name, value in found.items() if value is not None or name in given}


def _step(client: Client, step: dict[str, Any], agents: dict[str, int] | None) -> dict[str, Any]:
    kept = {
        "number": step["number"],
        "kind": step["kind"],
        "name": step["name"],
        "effect": step["effect"],
        "request": step["input"],
        "output": _output_of(step),
        "error": step["error"],
        "usage": step["usage"],
        "cost_microdollars": step["cost_microdollars"] or None,
        "seconds": _seconds(step),
    }
    if step["kind"] == "subtask":
        kept |= {"request": None, "output": None, "error": None}
        kept["task"] = recording_of(client, client.get(step["child_id"]), agents)
    elif isinstance(step["output"], dict) and set(step["output"]) >= SUMMARY:
        raise InvalidInput(
            "The conversation of this task was too long, so its beginning was summarised. Such a task cannot be "
            "recorded: record one of a shorter conversation."
        )
    return {name: value for name, value in kept.items() if value is not None}


def _output_of(step: dict[str, Any]) -> Any:
    """Return the output of a step; of an approval, without the names of those who decided."""
    output = step["output"]
    if step["kind"] == "wait" and isinstance(output, dict) and "arguments" in output:
        return {"arguments": output["arguments"]}
    return output


def _seconds(step: dict[str, Any]) -> float | None:
    if step["finished_at"] is None:
        return None
    took = datetime.fromisoformat(step["finished_at"]) - datetime.fromisoformat(step["started_at"])
    return round(max(0.0, took.total_seconds()), 3)


def _tools_of(client: Client, task: Task) -> dict[str, int]:
    """Return the versions of the agent's tools, as far as the key may know of them."""
    try:
        names = client.agent(str(task.agent), namespace=task.namespace)["definition"].get("tools") or []
        return {name: client.tool(name, namespace=task.namespace)["version"] for name in names}
    except (MinionsError, KeyError):
        return {}


def _refuse_masked(task: Task, steps: list[dict[str, Any]]) -> None:
    values = [task.input, task.output, *(task.messages or [])]
    values += [step.get(name) for step in steps for name in ("request", "output")]
    if MASK in [value for value in values if isinstance(value, str)]:
        raise Forbidden(
            f"The payloads of task {task.id} are hidden from this API key, so it cannot be recorded. Use a key with "
            "the permission `payloads:read`; `minion keys roles` lists the roles that have it."
        )


def _refuse_later_of_conversation(client: Client, task: Task) -> None:
    if task.conversation_id is None:
        return
    earlier = [
        other
        for other in client.tasks(conversation_id=task.conversation_id, namespace=task.namespace)
        if other.parent_id is None and other.id < task.id
    ]
    if earlier:
        raise InvalidInput(
            f"Task {task.id} continues a conversation with {len(earlier)} earlier tasks, whose messages its model "
            "received too. Only the first task of a conversation can be recorded."
        )
