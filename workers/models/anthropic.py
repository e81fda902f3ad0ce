"""Claude, through the installed Anthropic SDK."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import anthropic
from celery.exceptions import SoftTimeLimitExceeded
from genai_prices import Usage, calc_price

from shared.errors import ModelError
from shared.settings import get_settings
from workers.models.base import ModelReply, ModelRequest

# The SDK retries connection errors, 408, 409, 429 and 5xx by itself, with back-off.
RETRIES = 2
TIMEOUT_SECONDS = 600.0


@lru_cache(maxsize=1)
def _client() -> anthropic.Anthropic:
    settings = get_settings()
    if settings.anthropic_api_key is None:
        raise ModelError(
            "There is no key for Claude: set ANTHROPIC_API_KEY for the workers, or give the agent `model: offline`."
        )
    return anthropic.Anthropic(
        api_key=settings.anthropic_api_key.get_secret_value(),
        base_url=settings.anthropic_base_url,
        max_retries=RETRIES,
        timeout=TIMEOUT_SECONDS,
        middleware=[_let_the_soft_limit_pass],
    )


def _let_the_soft_limit_pass(request: Any, call_next: Any) -> Any:
    """The SDK takes whatever strikes during a request for a lost connection, and would make the paid call again."""
    try:
        return call_next(request)
    except anthropic.APIConnectionError as error:
        if isinstance(error.__cause__, SoftTimeLimitExceeded):
            raise error.__cause__ from None
        raise


class AnthropicClient:
    """Makes model turns with `messages.create`."""

    def complete(self, request: ModelRequest) -> ModelReply:
        """One turn. See `ModelClient`."""
        try:
            message = _client().messages.create(**_arguments(request))
        except anthropic.APIError as error:
            raise _model_error(error, request.model) from None
        return ModelReply(
            content=[_block(block) for block in message.content],
            stop_reason=message.stop_reason or "end_turn",
            model=message.model,
            input_tokens=_input_tokens(message.usage),
            output_tokens=message.usage.output_tokens,
            cost_microdollars=_cost(message),
        )


def _arguments(request: ModelRequest) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "model": request.model,
        "max_tokens": request.max_tokens,
        "messages": request.messages,
    }
    if request.system:
        arguments["system"] = request.system
    if request.tools:
        arguments["tools"] = [
            {"name": tool.name, "description": tool.description, "input_schema": tool.input_schema}
            for tool in request.tools
        ]
    if request.sampling:
        # Not arguments of `create` any more since SDK 2; the models that still take them read them from the body.
        arguments["extra_body"] = request.sampling
    return arguments


def _block(block: Any) -> dict[str, Any]:
    plain: dict[str, Any] = block.model_dump(mode="json", exclude_none=True)
    return plain


def _cost(message: Any) -> int:
    """Micro-dollars by the list prices in genai-prices, rounded up; 0 for a model that it does not know."""
    usage = message.usage
    used = Usage(
        input_tokens=_input_tokens(usage),
        output_tokens=usage.output_tokens,
        cache_write_tokens=usage.cache_creation_input_tokens or 0,
        cache_read_tokens=usage.cache_read_input_tokens or 0,
    )
    try:
        price = calc_price(used, model_ref=message.model, provider_id="anthropic").total_price
    except LookupError:
        return 0
    return math.ceil(price * 1_000_000)


def _input_tokens(usage: Any) -> int:
    """All input tokens, those read from and written to the prompt cache included."""
    cached = (usage.cache_creation_input_tokens or 0) + (usage.cache_read_input_tokens or 0)
    return int(usage.input_tokens + cached)


def _model_error(error: anthropic.APIError, model: str) -> ModelError:
    """One clear sentence for each way in which a call can fail."""
    if isinstance(error, anthropic.AuthenticationError | anthropic.PermissionDeniedError):
        return ModelError("The Anthropic API refused the key: check ANTHROPIC_API_KEY.", http_status=error.status_code)
    if isinstance(error, anthropic.NotFoundError):
        return ModelError(f"The Anthropic API knows no model {model!r}.", http_status=404)
    if isinstance(error, anthropic.APIStatusError):
        failure = ModelError(
            f"The Anthropic API answered {error.status_code}: {_said(error)}", http_status=error.status_code
        )
        failure.retryable = error.status_code in (408, 409, 429) or error.status_code >= 500
        return failure
    if isinstance(error, anthropic.APIConnectionError):
        failure = ModelError(f"The Anthropic API cannot be reached: {error}")
        failure.retryable = True
        return failure
    return ModelError(f"The Anthropic API's answer cannot be read: {error}")


def _said(error: anthropic.APIStatusError) -> str:
    """The API's own message."""
    body = error.body
    inner = body.get("error") if isinstance(body, dict) else None
    message = inner.get("message") if isinstance(inner, dict) else None
    return str(message or error.message)[:1000]
