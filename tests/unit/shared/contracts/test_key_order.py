"""The order of keys survives `jsonb`."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.contracts.key_order import as_in_jsonb, in_order, order_of, ordered, with_order

NAMES = st.sampled_from(["a", "b", "cc", "é", "reasoning", "verdict"])
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.integers(0, 3) | st.text(max_size=2),
    lambda parts: st.lists(parts, max_size=4) | st.dictionaries(NAMES, parts, max_size=4),
    max_leaves=25,
)


@given(VALUES)
def test_key_order_is_restored(value: Any) -> None:
    order = as_in_jsonb(order_of(value))
    assert json.dumps(ordered(as_in_jsonb(value), order)) == json.dumps(value)
    wrapped = {"payload": value, "signal": "x"}
    assert json.dumps(ordered(as_in_jsonb(wrapped), order)["payload"]) == json.dumps(value)


@given(VALUES)
def test_jsonb_order_needs_no_record(value: Any) -> None:
    assert order_of(as_in_jsonb(value)) is None


def test_order_shared_by_many_objects_is_stored_once() -> None:
    assert order_of([{"reasoning": n, "score": n} for n in range(1000)]) == {
        "orders": [["reasoning", "score"]],
        "choices": [],
    }


def test_objects_with_equal_keys_keep_different_orders() -> None:
    value = {"properties": {"x": {"type": 1, "description": 2}, "y": {"description": 3, "type": 4}}}
    assert order_of(value) == {"orders": [["type", "description"], ["description", "type"]], "choices": [0, 1]}
    assert json.dumps(ordered(as_in_jsonb(value), order_of(value))) == json.dumps(value)


@pytest.mark.parametrize(
    "order",
    [
        {"orders": [["a", "c"]], "choices": []},
        {"orders": [["b", "b"]], "choices": [5]},
        {"orders": [["b", "a"], ["a", "b"]], "choices": [7]},
        {"orders": [["b", "a"], ["a", "b"]], "choices": []},
    ],
)
def test_order_of_another_value_loses_no_data(order: Any) -> None:
    assert ordered({"a": 1, "b": [2]}, order) == {"a": 1, "b": [2]}


def test_row_contains_the_orders_of_its_values() -> None:
    row = {"input": {"b": 1, "a": 2}, "output": None, "name": "x"}
    stored = with_order(row, "input", "output")
    assert stored == {**row, "input_order": {"orders": [["b", "a"]], "choices": []}}
    assert in_order({**as_in_jsonb(stored), "output_order": None}, "input", "output") == row
