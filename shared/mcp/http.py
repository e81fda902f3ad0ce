"""Streamable HTTP: each message is a POST, and the answer is one JSON message or a stream of events.

Addresses are checked as for HTTP tools, redirects are refused, and no answer takes more memory than `max_bytes` or more
time than `seconds`. A stream of 2025-11-25 that ends before its response is continued: servers may end it to save
connections. One that breaks off is not continued. 2026-07-28 has no such streams.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Protocol

import httpx2

from shared.contracts.strict_json import Bounds, parse
from shared.errors import ForbiddenAddress, InvalidInput, MinionError, TooLarge
from shared.mcp.faults import McpFault, RpcError, SessionLost
from shared.mcp.protocol import INVALID_PARAMS, LEGACY_VERSIONS, VERSION_HEADER
from shared.mcp.sse import EventTooLarge, Position, events
from shared.mcp.transport import SESSION, Message
from shared.outbound import NEVER_SENT, NOT_TAKEN, TEMPORARY, guarded_client
from shared.retry_after import retry_after
from shared.secret_store import scrub
from shared.settings import Settings

JSON = "application/json"
EVENTS = "text/event-stream"
BOUNDS = Bounds(values=200_000, storable=False)
"""Of a message. The client checks what is stored of it."""
MAX_EXCERPT = 2_000
MAX_LOCATION = 200
MAX_WAIT = 86_400.0
LEAST_PAUSE = 0.1
"""Seconds before a stream is continued."""
SESSION_ID = re.compile(r"[\x21-\x7e]{1,1000}")
NO_SESSION = re.compile(r"session|not initialized", re.IGNORECASE)
"""How many servers refuse a session that they do not know, with status 400. The protocol demands 404."""


class Authorization(Protocol):
    """The credentials of requests to one server."""

    def headers(self, ends: float) -> Mapping[str, str]:
        """Return the headers of the next request.

        Args:
            ends: the limit for getting them, by the monotonic clock.

        Raises:
            MinionError: there are no credentials.
        """

    def secrets(self) -> Collection[str]:
        """Return the texts that must not be repeated anywhere."""

    def renew(self, status: int, headers: Mapping[str, str]) -> bool:
        """Get other credentials after a server refused these. Return whether there are any.

        Args:
            status: 401 or 403.
            headers: the server's.
        """


class FixedHeaders:
    """Headers that stay the same.

    Args:
        headers: with the values of their secrets.
        secrets: these values.
    """

    def __init__(self, headers: Mapping[str, str], secrets: Collection[str] = ()) -> None:
        self._headers = headers
        self._secrets = secrets

    def headers(self, ends: float) -> Mapping[str, str]:
        return self._headers

    def secrets(self) -> Collection[str]:
        return self._secrets

    def renew(self, status: int, headers: Mapping[str, str]) -> bool:
        return False


class HttpTransport:
    """The way to a server at an address.

    Args:
        url: checked again with each request.
        seconds: limit for all requests together.
        max_bytes: limit of a message.
    """

    def __init__(
        self, url: str, settings: Settings, *, seconds: float, max_bytes: int, authorization: Authorization
    ) -> None:
        self.url = url
        self.settings = settings
        self.seconds = seconds
        self.ends = time.monotonic() + seconds
        self.max_bytes = max_bytes
        self.authorization = authorization

    @contextmanager
    def send(self, message: Message, headers: Mapping[str, str]) -> Iterator[HttpExchange]:
        """Send a message, once more if the credentials were renewed."""
        try:
            with self._sent(json.dumps(message).encode(), headers) as exchange:
                yield exchange
        except McpFault as fault:
            # Any text of a server may repeat them: a status, a header, a body.
            fault.message = self.scrubbed(fault.message)
            fault.args = (fault.message,)
            raise

    @contextmanager
    def _sent(self, body: bytes, headers: Mapping[str, str]) -> Iterator[HttpExchange]:
        for attempt in range(2):
            with self._answered("POST", body, headers) as response:
                exchange = HttpExchange(self, response, headers)
                renewable = response.status_code in (401, 403) and attempt == 0
                if renewable and self.authorization.renew(response.status_code, response.headers):
                    continue
                exchange.refuse_failures(had_session=SESSION in headers)
                try:
                    yield exchange
                except RpcError as error:
                    error.detail["status"] = response.status_code
                    raise
                return

    def allow(self, seconds: float) -> None:
        """Allow these seconds from now, if less time is left."""
        self.ends = max(self.ends, time.monotonic() + seconds)

    def end_session(self, headers: Mapping[str, str]) -> None:
        """End a session that is no longer needed."""
        with suppress(MinionError), self._answered("DELETE", None, headers):
            pass

    def restart(self) -> bool:
        """Return False: the server is not ours."""
        return False

    def close(self) -> None:
        """Do nothing: each request has its own connection."""

    @contextmanager
    def _answered(self, method: str, body: bytes | None, headers: Mapping[str, str]) -> Iterator[httpx2.Response]:
        credentials = self.authorization.headers(self.ends)
        left = self.ends - time.monotonic()
        if left <= 0:
            raise McpFault(self.late(), taken=False, temporary=True)
        own = {"Accept": f"{JSON}, {EVENTS}", "Content-Type": JSON, "Accept-Encoding": "identity"}
        with guarded_client(self.settings, seconds=left) as client:
            request = httpx2.Request(
                method,
                self.url,
                headers={**credentials, **own, **headers},
                content=body,
            )
            try:
                response = client.send(request, stream=True)
            except ForbiddenAddress as error:
                raise McpFault(error.message, taken=False) from None
            except httpx2.RequestError as error:
                raise self.lost(error) from None
            except MinionError as error:
                raise McpFault(error.message, taken=False, temporary=error.retryable) from None
            try:
                yield response
            finally:
                response.close()

    @contextmanager
    def continued(self, position: Position, headers: Mapping[str, str]) -> Iterator[httpx2.Response]:
        """Ask for the events after a position, as late as the server wants."""
        time.sleep(max(min(position.retry, self.ends - time.monotonic()), LEAST_PAUSE))
        try:
            with self._answered("GET", None, {**headers, "Last-Event-ID": position.id}) as response:
                yield response
        except McpFault as fault:
            # The request itself has arrived.
            fault.taken = None
            raise

    def lost(self, error: httpx2.RequestError) -> McpFault:
        """Return the fault of a request without an answer."""
        never_sent = isinstance(error, NEVER_SENT)
        why = (
            self.late() if isinstance(error, httpx2.TimeoutException) else f"no answer: {type(error).__name__}: {error}"
        )
        return McpFault(self.scrubbed(why[:500]), taken=False if never_sent else None, temporary=True)

    def late(self) -> str:
        """Return the text of a fault."""
        return f"it did not answer within {self.seconds:g} s (timeout)"

    def scrubbed(self, text: str) -> str:
        """Return a text without secrets that the server repeated in it."""
        return scrub(text, self.authorization.secrets())


class HttpExchange:
    """A POST and its answer.

    Args:
        headers: the protocol's, with which the request was sent.
    """

    def __init__(self, transport: HttpTransport, response: httpx2.Response, headers: Mapping[str, str]) -> None:
        self.transport = transport
        self.response = response
        self.headers = headers
        said = response.headers.get(SESSION, "")
        self.session = said if SESSION_ID.fullmatch(said) else None
        self._refusal: Message | None = None

    def refuse_failures(self, *, had_session: bool) -> None:
        """Raise the fault of a status that is a failure. A JSON-RPC error is no fault here, but a message."""
        status = self.response.status_code
        if status < 300:
            return
        if status < 400:
            there = self.response.headers.get("location", "")[:MAX_LOCATION]
            raise McpFault(
                f"it answers HTTP {status}, a redirect to {there!r}, which is not followed: store the final address",
                taken=False,
                status=status,
            )
        said = self._body()
        error = _error_in(said)
        if had_session and (status == 404 or (status == 400 and _names_session(said, error))):
            why = f"it no longer knows the session (HTTP {status}: {said[:MAX_EXCERPT]})"
            raise SessionLost(why, taken=False, temporary=True, status=status)
        if status not in NOT_TAKEN and error is not None:
            self._refusal = error
            return
        seconds = retry_after(self.response.headers)
        excerpt = said[:MAX_EXCERPT].strip()
        raise McpFault(
            f"HTTP {status}: {excerpt}" if excerpt else f"HTTP {status}",
            taken=(status >= 500 or status in TEMPORARY) and status not in NOT_TAKEN,
            temporary=status in TEMPORARY,
            retry_after=None if seconds is None else min(seconds, MAX_WAIT),
            status=status,
        )

    def messages(self) -> Iterator[Message]:
        """Yield the messages of the answer."""
        if self._refusal is not None:
            yield self._refusal
        elif self.response.status_code in (202, 204):
            return
        elif (kind := self._media_type()) == JSON:
            yield self._message(self._body())
        elif kind == EVENTS:
            yield from self._streams()
        else:
            raise McpFault(
                f"it answers with {kind[:100] or 'no content type'!r}, not with {JSON} or {EVENTS}", taken=True
            )

    def _media_type(self, response: httpx2.Response | None = None) -> str:
        return (response or self.response).headers.get("content-type", "").partition(";")[0].strip().lower()

    def _body(self) -> str:
        body = bytearray()
        for chunk in self._chunks(self.response):
            body += chunk
            if len(body) > self.transport.max_bytes:
                raise self._too_large()
        return self._text(bytes(body))

    def _streams(self) -> Iterator[Message]:
        """Yield the messages of a stream, and of those that continue it."""
        position = Position()
        yield from self._stream(self.response, position)
        while position.id and self.headers.get(VERSION_HEADER) in LEGACY_VERSIONS:
            with self.transport.continued(position, self.headers) as response:
                if response.status_code != 200 or self._media_type(response) != EVENTS:
                    return
                yield from self._stream(response, position)

    def _stream(self, response: httpx2.Response, position: Position) -> Iterator[Message]:
        try:
            for data in events(self._chunks(response), self.transport.max_bytes, position):
                yield self._message(self._text(data))
        except EventTooLarge:
            raise self._too_large() from None

    def _chunks(self, response: httpx2.Response) -> Iterator[bytes]:
        encoding = response.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            raise McpFault(f"its answer is encoded as {encoding[:50]!r}, which was not asked for", taken=True)
        try:
            yield from response.iter_raw()
        except httpx2.RequestError as error:
            raise self.transport.lost(error) from None

    def _text(self, data: bytes) -> str:
        return self.transport.scrubbed(data.decode("utf-8-sig", "replace"))

    def _message(self, text: str) -> Message:
        try:
            message = parse(text, what="Its answer", bounds=BOUNDS)
        except (InvalidInput, TooLarge) as error:
            raise McpFault(error.message, taken=True) from None
        if not isinstance(message, dict):
            raise McpFault("its answer is not a JSON-RPC message", taken=True)
        return message

    def _too_large(self) -> McpFault:
        return McpFault(f"its answer has more than {self.transport.max_bytes} bytes (max_bytes)", taken=True)


def _names_session(said: str, error: Message | None) -> bool:
    """Return whether a refusal concerns the session, and not the arguments of a call."""
    number = None if error is None else error["error"].get("code")
    return number != INVALID_PARAMS and NO_SESSION.search(said) is not None


def _error_in(said: str) -> Message | None:
    """Return the JSON-RPC error that an answer consists of, or None."""
    try:
        message = parse(said, bounds=BOUNDS)
    except (InvalidInput, TooLarge):
        return None
    # Gateways have errors of another form under the same name.
    is_rpc = isinstance(message, dict) and message.get("jsonrpc") == "2.0" and isinstance(message.get("error"), dict)
    return message if is_rpc else None
