"""The authorization servers that a server names (RFC 9728), for the person who writes its definition.

Calls do not use it: their secrets go to the authorization server that the definition names.
"""

from __future__ import annotations

import re
from contextlib import suppress
from urllib.parse import urlsplit

import httpx2

from shared.contracts.strict_json import JsonValue, parse
from shared.errors import InvalidInput, MinionError
from shared.mcp.protocol import DISCOVER, MODERN, VERSION_HEADER, request
from shared.outbound import checked_url, guarded_client, read_body
from shared.settings import Settings

SECONDS = 10.0
MAX_BYTES = 64 << 10
MOST = 10
NAMED = re.compile(r'\bresource_metadata="([^"]{1,2000})"')


def authorization_servers(url: str, settings: Settings) -> list[str]:
    """Return the issuers that a server names; none if it names none, or cannot be asked.

    Args:
        url: of its MCP endpoint. Metadata about another address are ignored.
    """
    for address in _addresses(url, settings):
        found = _get(address, settings)
        if isinstance(found, dict) and _covers(found.get("resource"), url):
            return _issuers(found.get("authorization_servers"))
    return []


def _addresses(url: str, settings: Settings) -> list[str]:
    """Return where the metadata may be, in the order of the MCP specification."""
    parts = urlsplit(url)
    well_known = f"{parts.scheme}://{parts.netloc}/.well-known/oauth-protected-resource"
    path = parts.path.rstrip("/")
    named = NAMED.search(_challenge(url, settings))
    # Elsewhere may be an address that only this machine reaches.
    is_own = named is not None and named[1].startswith(f"{parts.scheme}://{parts.netloc}/")
    return [*([named[1]] if named and is_own else []), *([well_known + path] if path else []), well_known]


def _challenge(url: str, settings: Settings) -> str:
    """Return the header WWW-Authenticate of a refused request without credentials; empty if there is none."""
    sent = request(1, DISCOVER, {})
    with (
        suppress(httpx2.HTTPError, MinionError),
        guarded_client(settings, seconds=SECONDS) as client,
        client.stream("POST", url, json=sent, headers={VERSION_HEADER: MODERN}) as response,
    ):
        return response.headers.get("WWW-Authenticate", "")
    return ""


def _get(address: str, settings: Settings) -> JsonValue:
    with (
        suppress(httpx2.HTTPError, MinionError),
        guarded_client(settings, seconds=SECONDS) as client,
        client.stream("GET", address) as response,
    ):
        body = read_body(response, MAX_BYTES)
        return parse(body) if body is not None and response.status_code == 200 else None
    return None


def _issuers(given: JsonValue) -> list[str]:
    return [each for each in given[:MOST] if _is_address(each)] if isinstance(given, list) else []


def _covers(resource: JsonValue, url: str) -> bool:
    """Return whether metadata are about an address, or about one above it."""
    return isinstance(resource, str) and f"{url.rstrip('/')}/".startswith(f"{resource.rstrip('/')}/")


def _is_address(given: JsonValue) -> bool:
    try:
        return isinstance(given, str) and bool(checked_url(given))
    except InvalidInput:
        return False
