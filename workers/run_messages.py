"""Messages of a capability's queue, in exactly the form that the orchestrator sends.

A message is read, each field is checked, and a new message is built from the fields, so that Celery never sees text
written by another sender. It has no ETA, expiry or callbacks, and its id is that of the task and claim.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from shared.broker import MESSAGE_VERSION, RUN_PACK, RUN_TASK, message_id
from shared.contracts.documents import NAME
from shared.tasks.envelopes import Foreign, open_envelope

LARGEST = 16 << 10
LARGEST_PACK = 64
LAST_CLAIM = 2**31 - 2
"""PostgreSQL counts claims in an `integer`, and the next claim has to fit too."""
LAST_VERSION = 1000
LONGEST_SECONDS = 90_000
"""The longest hard time limit that an agent may have."""
TASK_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
AGENT_NAME = re.compile(NAME)


class Entry(NamedTuple):
    """A task of a pack: the claim number that its message was sent under, and its limits in seconds."""

    task_id: UUID
    claim: int
    time_limit: int
    soft_time_limit: int
    agent_name: str

    @property
    def message_id(self) -> str:
        """Its id for Celery's monitors."""
        return message_id(self.task_id, self.claim)


@dataclass(frozen=True, slots=True)
class RunMessage:
    """The contents of a message. Limits are seconds; they are checked against PostgreSQL when the task is claimed.

    Attributes:
        has_model: the agent calls a model; a message of release 0.2 does not say so.
        others: further tasks, which run one after the other in the same slot.
    """

    version: int
    task_id: UUID
    claim: int
    time_limit: int
    soft_time_limit: int
    agent_name: str
    has_model: bool = False
    others: tuple[Entry, ...] = ()


def read(raw: bytes) -> RunMessage:
    """Read an item of a capability's queue.

    Raises:
        Foreign: the orchestrator did not send it.
    """
    envelope = open_envelope(raw, limit=LARGEST)
    headers = envelope.headers
    if headers.get("task") not in (RUN_TASK, RUN_PACK):
        raise Foreign(f"not a {RUN_TASK} message")
    if envelope.content_type != "application/json" or headers.get("compression"):
        raise Foreign("not plain JSON")
    fields = _fields(envelope.body)
    time_limit, soft_time_limit = _limits(headers.get("timelimit"))
    version = _whole_number(fields, "v", 1, LAST_VERSION)
    message = RunMessage(
        version=version,
        task_id=_task_id(fields.get("task_id")),
        claim=_whole_number(fields, "claim", 0, LAST_CLAIM),
        time_limit=time_limit,
        soft_time_limit=soft_time_limit,
        agent_name=_agent_name(headers.get("shadow")),
        has_model=headers.get("has_model") is True,
        # A later release may mean something else by it.
        others=_others(headers.get("pack")) if version == MESSAGE_VERSION else (),
    )
    if headers["task"] == RUN_PACK and not message.others:
        raise Foreign("`pack` is missing")
    if message.has_model and message.others:
        raise Foreign("`pack` has agents with a model")
    ids = {message.task_id, *(other.task_id for other in message.others)}
    if len(ids) <= len(message.others):
        raise Foreign("`pack` repeats a task")
    return message


def write(message: RunMessage, queue: str) -> bytes:
    """Return the item for that queue, in kombu's format."""
    name = message_id(message.task_id, message.claim)
    fields = {"v": message.version, "task_id": str(message.task_id), "claim": message.claim}
    body = json.dumps([[], fields, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}])
    item = {
        "body": b64encode(body.encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            "lang": "py",
            "task": RUN_PACK if message.others else RUN_TASK,
            "id": name,
            "root_id": name,
            "parent_id": None,
            "group": None,
            "eta": None,
            "expires": None,
            "retries": 0,
            "timelimit": [message.time_limit, message.soft_time_limit],
            "shadow": message.agent_name,
            "argsrepr": "",
            "kwargsrepr": f"task_id={message.task_id} claim={message.claim}",
            "ignore_result": True,
            "has_model": message.has_model,
            **({"pack": [[str(other.task_id), *other[1:]] for other in message.others]} if message.others else {}),
        },
        "properties": {
            "correlation_id": name,
            "reply_to": None,
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "delivery_tag": str(uuid4()),
            "body_encoding": "base64",
            "priority": 0,
        },
    }
    return json.dumps(item).encode()


def _others(given: Any) -> tuple[Entry, ...]:
    """The further tasks of a pack, as `shared.broker` lists them."""
    if given is None:
        return ()
    if not (isinstance(given, list) and 0 < len(given) < LARGEST_PACK):
        raise Foreign(f"`pack` is not a list of 1 to {LARGEST_PACK - 1} tasks")
    return tuple(map(_entry, given))


def _entry(given: Any) -> Entry:
    if not (isinstance(given, list) and len(given) == 5):
        raise Foreign("a task in `pack` is not a list of five")
    task_id, claim, time_limit, soft_time_limit, agent_name = given
    limits = _limits([time_limit, soft_time_limit])
    return Entry(
        _task_id(task_id), _whole_number({"claim": claim}, "claim", 0, LAST_CLAIM), *limits, _agent_name(agent_name)
    )


def _task_id(given: Any) -> UUID:
    if not (isinstance(given, str) and TASK_ID.fullmatch(given)):
        raise Foreign("`task_id` is not an id")
    return UUID(given)


def _agent_name(given: Any) -> str:
    if not (isinstance(given, str) and AGENT_NAME.fullmatch(given)):
        raise Foreign("`shadow` is not the name of an agent")
    return given


def _fields(body: bytes) -> dict[str, Any]:
    """The keyword arguments. A later release may add more."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise Foreign("the body is not JSON") from None
    if not (isinstance(content, list) and len(content) == 3 and content[0] == [] and isinstance(content[1], dict)):
        raise Foreign("the body has no keyword arguments")
    fields: dict[str, Any] = content[1]
    if fields.get("v") == MESSAGE_VERSION and fields.keys() != {"v", "task_id", "claim"}:
        raise Foreign("unknown keyword arguments")
    return fields


def _limits(given: Any) -> tuple[int, int]:
    if not (isinstance(given, list) and len(given) == 2):
        raise Foreign("`timelimit` is missing")
    limits = dict(zip(("hard", "soft"), given, strict=True))
    return _whole_number(limits, "hard", 1, LONGEST_SECONDS), _whole_number(limits, "soft", 1, LONGEST_SECONDS)


def _whole_number(fields: dict[str, Any], name: str, minimum: int, maximum: int) -> int:
    value = fields.get(name)
    # Not `isinstance`: it accepts True as an int.
    if type(value) is not int or not minimum <= value <= maximum:
        raise Foreign(f"`{name}` is not a whole number from {minimum} to {maximum}")
    return value
