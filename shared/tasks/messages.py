"""Messages in and out: converting foreign message objects, and turning messages into an agent's input."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from shared.contracts import content
from shared.contracts.json_schema import Schema, validate, violations
from shared.contracts.requests import Message
from shared.contracts.strict_json import JsonValue, parse
from shared.errors import InvalidInput, MinionError

# LangChain calls the roles `human` and `ai`; objects carry them as `type`.
ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "ai": "assistant",
    "system": "system",
    "tool": "tool",
}
# Attributes in which OpenAI, LangChain and Ollama keep content outside `content`.
BESIDE_CONTENT = (
    *("tool_calls", "invalid_tool_calls", "function_call", "audio", "images", "files", "attachments"),
    *("refusal", "reasoning", "reasoning_content", "thinking"),
)
# The one in which LangChain keeps those that it does not know.
MORE_ATTRIBUTES = "additional_kwargs"


def coerce_all(messages: Sequence[Any], *, tools: bool = False) -> list[Message]:
    """Return the messages of a task, each converted by `coerce`.

    Args:
        tools: read messages of role `tool` too. Release 0.2 accepted them, and a function or a chain receives them
            unchanged; a model would answer without them.

    Raises:
        InvalidInput: the first message that cannot be converted, by its place: `messages[2].content[1]`.
    """
    read = [coerce(message, where=f"messages[{index}]", tools=tools) for index, message in enumerate(messages)]
    content.check_pairs([(message.role, message.content) for message in read])
    return read


def coerce(message: Any, *, where: str = "messages[0]", tools: bool = False) -> Message:
    """Convert one of our messages, a `{"role" | "type", "content"}` mapping, or an object of LangChain's shape.

    Content that cannot be sent to a model is refused, never left out: the model would answer without it.

    Args:
        where: the message's place, for errors.

    Raises:
        InvalidInput: the message has no known role or no content, or contains something that is not supported.
        TooLarge: a file exceeds a limit of the API.
    """
    if isinstance(message, str):
        return Message(role="user", content=message)
    fields = _fields(message)
    called = str(fields.get("role") or fields.get("type") or "")
    if called == "tool" and not tools:
        raise _unsupported(where, "messages of role 'tool'", "Put what the tool returned into a user message.")
    for name, given in _beside_content(fields):
        if given:
            said = "Leave the message out, or describe it as text."
            raise _unsupported(f"{where}.{name}", f"messages with {name.rpartition('.')[2]}", said)
    role = ROLES.get(called)
    given = None if role is None else content.read(fields.get("content"), role, where=f"{where}.content")
    if given is None:
        has = f"has the role {called[:50]!r}" if role is None else "has no content"
        raise InvalidInput(
            f"A message must have a role ({', '.join(sorted(ROLES.keys() - {'tool'}))}) and content, text or blocks; "
            f"{where}, of type {type(message).__name__}, {has}.",
            path=where,
        )
    return Message.model_validate({"role": role, "content": given})


def input_for(schema: Schema | None, messages: Sequence[Message], *, agent: str) -> JsonValue:
    """Return the input that messages make for an agent with this input schema.

    The first of these that fits: `{"messages": […]}` as it is; the text under the schema's only required string
    property (or its only property); the text parsed as JSON.

    Raises:
        InvalidInput: none fits; the message explains the schema's requirements.
    """
    said = [(message.role, content.as_text_if_plain(message.content)) for message in messages]
    whole = {"messages": [{"role": role, "content": each} for role, each in said]}
    if schema is None or not violations(schema, whole):
        return whole
    if any(role == "user" and not isinstance(each, str) for role, each in said):
        raise InvalidInput(
            f"The messages contain blocks, which cannot be turned into the input of {agent!r}. Submit a task with "
            '`input` instead; a file in it is {"$file": "file_…"}.'
        )
    text = last_text(messages)
    for candidate in _candidates(schema, text):
        if not violations(schema, candidate):
            return candidate
    raise InvalidInput(
        f"The message cannot be turned into the input of {agent!r}: its input schema requires "
        f"{json.dumps(schema.get('required') or sorted(schema.get('properties', {})))}. Submit a task with `input` "
        "instead."
    )


def checked_input(
    schema: Schema | None, value: JsonValue, messages: Sequence[Message] | None, *, agent: str
) -> JsonValue:
    """Return the input of a task, from its `input` or else from its messages, checked against the schema.

    Raises:
        InvalidInput: with every violation and its path.
    """
    if value is None and messages is not None:
        return input_for(schema, messages, agent=agent)
    validate(schema, value, what=f"The input of {agent!r}", error=InvalidInput)
    return value


def approved_messages(approved: JsonValue) -> list[Message]:
    """Return the messages that a person approved, and perhaps edited.

    Raises:
        InvalidInput: there are none, or one contains something that is not supported.
    """
    if not isinstance(approved, list) or not approved:
        raise InvalidInput("What is approved in place of the task's messages must be a list of at least one message.")
    return coerce_all(approved)


def last_text(messages: Sequence[Message]) -> str:
    """Return the last text from the user."""
    said = [message.text for message in messages if message.role == "user"]
    return said[-1] if said else ""


class _Attributes:
    """An object's attributes, accessible as a mapping."""

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


def _fields(item: Any) -> Mapping[str, Any] | _Attributes:
    return item if isinstance(item, Mapping) else _Attributes(item)


def _beside_content(fields: Mapping[str, Any] | _Attributes) -> Iterator[tuple[str, Any]]:
    """Yield what a message has outside its content, with the path."""
    more = fields.get(MORE_ATTRIBUTES)
    for name in BESIDE_CONTENT:
        yield name, fields.get(name)
        if isinstance(more, Mapping):
            yield f"{MORE_ATTRIBUTES}.{name}", more.get(name)


def _unsupported(where: str, what: str, instead: str) -> InvalidInput:
    return InvalidInput(f"{where}: {what} are not supported yet. {instead}", path=where)
