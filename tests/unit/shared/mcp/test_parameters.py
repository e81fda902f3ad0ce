"""The annotation `x-mcp-header`: which headers a call has, and which schemas are refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp.shared.inbound import (
    decode_header_value,
    find_invalid_x_mcp_header,
    mcp_param_headers,
    x_mcp_header_map,
)

from shared.mcp.parameters import fault_of, headers_of
from shared.mcp.protocol import header_value

STRING = {"type": "string", "x-mcp-header": "A"}
SCHEMA = {
    "properties": {
        "a": STRING,
        "x-mcp-header": {"type": "boolean", "x-mcp-header": "B"},
        "c": {"properties": {"d": {"type": "integer", "x-mcp-header": "D"}}, "default": {"x-mcp-header": "no"}},
    }
}
FAULTY: list[dict[str, Any]] = [
    STRING,
    {"items": STRING},
    {"properties": {"a": {"items": STRING}}},
    {"properties": {"a": {**STRING, "type": "number"}}},
    {"properties": {"a": {**STRING, "type": ["string"]}}},
    {"properties": {"a": {**STRING, "x-mcp-header": "a b"}}},
    {"properties": {"a": {**STRING, "x-mcp-header": ""}}},
    {"properties": {"a": {**STRING, "x-mcp-header": 3}}},
    {"properties": {"a": {**STRING, "x-mcp-header": "A\r\nX"}}},
    {"properties": {"a": STRING, "b": {**STRING, "x-mcp-header": "a"}}},
    {"$defs": {"a": STRING}},
    {"anyOf": [{"properties": {"a": STRING}}]},
]


@pytest.mark.parametrize("schema", [{}, SCHEMA, {"properties": {"x-mcp-header": {"type": "string"}}}])
def test_valid_schema_has_no_fault(schema: dict[str, Any]) -> None:
    assert fault_of(schema) is None
    assert find_invalid_x_mcp_header(schema) is None


@pytest.mark.parametrize("schema", FAULTY)
def test_faulty_schema_is_refused(schema: dict[str, Any]) -> None:
    assert fault_of(schema) is not None
    assert find_invalid_x_mcp_header(schema) is not None


@pytest.mark.parametrize(
    "arguments",
    [{}, {"a": "x", "c": {"d": -7}}, {"a": "ü", "x-mcp-header": True}, {"a": None, "c": 3}, {"a": [1]}, [], None],
)
def test_headers_are_those_of_the_reference(arguments: Any) -> None:
    expected = mcp_param_headers(x_mcp_header_map(SCHEMA), arguments if isinstance(arguments, dict) else {})
    assert headers_of(SCHEMA, arguments) == expected


@given(st.text("aZ09 ~=?\tü\n\x7f€", max_size=12) | st.just("=?base64?eA==?="))
def test_header_value_can_be_read_back(text: str) -> None:
    value = header_value(text)
    assert decode_header_value(value) == text
    assert value.isascii()
    assert value.isprintable()
