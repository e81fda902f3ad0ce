"""Accepting tasks: strict JSON and the agent's schema are checked here, everything else by the single insert."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast
from uuid import UUID, uuid4

from sqlalchemy import Connection, Engine, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB

from shared.access.scope import Scope
from shared.contracts.content import names_files
from shared.contracts.json_schema import Schema
from shared.contracts.requests import TaskRequest
from shared.contracts.strict_json import are_sound, check, check_size
from shared.errors import InvalidInput, MinionError, UnknownAgent
from shared.providers import split
from shared.settings import get_settings
from shared.suggestions import similar_agents
from shared.tasks import attachments, files, lifecycle
from shared.tasks.files import NewFile
from shared.tasks.lifecycle import Accepted
from shared.tasks.messages import checked_input, coerce_all
from shared.tasks.records import NewTask

# An agent without an input schema takes the input of the function or tool that its version pins. A sequential chain
# takes the current input of its first agent (except messages, which are for the first agent to read).
RESOLVE = text(
    """
    WITH RECURSIVE target AS MATERIALIZED (
        SELECT version_id, agent_name, has_canary FROM minion_resolve_drawn(:request)),
    first (version_id, depth) AS (
        SELECT version_id, 0 FROM target
        UNION ALL SELECT a.active_version_id, f.depth + 1 FROM first f
            JOIN agent_versions v ON v.id = f.version_id AND v.type = 'function'
                AND NULLIF(v.input_schema, 'null') IS NULL
                AND v.definition->'config'->>'chain_strategy' = 'sequential'
            JOIN agents chain ON chain.id = v.agent_id
            JOIN relations r ON r.agent_version_id = v.id AND r.position = 0 AND r.for_each IS NULL
            JOIN agents a ON a.namespace = chain.namespace AND a.name = r.agent_name
            WHERE NOT :of_messages AND f.depth < 100
    )
    SELECT t.version_id, t.agent_name AS agent, t.has_canary, NOT t.has_canary AND NOT EXISTS (
            SELECT FROM relations r WHERE r.agent_version_id = t.version_id) AS lasting,
            CASE WHEN v.id = t.version_id THEN v.definition->>'model' END AS model, COALESCE(
            NULLIF(v.input_schema, 'null'), NULLIF(tool.definition->'input_schema', 'null'),
            NULLIF(code.definition->'input_schema', 'null')) AS input_schema
        FROM target t CROSS JOIN (SELECT version_id FROM first ORDER BY depth DESC LIMIT 1) f
        LEFT JOIN agent_versions v ON v.id = f.version_id
        LEFT JOIN tool_versions tool ON tool.id = v.tool_version_id
        LEFT JOIN function_versions code ON code.id = COALESCE(v.function_version_id, tool.function_version_id)
    """
).bindparams(bindparam("request", type_=JSONB))
DRAW = text("SELECT version_id FROM minion_resolve_drawn(:request)").bindparams(bindparam("request", type_=JSONB))
KEYS_IN_USE = text(
    "SELECT k.namespace, k.key, k.task_id FROM idempotency_keys k "
    "JOIN unnest(CAST(:namespaces AS text[]), CAST(:keys AS text[])) AS asked (namespace, key) USING (namespace, key)"
)


MOST_KNOWN = 1000


@dataclass(frozen=True, slots=True)
class Target:
    """The agent version that will run a task, and the schema of its input.

    All are None if the orchestrator routes the task by its message.

    Attributes:
        has_canary: other requests for the agent may get another version.
        lasting: the agent's name decides about this version and its schema alone. A chain may have that of its first
            agent.
        model: of an agent that has one.
    """

    version_id: UUID | None
    agent: str | None
    has_canary: bool
    lasting: bool | None
    input_schema: Schema | None
    model: str | None = None


Targets = dict[tuple[str | None, str | None, str | None, str | None, bool, bool], Target | MinionError]
"""Cached resolution of each agent, capability, namespace and version, with or without input and messages, or its error.
"""


class KnownTargets:
    """Agent versions that were resolved before: a request for one is checked without the database.

    `lifecycle.accept_now` stores it only if the agent still has that version.
    """

    def __init__(self) -> None:
        self._targets: dict[tuple[str, str], Target] = {}
        self._remembering = threading.Lock()

    def prepare(self, request: TaskRequest, *, submitted_by: str, submitter_key: str) -> NewTask | None:
        """Check a request, as `submission.prepare` does. Return None if that must check it: it may be refused."""
        target = self._targets.get(_name_of(request)) if _names_only_agent(request) else None
        if target is None or names_files(request.input):
            return None
        plain = _fields_of(request)
        try:
            task = _new_task(request, plain, sound=are_sound([plain, request.input, request.messages]))
            _check_against(target, task)
        except MinionError:
            return None
        return {**task, "submitted_by": submitted_by, "submitter_key": submitter_key}

    def remember(self, request: TaskRequest, target: Target) -> None:
        """Remember the agent version that a request was checked against."""
        if target.lasting and _names_only_agent(request):
            with self._remembering:
                self._targets.pop(_name_of(request), None)
                if len(self._targets) >= MOST_KNOWN:
                    del self._targets[next(iter(self._targets))]
                self._targets[_name_of(request)] = target


def submit(engine: Engine, requests: Sequence[TaskRequest], *, submitted_by: str) -> list[Accepted]:
    """Accept all tasks or none: `prepare` them, then accept them in one short transaction.

    Args:
        submitted_by: the submitter, for the record.

    Raises:
        MinionError: the first refusal; `detail["index"]` is the position if there are several requests.
    """
    prepared = prepare(engine, requests, submitted_by=submitted_by)
    with engine.begin() as connection:
        return accept(connection, prepared)


def submit_within(connection: Connection, requests: Sequence[TaskRequest], *, submitted_by: str) -> list[Accepted]:
    """Accept all tasks or none in the caller's transaction, which stays open while the inputs are checked.

    Callers whose transaction holds nothing yet must `prepare` before they begin it.

    Raises:
        MinionError: the first refusal; `detail["index"]` is the position if there are several requests.
    """
    return accept(connection, _prepare_all(connection, requests, submitted_by))


def prepare(
    engine: Engine,
    requests: Sequence[TaskRequest],
    *,
    submitted_by: str,
    submitter_key: str | None = None,
    known: KnownTargets | None = None,
    scope: Scope | None = None,
) -> list[NewTask]:
    """Check tasks, for callers that then pass them to `lifecycle.accept` in their own transaction.

    Checking one large input against its schema may take longer than PostgreSQL lets a transaction idle (a lease), so
    no transaction is open during that time. Large files in messages are stored before the tasks are: retention deletes
    those of tasks that are then not accepted.

    Args:
        submitter_key: the id of the API key that submits them, or `bootstrap` for the administrator's.
        known: remembers the agents.
        scope: that of the key, which bounds the files that it may use.

    Raises:
        MinionError: the first refusal; `detail["index"]` is the position if there are several requests.
    """
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        try:
            prepared = _prepare_all(connection, requests, submitted_by, known, scope)
        except UnknownAgent as error:
            asked = requests[error.detail.get("index", 0)]
            similar = similar_agents(connection, asked.namespace, asked.agent or "")
            raise UnknownAgent(error.message + similar, **error.detail) from None
    return prepared if submitter_key is None else [{**task, "submitter_key": submitter_key} for task in prepared]


def prepare_each(
    engine: Engine, requests: Sequence[TaskRequest], *, submitted_by: Sequence[str], scope: Scope | None = None
) -> list[NewTask | MinionError]:
    """Check each task as `prepare` does. A refused request yields its reason and does not affect the others."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        return list(_prepared(connection, requests, submitted_by, scope=scope))


def _prepare_all(
    connection: Connection,
    requests: Sequence[TaskRequest],
    submitted_by: str,
    known: KnownTargets | None = None,
    scope: Scope | None = None,
) -> list[NewTask]:
    tasks = []
    for index, prepared in enumerate(_prepared(connection, requests, [submitted_by] * len(requests), known, scope)):
        if isinstance(prepared, MinionError):
            raise refusal(prepared, index, len(requests))
        tasks.append(prepared)
    return tasks


def accept(connection: Connection, tasks: list[NewTask]) -> list[Accepted]:
    """Accept all prepared tasks or none in the caller's transaction.

    Raises:
        MinionError: the first refusal; `detail["index"]` is the position if there are several requests.
    """
    try:
        return lifecycle.accept(connection, tasks)
    except MinionError as error:
        raise refusal(error, error.detail.get("index", 0), len(tasks)) from None


def refusal(error: MinionError, index: int, total: int) -> MinionError:
    """Return the reason for refusing a request, with its position if there are several."""
    if total == 1:
        return error
    return type(error)(f"tasks[{index}]: {error.message}", **{**error.detail, "index": index})


def _prepared(
    connection: Connection,
    requests: Sequence[TaskRequest],
    submitters: Sequence[str],
    known: KnownTargets | None = None,
    scope: Scope | None = None,
) -> Iterator[NewTask | MinionError]:
    """Yield each request as the insert takes it, or the reason for refusing it."""
    targets: Targets = {}
    in_use = keys_in_use(connection, requests)
    fields = [_fields_of(request) for request in requests]
    sound = are_sound([*fields, *(request.input for request in requests), *(request.messages for request in requests)])
    for request, plain, submitter in zip(requests, fields, submitters, strict=True):
        try:
            store = partial(_store, connection, request.namespace, submitter, scope)
            task = _new_task(request, plain, sound=sound, store=store)
            task["submitted_by"] = submitter
            # For a request that was accepted before, the insert returns that task, whatever has become of its agent
            # since.
            if (request.namespace, request.idempotency_key) not in in_use:
                if attachments.has_files(task.get("messages"), request.input):
                    said = task.get("messages") or []
                    attachments.check(connection, request.namespace, said, request.input, scope=scope)
                target = _check_target(connection, task, targets)
                if known is not None:
                    known.remember(request, target)
        except MinionError as error:
            yield error
        else:
            yield task


def keys_in_use(connection: Connection, requests: Sequence[TaskRequest]) -> dict[tuple[str, str | None], UUID]:
    """Return the idempotency keys, with their namespaces, that earlier requests have used, and their tasks."""
    pairs = ((request.namespace, request.idempotency_key) for request in requests if request.idempotency_key)
    # PostgreSQL cannot be queried for U+0000; it is refused where its request is checked.
    asked = [pair for pair in pairs if "\x00" not in "".join(pair)]
    if not asked:
        return {}
    namespaces, keys = (list(column) for column in zip(*asked, strict=True))
    rows = connection.execute(KEYS_IN_USE, {"namespaces": namespaces, "keys": keys})
    return {(row.namespace, row.key): row.task_id for row in rows}


def _store(connection: Connection, namespace: str, submitter: str, scope: Scope | None, new: NewFile) -> str:
    """Store a file of a message, and return its id."""
    owner = None if scope is None else files.owner_of(scope)
    id, _ = files.store(connection, namespace, new, uploaded_by=submitter, owner=owner)
    return id


def _new_task(
    request: TaskRequest, plain: dict[str, Any], *, sound: bool, store: Callable[[NewFile], str] | None = None
) -> NewTask:
    """Return the request as the insert takes it: strict JSON within the limits.

    Args:
        plain: its fields but `input` and `messages`.
        sound: whether all its values are known to be strict JSON.
        store: stores large files of messages.
    """
    if not sound:
        check(plain, what="The request")
    task = cast(NewTask, plain)
    if "input" in request.model_fields_set:
        task["input"] = request.input
    if request.messages is not None:
        said = coerce_all(request.messages)
        if store is not None:
            said = [each.model_copy(update={"content": attachments.stored(each.content, store)}) for each in said]
        task["messages"] = [message.model_dump() for message in said]
        if not task["messages"]:
            raise InvalidInput("`messages` is an empty list; send at least one message.")
    limit = get_settings().max_input_bytes
    for value, what in ((request.input, "The input"), (task.get("messages"), "The list of messages")):
        if not sound:
            check(value, what=what)
        check_size(value, what=what, limit=limit)
    if "input" not in task and "messages" not in task:
        task["input"] = {}
    return task


def _fields_of(request: TaskRequest) -> dict[str, Any]:
    return request.model_dump(mode="json", exclude_none=True, exclude={"input", "messages"})


def _names_only_agent(request: TaskRequest) -> bool:
    """Return whether the agent's name alone decides about the version and the schema."""
    return request.agent is not None and request.capability is None and request.messages is None


def _name_of(request: TaskRequest) -> tuple[str, str]:
    return request.namespace, str(request.agent)


def _check_target(connection: Connection, task: NewTask, targets: Targets) -> Target:
    """Check the input against the schema of the agent that will run it, and record that in the request."""
    target = _resolve_once(connection, task, targets)
    if not (target.has_canary and _fits(_draw(connection, task, targets), task)):
        _check_against(target, task)
    return target


def _draw(connection: Connection, task: NewTask, targets: Targets) -> Target:
    """Return the version that the task will get, of an agent with a canary."""
    drawn_by = {"conversation_id": task.get("conversation_id"), "key": task.get("key"), "draw": uuid4().hex}
    version = connection.scalar(DRAW, {"request": {**_named(task), **drawn_by}})
    return _resolve_once(connection, {**task, "agent_version_id": str(version)}, targets)


def _resolve_once(connection: Connection, task: NewTask, targets: Targets) -> Target:
    names = (task.get("agent"), task.get("capability"), task.get("namespace"), task.get("agent_version_id"))
    key = (*names, task.get("input") is None, "messages" in task)
    if key not in targets:
        try:
            targets[key] = resolve(connection, task)
        except MinionError as error:
            targets[key] = error
    target = targets[key]
    if isinstance(target, MinionError):
        raise type(target)(target.message, **target.detail)
    return target


def _fits(drawn: Target, task: NewTask) -> bool:
    """Return whether the version that was drawn accepts the task. If not, the active version may."""
    try:
        _check_against(drawn, task)
    except InvalidInput:
        return False
    return True


def _check_against(target: Target, task: NewTask) -> None:
    if target.version_id is not None:
        said = coerce_all(task["messages"]) if "messages" in task else None
        checked_input(target.input_schema, task.get("input"), said, agent=str(target.agent))
        task["validated"] = str(target.version_id)
    if task.get("lane") == "batch" and target.model is not None:
        _check_batches(target.model, str(target.agent))


def _check_batches(model: str, agent: str) -> None:
    """Refuse the batch lane for a model whose provider has no batches.

    Raises:
        InvalidInput: names the provider.
    """
    provider = get_settings().known_providers().get(split(model)[0])
    if provider is not None and not provider.has_batches:
        raise InvalidInput(
            f"{agent!r} cannot work in the lane `batch`: the provider {provider.name!r} of its model has no batches. "
            "Leave the lane out."
        )


def resolve(connection: Connection, task: NewTask) -> Target:
    """Return the agent version that a task names.

    Raises:
        UnknownAgent, UnknownCapability, AmbiguousRoute, Conflict: it names none that accepts work.
    """
    of_messages = task.get("input") is None and task.get("messages") is not None
    values = {"request": _named(task), "of_messages": of_messages}
    return Target(**connection.execute(RESOLVE, values).mappings().one())


def _named(task: NewTask) -> dict[str, Any]:
    return {name: task.get(name) for name in ("agent", "capability", "namespace", "agent_version_id", "messages")}
