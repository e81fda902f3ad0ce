"""Usage and cost of a Messages API call, computed from the `usage` in its answer.

Costs are the list prices in genai-prices, whose own reading of `usage` leaves out the iterations. Tokens of a Message
Batch cost half of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from decimal import Decimal
from functools import lru_cache
from typing import Any

from genai_prices import Usage, calc_price

Fields = dict[str, Any]

# Claude Opus 4.6 and later, if a workspace runs its inference in the US only.
IN_THE_US = Decimal("1.1")
IN_A_BATCH = Decimal("0.5")
"""Price of the tokens of a call in a Message Batch. Searches have their full price."""
FAST = "fast"
CHARGED_AT_ONCE = frozenset({"bio", "frontier_llm", "reasoning_extraction"})
"""Categories of refusals that are charged even before the first word, since 2026-09-24:
https://platform.claude.com/docs/en/build-with-claude/refusals-and-fallback#how-refusals-are-billed
"""

MOST = 10**9
"""A larger number in a report is an error, and would not fit into the columns of PostgreSQL."""


def spent(message: dict[str, Any], model: str) -> dict[str, Any]:
    """Return the fields of a `ModelReply` that describe usage.

    Args:
        message: the API's answer.
        model: the model that answered.
    """
    usage = message.get("usage")
    if not isinstance(usage, dict) or not usage:
        return {"cost_microdollars": None}
    charged = [(model, usage), *((str(each.get("model") or model), each) for each in _apart(message, usage))]
    free = _refused_at_once(message, usage)
    return {
        **_sum(_tokens(each) for _, each in charged),
        "used_besides": _besides(usage),
        "cost_microdollars": 0 if free else _cost(charged, _factor(usage), speed=_speed(usage)),
    }


def list_price(model: str, usage: Usage, *, speed: str | None = None) -> Decimal:
    """Return the list price of usage in dollars.

    Args:
        speed: that of the call: a fast one has separate prices.

    Raises:
        LookupError: the model has no price.
    """
    if not _has_price(model):
        raise LookupError(model)
    context = {"speed": FAST} if speed == FAST else None
    return calc_price(usage, model_ref=model, provider_id="anthropic", price_context=context).total_price


def _refused_at_once(message: Fields, usage: Fields) -> bool:
    """Return whether the model refused before its first word, which is free: no content, or only a blank text."""
    details = message.get("stop_details")
    category = details.get("category") if isinstance(details, dict) else None
    if message.get("stop_reason") != "refusal" or category in CHARGED_AT_ONCE:
        return False
    content = message.get("content") or []
    blank = all(block.get("type") == "text" and not block.get("text", "").strip() for block in content)
    return not content or (blank and not _count(usage, "output_tokens"))


def _apart(message: Fields, usage: Fields) -> list[Fields]:
    """Iterations that are not part of the usage around them: the summary of a compaction, an advisor's advice, and
    those that a model refused, after which another one answered, if they are charged.
    """
    iterations = [each for each in usage.get("iterations") or [] if isinstance(each, dict)]
    served = next((each.get("model") for each in iterations if each.get("type") == "fallback_message"), None)

    def refused(each: Fields) -> bool:
        return bool(served and each.get("type") == "message" and each.get("model") not in (None, served))

    charged = _charged_refusals(message)
    return [
        each
        for each in iterations
        if each.get("type") in ("compaction", "advisor_message")
        or (refused(each) and (_count(each, "output_tokens") or each.get("model") in charged))
    ]


def _charged_refusals(message: Fields) -> set[str]:
    """Models whose refusal is charged even before their first word, by the blocks that mark where another took over."""
    hops = [block for block in message.get("content") or [] if block.get("type") == "fallback"]
    return {
        str((hop.get("from") or {}).get("model"))
        for hop in hops
        if (hop.get("trigger") or {}).get("category") in CHARGED_AT_ONCE
    }


def _tokens(usage: Fields) -> dict[str, int]:
    """Count tokens. Input tokens include those read from and written to the prompt cache."""
    read, written = (_count(usage, f"cache_{what}_input_tokens") for what in ("read", "creation"))
    return {
        "input_tokens": _count(usage, "input_tokens") + read + written,
        "output_tokens": _count(usage, "output_tokens"),
        "cache_read_tokens": read,
        "cache_write_tokens": written,
    }


def _besides(usage: Fields) -> dict[str, Any]:
    """Other usage that explains the cost."""
    reported = {
        "cache_creation_1h_input_tokens": _for_an_hour(usage),
        "thinking_tokens": _count(usage, "output_tokens_details", "thinking_tokens"),
        "web_search_requests": _count(usage, "server_tool_use", "web_search_requests"),
        "web_fetch_requests": _count(usage, "server_tool_use", "web_fetch_requests"),
        "code_execution_requests": _count(usage, "server_tool_use", "code_execution_requests"),
    }
    tier = {"service_tier": "batch"} if _is_batch(usage) else {}
    speed = {"speed": FAST} if _speed(usage) == FAST else {}
    return {**{name: count for name, count in reported.items() if count}, **tier, **speed}


def _speed(usage: Fields) -> str | None:
    return FAST if usage.get("speed") == FAST else None


def _is_batch(usage: Fields) -> bool:
    return usage.get("service_tier") == "batch"


def _factor(usage: Fields) -> Decimal:
    """Factor of the price of tokens: more in the US only, half in a batch."""
    return (IN_THE_US if usage.get("inference_geo") == "us" else 1) * (IN_A_BATCH if _is_batch(usage) else Decimal(1))


def _cost(charged: list[tuple[str, Fields]], factor: Decimal, *, speed: str | None) -> int | None:
    """Return the cost in micro-dollars, rounded up; None if a model has no price.

    Args:
        factor: of the price of tokens.
        speed: of the call.
    """
    try:
        tokens = sum(
            (
                list_price(model, Usage(**_tokens(each), cache_write_1h_tokens=_for_an_hour(each)), speed=speed)
                for model, each in charged
            )
        )
        searches = sum(
            list_price(model, Usage(web_searches=number))
            for model, each in charged
            if (number := _besides(each).get("web_search_requests"))
        )
    except LookupError:
        return None
    return math.ceil((factor * tokens + searches) * 1_000_000)


@lru_cache(maxsize=256)
def _has_price(model: str) -> bool:
    """Return whether the list has a model. The list itself remembers those that it has."""
    try:
        calc_price(Usage(), model_ref=model, provider_id="anthropic")
    except LookupError:
        return False
    return True


def _for_an_hour(usage: Fields) -> int:
    """Tokens written to the prompt cache for an hour, which cost more than those for five minutes."""
    return min(
        _count(usage, "cache_creation", "ephemeral_1h_input_tokens"), _count(usage, "cache_creation_input_tokens")
    )


def _count(reported: Any, *path: str) -> int:
    """Return a number in the report, at most `MOST`; 0 if it is absent."""
    for name in path:
        reported = reported.get(name) if isinstance(reported, dict) else None
    return min(max(0, reported), MOST) if type(reported) is int else 0


def _sum(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    first, *others = counts
    return {name: count + sum(other[name] for other in others) for name, count in first.items()}
