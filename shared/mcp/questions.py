"""Questions of a server to a person: an `input_required` result, or the same state of a task.

The questions are the server's, so they are hostile text: they are shown as data, their schemas are checked like any
schema, and nothing in them is followed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shared.contracts.json_schema import check_schema
from shared.contracts.strict_json import JsonValue, digest
from shared.errors import InvalidDefinition, InvalidInput
from shared.mcp.dialects import translated
from shared.mcp.faults import McpFault
from shared.outbound import checked_url

ELICIT = "elicitation/create"
ELICITATION: dict[str, Any] = {"form": {}, "url": {}}
"""The capability `elicitation` of a client whose questions reach a person."""
MOST_QUESTIONS = 20
LONGEST_KEY = 200
MOST_CHARACTERS = 100_000
"""Of all questions of one round, as JSON."""
MOST_SHOWN = 4_000
NO_FIELDS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class Questions:
    """The questions of one round.

    Attributes:
        requests: as the server sent them, by key.
        message: the texts for the person.
        schema: of the answer: that of the only question, or an object with an answer for each key.
        proposed: an answer of the schemas' default values.
    """

    requests: dict[str, Any]
    message: str
    schema: dict[str, Any]
    proposed: JsonValue

    @property
    def mark(self) -> str:
        """The hash that identifies these questions."""
        return digest(self.requests)[:16]

    def form(self) -> str:
        """Return the form for the person, as JSON text."""
        return json.dumps({"message": self.message, "schema": self.schema})


def read(requests: Any) -> Questions:
    """Return the questions in the field `inputRequests` of a result.

    Raises:
        McpFault: there are none, or some that no person can answer here.
    """
    if not isinstance(requests, dict) or not requests:
        raise _fault("it asks for input, but does not say what for")
    if len(requests) > MOST_QUESTIONS or len(json.dumps(requests)) > MOST_CHARACTERS:
        raise _fault(f"it asks more than {MOST_QUESTIONS} questions, or {MOST_CHARACTERS:,} characters, at once")
    if any(len(key) > LONGEST_KEY for key in requests):
        raise _fault("a key of its questions is too long")
    each = {key: _question(request) for key, request in requests.items()}
    message = "\n".join(text for text, _ in each.values())[:MOST_SHOWN]
    schemas = {key: schema for key, (_, schema) in each.items()}
    if len(schemas) == 1:
        [schema] = schemas.values()
        return Questions(requests, message, schema, _defaults(schema))
    together = {"type": "object", "properties": schemas, "required": [*schemas], "additionalProperties": False}
    return Questions(requests, message, together, {key: _defaults(schema) for key, schema in schemas.items()})


def responses(requests: Mapping[str, Any], verdict: str, value: Any) -> dict[str, Any]:
    """Return `inputResponses` for a person's answer.

    Args:
        requests: as the server sent them, by key.
        verdict: `approve` or `reject`.
        value: the answer, as `Questions.schema` describes it.

    Raises:
        McpFault: the answer has another form; the endpoint accepts none.
    """
    if verdict != "approve":
        return {key: {"action": "decline"} for key in requests}
    values = {next(iter(requests)): value} if len(requests) == 1 else value
    if not isinstance(values, dict) or not all(isinstance(values.get(key), dict) for key in requests):
        raise _fault("the answer to its questions does not have their form")
    return {key: _accepted(request["params"], values[key]) for key, request in requests.items()}


def _question(request: Any) -> tuple[str, dict[str, Any]]:
    """Return the text and the schema of one question."""
    method = request.get("method") if isinstance(request, dict) else None
    if method != ELICIT:
        raise _fault(f"it asks this client for {str(method)[:100]!r}, which the client did not offer")
    params = request.get("params")
    message = params.get("message") if isinstance(params, dict) else None
    if not isinstance(message, str):
        raise _fault("it asks a question without a text")
    mode = params.get("mode", "form")
    if mode == "url":
        return f"{message} Open {_address(params.get('url'))} and confirm here.", NO_FIELDS
    if mode != "form":
        raise _fault(f"it asks a question of the unknown mode {str(mode)[:50]!r}")
    schema = translated(params.get("requestedSchema"))
    try:
        check_schema(schema, where="requestedSchema")
    except InvalidDefinition as error:
        raise _fault(f"it asks a question with an invalid schema: {error.message[:500].rstrip('.')}") from None
    assert isinstance(schema, dict)
    if schema.get("type") != "object":
        raise _fault("it asks a question whose requestedSchema is not of type object")
    return message, schema


def _address(url: Any) -> str:
    try:
        return str(checked_url(url))[:MOST_SHOWN]
    except InvalidInput as error:
        raise _fault(f"it asks a person to open an address that is not valid: {error.message.rstrip('.')}") from None


def _accepted(params: Mapping[str, Any], value: Any) -> dict[str, Any]:
    if params.get("mode", "form") == "url":
        return {"action": "accept"}
    return {"action": "accept", "content": {**_defaults(params["requestedSchema"]), **value}}


def _defaults(schema: Mapping[str, Any]) -> dict[str, Any]:
    properties = schema.get("properties")
    parts = properties if isinstance(properties, dict) else {}
    return {name: part["default"] for name, part in parts.items() if isinstance(part, dict) and "default" in part}


def _fault(why: str) -> McpFault:
    return McpFault(why, taken=True)
