"""Builds running agents from their definitions in the database.

Versions are immutable, so they are cached indefinitely.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from shared.contracts.documents import AgentDefinition, ToolDefinition, stored_definition
from shared.database.connections import get_engine
from shared.database.tables import AgentVersion, AgentVersionTool, FunctionVersion, McpServerVersion, ToolVersion
from shared.database.tables import Tool as ToolRow
from shared.errors import NotFound
from shared.functions.runner import verify
from workers.base import BaseAgent
from workers.chain import ChainAgent
from workers.function_agent import FunctionAgent
from workers.journal import Journal
from workers.model_agent import ModelAgent
from workers.task import ClaimedTask
from workers.tools.approval import ApprovedTool
from workers.tools.base import Tool
from workers.tools.builtin import BuiltinTool
from workers.tools.delegation import AgentTool
from workers.tools.function import FunctionTool
from workers.tools.http import HttpTool
from workers.tools.mcp import McpTool
from workers.tools.memory import MemoryTool
from workers.tools.server import ServerTool


@dataclass(frozen=True)
class Blueprint:
    """An agent version with everything that it pins.

    Attributes:
        definition: accepts the input of its target if it has no input schema.
    """

    definition: AgentDefinition
    version_id: UUID
    target: Tool | None
    tools: tuple[Tool, ...]


def build_agent(task: ClaimedTask, journal: Journal) -> BaseAgent:
    """Build the agent that this task's pinned version describes, ready to run.

    Raises:
        NotFound: the version does not exist.
        FunctionError: a function that it pins does not match its stored hash.
    """
    blueprint = load_blueprint(task.agent_version_id)
    if blueprint.definition.type == "agent":
        return ModelAgent(blueprint.definition, task, journal, blueprint.tools)
    if blueprint.target is not None:
        return FunctionAgent(blueprint.definition, task, journal, blueprint.target)
    return ChainAgent(blueprint.definition, task, journal)


@lru_cache(maxsize=1024)
def load_blueprint(version_id: UUID) -> Blueprint:
    """Read an agent version and everything it pins."""
    with Session(get_engine()) as session:
        row = session.get(AgentVersion, version_id)
        if row is None:
            raise NotFound(f"There is no agent version {version_id}.")
        definition: AgentDefinition = stored_definition("agent", row.name, row.definition, row.key_order)
        target = _target(session, row)
        if target is not None and definition.input_schema is None:
            definition = definition.model_copy(update={"input_schema": target.input_schema})
        return Blueprint(definition, version_id, target, _tools(session, version_id))


def _target(session: Session, row: AgentVersion) -> Tool | None:
    if row.function_version_id is not None:
        return FunctionTool.for_function(
            verify(session.get_one(FunctionVersion, row.function_version_id), get_engine())
        )
    if row.tool_version_id is not None:
        return _tool(session, session.get_one(ToolVersion, row.tool_version_id))
    return None


def _tools(session: Session, version_id: UUID) -> tuple[Tool, ...]:
    rows = session.scalars(
        select(ToolVersion)
        .join(AgentVersionTool, AgentVersionTool.tool_version_id == ToolVersion.id)
        .where(AgentVersionTool.agent_version_id == version_id)
        .order_by(AgentVersionTool.position)
    )
    return tuple(_tool(session, row) for row in rows)


def _tool(session: Session, row: ToolVersion) -> Tool:
    definition = stored_definition("tool", row.name, row.definition, row.key_order)
    tool = _plain_tool(session, row, definition)
    return ApprovedTool(tool, definition.approval_timeout) if definition.approval else tool


def _plain_tool(session: Session, row: ToolVersion, definition: ToolDefinition) -> Tool:
    if definition.type == "builtin":
        return BuiltinTool(definition, row.id)
    if definition.type == "agent":
        return AgentTool(definition)
    if definition.memory is not None:
        return MemoryTool(definition, definition.memory)
    if definition.api_tool is not None:
        return ServerTool(definition, definition.api_tool)
    if definition.type in ("http", "mcp"):
        namespace = session.scalar(select(ToolRow.namespace).where(ToolRow.id == row.tool_id)) or "default"
        if row.mcp_server_version_id is None:
            return HttpTool(definition, row.id, namespace)
        server = session.get_one(McpServerVersion, row.mcp_server_version_id)
        named = stored_definition("mcp_server", server.name, server.definition, server.key_order)
        return McpTool(definition, row.id, named, server.id, namespace)
    function = session.get_one(FunctionVersion, row.function_version_id)
    return FunctionTool(definition, verify(function, get_engine()))
