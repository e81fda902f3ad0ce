"""Models known to this installation: those without a provider, and those whose price a configured provider has."""

from __future__ import annotations

from shared.contracts.documents import AgentDefinition
from shared.contracts.sampling import AUTO, OFFLINE
from shared.providers import ANTHROPIC, split
from shared.settings import get_settings


def unknown_models(definition: AgentDefinition) -> tuple[str, ...]:
    """Return a warning for each unknown model of an agent.

    The model may exist all the same: behind a gateway, or since the price list was made.
    """
    config = definition.config
    named = [("model", definition.model), ("config.router_model", config.router_model)]
    named += [("config.fallback_models", model) for model in config.fallback_models]
    return tuple(
        f"agent {definition.name!r}, {field}: no configured provider and no price list knows the model {model!r}. "
        f"Check its name. {_consequences(model)}"
        for field, model in named
        if model is not None and not _is_known(model)
    )


def _is_known(model: str) -> bool:
    if model in (AUTO, OFFLINE):
        return True
    # Needed only when definitions are stored: it loads the list of prices.
    from shared.model_prices import has_price

    name, own = split(model)
    provider = get_settings().known_providers().get(name)
    return provider is not None and has_price(provider, own)


def _consequences(model: str) -> str:
    if split(model)[0] == ANTHROPIC:
        return "Its calls fail unless ANTHROPIC_BASE_URL serves it, and their cost is not known."
    return "The cost of its calls is not known until MINION_PROVIDERS has its price."
