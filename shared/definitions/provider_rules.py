"""Features that the provider of an agent's model can honour, checked when the agent is stored.

Only settings that every server of a kind takes are accepted: a setting is refused by its name, never dropped silently.
"""

from __future__ import annotations

from collections.abc import Iterator

from shared.contracts import sampling
from shared.contracts.constrained import can_be_constrained, requires_all
from shared.contracts.documents import AgentConfig, AgentDefinition
from shared.contracts.json_schema import Schema
from shared.errors import InvalidDefinition
from shared.providers import (
    ANTHROPIC,
    IN_BEDROCK,
    OPENAI_URL,
    Provider,
    Providers,
    claude_name,
    split,
    unknown_provider,
)
from shared.settings import get_settings

HONOURED_BY_CHAT = frozenset({"effort", "tool_choice", "stop_sequences", "user_id", "fallback_models"})
"""Settings beside sampling that the Chat Completions API has."""
MOST_STOP_SEQUENCES = 4
"""That OpenAI takes."""
ONLY_AT_ANTHROPIC = ("service_tier",)
BETAS_ONLY_AT_ANTHROPIC = ("files-api-", "message-batches-", "skills-", "mcp-client-", "fast-mode-")
"""Beginnings of the names of betas that no platform of Claude has."""
OWN_MODELS = (sampling.AUTO, sampling.OFFLINE)


def check_models(definition: AgentDefinition, providers: Providers) -> None:
    """Refuse models of unknown providers, and what the provider of the agent's model cannot honour.

    Raises:
        InvalidDefinition: names the agent, the setting and the provider.
    """
    place = f"agent {definition.name!r}"
    config = definition.config
    named = [("model", definition.model), ("config.router_model", config.router_model)]
    named += [("config.fallback_models", model) for model in config.fallback_models]
    for field, model in named:
        if model is None or model in OWN_MODELS:
            continue
        if (provider := providers.get(split(model)[0])) is None:
            raise InvalidDefinition(f"{place}, {field}: {unknown_provider(model, providers)}.")
        if fault := _name_fault(provider, split(model)[1]):
            raise InvalidDefinition(f"{place}, {field}: {fault}.")
        if field == "config.fallback_models" and provider.is_claude != _is_claude(definition.model, providers):
            raise InvalidDefinition(
                f"{place}, {field}: the model {model!r} cannot continue a conversation of {definition.model!r}: "
                "only Claude continues those of Claude, and only models with Chat Completions those of another one."
            )
        if provider.name != ANTHROPIC and (faults := [*_faults(config, provider, field)]):
            raise InvalidDefinition(f"{place}: the provider {provider.name!r} cannot honour {'; '.join(faults)}.")
        if field != "config.router_model" and provider.is_claude and provider.name != ANTHROPIC:
            sampling.check(claude_name(split(model)[1]), config.sampling(), where=place)


def strictness_fault(schema: Schema, model: str, providers: Providers) -> str | None:
    """Return the reason why a provider cannot constrain a model to a tool's schema, or None if it can."""
    provider = providers.get(split(model)[0])
    if provider is not None and not provider.is_claude:
        if not provider.has("json_schema"):
            return f"the provider {provider.name!r} is not configured with the feature `json_schema`"
        return (
            None if requires_all(schema) else "the Chat Completions API requires that all its properties are required"
        )
    return None if can_be_constrained(split(model)[1]) else f"the model {model!r} is not known to support that"


def _is_claude(model: str | None, providers: Providers) -> bool:
    meant = get_settings().default_model if model in (None, sampling.AUTO) else model
    provider = providers.get(split(meant)[0])
    return provider is None or provider.is_claude


def _name_fault(provider: Provider, own: str) -> str | None:
    if provider.kind == "bedrock" and not IN_BEDROCK.fullmatch(own):
        return (
            f"{own[:200]!r} is not the name of a model of Claude in Amazon Bedrock: it must be like anthropic.claude-…"
        )
    if provider.kind == "vertex" and not own.startswith("claude-"):
        return f"{own[:200]!r} is not the name of a model of Claude in Google Cloud: it must be like claude-…"
    return None


def _faults(config: AgentConfig, provider: Provider, field: str) -> Iterator[str]:
    """Yield what the provider cannot honour. Of an agent that routes, only the lane concerns the model."""
    if config.lane != "direct" and not provider.has_batches:
        yield f"lane={config.lane}: it has no batches"
    if field == "config.router_model":
        return
    chosen = [name for name in AgentConfig.OF_MODELS if getattr(config, name)]
    if provider.is_platform:
        yield from (name for name in chosen if name in ONLY_AT_ANTHROPIC)
        yield from (f"the beta {beta}" for beta in config.betas if beta.startswith(BETAS_ONLY_AT_ANTHROPIC))
    if not provider.is_claude:
        yield from (name for name in chosen if name not in HONOURED_BY_CHAT)
        if config.top_k is not None:
            yield f"top_k={config.top_k}"
        if provider.address == OPENAI_URL and len(config.stop_sequences) > MOST_STOP_SEQUENCES:
            yield f"{len(config.stop_sequences)} stop_sequences: it takes {MOST_STOP_SEQUENCES}"
