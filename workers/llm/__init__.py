"""Model clients: one module per provider."""

from __future__ import annotations

from shared.contracts.sampling import AUTO, OFFLINE
from shared.settings import get_settings
from workers.llm.base import ModelClient
from workers.llm.offline import OfflinePlanner


def resolve(model: str) -> str:
    """Return the model that `auto` selects: the configured one if there is a key, else the offline planner."""
    if model != AUTO:
        return model
    settings = get_settings()
    return settings.default_model if settings.anthropic_api_key else OFFLINE


def client_for(model: str) -> ModelClient:
    """Return the client that serves a model. The first one loads the SDK, which takes 40 MB."""
    if model == OFFLINE:
        return OfflinePlanner()
    from workers.llm.anthropic import AnthropicClient

    return AnthropicClient()


def load() -> None:
    """Load the SDK and the prices in a process whose forks will call models: one that has a key."""
    if get_settings().anthropic_api_key:
        from workers.llm import anthropic

        anthropic.load()
