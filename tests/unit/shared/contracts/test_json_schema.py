"""JSON Schema: which schemas can be stored, which values violate them, and bounds on the time that both take."""

from __future__ import annotations

import socket
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from shared.contracts.json_schema import check_dialect, check_schema, validate, violations
from shared.errors import InvalidDefinition, InvalidInput


def quickly(call: Callable[[], Any]) -> Any:
    """Return the value of a call, which must take less than half a minute."""
    began = time.monotonic()
    value = call()
    assert time.monotonic() - began < 30
    return value


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object", "properties": {"a": True, "b": {"type": ["string", "null"]}}},
        {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "https://example.com/x", "type": "array"},
        {"$schema": "https://json-schema.org/draft/2020-12/schema#"},
        {"$defs": {"a b": {"type": "string"}}, "properties": {"x": {"$ref": "#/$defs/a%20b"}}},
        {"properties": {"child": {"$ref": "#"}}},
        {"$dynamicAnchor": "node", "items": {"$dynamicRef": "#node"}},
        {"$anchor": "me", "properties": {"x": {"$ref": "#me"}}},
        {"properties": {"$ref": {"type": "string"}, "pattern": {}, "default": {}, "$id": {}, "enum": {}}},
        {"const": {"$ref": "https://example.com"}, "enum": [{"pattern": "("}], "default": {"type": "nonsense"}},
        {"pattern": r"^[\w.+-]+@\p{L}+\.[a-z]{2,}$", "patternProperties": {"^x-": {}}},
        {"format": "no such format", "x-own": {"pattern": "("}},
    ],
)
def test_valid_schema_is_accepted(schema: Any) -> None:
    check_schema(schema, where="x")


@pytest.mark.parametrize(
    ("schema", "path", "words"),
    [
        (True, None, "a schema must be an object, not bool"),
        ([], None, "a schema must be an object, not list"),
        ("string", None, "a schema must be an object, not str"),
        (None, None, "a schema must be an object, not NoneType"),
        ({"type": "strin"}, "$.type", '"strin" is not valid'),
        ({"properties": {"a": {"type": 5}}}, "$.properties.a.type", "5 is not valid"),
        ({"properties": {"a": []}}, "$.properties.a", 'not of types "boolean", "object"'),
        ({"required": "a"}, "$.required", 'is not of type "array"'),
        ({"minLength": -1}, "$.minLength", "less than the minimum"),
        ({"multipleOf": 0}, "$.multipleOf", "less than or equal to the minimum"),
        ({"allOf": []}, "$.allOf", "less than 1 item"),
        ({"pattern": 5}, "$.pattern", 'is not of type "string"'),
        ({"pattern": "("}, "$.pattern", "must be an ECMA 262 expression"),
        ({"pattern": "[a"}, "$.pattern", "must be an ECMA 262 expression"),
        ({"items": [{"type": "string"}]}, "$.items", 'not of types "boolean", "object"'),
        ({"anyOf": [{}, {"pattern": "(?=x)"}]}, "$.anyOf[1].pattern", "without look-around"),
        ({"not": {"pattern": r"(a)\1"}}, "$.not.pattern", "back-references"),
        ({"pattern": "(a{1000}){1000}{1000}"}, "$.pattern", "too large"),
        ({"patternProperties": {"(": {}}}, "$.patternProperties.(", "must be an ECMA 262 expression"),
        (
            {"properties": {"a": {"$ref": "https://example.com/x.json"}}},
            "$.properties.a.$ref",
            "points to nothing inside",
        ),
        ({"$ref": "file:///etc/passwd"}, "$.$ref", "points to nothing inside"),
        ({"$ref": "https://json-schema.org/draft/2020-12/schema"}, "$.$ref", "points to nothing inside"),
        ({"$ref": "#/$defs/nothing"}, "$.$ref", "points to nothing inside"),
        ({"$ref": "http://["}, "$.$ref", "points to nothing inside"),
        ({"$dynamicRef": "#nothing"}, "$.$dynamicRef", "points to nothing inside"),
        ({"properties": {"default": {"$ref": "#/x"}}}, "$.properties.default.$ref", "points to nothing inside"),
        ({"$defs": {"a": {"type": "string"}}, "$ref": "#/$defs/a/type"}, "$.$ref", "points to nothing inside"),
        ({"examples": [{"type": 5}], "$ref": "#/examples/0"}, "$.$ref", "points to nothing inside"),
        ({"properties": {"a": {"$id": "https://example.com"}}}, "$.properties.a.$id", "only the root of the schema"),
        ({"$schema": "http://json-schema.org/draft-07/schema#"}, "$.$schema", "only draft 2020-12"),
        ({"not": {"$schema": "http://json-schema.org/draft-04/schema#"}}, "$.not.$schema", "only draft 2020-12"),
        (
            {"x-own": {"a": {"items": {"pattern": "("}}}, "$ref": "#/x-own/a"},
            "$.$ref.items.pattern",
            "must be an ECMA 262 expression",
        ),
        ({"$ref": "#"}, "$", "refers to itself without end"),
        ({"anyOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"$ref": "#"}}}, "$", "refers to itself without end"),
        ({"not": {"items": {"items": {"$ref": "#/not"}}, "allOf": [{"$ref": "#/not"}]}}, "$", "without end"),
    ],
)
def test_unusable_schema_is_refused(schema: Any, path: str | None, words: str) -> None:
    with pytest.raises(InvalidDefinition) as caught:
        check_schema(schema, where="agent A, input_schema")
    assert caught.value.message.startswith("agent A, input_schema")
    assert words in caught.value.message
    assert caught.value.detail.get("path") == path
    assert path is None or path in caught.value.message


def test_no_url_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: Any) -> None:
        raise AssertionError("Something opens a connection.")

    monkeypatch.setattr("socket.socket.connect", connect)
    schema = {"$ref": "https://example.com/x.json"}
    with pytest.raises(InvalidDefinition):
        check_schema(schema, where="x")
    assert violations(schema, 1) == [
        {"path": "$", "message": "the schema refers to something it does not contain: https://example.com/x.json"}
    ]


@pytest.mark.parametrize("place", ["$schema", "$id", "$ref", "$dynamicRef", "$vocabulary"])
def test_no_library_fetches_urls_in_schemas(place: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/x.json"
        schema = {place: {address: True} if place == "$vocabulary" else address, "properties": {"a": {"format": "uri"}}}
        with suppress(InvalidDefinition):
            check_schema(schema, where="x")
        violations(schema, {"a": address})
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_deeply_nested_schema_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(100_000):
        schema = {"not": schema}
    with pytest.raises(InvalidDefinition, match="nesting deeper than 100 levels"):
        check_schema(schema, where="x")


def paths(schema: dict[str, Any], value: Any) -> list[str]:
    return [fault["path"] for fault in violations(schema, value)]


def test_violations_are_reported_with_their_paths() -> None:
    schema = {
        "required": ["a", "b"],
        "properties": {"a": {"type": "string"}, "list": {"items": {"minimum": 3}}},
        "additionalProperties": False,
    }
    value = {"a": 1, "list": [5, 2, 1], "c": 0}
    assert paths(schema, value) == ["$", "$", "$.a", "$.list[1]", "$.list[2]"]
    with pytest.raises(
        InvalidInput, match=r"The input does not match its schema: \$: .*\$.list\[2\]: 1 is less"
    ) as caught:
        validate(schema, value, what="The input", error=InvalidInput)
    assert len(caught.value.detail["violations"]) == 5


def test_number_of_reported_violations_is_limited() -> None:
    with pytest.raises(InvalidInput, match="and 40 more") as caught:
        validate({"items": {"type": "string"}}, list(range(100_000)), what="It", error=InvalidInput)
    assert len(caught.value.detail["violations"]) == 50


def test_large_values_are_truncated_in_messages() -> None:
    value = {"k" * 100_000: "v" * 1_000_000}
    faults = violations({"additionalProperties": {"type": "integer"}, "maxProperties": 0}, value)
    assert len(faults) == 2
    assert all(len(fault["path"]) <= 300 and len(fault["message"]) <= 300 for fault in faults)


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"pattern": "^a+$"}, ["a", 5, None], ["b", "a\n", ""]),
        ({"pattern": "b"}, ["abc"], ["ac", "\ud800"]),
        ({"pattern": r"^\d$"}, ["5"], ["٣", "a"]),
        ({"pattern": r"^\w$"}, ["a"], ["é"]),
        ({"pattern": r"^\s$"}, [" ", "\u2003"], ["a"]),
        ({"pattern": r"^\cA$"}, ["\x01"], ["A"]),
        ({"patternProperties": {"^x": {"type": "integer"}}}, [{"x": 1, "y": "z"}, 5], [{"xy": "z"}]),
        (
            {"properties": {"a": {}}, "patternProperties": {"^x": {}}, "additionalProperties": False},
            [{"a": 1, "x": 2}, [1]],
            [{"b": 1}, {"ax": 1}],
        ),
        ({"additionalProperties": {"type": "integer"}}, [{"a": 1}], [{"a": "b"}]),
        ({"uniqueItems": True}, [[1, True, "1", None], [{"a": 1}, {"a": 2}], {}], [[1, 1.0], [{"a": [1]}, {"a": [1]}]]),
        ({"uniqueItems": False}, [[1, 1]], []),
        ({"format": "date-time"}, ["2026-11-22T18:00:00Z", 5], ["2026-11-22", "x" * 5000]),
        ({"format": "time"}, ["12:00:00Z", "23:59:60Z", "08:30:06.283185+01:00"], ["12:00:00", "24:00:00Z", "12:00"]),
        ({"format": "date"}, ["2024-02-29"], ["2023-02-29", "20240229", "٢٠٢٤-02-29"]),
        ({"format": "duration"}, ["P1DT2H", "P2W"], ["P1", "PT1D", "1h"]),
        ({"format": "hostname"}, ["a-b.example"], ["-a.example", "a_b.example", "a..b"]),
        ({"format": "regex"}, [r"^\d+$"], ["^(abc]"]),
        ({"format": "uri-template"}, ["http://example.com/{term:1}"], ["http://example.com/{term"]),
        ({"format": "json-pointer"}, ["/a~1b", ""], ["a", "/~"]),
        ({"format": "email"}, ["a@b"], ["a", "\ud800@b"]),
        ({"format": "uuid"}, ["01a20424-7654-711f-9557-1afafc8484f7"], ["01a2"]),
        ({"format": "ipv4"}, ["10.0.0.1"], ["10.0.0.256"]),
        ({"format": "no such format"}, ["x"], []),
        ({"unevaluatedProperties": False, "properties": {"a": {}}}, [{"a": 1}], [{"b": 1}]),
        ({"unevaluatedProperties": False, "patternProperties": {"^a": {}}}, [{"ab": 1}], [{"b": 1}]),
        ({"type": "integer"}, [1, 1.0], [True, 1.5, "1"]),
        ({"$schema": "https://json-schema.org/draft/2020-12/schema", "items": {"pattern": "^a"}}, [["a"]], [["b"]]),
    ],
)
def test_keyword_accepts_or_rejects_value(schema: dict[str, Any], good: list[Any], bad: list[Any]) -> None:
    check_schema(schema, where="x")
    assert [value for value in good if violations(schema, value)] == []
    assert [value for value in bad if not violations(schema, value)] == []


def test_recursive_schema_is_followed_to_the_depth_of_the_value() -> None:
    schema = {"properties": {"child": {"$ref": "#"}, "name": {"type": "string"}}, "additionalProperties": False}
    value: dict[str, Any] = {"name": 5}
    for _ in range(95):
        value = {"child": value}
    assert len(violations(schema, value)) == 1


# ------------------------------------------------------------------------------------------------- hostility

EVIL_TEXT = "a" * 100_000 + "!"


@pytest.mark.parametrize("pattern", ["^(a+)+$", "^(a|a)*$", "^(a|aa)+$", "(.*a){20}$", r"^(\w+\s?)*$"])
def test_pattern_search_takes_linear_time(pattern: str) -> None:
    quickly(lambda: violations({"pattern": pattern}, EVIL_TEXT))
    quickly(lambda: violations({"patternProperties": {pattern: {}}, "additionalProperties": False}, {EVIL_TEXT: 1}))


def test_search_that_would_take_minutes_is_refused() -> None:
    """A linear search still takes pattern size times text length, and cannot be interrupted."""
    (fault,) = quickly(lambda: violations({"pattern": "[ab]*a[ab]{30000}c"}, "abbab" * 100_000))
    assert "a smaller value or a simpler schema is needed" in fault["message"]
    assert violations({"pattern": "[ab]*a[ab]{30000}c"}, "abbab") != []
    assert violations({"pattern": "^[^<>]*$"}, "abbab" * 400_000) == []


def test_unique_items_of_a_large_list_are_checked_quickly() -> None:
    assert quickly(lambda: violations({"uniqueItems": True}, [{"a": n} for n in range(50_000)])) == []


NULLS = [{"type": "null"}] * 200


@pytest.mark.parametrize(
    "schema",
    [
        {"anyOf": NULLS},
        {"oneOf": NULLS},
        {"oneOf": [{}] * 200},
        {"anyOf": [{"items": {"type": "null"}}] * 200},
        {"anyOf": [False] * 200},
        {"not": {"not": {"not": {}}}},
        {"if": {"anyOf": NULLS}, "else": False},
        {"contains": {"type": "null"}, "maxItems": 1, "uniqueItems": True, "enum": [0], "const": 0},
        {"dependentSchemas": {"0": {"anyOf": NULLS}}, "unevaluatedItems": False},
        {"items": False},
    ],
)
def test_validation_uses_bounded_memory(schema: dict[str, Any]) -> None:
    value: list[Any] = [[] for _ in range(5_000)]
    violations(schema, value)  # compiles the schema
    tracemalloc.start()
    try:
        violations(schema, value)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 << 20


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"allOf": [{"items": {"type": "array"}}] * 2000}, [[]] * 50_000),
        ({"patternProperties": {f"^x{n}": {} for n in range(500)}}, {str(n): 0 for n in range(10_000)}),
        ({"allOf": [{"uniqueItems": True}] * 1000}, [[0] * 50_000, [1]]),
    ],
)
def test_comparison_that_takes_too_long_is_aborted(
    monkeypatch: pytest.MonkeyPatch, schema: dict[str, Any], value: Any
) -> None:
    monkeypatch.setattr("shared.contracts.json_schema.keywords.MAX_SECONDS", 0.05)
    (fault,) = violations(schema, value)
    assert "of processor time; a smaller value or a simpler schema is needed" in fault["message"]


def test_schema_that_is_slow_for_any_value_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.contracts.json_schema.keywords.MAX_SECONDS", 0.05)
    doubling: dict[str, Any] = {str(n): {"allOf": [{"$ref": f"#/$defs/{n + 1}"}] * 2} for n in range(40)}
    with pytest.raises(InvalidDefinition, match="of processor time"):
        check_schema({"$ref": "#/$defs/0", "$defs": {**doubling, "40": {}}}, where="x")


def test_repeated_references_to_a_large_part_are_checked_once() -> None:
    large = {"properties": {str(n): {} for n in range(500)}}
    schema = {"x-own": large, "properties": {str(n): {"$ref": "#/x-own"} for n in range(500)}}
    quickly(lambda: check_schema(schema, where="x"))


@pytest.mark.parametrize(
    ("schema", "value", "message"),
    [
        ({"type": ["string", "null"]}, [1, {"a": "b"}], "[1, {'a': 'b'}] is not of type 'string', 'null'"),
        ({"anyOf": [{"type": "null"}, False]}, (), "[] is not valid under any of the given schemas"),
        ({"oneOf": [{}, True]}, 1, "1 is valid under each of {}, True"),
        ({"not": {}}, {}, "{} should not be valid under {}"),
        ({"properties": {"a": False}}, {"a": 5}, "False schema does not allow 5"),
        ({"prefixItems": [True], "items": False}, [1, 2, 3], "Expected at most 1 item but found 2 extra: [2, 3]"),
        ({"contains": {"type": "null"}}, [1], "[1] does not contain items matching the given schema"),
        ({"minLength": 3}, "ab", "'ab' is too short"),
        ({"minItems": 1}, [], "[] should be non-empty"),
        ({"maxProperties": 0}, {"a": None}, "{'a': None} is expected to be empty"),
        ({"unevaluatedProperties": False}, {"a": 1, "b": 2}, "not allowed ('a', 'b' were unexpected)"),
        ({"enum": [1, "a"]}, True, "True is not one of [1, 'a']"),
        ({"type": "null"}, ["x" * 1000], "['" + "x" * 198 + " … is not of type 'null'"),
        ({"type": "null"}, [0] * 1000, "[" + "0, " * 66 + "0 … is not of type 'null'"),
    ],
)
def test_violation_quotes_the_beginning_of_the_value(schema: dict[str, Any], value: Any, message: str) -> None:
    (fault,) = violations(schema, value)
    assert fault["message"].endswith(message)


FORMATS = (
    "date-time date time duration email idn-email hostname idn-hostname ipv4 ipv6 uri uri-reference iri iri-reference "
    "uuid uri-template json-pointer relative-json-pointer regex color"
).split()
EVIL = [
    "",
    "\0",
    "(((((",
    "http://[",
    "http://[::1]:99999999",
    "9999-99-99",
    "٣٠٢٦-01-01",
    "10:00:60Z",
    "P" + "9" * 400 + "D",
    "a{1,99999999}",
    *(part * 1000 for part in ("a", "a.", "%41", "(", "{", "/~", "é", "xn--", "::", "1", "-", "P1Y", "a@", "\u3002")),
    "http://" + "a." * 500_000,
]


@pytest.mark.parametrize("name", FORMATS)
def test_formats_are_fast_and_never_raise(name: str) -> None:
    for text in EVIL:
        quickly(lambda text=text: violations({"format": name}, text))


@pytest.mark.parametrize("number", [10**299, 1e299, 5e-324, -0.0, 0.1])
@pytest.mark.parametrize("schema", [{"multipleOf": m} for m in (0.01, 5e-324, 1e299, 10**200)] + [{"maximum": 10**299}])
def test_extreme_numbers_never_raise(schema: dict[str, Any], number: float) -> None:
    violations(schema, number)


@pytest.mark.parametrize(
    ("factor", "value", "fits"),
    [
        (0.01, 19.99, True),
        (0.01, 4.35, True),
        (0.01, 19.999, False),
        (0.1, 1.1, True),
        (1e-6, 0.000003, True),
        (2, 3, False),
        (2, 4.0, True),
        (2, 10**299 + 1, False),
        (2, "3", True),
        (2, True, True),
    ],
)
def test_multiple_of_uses_decimal_digits(factor: float, value: Any, fits: bool) -> None:
    assert (violations({"multipleOf": factor}, value) == []) is fits


@pytest.mark.parametrize(
    ("schema", "path", "instead"),
    [
        ({"dependencies": {"a": ["b"]}}, "$.dependencies", "dependentRequired"),
        ({"properties": {"a": {"type": "string", "nullable": True}}}, "$.properties.a.nullable", '"null"'),
        ({"items": {"additionalItems": {"type": "string"}}}, "$.items.additionalItems", "prefixItems"),
        ({"properties": {"a": {"$recursiveRef": "#"}}}, "$.properties.a.$recursiveRef", "`$ref`"),
    ],
)
def test_unenforced_keyword_is_refused_with_its_replacement(schema: Any, path: str, instead: str) -> None:
    with pytest.raises(InvalidDefinition) as caught:
        check_dialect(schema, where="agent A, input_schema")
    assert caught.value.detail["path"] == path
    assert instead in caught.value.message
    check_schema(schema, where="x")  # schemas that an earlier release stored are still accepted


def test_property_names_are_not_keywords() -> None:
    check_dialect(
        {"properties": {"nullable": {"nullable": False}, "dependencies": {}}, "default": {"nullable": 1}}, where="x"
    )
