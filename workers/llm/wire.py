"""Converts our messages to the form of the Messages API.

The journal keeps messages in a form that is stable across releases, because the hashes of steps cover it. This module
builds the request from it: system messages in allowed positions, tools' results.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from shared.providers import claude_name
from workers.llm.base import Block, ModelRequest
from workers.llm.citations import with_one_setting

Messages = list[dict[str, Any]]

SILENT_FAILURE = "The tool failed, and did not say why."

# The first model of each family that accepts `system` messages between others. Sonnet 5 does not, by its documentation.
FIRST_WITH_SYSTEM_MESSAGES = {"opus": (4, 8), "sonnet": (5, 5), "haiku": (5, 5), "fable": (5, 0), "mythos": (5, 0)}
MODEL = re.compile(r"claude-([a-z]+)-(\d+)(?:[-.](\d{1,2}))?(?:[-@]\d{8})?")


def messages_of(request: ModelRequest) -> Messages:
    """Return a request's messages in the form in which they are sent."""
    # A model's thoughts are bound to the words before them, so the form is one that all models of the task accept.
    as_system = all(map(takes_system_messages, (request.model, *request.other_models)))
    placed = _place_system_messages(with_one_setting(request.messages), as_system)
    return [_with_results(message, as_json=request.results_as_json) for message in placed]


def takes_system_messages(model: str) -> bool:
    """Return whether a model accepts `system` messages between those of the user and the assistant."""
    if (match := MODEL.fullmatch(claude_name(model))) is None:
        return False
    family, major, minor = match[1], int(match[2]), int(match[3] or 0)
    return (major, minor) >= FIRST_WITH_SYSTEM_MESSAGES.get(family, (99, 0))


def _place_system_messages(messages: Messages, as_system: bool) -> Iterator[dict[str, Any]]:
    """Put each system message in its own position, so that the cached prompt before it stays cached.

    The API accepts one only after a user's message, before the model's. Without a user's message there, and for models
    that accept none, it becomes a user's message that identifies itself.
    """
    for speaks, group in groupby(messages, key=lambda message: message["role"] == "assistant"):
        turn = list(group)
        said = [message for message in turn if message["role"] != "system"]
        rules = [message["content"] for message in turn if message["role"] == "system"]
        if rules and said and as_system:
            yield from [*said, {"role": "system", "content": "\n\n".join(rules)}]
        else:
            yield from turn if speaks else map(_as_reminder, sorted(turn, key=_is_no_answer))


def _is_no_answer(message: dict[str, Any]) -> bool:
    """Return whether a message has no tool's result. Those with one must directly follow the call."""
    content = message["content"]
    return isinstance(content, str) or all(block["type"] != "tool_result" for block in content)


def _as_reminder(message: dict[str, Any]) -> dict[str, Any]:
    if message["role"] != "system":
        return message
    return {"role": "user", "content": f"<system-reminder>\n{message['content']}\n</system-reminder>"}


def _with_results(message: dict[str, Any], *, as_json: bool) -> dict[str, Any]:
    content = message["content"]
    if message["role"] != "user" or isinstance(content, str):
        return message
    return {**message, "content": [_result(block, as_json) for block in content]}


def _result(block: Block, as_json: bool) -> Block:
    """Convert a tool's result: text as it is, all else as JSON. Blank text stays JSON (`""`), and a failure is never
    empty, because the API refuses both.
    """
    if block["type"] != "tool_result" or not isinstance(block.get("content"), str):
        return block
    content: str = block["content"]
    if block.get("is_error"):
        return block if content.strip() else {**block, "content": SILENT_FAILURE}
    if as_json or not content.startswith('"'):
        return block
    text: str = json.loads(content)
    return {**block, "content": text} if text.strip() else block
