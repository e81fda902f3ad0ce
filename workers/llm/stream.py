"""Assembles a whole message from the events of a stream, as the Messages API would have sent it without streaming.

Unknown kinds of blocks and deltas are joined too: the content goes back to the API unchanged with the next turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from shared.contracts.strict_json import parse
from shared.errors import MinionError
from workers.llm.base import INVALID_JSON, join_surrogates

Event = dict[str, Any]

# The one field of a known kind of delta that belongs to its block; others are notes for observers.
FIELDS = {
    "text_delta": "text",
    "thinking_delta": "thinking",
    "signature_delta": "signature",
    "input_json_delta": "partial_json",
    "citations_delta": "citation",
}


class StreamError(Exception):
    """An `error` event: `kind` is its type, such as `overloaded_error`."""

    def __init__(self, kind: str, message: str, request_id: str | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.request_id = request_id


class Unreadable(Exception):
    """The response is not a Messages API message; the text explains why."""


def assemble(events: Iterable[Event], on_text: Callable[[str], None]) -> dict[str, Any] | None:
    """Return the message, or None if the stream ended before the message did.

    Args:
        on_text: receives the text as it arrives.

    Raises:
        StreamError: the API reported an error in the middle.
        Unreadable: the events do not fit together.
    """
    message: dict[str, Any] = {}
    blocks: dict[int, _Block] = {}
    ended = completed = False
    for event in events:
        match event.get("type"):
            case "message_start":
                message = dict(event.get("message") or {})
                # After a tool call made by code on the API's side, the message begins with blocks.
                blocks = {index: _Block(block) for index, block in enumerate(message.get("content") or [])}
            case "content_block_start":
                begun = event.get("content_block") or {}
                blocks[event.get("index", len(blocks))] = _Block(begun)
                if begun.get("type") == "fallback":
                    # As in a message without streaming, the model is the one that answered in the end.
                    message["model"] = (begun.get("to") or {}).get("model") or message.get("model")
                if begun.get("type") == "text" and begun.get("text"):
                    on_text(begun["text"])
            case "content_block_delta":
                delta = event.get("delta") or {}
                block = blocks.get(event.get("index", len(blocks) - 1))
                if block is None:
                    raise Unreadable(f"block {event.get('index')} continues, but never began")
                block.add(delta)
                if delta.get("type") == "text_delta" and delta.get("text"):
                    on_text(delta["text"])
            case "message_delta":
                message |= _without_nulls(event.get("delta"))
                message["usage"] = _without_nulls(message.get("usage")) | _without_nulls(event.get("usage"))
                if event.get("context_management") is not None:
                    message["context_management"] = event["context_management"]
                ended, completed = bool(message.get("stop_reason")), True
            case "message_stop":
                # Complete even without a stop reason, which the agent refuses: another call would cost the same again.
                ended = completed or bool(message.get("stop_reason"))
                break
            case "error":
                raise error_in(event)
    if not ended:
        return None
    return {**message, "content": [blocks[index].whole() for index in sorted(blocks)]}


def error_in(event: Event) -> StreamError:
    """Return the error in an event or a body."""
    error = event.get("error") or event
    if not isinstance(error, dict):
        error = {"message": error}
    kind, said = error.get("type"), error.get("message")
    return StreamError(str(kind or "api_error"), str(said or kind or event), event.get("request_id"))


class _Block:
    """A content block under construction."""

    def __init__(self, begun: dict[str, Any]) -> None:
        self.fields = dict(begun)
        self.input = ""
        # Some gateways send the signature at the beginning and again at the end.
        self.signature = ""

    def add(self, delta: dict[str, Any]) -> None:
        """Append a delta: text to the field of that name, a citation to a list, a tool's input as JSON text."""
        known = FIELDS.get(delta.get("type", ""))
        for name, value in _without_nulls(delta).items():
            if name == "type" or (known and name != known):
                continue
            if name == "partial_json":
                self.input += value
            elif name == "signature":
                self.signature += value
                self.fields["signature"] = self.signature
            elif name == "citation":
                self.fields["citations"] = [*(self.fields.get("citations") or []), value]
            elif isinstance(value, str):
                self.fields[name] = (self.fields.get(name) or "") + value
            else:
                self.fields[name] = value

    def whole(self) -> dict[str, Any]:
        """Return the block. An input that is not JSON becomes one that no tool accepts, so the model gets an error."""
        fields = {
            name: join_surrogates(value) if isinstance(value, str) else value for name, value in self.fields.items()
        }
        if not self.input:
            return fields
        try:
            return {**fields, "input": parse(self.input, what="The input")}
        except MinionError:
            return {**fields, "input": {INVALID_JSON: self.input}}


def _without_nulls(fields: dict[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (fields or {}).items() if value is not None}
