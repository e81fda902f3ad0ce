"""A whole message out of the events of a stream, as the Messages API would have sent it at once.

Kinds of blocks and deltas that this release does not know are joined all the same: what came in goes back to the API
unchanged with the next turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from shared.errors import MinionError
from shared.json_values import parse

Event = dict[str, Any]


class StreamError(Exception):
    """An `error` event: `kind` is its type, such as `overloaded_error`."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


def assembled(events: Iterable[Event], on_text: Callable[[str], None]) -> dict[str, Any] | None:
    """The message, or None where the stream ended before it did.

    Args:
        on_text: is told the text as it comes.

    Raises:
        StreamError: the API gave up in the middle.
    """
    message: dict[str, Any] = {}
    blocks: dict[int, _Block] = {}
    for event in events:
        match event.get("type"):
            case "message_start":
                message = dict(event["message"])
            case "content_block_start":
                blocks[event["index"]] = _Block(event["content_block"])
            case "content_block_delta":
                blocks[event["index"]].add(event["delta"])
                if event["delta"].get("type") == "text_delta":
                    on_text(event["delta"].get("text") or "")
            case "message_delta":
                message |= _told(event["delta"])
                message["usage"] = message.get("usage", {}) | _told(event.get("usage") or {})
            case "error":
                error = event.get("error") or {}
                raise StreamError(str(error.get("type")), str(error.get("message")))
    if not message.get("stop_reason"):
        return None
    return {**message, "content": [blocks[index].whole() for index in sorted(blocks)]}


class _Block:
    """A content block while it grows."""

    def __init__(self, begun: dict[str, Any]) -> None:
        self.fields = dict(begun)
        self.input = ""

    def add(self, delta: dict[str, Any]) -> None:
        """Text is appended to the field of that name; a citation is one more in a list; a tool's input is JSON text."""
        for name, value in delta.items():
            if name == "type":
                continue
            if name == "partial_json":
                self.input += value
            elif name == "citation":
                self.fields["citations"] = [*(self.fields.get("citations") or []), value]
            elif isinstance(value, str):
                self.fields[name] = (self.fields.get(name) or "") + value
            else:
                self.fields[name] = value

    def whole(self) -> dict[str, Any]:
        """The block; an input that is no JSON becomes one that no tool takes, so that the model is told."""
        if not self.input:
            return self.fields
        try:
            return {**self.fields, "input": parse(self.input, what="The input")}
        except MinionError:
            return {**self.fields, "input": {"INVALID_JSON": self.input}}


def _told(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
