"""Webhooks over HTTP: subscriptions to ended tasks and alerts, and the outcome of each message."""

from __future__ import annotations

import base64
import binascii
import secrets
import time
from datetime import datetime
from functools import partial
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit
from uuid import UUID, uuid4

from fastapi import APIRouter, Depends, Path, Request, Response
from pydantic import AfterValidator, BaseModel, Field, StringConstraints, field_validator
from sqlalchemy import Connection, Engine, TextClause, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TEXT

from minions.webhooks import PREFIX
from orchestrator.api import body, problems
from orchestrator.api.actors import Actor
from orchestrator.api.masking import Labels, PayloadText
from orchestrator.api.parameters import (
    Database,
    ItemPage,
    NamedPage,
    Namespace,
    PageQuery,
    Statements,
    Text,
    in_namespace,
)
from orchestrator.api.task_ids import EXAMPLE, SHORTEST, WHOLE, digits_of
from orchestrator.webhooks import messages
from shared.access import actors
from shared.audit import log
from shared.contracts.documents import Name
from shared.contracts.requests import LabelName, LabelValue
from shared.contracts.strict_model import Strict
from shared.errors import AmbiguousId, Conflict, NotFound, Unavailable
from shared.outbound import AddressGuard, checked_url
from shared.settings import Settings
from shared.tasks.queries import Page, page_of

SECRET_BYTES = range(24, 65)
FinalState = Literal["succeeded", "failed", "cancelled", "expired"]
WRITTEN = f"A delivery's id, or its first {SHORTEST} characters or more, if no other delivery has them."
DeliveryRef = Annotated[
    str, AfterValidator(partial(digits_of, what="delivery")), Path(description=WRITTEN, examples=[EXAMPLE])
]
Url = Annotated[str, StringConstraints(min_length=1, max_length=2000)]
Events = Annotated[list[Literal["tasks", "alerts"]], Field(min_length=1, max_length=2)]
AgentName = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]

COLUMNS = (
    "w.id, w.namespace, w.name, w.url, w.events, w.states, w.agents, w.labels, w.roots_only, w.enabled, "
    "w.disabled_reason, w.rotated_at, w.created_at, "
    "(SELECT count(*) FROM webhook_deliveries d WHERE d.webhook_id = w.id AND d.status = 'pending') AS pending"
)
LIST = text(
    f"SELECT {COLUMNS} FROM webhooks w WHERE w.namespace = :namespace AND w.name > :after "  # noqa: S608 - constants
    "ORDER BY w.name LIMIT :most"
)
GET = text(f"SELECT {COLUMNS} FROM webhooks w WHERE w.namespace = :namespace AND w.name = :name")  # noqa: S608
# What a change replaces, kept from other changes until it is committed.
LOCKED = text(f"{GET} FOR NO KEY UPDATE OF w")
TARGET = text("SELECT url, secret FROM webhooks WHERE namespace = :namespace AND name = :name")
TYPES = (
    bindparam("events", type_=ARRAY(TEXT)),
    bindparam("states", type_=ARRAY(TEXT)),
    bindparam("agents", type_=ARRAY(TEXT)),
    bindparam("labels", type_=JSONB(none_as_null=True)),
)
ADD = text(
    "INSERT INTO webhooks (namespace, name, url, secret, events, states, agents, labels, roots_only, enabled) "
    "VALUES (:namespace, :name, :url, :secret, :events, :states, :agents, :labels, :roots_only, :enabled) "
    "ON CONFLICT (namespace, name) DO NOTHING RETURNING id"
).bindparams(*TYPES)
CHANGE = text(
    "UPDATE webhooks SET url = COALESCE(:url, url), events = COALESCE(:events, events), "
    "states = COALESCE(:states, states), agents = COALESCE(:agents, agents), labels = COALESCE(:labels, labels), "
    "roots_only = COALESCE(:roots_only, roots_only), enabled = COALESCE(:enabled, enabled), "
    "disabled_reason = CASE WHEN CAST(:enabled AS boolean) IS NULL THEN disabled_reason END "
    "WHERE namespace = :namespace AND name = :name"
).bindparams(*TYPES)
ROTATE = text(
    "UPDATE webhooks SET previous_secret = secret, secret = :secret, rotated_at = now() "
    "WHERE namespace = :namespace AND name = :name RETURNING id"
)
REMOVE = text("DELETE FROM webhooks WHERE namespace = :namespace AND name = :name")
WAKE = text("SELECT pg_notify('minion_webhooks', '')")
SHOWN = (
    "d.id, d.task_id, d.state, d.status, d.attempts, CASE WHEN d.status = 'pending' THEN d.next_at END AS next_at, "
    "d.last_status, d.last_error, d.created_at, d.finished_at"
)
DELIVERIES = text(
    f"SELECT {SHOWN} FROM webhook_deliveries d WHERE d.webhook_id = :webhook "  # noqa: S608
    "AND (CAST(:status AS text) IS NULL OR d.status = :status) "
    "AND (CAST(:before AS uuid) IS NULL OR d.id < :before) ORDER BY d.id DESC LIMIT :most"
)
DELIVERY = text(
    f"SELECT {SHOWN}, w.name, w.namespace, w.enabled FROM webhook_deliveries d "  # noqa: S608
    "JOIN webhooks w ON w.id = d.webhook_id WHERE d.id = :id FOR NO KEY UPDATE OF d"
)
STARTING = text(
    "SELECT d.id, w.name FROM webhook_deliveries d JOIN webhooks w ON w.id = d.webhook_id "
    "WHERE d.id BETWEEN :first AND :last AND (CAST(:namespace AS text) IS NULL OR w.namespace = :namespace) "
    "ORDER BY d.id DESC LIMIT 5"
)
RETRY = text(
    "UPDATE webhook_deliveries SET status = 'pending', attempts = 0, next_at = now(), finished_at = NULL WHERE id = :id"
)

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"])


class Filters(Strict):
    """Which ended tasks a webhook reports. A task must match all given filters; an empty list matches all."""

    states: list[FinalState] = Field([], max_length=4)
    agents: list[AgentName] = Field([], max_length=100)
    labels: dict[LabelName, LabelValue] = Field({}, max_length=64)
    roots_only: bool = Field(True, description="Leave out the tasks that other tasks created.")


class WebhookRequest(Filters):
    """A new webhook."""

    name: Name
    namespace: str = Field("default", min_length=1, max_length=100, pattern=r"^[^\x00]*$")
    url: Url = Field(description="http or https. Its addresses must be public, unless the operator allows them.")
    secret: str | None = Field(
        None, description="`whsec_` followed by the base64 of 24 to 64 bytes; generated if omitted."
    )
    events: Events = Field(["tasks"], description="`tasks`: ended tasks; `alerts`: alerts of its namespace; or both.")
    enabled: bool = True

    @field_validator("secret")
    @classmethod
    def _is_a_secret(cls, secret: str | None) -> str | None:
        if secret is not None and _bytes_of(secret) not in SECRET_BYTES:
            raise ValueError(
                "a secret must be `whsec_` followed by the base64 of 24 to 64 random bytes; omit it to have one "
                "generated"
            )
        return secret


class WebhookChange(Strict):
    """The fields to change; the others stay."""

    url: Url | None = None
    events: Events | None = None
    states: list[FinalState] | None = Field(None, max_length=4)
    agents: list[AgentName] | None = Field(None, max_length=100)
    labels: dict[LabelName, LabelValue] | None = Field(None, max_length=64)
    roots_only: bool | None = None
    enabled: bool | None = None


class Webhook(BaseModel):
    """A webhook, without its secret."""

    name: str
    namespace: str
    url: str
    events: list[str]
    states: list[str]
    agents: list[str]
    labels: Labels
    roots_only: bool
    enabled: bool
    disabled_reason: str | None = Field(description="Why it was disabled, if its endpoint asked for that.")
    pending: int = Field(description="The number of messages that are not delivered yet.")
    rotated_at: datetime | None = Field(description="For a day after this time, messages are signed with both secrets.")
    created_at: datetime


class WebhookWithSecret(Webhook):
    """A webhook and its secret, which is shown this once."""

    secret: str


class WebhookDelivery(BaseModel):
    """One message about one task."""

    id: UUID = Field(description="The header `webhook-id`, the same in each attempt.")
    task_id: UUID
    state: str = Field(description="How the task ended.")
    status: str = Field(description="pending, delivered or failed.")
    attempts: int
    next_at: datetime | None = Field(
        description="When a pending delivery is tried next; or again, if an attempt is under way."
    )
    last_status: int | None = Field(description="The HTTP status of the last attempt.")
    last_error: PayloadText = Field(description="It may quote the answer of the endpoint.")
    created_at: datetime
    finished_at: datetime | None


class WebhookTest(BaseModel):
    """Answer of the endpoint to a test message."""

    delivered: bool
    status: int | None
    error: str | None
    seconds: float


class DeliveryPageQuery(PageQuery):
    """Filters for deliveries."""

    namespace: Text = "default"
    status: Literal["pending", "delivered", "failed"] | None = None
    cursor: UUID | None = Field(None, description="The `next` of the previous page.")


DeliveryPage = Annotated[DeliveryPageQuery, Depends(in_namespace(DeliveryPageQuery))]


@router.get("", response_model=ItemPage[Webhook])
def list_webhooks(query: NamedPage, database: Statements) -> Page:
    """All webhooks, by name."""
    values = {"namespace": query.namespace, "after": query.cursor, "most": query.limit + 1}
    with database.connect() as connection:
        return page_of(connection.execute(LIST, values).mappings().all(), query.limit, "name")


@router.post(
    "",
    status_code=201,
    response_model=WebhookWithSecret,
    responses=problems.documented(409, 413, 415),
    openapi_extra=body.documented(WebhookRequest.model_json_schema()),
)
def add_webhook(sent: body.SmallBody, request: Request, database: Database, actor: Actor) -> dict[str, Any]:
    """Adds a webhook. The answer contains its secret, which is not shown again."""
    asked = body.parse_model(WebhookRequest, sent)
    namespace = actor.key.scope.namespace_of(asked.namespace if "namespace" in asked.model_fields_set else None)
    _check_address(asked.url, request.app.state.settings)
    secret = asked.secret or _new_secret()
    with database.begin() as connection:
        if connection.scalar(ADD, {**asked.model_dump(), "namespace": namespace, "secret": secret}) is None:
            raise Conflict(f"There is a webhook named {asked.name!r} already. Change it, or choose another name.")
        added = _get(connection, namespace, asked.name)
        _record(connection, actor, "webhook.create", None, added)
        return {**added, "secret": secret}


@router.get("/{name}", response_model=Webhook, responses=problems.documented(404))
def get_webhook(name: Text, query: Namespace, database: Statements) -> dict[str, Any]:
    """One webhook."""
    with database.connect() as connection:
        return _get(connection, query.namespace, name)


@router.patch(
    "/{name}",
    response_model=Webhook,
    responses=problems.documented(404, 413, 415),
    openapi_extra=body.documented(WebhookChange.model_json_schema()),
)
def change_webhook(
    name: Text, sent: body.SmallBody, query: Namespace, request: Request, database: Database, actor: Actor
) -> dict[str, Any]:
    """Changes the fields in the body. A disabled webhook gets no new messages; pending ones wait until it is enabled
    again."""
    asked = body.parse_model(WebhookChange, sent)
    if asked.url is not None:
        _check_address(asked.url, request.app.state.settings)
    with database.begin() as connection:
        before = _get(connection, query.namespace, name, LOCKED)
        connection.execute(CHANGE, {**asked.model_dump(), "namespace": query.namespace, "name": name})
        connection.execute(WAKE)
        changed = _get(connection, query.namespace, name)
        _record(connection, actor, "webhook.change", before, changed)
        return changed


@router.delete("/{name}", status_code=204, response_class=Response, responses=problems.documented(404))
def remove_webhook(name: Text, query: Namespace, database: Database, actor: Actor) -> None:
    """Removes a webhook and its deliveries; pending messages are dropped."""
    with database.begin() as connection:
        before = _get(connection, query.namespace, name, LOCKED)
        connection.execute(REMOVE, {"namespace": query.namespace, "name": name})
        _record(connection, actor, "webhook.delete", before, None)


@router.post(
    "/{name}/rotate", name="rotate_webhook_secret", response_model=WebhookWithSecret, responses=problems.documented(404)
)
def rotate_secret(name: Text, query: Namespace, database: Database, actor: Actor) -> dict[str, Any]:
    """Gives a webhook a new secret, which is shown only this once. For a day, messages are signed with the old secret
    too, so that the receiver has time to change it; a second rotation ends that."""
    secret = _new_secret()
    with database.begin() as connection:
        if connection.scalar(ROTATE, {"namespace": query.namespace, "name": name, "secret": secret}) is None:
            raise _unknown(name)
        log.record(connection, actor, "webhook.rotate", name, namespace=query.namespace)
        return {**_get(connection, query.namespace, name), "secret": secret}


@router.post("/{name}/test", name="test_webhook", response_model=WebhookTest, responses=problems.documented(404))
def send_test(name: Text, query: Namespace, request: Request, database: Statements, actor: Actor) -> dict[str, Any]:
    """Sends a message of type `webhook.test` now, once, and reports how the endpoint answered."""
    url, secret = _target(database, query.namespace, name)
    with database.connect() as connection:
        log.record(connection, actor, "webhook.test", name, namespace=query.namespace)
    began = time.monotonic()
    answer = messages.post(request.app.state.settings, url, [secret], f"test_{uuid4()}", messages.of_test(name))
    seconds = round(time.monotonic() - began, 3)
    return {"delivered": answer.delivered, "status": answer.status, "error": answer.error, "seconds": seconds}


@router.get(
    "/{name}/deliveries",
    name="list_webhook_deliveries",
    response_model=ItemPage[WebhookDelivery],
    responses=problems.documented(404),
)
def list_deliveries(name: Text, query: DeliveryPage, database: Statements) -> Page:
    """The messages to a webhook, the newest first."""
    with database.connect() as connection:
        webhook = _get(connection, query.namespace, name)["id"]
        values = {"webhook": webhook, "status": query.status, "before": query.cursor, "most": query.limit + 1}
        return page_of(connection.execute(DELIVERIES, values).mappings().all(), query.limit, "id")


@router.post(
    "/deliveries/{delivery_id}/retry",
    name="retry_webhook_delivery",
    response_model=WebhookDelivery,
    responses=problems.documented(404, 409),
)
def retry_delivery(delivery_id: DeliveryRef, database: Database, actor: Actor) -> dict[str, Any]:
    """Sends a message again, under the same id, whatever its status; its attempts are counted from the beginning."""
    with database.begin() as connection:
        id = _find_delivery(connection, delivery_id, actor.key.scope.namespace)
        found = connection.execute(DELIVERY, {"id": id}).mappings().one()
        if not found["enabled"]:
            raise Conflict(f"The webhook {found['name']!r} is disabled. Enable it first; then the message is sent.")
        connection.execute(RETRY, {"id": id})
        connection.execute(WAKE)
        before = {"delivery": id, "status": found["status"], "attempts": found["attempts"]}
        log.record(connection, actor, "webhook.retry", found["name"], namespace=found["namespace"], before=before)
        return dict(connection.execute(DELIVERY, {"id": id}).mappings().one())


def _find_delivery(connection: Connection, digits: str, namespace: str | None) -> UUID:
    """Return the delivery of the namespace, or of any, whose id begins with these hexadecimal digits.

    Raises:
        NotFound: there is none.
        AmbiguousId: there are several.
    """
    first, last = UUID(digits.ljust(WHOLE, "0")), UUID(digits.ljust(WHOLE, "f"))
    found = connection.execute(STARTING, {"first": first, "last": last, "namespace": namespace}).all()
    if not found:
        raise NotFound(
            f"There is no delivery whose id is, or begins with, {digits}. `minion webhooks deliveries` lists them."
        )
    if len(found) > 1:
        listed = ", ".join(f"{row.id} ({row.name})" for row in found)
        raise AmbiguousId(
            f"More than one delivery has an id that begins with {digits}: {listed}. Give more characters.",
            candidates=[str(row.id) for row in found],
        )
    return UUID(str(found[0].id))


def _record(
    connection: Connection,
    actor: actors.Actor,
    act: str,
    before: dict[str, Any] | None,
    after: dict[str, Any] | None,
) -> None:
    stored = after or before
    assert stored is not None
    states = log.changed(before and _recorded(before), after and _recorded(after))
    log.record(connection, actor, act, stored["name"], namespace=stored["namespace"], **states)


def _recorded(row: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a webhook for the audit log. The path of its address and its labels may be secrets."""
    address = urlsplit(row["url"])
    return {
        **{name: row[name] for name in ("events", "states", "agents", "roots_only", "enabled")},
        "labels": sorted(row["labels"]),
        "host": f"{address.scheme}://{address.hostname}",
        "url": log.fingerprint(row["url"]),
    }


def _get(connection: Connection, namespace: str, name: str, statement: TextClause = GET) -> dict[str, Any]:
    row = connection.execute(statement, {"namespace": namespace, "name": name}).mappings().one_or_none()
    if row is None:
        raise _unknown(name)
    return dict(row)


def _target(database: Engine, namespace: str, name: str) -> tuple[str, str]:
    """Read the address and the secret before sending, so that no connection waits for an endpoint."""
    with database.connect() as connection:
        row = connection.execute(TARGET, {"namespace": namespace, "name": name}).one_or_none()
    if row is None:
        raise _unknown(name)
    return row.url, row.secret


def _unknown(name: str) -> NotFound:
    return NotFound(f"There is no webhook named {name!r}. `minion webhooks` lists them.")


def _check_address(url: str, settings: Settings) -> None:
    """Refuse an address that every delivery would refuse. A name that does not resolve yet may resolve later."""
    parsed = checked_url(url)
    guard = AddressGuard.allowing(settings.allow_private_addresses)
    try:
        guard.resolve(parsed.raw_host.decode("ascii"), parsed.port or 443)
    except Unavailable:
        return


def _new_secret() -> str:
    return PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def _bytes_of(secret: str) -> int:
    """Return the number of bytes in a secret; 0 if it is invalid."""
    try:
        return len(base64.b64decode(secret.removeprefix(PREFIX), validate=True)) if secret.startswith(PREFIX) else 0
    except (binascii.Error, ValueError):
        return 0
