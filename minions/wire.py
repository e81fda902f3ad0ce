"""Requests and answers of the API as bytes and values: what is the same for both clients."""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import quote
from uuid import UUID

import httpx2

from minions.backoff import exponential, jittered
from minions.errors import InvalidInput, MinionsError, NotConfigured, ServerError, Unavailable, from_problem

SCHEMES = ("http", "https")
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
RETRIED_STATUS = frozenset({429, 502, 503, 504})
NO_CONTENT = 204
LONGEST_PAUSE = 5.0
LONGEST_SILENCE = 40.0  # of a stream of events: the API sends something every 15 s
PAGE = 200
# Valid in a header: printable ASCII without a trailing space.
KEY = re.compile(r"[\x20-\x7e\t]*[\x21-\x7e]")
# No byte of the request has left, so it cannot have had an effect.
NOT_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)


def connection_options(url: str, api_key: str, actor: str | None) -> dict[str, Any]:
    """Return the arguments of an HTTP client for the API.

    Raises:
        InvalidInput: `actor` contains characters that cannot be displayed.
        NotConfigured: `url` is not an address, or `api_key` is not valid in a header; the message does not quote the
            key, as the library's own would.
    """
    if not KEY.fullmatch(api_key):
        raise NotConfigured(
            "Invalid API key: it must be printable ASCII on one line, without trailing spaces. Check MINION_API_KEY."
        )
    actor = (actor or "").strip()
    if not actor.isprintable():
        raise InvalidInput("Invalid actor: the name must be printable characters on one line.")
    address = _address(url)
    return {
        "base_url": address,
        "headers": [
            (b"Authorization", f"Bearer {api_key}".encode()),
            (b"Accept", b"application/json"),
            *([(b"Minion-Actor", actor.encode())] if actor else []),
        ],
        # Reading the certificates takes longer than a request, and http:// needs none.
        "verify": address.scheme == "https" or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        # A proxy from the environment cannot reach addresses of this machine.
        "trust_env": address.host not in LOOPBACK,
    }


def _address(url: str) -> httpx2.URL:
    try:
        address = httpx2.URL(url)
        if address.scheme not in SCHEMES or not address.host:
            raise ValueError("it must begin with http:// or https:// and name a host")
    except (httpx2.InvalidURL, ValueError) as error:
        raise NotConfigured(
            f"{url!r} is not the address of an API: {error}. Check MINION_API_URL; a valid address is "
            "http://127.0.0.1:8700."
        ) from None
    return address


class Again(Exception):
    """A request that may be worth another attempt."""

    def __init__(self, error: MinionsError, *, not_sent: bool = False, pause: float | None = None) -> None:
        super().__init__(error.message)
        self.error = error
        self.not_sent = not_sent
        self.pause = pause


def given(**members: Any) -> dict[str, Any]:
    """Return the given members, with times as text."""
    present = {name: value for name, value in members.items() if value is not None}
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in present.items()}


def to_json(value: Any, *, what: str) -> str:
    """Return strict JSON text.

    Raises:
        InvalidInput: `value` contains an object that JSON cannot represent.
    """
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"{what} is not JSON: {error}.") from None


def segment(name: str | UUID) -> str:
    """Return a name as one segment of a path. The HTTP client resolves `.` and `..` unless they are encoded too."""
    part = quote(str(name), safe="")
    return part.replace(".", "%2E") if part in (".", "..") else part


def present(params: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the query parameters that have a value."""
    return {name: value for name, value in (params or {}).items() if value is not None}


def pause_after(failures: int) -> float:
    """Return 0.2, 0.4, 0.8 … seconds, with jitter."""
    return jittered(exponential(failures, first=0.2, longest=LONGEST_PAUSE))


def check(response: httpx2.Response) -> None:
    """Raise the error that an answer describes.

    Raises:
        Again: the request was refused temporarily.
        MinionsError: it was refused.
    """
    if response.status_code in RETRIED_STATUS:
        raise Again(_error_of(response), pause=_retry_after(response))
    if not response.is_success:
        raise _error_of(response)


def unreachable(url: str, error: httpx2.RequestError) -> Again:
    """Return the error of a request without an answer."""
    why = str(error) or type(error).__name__
    return Again(
        Unavailable(f"The API at {url} cannot be reached: {why}. Check MINION_API_URL, and that the API is running."),
        not_sent=isinstance(error, NOT_SENT),
    )


def _retry_after(response: httpx2.Response) -> float | None:
    given = response.headers.get("Retry-After", "")
    return min(LONGEST_PAUSE, float(given)) if given.isdecimal() else None


def _error_of(response: httpx2.Response) -> MinionsError:
    try:
        problem = response.json()
    except ValueError:
        problem = None
    return from_problem(response.status_code, problem if isinstance(problem, dict) else {})


def read_json(response: httpx2.Response) -> Any:
    """Return the JSON of an answer; None if it has none.

    Raises:
        Again: the request was refused temporarily.
        MinionsError: it was refused.
        ServerError: the answer is not JSON.
    """
    check(response)
    if response.status_code == NO_CONTENT:
        return None
    try:
        return response.json()
    except ValueError:
        raise ServerError(
            f"{response.url} did not answer with JSON. Check that it is the address of the API.",
            status=response.status_code,
        ) from None


def read_bytes(response: httpx2.Response) -> bytes:
    """Return the bytes of an answer.

    Raises:
        Again, MinionsError: as for `read_json`.
    """
    check(response)
    return response.content
