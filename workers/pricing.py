"""Upper bounds of a model call's cost: the amount reserved from the budgets above a task before the call is made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal

from shared.contracts.sampling import OFFLINE
from shared.model_prices import price_of
from shared.model_usage import IN_A_BATCH
from shared.providers import Provider, own_name, split
from shared.settings import get_settings


@dataclass(frozen=True, slots=True)
class Reservation:
    """Upper bound of what a step may use. `microdollars` is None if its price is unknown."""

    tokens: int
    microdollars: int | None


FREE = Reservation(0, 0)


def worst_case(model: str, input_tokens: int, max_tokens: int, *, in_batch: bool = False) -> Reservation:
    """Return the most that a model call may use: all of its input written to the prompt cache, and an answer of the
    maximum length.

    Args:
        input_tokens: counted, or an estimate that errs on the high side.
        max_tokens: limit of the answer.
        in_batch: the call is made in a Message Batch.
    """
    tokens = input_tokens + max_tokens
    if model == OFFLINE:
        return Reservation(tokens, 0)
    provider = get_settings().known_providers().get(split(model)[0])
    try:
        price = max(
            _price(provider, own_name(model), input_tokens, max_tokens, cache_write_tokens=written)
            for written in (0, input_tokens)
        )
    except LookupError:
        return Reservation(tokens, None)
    return Reservation(tokens, math.ceil(price * (IN_A_BATCH if in_batch else 1) * 1_000_000))


def _price(
    provider: Provider | None, model: str, input_tokens: int, output_tokens: int, *, cache_write_tokens: int
) -> Decimal:
    if provider is None:
        raise LookupError(model)
    # Only Claude has a price for writing to the cache.
    written = cache_write_tokens if provider.is_claude else 0
    return price_of(provider, model, input_tokens=input_tokens, output_tokens=output_tokens, cache_write_tokens=written)
