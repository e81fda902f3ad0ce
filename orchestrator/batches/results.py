"""What a line of a batch's results means for its call."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from shared.model_usage import spent
from shared.storable import storable

MOST_ATTEMPTS = 3
"""How often a call is sent that gets no answer, before its task fails."""
WORTH_ASKING_AGAIN = frozenset({"api_error", "overloaded_error", "rate_limit_error", "timeout_error"})
MAX_MESSAGE = 1_000
NOTHING = {"tokens": 0, "microdollars": 0}
UNKNOWN = {"tokens": None, "microdollars": None}


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to a call, as it is recorded.

    Attributes:
        text: JSON; a minion reads it.
        used: settles the reservations; None where it is unknown.
        usage: for the journal, if the task has ended.
    """

    text: str
    used: dict[str, Any]
    usage: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class NotAnswered:
    """The batch has not answered the call, which is not charged: it is sent again. `why` is for people."""

    why: str


def read(line: dict[str, Any], batch_id: str, model: str, attempt: int) -> Answer | NotAnswered:
    """Return what a line says about a call.

    Args:
        attempt: how often the call has been sent.
    """
    result = line["result"]
    if result["type"] == "succeeded" and isinstance(result.get("message"), dict):
        return _succeeded(result["message"], batch_id, model)
    if result["type"] == "errored":
        envelope = _object(result.get("error"))
        error = _object(envelope.get("error")) or envelope
        if str(error.get("type")) not in WORTH_ASKING_AGAIN:
            refused = {"type": "errored", "error": error, "request_id": envelope.get("request_id")}
            return _without_charge(refused, batch_id)
        why = (
            f"The Anthropic API answered the call in batch {batch_id} with {error.get('type')}: {error.get('message')}"
        )
    elif result["type"] in ("canceled", "expired"):
        why = f"Batch {batch_id} ended without an answer to the call, which was {result['type']}."
    else:
        what = str(result["type"])[:50]
        return unknown(f"The result of the call in batch {batch_id} ({what!r}) cannot be read.", batch_id)
    if attempt < MOST_ATTEMPTS:
        return NotAnswered(storable(why[:MAX_MESSAGE]))
    error = {"message": f"{why} It was sent {attempt} times; replay the task to send it again."}
    return _without_charge({"type": "unanswered", "error": error}, batch_id)


def unknown(why: str, batch_id: str) -> Answer:
    """Return the answer to a call that may have been charged, and whose answer will not come."""
    said = f"{why.rstrip('.')}: whether it was charged is unknown. Replay the task to make the call again."
    return Answer(_text({"type": "unknown", "error": {"message": said}}, batch_id), UNKNOWN)


def invalid(status: int, reason: str) -> Answer:
    """Return the answer to a call because of which the API refuses a whole batch."""
    kind = "request_too_large" if status == 413 else "invalid_request_error"
    return _without_charge({"type": "errored", "error": {"type": kind, "message": reason}}, None)


def _succeeded(message: dict[str, Any], batch_id: str, model: str) -> Answer:
    given = message.get("usage")
    if isinstance(given, dict) and given:
        # Gateways may leave out the tier.
        message = {**message, "usage": {**given, "service_tier": "batch"}}
    try:
        use = spent(message, str(message.get("model") or model))
    except (TypeError, ValueError, AttributeError):
        # A minion reports what is wrong with it.
        use = {"cost_microdollars": None}
    cost = use.pop("cost_microdollars")
    tokens = use["input_tokens"] + use["output_tokens"] if "input_tokens" in use else None
    usage = {
        "input_tokens": use.get("input_tokens", 0),
        "output_tokens": use.get("output_tokens", 0),
        **use.get("used_besides", {}),
        "batch": batch_id,
        "cost_microdollars": cost,
    }
    text = _text({"type": "succeeded", "message": message}, batch_id)
    return Answer(text, {"tokens": tokens, "microdollars": cost}, usage)


def _object(given: Any) -> dict[str, Any]:
    return given if isinstance(given, dict) else {}


def _without_charge(result: dict[str, Any], batch_id: str | None) -> Answer:
    return Answer(_text(result, batch_id), NOTHING)


def _text(result: dict[str, Any], batch_id: str | None) -> str:
    # ASCII, so that PostgreSQL can store every character.
    return json.dumps({**result, "batch": batch_id})
