"""What a model call reserves of budgets for the tools that the API runs within it."""

from __future__ import annotations

from shared.contracts.server_tools import CodeExecution, WebFetch, WebSearch
from workers.pricing import TOKENS_OF_A_SEARCH, worst_case

MODEL = "claude-sonnet-5-5"


def test_searches_and_what_they_find_are_reserved() -> None:
    without = worst_case(MODEL, 1000 + 3 * TOKENS_OF_A_SEARCH, 500)
    reserved = worst_case(MODEL, 1000, 500, api_tools=[WebSearch(max_uses=3)])
    assert reserved.tokens == without.tokens
    assert reserved.microdollars == (without.microdollars or 0) + 30_000


def test_searches_have_their_full_price_in_a_batch() -> None:
    without = worst_case(MODEL, 1000 + TOKENS_OF_A_SEARCH, 500, in_batch=True)
    reserved = worst_case(MODEL, 1000, 500, in_batch=True, api_tools=[WebSearch(max_uses=1)])
    assert reserved.microdollars == (without.microdollars or 0) + 10_000


def test_fetched_pages_are_reserved_as_input() -> None:
    reserved = worst_case(MODEL, 1000, 500, api_tools=[WebFetch(max_uses=2, max_content_tokens=4000), CodeExecution()])
    assert reserved == worst_case(MODEL, 9000, 500)


def test_unknown_model_reserves_tokens_alone() -> None:
    assert worst_case("gateway", 10, 5, api_tools=[WebSearch(max_uses=1)]).microdollars is None
