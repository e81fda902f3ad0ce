"""What a task's journal shows of one step: what was asked, what came back, what it cost, and when."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import dropwhile, islice, takewhile
from typing import Any

from minions import Client, Task, errors
from orchestrator.turn_notes import notes_of
from shared.contracts import final_answer
from shared.contracts.content import our_files, outline, text_of
from shared.errors import InvalidInput

TOKENS = ("input_tokens", "output_tokens")
THOUGHTS = ("thinking", "redacted_thinking")
BUDGET = ("dollars", "tokens", "steps", "seconds")


@dataclass(frozen=True, slots=True)
class History:
    """A task with its journal.

    Attributes:
        definition: of the agent's version that ran; None if the API does not show it to this key.
        untold: why it is None.
    """

    task: Task
    steps: list[dict[str, Any]]
    executions: list[dict[str, Any]]
    definition: dict[str, Any] | None
    untold: str | None = None

    def step(self, number: int) -> dict[str, Any]:
        """Return a step.

        Raises:
            InvalidInput: there is no such step.
        """
        for each in self.steps:
            if each["number"] == number:
                return each
        have = f"its steps are 1 to {self.steps[-1]['number']}" if self.steps else "it has no steps"
        raise InvalidInput(f"Task {self.task.id} has no step {number}: {have}.")

    def first_failure(self) -> int | None:
        """Return the number of the first step that failed, or was interrupted before the task ended."""
        failed = (step for step in self.steps if step["status"] == "failed")
        open_at_end = (step for step in self.steps if step["status"] == "started" and self.task.final)
        found = next(failed, None) or next(open_at_end, None)
        return None if found is None else int(found["number"])


def read_history(client: Client, task_id: str) -> History:
    """Return a task with its journal.

    Raises:
        NotFound: there is no such task.
    """
    task = client.get(task_id)
    definition, untold = _definition(client, task)
    return History(task, list(client.steps(task)), list(client.executions(task)), definition, untold)


def view_of(history: History, number: int) -> dict[str, Any]:
    """Return all about a step: `step`, `request`, `reply`, `usage`, `time`, `notes`."""
    step = history.step(number)
    facts = ("number", "kind", "name", "status", "effect", "claim", "copied_from", "child_id", "function_version_id")
    called_from = ("program", "line") if step.get("program") is not None else ()
    return {
        "task_id": history.task.id,
        "step": {name: step.get(name) for name in (*facts, *called_from)},
        "request": request_of(history, number),
        "reply": {name: step[name] for name in ("output", "error", "stdout") if step.get(name) is not None},
        "usage": usage_of(history, number),
        "time": time_of(history, step),
        "notes": notes_of(step),
    }


def request_of(history: History, number: int) -> dict[str, Any]:
    """Return what a step asked for: of a model call, all that the model saw, as far as it is known.

    The journal keeps with each call the messages that are new in it. The earlier ones are put before them.
    """
    step = history.step(number)
    asked = step["input"]
    if step.get("program") == number and isinstance(asked, dict) and "arguments" in asked:
        return {"program": asked["arguments"].get("code"), "time": asked.get("time"), "seed": asked.get("seed")}
    if step["kind"] != "model_call" or not isinstance(asked, dict):
        return {"input": asked}
    if "messages" not in asked:
        return {"input": asked, "not_known": ["The text that the model received is not in the journal."]}
    calls = [each for each in history.steps if each["kind"] == "model_call" and each["number"] <= number]
    sent = [message for each in calls for message in _messages(each, with_reply=each is not step)]
    messages = [_as_sent(message) for message in _with_system_messages(history, sent)]
    found: dict[str, Any] = {"model": step["name"]}
    if history.definition is not None:
        found["system"] = _system(history)
        found["tools"] = history.definition.get("tools") or []
        found["output_schema"] = history.definition.get("output_schema")
    return {**found, "messages": messages, "not_known": list(_not_known(history, messages))}


def usage_of(history: History, number: int) -> dict[str, Any]:
    """Return what a step used, what the task had used after it, and the limits of the task's own budget.

    Copied steps belong to another task, and cost nothing.
    """
    step = history.step(number)
    until = [each for each in history.steps if each["number"] <= number and not each.get("copied_from")]
    usage = step["usage"] or {}
    budget = history.task.budget
    return {
        "usage": usage,
        "cost_microdollars": step["cost_microdollars"],
        "so_far": {
            "dollars": sum(each["cost_microdollars"] for each in until) / 1e6,
            "tokens": sum((each["usage"] or {}).get(name) or 0 for each in until for name in TOKENS),
            "steps": len(until),
        },
        "limits": budget and {name: budget[name]["limit"] for name in BUDGET if budget[name]["limit"] is not None},
    }


def time_of(history: History, step: dict[str, Any]) -> dict[str, Any]:
    """Return when a step began and ended, its duration, and its beginning since that of the task, in seconds."""
    begin, end = moment(step["started_at"]), moment(step["finished_at"])
    first = moment(history.executions[0]["started_at"]) if history.executions else None
    since = (begin - first).total_seconds() if begin and first and not step.get("copied_from") else None
    return {
        "started_at": step["started_at"],
        "finished_at": step["finished_at"],
        "seconds": (end - begin).total_seconds() if begin and end else None,
        "after_seconds": since,
    }


def place_of(step: dict[str, Any]) -> str:
    """Return the line of the program that made a call; empty if no program did."""
    program, line = step.get("program"), step.get("line")
    if program is None or program == step["number"]:
        return ""
    return f"the program of step {program}" if line is None else f"line {line} of the program of step {program}"


def name_of(step: dict[str, Any]) -> str:
    """Return the name of a step for a table; that of a call in a program is indented, with its line."""
    if not place_of(step):
        return str(step["name"])
    return f"  {step['name']}" if step.get("line") is None else f"  {step['name']} (line {step['line']})"


def moment(text: str | None) -> datetime | None:
    """Return a time of the API."""
    return datetime.fromisoformat(text) if text else None


def _definition(client: Client, task: Task) -> tuple[dict[str, Any] | None, str | None]:
    if task.agent is None or task.agent_version is None:
        return None, "No version of an agent was chosen yet."
    try:
        version = client.agent_version(task.agent, task.agent_version, task.namespace)
    except (errors.NotFound, errors.Forbidden) as error:
        return None, f"The system prompt and the tools are not shown: {error.message}"
    definition: dict[str, Any] = version["definition"]
    if "system_prompt" not in definition:
        return None, "The system prompt and the tools are not shown: this API key may not read definitions."
    return definition, None


def _system(history: History) -> str:
    """Return the system prompt, the system messages at the beginning of the task's messages, and the instruction about
    the output schema.
    """
    definition = history.definition or {}
    first = takewhile(_is_system, _dictionaries(history.task.messages))
    parts = [str(definition.get("system_prompt") or ""), *(text_of(message["content"]) for message in first)]
    if definition.get("output_schema") is not None:
        parts.append(final_answer.instruction(definition["output_schema"]))
    return "\n\n".join(part for part in parts if part.strip())


def _with_system_messages(history: History, sent: list[Any]) -> Iterator[Any]:
    """Yield messages with the later system messages of the task in their places: the journal has only the others."""
    rest = iter(sent)
    for message in dropwhile(_is_system, _dictionaries(history.task.messages)):
        if _is_system(message):
            yield message
        elif outline(message["content"]).strip():
            yield from islice(rest, 1)
    yield from rest


def _is_system(message: dict[str, Any]) -> bool:
    return message.get("role") == "system"


def _messages(call: dict[str, Any], *, with_reply: bool) -> Iterator[dict[str, Any]]:
    """Yield the new messages of a model call, and its reply as the next call repeats it."""
    asked, reply = call["input"], call["output"]
    if not isinstance(asked, dict) or not isinstance(asked.get("messages"), list):
        return
    yield from asked["messages"]
    content = reply.get("content") if with_reply and isinstance(reply, dict) else None
    blocks = [
        block for block in _dictionaries(content) if block.get("type") != "text" or str(block.get("text")).strip()
    ]
    if any(block.get("type") not in THOUGHTS for block in blocks):
        yield {"role": "assistant", "content": blocks}


def _as_sent(message: Any) -> Any:
    """Return a message as the provider receives it: a tool's text is sent as text, and the journal has its JSON."""
    if not isinstance(message, dict) or not isinstance(message.get("content"), list):
        return message
    return {**message, "content": [_result_as_sent(block) for block in message["content"]]}


def _result_as_sent(block: Any) -> Any:
    content = block.get("content") if isinstance(block, dict) and block.get("type") == "tool_result" else None
    if not isinstance(content, str) or not content.startswith('"') or block.get("is_error"):
        return block
    try:
        text = json.loads(content)
    except ValueError:
        return block
    return {**block, "content": text} if text.strip() else block


def _not_known(history: History, messages: list[Any]) -> Iterator[str]:
    if history.untold:
        yield history.untold
    if history.task.conversation_id is not None:
        yield (
            f"Earlier messages of the conversation {history.task.conversation_id!r}, or their summary, came before "
            "these. They are not in this journal."
        )
    config = (history.definition or {}).get("config") or {}
    if config.get("context_management"):
        yield ("The agent has `context_management`: earlier messages may have been left out, or replaced by a summary.")
    said = (message["content"] for message in _dictionaries(messages) if message["role"] == "user")
    if any(True for content in said for _ in our_files(content)):
        yield "Files are shown by their ids: the model received their contents."


def _dictionaries(values: Sequence[Any] | Any) -> list[dict[str, Any]]:
    return [each for each in values if isinstance(each, dict)] if isinstance(values, list) else []
