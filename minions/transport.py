# Generated from minions/aio/transport.py by `make client`: change that file.
"""HTTP to the API: one connection pool, retries if they are safe, problems as errors."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from typing import Any

import httpx2

from minions.wire import (
    LONGEST_SILENCE,
    NO_CONTENT,
    Again,
    check,
    connection_options,
    pause_after,
    present,
    read_bytes,
    read_json,
    unreachable,
)


class Transport:
    """Sends requests with the key."""

    def __init__(self, url: str, api_key: str, *, timeout: float, retries: int, actor: str | None = None) -> None:
        """Create a transport without sending anything.

        Raises:
            InvalidInput, NotConfigured: an argument is invalid; see `minions.wire.connection_options`.
        """
        self.url = url
        self.timeout = timeout
        self.retries = retries
        self._http = httpx2.Client(timeout=timeout, **connection_options(url, api_key, actor))

    def get(self, path: str, *, params: Mapping[str, Any] | None = None, extra_time: float = 0.0) -> Any:
        """Return the JSON at a path; retried if the API is unavailable.

        Args:
            extra_time: seconds added to the time-out, for an answer that may take long.
        """
        return self._call("GET", path, safe=True, params=params, extra_time=extra_time)

    def post(
        self, path: str, body: str, *, safe: bool, params: Mapping[str, Any] | None = None, extra_time: float = 0.0
    ) -> Any:
        """Send JSON text.

        Args:
            extra_time: as for `get`.
            safe: whether sending it twice has the same effect as sending it once; if not, it is retried only if it
                cannot have arrived.
        """
        return self._call("POST", path, safe=safe, params=params, body=body, extra_time=extra_time)

    def put(self, path: str, body: str, *, params: Mapping[str, Any] | None = None) -> Any:
        """Store JSON text at a path; idempotent."""
        return self._call("PUT", path, safe=True, params=params, body=body)

    def patch(self, path: str, body: str, *, params: Mapping[str, Any] | None = None) -> Any:
        """Change the resource at a path as described by JSON text; idempotent."""
        return self._call("PATCH", path, safe=True, params=params, body=body)

    def delete(self, path: str, *, params: Mapping[str, Any] | None = None) -> Any:
        """Delete the resource at a path; retried only if the request cannot have arrived."""
        return self._call("DELETE", path, safe=False, params=params)

    def send(self, path: str, body: bytes, *, content_type: str, params: Mapping[str, Any] | None = None) -> Any:
        """Send bytes by POST, and return the JSON of the answer; idempotent."""
        return self._call("POST", path, safe=True, params=params, body=body, content_type=content_type)

    def receive(self, path: str, *, params: Mapping[str, Any] | None = None) -> bytes:
        """Return the bytes at a path; retried if the API is unavailable."""
        received: bytes = self._call("GET", path, safe=True, params=params, read=read_bytes)
        return received

    def pages(self, path: str, params: Mapping[str, Any]) -> Generator[dict[str, Any], None]:
        """Yield the items of a list; pages are loaded as they are read."""
        cursor = None
        while True:
            page = self.get(path, params={**params, "cursor": cursor})
            yield from page["items"]
            cursor = page["next"]
            if cursor is None:
                return

    def events(self, path: str, *, last_id: int) -> Generator[httpx2.ServerSentEvent | None, None]:
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
                    check(response)
                events = iter(httpx2.EventSource(response, max_event_size=None))
                with closing(events):  # type: ignore[type-var]  # it is a generator
                    yield from events
        except httpx2.RequestError as error:
            raise unreachable(self.url, error) from None

    def status_of(self, path: str) -> int | None:
        """Return the status of a GET without retries; None if there is no response."""
        try:
            response = self._http.get(path)
        except httpx2.RequestError:
            return None
        return response.status_code

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
        read: Callable[[httpx2.Response], Any] = read_json,
        extra_time: float = 0.0,
    ) -> Any:
        headers = {"Content-Type": content_type} if body is not None else {}
        timeout = httpx2.Timeout(self.timeout, read=self.timeout + extra_time)
        try:
            response = self._http.request(
                method, path, params=present(params), content=body, headers=headers, timeout=timeout
            )
        except httpx2.RequestError as error:
            raise unreachable(self.url, error) from None
        return read(response)
