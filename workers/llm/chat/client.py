"""Models of servers that speak the Chat Completions API, through the installed OpenAI SDK. Every call is streamed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, cast

import httpx2
import openai
import structlog
from anthropic._base_client import get_platform
from celery.exceptions import SoftTimeLimitExceeded
from genai_prices import Usage
from openai._streaming import ServerSentEvent, SSEDecoder

from shared.contracts.strict_json import check
from shared.errors import InvalidInput, ModelError, ModelUnavailable
from shared.model_prices import price_of
from shared.providers import Provider, own_name
from shared.retry_after import retry_after
from shared.storable import storable
from workers.llm.accounts import Account, account_of
from workers.llm.base import ModelReply, ModelRequest
from workers.llm.chat.answer import Answer
from workers.llm.chat.limits import read_reports
from workers.llm.chat.messages import body_of
from workers.llm.chat.structured import forget_format
from workers.llm.chat.usage import forget_options, tokens_of
from workers.llm.clients import Line, Lines, certificates, without_environment
from workers.llm.failures import Failures, is_worth_it
from workers.llm.limits import ModelLimits
from workers.llm.pacing import paced
from workers.llm.stream import StreamError, Unreadable, error_in

log = structlog.get_logger(__name__)

TIMEOUT = httpx2.Timeout(600.0, connect=10.0)
"""Seconds without a byte: a server may load a model, or think, before its first one."""
NO_KEY = "none"
"""Stands for a key in the SDK, which requires one. It is not sent."""
END = "[DONE]"
MOST_BYTES = 100_000_000
"""Of an answer: no model writes as much."""
FIELDS_OF_EVENTS = (b"data:", b"event:", b"id:", b"retry:", b":")
NO_MONEY = "insufficient_quota"
STATUS = re.compile(r"[45][0-9]{2}", re.ASCII)
STATUS_OF = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "insufficient_quota": 429,
    "rate_limit_exceeded": 429,
    "rate_limit_error": 429,
    "server_error": 500,
}
"""Statuses for errors in the middle of a stream, whose own status is 200."""
UNREADABLE = (Unreadable, InvalidInput, ValueError, TypeError, AttributeError, KeyError, RecursionError)


def _new_client(account: Account, _: ModelLimits) -> openai.OpenAI:
    """Create a client for an account. Nothing in the environment chooses its address or its headers."""
    client = openai.OpenAI(
        api_key=account.key or NO_KEY,
        base_url=account.provider.address,
        # `workers.llm.patience` makes the retries: it frees the worker's slot in the meantime.
        max_retries=0,
        timeout=TIMEOUT,
        # The key belongs to the address: no redirect is followed.
        http_client=openai.DefaultHttpxClient(verify=certificates(), follow_redirects=False),
    )
    client.organization = client.project = None
    # Otherwise the SDK runs a program to name the system, and a lane of greenlets may wait for its end indefinitely.
    client._platform = cast(Any, get_platform())
    return cast(openai.OpenAI, without_environment(client))


_lines: Lines[openai.OpenAI] = Lines(_new_client, read_reports)


class ChatClient:
    """Client that makes model turns with `chat.completions.create`."""

    def __init__(self, provider: Provider) -> None:
        self.provider = provider

    def complete(self, request: ModelRequest, on_text: Callable[[str], None]) -> ModelReply:
        """Make one turn. See `ModelClient`."""
        sent = replace(request, model=own_name(request.model))
        while True:
            try:
                return self._complete(request, sent, on_text)
            except ModelError as error:
                if not self._asks_for_less(sent, error):
                    raise
                log.warning("asked_without_refused_field", model=request.model, why=error.message)

    def count_tokens(self, request: ModelRequest) -> int:
        """Estimate them: the API has no count. See `ModelClient`."""
        return request.estimated_tokens()

    def batch_fault(self, namespace: str) -> str | None:
        """See `ModelClient`."""
        return f"the provider {self.provider.name!r} has no batches"

    def _asks_for_less(self, sent: ModelRequest, error: ModelError) -> bool:
        """Return whether the server refused an optional field, which is not sent again. The refusal was free.

        An answer is checked against its schema in any case.
        """
        return forget_options(self.provider, error) or forget_format(sent, self.provider, error)

    def _complete(self, request: ModelRequest, sent: ModelRequest, on_text: Callable[[str], None]) -> ModelReply:
        """Make a call.

        Args:
            request: names the model with its provider, as limits do.
            sent: names it as the provider does.
        """
        line = _lines.of(account_of(self.provider, request.namespace))
        body = body_of(sent, self.provider)
        line.admit(request)
        with _answering(line, body, request.model) as response:
            answer = _receive(response, on_text, line.failures)
        reply = self._reply(answer, sent.model, line.failures)
        if answer.usage:
            line.limits.settle(request.model, reply.input_tokens, reply.output_tokens)
        return reply

    def _reply(self, answer: Answer, asked: str, failures: Failures) -> ModelReply:
        """Convert an answer to a reply. Text that cannot be stored is replaced, because the reply has been paid for."""
        try:
            content = answer.content()
            kept = storable(content)
            check(storable([kept, answer.stop_reason(), answer.refusal]), what="the answer")
        except UNREADABLE as error:
            raise failures.unreadable(error) from None
        if replaced := kept != content:
            log.warning("model_text_replaced", why="it has U+0000 or half a character, which PostgreSQL cannot store")
        model = storable(answer.model or asked)
        return ModelReply(
            content=kept,
            stop_reason=storable(answer.stop_reason()),
            model=model,
            stop_details=storable(answer.stop_details()),
            exact=json.dumps(content) if replaced else None,
            **tokens_of(answer.usage),
            cost_microdollars=self._cost(answer.usage, model, asked),
        )

    def _cost(self, usage: dict[str, Any], model: str, asked: str) -> int | None:
        """Return the cost in micro-dollars, rounded up; None if it is not known.

        Args:
            model: the model that answered: it may have the date of its release in its name.
            asked: the model in the request, whose price counts if the other has none.
        """
        if not usage:
            return None
        tokens = tokens_of(usage)
        tokens.pop("used_besides")
        for name in (asked, model) if self.provider.price(asked) else (model, asked):
            with suppress(LookupError):
                return math.ceil(price_of(self.provider, name, Usage(**tokens)) * 1_000_000)
        return None


@contextmanager
def _answering(line: Line[openai.OpenAI], body: Mapping[str, Any], model: str) -> Iterator[httpx2.Response]:
    """Send a request, yield the response, and learn the limits in it.

    Raises:
        ModelUnavailable: there is no answer; the request may be retried.
        ModelError: the server refused it.
    """
    try:
        with (
            line.clients.lend() as client,
            # The arguments of `create` are those of OpenAI's own API; other servers take more.
            client.chat.completions.with_streaming_response.create(
                model=body["model"],
                messages=body["messages"],
                stream=True,
                extra_body=_beside(body),
                extra_headers={"Authorization": openai.Omit()} if line.account.key is None else None,
            ) as response,
        ):
            line.limits.learn(model, response.headers, response.status_code)
            yield response.http_response
    except openai.APIStatusError as error:
        line.limits.learn(model, error.response.headers, error.status_code)
        raise _refusal(error, model, line.failures) from None
    except openai.APIConnectionError as error:
        cause = error.__cause__
        if isinstance(cause, SoftTimeLimitExceeded):
            raise cause from None
        raise line.failures.lost(cause or error) from None
    except openai.APIError as error:
        raise line.failures.unreadable(error) from None
    except httpx2.HTTPError as error:
        raise line.failures.lost(error) from None


def _beside(body: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in ("model", "messages", "stream")}


def _receive(response: httpx2.Response, on_text: Callable[[str], None], failures: Failures) -> Answer:
    """Return the answer when it is complete.

    Raises:
        ModelUnavailable: the stream ended before the answer did.
        ModelError: the response is no answer.
    """
    request_id = _request_id(response)
    answer = Answer(on_text)
    try:
        is_whole = _read(response, answer)
    except StreamError as error:
        # The status was 200: part of the answer may be charged.
        status = int(error.kind) if error.kind.isdecimal() else STATUS_OF.get(error.kind, 500)
        again = is_worth_it(status) and error.kind != NO_MONEY
        raise failures.refusal(status, error.message, request_id, again=again, cost_unknown=True) from None
    except httpx2.HTTPError as error:
        raise failures.lost(error, request_id) from None
    except UNREADABLE as error:
        raise failures.unreadable(error, request_id) from None
    if not is_whole:
        raise failures.cut_off("the stream ended in the middle of the answer", request_id)
    return answer


def _read(response: httpx2.Response, answer: Answer) -> bool:
    """Add what a response has to the answer. Return whether that is all: some servers end without `[DONE]`.

    Whether it is a stream does not depend on the content type, which is wrong at some gateways.
    """
    body = _Body(response)
    try:
        for event in paced(SSEDecoder().iter_bytes(body.pieces()), lambda _: answer.finish is None):
            body.is_stream = True
            if event.data.strip() == END:
                return True
            for chunk in _chunks_in(event):
                answer.add(chunk)
                # After its end, only the usage is of interest.
                if answer.finish is not None and not chunk.get("choices") and answer.usage:
                    return True
    except (httpx2.HTTPError, ValueError) as error:
        # An answer that has ended is whole, and paid for. Without its end, the last line may be cut off.
        if not _is_whole(answer) and (isinstance(error, httpx2.HTTPError) or not body.is_over):
            raise
    return _is_whole(answer) if body.is_stream else _read_plain(bytes(body.start), answer)


class _Body:
    """The body of a response, piece by piece.

    Attributes:
        is_stream: it has events.
        start: the body up to the first event.
        is_over: all of it has been read.
    """

    def __init__(self, response: httpx2.Response) -> None:
        self.is_stream = False
        self.start = bytearray()
        self.is_over = False
        self._response = response

    def pieces(self) -> Iterator[bytes]:
        """Yield it as it arrives.

        Raises:
            Unreadable: it is larger than an answer can be.
        """
        size = 0
        for piece in self._response.iter_bytes():
            size += len(piece)
            if size > MOST_BYTES:
                raise Unreadable(f"it has more than {MOST_BYTES:,} bytes")
            if not self.is_stream:
                self.start += piece
            yield piece
        self.is_over = True
        # Some servers leave out the empty line after the last event.
        yield b"\n\n"


def _is_whole(answer: Answer) -> bool:
    return answer.finish is not None


def _chunks_in(event: ServerSentEvent) -> Iterator[Any]:
    """Yield the chunks in an event: one, or one in each line if a server leaves out the empty lines between them.

    Raises:
        StreamError: the event is an error.
    """
    if not event.data:
        return
    try:
        chunks = [json.loads(event.data)]
    except ValueError:
        lines = [line for line in event.data.split("\n") if line.strip() not in ("", END)]
        if event.event == "error":
            raise StreamError("server_error", event.data[:1_000]) from None
        chunks = [*map(json.loads, lines)]
    for chunk in chunks:
        if event.event == "error" or (isinstance(chunk, dict) and chunk.get("error")):
            raise _error_in(chunk)
        yield chunk


def _read_plain(body: bytes, answer: Answer) -> bool:
    """Add the plain answer of a gateway that cannot stream. Return whether there is one."""
    start = body.lstrip()[:10]
    if any(start.startswith(each) or each.startswith(start) for each in FIELDS_OF_EVENTS):
        return False
    received = json.loads(body)
    if isinstance(received, list) and received:
        received = received[0]
    if isinstance(received, dict) and received.get("error"):
        raise _error_in(received)
    if not isinstance(received, dict) or not received.get("choices"):
        raise Unreadable(repr(body[:10_000]))
    answer.add(received)
    return True


def _error_in(received: Any) -> StreamError:
    """Return the error in a chunk or a body. Its code says more than its type, and may be an HTTP status."""
    error = error_in(received if isinstance(received, dict) else {"message": str(received)})
    inner = received.get("error") if isinstance(received, dict) else None
    code = str(inner.get("code") if isinstance(inner, dict) else None)
    kind = code if code in STATUS_OF or STATUS.fullmatch(code) else error.kind
    return StreamError(kind if kind in STATUS_OF or STATUS.fullmatch(kind) else "server_error", error.message)


def _refusal(error: openai.APIStatusError, model: str, failures: Failures) -> ModelError:
    headers = error.response.headers
    body = _fields_of(error.body)
    said = str(body.get("message") or body.get("detail") or error.message)
    # An account without money is no matter of patience.
    again = is_worth_it(error.status_code, headers) and NO_MONEY not in (body.get("code"), body.get("type"))
    failure = failures.refusal(error.status_code, said, _request_id(error.response), again=again, model=model)
    if isinstance(failure, ModelUnavailable) and (seconds := retry_after(headers)) is not None:
        failure.detail["retry_after"] = seconds
    return failure


def _fields_of(body: Any) -> dict[str, Any]:
    """Return the fields of an error. Some servers have a text instead, and Gemini a list."""
    if isinstance(body, list) and body:
        body = body[0].get("error", body[0]) if isinstance(body[0], dict) else body[0]
    return body if isinstance(body, dict) else {"message": body} if isinstance(body, str) else {}


def _request_id(response: httpx2.Response) -> str | None:
    return response.headers.get("x-request-id")
