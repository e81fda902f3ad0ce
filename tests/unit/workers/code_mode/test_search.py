"""The search for functions: by words of names and documentation."""

from __future__ import annotations

import pytest

from tests.unit.workers.code_mode.test_stubs import Made
from workers.code_mode.search import MOST_FOUND, SearchTools

TOOLS = SearchTools(
    [
        Made("lookup_order", {"properties": {"order": {"type": "string"}}}, "Return an order with its lines."),
        Made("refund", {"properties": {"amount": {"type": "number"}}}, "Pay money back to a customer."),
        Made("list_invoices", None, "Return the invoices of a customer."),
        *(Made(f"noise_{number}", None, "Makes noise.") for number in range(20)),
    ]
)


@pytest.mark.parametrize(
    ("query", "first"),
    [
        ("order", "lookup_order"),
        ("REFUND a customer", "refund"),
        ("invoice", "list_invoices"),
        ("paying money back", "refund"),
        ("amount", "refund"),
    ],
)
def test_best_function_is_first(query: str, first: str) -> None:
    assert TOOLS.find(query)[0].name == first


@pytest.mark.parametrize("query", ["", "   ", "???", "zebra"])
def test_no_match_finds_nothing(query: str) -> None:
    assert TOOLS.find(query) == []


def test_few_functions_are_returned() -> None:
    found = TOOLS.find("noise")
    assert [tool.name for tool in found] == [f"noise_{number}" for number in range(MOST_FOUND)]
