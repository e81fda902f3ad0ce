"""Webhook messages: built from the record, signed, posted once, with the endpoint's answer.

The signature follows the Standard Webhooks specification; `minions.webhooks` is the receiver's side.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import httpx2
from sqlalchemy import Connection, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql import UUID as PgUUID

from minions.errors import MinionsError
from minions.webhooks import ID, SIGNATURE, TIMESTAMP, sign
from shared import __version__
from shared.contracts.key_order import in_order
from shared.outbound import guarded_client
from shared.retry_after import retry_after
from shared.settings import Settings

TIMEOUT_SECONDS = 10.0
EXCERPT_BYTES = 2048
EXCERPT_CHARACTERS = 200
REDIRECTS = range(300, 400)
# Outputs of more than 64 KB are stored separately; a receiver that needs one asks the API.
ENDED = text(
    "SELECT t.id, t.namespace, t.agent_name AS agent, v.number AS agent_version, o.state, o.output, o.output_order, "
    "o.output_sha256 IS NOT NULL AS output_omitted, o.error, o.error_fingerprint, t.labels, t.key, "
    "t.conversation_id, t.root_id, t.parent_id, t.replay_of, t.created_at, o.finished_at "
    "FROM tasks t JOIN task_outcomes o ON o.task_id = t.id LEFT JOIN agent_versions v ON v.id = t.agent_version_id "
    "WHERE t.id = ANY (:tasks)"
).bindparams(bindparam("tasks", type_=ARRAY(PgUUID)))


@dataclass(frozen=True, slots=True)
class Answer:
    """An endpoint's answer to a message.

    Attributes:
        status: the HTTP status; None if there was no response.
        error: the reason why it does not count as delivered; None if it does.
        retry_after: seconds that the endpoint asks to wait, if it does.
    """

    status: int | None
    error: str | None = None
    retry_after: float | None = None

    @property
    def delivered(self) -> bool:
        """True if the endpoint has the message."""
        return self.error is None


def of_tasks(connection: Connection, tasks: Collection[UUID]) -> dict[UUID, bytes]:
    """Return the messages about ended tasks. A task that was deleted in the meantime has none."""
    rows = connection.execute(ENDED, {"tasks": list(tasks)}).mappings()
    return {row["id"]: _of_task(in_order(row, "output")) for row in rows}


def of_test(webhook: str) -> bytes:
    """Return a test message, which only proves that messages arrive."""
    return _encode("webhook.test", datetime.now(UTC), {"webhook": webhook, "nonce": str(uuid4())})


def of_alerts(kind: str, data: dict[str, Any]) -> bytes:
    """Return a message about alerts, as they are now."""
    return _encode(kind, datetime.now(UTC), data)


def post(settings: Settings, url: str, secrets: Sequence[str], id: str, body: bytes) -> Answer:
    """Send a message once, within 10 s. Never raises an error that an endpoint can cause.

    Args:
        secrets: the message gets one signature per secret, so that a receiver may use the old one or the new one.
        id: the same for every attempt of this message.
    """
    try:
        with (
            guarded_client(settings, seconds=TIMEOUT_SECONDS) as client,
            client.stream("POST", url, content=body, headers=_headers(secrets, id, body)) as response,
        ):
            return _judge(response)
    except MinionsError as error:  # an address that is refused, a secret that is none
        return Answer(None, error.message)
    except httpx2.TimeoutException:
        return Answer(None, f"The endpoint did not answer within {TIMEOUT_SECONDS:g} s.")
    except httpx2.RequestError as error:
        return Answer(None, f"The endpoint cannot be reached: {_one_line(str(error) or type(error).__name__)}.")


def _headers(secrets: Sequence[str], id: str, body: bytes) -> dict[str, str]:
    now = int(time.time())
    return {
        "Content-Type": "application/json",
        "Accept-Encoding": "identity",
        "User-Agent": f"Minions/{__version__}",
        ID: id,
        TIMESTAMP: str(now),
        SIGNATURE: " ".join(sign(secret, id, now, body) for secret in secrets),
    }


def _of_task(row: dict[str, Any]) -> bytes:
    ended = row["finished_at"]
    return _encode(f"task.{row['state']}", ended, {**row, "path": f"/v1/tasks/{row['id']}"})


def _encode(kind: str, moment: datetime, data: dict[str, Any]) -> bytes:
    message = {"type": kind, "timestamp": moment, "data": data}
    return json.dumps(message, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain).encode()


def _plain(value: Any) -> str:
    return value.astimezone(UTC).isoformat().replace("+00:00", "Z") if isinstance(value, datetime) else str(value)


def _judge(response: httpx2.Response) -> Answer:
    if response.is_success:
        return Answer(response.status_code)
    said = f"The endpoint answered {response.status_code} {response.reason_phrase}".rstrip()
    if response.status_code in REDIRECTS:
        return Answer(response.status_code, f"{said}. Redirects are not followed: give the webhook its final address.")
    excerpt = _excerpt(response)
    return Answer(response.status_code, f"{said}{': ' if excerpt else '.'}{excerpt}", retry_after(response.headers))


def _excerpt(response: httpx2.Response) -> str:
    """The beginning of an endpoint's response, for people to read."""
    beginning = b""
    try:
        for chunk in response.iter_raw():
            beginning += chunk
            if len(beginning) >= EXCERPT_BYTES:
                break
    except httpx2.RequestError:
        pass
    return _one_line(beginning[:EXCERPT_BYTES].decode("utf-8", "replace"))


def _one_line(text: str) -> str:
    printable = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(printable.split())[:EXCERPT_CHARACTERS]
