"""Claude, through the installed Anthropic SDK: from the Anthropic API, or from a platform that speaks its language.

Every call is streamed, whether it has followers or not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import anthropic
import httpx2
import structlog
from celery.exceptions import SoftTimeLimitExceeded
from genai_prices import Usage
from genai_prices.data_snapshot import get_snapshot

from shared.contracts.model_features import can_be_fast
from shared.contracts.strict_json import check
from shared.contracts.turn_settings import ToolChoice
from shared.errors import InvalidInput, ModelError, ModelUnavailable
from shared.model_prices import price_of
from shared.model_usage import spent
from shared.providers import ANTHROPIC, Provider, claude_name, own_name
from shared.retry_after import retry_after
from shared.settings import get_settings
from shared.storable import storable
from workers.llm import platforms
from workers.llm.accounts import Account, account_of
from workers.llm.base import INVALID_JSON, Block, ModelReply, ModelRequest
from workers.llm.caching import with_marks
from workers.llm.clients import Line, Lines, certificates, without_environment
from workers.llm.diagnostics import cache_miss_in, diagnostics_of, forget_diagnostics, may_refuse_diagnostics
from workers.llm.failures import MAX_MESSAGE, Failures, is_worth_it
from workers.llm.features import betas_of, body_of, edits_in
from workers.llm.limits import ModelLimits
from workers.llm.pacing import paced
from workers.llm.server_tools import has_lost_container, tools_of
from workers.llm.stream import StreamError, Unreadable, assemble, error_in
from workers.llm.structured import forget_format, format_of
from workers.llm.wire import messages_of

log = structlog.get_logger(__name__)

# Seconds without a byte. The API sends pings while a model thinks; a gateway that does not stream sends none.
TIMEOUT = httpx2.Timeout(600.0, connect=10.0)
# Statuses for errors in the middle of a stream, whose own status is 200.
STATUS_OF = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
UNREADABLE = (Unreadable, InvalidInput, ValueError, TypeError, AttributeError, RecursionError)
COUNTING = ("count_tokens", "count-tokens:rawPredict")
"""Ends of the addresses at which tokens are counted, with separate limits."""
NO_REASON = "none"
"""Stop reason of an answer without one."""


def _new_client(account: Account, limits: ModelLimits) -> Any:
    """Create a client for an account, which passes each response to its limits."""
    options: dict[str, Any] = {
        # `workers.llm.patience` makes the retries: it frees the worker's slot in the meantime.
        "max_retries": 0,
        "timeout": TIMEOUT,
        # The key belongs to the address: no redirect is followed.
        "http_client": anthropic.DefaultHttpxClient(verify=certificates(), follow_redirects=False),
        "middleware": [_pass_on_soft_limit, _read_refusal, partial(_learn, limits)],
    }
    if account.provider.is_platform:
        return without_environment(platforms.create(account, options))
    try:
        client = anthropic.Anthropic(api_key=_key(account), base_url=account.provider.address, **options)
        return client if account.provider.name == ANTHROPIC else without_environment(client)
    except httpx2.InvalidURL as error:
        raise ModelError(f"{Failures(account).address_setting} cannot be used: {error}.") from None


_lines: Lines[Any] = Lines(_new_client)


def close_clients() -> None:
    """Close all clients; the next call opens new ones."""
    _lines.close()


def _key(account: Account) -> str:
    if account.key is None:
        raise ModelError(
            "There is no key for Claude: set ANTHROPIC_API_KEY for the workers, or give the agent `model: offline`."
            if account.provider.name == ANTHROPIC
            else f"There is no key for the provider {account.provider.name!r}: set it in MINION_PROVIDER_KEYS for the "
            "workers."
        )
    return account.key


def _learn(limits: ModelLimits, request: Any, call_next: Any) -> Any:
    """Learn the limits from every response. (Counting tokens has separate limits.)"""
    response = call_next(request)
    model = limits.calling()
    if model is not None and not request.url.endswith(COUNTING):
        limits.learn(model, response.headers, response.status_code)
    return response


def _read_refusal(request: Any, call_next: Any) -> Any:
    """Keep the status of a refusal even if its body is lost: the SDK would read the body unguarded."""
    response = call_next(request)
    if response.status_code >= 300:
        refused = response.http_response
        try:
            refused.read()
        except httpx2.HTTPError as error:
            refused.close()
            why = f"the rest of the answer was lost: {error}"
            raise anthropic.APIStatusError(why, response=refused, body=None) from None
    return response


def _pass_on_soft_limit(request: Any, call_next: Any) -> Any:
    """Pass the soft limit on: the SDK treats any exception during a request as a lost connection."""
    try:
        return call_next(request)
    except anthropic.APIConnectionError as error:
        if isinstance(error.__cause__, SoftTimeLimitExceeded):
            raise error.__cause__ from None
        raise


def load() -> None:
    """Create what the first call would create: the client, and the list of prices."""
    settings = get_settings()
    account = Account(settings.known_providers()[ANTHROPIC], settings.key_of(ANTHROPIC), "ANTHROPIC_API_KEY")
    with suppress(ModelError), _lines.of(account).clients.lend():  # The first call reports the error.
        pass
    get_snapshot()


class AnthropicClient:
    """Client that makes model turns with `messages.create`."""

    def __init__(self, provider: Provider) -> None:
        self.provider = provider

    def complete(self, request: ModelRequest, on_text: Callable[[str], None]) -> ModelReply:
        """Make one turn. See `ModelClient`."""
        # Of the addresses, only that of the Anthropic API, or a gateway to it, is asked for diagnostics.
        request = sent = replace(request, diagnosed=request.diagnosed and self.provider.name == ANTHROPIC)
        while True:
            try:
                reply = self._complete(sent, on_text)
                break
            except ModelError as error:
                if (less := _with_less(sent, error)) is None:
                    raise
                sent = less
        if request.diagnosed and not sent.diagnosed:
            forget_diagnostics()
        if request.container and not sent.container:
            reply = replace(reply, container=reply.container or {"id": None})
        return reply

    def _complete(self, request: ModelRequest, on_text: Callable[[str], None]) -> ModelReply:
        line = self._line(request)
        sent = self._sent(request)
        line.admit(request)
        try:
            with (
                platforms.credentials(line.account),
                line.clients.lend() as client,
                client.messages.with_streaming_response.create(
                    **_arguments(sent), **_of_answer(sent), max_tokens=sent.max_tokens, stream=True
                ) as response,
            ):
                message = _receive(response.http_response, on_text, line.failures)
        except anthropic.APIError as error:
            raise _model_error(error, request.model, line.failures) from None
        reply = self._priced(_reply(message, sent.model), sent.model)
        if message.get("usage"):
            # Tokens read from the prompt cache do not count towards the limits.
            line.limits.settle(request.model, reply.input_tokens - reply.cache_read_tokens, reply.output_tokens)
        return reply

    def _sent(self, request: ModelRequest) -> ModelRequest:
        """Return the request with the provider's own name of the model.

        Raises:
            ModelError: the provider cannot take a part of it.
        """
        if self.provider.is_platform:
            platforms.refuse_files(request.messages, self.provider)
        return _own(request)

    def _priced(self, reply: ModelReply, asked: str) -> ModelReply:
        """Return the reply with the cost at the operator's price, if there is one. A free refusal stays free.

        Args:
            asked: the provider's name of the model in the request.
        """
        is_free = reply.cost_microdollars == 0
        if self.provider.price(asked) is None or is_free or not reply.input_tokens:
            return reply
        used = Usage(
            input_tokens=reply.input_tokens,
            output_tokens=reply.output_tokens,
            cache_read_tokens=reply.cache_read_tokens,
        )
        price = price_of(self.provider, asked, used)
        return replace(reply, cost_microdollars=math.ceil(price * 1_000_000))

    def _line(self, request: ModelRequest) -> Line[Any]:
        """Return the line of the request's account.

        Raises:
            ModelError: there is no key.
        """
        account = account_of(self.provider, request.namespace)
        if not self.provider.is_platform:
            _key(account)
        return _lines.of(account)

    def batch_fault(self, namespace: str) -> str | None:
        """Return the reason why no call of this namespace can be made in a batch. See `ModelClient`."""
        if not self.provider.has_batches:
            return f"the provider {self.provider.name!r} has no batches"
        if account_of(self.provider, namespace).is_own:
            return (
                f"the namespace {namespace!r} has its own key for {self.provider.name!r}, and batches are made with "
                "that of the installation"
            )
        return None

    def batch_body(self, request: ModelRequest) -> str:
        """Return the parameters of a request in a batch. See `BatchClient`."""
        # The answer comes hours later; only a model with tools has another turn then.
        late = 1.0 if request.tools else 0.0
        request = replace(_own(request), in_batch=True, lateness=late, speed=None, diagnosed=False)
        arguments = {**_arguments(request), **_of_answer(request)}
        body = arguments.pop("extra_body", {})
        return json.dumps({**arguments, **body, "max_tokens": request.max_tokens})

    def read_batched(self, answer: str, model: str) -> ModelReply:
        """Read the result of a request in a batch. See `BatchClient`."""
        result = json.loads(answer)
        if result["type"] != "succeeded":
            raise _batch_error(result, model, self._failures())
        try:
            reply = _reply(_checked(result["message"]), own_name(model))
        except UNREADABLE as error:
            raise self._failures().unreadable(error) from None
        return replace(reply, used_besides={**reply.used_besides, "batch": result["batch"]})

    def refuses_form(self, answer: str, request: ModelRequest) -> bool:
        """Return whether the API refuses the output schema as a format. See `BatchClient`."""
        result = json.loads(answer)
        if result["type"] != "errored":
            return False
        return forget_format(_own(request), _batch_error(result, request.model, self._failures()))

    def count_tokens(self, request: ModelRequest) -> int:
        """Ask the API, which does not charge for it. See `ModelClient`."""
        line = self._line(request)
        arguments = _arguments(self._sent(request))
        with suppress(anthropic.APIError), platforms.credentials(line.account), line.clients.lend() as client:
            counted = getattr(client.messages.count_tokens(**arguments), "input_tokens", None)
            if isinstance(counted, int):
                return counted
        # Gateways often lack it. If the request is invalid, the call itself will report that.
        return request.estimated_tokens()

    def _failures(self) -> Failures:
        """Return the errors of the installation's own calls."""
        return Failures(Account(self.provider, get_settings().key_of(self.provider.name), "ANTHROPIC_API_KEY"))


def _own(request: ModelRequest) -> ModelRequest:
    return replace(request, model=own_name(request.model), other_models=tuple(map(own_name, request.other_models)))


def _with_less(request: ModelRequest, error: ModelError) -> ModelRequest | None:
    """Return a request without the part that the API refused; None if it needs that. What was refused was free."""
    if has_lost_container(request, error):
        log.warning("container_lost", container=request.container, why=error.message)
        return replace(request, container=None)
    if may_refuse_diagnostics(request, error):
        log.warning("cache_not_diagnosed", model=request.model, why=error.message)
        return replace(request, diagnosed=False)
    if forget_format(_own(request), error):
        # The answer is checked against the schema in any case.
        log.warning("answer_not_constrained", model=request.model, why=error.message)
        return request
    return None


def _arguments(request: ModelRequest) -> dict[str, Any]:
    """Arguments shared by calls and counts."""
    arguments: dict[str, Any] = {"model": request.model, "messages": messages_of(request)}
    if request.system:
        arguments["system"] = [{"type": "text", "text": request.system}]
    if request.tools:
        arguments["tools"] = tools_of(request)
    if request.tool_choice is not None:
        arguments["tool_choice"] = _tool_choice(request.tool_choice)
    if request.thinking is not None:
        arguments["thinking"] = (
            {"type": "enabled", "budget_tokens": request.thinking}
            if isinstance(request.thinking, int)
            else {"type": request.thinking}
        )
    budget = request.task_budget and {"type": "tokens", "total": request.task_budget}
    output_config = {"effort": request.effort, "format": format_of(request), "task_budget": budget}
    if any(output_config.values()):
        arguments["output_config"] = {name: value for name, value in output_config.items() if value is not None}
    if betas := betas_of(request):
        arguments["extra_headers"] = {"anthropic-beta": ",".join(betas)}
    return with_marks(arguments, request)


def _of_answer(request: ModelRequest) -> dict[str, Any]:
    """Arguments of calls, which a count of tokens does not take."""
    given = {
        "stop_sequences": list(request.stop_sequences),
        "service_tier": request.service_tier,
        "metadata": request.user_id and {"user_id": request.user_id},
        "speed": request.speed if can_be_fast(request.model) else None,
        "container": request.container,
        "diagnostics": diagnostics_of(request),
        "extra_body": body_of(request),
    }
    return {name: value for name, value in given.items() if value}


def _tool_choice(choice: ToolChoice) -> dict[str, Any]:
    named = {"name": choice.name} if choice.name else {}
    alone = {} if choice.parallel else {"disable_parallel_tool_use": True}
    return {"type": choice.type, **named, **alone}


def _receive(response: httpx2.Response, on_text: Callable[[str], None], failures: Failures) -> dict[str, Any]:
    """Return the message when it is complete.

    Raises:
        ModelUnavailable: the stream ended before the message did.
        ModelError: the response is not a message.
    """
    request_id = response.headers.get("request-id")
    try:
        message = _read_stream(response, on_text) if _is_stream(response) else _plain_message(response.read())
        if message is not None:
            return _checked(message)
    except StreamError as error:
        # The status was 200: part of the answer may be charged.
        status = STATUS_OF.get(error.kind, 500)
        raise failures.refusal(
            status, error.message, error.request_id or request_id, again=is_worth_it(status), cost_unknown=True
        ) from None
    except httpx2.HTTPError as error:
        raise failures.lost(error, request_id) from None
    except UNREADABLE as error:
        raise failures.unreadable(error, request_id) from None
    raise failures.cut_off("the stream ended in the middle of the answer", request_id)


def _checked(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message whose blocks have all fields that their kinds require.

    Raises:
        Unreadable, InvalidInput, TypeError, AttributeError: it is none, or cannot be stored.
    """
    content = [_sound(block) for block in message.get("content") or []]
    check(storable([content, message.get("stop_details")]), what="the answer")
    return {**message, "content": content}


def _batch_error(result: dict[str, Any], model: str, failures: Failures) -> ModelError:
    """Describe a call that its batch has not answered."""
    error = result.get("error") or {}
    said = str(error.get("message") or "no reason was given")
    if result["type"] != "errored":
        return ModelError(
            failures.without_key(said)[:MAX_MESSAGE], batch=result["batch"], cost_unknown=result["type"] == "unknown"
        )
    status = STATUS_OF.get(str(error.get("type")), 500)
    return failures.refusal(status, said, result.get("request_id"), again=False, model=model)


def _is_stream(response: httpx2.Response) -> bool:
    """Return whether the body is a stream, regardless of the content type that a gateway declares."""
    if response.headers.get("content-type", "").lower().startswith("text/event-stream"):
        return True
    return response.read().lstrip().startswith((b"event:", b"data:", b":"))


def _read_stream(response: httpx2.Response, on_text: Callable[[str], None]) -> dict[str, Any] | None:
    received = anthropic.Stream.raw_events(response)
    message = assemble(_events(received), on_text)
    # The message is complete. The rest is read so that the connection can be reused.
    with suppress(httpx2.HTTPError, ValueError):
        for _ in received:
            pass
    return message


def _events(received: Iterable[Any]) -> Iterator[dict[str, Any]]:
    for event in paced(received, lambda event: event.event == "content_block_delta"):
        if event.data:
            yield {"type": event.event, **event.json()}


def _plain_message(body: bytes) -> dict[str, Any]:
    """Parse the plain answer of a gateway that cannot stream."""
    with suppress(ValueError):
        message = json.loads(body)
        if isinstance(message, dict) and message.get("type") == "message":
            return message
        if isinstance(message, dict) and message.get("type") == "error":
            raise error_in(message)
    raise Unreadable(repr(body[:10_000]))


def _sound(block: Block) -> Block:
    """Return a block with all fields that its kind requires, even if a gateway left some out."""
    match block.get("type"):
        case "text":
            return {**block, "text": block.get("text") or ""}
        case "thinking":
            return {**block, "thinking": block.get("thinking") or ""}
        case "tool_use" if not (block.get("id") and block.get("name")):
            raise Unreadable(f"a tool call without id or name: {json.dumps(block)[:200]}")
        case "tool_use":
            return {**block, "input": _input_of(block.get("input"))}
        case str():
            return block
    raise Unreadable(f"a block without a type: {json.dumps(block)[:200]}")


def _input_of(given: Any) -> dict[str, Any]:
    """Make a tool input valid: the API accepts back only objects, and a tool accepts only strict JSON."""
    if isinstance(given, dict):
        with suppress(InvalidInput):
            check(given)
            return given
    return {} if given is None else {INVALID_JSON: given if isinstance(given, str) else json.dumps(given)}


def _reply(message: dict[str, Any], asked: str) -> ModelReply:
    """Convert a message to a reply. Text that cannot be stored is replaced, because the reply has been paid for."""
    content, kept = message["content"], storable(message["content"])
    if replaced := kept != content:
        log.warning("model_text_replaced", why="it has U+0000 or half a character, which PostgreSQL cannot store")
    model = storable(str(message.get("model") or asked))
    use = spent(message, claude_name(model))
    if miss := cache_miss_in(message):
        use["used_besides"] = {**use.get("used_besides", {}), "cache_miss": miss}
    return ModelReply(
        content=kept,
        stop_reason=storable(str(message.get("stop_reason") or NO_REASON)),
        model=model,
        stop_details=storable(message.get("stop_details")),
        exact=json.dumps(content) if replaced else None,
        id=storable(str(message["id"])) if message.get("id") else None,
        edits=edits_in(message),
        container=_container(message.get("container")),
        **use,
    )


def _container(described: Any) -> dict[str, Any] | None:
    """Return the container in which the API ran code, if it named one."""
    return storable(described) if isinstance(described, dict) and isinstance(described.get("id"), str) else None


def _model_error(error: anthropic.APIError, model: str, failures: Failures) -> ModelError:
    """Describe each kind of failed call in one clear sentence."""
    if isinstance(error, anthropic.APIStatusError):
        headers = error.response.headers
        said = str(error.api_message or error.message)
        again = is_worth_it(error.status_code, headers)
        failure = failures.refusal(error.status_code, said, _request_id(error), again=again, model=model)
        if isinstance(failure, ModelUnavailable) and (seconds := retry_after(headers)) is not None:
            failure.detail["retry_after"] = seconds
        return failure
    if isinstance(error, anthropic.APIConnectionError):
        return failures.lost(error.__cause__ or error)
    return failures.unreadable(error)


def _request_id(error: anthropic.APIStatusError) -> str | None:
    body = error.body if isinstance(error.body, dict) else {}
    return error.request_id or body.get("request_id")
