"""The tools that a server lists: bounded, and each with the hash that pins what was listed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

from shared.contracts.documents import McpAnnotations
from shared.contracts.strict_json import are_sound, canonical, check
from shared.errors import InvalidInput
from shared.mcp.client import McpClient
from shared.mcp.dialects import translated
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
    """Return all tools that a server lists, by name. One that cannot be read has a fault, and the others have none.

    Raises:
        McpFault: the list cannot be read.
    """
    found: dict[str, ListedTool] = {}
    cursors: set[str | None] = {None}
    cursor: str | None = None
    for _ in range(MAX_PAGES):
        params = {} if cursor is None else {"cursor": cursor}
        result = client.request("tools/list", params, is_storable=False)
        items = result.get("tools")
        if not isinstance(items, list):
            raise McpFault("its list of tools is not a list", taken=True)
        for item in items:
            tool = _read(item, len(found) + 1)
            if not client.server().is_modern and _needs_task(item):
                tool = replace(tool, fault="it can only be called as a task of 2025-11-25, which is not supported")
            found[tool.name] = _merged(found.get(tool.name), tool)
        if len(found) > MAX_TOOLS:
            break
        cursor = result.get("nextCursor")
        # Some servers of the earlier era write an empty text for "none".
        if cursor is None or (cursor == "" and not client.server().is_modern):
            return [found[name] for name in sorted(found)]
        if not isinstance(cursor, str) or not are_sound([cursor]):
            raise McpFault("the cursor of its list of tools is not text", taken=True)
        if cursor in cursors:
            raise McpFault("its list of tools has no end: it repeats a cursor", taken=True)
        cursors.add(cursor)
    raise McpFault(f"it lists more than {MAX_TOOLS:,} tools, or more than {MAX_PAGES} pages of them", taken=True)


def _merged(known: ListedTool | None, tool: ListedTool) -> ListedTool:
    """Return a tool. It cannot be used if another one has its name."""
    if known is None or known.digest == tool.digest:
        return tool
    both = hashlib.sha256(f"{known.digest}{tool.digest}".encode()).hexdigest()
    return replace(tool, digest=both, fault="the server lists different tools under this name")


def _read(item: Any, number: int) -> ListedTool:
    name = item.get("name") if isinstance(item, dict) else None
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or not name.isprintable():
        return _unusable(f"(tool {number})", f"it has no name of 1 to {MAX_NAME} printable characters")
    try:
        check(item, what="what the server lists")
    except InvalidInput as error:
        return _unusable(name, error.message.rstrip("."))
    pinned = canonical({field: item[field] for field in PINNED if field in item})
    fault = f"it has more than {MAX_CHARACTERS:,} characters" if len(pinned) > MAX_CHARACTERS else None
    if fault is not None:
        item = {"inputSchema": {}}
    description, inputs, outputs = item.get("description") or "", item.get("inputSchema"), item.get("outputSchema")
    if not isinstance(description, str):
        description, fault = "", "its description is not text"
    if not isinstance(inputs, dict):
        inputs, fault = {}, "it has no input schema"
    if outputs is not None and not isinstance(outputs, dict):
        outputs, fault = None, "its output schema is not an object"
    return ListedTool(
        name=name,
        description=description,
        input_schema=translated(inputs),
        output_schema=translated(outputs),
        annotations=McpAnnotations(**_hints(item)),
        digest=hashlib.sha256(pinned.encode("utf-8", "surrogatepass")).hexdigest(),
        fault=fault or fault_of(inputs),
    )


def _unusable(name: str, fault: str) -> ListedTool:
    digest = hashlib.sha256(f"{name}: {fault}".encode("utf-8", "backslashreplace")).hexdigest()
    return ListedTool(name, "", {}, None, McpAnnotations(), digest, fault)


def _needs_task(item: Any) -> bool:
    execution = item.get("execution") if isinstance(item, dict) else None
    return isinstance(execution, dict) and execution.get("taskSupport") == "required"


def _hints(item: Message) -> dict[str, bool]:
    """Return the annotations about the effect that are true or false; others say nothing."""
    given = item.get("annotations")
    fields = given if isinstance(given, dict) else {}
    return {
        name: value for name, value in fields.items() if name in McpAnnotations.model_fields and isinstance(value, bool)
    }
