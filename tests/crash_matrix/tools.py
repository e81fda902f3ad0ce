"""The builtin tools of the crash matrix: each records its calls in a file that no other code writes."""

from __future__ import annotations

import json
import os
from typing import Any

from tests.crash_matrix.points import at
from tests.crash_matrix.world import DRAWN
from tests.support.media_files import b64

RECORD = "CRASH_RECORD"


def draw(arguments: dict[str, Any], context: Any) -> dict[str, Any]:
    """Draw an image."""
    source = {"type": "base64", "media_type": "image/png", "data": b64(DRAWN)}
    return _done("draw", {"$content": [{"type": "image", "source": source}]}, context)


def peek(arguments: dict[str, Any], context: Any) -> dict[str, Any]:
    """Look something up."""
    return _done("peek", {"peeked": arguments["n"] + 1}, context)


def charge(arguments: dict[str, Any], context: Any) -> dict[str, Any]:
    """Charge a card; the payment service knows the idempotency key."""
    return _done("charge", {"charged": arguments["n"]}, context)


def mail(arguments: dict[str, Any], context: Any) -> dict[str, Any]:
    """Send a mail, which cannot be undone."""
    return _done("mail", {"mailed": arguments["n"]}, context)


def refund(arguments: dict[str, Any], context: Any) -> dict[str, Any]:
    """Pay back, which a person must approve."""
    return _done("refund", {"refunded": arguments["n"]}, context)


def _done(tool: str, result: dict[str, Any], context: Any) -> dict[str, Any]:
    at(tool, "called", context.task_id)
    effect = {"agent": context.agent, "task": context.task_id, "tool": tool, "key": context.idempotency_key}
    record = os.open(os.environ[RECORD], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(record, json.dumps(effect).encode() + b"\n")
    os.close(record)
    at(tool, "effect made", context.task_id)
    return result
