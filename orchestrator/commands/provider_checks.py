"""Checks of `minion doctor`: the providers of models in MINION_PROVIDERS."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from urllib.parse import urlsplit

from orchestrator.commands.findings import Finding, judged
from shared.providers import Kind, Provider
from shared.settings import Settings, is_loopback

NEEDED_PACKAGES: dict[Kind, str] = {"openai": "openai"}
FINDERS: dict[Kind, str] = {"bedrock": "boto3", "vertex": "google.auth"}
"""Modules that find the credentials of a platform, if there is no key."""


def providers(settings: Settings) -> Iterator[Finding]:
    """Yield a finding for each provider; where processes have other keys and packages, for this machine alone."""
    for provider in settings.providers.values():
        has_key = settings.key_of(provider.name) is not None
        found = f"{provider.kind} at {provider.address}, {'with a key' if has_key else 'without a key'} here"
        yield judged(f"provider {provider.name}", found, warning=_advice(provider, has_key=has_key))


def _advice(provider: Provider, *, has_key: bool) -> str:
    address = urlsplit(provider.address)
    needed = NEEDED_PACKAGES.get(provider.kind) or ("" if has_key else FINDERS.get(provider.kind, ""))
    if needed and not _is_installed(needed):
        return f"workers need `{needed}`: install `minions-server[{provider.kind}]`"
    if provider.kind in ("anthropic", "foundry") and not has_key:
        return "workers need its key in MINION_PROVIDER_KEYS, unless each namespace has its own"
    if has_key and address.scheme == "http" and not is_loopback(address.hostname):
        return "its key is sent in plain text: use https:// outside of a private network"
    return ""


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
