"""Upper bounds of a model call's cost: the amount reserved from the budgets above a task before the call is made."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

from genai_prices import Usage

from shared.contracts.sampling import OFFLINE
from shared.contracts.server_tools import ApiTool, WebFetch, WebSearch, WebTool
from shared.model_prices import price_by_name
from shared.model_usage import IN_A_BATCH


@dataclass(frozen=True, slots=True)
class Reservation:
    """Upper bound of what a step may use. `microdollars` is None if its price is unknown."""

    tokens: int
    microdollars: int | None


FREE = Reservation(0, 0)
TOKENS_OF_A_SEARCH = 10_000
"""The results of one search, which the API does not limit: an estimate on the high side."""


def worst_case(
    model: str,
    input_tokens: int,
    max_tokens: int,
    *,
    in_batch: bool = False,
    for_an_hour: bool = False,
    speed: str | None = None,
    compacts_at: int | None = None,
    api_tools: Iterable[ApiTool] = (),
) -> Reservation:
    """Return the most that a model call may use: all of its input written to the prompt cache, an answer of the
    maximum length, and every search and fetch that it may make.

    Args:
        input_tokens: counted, or an estimate that errs on the high side.
        max_tokens: limit of the answer.
        in_batch: the call is made in a Message Batch.
        for_an_hour: the input may be written to the cache for an hour, which costs more.
        speed: that of the request.
        compacts_at: input tokens at which the API compacts the conversation, which takes a separate call.
        api_tools: the tools that the API runs within the call. What they find is input too.
    """
    web = [tool for tool in api_tools if isinstance(tool, WebTool)]
    searches = sum(tool.max_uses for tool in web if isinstance(tool, WebSearch))
    input_tokens += sum(tool.max_uses * _tokens_found(tool) for tool in web)
    calls = 2 if compacts_at is not None and input_tokens + max_tokens >= compacts_at else 1
    tokens = calls * (input_tokens + max_tokens)
    if model == OFFLINE:
        return Reservation(tokens, 0)
    hour = input_tokens if for_an_hour else 0
    try:
        price = max(
            price_by_name(
                model,
                Usage(
                    input_tokens=input_tokens,
                    output_tokens=max_tokens,
                    cache_write_tokens=written,
                    cache_write_1h_tokens=min(written, hour),
                ),
                speed=speed,
            )
            for written in (0, input_tokens)
        )
        searching = price_by_name(model, Usage(web_searches=searches)) if searches else Decimal(0)
    except LookupError:
        return Reservation(tokens, None)
    of_tokens = calls * price * (IN_A_BATCH if in_batch else Decimal(1))
    return Reservation(tokens, math.ceil((of_tokens + searching) * 1_000_000))


def _tokens_found(tool: WebTool) -> int:
    return tool.max_content_tokens if isinstance(tool, WebFetch) else TOKENS_OF_A_SEARCH
