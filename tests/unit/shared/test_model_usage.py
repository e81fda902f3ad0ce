from __future__ import annotations

import math
from typing import Any

import pytest
from genai_prices import calc_price
from genai_prices.data_snapshot import get_snapshot
from hypothesis import given
from hypothesis import strategies as st

from shared.model_usage import MOST, spent


@pytest.mark.parametrize(("reported", "counted"), [(7, 7), (-1, 0), (10**40, MOST), (True, 0), ("7", 0), (None, 0)])
def test_reported_number_is_counted_within_reason(reported: Any, counted: int) -> None:
    used = spent({"usage": {"output_tokens": reported}}, "claude-sonnet-4-5")
    assert used["output_tokens"] == counted
    assert (used["cost_microdollars"] > 0) == (counted > 0)


COUNT = st.integers(0, 2_000_000)


@st.composite
def usages(draw: Any) -> dict[str, Any]:
    """Usage as the API reports it."""
    written = draw(COUNT)
    hour = draw(st.integers(0, written))
    return {
        "input_tokens": draw(COUNT),
        "output_tokens": draw(COUNT),
        "cache_read_input_tokens": draw(COUNT),
        "cache_creation_input_tokens": written,
        "cache_creation": {"ephemeral_5m_input_tokens": written - hour, "ephemeral_1h_input_tokens": hour},
        "speed": draw(st.sampled_from(["standard", "fast"])),
    }


@given(usages(), st.sampled_from(["claude-opus-5-5", "claude-sonnet-5-5", "claude-haiku-5-5", "claude-fable-5-2"]))
def test_cost_is_that_of_genai_prices(usage: dict[str, Any], model: str) -> None:
    """For usage without iterations, which genai-prices does not read."""
    provider = next(each for each in get_snapshot().providers if each.id == "anthropic")
    _, read = provider.extract_usage({"model": model, "usage": usage})
    context = {"speed": "fast"} if usage["speed"] == "fast" else None
    price = calc_price(read, model_ref=model, provider_id="anthropic", price_context=context).total_price
    assert spent({"usage": usage, "content": []}, model)["cost_microdollars"] == math.ceil(price * 1_000_000)


@given(usages(), st.sampled_from(["claude-opus-5-5", "claude-sonnet-5-5", "claude-haiku-5-5"]))
def test_batch_costs_what_genai_prices_says(usage: dict[str, Any], model: str) -> None:
    usage = {**usage, "speed": "standard", "service_tier": "batch"}
    provider = next(each for each in get_snapshot().providers if each.id == "anthropic")
    _, read = provider.extract_usage({"model": model, "usage": usage})
    price = calc_price(
        read, model_ref=model, provider_id="anthropic", price_context={"processing": "batch"}
    ).total_price
    assert spent({"usage": usage, "content": []}, model)["cost_microdollars"] == math.ceil(price * 1_000_000)


@pytest.mark.parametrize(
    ("category", "dollars"), [("cyber", 0), (None, 0), ("bio", 4), ("frontier_llm", 4), ("reasoning_extraction", 4)]
)
def test_refusal_before_the_first_word_is_charged_by_its_category(category: str | None, dollars: int) -> None:
    usage = {"input_tokens": 1_000_000, "output_tokens": 0}
    refused = {"stop_reason": "refusal", "stop_details": {"category": category}, "content": [], "usage": usage}
    assert spent(refused, "claude-opus-5-5")["cost_microdollars"] == dollars * 1_000_000


@pytest.mark.parametrize(("category", "dollars"), [("cyber", 2), ("bio", 10)])
def test_refusal_before_a_server_side_fallback_is_charged_by_category(category: str, dollars: int) -> None:
    used = {"input_tokens": 1_000_000, "output_tokens": 0}
    hop = {
        "type": "fallback",
        "from": {"model": "claude-fable-5-2"},
        "to": {"model": "claude-sonnet-5-5"},
        "trigger": {"type": "refusal", "category": category},
    }
    iterations = [
        {"type": "message", "model": "claude-fable-5-2", **used},
        {"type": "fallback_message", "model": "claude-sonnet-5-5", **used},
    ]
    message = {"content": [hop], "usage": {**used, "iterations": iterations}}
    assert spent(message, "claude-sonnet-5-5")["cost_microdollars"] == dollars * 1_000_000
