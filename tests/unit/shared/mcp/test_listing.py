"""The tools that a server lists: one that cannot be used does not affect the others."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from shared.mcp import protocol
from shared.mcp.client import McpClient
from shared.mcp.eras import Era, Known
from shared.mcp.faults import McpFault
from shared.mcp.http import FixedHeaders, HttpTransport
from shared.mcp.listing import ListedTool, list_tools
from shared.settings import Settings
from tests.support.mcp_server import Answer, RawServer, raw_server

SETTINGS = Settings(allow_private_addresses=["127.0.0.1"])
GOOD: dict[str, Any] = {"name": "good", "description": "Does it.", "inputSchema": {"type": "object"}}


def client(raw: RawServer, version: str = protocol.MODERN) -> McpClient:
    transport = HttpTransport(raw.url, SETTINGS, seconds=20, max_bytes=1 << 20, authorization=FixedHeaders({}))
    return McpClient(transport, Era(Known(version, {})))


def listed(*pages: Any, version: str = protocol.MODERN) -> dict[str, ListedTool]:
    """The tools in these results of `tools/list`, which may be texts."""
    with raw_server(*[_answer(page) for page in pages]) as raw:
        return {tool.name: tool for tool in list_tools(client(raw, version))}


def _answer(page: Any) -> Any:
    def made(_: Any, message: Any) -> Answer:
        text = page if isinstance(page, str) else json.dumps(page)
        body = f'{{"jsonrpc": "2.0", "id": {message["id"]}, "result": {text}}}'.encode()
        return 200, {"Content-Type": "application/json; charset=utf-8"}, body

    return made


@pytest.mark.parametrize(
    ("item", "name", "fault"),
    [
        ("3", "(tool 2)", "it has no name of 1 to 200 printable characters"),
        ("{}", "(tool 2)", "it has no name of 1 to 200 printable characters"),
        ('{"name": null}', "(tool 2)", "it has no name of 1 to 200 printable characters"),
        ('{"name": ""}', "(tool 2)", "it has no name of 1 to 200 printable characters"),
        (json.dumps({"name": "x" * 201}), "(tool 2)", "it has no name of 1 to 200 printable characters"),
        (r'{"name": "a\u0000b"}', "(tool 2)", "it has no name of 1 to 200 printable characters"),
        (r'{"name": "a\nstored"}', "(tool 2)", "it has no name of 1 to 200 printable characters"),
        (r'{"name": "a\u202e"}', "(tool 2)", "it has no name of 1 to 200 printable characters"),
        (r'{"name": "a\ud800"}', "(tool 2)", "it has no name of 1 to 200 printable characters"),
        (r'{"name": "a", "description": "\u0000"}', "a", r"U\+0000"),
        (r'{"name": "a", "_meta": {"\udfff": 1}}', "a", "a lone surrogate"),
        (
            '{"name": "a", "inputSchema": {"properties": {"n": {"maximum": 1.7976931348623157e+308}}}}',
            "a",
            "300 digits",
        ),
        ('{"name": "a", "inputSchema": {"minimum": -1e999}}', "a", "not a JSON number"),
    ],
)
def test_unreadable_tool_leaves_the_others_alone(item: str, name: str, fault: str) -> None:
    found = listed(f'{{"tools": [{json.dumps(GOOD)}, {item}]}}')
    assert found.keys() == {"good", name}
    assert found["good"].fault is None
    assert re.search(fault, str(found[name].fault))


def test_earlier_tool_that_needs_a_task_cannot_be_used() -> None:
    tools = [{**GOOD, "name": support, "execution": {"taskSupport": support}} for support in ("optional", "required")]
    odd = {**GOOD, "execution": ["required"]}
    found = listed({"tools": [*tools, odd]}, version=protocol.LEGACY)
    assert {name: tool.fault is None for name, tool in found.items()} == {
        "optional": True,
        "required": False,
        "good": True,
    }
    assert "only be called as a task of 2025-11-25" in str(found["required"].fault)
    assert listed({"tools": tools})["required"].fault is None


def test_name_that_is_listed_twice_is_ambiguous() -> None:
    other = {**GOOD, "description": "Does something else."}
    once, same, both = listed({"tools": [GOOD]}), listed({"tools": [GOOD, GOOD]}), listed({"tools": [GOOD, other]})
    assert same == once
    assert both["good"].fault == "the server lists different tools under this name"
    assert both["good"].digest not in (once["good"].digest, listed({"tools": [other]})["good"].digest)


def test_pages_are_read_to_their_end() -> None:
    names = [{"tools": [{**GOOD, "name": str(page)}], "nextCursor": f"c{page}"} for page in range(5)]
    assert [*listed(*names, {"tools": [], "nextCursor": None})] == ["0", "1", "2", "3", "4"]
    empty = {"tools": [GOOD], "nextCursor": ""}
    assert [*listed(empty, version=protocol.LEGACY)] == ["good"]
    assert [*listed(empty, {"tools": [{**GOOD, "name": "more"}]})] == ["good", "more"]


@pytest.mark.parametrize("cursor", ['"again"', '""', "3", r'"\u0000"', r'"\ud800"', "[]"])
def test_cursors_without_end_are_a_fault(cursor: str) -> None:
    page = f'{{"tools": [{json.dumps(GOOD)}], "nextCursor": {cursor}}}'
    with pytest.raises(McpFault, match=r"repeats a cursor|is not text"):
        listed(page, page, page)


def test_error_that_cannot_be_stored_is_a_fault() -> None:
    answer = {"error": {"code": 1, "message": "a\0"}}
    with raw_server(answer) as raw, pytest.raises(McpFault, match=r"U\+0000"):
        list_tools(client(raw))
