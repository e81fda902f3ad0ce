"""Strict JSON."""

from __future__ import annotations

import json
import math
import tracemalloc
from collections import OrderedDict
from contextlib import nullcontext
from enum import IntEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.contracts.strict_json import canonical, check, digest, first_difference, parse, stable
from shared.errors import InvalidInput, TooLarge


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not valid JSON: Expecting value at line 1 column 1"),
        ("{", "at line 1 column 2"),
        ('{"a": 1,}', "is not valid JSON"),
        ("{'a': 1}", "is not valid JSON"),
        ("[1] 2", "Extra data at line 1 column 5"),
        ("NaN", "NaN is not a JSON number"),
        ("[Infinity]", "Infinity is not a JSON number"),
        ("-Infinity", "-Infinity is not a JSON number"),
        ("1e999", "inf is not a JSON number"),
        ("-1e999", "-inf is not a JSON number"),
        ("1" * 301, "a number of more than 300 digits"),
        ("1" * 5000, "a number of more than 300 digits"),
        ("1e300", "a number of more than 300 digits"),
        (r'"\u0000"', "U+0000"),
        (r'{"\u0000": 1}', "a key with the character U+0000"),
        (r'"\ud800"', "lone surrogate"),
        ('"\ud800"', "is not UTF-8"),
        (b'"\xff"', "is not UTF-8: byte 1"),
        (b"\xff\xfe[\x001\x00]\x00", "is not UTF-8"),
        (b"\xef\xbb\xbf{}", "BOM"),
        ('{"a": 1, "a": 2}', "the key 'a' stands twice"),
        ('[{"b": {"a": 1, "c": 2, "a": 1}}]', "the key 'a' stands twice"),
        ("[" * 102 + "]" * 102, "nesting deeper than 100 levels"),
        ("[" * 200_000, "nested deeper than 100 levels"),
        ('{"a":' * 200_000, "nested deeper than 100 levels"),
        ("\t\x0b1", "is not valid JSON"),
        ('"a\nb"', "Invalid control character"),
    ],
)
def test_non_strict_json_is_refused(text: str | bytes, words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse(text, what="The thing")
    assert "The thing" in caught.value.message
    assert words in caught.value.message
    assert len(caught.value.message) < 300


@pytest.mark.parametrize(
    "text", ["null", "0", "-0", "1e-999", r'"\ud83d\ude42"', '"ü"', " [ ] ", "1" * 300, '{"": ""}']
)
def test_strict_json_is_accepted(text: str) -> None:
    assert parse(text) == parse(text.encode()) == json.loads(text)


def test_document_size_is_limited() -> None:
    assert parse('"üü"', limit=6) == "üü"
    with pytest.raises(TooLarge, match="is 6 bytes large; at most 5 are accepted") as caught:
        parse('"üü"', limit=5)
    assert caught.value.detail == {"size": 6, "limit": 5}


def test_value_size_is_limited() -> None:
    check({"a": "üü"}, limit=12)
    with pytest.raises(TooLarge):
        check({"a": "üü"}, limit=11)


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"a": [1, {"b": math.nan}]}, "$.a[1].b"),
        (math.inf, "$"),
        ({"x" * 1000: "\0"}, "$." + "x" * 50),
        ([[[[[[[[[[[[math.nan]]]]]]]]]]]], "$…" + "[0]" * 10),
    ],
)
def test_fault_is_reported_with_its_path(value: Any, path: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check(value)
    assert caught.value.detail["path"] == path


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ({"k" * 400_000: [0] * 100_000}, None),
        ([[]] * 350_000, None),
        ([*([[]] * 350_000), math.nan], r"\$\[350000\]"),
    ],
)
def test_check_of_many_values_uses_bounded_memory(value: Any, fault: str | None) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(InvalidInput, match=fault) if fault else nullcontext():
            check(value)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10 << 20


FAULTY = [math.nan, -math.inf, 10**300, -(10**300), "\0", "\ud800", b"", object()]


@pytest.mark.parametrize("fault", FAULTY)
def test_fault_is_found_at_any_position(fault: Any) -> None:
    for around in (lambda x: [0, x], lambda x: (x, 0), lambda x: {"a": "b", "c": x}, lambda x: [[{}], {"a": [x, []]}]):
        with pytest.raises(InvalidInput):
            check(around(fault))
    with pytest.raises(InvalidInput, match=r"key .* at \$\[1\]"):
        check([{}, {fault: 1}])


def test_subclasses_of_json_types_are_accepted() -> None:
    check({"a": (OrderedDict(b=IntEnum("Number", "one")(1)), "c")})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        (1, 1.0),
        (1e16, 10**16),
        (1e23, 10**23),
        (-0.0, 0),
        ([1.0, {"a": 2.0}], [1, {"a": 2}]),
    ],
)
def test_equal_values_have_equal_digests(one: Any, other: Any) -> None:
    assert digest(one) == digest(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [(1, True), (0, False), ("1", 1), (None, "null"), ([], {}), ([[1], 2], [1, [2]]), ("a", "á"), (0.1, 0.2)],
)
def test_different_values_have_different_digests(one: Any, other: Any) -> None:
    assert digest(one) != digest(other)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(json_values)
def test_digest_survives_serialization(value: Any) -> None:
    assert digest(json.loads(json.dumps(value))) == digest(value) == digest(stable(value))


@given(json_values)
def test_checked_value_survives_a_round_trip(value: Any) -> None:
    try:
        check(value)
    except InvalidInput:
        return
    assert parse(canonical(value)) == value


@pytest.mark.parametrize(
    ("before", "now", "difference"),
    [
        ({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}, "$.a[1].b was 2 and is 3"),
        ({"a": 1}, {"a": 1, "b": None}, "$.b was absent and is null"),
        ([1, 2], [1], "$ was [1,2] and is [1]"),
        ("x" * 100, 1, f'$ was "{"x" * 59}… and is 1'),
        ({"a": 1.0, "b": []}, {"b": [], "a": 1}, None),
    ],
)
def test_first_difference_is_found(before: Any, now: Any, difference: str | None) -> None:
    assert first_difference(before, now) == difference
