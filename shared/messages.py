"""Messages in and out: coercing foreign message objects, and turning messages into an agent's input."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from shared.errors import InvalidInput, MinionError
from shared.json_schema import Schema, validate, violations
from shared.json_values import JsonValue, parse
from shared.schemas import Message

# LangChain calls the roles `human` and `ai`; objects carry them as `type`.
ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "ai": "assistant",
    "system": "system",
    "tool": "tool",
}


def coerce(message: Any) -> Message:
    """A message from ours, from a `{"role" | "type", "content"}` mapping, or from an object of LangChain's shape.

    Raises:
        InvalidInput: it has no known role or no text.
    """
    if isinstance(message, Message):
        return message
    if isinstance(message, str):
        return Message(role="user", content=message)
    fields = message if isinstance(message, Mapping) else _Attributes(message)
    called = str(fields.get("role") or fields.get("type") or "")
    role, content = ROLES.get(called), _text(fields.get("content"))
    if role is None or content is None:
        has = f"has the role {called[:50]!r}" if role is None else "has no text as its content"
        raise InvalidInput(
            f"A message needs a role ({', '.join(sorted(set(ROLES)))}) and text content; "
            f"this {type(message).__name__} {has}."
        )
    return Message.model_validate({"role": role, "content": content})


def input_for(schema: Schema | None, messages: Sequence[Message], *, agent: str) -> JsonValue:
    """The input that messages make for an agent with this input schema.

    The first of these that fits: `{"messages": […]}` as it is; the text under the schema's only required string
    property (or its only property); the text read as JSON.

    Raises:
        InvalidInput: none fits; the message says what the schema asks for.
    """
    whole = {"messages": [{"role": message.role, "content": message.content} for message in messages]}
    if schema is None or not violations(schema, whole):
        return whole
    text = last_text(messages)
    for candidate in _candidates(schema, text):
        if not violations(schema, candidate):
            return candidate
    raise InvalidInput(
        f"The message cannot be turned into the input of {agent!r}: its input schema asks for "
        f"{json.dumps(schema.get('required') or sorted(schema.get('properties', {})))}. "
        "Submit a task with `input` instead."
    )


def checked_input(schema: Schema | None, value: JsonValue, messages: Sequence[Any] | None, *, agent: str) -> JsonValue:
    """The input of a task, from its `input` or else from its messages, checked against the schema.

    Raises:
        InvalidInput: with every violation and its path.
    """
    if value is None and messages is not None:
        return input_for(schema, [coerce(message) for message in messages], agent=agent)
    validate(schema, value, what=f"The input of {agent!r}", error=InvalidInput)
    return value


def last_text(messages: Sequence[Message]) -> str:
    """What the person said last."""
    said = [message.content for message in messages if message.role == "user"]
    return said[-1] if said else ""


class _Attributes:
    """An object's attributes, read like a mapping."""

    def __init__(self, item: Any) -> None:
        self.item = item

    def get(self, name: str) -> Any:
        return getattr(self.item, name, None)


def _candidates(schema: Schema, text: str) -> list[JsonValue]:
    properties = schema.get("properties", {})
    # A property's schema may also be `true`.
    of_text = {name for name, part in properties.items() if isinstance(part, dict) and part.get("type") == "string"}
    texts = [name for name in schema.get("required", []) if name in of_text]
    names = texts if len(texts) == 1 else list(properties) if len(properties) == 1 else []
    found: list[JsonValue] = [{name: text} for name in names]
    with suppress(MinionError):
        found.append(parse(text))
    return found


def _text(content: Any) -> str | None:
    """Text content, also where it comes as a list of text blocks."""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        return "".join(part for part in parts if isinstance(part, str)) or None
    return None
