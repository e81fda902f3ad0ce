"""Storing definitions: a new immutable version for each change, all or nothing.

References are by name (`normalise_licence`, always the active version) or pinned (`normalise_licence@2`). A version
stores the versions that its references resolved to. When a function changes, the tools and agents that refer to it
by name therefore get a new version too, with the same text. An agent that was rolled back keeps its version until
a text of it is applied that none of its later versions has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import func, insert, select, text
from sqlalchemy.orm import Session

from shared.access import actors
from shared.access.keys import missing_deciders
from shared.contracts.documents import (
    CONTEXT_AND_CACHE,
    AgentDefinition,
    AnyDefinition,
    Evaluator,
    FunctionConfig,
    FunctionDefinition,
    McpServerDefinition,
    ToolDefinition,
    stored_definition,
)
from shared.contracts.shares import hundredths_of
from shared.contracts.strict_json import digest
from shared.database.connections import SCHEMA_LOCK
from shared.database.tables import (
    Agent,
    AgentVersion,
    AgentVersionTool,
    Function,
    FunctionVersion,
    McpServer,
    McpServerVersion,
    Relation,
    Tool,
    ToolVersion,
)
from shared.database.tables.definitions import Version
from shared.definitions import canaries
from shared.definitions.api_tools import api_tool_misfits, unrunnable
from shared.definitions.fit import chain_misfits, condition_misfits, model_misfit, strict_misfit
from shared.definitions.known_models import unknown_models
from shared.definitions.provider_rules import check_models
from shared.errors import InvalidDefinition
from shared.functions.worker_packages import WorkerPackages
from shared.providers import Providers
from shared.settings import get_settings

# Every agent, first alone and then with each agent that its active version may call, or its canary.
CALLS = text(
    """
    WITH active AS (
        SELECT a.name, v.id, v.tool_version_id FROM agents a
            LEFT JOIN canaries c ON c.agent_id = a.id AND c.ended_at IS NULL
            JOIN agent_versions v ON v.id IN (a.active_version_id, c.version_id)
            WHERE a.namespace = :namespace
    )
    SELECT name, NULL FROM active
    UNION SELECT v.name, r.agent_name FROM active v JOIN relations r ON r.agent_version_id = v.id
    UNION SELECT v.name, t.definition->>'agent' FROM active v
        JOIN agent_version_tools l ON l.agent_version_id = v.id JOIN tool_versions t ON t.id = l.tool_version_id
    UNION SELECT v.name, t.definition->>'agent' FROM active v JOIN tool_versions t ON t.id = v.tool_version_id
    ORDER BY 1, 2
    """
)

Action = Literal["created", "changed", "canary", "inactive", "unchanged"]

HEADS: dict[str, tuple[Any, Any, str]] = {
    "agent": (Agent, AgentVersion, "agent_id"),
    "tool": (Tool, ToolVersion, "tool_id"),
    "function": (Function, FunctionVersion, "function_id"),
    "mcp_server": (McpServer, McpServerVersion, "mcp_server_id"),
}


@dataclass(frozen=True, slots=True)
class Change:
    """Result of `apply` for one definition. `warnings`: possible problems that do not refuse it."""

    kind: str
    name: str
    action: Action
    version: int
    because: str | None = None
    warnings: tuple[str, ...] = ()


@dataclass
class DefinitionStore:
    """Definitions of one namespace, in the caller's transaction.

    Attributes:
        validate_code: checks a function's source before it is stored, and raises InvalidDefinition.
        packages: the packages that live workers let functions import.
        providers: of models, as they are configured.
        share: of the new tasks that a changed agent's new version gets, in hundredths of a percent, as a canary; None:
            it becomes the active version.
        inactive: store new versions of existing agents without activating them.
    """

    session: Session
    validate_code: Callable[[FunctionDefinition], None]
    namespace: str = "default"
    packages: WorkerPackages = field(default_factory=lambda: WorkerPackages({}))
    providers: Providers = field(default_factory=lambda: get_settings().known_providers())
    share: int | None = None
    inactive: bool = False
    changes: list[Change] = field(default_factory=list)
    activated: list[tuple[Version, UUID | None]] = field(default_factory=list)
    """Versions that became the active one of their definition, each with the id of the one before."""
    stored: list[tuple[Version, UUID]] = field(default_factory=list)
    """Versions that were stored without being activated, each with the id of the active one."""

    def apply(self, definitions: Sequence[AnyDefinition]) -> list[Change]:
        """Store the definitions that differ from the stored ones, and the versions that follow from them.

        Returns:
            one change for each definition, and one for each agent or tool that refers to a changed one by name.

        Raises:
            InvalidDefinition: the first error; the caller rolls back.
        """
        _refuse_twice(definitions)
        self.session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": SCHEMA_LOCK})
        self.changes, self.activated, self.stored = [], [], []
        for definition in _of(definitions, FunctionDefinition):
            self._store_function(definition)
        for server in _of(definitions, McpServerDefinition):
            self._store(server, server.checksum(), None, {})
        given_tools = _of(definitions, ToolDefinition)
        targets = self._changed("function") | self._changed("mcp_server")
        for tool, because in self._with_followers(given_tools, "tool", targets):
            self._store_tool(tool, because)
        given_agents = _of(definitions, AgentDefinition)
        for agent in given_agents:
            check_models(agent, self.providers)
        moved = self._changed("function") | self._changed("tool")
        for agent, because in self._with_followers(given_agents, "agent", moved):
            self._store_agent(agent, because)
        self.session.flush()
        self._check_relations(given_agents)
        warnings = {(each.kind, each.name): self._missing_keys(each) for each in [*given_tools, *given_agents]}
        for agent in given_agents:
            warnings[agent.kind, agent.name] += unknown_models(agent)
        self.changes = [
            replace(change, warnings=warnings.get((change.kind, change.name), ())) for change in self.changes
        ]
        return self.changes

    def _missing_keys(self, definition: AgentDefinition | ToolDefinition) -> tuple[str, ...]:
        """Return a warning for each key that an approval policy names and that cannot decide yet."""
        names = [] if (policy := definition.approval_policy) is None else policy.names()
        return tuple(
            f"{definition.kind} {definition.name!r}, approval.keys: there is no active key {name!r} that may decide in "
            f"the namespace {self.namespace!r}. `minion keys create NAME --role approver` creates one."
            for name in missing_deciders(self.session.connection(), names, self.namespace)
        )

    def export(self) -> list[AnyDefinition]:
        """Return the active version of every definition: functions and MCP servers first, then tools, then agents."""
        return [definition for kind in ("function", "mcp_server", "tool", "agent") for definition in self._active(kind)]

    def _store_function(self, definition: FunctionDefinition) -> None:
        checksum = definition.checksum()
        if self._find(definition, checksum) is None:
            self.validate_code(definition)
        self._store(definition, checksum, None, {})

    def _store_tool(self, definition: ToolDefinition, because: str | None) -> None:
        server = self._server_of(definition)
        if server is not None and not server.definition["trusted"]:
            definition = _without_trust(definition, is_given=because is None)
        values: dict[str, Any] = {"type": definition.type, "effect": definition.effect}
        resolved: dict[str, Any] = {}
        inputs = definition.http.closed(definition.input_schema) if definition.http else definition.input_schema
        if definition.function:
            version = self._resolve("function", definition.function, where=f"tool {definition.name!r}, function")
            values["function_version_id"] = version.id
            resolved["function"] = str(version.id)
            if definition.cache and version.definition.get("config", {}).get("requires_context"):
                raise InvalidDefinition(f"tool {definition.name!r}, cache: {CONTEXT_AND_CACHE}.")
            inputs = inputs or version.definition.get("input_schema")
        if server is not None:
            values["mcp_server_version_id"] = server.id
            resolved["mcp_server"] = str(server.id)
        _check_conditions(definition, inputs)
        self._store(definition, definition.checksum(**resolved), because, values)

    def _server_of(self, definition: ToolDefinition) -> McpServerVersion | None:
        """Return the version of the MCP server that a tool calls; None: it calls none."""
        if definition.mcp is None:
            return None
        where = f"tool {definition.name!r}, mcp.server"
        server: McpServerVersion = self._resolve("mcp_server", definition.mcp.server, where=where)
        return server

    def _store_agent(self, definition: AgentDefinition, because: str | None) -> None:
        place = f"agent {definition.name!r}"
        values = _agent_columns(definition)
        inputs = definition.input_schema
        for kind in ("function", "tool"):
            if reference := getattr(definition, kind):
                pinned = self._resolve(kind, reference, where=f"{place}, {kind}")
                if fault := unrunnable(pinned.definition):
                    raise InvalidDefinition(f"{place}, {kind}: {fault}.")
                values[f"{kind}_version_id"] = pinned.id
                inputs = inputs or pinned.definition.get("input_schema")
        _check_conditions(definition, inputs)
        tools = [
            self._resolve("tool", reference, where=f"{place}, tools.{position}")
            for position, reference in enumerate(definition.tools)
        ]
        resolved: dict[str, Any] = {
            name: str(values[name]) for name in ("function_version_id", "tool_version_id") if values.get(name)
        }
        resolved["tools"] = [str(tool.id) for tool in tools]
        version = self._store(definition, definition.checksum(**resolved), because, values)
        if version is not None:
            if definition.type == "agent":
                models = (str(definition.model), *definition.config.fallback_models)
                self._check_tool_schemas(place, models, tools)
                for fault in api_tool_misfits(definition, [(tool.name, tool.definition) for tool in tools]):
                    raise InvalidDefinition(f"{place}, {fault}.")
            self._check_preloaded_packages(place, version, tools)
            self._link(version, definition, [tool.id for tool in tools])

    def _check_tool_schemas(self, place: str, models: Sequence[str], tools: Sequence[ToolVersion]) -> None:
        for position, tool in enumerate(tools):
            schema = tool.definition.get("input_schema")
            if not schema and tool.function_version_id:
                schema = self.session.get_one(FunctionVersion, tool.function_version_id).definition.get("input_schema")
            if fault := model_misfit(schema):
                raise InvalidDefinition(
                    f"{place}, tools.{position}: models do not accept the input schema of the tool {tool.name!r}: "
                    f"{fault}."
                )
            if not tool.definition.get("strict"):
                continue
            if fault := next(filter(None, (strict_misfit(schema, model, self.providers) for model in models)), None):
                raise InvalidDefinition(f"{place}, tools.{position}: the tool {tool.name!r} cannot be strict: {fault}.")

    def _check_preloaded_packages(self, place: str, agent: AgentVersion, tools: Sequence[ToolVersion]) -> None:
        """Check that live workers of the agent's capability can import the packages that its functions import."""
        if agent.tool_version_id:
            tools = [*tools, self.session.get_one(ToolVersion, agent.tool_version_id)]
        used = {agent.function_version_id, *(tool.function_version_id for tool in tools)} - {None}
        for function in map(partial(self.session.get_one, FunctionVersion), used):
            config = FunctionConfig.model_validate(function.definition.get("config", {}))
            if config.safe_mode and (missing := self.packages.missing(config.allowed_imports, agent.capability)):
                raise InvalidDefinition(
                    f"{place}: its function {function.name!r} imports {', '.join(missing)}, which no live worker of "
                    f"the capability {agent.capability!r} preloads. Start one with MINION_SANDBOX_PRELOAD first."
                )

    def _link(self, version: Any, definition: AgentDefinition, tools: Sequence[UUID]) -> None:
        self.session.flush()
        for position, tool_id in enumerate(tools):
            self.session.add(AgentVersionTool(agent_version_id=version.id, position=position, tool_version_id=tool_id))
        for position, relation in enumerate(definition.relations):
            self.session.add(
                Relation(
                    agent_version_id=version.id,
                    position=position,
                    agent_name=relation.agent,
                    for_each=relation.for_each,
                )
            )

    def _store(
        self, definition: AnyDefinition, checksum: str, because: str | None, values: dict[str, Any]
    ) -> Any | None:
        """Make the version with this checksum the active one. Return it if it is new."""
        head_class, version_class, owner = HEADS[definition.kind]
        head = self._head(head_class, definition.name)
        if head is not None and (held := self._held(head, definition)):
            self.changes.append(Change(definition.kind, definition.name, "unchanged", held.number))
            return None
        known = self._find(definition, checksum)
        if known is not None:
            self._reuse(head, known, definition, because)
            return None
        action: Action = "created" if head is None else "changed"
        if head is None:
            new = insert(head_class).values(namespace=self.namespace, name=definition.name).returning(head_class)
            head = self.session.scalars(new).one()
        version = version_class(
            **{owner: head.id},
            number=self._newest(version_class, owner, head.id) + 1,
            checksum=checksum,
            name=definition.name,
            description=definition.description,
            definition=definition.content(),
            key_order=definition.key_order(),
            **values,
            **self._standing(version_class, owner, head.id, checksum),
        )
        self.session.add(version)
        self.session.flush()
        action = self._introduce(head, version, action)
        self.changes.append(Change(definition.kind, definition.name, action, version.number, because))
        return version

    def _reuse(self, head: Any, known: Any, definition: AnyDefinition, because: str | None) -> None:
        """Handle content that is already stored: it is unchanged, or goes back to an older text."""
        if head.active_version_id == known.id or (self.inactive and isinstance(head, Agent)):
            if because is None:
                self.changes.append(Change(definition.kind, definition.name, "unchanged", known.number))
            return
        action = self._introduce(head, known, "changed")
        self.changes.append(Change(definition.kind, definition.name, action, known.number, because))

    def _held(self, head: Any, definition: AnyDefinition) -> Any | None:
        """Return the version of an agent that is to be kept as it is, if it has this text: that of its canary, or one
        that is newer than the version to which the agent was rolled back.

        Such an agent keeps its version, even if a function or tool that it uses has changed. Otherwise every deployment
        would undo the rollback, or end the canary.
        """
        if not isinstance(head, Agent):
            return None
        # The orchestrator may be rolling a canary back.
        canaries.lock(self.session.connection(), head.id)
        self.session.refresh(head)
        canary = canaries.find(self.session.connection(), head.id)
        if canary is not None:
            version = self.session.get_one(AgentVersion, canary["version_id"])
            if _has_text(version, definition):
                return version if self.share in (None, canary["share"]) else None
        if head.status != "rolled_back":
            return None
        active = self.session.get_one(AgentVersion, head.active_version_id)
        newer = select(AgentVersion).filter_by(agent_id=head.id).where(AgentVersion.number > active.number)
        found = self.session.scalars(newer.order_by(AgentVersion.number.desc()))
        return next((version for version in found if _has_text(version, definition)), None)

    def _introduce(self, head: Any, version: Any, action: Action) -> Action:
        """Make a version the active one of its definition, or its canary; return what was done."""
        if not isinstance(head, Agent) or head.active_version_id is None:
            self._activate(head, version)
            return action
        if self.inactive:
            self.stored.append((version, head.active_version_id))
            return "inactive"
        about: dict[str, Any] = {"namespace": self.namespace, "reason": None}
        connection, actor = self.session.connection(), actors.local_actor()
        if self.share is not None:
            canaries.start(connection, actor, head.id, head.name, version.id, self.share, bands={}, **about)
            return "canary"
        canary = canaries.find(connection, head.id)
        if canary is not None:
            outcome = "completed" if canary["version_id"] == version.id else "ended"
            canaries.end(connection, actor, head.id, head.name, outcome=outcome, **about)
        self._activate(head, version)
        return action

    def _activate(self, head: Any, version: Any) -> None:
        self.activated.append((version, head.active_version_id))
        head.active_version_id = version.id
        if getattr(head, "status", None) == "rolled_back":
            head.status, head.status_reason = "active", None
        self.session.flush()

    def _head(self, head_class: Any, name: str) -> Any | None:
        return self.session.scalar(select(head_class).filter_by(namespace=self.namespace, name=name))

    def _find(self, definition: AnyDefinition, checksum: str) -> Any | None:
        """Return the version with this checksum and the same order of keys, if there is one."""
        head_class, version_class, owner = HEADS[definition.kind]
        head = self._head(head_class, definition.name)
        if head is None:
            return None
        alike = self.session.scalars(select(version_class).filter_by(**{owner: head.id}, checksum=checksum))
        return next((version for version in alike if version.key_order == definition.key_order()), None)

    def _standing(self, version_class: Any, owner: str, head_id: UUID, checksum: str) -> dict[str, Any]:
        """Return the fields that a new version keeps of the newest one with the same code, such as its quarantine."""
        if version_class is not FunctionVersion:
            return {}
        same = select(FunctionVersion).filter_by(**{owner: head_id}, checksum=checksum)
        before = self.session.scalars(same.order_by(FunctionVersion.number.desc()).limit(1)).first()
        names = ("status", "status_reason", "released_at")
        return {name: getattr(before, name) for name in names} if before else {}

    def _newest(self, version_class: Any, owner: str, head_id: UUID) -> int:
        return self.session.scalar(select(func.max(version_class.number)).filter_by(**{owner: head_id})) or 0

    def _resolve(self, kind: str, reference: str, *, where: str) -> Any:
        """Return the version that `name` or `name@number` currently refers to."""
        head_class, version_class, owner = HEADS[kind]
        name, _, number = reference.partition("@")
        head = self._head(head_class, name)
        if head is None:
            raise InvalidDefinition(f"{where}: there is no {kind} named {name!r}.")
        if not number:
            return self.session.get_one(version_class, head.active_version_id)
        version = self.session.scalar(select(version_class).filter_by(**{owner: head.id}, number=int(number)))
        if version is None:
            raise InvalidDefinition(f"{where}: the {kind} {name!r} has no version {number}.")
        return version

    def _changed(self, kind: str) -> set[tuple[str, str]]:
        return {(kind, change.name) for change in self.changes if change.kind == kind and change.action != "unchanged"}

    def _with_followers(
        self, given: Iterable[Any], kind: str, moved: set[tuple[str, str]]
    ) -> list[tuple[Any, str | None]]:
        """Return the given definitions, then the stored ones that follow something in `moved` by name, and why."""
        found: list[tuple[Any, str | None]] = [(definition, None) for definition in given]
        names = {definition.name for definition, _ in found}
        for definition in self._active(kind, but_rolled_back=True) if moved else []:
            followed = _references(definition) & moved
            if definition.name not in names and followed:
                found.append((definition, ", ".join(f"{kind} {name}" for kind, name in sorted(followed))))
        return found

    def _active(self, kind: str, *, but_rolled_back: bool = False) -> list[Any]:
        head_class, version_class, _ = HEADS[kind]
        query = (
            select(head_class.name, version_class.definition, version_class.key_order)
            .join(version_class, version_class.id == head_class.active_version_id)
            .where(head_class.namespace == self.namespace)
            .order_by(head_class.name)
        )
        if but_rolled_back and kind == "agent":
            query = query.where(Agent.status != "rolled_back")
        rows = self.session.execute(query)
        return [stored_definition(kind, row.name, row.definition, row.key_order) for row in rows]

    def _active_agents(self) -> dict[str, AgentDefinition]:
        """Return the active version of every agent by name, with the schemas inherited from its pinned versions."""
        query = (
            select(
                Agent.name,
                AgentVersion.definition,
                AgentVersion.key_order,
                ToolVersion.definition,
                FunctionVersion.definition,
            )
            .join(AgentVersion, AgentVersion.id == Agent.active_version_id)
            .outerjoin(ToolVersion, ToolVersion.id == AgentVersion.tool_version_id)
            .outerjoin(
                FunctionVersion,
                FunctionVersion.id == func.coalesce(AgentVersion.function_version_id, ToolVersion.function_version_id),
            )
            .where(Agent.namespace == self.namespace)
            .order_by(Agent.name)
        )
        return {
            name: stored_definition("agent", name, own, order).inheriting(*filter(None, pinned))
            for name, own, order, *pinned in self.session.execute(query)
        }

    def _check_relations(self, given: Sequence[AgentDefinition]) -> None:
        """Check that every agent in a relation exists, and that no agent hands work to itself through others."""
        calls = self._calls()
        for definition in given:
            for place, name in _called_agents(definition):
                if name not in calls:
                    raise InvalidDefinition(f"agent {definition.name!r}, {place}: there is no agent named {name!r}.")
            for position, evaluator in enumerate(definition.evaluators):
                self._check_evaluator(evaluator.agent, f"agent {definition.name!r}, evaluators.{position}.agent")
        for tool in self._active("tool"):
            if tool.agent and tool.agent not in calls:
                raise InvalidDefinition(f"tool {tool.name!r}, agent: there is no agent named {tool.agent!r}.")
        self._refuse_circles(calls)
        self._refuse_misfits({definition.name for definition in given})

    def _check_evaluator(self, name: str, place: str) -> None:
        """Check that an agent exists that may answer with a score."""
        judge = self._active_agents().get(name)
        if judge is None:
            raise InvalidDefinition(f"{place}: there is no agent named {name!r}.")
        schema = judge.output_schema
        if schema is not None and "score" not in schema.get("properties", {"score": True}):
            raise InvalidDefinition(f"{place}: the output schema of {name!r} must have the property `score`.")

    def _refuse_misfits(self, changed: set[str]) -> None:
        """Check that the output of each agent in a changed chain can be the input of the next one."""
        agents = self._active_agents()
        chains = [
            chain
            for chain in agents.values()
            if changed & {chain.name, *(relation.agent for relation in chain.relations)}
        ]
        for name, place, fault in chain_misfits(chains, agents):
            raise InvalidDefinition(f"agent {name!r}, {place}: {fault}.")

    def check_circles(self) -> None:
        """Raise InvalidDefinition if active agents hand work to each other in a circle."""
        self._refuse_circles(self._calls())

    def _refuse_circles(self, calls: dict[str, list[str]]) -> None:
        for name in sorted(calls):
            if circle := _find_circle(name, calls):
                raise InvalidDefinition(f"agent {name!r}: its relations form a circle: {' -> '.join(circle)}.")

    def _calls(self) -> dict[str, list[str]]:
        """Return the agents that each active version may call: by relation, or by a tool of kind agent."""
        calls: dict[str, list[str]] = {}
        for caller, called in self.session.execute(CALLS, {"namespace": self.namespace}):
            calls.setdefault(caller, []).extend([called] if called else [])
        return calls


def _has_text(version: Any, definition: AnyDefinition) -> bool:
    same: bool = digest(version.definition) == digest(definition.content())
    # Releases before 0.3 stored no key order.
    return same and version.key_order in (None, definition.key_order())


def _of(definitions: Sequence[AnyDefinition], kind: type[Any]) -> list[Any]:
    return [definition for definition in definitions if isinstance(definition, kind)]


def _refuse_twice(definitions: Sequence[AnyDefinition]) -> None:
    seen: set[tuple[str, str]] = set()
    for definition in definitions:
        key = (definition.kind, definition.name)
        if key in seen:
            raise InvalidDefinition(f"The {definition.kind} {definition.name!r} is defined twice.")
        seen.add(key)


def _check_conditions(definition: AgentDefinition | ToolDefinition, inputs: dict[str, Any] | None) -> None:
    """Refuse an approval policy whose conditions no arguments with this schema can match."""
    if (policy := definition.approval_policy) is not None:
        for fault in condition_misfits(policy, inputs):
            raise InvalidDefinition(f"{definition.kind} {definition.name!r}, {fault}")


def _without_trust(tool: ToolDefinition, *, is_given: bool) -> ToolDefinition:
    """Return a tool of a server that is not trusted: without an effect that followed from the server's annotations.

    Raises:
        InvalidDefinition: such a tool is to be stored now, and is no follower of its server.
    """
    assert tool.mcp is not None
    if not tool.mcp.trusted:
        return tool
    if is_given:
        raise InvalidDefinition(
            f"tool {tool.name!r}, mcp.trusted: the server {tool.mcp.server!r} is not trusted. Set `trusted: true` "
            f"there first, or run `minion mcp pull {tool.mcp.server}`."
        )
    call = tool.mcp.model_copy(update={"trusted": False})
    effect = call.effect if tool.effect == tool.mcp.effect else tool.effect
    # Only results of pure calls may be cached.
    cache = tool.cache if effect == "pure" else None
    return tool.model_copy(update={"mcp": call, "effect": effect, "cache": cache})


def _agent_columns(definition: AgentDefinition) -> dict[str, Any]:
    config = definition.config
    return {
        "type": definition.type,
        "capabilities": config.capabilities,
        "capability": config.capabilities[0],
        "input_schema": definition.input_schema,
        "soft_time_limit": config.soft_time_limit,
        "time_limit": config.time_limit,
        "max_attempts": config.max_attempts,
        "evaluators": [_evaluator(each) for each in definition.evaluators] or None,
    }


def _evaluator(evaluator: Evaluator) -> dict[str, Any]:
    """Return an evaluator as the statistician reads it."""
    content = evaluator.model_dump(mode="json", exclude_none=True)
    return {**content, "share": hundredths_of(evaluator.share)}


def _references(definition: AgentDefinition | ToolDefinition) -> set[tuple[str, str]]:
    """Return the references by name in a definition; pinned references are not followed."""
    named = [("function", definition.function)]
    if isinstance(definition, ToolDefinition) and definition.mcp is not None:
        named.append(("mcp_server", definition.mcp.server))
    if isinstance(definition, AgentDefinition):
        named += [("tool", definition.tool), *(("tool", reference) for reference in definition.tools)]
    return {(kind, name) for kind, name in named if name and "@" not in name}


def _called_agents(definition: AgentDefinition) -> list[tuple[str, str]]:
    return [(f"relations.{position}", relation.agent) for position, relation in enumerate(definition.relations)]


def _find_circle(start: str, calls: dict[str, list[str]]) -> list[str] | None:
    """Return a path from an agent back to itself, if there is one (depth first, without recursion)."""
    stack = [(start, [start])]
    seen: set[str] = set()
    while stack:
        name, path = stack.pop()
        for called in calls.get(name, []):
            if called == start:
                return [*path, start]
            if called not in seen:
                seen.add(called)
                stack.append((called, [*path, called]))
    return None
