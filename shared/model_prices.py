"""Prices of models: those that the operator has set for a provider, else those in the list of genai-prices."""

from __future__ import annotations

from decimal import Decimal
from functools import lru_cache

from genai_prices import Usage, calc_price

from shared.providers import ANTHROPIC_URL, Price, Provider, claude_name

A_MILLION = Decimal(1_000_000)


def price_of(
    provider: Provider,
    model: str,
    *,
    input_tokens: int = 0,
    output_tokens: int = 0,
    cache_read_tokens: int = 0,
    cache_write_tokens: int = 0,
) -> Decimal:
    """Return the price of a usage in US dollars.

    Claude has the list price of the Anthropic API on every platform. Where a platform's price differs, the operator
    sets it.

    Args:
        model: the provider's name of it.
        input_tokens: all of them, including those read from and written to the prompt cache.

    Raises:
        LookupError: the model has no price.
    """
    if (price := provider.price(model)) is not None:
        return _operators(price, input_tokens, output_tokens, cache_read_tokens)
    used = {
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "cache_read_tokens": cache_read_tokens,
        "cache_write_tokens": cache_write_tokens,
    }
    if not has_list_price(provider, model):
        raise LookupError(model)
    return _listed(provider, model, Usage(**used))


def has_price(provider: Provider, model: str) -> bool:
    """Return whether a model has a price."""
    return provider.price(model) is not None or has_list_price(provider, model)


def has_list_price(provider: Provider, model: str) -> bool:
    """Return whether the list of prices has a model of this provider."""
    return _is_listed(claude_name(model) if provider.is_claude else model, _address_in_list(provider))


@lru_cache(maxsize=256)
def _is_listed(model: str, address: str) -> bool:
    """Return whether the list has a model. The list itself remembers those that it has."""
    try:
        calc_price(Usage(), model_ref=model, provider_api_url=address)
    except LookupError:
        return False
    return True


def _listed(provider: Provider, model: str, usage: Usage) -> Decimal:
    ref = claude_name(model) if provider.is_claude else model
    return calc_price(usage, model_ref=ref, provider_api_url=_address_in_list(provider)).total_price


def _address_in_list(provider: Provider) -> str:
    """Return the address by which the list knows a provider."""
    return ANTHROPIC_URL if provider.is_claude else provider.address


def _operators(price: Price, input_tokens: int, output_tokens: int, cached: int) -> Decimal:
    of_cached = price.input if price.cached_input is None else price.cached_input
    parts = ((input_tokens - cached, price.input), (cached, of_cached), (output_tokens, price.output))
    return sum((tokens * Decimal(str(dollars)) for tokens, dollars in parts), Decimal(0)) / A_MILLION
