"""Conversations after a compaction: the API reads only what follows the summary, so only that is sent."""

from __future__ import annotations

from typing import Any

Messages = list[dict[str, Any]]


def after_compaction(messages: Messages) -> Messages:
    """Return the messages from the latest summary on; all of them if there is none.

    A summary without content is one that the API could not write: it replaces nothing. Nor does one between a call and
    its result, because the API refuses a result without its call.
    """
    for number in range(len(messages) - 1, -1, -1):
        content = messages[number]["content"]
        if messages[number]["role"] != "assistant" or isinstance(content, str):
            continue
        for place in range(len(content) - 1, -1, -1):
            if content[place]["type"] == "compaction" and content[place].get("content"):
                rest = [{**messages[number], "content": content[place:]}, *messages[number + 1 :]]
                if not _named(rest, "tool_use_id") - _named(rest, "id"):
                    return rest
    return messages


def _named(messages: Messages, field: str) -> set[str]:
    """Return the values of a field of blocks."""
    contents = (message["content"] for message in messages if not isinstance(message["content"], str))
    return {block[field] for content in contents for block in content if isinstance(block.get(field), str)}
