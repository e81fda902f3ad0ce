"""Model clients: one module or room for each kind of provider, found by the name before the colon of a model."""

from __future__ import annotations

from contextlib import suppress

from shared.contracts.sampling import AUTO, OFFLINE
from shared.errors import ModelError
from shared.providers import ANTHROPIC, Provider
from shared.settings import get_settings
from workers.llm.accounts import account_of, provider_of
from workers.llm.base import ModelClient
from workers.llm.offline import OfflinePlanner


def resolve(model: str, namespace: str = "default") -> str:
    """Return the model that `auto` selects: the configured one if its provider can be asked, else the offline planner.

    The Anthropic API is asked with a key alone; another provider may need none.

    Raises:
        ModelError: MINION_DEFAULT_MODEL names a provider that is not configured.
    """
    if model != AUTO:
        return model
    selected = get_settings().default_model
    if selected == OFFLINE:
        return OFFLINE
    provider = provider_of(selected)
    usable = provider.name != ANTHROPIC or account_of(provider, namespace).key is not None
    return selected if usable else OFFLINE


def client_for(model: str) -> ModelClient:
    """Return the client that serves a model. The first one of a kind loads its SDK, which takes 40 MB.

    Raises:
        ModelError: its provider is not configured, or its SDK is not installed.
    """
    return OfflinePlanner() if model == OFFLINE else _client_of(provider_of(model))


def load() -> None:
    """Load the SDKs and the prices in a process whose forks will call models: those that are configured."""
    settings = get_settings()
    if settings.anthropic_api_key:
        from workers.llm import anthropic

        anthropic.load()
    for provider in {each.kind: each for each in settings.providers.values()}.values():
        with suppress(ModelError):  # The first call reports it.
            _client_of(provider)


def _client_of(provider: Provider) -> ModelClient:
    if provider.kind != "openai":
        from workers.llm.anthropic import AnthropicClient

        return AnthropicClient(provider)
    try:
        from workers.llm.chat.client import ChatClient
    except ModuleNotFoundError as error:
        if error.name != "openai":
            raise
        raise ModelError(
            f"The provider {provider.name!r} needs the package `openai`: install `minions-server[openai]` for the "
            "workers."
        ) from None
    return ChatClient(provider)
