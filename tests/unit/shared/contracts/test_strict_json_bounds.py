"""Strict JSON from hostile input: bounded depth, bounded number of values, linear time."""

from __future__ import annotations

import contextlib
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.contracts import strict_json
from shared.contracts.strict_json import Bounds
from shared.errors import InvalidInput, TooLarge

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
)


def parse(body: bytes, depth: int, values: int) -> Any:
    return strict_json.parse(body, bounds=Bounds(depth=depth, digits=4_300, values=values, unique_keys=False))


def depth(value: Any) -> int:
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


@given(VALUES, st.booleans())
def test_dumped_value_is_parsed_back(value: Any, ascii_only: bool) -> None:
    assert parse(json.dumps(value, ensure_ascii=ascii_only).encode(), 100, 10_000) == value


@pytest.mark.timeout(60)
def test_many_long_numbers_take_linear_time() -> None:
    numbers = parse(b"[" + b",".join([b"1" * 4_300] * 8_000) + b"]", 100, 10_000)
    assert len(numbers) == 8_000


@given(VALUES, st.integers(0, 5))
def test_depth_limit_is_exact(value: Any, limit: int) -> None:
    body = json.dumps(value).encode()
    if depth(value) > limit:
        with pytest.raises(InvalidInput, match="nested deeper") as caught:
            parse(body, limit, 10_000)
        assert caught.value.detail["limit"] == limit
    else:
        assert parse(body, limit, 10_000) == value


def count(value: Any) -> int:
    """Count values and keys; empty lists and objects count twice."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    return 1 + (sum(map(count, value)) if value else 1) if isinstance(value, list) else 1


@given(VALUES, st.integers(1, 9))
def test_value_limit_is_exact(value: Any, limit: int) -> None:
    body = json.dumps(value).encode()
    if count(value) > limit:
        with pytest.raises(TooLarge, match="more than") as caught:
            parse(body, 100, limit)
        assert caught.value.detail["limit"] == limit
    else:
        assert parse(body, 100, limit) == value


@given(st.binary())
def test_arbitrary_bytes_are_parsed_or_refused(body: bytes) -> None:
    with contextlib.suppress(InvalidInput):
        parse(body, 100, 10_000)


@given(st.text('[]{}"\\,:u0d8 1e.-'))
def test_json_like_text_is_parsed_or_refused(text: str) -> None:
    try:
        value = parse(text.encode(), 5, 10_000)
    except InvalidInput:
        return
    assert not isinstance(value, float) or math.isfinite(value)


@pytest.mark.parametrize(
    "body",
    [
        b"NaN", b"-Infinity", b"1e999", b"[1e999]", b'"\\ud800"', b'{"\\udfff": 1}', b'"\\u0000"',
        b'"\0"', b"\xff", b'"\xed\xa0\x80"', b"1" * 4301, b"[" * 101 + b"]" * 101, b"[" * 1_000_000,
        b'{"a":' * 200, b"", b"[1,]", b"01",
    ],
    ids=range(17),
)  # fmt: skip
def test_non_strict_body_is_refused(body: bytes) -> None:
    with pytest.raises((InvalidInput, TooLarge)):
        parse(body, 100, 10_000)


def test_brackets_and_digits_in_strings_do_not_count() -> None:
    text = '[{"' * 300 + "1" * 5000
    assert parse(json.dumps([text, text]).encode(), 3, 10_000) == [text, text]


def test_unterminated_strings_take_linear_time() -> None:
    with pytest.raises(InvalidInput):
        parse(b"[" * 101 + b'"' + b'\\"' * 1_000_000, 100, 10_000)


def test_last_of_two_equal_keys_wins() -> None:
    assert parse(b'{"1": "a", "1": "b"}', 100, 10) == {"1": "b"}
