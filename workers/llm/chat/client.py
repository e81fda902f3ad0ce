"""Models of servers that speak the Chat Completions API, through the installed OpenAI SDK. Every call is streamed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, cast

import anthropic
import httpx2
import openai
import structlog
from celery.exceptions import SoftTimeLimitExceeded
from genai_prices import Usage

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
from workers.llm.chat.usage import tokens_of
from workers.llm.clients import Line, Lines, certificates, without_environment
from workers.llm.failures import Failures, is_worth_it
from workers.llm.limits import ModelLimits
from workers.llm.stream import StreamError, Unreadable, error_in
from workers.outcomes import Postponed

log = structlog.get_logger(__name__)

TIMEOUT = httpx2.Timeout(600.0, connect=10.0)
"""Seconds without a byte: a server may load a model, or think, before its first one."""
NO_KEY = "none"
"""Stands for a key in the SDK, which requires one. It is not sent."""
END = "[DONE]"
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
    return cast(openai.OpenAI, without_environment(client))


_lines: Lines[openai.OpenAI] = Lines(_new_client, read_reports)


class ChatClient:
    """Client that makes model turns with `chat.completions.create`."""

    def __init__(self, provider: Provider) -> None:
        self.provider = provider

    def complete(self, request: ModelRequest, on_text: Callable[[str], None]) -> ModelReply:
        """Make one turn. See `ModelClient`."""
        sent = replace(request, model=own_name(request.model))
        try:
            return self._complete(request, sent, on_text)
        except ModelError as error:
            if not forget_format(sent, self.provider, error):
                raise
            # It was free. The answer is checked against the schema in any case.
            log.warning("answer_not_constrained", model=request.model, why=error.message)
            return self._complete(request, sent, on_text)

    def count_tokens(self, request: ModelRequest) -> int:
        """Estimate them: the API has no count. See `ModelClient`."""
        return request.estimated_tokens()

    def batch_fault(self, namespace: str) -> str | None:
        """See `ModelClient`."""
        return f"the provider {self.provider.name!r} has no batches"

    def _complete(self, request: ModelRequest, sent: ModelRequest, on_text: Callable[[str], None]) -> ModelReply:
        """Make a call.

        Args:
            request: names the model with its provider, as limits do.
            sent: names it as the provider does.
        """
        line = _lines.of(account_of(self.provider, request.namespace))
        body = body_of(sent, self.provider)
        tokens = request.estimated_tokens()
        line.limits.admit(request.model, tokens, request.max_tokens, request.namespace, request.rates())
        _ask_for_leave(request, line.limits)
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


def _ask_for_leave(request: ModelRequest, limits: ModelLimits) -> None:
    try:
        request.before_sending()
    except Postponed:
        limits.settle(request.model, 0, 0)
        raise


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
        is_whole = _read_stream(response, answer) if _is_stream(response) else _read_plain(response.read(), answer)
    except StreamError as error:
        # The status was 200: part of the answer may be charged.
        status = int(error.kind) if error.kind.isdecimal() else STATUS_OF.get(error.kind, 500)
        raise failures.refusal(
            status, error.message, request_id, again=is_worth_it(status), cost_unknown=True
        ) from None
    except httpx2.HTTPError as error:
        raise failures.lost(error, request_id) from None
    except UNREADABLE as error:
        raise failures.unreadable(error, request_id) from None
    if not is_whole:
        raise failures.cut_off("the stream ended in the middle of the answer", request_id)
    return answer


def _is_stream(response: httpx2.Response) -> bool:
    """Return whether the body is a stream, regardless of the content type that a gateway declares."""
    if response.headers.get("content-type", "").lower().startswith("text/event-stream"):
        return True
    return response.read().lstrip().startswith((b"event:", b"data:", b":"))


def _read_stream(response: httpx2.Response, answer: Answer) -> bool:
    """Add the chunks to the answer. Return whether they are all: some servers end without `[DONE]`."""
    for event in anthropic.Stream.raw_events(response):
        if event.data.strip() == END:
            return True
        if not event.data:
            continue
        chunk = event.json()
        if event.event == "error" or (isinstance(chunk, dict) and chunk.get("error")):
            raise _error_in(chunk)
        answer.add(chunk)
    return answer.finish is not None


def _read_plain(body: bytes, answer: Answer) -> bool:
    """Add the plain answer of a gateway that cannot stream. Return True: it is whole."""
    received = json.loads(body)
    if isinstance(received, dict) and received.get("error"):
        raise _error_in(received)
    if not isinstance(received, dict) or not received.get("choices"):
        raise Unreadable(repr(body[:200]))
    answer.add(received)
    return True


def _error_in(received: Any) -> StreamError:
    """Return the error in a chunk or a body. Its code says more than its type, and may be an HTTP status."""
    error = error_in(received if isinstance(received, dict) else {"message": str(received)})
    inner = received.get("error") if isinstance(received, dict) else None
    code = inner.get("code") if isinstance(inner, dict) else None
    kind = str(code) if str(code) in STATUS_OF or str(code).isdecimal() else error.kind
    return StreamError(kind, error.message)


def _refusal(error: openai.APIStatusError, model: str, failures: Failures) -> ModelError:
    headers = error.response.headers
    body = error.body if isinstance(error.body, dict) else {}
    said = str(body.get("message") or body.get("detail") or error.message)
    # An account without money is no matter of patience.
    again = is_worth_it(error.status_code, headers) and body.get("code") != "insufficient_quota"
    failure = failures.refusal(error.status_code, said, _request_id(error.response), again=again, model=model)
    if isinstance(failure, ModelUnavailable) and (seconds := retry_after(headers)) is not None:
        failure.detail["retry_after"] = seconds
    return failure


def _request_id(response: httpx2.Response) -> str | None:
    return response.headers.get("x-request-id")
