"""Celery's remote control, limited to the commands that monitors use for reading.

Its other commands change a worker without PostgreSQL's knowledge: a rate limit freezes a pool, and a revoked message
leaves its task queued. Use `minion pause`, `minion limits` and `minion cancel` instead.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from celery.worker.control import Panel

from shared.tasks.envelopes import Foreign, open_envelope

QUEUE = "celery.pidbox"
REPLIES = "reply.celery.pidbox"
LARGEST = 64 << 10
READING = frozenset(
    "ping clock report stats conf dump_conf active dump_active reserved dump_reserved scheduled dump_schedule revoked "
    "dump_revoked registered dump_tasks query_task active_queues enable_events".split()
)
"""Commands of `celery inspect` and Flower. (A worker's events are always on.)"""


@dataclass(frozen=True, slots=True)
class Command:
    """A command to one, some or all workers.

    Attributes:
        destination: names of workers; None: all.
        reply_to: the routing key of the queue for the answer; None: no answer is wanted.
    """

    method: str
    arguments: dict[str, Any]
    destination: list[str] | None
    reply_to: str | None
    ticket: str | None


def read(raw: bytes) -> Command:
    """Read a message from the workers' mailbox.

    Raises:
        Foreign: it is not a Celery command.
    """
    envelope = open_envelope(raw, limit=LARGEST)
    if envelope.content_type != "application/json" or envelope.headers.get("compression"):
        raise Foreign("not plain JSON")
    try:
        fields = json.loads(envelope.body)
    except (ValueError, RecursionError):
        raise Foreign("the body is not JSON") from None
    if not isinstance(fields, dict):
        raise Foreign("the body is not a JSON object")
    # Patterns from outside are not matched: a hostile one could keep this process busy indefinitely.
    if fields.get("pattern") is not None or fields.get("matcher") is not None:
        raise Foreign("patterns are not supported")
    method, arguments, destination = fields.get("method"), fields.get("arguments") or {}, fields.get("destination")
    if not (isinstance(method, str) and method in Panel.data):
        raise Foreign("unknown command")
    if not isinstance(arguments, dict):
        raise Foreign("`arguments` is not an object")
    if not (destination is None or _are_texts(destination)):
        raise Foreign("`destination` is not a list of names")
    return Command(method, arguments, destination, *_reply(fields.get("reply_to"), fields.get("ticket")))


def write(command: Command) -> bytes:
    """Return the message in kombu's format."""
    body = {
        "method": command.method,
        "arguments": command.arguments,
        "destination": command.destination,
        "pattern": None,
        "matcher": None,
        "ticket": command.ticket,
        "reply_to": command.reply_to and {"exchange": REPLIES, "routing_key": command.reply_to},
    }
    item = {
        "body": b64encode(json.dumps(body).encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {},
        "properties": {
            "delivery_mode": 1,
            "delivery_info": {"exchange": QUEUE, "routing_key": ""},
            "delivery_tag": str(uuid4()),
            "body_encoding": "base64",
            "priority": 0,
        },
    }
    return json.dumps(item).encode()


def handlers() -> dict[str, Callable[..., Any]]:
    """Handlers for a worker's mailbox: Celery's own commands, with a refusal for those that change something."""
    return {name: handler if name in READING else _refuse for name, handler in Panel.data.items()}


def _reply(reply_to: Any, ticket: Any) -> tuple[str, str] | tuple[None, None]:
    """The routing key and the ticket for the answer, if an answer is wanted."""
    if not reply_to:
        return None, None
    if not isinstance(reply_to, dict) or reply_to.get("exchange") != REPLIES:
        raise Foreign("`reply_to` is not a queue for Celery's answers")
    routing_key = reply_to.get("routing_key")
    if not (_is_text(routing_key) and _is_text(ticket)):
        raise Foreign("`reply_to` or `ticket` is not text")
    return routing_key, ticket


def _refuse(state: Any, **arguments: Any) -> dict[str, str]:
    return {
        "error": "Minions' workers take no commands over Celery's remote control. Use `minion cancel`, `minion pause` "
        "and `minion limits`, or send the process SIGTERM."
    }


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(map(_is_text, values))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 500
