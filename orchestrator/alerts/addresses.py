"""The operator's addresses for alerts: e-mail, Slack-compatible webhooks and others, by Apprise.

An address contains secrets: a password, a token. It is shown as its kind and a digest, nowhere in full.
"""

from __future__ import annotations

import hashlib
import logging
import re
import warnings
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING
from urllib.parse import unquote

from orchestrator.alerts.notices import harmless
from shared.errors import NotConfigured
from shared.settings import Settings

if TYPE_CHECKING:
    from apprise import Apprise, AppriseAsset

MOST_ADDRESSES = 20
LONGEST_REASON = 300
SHORTEST_SECRET = 4
LOGGER = "apprise"
OVERFLOW = re.compile(r"(?i)[?&]overflow=")


@dataclass(frozen=True, slots=True)
class Address:
    """An address.

    Attributes:
        name: its kind and a digest, such as `slack:3fa9c01e`.
    """

    url: str = field(repr=False)

    @property
    def kind(self) -> str:
        """The scheme."""
        return self.url.partition("://")[0].lower()[:20]

    @property
    def name(self) -> str:
        """The name that logs and lists show."""
        return f"{self.kind}:{_digest(self.url)}"

    def send(self, title: str, text: str) -> str | None:
        """Send plain text; return why it was not accepted, or None."""
        target = self._target()
        from apprise import NotifyFormat

        try:
            with target.notify(title=title, body=text, body_format=NotifyFormat.TEXT) as result:
                if result:
                    return None
                said = " ".join(entry.message for entry in result.logs())
        except Exception as error:  # plugins raise what their libraries do
            return self._scrubbed(f"{type(error).__name__}: {error}")
        return self._scrubbed(said) or "The receiver did not accept it."

    def check(self) -> None:
        """Raise NotConfigured if the address is invalid."""
        self._target()

    def _target(self) -> Apprise:
        # Its module for encrypted mail imports one that Python has deprecated.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            import apprise

            target = apprise.Apprise(asset=_asset())
            accepted = target.add(self.url)
        if not accepted:
            raise NotConfigured(
                f"Invalid MINION_ALERT_URLS: Apprise does not accept the address that begins with {self.kind}://. "
                "Addresses are separated by spaces; https://appriseit.com/services/ lists their forms."
            )
        if len(target) != 1:
            raise NotConfigured(
                f"Invalid MINION_ALERT_URLS: what begins with {self.kind}:// is {len(target)} addresses. "
                "They must be separated by spaces, so that each is tried again alone."
            )
        for service in target:
            # By default it sends what is too long for the service, which refuses that.
            if not OVERFLOW.search(self.url):
                service.overflow_mode = apprise.OverflowMode.TRUNCATE
        return target

    def _scrubbed(self, reason: str) -> str:
        """Return a reason without anything of the address but its kind."""
        rest = self.url.partition("://")[2]
        raw = {*re.split(r"[/:@?&=#,]+", rest), *re.split(r"[^\w.-]+", unquote(rest)), rest, self.url}
        parts = raw | {unquote(part) for part in raw}
        for part in sorted(parts, key=len, reverse=True):
            if len(part) >= SHORTEST_SECRET:
                reason = reason.replace(part, "…")
        return harmless(reason.strip())[:LONGEST_REASON]


def of(settings: Settings) -> list[Address]:
    """Return the operator's addresses.

    Raises:
        NotConfigured: there are too many.
    """
    written = settings.alert_urls.get_secret_value().split() if settings.alert_urls else []
    if len(written) > MOST_ADDRESSES:
        raise NotConfigured(f"MINION_ALERT_URLS has {len(written)} addresses: it must have at most {MOST_ADDRESSES}.")
    return [Address(url) for url in dict.fromkeys(written)]


def check(settings: Settings) -> None:
    """Raise NotConfigured if an address is invalid."""
    for address in of(settings):
        address.check()


@cache
def _digest(url: str) -> str:
    """Return a digest of an address. It is slow, because the rest of an address may be known and its password weak."""
    return hashlib.scrypt(url.encode(), salt=b"minions alert address", n=2**14, r=8, p=1, dklen=4).hex()


@cache
def _asset() -> AppriseAsset:
    """Return how Apprise is to behave: nothing is written to the disk, no redirect followed, no text interpreted."""
    import apprise

    logger = logging.getLogger(LOGGER)
    # It logs payloads; ours has the outcome.
    logger.propagate = False
    logger.setLevel(logging.WARNING)
    logger.addHandler(logging.NullHandler())
    return apprise.AppriseAsset(
        app_id="Minions",
        app_desc="Minions",
        app_url="",
        async_mode=False,
        http_redirects=False,
        interpret_emojis=False,
        interpret_escapes=False,
        storage_mode="memory",
        plugin_paths=[],
        # With a limit, it sends in threads that the end of the process waits for. Sockets have separate limits.
        service_timeout=0,
    )
