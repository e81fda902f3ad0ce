"""The Message Batches API, through the installed Anthropic SDK. Each request is made once.

The SDK takes 40 MB: this module is imported where there are calls to send.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from typing import Any, cast

import anthropic
import httpx2
import structlog

from orchestrator.batches.batch import Batch, Lost, Refused
from shared.errors import NotConfigured
from shared.retry_after import retry_after
from shared.secret_store import HIDDEN
from shared.settings import Settings
from shared.storable import storable

log = structlog.get_logger(__name__)

API = "https://api.anthropic.com"
BATCHES = "/v1/messages/batches"
# Makes the SDK return the response before its body has been read, as `with_streaming_response` does.
STREAMED = {"X-Stainless-Raw-Response": "stream"}
KEY = re.compile(r"[\x21-\x7e]+")
SECONDS = 60.0
"""A request that is not answered by then counts as lost."""
TIMEOUT = httpx2.Timeout(SECONDS, connect=10.0)
PAGE = 100
MAX_MESSAGE = 1_000
UNKNOWN_STATUSES = frozenset({408, 409})
"""With these, as with 500 and above, it is not known what became of the request."""
UNREADABLE = (AttributeError, TypeError, ValueError)
NEVER_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.ProxyError)


class BatchesApi:
    """The batches of one API key.

    Raises:
        NotConfigured: there is no key, or no header can hold it; or the API's address is invalid.
    """

    def __init__(self, settings: Settings) -> None:
        given = settings.anthropic_api_key
        if not given:
            raise NotConfigured("The orchestrator has no ANTHROPIC_API_KEY, and sends the calls of the batch lane.")
        self._key = given.get_secret_value()
        if not KEY.fullmatch(self._key):
            raise NotConfigured(
                "The orchestrator's ANTHROPIC_API_KEY cannot be sent: a key must be printable ASCII without spaces and "
                "line breaks."
            )
        try:
            self._client = anthropic.Anthropic(
                api_key=self._key,
                base_url=settings.anthropic_base_url or API,
                max_retries=0,
                timeout=TIMEOUT,
                # The key belongs to the address: no redirect is followed.
                http_client=anthropic.DefaultHttpxClient(follow_redirects=False),
            )
        except httpx2.InvalidURL as error:
            raise NotConfigured(f"The orchestrator's ANTHROPIC_BASE_URL cannot be used: {error}.") from None

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def create(self, requests: list[dict[str, Any]], betas: Collection[str] = ()) -> str:
        """Create a batch; return its id.

        Args:
            betas: features that are not on by default. They apply to all requests.

        Raises:
            Refused: there is no such batch now.
            Lost: there may be one.
        """
        try:
            headers = {"anthropic-beta": ",".join(sorted(betas))} if betas else None
            batch = self._client.messages.batches.create(requests=cast(Any, requests), extra_headers=headers)
        except anthropic.APIError as error:
            raise self._failure(error) from None
        except UNREADABLE as error:
            raise self._unreadable(error) from None
        if not isinstance(batch_id := getattr(batch, "id", None), str):
            raise Lost("The answer to the creation of a batch has no id.")
        return batch_id

    def retrieve(self, batch_id: str) -> Batch:
        """Return a batch.

        Raises:
            Refused, Lost: it cannot be read now.
        """
        try:
            return _batch(self._client.messages.batches.retrieve(batch_id))
        except anthropic.APIError as error:
            raise self._failure(error) from None
        except UNREADABLE as error:
            raise self._unreadable(error) from None

    def since(self, moment: datetime) -> Iterator[Batch]:
        """Yield the batches that were created since then, the newest first.

        Raises:
            Refused, Lost: they cannot be read now.
        """
        try:
            for found in self._client.messages.batches.list(limit=PAGE):
                batch = _batch(found)
                if batch.created_at < moment:
                    return
                yield batch
        except anthropic.APIError as error:
            raise self._failure(error) from None
        except UNREADABLE as error:
            raise self._unreadable(error) from None

    def cancel(self, batch_id: str) -> None:
        """Cancel a batch, if that is still possible."""
        with suppress(anthropic.APIError, *UNREADABLE):
            self._client.messages.batches.cancel(batch_id)

    def results(self, batch_id: str) -> Iterator[dict[str, Any]]:
        """Yield the results of a batch that has ended, in any order. Lines that cannot be read are left out.

        They are read from the configured address, not from that in the batch: a key goes to no other.

        Raises:
            Refused, Lost: they cannot be read, or no further.
        """
        options: Any = {"headers": {**STREAMED, "Accept": "application/binary"}}
        try:
            response = cast(Any, self._client.get(f"{BATCHES}/{batch_id}/results", cast_to=object, options=options))
            try:
                for line in _lines(response.iter_bytes()):
                    if found := _line(line):
                        yield found
            finally:
                response.close()
        except anthropic.APIError as error:
            raise self._failure(error) from None
        except httpx2.HTTPError as error:
            said = self._plain(str(error) or type(error).__name__)
            raise Lost(f"The connection to the Anthropic API was lost: {said}") from None

    def _failure(self, error: anthropic.APIError) -> Refused | Lost:
        if isinstance(error, anthropic.APIStatusError):
            status = error.status_code
            reason = self._plain(error.api_message or error.message)
            said = f"The Anthropic API answered {status}: {reason}"
            if status >= 500 or status in UNKNOWN_STATUSES:
                return Lost(said)
            if status in (401, 403):
                said = f"The Anthropic API refused the key of the orchestrator: check ANTHROPIC_API_KEY. {said}"
            return Refused(said, status, reason, retry_after(error.response.headers))
        cause = error.__cause__ or error
        if isinstance(cause, httpx2.UnsupportedProtocol):
            return Refused("The orchestrator's ANTHROPIC_BASE_URL must begin with http:// or https://.")
        if isinstance(cause, httpx2.LocalProtocolError):
            # Its message would quote the header, including its secrets.
            return Refused("The request to the Anthropic API cannot be sent: check ANTHROPIC_CUSTOM_HEADERS.")
        said = self._plain(str(cause) or type(cause).__name__)
        if isinstance(cause, NEVER_SENT):
            return Refused(f"The Anthropic API cannot be reached: {said}")
        return Lost(f"The connection to the Anthropic API was lost: {said}")

    def _unreadable(self, why: Exception) -> Lost:
        return Lost(f"The Anthropic API's answer cannot be read: {self._plain(why)}")

    def _plain(self, said: object) -> str:
        return str(storable(str(said).replace(self._key, HIDDEN)[:MAX_MESSAGE]))


def _batch(found: Any) -> Batch:
    counts = found.request_counts
    names = ("processing", "succeeded", "errored", "canceled", "expired")
    ended = found.ended_at if found.processing_status == "ended" else None
    return Batch(
        id=found.id,
        created_at=found.created_at,
        ended_at=ended or (found.created_at if found.processing_status == "ended" else None),
        requests=sum(getattr(counts, name, 0) or 0 for name in names),
        has_results=found.results_url is not None,
    )


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Split at line feeds only: a model's text may hold other characters at which `splitlines` splits."""
    begun: list[bytes] = []
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        begun.append(first)
        for other in others:
            yield b"".join(begun)
            begun = [other]
    yield b"".join(begun)


def _line(text: bytes) -> dict[str, Any] | None:
    if not text.strip():
        return None
    try:
        found = json.loads(text)
        if isinstance(found["custom_id"], str) and isinstance(found["result"]["type"], str):
            return cast(dict[str, Any], found)
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    log.warning("batch_line_unreadable", bytes=len(text))
    return None
