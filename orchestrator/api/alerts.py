"""Alerts over HTTP: see and acknowledge them, silence what is known."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field, model_validator
from sqlalchemy import Connection, text

from orchestrator.alerts import addresses, notices, store
from orchestrator.api import body, problems
from orchestrator.api.actors import Actor
from orchestrator.api.auth import Caller
from orchestrator.api.parameters import Database, ItemPage, PageQuery, Statements, Text
from shared.access.actors import Key
from shared.access.roles import Permission
from shared.audit import log
from shared.contracts.strict_model import Moment, Strict
from shared.errors import Conflict, InvalidInput, NotFound
from shared.tasks.queries import Page, page_of

router = APIRouter(prefix="/v1", tags=["alerts"])

AlertState = Literal["firing", "acknowledged", "silenced", "resolved"]
LONGEST_SILENCE = timedelta(days=366)
MOST_SILENCES = 1000
MOST_OF_NAMESPACE = 100
"""Of the keys that are bound to one, so that none uses up the silences of all."""
MATCHERS = ("rule", "agent", "capability", "subject")

# Threats name keys and addresses, as the audit log does.
REACHED = (
    "(CAST(:within AS text) IS NULL OR a.namespace = :within) AND (:threats OR NOT starts_with(a.rule, 'threat.'))"
)
LIST = text(
    f"SELECT {store.COLUMNS} FROM alerts a WHERE {REACHED} "  # noqa: S608 - constants
    "AND (CAST(:namespace AS text) IS NULL OR a.namespace = :namespace) "
    "AND (CAST(:state AS text) IS NULL OR a.state = :state) "
    "AND (:all OR CAST(:state AS text) IS NOT NULL OR a.state <> 'resolved') "
    "AND (CAST(:rule AS text) IS NULL OR a.rule = :rule) AND (CAST(:agent AS text) IS NULL OR a.agent = :agent) "
    "AND (CAST(:capability AS text) IS NULL OR a.capability = :capability) "
    "AND (CAST(:before AS uuid) IS NULL OR a.id < :before) ORDER BY a.id DESC LIMIT :most"
)
GET = text(f"SELECT {store.COLUMNS} FROM alerts a WHERE a.id = :id AND {REACHED}")  # noqa: S608
LOCKED = text(f"{GET} FOR NO KEY UPDATE")
ACKNOWLEDGE = text(
    "UPDATE alerts SET state = 'acknowledged', changed_at = now(), acknowledged_at = now(), acknowledged_by = :who "
    "WHERE id = :id"
)
SILENCE_COLUMNS = "id, namespace, rule, agent, capability, subject, until_at AS until, reason, created_at, created_by"
SILENCES = text(
    f"SELECT {SILENCE_COLUMNS} FROM alert_silences WHERE until_at > now() "  # noqa: S608
    "AND (CAST(:within AS text) IS NULL OR namespace = :within) "
    "AND (CAST(:before AS uuid) IS NULL OR id < :before) ORDER BY id DESC LIMIT :most"
)
COUNT_SILENCES = text(
    "SELECT count(*) AS all, count(*) FILTER (WHERE namespace = :within) AS own FROM alert_silences "
    "WHERE until_at > now()"
)
ADD_SILENCE = text(
    "INSERT INTO alert_silences (namespace, rule, agent, capability, subject, until_at, reason, created_by) "  # noqa: S608
    f"VALUES (:namespace, :rule, :agent, :capability, :subject, :until, :reason, :who) RETURNING {SILENCE_COLUMNS}"
)
REMOVE_SILENCE = text(
    "DELETE FROM alert_silences WHERE id = :id AND (CAST(:within AS text) IS NULL OR namespace = :within) "  # noqa: S608
    f"RETURNING {SILENCE_COLUMNS}"
)


class Alert(BaseModel):
    """A condition or an anomaly."""

    id: UUID
    rule: str = Field(examples=["anomaly.failures"])
    namespace: str | None = Field(description="Null if it is about the whole installation.")
    subject: str
    agent: str | None
    capability: str | None
    state: AlertState
    sentence: str
    value: float | None
    usual: float | None = Field(description="The figure that was expected.")
    low: float | None = Field(description="Lower end of the expected range.")
    high: float | None
    unit: str | None
    facts: dict[str, Any]
    link: str = Field(description="Its page; its path in the API if the installation has no address for browsers.")
    first_seen: datetime
    last_seen: datetime
    changed_at: datetime = Field(description="When it got its present state.")
    resolved_at: datetime | None
    acknowledged_at: datetime | None
    acknowledged_by: str | None


class Silence(BaseModel):
    """No notifications about alerts that match all given fields."""

    id: UUID
    namespace: str | None = Field(description="Null in a silence for the whole installation.")
    rule: str | None
    agent: str | None
    capability: str | None
    subject: str | None
    until: datetime
    reason: str
    created_at: datetime
    created_by: str


class SilenceRequest(Strict):
    """A silence. At least one of `rule`, `agent`, `capability` and `subject` must be given."""

    namespace: str | None = Field(None, min_length=1, max_length=100, pattern=r"^[^\x00]*$")
    rule: Text | None = Field(None, description="A rule, all that begin with `anomaly.`: `anomaly.*`, or all: `*`.")
    agent: Text | None = None
    capability: Text | None = None
    subject: Text | None = None
    until: Moment = Field(strict=False, description="With a time zone; within a year.")
    reason: str = Field(min_length=1, max_length=500, pattern=r"^[^\x00]*$")

    @model_validator(mode="after")
    def _matches_something(self) -> SilenceRequest:
        if all(getattr(self, name) is None for name in MATCHERS):
            raise ValueError(
                "it must have a rule, an agent, a capability or a subject; the rule `*` matches all alerts"
            )
        return self


class Sent(BaseModel):
    """The outcome of a test message to an address of MINION_ALERT_URLS."""

    receiver: str = Field(description="The kind of the address, and a digest of it.", examples=["slack:3fa9c01e"])
    delivered: bool
    error: str | None


class Tested(BaseModel):
    """All addresses."""

    items: list[Sent]


class AlertPage(PageQuery):
    """Filters for alerts."""

    namespace: Text | None = None
    state: AlertState | None = None
    rule: Text | None = None
    agent: Text | None = None
    capability: Text | None = None
    all: bool = Field(False, description="Also those that are resolved. They are kept for 90 days.")
    cursor: UUID | None = Field(None, description="The `next` of the previous page.")


class SilencePage(PageQuery):
    """A page of silences."""

    cursor: UUID | None = Field(None, description="The `next` of the previous page.")


@router.get("/alerts", response_model=ItemPage[Alert])
def list_alerts(
    query: Annotated[AlertPage, Query()], request: Request, database: Statements, key: Caller
) -> dict[str, Any]:
    """The alerts, the newest first. A key that is bound to a namespace sees those of the namespace. Threats need
    `audit:read` too."""
    if query.namespace is not None:
        key.scope.namespace_of(query.namespace)
    values = {**query.model_dump(exclude={"limit", "cursor"}), **_reach(key)}
    with database.connect() as connection:
        rows = connection.execute(LIST, {**values, "before": query.cursor, "most": query.limit + 1}).mappings().all()
    page = page_of(rows, query.limit, "id")
    base = notices.base_of(request.app.state.settings)
    return {"items": [notices.shown(row, base) for row in page.items], "next": page.next}


@router.post("/alerts/test", name="test_alert_addresses", response_model=Tested)
def test_addresses(request: Request, database: Statements, actor: Actor) -> dict[str, Any]:
    """Sends a test message to each address of MINION_ALERT_URLS now, and reports the outcomes."""
    found = addresses.of(request.app.state.settings)
    with database.connect() as connection:
        facts = {"receivers": [address.name for address in found]}
        log.record(connection, actor, "alert.test", "addresses", namespace=None, after=facts)
    items = []
    for address in found:
        error = address.send("Minions: test", "This is a test. Alerts arrive here.")
        items.append({"receiver": address.name, "delivered": error is None, "error": error})
    return {"items": items}


@router.get("/alerts/{alert_id}", response_model=Alert, responses=problems.documented(404))
def get_alert(alert_id: UUID, request: Request, database: Statements, key: Caller) -> dict[str, Any]:
    """One alert."""
    with database.connect() as connection:
        return notices.shown(_find(connection, alert_id, key), notices.base_of(request.app.state.settings))


@router.post("/alerts/{alert_id}/acknowledge", response_model=Alert, responses=problems.documented(404, 409))
def acknowledge_alert(alert_id: UUID, request: Request, database: Database, actor: Actor) -> dict[str, Any]:
    """Acknowledges an alert: it is not repeated, and its receivers are notified once it is resolved. May be
    repeated."""
    with database.begin() as connection:
        before = _find(connection, alert_id, actor.key, LOCKED)
        if before["state"] == "resolved":
            raise Conflict("The alert is resolved already. There is nothing to acknowledge.")
        connection.execute(ACKNOWLEDGE, {"id": alert_id, "who": str(actor)})
        found = _find(connection, alert_id, actor.key)
        states = [{"rule": each["rule"], "state": each["state"]} for each in (before, found)]
        log.record(
            connection,
            actor,
            "alert.acknowledge",
            alert_id,
            namespace=found["namespace"],
            before=states[0],
            after=states[1],
        )
    return notices.shown(found, notices.base_of(request.app.state.settings))


@router.get("/silences", response_model=ItemPage[Silence])
def list_silences(query: Annotated[SilencePage, Query()], database: Statements, key: Caller) -> Page:
    """The silences that have not ended, the newest first."""
    values = {"within": key.scope.namespace, "before": query.cursor, "most": query.limit + 1}
    with database.connect() as connection:
        return page_of(connection.execute(SILENCES, values).mappings().all(), query.limit, "id")


@router.post(
    "/silences",
    status_code=201,
    response_model=Silence,
    responses=problems.documented(409, 413, 415),
    openapi_extra=body.documented(SilenceRequest.model_json_schema()),
)
def add_silence(sent: body.SmallBody, database: Database, actor: Actor) -> dict[str, Any]:
    """Silences alerts until a time: they are kept, and not sent. Without a namespace, a key without bounds
    silences those of the whole installation. A silence that may match threats needs `audit:read` too."""
    asked = body.parse_model(SilenceRequest, sent)
    scope = actor.key.scope
    namespace = asked.namespace if scope.namespace is None else scope.namespace_of(asked.namespace)
    now = datetime.now(UTC)
    if not now < asked.until <= now + LONGEST_SILENCE:
        raise InvalidInput("Invalid `until`: it must be in the future, within a year.")
    if _may_match_threats(asked):
        # The holder of a stolen key must not silence the alerts about it.
        actor.key.require(Permission.AUDIT_READ)
    values = {**asked.model_dump(), "namespace": namespace, "who": str(actor)}
    with database.begin() as connection:
        _refuse_too_many(connection, scope.namespace)
        added = dict(connection.execute(ADD_SILENCE, values).mappings().one())
        store.apply_silences(connection)
        log.record(connection, actor, "silence.create", added["id"], namespace=namespace, after=_facts(added))
    return added


@router.delete("/silences/{silence_id}", status_code=204, response_class=Response, responses=problems.documented(404))
def remove_silence(silence_id: UUID, database: Database, actor: Actor) -> None:
    """Ends a silence. Alerts that still fire are sent and repeated again."""
    values = {"id": silence_id, "within": actor.key.scope.namespace}
    with database.begin() as connection:
        row = connection.execute(REMOVE_SILENCE, values).mappings().one_or_none()
        if row is None:
            raise NotFound(f"There is no silence {silence_id}. `minion alerts silences` lists them.")
        store.apply_silences(connection)
        log.record(
            connection, actor, "silence.delete", silence_id, namespace=row["namespace"], before=_facts(dict(row))
        )


def _may_match_threats(asked: SilenceRequest) -> bool:
    """Return whether a silence may match the alerts of threats, which have no agent and no capability."""
    if asked.agent is not None or asked.capability is not None:
        return False
    return asked.rule is None or asked.rule == "*" or asked.rule.startswith("threat.")


def _refuse_too_many(connection: Connection, within: str | None) -> None:
    """Raise Conflict if there are too many silences, of the key's namespace or at all."""
    count = connection.execute(COUNT_SILENCES, {"within": within}).one()
    for number, most in ((count.all, MOST_SILENCES), (count.own, MOST_OF_NAMESPACE)):
        if number >= most:
            raise Conflict(f"There are {most} silences already. Remove some with `minion alerts unsilence`.")


def _reach(key: Key) -> dict[str, Any]:
    return {"within": key.scope.namespace, "threats": key.may(Permission.AUDIT_READ)}


def _find(connection: Connection, alert: UUID, key: Key, statement: Any = GET) -> dict[str, Any]:
    row = connection.execute(statement, {"id": alert, **_reach(key)}).mappings().one_or_none()
    if row is None:
        raise NotFound(f"There is no alert {alert}. `minion alerts` lists them.")
    return dict(row)


def _facts(silence: dict[str, Any]) -> dict[str, Any]:
    return {name: silence[name] for name in (*MATCHERS, "until", "reason") if silence[name] is not None}
