"""Answers and tool inputs that the API constrains to a schema while the model writes."""

from __future__ import annotations

import re
from typing import Any

from anthropic import transform_schema

from shared.contracts.constrained import can_be_constrained, unconstrainable
from shared.contracts.content import cites, is_of_model
from shared.contracts.server_tools import WebFetch
from shared.contracts.strict_json import digest
from shared.errors import ModelError
from workers.llm.base import ModelRequest, ToolSpec
from workers.llm.refused_formats import RefusedFormats

BAD_REQUEST = 400
OF_TOOL = re.compile(r"\btools\.\d")
"""In refusals of a tool's schema."""
_refused = RefusedFormats()


def format_of(request: ModelRequest) -> dict[str, Any] | None:
    """Return the format of the answer; None if the model or the schema does not permit one.

    The prompt asks for the schema in any case, and the answer is checked against it.
    """
    schema = request.output_schema
    if schema is None or not request.constrained or not can_be_constrained(request.model):
        return None
    # The API refuses a format beside citations.
    if any(cites(each["content"]) for each in request.messages if not is_of_model(each)):
        return None
    if unconstrainable(schema) is not None or _name_of(request) in _refused:
        return None
    if any(isinstance(tool.api_tool, WebFetch) and tool.api_tool.citations for tool in request.tools):
        # The API refuses both: citations split the text.
        return None
    return {"type": "json_schema", "schema": transform_schema(schema)}


def tool_of(tool: ToolSpec, model: str) -> dict[str, Any]:
    """Return a tool in the form of the API."""
    deferred = {"defer_loading": True} if tool.deferred else {}
    sent = {"name": tool.name, "description": tool.description, "input_schema": tool.input_schema, **deferred}
    if not tool.strict or not can_be_constrained(model):
        return sent
    return {**sent, "input_schema": transform_schema(tool.input_schema), "strict": True}


def forget_format(request: ModelRequest, error: ModelError) -> bool:
    """Send this schema no more as a format if that is what the API refuses; return whether it is.

    Some limits of the API are known only to it, such as the size of the grammar that a schema becomes.
    """
    if error.detail.get("http_status") != BAD_REQUEST or format_of(request) is None:
        return False
    if OF_TOOL.search(error.message) or not any(
        word in error.message for word in ("output_config", "schema", "grammar")
    ):
        return False
    _refused.add(_name_of(request))
    return True


def _name_of(request: ModelRequest) -> str:
    return digest([request.model, request.output_schema])
