"""Checks of `minion doctor`: the providers of models in MINION_PROVIDERS."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from urllib.parse import urlsplit

import httpx2

from orchestrator.commands.findings import Finding, judged
from shared.providers import Kind, Provider
from shared.secret_store import scrub
from shared.settings import Settings, is_loopback

NEEDED_PACKAGES: dict[Kind, str] = {"openai": "openai"}
FINDERS: dict[Kind, str] = {"bedrock": "boto3", "vertex": "google.auth"}
"""Modules that find the credentials of a platform, if there is no key."""


LISTS: dict[Kind, str] = {"openai": "/models", "anthropic": "/v1/models"}
"""Paths of the lists of models, which cost nothing. The addresses of platforms are asked without a path or a key."""
PATIENCE = 5.0
"""Seconds without an answer."""
NO_ANSWER = "check its address in MINION_PROVIDERS, and whether the workers reach it from where they run"


def providers(settings: Settings) -> Iterator[Finding]:
    """Yield a finding for each provider; where processes have other keys and packages, for this machine alone."""
    for provider in settings.providers.values():
        has_key = settings.key_of(provider.name) is not None
        found = f"{provider.kind} at {provider.address}, {'with a key' if has_key else 'without a key'} here"
        yield judged(f"provider {provider.name}", found, warning=_advice(provider, has_key=has_key))


def answers(settings: Settings) -> Iterator[Finding]:
    """Yield a finding for each provider: whether it answers this machine, and takes its key. No model is called."""
    for provider in settings.providers.values():
        yield _answer(provider, settings.key_of(provider.name))


def _answer(provider: Provider, key: str | None) -> Finding:
    what = f"answer of {provider.name}"
    asked = provider.kind in LISTS
    address = provider.address + LISTS.get(provider.kind, "")
    headers = {"Authorization": f"Bearer {key}"} if asked and key else {}
    try:
        with httpx2.stream("GET", address, headers=headers, timeout=PATIENCE, follow_redirects=False) as response:
            status = response.status_code
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        return Finding(what, "warning", f"none: {scrub(str(error) or type(error).__name__, [key or ''])}", NO_ANSWER)
    if not asked or status not in (401, 403):
        advice = "it redirects, which calls do not follow: correct its address" if 300 <= status < 400 else ""
        return judged(what, f"status {status}", warning=advice)
    refused = f"it refuses the key: correct {provider.name!r} in MINION_PROVIDER_KEYS"
    needs = f"it needs a key: set {provider.name!r} in MINION_PROVIDER_KEYS, unless each namespace has its own"
    return Finding(what, "warning", f"status {status}", refused if key else needs)


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
