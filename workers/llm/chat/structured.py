"""Answers and tool inputs that a server constrains to a schema, where the operator says that it can."""

from __future__ import annotations

from typing import Any

from shared.contracts.constrained import requires_all, unconstrainable
from shared.contracts.strict_json import digest
from shared.errors import ModelError
from shared.providers import Provider
from workers.llm.base import ModelRequest
from workers.llm.chat.usage import was_refused
from workers.llm.refused_formats import RefusedFormats

WORDS = ("response_format", "json_schema", "schema", "grammar", "guided")
_refused = RefusedFormats()


def format_of(request: ModelRequest, provider: Provider) -> dict[str, Any] | None:
    """Return the format of the answer; None if the server cannot constrain it.

    The prompt asks for the schema in any case, and the answer is checked against it. A schema that OpenAI does not
    enforce is sent as a hint, and other servers enforce it nevertheless.
    """
    schema = request.output_schema
    if schema is None or not request.constrained or not provider.has("json_schema"):
        return None
    if schema.get("type") != "object" or _name_of(request, provider) in _refused:
        return None
    strict = is_strict(schema)
    return {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": _closed(schema) if strict else schema, "strict": strict},
    }


def forget_format(request: ModelRequest, provider: Provider, error: ModelError) -> bool:
    """Send this schema no more as a format if that is what the server refuses; return whether it is."""
    if not was_refused(error) or format_of(request, provider) is None:
        return False
    if not any(word in error.message for word in WORDS):
        return False
    _refused.add(_name_of(request, provider))
    return True


def is_strict(schema: dict[str, Any]) -> bool:
    """Return whether OpenAI can enforce a schema: it takes what Claude takes, and all properties must be required."""
    return unconstrainable(schema) is None and requires_all(schema)


def _closed(schema: Any) -> Any:
    """Return a schema in which every object says that it has no other properties, as OpenAI requires."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {name: value if name in ("enum", "const", "default") else _closed(value) for name, value in schema.items()}
    return {**inner, "additionalProperties": False} if isinstance(schema.get("properties"), dict) else inner


def _name_of(request: ModelRequest, provider: Provider) -> str:
    return digest([provider.name, request.model, request.output_schema])
