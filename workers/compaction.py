"""Conversations after a compaction: the API reads only what follows the summary, so only that is sent."""

from __future__ import annotations

from typing import Any

Messages = list[dict[str, Any]]


def after_compaction(messages: Messages) -> Messages:
    """Return the messages from the latest summary on; all of them if there is none.

    A summary without content is one that the API could not write: it replaces nothing.
    """
    for number in range(len(messages) - 1, -1, -1):
        content = messages[number]["content"]
        if messages[number]["role"] != "assistant" or isinstance(content, str):
            continue
        for place in range(len(content) - 1, -1, -1):
            if content[place]["type"] == "compaction" and content[place].get("content"):
                return [{**messages[number], "content": content[place:]}, *messages[number + 1 :]]
    return messages
