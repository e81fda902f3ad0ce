"""Checks of arguments that an operator approves in place of the proposed ones.

They are checked against the versions that the task has pinned, in a decision and in a replay that edits an approval.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text

from shared.contracts.documents import AgentDefinition, ToolDefinition, stored_definition
from shared.contracts.json_schema import Schema, validate
from shared.contracts.strict_json import JsonValue
from shared.errors import InvalidInput
from shared.tasks.messages import approved_messages

UNDECIDED = text(
    "SELECT u.number FROM minion_undecided(:task) u WHERE (CAST(:step AS integer) IS NULL OR u.number = :step) "
    "AND (CAST(:proposal AS text) IS NULL OR minion_proposal(u) = :proposal) LIMIT 1"
)
# The first step of an agent that requires approval concerns the agent's own input.
PROPOSED = text(
    """
    SELECT s.name, s.number = 1 AND v.definition->'config'->'approval' = 'true' AS of_agent,
           t.messages = s.input->'approval' AS of_messages,
           v.name AS agent_name, v.definition AS agent, v.key_order AS agent_order,
           tool.name AS tool_name, tool.definition AS tool, tool.key_order AS tool_order, code.definition AS code
        FROM steps s JOIN tasks t ON t.id = s.task_id JOIN agent_versions v ON v.id = t.agent_version_id
        LEFT JOIN tool_versions tool ON tool.id = COALESCE(v.tool_version_id, (
            SELECT k.id FROM agent_version_tools l JOIN tool_versions k ON k.id = l.tool_version_id
                WHERE l.agent_version_id = v.id AND k.name = s.name))
        LEFT JOIN function_versions code ON code.id = COALESCE(v.function_version_id, tool.function_version_id)
        WHERE s.task_id = :task AND s.number = :step AND s.kind = 'wait' AND s.input ? 'approval'
    """
)


def is_approval(connection: Connection, task: UUID, step: int) -> bool:
    """Return whether a step is the approval of a call by a person."""
    return connection.execute(PROPOSED, {"task": task, "step": step}).one_or_none() is not None


def check_decision(
    connection: Connection, task: UUID, step: int | None, proposal: str | None, arguments: JsonValue
) -> None:
    """Check the arguments of an approval before its decision; a step that waits for none is left to `decide`.

    Args:
        connection: in autocommit mode: PostgreSQL ends a transaction that is idle for the time of a slow check.

    Raises:
        InvalidInput: with every violation and its path.
    """
    number = connection.scalar(UNDECIDED, {"task": task, "step": step, "proposal": proposal})
    if number is not None:
        check_arguments(connection, task, number, arguments)


def check_arguments(connection: Connection, task: UUID, step: int, arguments: JsonValue) -> None:
    """Check arguments against the schemas of the approved call; a step that is not an approval accepts anything.

    Raises:
        InvalidInput: with every violation and its path.
    """
    proposed = connection.execute(PROPOSED, {"task": task, "step": step}).one_or_none()
    if proposed is None:
        return
    if proposed.of_agent and proposed.of_messages:
        approved_messages(arguments)
        return
    what = f"The input of {'agent' if proposed.of_agent else 'tool'} {proposed.name!r}"
    for schema in _agent_schemas(proposed) if proposed.of_agent else _tool_schemas(proposed):
        validate(schema, arguments, what=what, error=InvalidInput)


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
