"""Payloads in answers: shown to keys with the permission `payloads:read`, masked for all others.

The fields of the answers' models have the types below. They read the caller's key from a context variable, which
`orchestrator.api.auth` sets for each request, so an endpoint that returns such a model cannot forget to mask it. Other
answers, such as events, call the functions in this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Annotated, Any

from pydantic import PlainSerializer, WithJsonSchema

from shared.access.actors import Key
from shared.access.roles import MASK, Permission
from shared.access.scope import own_name
from shared.tasks.task_query import PRIVATE

# Facts of an error that quote nothing.
PLAIN_FACTS = frozenset({"type", "retryable", "attempts", "max_attempts", "losses", "status", "step", "index"})


_reader: ContextVar[Key | None] = ContextVar("reader", default=None)


def show_to(key: Key) -> None:
    """Show what this key may see in the answer to the current request."""
    _reader.set(key)


def are_shown() -> bool:
    """Return whether the caller may see payloads."""
    reader = _reader.get()
    return reader is not None and reader.may(Permission.PAYLOADS_READ)


def payload(value: Any) -> Any:
    """Return a payload, or the mask."""
    return value if value is None or are_shown() else MASK


def schema(found: Mapping[str, Any] | None) -> Any:
    """Return the schema of a payload, or None for a key that may not see the value: it has no form to fill in."""
    return found if are_shown() else None


def payloads(values: list[Any] | None) -> list[Any] | None:
    """Return a list of payloads, or a list with the mask."""
    return values if not values or are_shown() else [MASK]


def error(found: Mapping[str, Any] | None) -> Any:
    """Return an error, without what it may quote unless payloads are shown."""
    if found is None or are_shown():
        return found
    plain = {name: value for name, value in found.items() if name in PLAIN_FACTS}
    return {**plain, "message": MASK} if "message" in found else plain


def labels(found: Mapping[str, Any] | None) -> Any:
    """Return labels, with masked values of the private ones unless payloads are shown."""
    if not found or are_shown():
        return found
    return {name: MASK if name.startswith(PRIVATE) else value for name, value in found.items()}


def request(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the stored request of a schedule, masked as a task is."""
    shown = dict(found)
    for name, masked in (("input", payload), ("messages", payload), ("labels", labels)):
        if name in shown:
            shown[name] = masked(shown[name])
    return shown


def conversation(stored: str | None) -> str | None:
    """Return the id of a conversation as the caller knows it."""
    reader = _reader.get()
    of_a_tenant = reader is not None and reader.scope.tenant is not None
    return own_name(stored) if stored is not None and of_a_tenant else stored


Payload = Annotated[Any, PlainSerializer(payload, return_type=Any)]
PayloadText = Annotated[str | None, PlainSerializer(payload, return_type=str | None)]
PayloadSchema = Annotated[dict[str, Any] | None, PlainSerializer(schema, return_type=dict[str, Any] | None)]
Payloads = Annotated[list[Any] | None, PlainSerializer(payloads, return_type=list[Any] | None)]
# Facts differ by type; programs read these two.
ERROR_SCHEMA = {
    "anyOf": [
        {
            "type": "object",
            "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
            "additionalProperties": True,
        },
        {"type": "null"},
    ]
}
Error = Annotated[
    dict[str, Any] | None, PlainSerializer(error, return_type=dict[str, Any] | None), WithJsonSchema(ERROR_SCHEMA)
]
Labels = Annotated[dict[str, Any], PlainSerializer(labels, return_type=dict[str, Any])]
StoredRequest = Annotated[dict[str, Any], PlainSerializer(request, return_type=dict[str, Any])]
ConversationId = Annotated[str | None, PlainSerializer(conversation, return_type=str | None)]
