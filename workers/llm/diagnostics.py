"""Diagnostics of cache misses: the API compares a request with the previous one, and says what changed.

It is asked in every turn, because it costs nothing: the API keeps a fingerprint of each prompt, never its text
(https://platform.claude.com/docs/en/build-with-claude/cache-diagnostics). A gateway that refuses the field is not sent
it again.
"""

from __future__ import annotations

from typing import Any

from shared.errors import ModelError
from shared.settings import get_settings
from shared.storable import storable
from workers.llm.base import ModelRequest

UNKNOWN_FIELD = (
    *("diagnostics", "extra", "unknown", "unrecognized", "unexpected", "additional"),
    *("support", "not permitted", "not allowed"),
)
BY_CONTENT = frozenset({400, 422})
_refused: set[str | None] = set()
"""Addresses of gateways that have refused the field."""


def diagnostics_of(request: ModelRequest) -> dict[str, Any] | None:
    """Return the field of the request; None: it is not sent."""
    if not request.diagnosed or get_settings().anthropic_base_url in _refused:
        return None
    return {"previous_message_id": request.previous_reply}


def may_refuse_diagnostics(request: ModelRequest, error: ModelError) -> bool:
    """Return whether a request was refused that may be accepted without the field."""
    if error.detail.get("http_status") not in BY_CONTENT or diagnostics_of(request) is None:
        return False
    said = error.message.lower()
    return any(word in said for word in UNKNOWN_FIELD)


def forget_diagnostics() -> None:
    """Send the field no more to this address."""
    _refused.add(get_settings().anthropic_base_url)


def cache_miss_in(message: dict[str, Any]) -> dict[str, Any] | None:
    """Return the reason why the cache could not be used: `type`, and `cache_missed_input_tokens` if they are known."""
    reported = message.get("diagnostics")
    reason = reported.get("cache_miss_reason") if isinstance(reported, dict) else None
    return storable(reason) if isinstance(reason, dict) and isinstance(reason.get("type"), str) else None
