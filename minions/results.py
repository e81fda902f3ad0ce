"""Values that a builtin tool or a function may return instead of a result.

They make its task wait without a worker, or show the model an image or a document.

A builtin tool may raise `GiveUp`, so that its task fails without further attempts.

from minions.results import snooze

def poll(arguments, context):
    return the_report() or snooze(60)
"""

from __future__ import annotations

import base64
from typing import Any


class GiveUp(Exception):
    """Raised by a builtin tool: the call had no effect, and must not be repeated. Other errors are retried."""


def snooze(seconds: float) -> dict[str, Any]:
    """Run the task again after this many seconds. No attempt is charged."""
    return {"$snooze": seconds}


def retry_after(seconds: float, reason: str) -> dict[str, Any]:
    """Fail this attempt. The next one, if any is left, begins after this many seconds."""
    return {"$retry_after": seconds, "reason": reason}


def sleep(seconds: float) -> dict[str, Any]:
    """Continue after this many seconds. The call's result is `{"timed_out": True}`."""
    return {"$wait": {"seconds": seconds}}


def wait_for_signal(name: str, timeout: float | None = None) -> dict[str, Any]:
    """Continue when a signal of that name is sent to the task, or after `timeout` seconds.

    The call's result is `{"signal": name, "payload": …, "sent_at": …}`, or `{"timed_out": True}`.
    """
    return {"$wait": {"signal": name} if timeout is None else {"signal": name, "seconds": timeout}}


def content(*blocks: dict[str, Any] | str) -> dict[str, Any]:
    """Give the model these blocks, as the Messages API takes them in the result of a tool; a text is a block too."""
    return {"$content": [{"type": "text", "text": each} if isinstance(each, str) else each for each in blocks]}


def image(data: bytes, media_type: str) -> dict[str, Any]:
    """Return a block for `content`: a picture of type `image/png`, `image/jpeg`, `image/gif` or `image/webp`."""
    return {"type": "image", "source": _base64(data, media_type)}


def pdf(data: bytes, title: str | None = None) -> dict[str, Any]:
    """Return a block for `content`: a PDF."""
    block = {"type": "document", "source": _base64(data, "application/pdf")}
    return block if title is None else {**block, "title": title}


def _base64(data: bytes, media_type: str) -> dict[str, Any]:
    return {"type": "base64", "media_type": media_type, "data": base64.b64encode(data).decode()}
