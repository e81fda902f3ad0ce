"""The key with which the calls of a namespace are made: its own for that provider, or that of the installation.

A namespace's key is its secret `provider.NAME`. A process looks for it at most every half a minute, so that a new key
is used that soon after.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from sqlalchemy import Connection

from shared.database.connections import persistently
from shared.errors import ModelError, NotConfigured
from shared.providers import ANTHROPIC, KEY_TEXT, OWN_KEY, Provider, split, unknown_provider
from shared.secret_store import times_of, values_of
from shared.settings import get_settings

FRESH_SECONDS = 30.0
MOST_KNOWN = 10_000


@dataclass(frozen=True, slots=True)
class Account:
    """A provider, and the key for it.

    Attributes:
        key: None if calls are made without one, or with credentials that the platform's own library finds.
        source: where the key comes from, for people.
        is_own: it is the namespace's own key.
    """

    provider: Provider
    key: str | None = field(repr=False)
    source: str
    is_own: bool = False

    @property
    def identity(self) -> tuple[str, str, str]:
        """The account to which clients and limits belong."""
        return self.provider.name, self.provider.address, self.key or ""


_known: dict[tuple[str, str], tuple[str | None, float]] = {}
"""Keys of namespaces, None where there is none, by provider and namespace; with the time until which they are fresh."""


def provider_of(model: str) -> Provider:
    """Return the provider of a model.

    Raises:
        ModelError: it is not configured.
    """
    providers = get_settings().known_providers()
    found = providers.get(split(model)[0])
    if found is None:
        reason = unknown_provider(model, providers)
        raise ModelError(f"{reason[0].upper()}{reason[1:]}, for the workers and the orchestrator.")
    return found


def account_of(provider: Provider, namespace: str) -> Account:
    """Return the account for the calls of a namespace.

    Raises:
        ModelError: a key cannot be read or sent.
    """
    if (own := _namespaces_key(provider.name, namespace)) is not None:
        source = f"the secret {OWN_KEY}{provider.name} of the namespace {namespace!r}"
        return _checked(Account(provider, own, source, is_own=True))
    source = "ANTHROPIC_API_KEY" if provider.name == ANTHROPIC else f"{provider.name!r} in MINION_PROVIDER_KEYS"
    return _checked(Account(provider, get_settings().key_of(provider.name), source))


def forget() -> None:
    """Forget the keys of namespaces."""
    _known.clear()


def _checked(account: Account) -> Account:
    """Return the account if a header can hold its key. The libraries' own errors would quote it."""
    if account.key is not None and not KEY_TEXT.fullmatch(account.key):
        raise ModelError(
            f"{account.source[0].upper()}{account.source[1:]} cannot be sent: a key must be printable ASCII without "
            "spaces and line breaks. Set a valid one."
        )
    return account


def _namespaces_key(provider: str, namespace: str) -> str | None:
    key, until = _known.get((provider, namespace), (None, 0.0))
    if time.monotonic() < until:
        return key
    try:
        key = persistently(_read, f"{OWN_KEY}{provider}", namespace)
    except NotConfigured as error:
        # The installation's key must not pay instead.
        raise ModelError(
            f"The key for {provider!r} of the namespace {namespace!r} cannot be read: {error.message}"
        ) from None
    if len(_known) >= MOST_KNOWN:
        _known.clear()
    _known[provider, namespace] = key, time.monotonic() + FRESH_SECONDS
    return key


def _read(connection: Connection, name: str, namespace: str) -> str | None:
    if not times_of(connection, [name], namespace):
        return None
    return values_of(connection, [name], namespace)[name]
