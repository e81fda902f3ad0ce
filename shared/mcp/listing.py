"""The tools that a server lists: bounded, and each with the hash that pins what was listed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from shared.contracts.documents import McpAnnotations
from shared.contracts.json_schema.schemas import DIALECT
from shared.contracts.strict_json import canonical
from shared.mcp.client import McpClient
from shared.mcp.faults import McpFault
from shared.mcp.parameters import fault_of
from shared.mcp.transport import Message

MAX_TOOLS = 1_000
MAX_PAGES = 100
MAX_NAME = 200
MAX_CHARACTERS = 200_000
"""Of one tool as JSON. What is larger is not kept."""
PINNED = ("name", "title", "description", "inputSchema", "outputSchema", "annotations")


@dataclass(frozen=True, slots=True)
class ListedTool:
    """A tool as the server lists it.

    Attributes:
        digest: SHA-256 of the fields in `PINNED`.
        fault: the reason why the tool cannot be used; None: it can.
    """

    name: str
    description: str
    input_schema: dict[str, Any]
    output_schema: dict[str, Any] | None
    annotations: McpAnnotations
    digest: str
    fault: str | None = None


def list_tools(client: McpClient) -> list[ListedTool]:
    """Return all tools that a server lists, by name.

    Raises:
        McpFault: the list cannot be read.
    """
    found: dict[str, ListedTool] = {}
    cursor: str | None = None
    for _ in range(MAX_PAGES):
        result = client.request("tools/list", {} if cursor is None else {"cursor": cursor})
        items = result.get("tools")
        if not isinstance(items, list):
            raise McpFault("its list of tools is not a list", taken=True)
        for item in items:
            tool = _read(item)
            if tool.name in found:
                raise McpFault(f"it lists the tool {tool.name!r} twice", taken=True)
            found[tool.name] = tool
        if len(found) > MAX_TOOLS:
            break
        cursor = result.get("nextCursor")
        if cursor is None:
            return [found[name] for name in sorted(found)]
        if not isinstance(cursor, str):
            raise McpFault("the cursor of its list of tools is not text", taken=True)
    raise McpFault(f"it lists more than {MAX_TOOLS:,} tools, or more than {MAX_PAGES} pages of them", taken=True)


def _read(item: Any) -> ListedTool:
    name = item.get("name") if isinstance(item, dict) else None
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
        raise McpFault(f"it lists a tool without a name of 1 to {MAX_NAME} characters", taken=True)
    pinned = canonical({field: item[field] for field in PINNED if field in item})
    fault = f"it has more than {MAX_CHARACTERS:,} characters" if len(pinned) > MAX_CHARACTERS else None
    if fault is not None:
        item = {"inputSchema": {}}
    description, inputs, outputs = item.get("description", ""), item.get("inputSchema"), item.get("outputSchema")
    if not isinstance(description, str):
        description, fault = "", "its description is not text"
    if not isinstance(inputs, dict):
        inputs, fault = {}, "it has no input schema"
    if outputs is not None and not isinstance(outputs, dict):
        outputs, fault = None, "its output schema is not an object"
    return ListedTool(
        name=name,
        description=description,
        input_schema=_without_dialect(inputs),
        output_schema=outputs and _without_dialect(outputs),
        annotations=McpAnnotations(**_hints(item)),
        digest=hashlib.sha256(pinned.encode("utf-8", "surrogatepass")).hexdigest(),
        fault=fault or fault_of(inputs),
    )


def _hints(item: Message) -> dict[str, bool]:
    """Return the annotations about the effect that are true or false; others say nothing."""
    given = item.get("annotations")
    fields = given if isinstance(given, dict) else {}
    return {
        name: value for name, value in fields.items() if name in McpAnnotations.model_fields and isinstance(value, bool)
    }


def _without_dialect(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema as one of draft 2020-12. Many libraries name draft-07, where most keywords mean the same, and the
    others are refused.
    """
    return {name: value for name, value in schema.items() if name != "$schema" or value == DIALECT}
