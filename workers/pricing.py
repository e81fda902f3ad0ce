"""Upper bounds of a model call's cost: the amount reserved from the budgets above a task before the call is made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal

from genai_prices import Usage

from shared.contracts.sampling import OFFLINE
from shared.model_prices import price_by_name
from shared.model_usage import IN_A_BATCH


@dataclass(frozen=True, slots=True)
class Reservation:
    """Upper bound of what a step may use. `microdollars` is None if its price is unknown."""

    tokens: int
    microdollars: int | None


FREE = Reservation(0, 0)


def worst_case(
    model: str,
    input_tokens: int,
    max_tokens: int,
    *,
    in_batch: bool = False,
    for_an_hour: bool = False,
    speed: str | None = None,
    compacts_at: int | None = None,
) -> Reservation:
    """Return the most that a model call may use: all of its input written to the prompt cache, and an answer of the
    maximum length.

    Args:
        input_tokens: counted, or an estimate that errs on the high side.
        max_tokens: limit of the answer.
        in_batch: the call is made in a Message Batch.
        for_an_hour: the input may be written to the cache for an hour, which costs more.
        speed: that of the request.
        compacts_at: input tokens at which the API compacts the conversation, which takes a call of its own.
    """
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
    except LookupError:
        return Reservation(tokens, None)
    return Reservation(tokens, math.ceil(calls * price * (IN_A_BATCH if in_batch else Decimal(1)) * 1_000_000))
