"""Checks of approvals, before the database decides: the arguments that a person sets, and the rules of a policy.

Both are checked against the versions that the task has pinned, in a decision and in a replay that edits an approval.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, INTEGER, JSONB

from shared.access.actors import Key
from shared.access.keys import missing_deciders
from shared.contracts.documents import AgentDefinition, ToolDefinition, stored_definition
from shared.contracts.json_schema import ENDLESS, TOO_LONG, Schema, validate, violations
from shared.contracts.strict_json import JsonValue
from shared.errors import InvalidInput
from shared.tasks import remote_calls
from shared.tasks.messages import approved_messages
from shared.tasks.records import Approver

UNDECIDED = text(
    "SELECT u.number, minion_proposal(u) AS proposal FROM minion_undecided(:task) u "
    "WHERE (CAST(:step AS integer) IS NULL OR u.number = :step) "
    "AND (CAST(:proposal AS text) IS NULL OR minion_proposal(u) = :proposal) LIMIT 1"
)
POLICY = text(
    """
    SELECT minion_approval_policy(s) AS policy, t.namespace,
           s.input->'approval' AS proposed, s.approvals->'arguments' AS edited,
           minion_standing_approvals(s) AS given,
           minion_asks(s) OR t.messages = s.input->'approval' AS has_no_arguments
        FROM steps s JOIN tasks t ON t.id = s.task_id
        WHERE s.task_id = :task AND s.number = :step AND (s.kind = 'wait' AND s.input ? 'approval' OR minion_asks(s))
    """
)
REQUIRED = text(
    "SELECT r.required->'people' AS people, r.required->'approvers' AS named, "
    "minion_approvers(r.required) AS approvers FROM (SELECT minion_required(:policy, :rules) AS required) AS r"
).bindparams(bindparam("policy", type_=JSONB), bindparam("rules", type_=ARRAY(INTEGER)))
# What a step calls, in the versions that its task has pinned. The first step of an agent that requires approval
# concerns the agent's own input.
CALLED = """
    SELECT s.name, s.number = 1 AND v.definition->'config'->'approval' <> 'false' AS of_agent,
           t.messages = s.input->'approval' AS of_messages,
           v.name AS agent_name, v.definition AS agent, v.key_order AS agent_order,
           tool.name AS tool_name, tool.definition AS tool, tool.key_order AS tool_order, code.definition AS code
        FROM steps s JOIN tasks t ON t.id = s.task_id JOIN agent_versions v ON v.id = t.agent_version_id
        LEFT JOIN tool_versions tool ON tool.id = COALESCE(v.tool_version_id, (
            SELECT k.id FROM agent_version_tools l JOIN tool_versions k ON k.id = l.tool_version_id
                WHERE l.agent_version_id = v.id AND k.name = s.name))
        LEFT JOIN function_versions code ON code.id = COALESCE(v.function_version_id, tool.function_version_id)
        WHERE s.task_id = :task AND s.number = :step
"""
PROPOSED = text(f"{CALLED} AND s.kind = 'wait' AND s.input ? 'approval'")
INTERRUPTED = text(f"{CALLED} AND s.kind <> 'wait'")


@dataclass(frozen=True, slots=True)
class Awaited:
    """The approvals that a step with a policy has and needs.

    Attributes:
        people: the number of different keys that must approve.
        approvers: the keys that may, in words.
        given: the approvals so far: `key`, `by`, `at` and `reason` of each.
        missing: the keys that the policy names and that do not exist, or may not decide.
        is_stuck: without these, too few may approve.
    """

    people: int
    approvers: str
    given: list[dict[str, Any]]
    missing: list[str]
    is_stuck: bool


def is_approval(connection: Connection, task: UUID, step: int) -> bool:
    """Return whether a step is the approval of a call by a person."""
    return connection.execute(PROPOSED, {"task": task, "step": step}).one_or_none() is not None


def judge(
    connection: Connection,
    task: UUID,
    step: int | None,
    proposal: str | None,
    arguments: JsonValue,
    *,
    key: Key,
    approves: bool = True,
) -> Approver | None:
    """Check a decision before the database makes it: the arguments that it sets, and the rules that apply to them.

    Args:
        connection: in autocommit mode: PostgreSQL ends a transaction that is idle for the time of a slow check.
        arguments: None approves the current ones.
        key: the deciding key.
        approves: whether the verdict is `approve`.

    Returns:
        the key with these rules, for `decide`; None if no step waits, which `decide` reports.

    Raises:
        InvalidInput: the arguments do not match a schema; with every violation and its path.
    """
    found = connection.execute(UNDECIDED, {"task": task, "step": step, "proposal": proposal}).one_or_none()
    if found is None:
        return None
    if arguments is not None:
        check_arguments(connection, task, found.number, arguments)
    elif approves:
        _check_proposed_answer(connection, task, found.number)
    return approver_of(connection, task, found.number, arguments, key=key, judged=found.proposal)


def approver_of(
    connection: Connection, task: UUID, step: int, arguments: JsonValue, *, key: Key, judged: str | None = None
) -> Approver:
    """Return a key with the rules that apply to the approval of a call: those of the proposed arguments, and of those
    that replace them, so that no edit avoids a rule.

    Args:
        judged: the current proposal.
    """
    found = connection.execute(POLICY, {"task": task, "step": step}).one_or_none()
    rules = [] if found is None or found.policy is None else _applying(found, arguments)
    return Approver(key=key.identity, name=key.name, role=str(key.role), rules=rules, judged=judged)


def awaited(connection: Connection, task: UUID, step: int) -> Awaited | None:
    """Return the approvals that a waiting step has and needs, or None if it has no policy."""
    found = connection.execute(POLICY, {"task": task, "step": step}).one_or_none()
    if found is None or found.policy is None:
        return None
    required = connection.execute(REQUIRED, {"policy": found.policy, "rules": _applying(found, None)}).one()
    names = list(dict.fromkeys(name for each in required.named for name in each["keys"]))
    missing = missing_deciders(connection, names, found.namespace)
    is_stuck = any(
        not each["roles"] and len(set(each["keys"]).difference(missing)) < required.people for each in required.named
    )
    return Awaited(required.people, required.approvers, found.given, missing, is_stuck)


def _applying(found: Row[Any], arguments: JsonValue) -> list[int]:
    """Return the rules whose conditions match any of the arguments; all of them for messages and for answers to a
    server's questions, which match no schema of arguments, and a rule whose condition takes too long to check."""
    candidates = [found.proposed, *(each for each in (found.edited, arguments) if each is not None)]
    return [
        position
        for position, rule in enumerate(found.policy.get("rules", []))
        if found.has_no_arguments or any(_may_match(rule["when"], each) for each in candidates)
    ]


def _may_match(condition: Schema, arguments: JsonValue) -> bool:
    return violations(condition, arguments) in ([], TOO_LONG, ENDLESS)


def check_arguments(connection: Connection, task: UUID, step: int, arguments: JsonValue) -> None:
    """Check arguments against the schemas of the approved call; a step that is not an approval accepts anything.

    Raises:
        InvalidInput: with every violation and its path.
    """
    if (asked := remote_calls.form_of(connection, task, step)) is not None:
        asked.check(arguments)
        return
    proposed = connection.execute(PROPOSED, {"task": task, "step": step}).one_or_none()
    if proposed is None:
        return
    if proposed.of_agent and proposed.of_messages:
        approved_messages(arguments)
        return
    what = f"The input of {'agent' if proposed.of_agent else 'tool'} {proposed.name!r}"
    for schema in _agent_schemas(proposed) if proposed.of_agent else _tool_schemas(proposed):
        validate(schema, arguments, what=what, error=InvalidInput)


def arguments_schema(connection: Connection, task: UUID, step: int) -> Schema | None:
    """Return the first schema that the arguments of a proposed call must match; None for messages, and without one. For
    the questions of a server, the schema of the answer.
    """
    if (asked := remote_calls.form_of(connection, task, step)) is not None:
        return asked.schema
    proposed = connection.execute(PROPOSED, {"task": task, "step": step}).one_or_none()
    if proposed is None or (proposed.of_agent and proposed.of_messages):
        return None
    schemas = _agent_schemas(proposed) if proposed.of_agent else _tool_schemas(proposed)
    return next((schema for schema in schemas if schema is not None), None)


def _check_proposed_answer(connection: Connection, task: UUID, step: int) -> None:
    """Refuse to answer the questions of a server with their defaults if these are no answer."""
    asked = remote_calls.form_of(connection, task, step)
    if asked is not None:
        asked.check(asked.proposed)


def result_schema(connection: Connection, task: UUID, step: int) -> Schema | None:
    """Return the schema of the result of a call, as its tool or the function behind it has it; None without one."""
    called = connection.execute(INTERRUPTED, {"task": task, "step": step}).one_or_none()
    if called is None:
        return None
    tool: ToolDefinition | None = called.tool and stored_definition(
        "tool", called.tool_name, called.tool, called.tool_order
    )
    if tool is not None and tool.output_schema is not None:
        return tool.output_schema
    return called.code.get("output_schema") if called.code is not None else None


def _agent_schemas(proposed: Row[Any]) -> Iterator[Schema | None]:
    """Yield the input schema of the agent, and those of the tool or function that it runs."""
    agent: AgentDefinition = stored_definition("agent", proposed.agent_name, proposed.agent, proposed.agent_order)
    yield agent.input_schema
    if agent.type == "function":
        yield from _tool_schemas(proposed)


def _tool_schemas(proposed: Row[Any]) -> Iterator[Schema | None]:
    """Yield the input schemas of a tool, and of the function that it calls."""
    if proposed.tool is not None:
        tool: ToolDefinition = stored_definition("tool", proposed.tool_name, proposed.tool, proposed.tool_order)
        yield tool.http.closed(tool.input_schema) if tool.http else tool.input_schema
    if proposed.code is not None:
        yield proposed.code.get("input_schema")
