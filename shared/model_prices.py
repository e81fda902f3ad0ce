"""Prices of models: those that the operator has set for a provider, else those in the list of genai-prices."""

from __future__ import annotations

from decimal import Decimal
from functools import lru_cache

from genai_prices import Usage, calc_price

from shared.model_usage import list_price
from shared.providers import ANTHROPIC_URL, Price, Provider, claude_name, own_name, split
from shared.settings import get_settings

A_MILLION = Decimal(1_000_000)


def price_by_name(model: str, usage: Usage, *, speed: str | None = None) -> Decimal:
    """Return the price of a usage in US dollars. See `price_of`.

    Args:
        model: with the name of its provider, as in definitions.
    """
    provider = get_settings().known_providers().get(split(model)[0])
    if provider is None:
        raise LookupError(model)
    return price_of(provider, own_name(model), usage, speed=speed)


def price_of(provider: Provider, model: str, usage: Usage, *, speed: str | None = None) -> Decimal:
    """Return the price of a usage in US dollars.

    Claude has the list price of the Anthropic API on every platform. Where a platform's price differs, the operator
    sets it.

    Args:
        model: the provider's name of it.
        usage: all input tokens, including those read from and written to the prompt cache.
        speed: that of the call: a fast one has separate prices.

    Raises:
        LookupError: the model has no price.
    """
    if (price := provider.price(model)) is not None:
        return _operators(price, usage)
    if provider.is_claude:
        return list_price(claude_name(model), usage, speed=speed)
    if not has_list_price(provider, model):
        raise LookupError(model)
    # Only Claude has a price for writing to the cache.
    read = Usage(**{name: count for name, count in vars(usage).items() if not name.startswith("cache_write")})
    return calc_price(read, model_ref=model, provider_api_url=provider.address).total_price


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


def _address_in_list(provider: Provider) -> str:
    """Return the address by which the list knows a provider."""
    return ANTHROPIC_URL if provider.is_claude else provider.address


def _operators(price: Price, usage: Usage) -> Decimal:
    used = vars(usage)
    cached = used.get("cache_read_tokens", 0)
    of_cached = price.input if price.cached_input is None else price.cached_input
    fresh = used.get("input_tokens", 0) - cached
    parts = ((fresh, price.input), (cached, of_cached), (used.get("output_tokens", 0), price.output))
    return sum((tokens * Decimal(str(dollars)) for tokens, dollars in parts), Decimal(0)) / A_MILLION
