"""HTTP to the API: one connection pool, retries if they are safe, problems as errors."""

from __future__ import annotations

import json
import re
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

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


class Transport:
    """Sends requests with the key. Threads may share it."""

    def __init__(self, url: str, api_key: str, *, timeout: float, retries: int, actor: str | None = None) -> None:
        """Create a transport without sending anything.

        Raises:
            InvalidInput: `actor` contains characters that cannot be displayed.
            NotConfigured: `url` is not an address, or `api_key` is not valid in a header; the message does not quote
                the key, as the library's own would.
        """
        if not KEY.fullmatch(api_key):
            raise NotConfigured(
                "Invalid API key: it must be printable ASCII on one line, without trailing spaces. Check "
                "MINION_API_KEY."
            )
        actor = (actor or "").strip()
        if not actor.isprintable():
            raise InvalidInput("Invalid actor: the name must be printable characters on one line.")
        self.url = url
        self.timeout = timeout
        self.retries = retries
        try:
            address = httpx2.URL(url)
            if address.scheme not in SCHEMES or not address.host:
                raise ValueError("it must begin with http:// or https:// and name a host")
            self._http = httpx2.Client(
                base_url=address,
                headers=[
                    (b"Authorization", f"Bearer {api_key}".encode()),
                    (b"Accept", b"application/json"),
                    *([(b"Minion-Actor", actor.encode())] if actor else []),
                ],
                timeout=timeout,
                # Reading the certificates takes longer than a request, and http:// needs none.
                verify=address.scheme == "https" or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
                # A proxy from the environment cannot reach addresses of this machine.
                trust_env=address.host not in LOOPBACK,
            )
        except (httpx2.InvalidURL, ValueError) as error:
            raise NotConfigured(
                f"{url!r} is not the address of an API: {error}. Check MINION_API_URL; a valid address is "
                "http://127.0.0.1:8700."
            ) from None

    def get(self, path: str, *, params: Mapping[str, Any] | None = None, extra_time: float = 0.0) -> Any:
        """Return the JSON at a path; retried if the API is unavailable.

        Args:
            extra_time: seconds added to the time-out, for an answer that may take long.
        """
        return self._call("GET", path, safe=True, params=_present(params or {}), extra_time=extra_time)

    def post(
        self, path: str, body: str, *, safe: bool, params: Mapping[str, Any] | None = None, extra_time: float = 0.0
    ) -> Any:
        """Send JSON text.

        Args:
            extra_time: as for `get`.
            safe: whether sending it twice has the same effect as sending it once; if not, it is retried only if it
                cannot have arrived.
        """
        return self._call("POST", path, safe=safe, params=_present(params or {}), body=body, extra_time=extra_time)

    def put(self, path: str, body: str, *, params: Mapping[str, Any] | None = None) -> Any:
        """Store JSON text at a path; idempotent."""
        return self._call("PUT", path, safe=True, params=_present(params or {}), body=body)

    def patch(self, path: str, body: str, *, params: Mapping[str, Any] | None = None) -> Any:
        """Change the resource at a path as described by JSON text; idempotent."""
        return self._call("PATCH", path, safe=True, params=_present(params or {}), body=body)

    def delete(self, path: str, *, params: Mapping[str, Any] | None = None) -> Any:
        """Delete the resource at a path; retried only if the request cannot have arrived."""
        return self._call("DELETE", path, safe=False, params=_present(params or {}))

    def send(self, path: str, body: bytes, *, content_type: str, params: Mapping[str, Any] | None = None) -> Any:
        """Send bytes by POST, and return the JSON of the answer; idempotent."""
        options = {"params": _present(params or {}), "body": body, "content_type": content_type}
        return self._call("POST", path, safe=True, **options)

    def receive(self, path: str, *, params: Mapping[str, Any] | None = None) -> bytes:
        """Return the bytes at a path; retried if the API is unavailable."""
        received: bytes = self._call("GET", path, safe=True, params=_present(params or {}), read=_bytes)
        return received

    def pages(self, path: str, params: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the items of a list; pages are loaded as they are read."""
        cursor = None
        while True:
            page = self.get(path, params={**params, "cursor": cursor})
            yield from page["items"]
            cursor = page["next"]
            if cursor is None:
                return

    def events(self, path: str, *, last_id: int) -> Iterator[httpx2.ServerSentEvent | None]:
        """Yield the server-sent events at a path, after the one with that id, until the connection ends. Yield None if
        there will be no more events.

        Raises:
            Again: the connection broke, or was refused temporarily.
            MinionsError: the request was refused.
        """
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(last_id)}
        timeout = httpx2.Timeout(self.timeout, read=LONGEST_SILENCE)
        try:
            with self._http.stream("GET", path, headers=headers, timeout=timeout) as response:
                if response.status_code == NO_CONTENT:
                    yield None
                    return
                if not response.is_success:
                    response.read()
                    self._check(response)
                yield from httpx2.EventSource(response, max_event_size=None)
        except httpx2.RequestError as error:
            raise Again(self._unreachable(error), not_sent=isinstance(error, NOT_SENT)) from None

    def status_of(self, path: str) -> int | None:
        """Return the status of a GET without retries; None if there is no response."""
        try:
            return self._http.get(path).status_code
        except httpx2.RequestError:
            return None

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _call(self, method: str, path: str, *, safe: bool, **options: Any) -> Any:
        attempt = 0
        while True:
            try:
                return self._once(method, path, **options)
            except Again as again:
                attempt += 1
                if attempt > self.retries or not (safe or again.not_sent):
                    raise again.error from None
                time.sleep(again.pause or pause_after(attempt))

    def _once(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: str | bytes | None = None,
        content_type: str = "application/json",
        extra_time: float = 0.0,
        read: Callable[[httpx2.Response], Any] | None = None,
    ) -> Any:
        headers = {"Content-Type": content_type} if body is not None else {}
        timeout = httpx2.Timeout(self.timeout, read=self.timeout + extra_time)
        try:
            response = self._http.request(method, path, params=params, content=body, headers=headers, timeout=timeout)
        except httpx2.RequestError as error:
            raise Again(self._unreachable(error), not_sent=isinstance(error, NOT_SENT)) from None
        self._check(response)
        return (read or _json)(response)

    def _check(self, response: httpx2.Response) -> None:
        if response.status_code in RETRIED_STATUS:
            raise Again(_error_of(response), pause=_retry_after(response))
        if not response.is_success:
            raise _error_of(response)

    def _unreachable(self, error: Exception) -> Unavailable:
        why = str(error) or type(error).__name__
        return Unavailable(
            f"The API at {self.url} cannot be reached: {why}. Check MINION_API_URL, and that the API is running."
        )


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


def _present(params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}


def pause_after(failures: int) -> float:
    """Return 0.2, 0.4, 0.8 … seconds, with jitter."""
    return jittered(exponential(failures, first=0.2, longest=LONGEST_PAUSE))


def _retry_after(response: httpx2.Response) -> float | None:
    given = response.headers.get("Retry-After", "")
    return min(LONGEST_PAUSE, float(given)) if given.isdecimal() else None


def _error_of(response: httpx2.Response) -> MinionsError:
    try:
        problem = response.json()
    except ValueError:
        problem = None
    return from_problem(response.status_code, problem if isinstance(problem, dict) else {})


def _bytes(response: httpx2.Response) -> bytes:
    return response.content


def _json(response: httpx2.Response) -> Any:
    if response.status_code == NO_CONTENT:
        return None
    try:
        return response.json()
    except ValueError:
        raise ServerError(
            f"{response.url} did not answer with JSON. Check that it is the address of the API.",
            status=response.status_code,
        ) from None
