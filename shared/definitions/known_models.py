"""Models known to this installation: those without a provider, and those in the price list of a configured provider."""

from __future__ import annotations

from shared.contracts.documents import AgentDefinition
from shared.contracts.sampling import AUTO, OFFLINE

PROVIDER = "anthropic"


def unknown_models(definition: AgentDefinition) -> tuple[str, ...]:
    """Return a warning for each unknown model of an agent.

    The model may exist all the same: behind a gateway, or since the price list was made.
    """
    config = definition.config
    named = [("model", definition.model), ("config.router_model", config.router_model)]
    named += [("config.fallback_models", model) for model in config.fallback_models]
    return tuple(
        f"agent {definition.name!r}, {field}: no configured provider and no price list knows the model {model!r}. "
        "Check its name. Its calls fail unless ANTHROPIC_BASE_URL serves it, and their cost is not known."
        for field, model in named
        if model is not None and not _is_known(model)
    )


def _is_known(model: str) -> bool:
    if model in (AUTO, OFFLINE):
        return True
    # Needed only when definitions are stored.
    from genai_prices import Usage, calc_price

    try:
        calc_price(Usage(), model_ref=model, provider_id=PROVIDER)
    except LookupError:
        return False
    return True
