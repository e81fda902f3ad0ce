"""Agents, tools, functions and MCP servers: heads with immutable versions, which triggers protect against changes."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    CheckConstraint,
    Computed,
    ForeignKey,
    Index,
    SmallInteger,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, TSVECTOR
from sqlalchemy.orm import Mapped, declared_attr, mapped_column, relationship

from shared.contracts.documents import AgentDefinition, stored_definition
from shared.database.tables.base import (
    TRANSACTION,
    Base,
    created,
    ended_in_column,
    ended_in_index,
    key_order_column,
    namespace_column,
    new_id,
)


def content_index(kind: str) -> Index:
    """Index on the identity of a definition's versions: their content, and the order of the keys in their schemas."""
    order = text("md5(COALESCE(key_order::text, ''))")
    return Index(f"{kind}_versions_content_idx", f"{kind}_id", "checksum", order, unique=True)


class Head:
    """Columns of a named definition, whose content is in its versions."""

    __tablename__: str

    id: Mapped[UUID] = new_id()
    namespace: Mapped[str] = namespace_column()
    name: Mapped[str]
    created_at: Mapped[datetime] = created()

    @declared_attr
    def active_version_id(cls) -> Mapped[UUID | None]:
        """The version that new tasks use; NULL: there is none yet."""
        versions = f"{cls.__tablename__.removesuffix('s')}_versions"
        name = f"{cls.__tablename__}_active_version_id_fkey"
        return mapped_column(ForeignKey(f"{versions}.id", use_alter=True, name=name))


class Version:
    """Columns of a version of a definition."""

    id: Mapped[UUID] = new_id()
    number: Mapped[int]
    checksum: Mapped[str]
    name: Mapped[str]
    description: Mapped[str]
    definition: Mapped[dict[str, Any]]
    key_order: Mapped[dict[str, Any] | None] = key_order_column()
    created_at: Mapped[datetime] = created()


class Agent(Head, Base):
    """A named agent with a lifecycle; its definition is stored in its versions.

    Created by users as `Agent(name=…, description=…, system_prompt=…, input_schema=…, config_data={…}, …)`: the
    arguments are those of `shared.contracts.documents.AgentDefinition` (with `config_data` for its `config`). They are
    kept in `definition` until `AgentRegistry.register_agent` stores them as a version.
    """

    __tablename__ = "agents"
    __table_args__ = (
        UniqueConstraint("namespace", "name"),
        CheckConstraint("status IN ('active', 'deprecated', 'disabled', 'rolled_back')", name="status"),
    )

    status: Mapped[str] = mapped_column(server_default="active")
    status_reason: Mapped[str | None]

    active_version: Mapped[AgentVersion | None] = relationship(foreign_keys="Agent.active_version_id", post_update=True)

    def __init__(self, *, name: str, config_data: dict[str, Any] | None = None, **definition: Any) -> None:
        """Raises InvalidDefinition if an argument is wrong; the message names it."""
        super().__init__()
        self.name = name
        self._draft = AgentDefinition.from_arguments(name=name, config_data=config_data, **definition)

    @property
    def definition(self) -> AgentDefinition:
        """The agent's definition: as given until it is stored, then its active version."""
        if self.active_version is not None:
            version = self.active_version
            stored: AgentDefinition = stored_definition("agent", self.name, version.definition, version.key_order)
            return stored
        return self._draft


class AgentVersion(Version, Base):
    """An immutable version of an agent. It pins the tool and function versions that it uses."""

    __tablename__ = "agent_versions"
    __table_args__ = (
        UniqueConstraint("agent_id", "number"),
        content_index("agent"),
        CheckConstraint("type IN ('agent', 'function')", name="type"),
        Index("agent_versions_search_idx", "search", postgresql_using="gin"),
        Index("agent_versions_capabilities_idx", "capabilities", postgresql_using="gin"),
        Index("agent_versions_evaluators_idx", "id", postgresql_where=text("evaluators IS NOT NULL")),
    )

    agent_id: Mapped[UUID] = mapped_column(ForeignKey("agents.id", ondelete="CASCADE"))
    type: Mapped[str]
    capabilities: Mapped[list[str]]
    capability: Mapped[str]
    input_schema: Mapped[dict[str, Any] | None]
    function_version_id: Mapped[UUID | None] = mapped_column(ForeignKey("function_versions.id"))
    tool_version_id: Mapped[UUID | None] = mapped_column(ForeignKey("tool_versions.id"))
    soft_time_limit: Mapped[int]
    time_limit: Mapped[int]
    max_attempts: Mapped[int]
    evaluators: Mapped[list[dict[str, Any]] | None] = mapped_column(JSONB(none_as_null=True))
    search: Mapped[str] = mapped_column(
        TSVECTOR, Computed("minion_search_text(name, description, capabilities)", persisted=True)
    )


class AgentVersionTool(Base):
    """A pinned tool that the model may call in this agent version."""

    __tablename__ = "agent_version_tools"

    agent_version_id: Mapped[UUID] = mapped_column(
        ForeignKey("agent_versions.id", ondelete="CASCADE"), primary_key=True
    )
    position: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    tool_version_id: Mapped[UUID] = mapped_column(ForeignKey("tool_versions.id"))


class Relation(Base):
    """An agent that this agent version hands work to, by name: each sub-task pins its own version."""

    __tablename__ = "relations"

    agent_version_id: Mapped[UUID] = mapped_column(
        ForeignKey("agent_versions.id", ondelete="CASCADE"), primary_key=True
    )
    position: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    agent_name: Mapped[str]
    for_each: Mapped[str | None]


class Tool(Head, Base):
    """A named tool; its definition is stored in its versions."""

    __tablename__ = "tools"
    __table_args__ = (UniqueConstraint("namespace", "name"),)


class ToolVersion(Version, Base):
    """An immutable version of a tool."""

    __tablename__ = "tool_versions"
    __table_args__ = (
        UniqueConstraint("tool_id", "number"),
        content_index("tool"),
        CheckConstraint(
            "type IN ('function', 'http', 'mcp', 'agent', 'builtin', 'web_search', 'web_fetch', 'code_execution', "
            "'memory')",
            name="type",
        ),
        CheckConstraint("effect IN ('pure', 'idempotent', 'unsafe')", name="effect"),
    )

    tool_id: Mapped[UUID] = mapped_column(ForeignKey("tools.id", ondelete="CASCADE"))
    type: Mapped[str]
    effect: Mapped[str]
    function_version_id: Mapped[UUID | None] = mapped_column(ForeignKey("function_versions.id"))
    mcp_server_version_id: Mapped[UUID | None] = mapped_column(ForeignKey("mcp_server_versions.id"))


class McpServer(Head, Base):
    """A named MCP server; its definition is stored in its versions."""

    __tablename__ = "mcp_servers"
    __table_args__ = (UniqueConstraint("namespace", "name"),)


class McpServerVersion(Version, Base):
    """An immutable version of an MCP server: its address, its headers, and the trust in it."""

    __tablename__ = "mcp_server_versions"
    __table_args__ = (UniqueConstraint("mcp_server_id", "number"), content_index("mcp_server"))

    mcp_server_id: Mapped[UUID] = mapped_column(ForeignKey("mcp_servers.id", ondelete="CASCADE"))


class Function(Head, Base):
    """A named function; its code is stored in its versions."""

    __tablename__ = "functions"
    __table_args__ = (UniqueConstraint("namespace", "name"),)


class FunctionVersion(Version, Base):
    """Python source and its contract: immutable but for `status`, and named by its SHA-256."""

    __tablename__ = "function_versions"
    __table_args__ = (
        UniqueConstraint("function_id", "number"),
        content_index("function"),
        CheckConstraint("status IN ('active', 'deprecated', 'quarantined')", name="status"),
    )

    function_id: Mapped[UUID] = mapped_column(ForeignKey("functions.id", ondelete="CASCADE"))
    status: Mapped[str] = mapped_column(server_default="active")
    status_reason: Mapped[str | None]
    released_at: Mapped[datetime | None]


class SecurityEvent(Base):
    """A denied action or a kill of a function version, or a hash that did not match; or an attack by a program."""

    __tablename__ = "security_events"
    __table_args__ = (
        Index("security_events_version_idx", "function_version_id", "id"),
        Index("security_events_time_idx", "function_version_id", "created_at"),
        Index(
            "security_events_denied_idx",
            "function_version_id",
            "created_at",
            postgresql_where=text("kind IN ('forbidden_name', 'hash_mismatch', 'import_denied', 'security')"),
        ),
        ended_in_index("security_events"),
    )

    id: Mapped[UUID] = new_id()
    function_version_id: Mapped[UUID | None] = mapped_column(ForeignKey("function_versions.id", ondelete="CASCADE"))
    task_id: Mapped[UUID | None] = mapped_column(ForeignKey("tasks.id", ondelete="SET NULL"), index=True)
    kind: Mapped[str]
    detail: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = created()
    ended_in: Mapped[int | None] = ended_in_column(TRANSACTION)
