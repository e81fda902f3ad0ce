"""Accepting tasks: strict JSON and the agent's schema are checked here, everything else by the one insert."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Engine, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB

from shared import lifecycle
from shared.errors import InvalidInput, MinionError, UnknownAgent
from shared.json_schema import Schema
from shared.json_values import check
from shared.lifecycle import Accepted
from shared.messages import checked_input, coerce
from shared.schemas import TaskRequest
from shared.settings import get_settings
from shared.suggestions import similar_agents

RESOLVE = text("SELECT version_id, agent_name, input_schema FROM minion_resolve(:request)").bindparams(
    bindparam("request", type_=JSONB)
)
KEYS_IN_USE = text(
    "SELECT k.namespace, k.key FROM idempotency_keys k "
    "JOIN unnest(CAST(:namespaces AS text[]), CAST(:keys AS text[])) AS asked (namespace, key) USING (namespace, key)"
)


@dataclass(frozen=True, slots=True)
class Target:
    """The agent version that will run a task. None for all where the orchestrator routes it by its message."""

    version_id: UUID | None
    agent: str | None
    input_schema: Schema | None


def submit(connection: Connection, request: TaskRequest, *, submitted_by: str) -> Accepted:
    """Accepts one task in the caller's transaction; who needs no transaction of his own calls `prepare`.

    Raises:
        MinionError: why it is refused.
    """
    return submit_many(connection, [request], submitted_by=submitted_by)[0]


def submit_many(connection: Connection, requests: Sequence[TaskRequest], *, submitted_by: str) -> list[Accepted]:
    """Accepts all tasks or none, in the caller's transaction.

    Args:
        submitted_by: who asks, for the record.

    Raises:
        MinionError: the first that is refused; `detail["index"]` says which, where there are several.
    """
    return lifecycle.accept(connection, _prepare_all(connection, requests, submitted_by))


def prepare(engine: Engine, requests: Sequence[TaskRequest], *, submitted_by: str) -> list[dict[str, Any]]:
    """Checks tasks and makes what `lifecycle.accept` takes.

    Holding one large input to its schema may take longer than PostgreSQL lets a transaction idle (a lease): no
    transaction is open meanwhile.

    Raises:
        MinionError: the first that is refused; `detail["index"]` says which, where there are several.
    """
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        try:
            return _prepare_all(connection, requests, submitted_by)
        except UnknownAgent as error:
            asked = requests[error.detail.get("index", 0)]
            similar = similar_agents(connection, asked.namespace, asked.agent or "")
            raise UnknownAgent(error.message + similar, **error.detail) from None


def _prepare_all(connection: Connection, requests: Sequence[TaskRequest], submitted_by: str) -> list[dict[str, Any]]:
    targets: dict[tuple[str | None, str | None, str], Target] = {}
    in_use = _keys_in_use(connection, requests)
    prepared = []
    for index, request in enumerate(requests):
        try:
            plain = _plain(request)
            # What was accepted once is answered by the insert, whatever has become of its agent since.
            if (request.namespace, request.idempotency_key) not in in_use:
                _check_target(connection, request, plain, targets)
            prepared.append({**plain, "submitted_by": submitted_by})
        except MinionError as error:
            if len(requests) > 1:
                raise type(error)(
                    f"Task {index} of {len(requests)}: {error.message}", **error.detail, index=index
                ) from None
            raise
    return prepared


def _keys_in_use(connection: Connection, requests: Sequence[TaskRequest]) -> set[tuple[str, str | None]]:
    """The idempotency keys, with their namespaces, under which something was accepted before."""
    pairs = ((request.namespace, request.idempotency_key) for request in requests if request.idempotency_key)
    # U+0000 cannot be asked for; it is refused where its request is checked.
    asked = [pair for pair in pairs if "\x00" not in "".join(pair)]
    if not asked:
        return set()
    namespaces, keys = (list(column) for column in zip(*asked, strict=True))
    return {
        (row.namespace, row.key) for row in connection.execute(KEYS_IN_USE, {"namespaces": namespaces, "keys": keys})
    }


def _plain(request: TaskRequest) -> dict[str, Any]:
    """The request as the insert takes it: strict JSON within the limits."""
    plain = request.model_dump(mode="json", exclude_none=True, exclude={"input", "messages"})
    check(plain, what="The request")
    if "input" in request.model_fields_set:
        plain["input"] = request.input
    if request.messages is not None:
        plain["messages"] = [coerce(message).model_dump() for message in request.messages]
        if not plain["messages"]:
            raise InvalidInput("`messages` is an empty list; send at least one message.")
    limit = get_settings().max_input_bytes
    check(request.input, what="The input", limit=limit)
    check(plain.get("messages"), what="The list of messages", limit=limit)
    if "input" not in plain and "messages" not in plain:
        plain["input"] = {}
    return plain


def _check_target(
    connection: Connection,
    request: TaskRequest,
    plain: dict[str, Any],
    targets: dict[tuple[str | None, str | None, str], Target],
) -> None:
    """Holds the input to the schema of the agent that will run it, and notes that in the request."""
    key = (request.agent, request.capability, request.namespace)
    if key not in targets:
        targets[key] = resolve(connection, plain)
    target = targets[key]
    if target.version_id is not None:
        checked_input(target.input_schema, plain.get("input"), plain.get("messages"), agent=str(target.agent))
        plain["validated"] = str(target.version_id)


def resolve(connection: Connection, request: dict[str, Any]) -> Target:
    """Which agent version a request names.

    Raises:
        UnknownAgent, UnknownCapability, AmbiguousRoute, Conflict: it names none that accepts work.
    """
    named = {name: request.get(name) for name in ("agent", "capability", "namespace", "agent_version_id", "messages")}
    return Target(*connection.execute(RESOLVE, {"request": named}).one())
