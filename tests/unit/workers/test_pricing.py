"""Upper bounds of what a model call costs."""

from __future__ import annotations

from typing import Any

import pytest

from shared.contracts.server_tools import CodeExecution, WebFetch, WebSearch
from workers.pricing import TOKENS_OF_A_SEARCH, worst_case

MODEL = "claude-opus-5-5"
"""Input $4, written for five minutes $5, for an hour $8; output $20; twice that if it is fast."""

SONNET = "claude-sonnet-5-5"


@pytest.mark.parametrize(
    ("options", "tokens", "microdollars"),
    [
        ({}, 1100, 1000 * 5 + 100 * 20),
        ({"for_an_hour": True}, 1100, 1000 * 8 + 100 * 20),
        ({"for_an_hour": True, "in_batch": True}, 1100, (1000 * 8 + 100 * 20) / 2),
        ({"speed": "fast"}, 1100, 2 * (1000 * 5 + 100 * 20)),
        ({"speed": "standard"}, 1100, 1000 * 5 + 100 * 20),
        # A compaction is a call of its own, if the conversation may be long enough for one.
        ({"compacts_at": 1100}, 2200, 2 * (1000 * 5 + 100 * 20)),
        ({"compacts_at": 1101}, 1100, 1000 * 5 + 100 * 20),
    ],
)
def test_worst_case_has_the_highest_price(options: dict[str, Any], tokens: int, microdollars: float) -> None:
    reserved = worst_case(MODEL, 1000, 100, **options)
    assert (reserved.tokens, reserved.microdollars) == (tokens, microdollars)


def test_unknown_model_has_no_worst_case() -> None:
    assert worst_case("gateway-model", 1000, 100, for_an_hour=True).microdollars is None


def test_searches_and_what_they_find_are_reserved() -> None:
    without = worst_case(SONNET, 1000 + 3 * TOKENS_OF_A_SEARCH, 500)
    reserved = worst_case(SONNET, 1000, 500, api_tools=[WebSearch(max_uses=3)])
    assert reserved.tokens == without.tokens
    assert reserved.microdollars == (without.microdollars or 0) + 30_000


def test_searches_have_their_full_price_in_a_batch() -> None:
    without = worst_case(SONNET, 1000 + TOKENS_OF_A_SEARCH, 500, in_batch=True)
    reserved = worst_case(SONNET, 1000, 500, in_batch=True, api_tools=[WebSearch(max_uses=1)])
    assert reserved.microdollars == (without.microdollars or 0) + 10_000


def test_fetched_pages_are_reserved_as_input() -> None:
    reserved = worst_case(SONNET, 1000, 500, api_tools=[WebFetch(max_uses=2, max_content_tokens=4000), CodeExecution()])
    assert reserved == worst_case(SONNET, 9000, 500)


def test_unknown_model_reserves_tokens_alone() -> None:
    assert worst_case("gateway", 10, 5, api_tools=[WebSearch(max_uses=1)]).microdollars is None
