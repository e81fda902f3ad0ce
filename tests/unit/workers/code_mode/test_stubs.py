"""Stubs of functions: types from schemas, and names and descriptions that stay in their places."""

from __future__ import annotations

import ast
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.contracts.visible_text import visible
from workers.code_mode.stubs import stub, summary
from workers.tools.approval import ApprovedTool

ORDER = {
    "type": "object",
    "properties": {
        "order": {"type": "string", "description": "The order's number, such as A-17."},
        "lines": {"type": "boolean"},
    },
    "required": ["order"],
}


class Made:
    """A tool with a definition only."""

    strict = deferred = False
    effect = "pure"
    steps = 1

    def __init__(self, name: str, schema: Any = None, description: str = "", output: Any = None) -> None:
        self.name, self.input_schema, self.description, self.output_schema = name, schema, description, output

    def call(self, arguments: Any, task: Any, journal: Any) -> Any:
        raise AssertionError


def typed(schema: Any, **root: Any) -> str:
    """Return the type of a function's only argument."""
    made = stub(Made("f", {"type": "object", "properties": {"a": schema}, "required": ["a"], **root}))
    return made.split("a: ", 1)[1].split(") ->")[0]


def test_stub_has_types_and_descriptions() -> None:
    result = {"type": "object", "properties": {"total": {"type": "number"}}, "required": ["total"]}
    assert stub(Made("lookup-order", ORDER, "Look up an order.", result)) == (
        'async def lookup_order(*, order: str, lines: bool = ...) -> {"total": float}:\n'
        '    """Look up an order.\n'
        "    order: The order's number, such as A-17\n"
        '    """'
    )


@pytest.mark.parametrize(
    ("schema", "written"),
    [
        ({"type": "integer"}, "int"),
        ({"type": ["string", "null"]}, "str | None"),
        ({"enum": ["a", 1, True, None]}, 'Literal["a", 1, True, None]'),
        ({"const": "x"}, 'Literal["x"]'),
        ({"type": "array", "items": {"type": "string"}}, "list[str]"),
        ({"type": "array"}, "list[Any]"),
        ({"anyOf": [{"type": "string"}, {"type": "integer"}]}, "str | int"),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, "dict[str, int]"),
        ({}, "Any"),
        (True, "Any"),
        ({"$ref": "#/$defs/lost"}, "Any"),
        ({"$ref": "https://example.com/schema"}, "Any"),
        ({"type": "array", "items": {"$ref": "#/$defs/id"}}, "list[int]"),
    ],
)
def test_types_of_schemas(schema: Any, written: str) -> None:
    assert typed(schema, **{"$defs": {"id": {"type": "integer"}}}) == written


def test_long_list_of_values_is_cut() -> None:
    assert typed({"enum": list(range(50))}).endswith("18, 19, …]")


def test_recursive_schema_ends() -> None:
    tree = {"type": "object", "properties": {"left": {"$ref": "#/$defs/tree"}}}
    made = stub(Made("grow", {"properties": {"tree": {"$ref": "#/$defs/tree"}}, "$defs": {"tree": tree}}))
    assert "tree: dict = ..." in made
    assert len(made) < 500


def test_schema_that_refers_to_itself_everywhere_stays_short() -> None:
    wide = {"type": "object", "properties": {f"p{number}": {"$ref": "#/$defs/wide"} for number in range(200)}}
    made = stub(Made("f", {"properties": {"a": wide, "b": {"type": "string"}}, "$defs": {"wide": wide}}))
    assert len(made) < 10_000


def test_objects_are_described_below_the_signature() -> None:
    address = {"type": "object", "properties": {"city": {"type": "string"}, "zip": {"type": "string"}}}
    made = stub(Made("move", {"properties": {"to": {**address, "required": ["city"], "description": "Where."}}}))
    assert made.split("\n") == [
        "async def move(*, to: dict = ...) -> Any:",
        '    """to: Where. {"city": str, "zip"?: str}"""',
    ]


def test_argument_that_is_no_name_is_described() -> None:
    made = stub(Made("send", {"properties": {"from": {"type": "string"}}, "required": ["from"]}))
    assert made == 'async def send(**more: Any) -> Any:\n    """**{"from": …} (str)"""'


def test_approval_is_noted() -> None:
    assert "A person must approve each call." in stub(ApprovedTool(Made("refund", ORDER, "Refund."), None))


@pytest.mark.parametrize("name", ["print", "list", "class", "9lives", "search_tools", "asyncio", "__import__"])
def test_name_with_a_meaning_gets_a_prefix(name: str) -> None:
    assert stub(Made(name)).startswith(f"async def tool_{name}(")


def test_summary_is_one_line() -> None:
    assert summary(Made("a", description="One.\nTwo.")) == "a: One."
    assert summary(Made("a")) == "a"


HOSTILE = st.text(max_size=60) | st.sampled_from(
    ['"""', '\n"""\nimport os', "\\", 'x"', "\r\nasync def evil():\n    ...", "\u2028", "\x1b[2J", '\\"""', "\0"]
)


@given(HOSTILE, st.dictionaries(HOSTILE, HOSTILE, max_size=4))
def test_hostile_text_stays_in_its_docstring(description: str, properties: dict[str, str]) -> None:
    schema = {"properties": {name: {"type": "string", "description": note} for name, note in properties.items()}}
    made = stub(Made("f", schema, description))
    [function] = ast.parse(made).body
    assert isinstance(function, ast.AsyncFunctionDef)
    assert len(function.body) == 1
    assert made == visible(made)
