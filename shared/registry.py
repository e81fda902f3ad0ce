"""The agent registry: lifecycle, lookup, and calling agents from Python.

`process` and `process_message` submit a task and await its response: any minion that serves the capability may run
it, and the record is the same as for a task that came over HTTP.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from shared.access import actors
from shared.audit import log
from shared.contracts import shares
from shared.contracts.documents import AgentDefinition, stored_definition
from shared.contracts.requests import TaskRequest
from shared.contracts.strict_json import check
from shared.database.connections import SCHEMA_LOCK
from shared.database.tables import Agent, AgentVersion
from shared.definitions import canaries
from shared.definitions.apply import store_definitions
from shared.definitions.function_store import is_number
from shared.definitions.known_models import unknown_models
from shared.definitions.store import DefinitionStore
from shared.errors import (
    Conflict,
    InvalidDefinition,
    InvalidInput,
    MinionError,
    NotFound,
    TaskFailed,
    UnknownAgent,
    WaitTimeout,
)
from shared.functions.validation import validate_code
from shared.suggestions import similar_agents
from shared.tasks.queries import get_task, response_of
from shared.tasks.response import AgentResponse
from shared.tasks.states import State
from shared.tasks.submission import submit

LONGEST_PAUSE = 0.5
SETTABLE = ("active", "deprecated", "disabled")
MAX_REASON_BYTES = 10_000


@dataclass(frozen=True)
class RegisteredAgent:
    """A stored agent that can be called.

    Attributes:
        definition: the active version's definition; its fields are also attributes of the agent (`agent.description`).
    """

    registry: AgentRegistry
    id: UUID
    version_id: UUID
    version: int
    status: str
    definition: AgentDefinition

    @property
    def warnings(self) -> tuple[str, ...]:
        """Possible problems of the agent, such as an unknown model."""
        return unknown_models(self.definition)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name in AgentDefinition.model_fields:
            return getattr(self.definition, name)
        if name == "config_data":
            return self.definition.config.model_dump()
        return getattr(self.definition.config, name)

    async def process_message(
        self, message: Any, *, conversation_id: str | None = None, timeout: float | None = None
    ) -> AgentResponse:
        """Send one message, text or a message object, and await the response. See `AgentRegistry.process`."""
        return await self.registry.process(
            messages=[message], agent=self.definition.name, conversation_id=conversation_id, timeout=timeout
        )


class AgentRegistry:
    """Agents of one namespace, in the database of the caller's session.

    Each call has its own short transaction: it does not touch or see the caller's uncommitted changes, no transaction
    stays open while the caller waits, and calls may run concurrently.
    """

    def __init__(self, session: Session, namespace: str = "default") -> None:
        self.engine = session.get_bind().engine
        self.namespace = namespace

    def register_agent(self, agent: Agent | AgentDefinition, *, strict: bool = False) -> RegisteredAgent:
        """Store an agent, as a new version if something changed, and commit.

        Args:
            strict: treat the agent's `warnings` as errors.

        Raises:
            InvalidDefinition: names the problem.
        """
        definition = agent.definition if isinstance(agent, Agent) else agent
        if not isinstance(definition, AgentDefinition):
            raise InvalidDefinition(f"register_agent takes an Agent, not a {type(agent).__name__}.")
        with Session(self.engine) as session:
            store_definitions(session, [definition], namespace=self.namespace, strict=strict)
        return self.get_agent(definition.name)

    def get_agent(self, name: str) -> RegisteredAgent:
        """Return the agent of that name.

        Raises:
            UnknownAgent: there is none.
        """
        with Session(self.engine) as session:
            row = self._head(session, name)
            version = session.get_one(AgentVersion, row.active_version_id)
            definition = stored_definition("agent", name, version.definition, version.key_order)
            return RegisteredAgent(self, row.id, version.id, version.number, row.status, definition)

    def list_agents(self) -> list[RegisteredAgent]:
        """Return all agents, by name."""
        query = select(Agent.name).filter_by(namespace=self.namespace).order_by(Agent.name)
        with Session(self.engine) as session:
            names = list(session.scalars(query))
        return [self.get_agent(name) for name in names]

    def set_status(
        self, name: str, status: str, reason: str | None = None, *, actor: actors.Actor | None = None
    ) -> RegisteredAgent:
        """Make an agent `active`, `deprecated` (still accepts tasks) or `disabled` (does not), and commit.

        A disabled agent whose active version is not its newest becomes `rolled_back`, not `active`: it accepts tasks
        again and keeps its version.

        Args:
            actor: for the audit log; None: the user of the operating system.

        Raises:
            UnknownAgent: there is no agent of that name.
            InvalidInput: there is no such status, or the reason cannot be stored.
        """
        if status not in SETTABLE:
            raise InvalidInput(f"The status of an agent can be set to {', '.join(SETTABLE)}, not {str(status)[:50]!r}.")
        self._change(name, reason, actor, status=status)
        return self.get_agent(name)

    def roll_back(
        self, name: str, version: int, reason: str | None = None, *, actor: actors.Actor | None = None
    ) -> RegisteredAgent:
        """Make an earlier version the active one until a new text is applied, and commit.

        Rolling back to the newest version ends a rollback: the agent is `active`. A disabled agent stays disabled.

        Args:
            actor: for the audit log; None: the user of the operating system.

        Raises:
            UnknownAgent, NotFound: there is no such agent or version.
            InvalidDefinition: the version calls agents that now call it.
        """
        with Session(self.engine) as session:
            id = self._version(session, self._head(session, name), version)
        self._change(name, reason, actor, version=id)
        return self.get_agent(name)

    def start_canary(
        self,
        name: str,
        version: int,
        share: str,
        reason: str | None = None,
        *,
        actor: actors.Actor | None = None,
        **bands: Any,
    ) -> RegisteredAgent:
        """Give a version a share of the agent's new tasks, or change the share that it has, and commit.

        Tasks of one conversation, tenant key or tree get the same version. `roll_back` to any version ends it; a share
        of 100% is that to its own version.

        Args:
            share: a percentage, such as `10%`.
            actor: for the audit log; None: the user of the operating system.
            bands: fields of `shared.definitions.canaries.Bands`; those left out are as before, or have their defaults.

        Raises:
            UnknownAgent, NotFound: there is no such agent or version.
            InvalidInput: the version is the active one, or the share or a band is not valid.
            Conflict: the agent is disabled.
            InvalidDefinition: the version calls agents that now call it.
        """
        hundredths = canaries.parse_share(share)
        if hundredths == shares.ALL:
            return self.roll_back(name, version, reason, actor=actor)
        check(reason, what="The reason", limit=MAX_REASON_BYTES)
        with Session(self.engine) as session, session.begin():
            row = self._head(session, name, lock=True)
            wanted = self._version(session, row, version)
            if wanted == row.active_version_id:
                raise InvalidInput(f"Version {version} of {name!r} is the active one: it gets all tasks already.")
            if row.status == "disabled":
                raise Conflict(f"The agent {name!r} is disabled and accepts no tasks. Activate it first.")
            canaries.start(
                session.connection(),
                actor or actors.local_actor(),
                row.id,
                name,
                wanted,
                hundredths,
                namespace=self.namespace,
                bands=bands,
                reason=reason,
            )
            DefinitionStore(session, validate_code, self.namespace).check_circles()
        return self.get_agent(name)

    async def process(
        self,
        messages: Sequence[Any],
        *,
        agent: str | None = None,
        conversation_id: str | None = None,
        timeout: float | None = None,
    ) -> AgentResponse:
        """Submit messages as a task and await the response.

        Args:
            messages: ours, `{"role", "content"}` mappings, text, or objects of LangChain's message shape.
            agent: its name; if it is left out, the orchestrator routes by the last message.
            timeout: seconds to wait; None waits indefinitely.

        Raises:
            TaskFailed: the task failed, was cancelled or expired; `detail["error"]` is its recorded error.
            WaitTimeout: the time is up; the task continues.
            MinionError: the task was not accepted.
        """
        request = TaskRequest.parse(
            {
                "agent": agent,
                "messages": list(messages),
                "conversation_id": conversation_id,
                "namespace": self.namespace,
            }
        )
        task_id = await asyncio.to_thread(self._submit, request)
        task = await self._wait(task_id, timeout)
        if task["state"] != State.SUCCEEDED:
            raise _failure_of(task)
        return await asyncio.to_thread(self._response, task)

    def _submit(self, request: TaskRequest) -> UUID:
        [accepted] = submit(self.engine, [request], submitted_by="registry")
        return accepted.task_id

    async def _wait(self, task_id: UUID, timeout: float | None) -> dict[str, Any]:
        ends = time.monotonic() + timeout if timeout is not None else None
        pause = 0.02
        while True:
            task = await asyncio.to_thread(self._look, task_id)
            if State(task["state"]).final:
                return task
            if ends is not None and time.monotonic() >= ends:
                raise WaitTimeout(
                    f"Task {task_id} is still {task['state']} after {timeout:g} s. It continues; check again later.",
                    task_id=str(task_id),
                )
            await asyncio.sleep(pause)
            pause = min(LONGEST_PAUSE, pause * 1.5)

    def _look(self, task_id: UUID) -> dict[str, Any]:
        with self.engine.connect() as connection:
            return get_task(connection, task_id)

    def _response(self, task: dict[str, Any]) -> AgentResponse:
        with self.engine.connect() as connection:
            return response_of(connection, task)

    def _change(
        self,
        name: str,
        reason: str | None,
        actor: actors.Actor | None,
        *,
        status: str | None = None,
        version: UUID | None = None,
    ) -> None:
        """Set an agent's status, or its active version; processes that apply definitions at the same time wait."""
        check(reason, what="The reason", limit=MAX_REASON_BYTES)
        with Session(self.engine) as session, session.begin():
            row = self._head(session, name, lock=True)
            before = self._state(session, row.id)
            if version is not None:
                row.active_version_id = version
                status = "disabled" if row.status == "disabled" else self._accepting(session, row)
            elif status == "active" and row.status in ("disabled", "rolled_back"):
                canary = canaries.find(session.connection(), row.id)
                status = self._accepting(session, row, beside=None if canary is None else canary["version_id"])
            row.status, row.status_reason = str(status), reason
            session.flush()
            states = log.changed(before, self._state(session, row.id))
            act = "agent.status" if version is None else "agent.rollback"
            actor = actor or actors.local_actor()
            log.record(session.connection(), actor, act, name, namespace=self.namespace, **states)
            if version is not None:
                self._end_canary(session, row, reason, actor)
                DefinitionStore(session, validate_code, self.namespace).check_circles()

    def _end_canary(self, session: Session, row: Agent, reason: str | None, actor: actors.Actor) -> None:
        connection = session.connection()
        canary = canaries.find(connection, row.id)
        if canary is not None:
            outcome = "completed" if canary["version_id"] == row.active_version_id else "ended"
            canaries.end(connection, actor, row.id, row.name, namespace=self.namespace, outcome=outcome, reason=reason)

    def _version(self, session: Session, row: Agent, version: int) -> UUID:
        """Return the id of a version.

        Raises:
            NotFound: the agent has no such version.
        """
        query = select(AgentVersion.number, AgentVersion.id).filter_by(agent_id=row.id)
        versions: dict[int, UUID] = {each.number: each.id for each in session.execute(query)}
        if not is_number(version) or version not in versions:
            raise NotFound(f"The agent {row.name!r} has no version {str(version)[:20]}.")
        return versions[version]

    def _accepting(self, session: Session, row: Agent, *, beside: UUID | None = None) -> str:
        """Return the status in which an agent accepts tasks with its active version, beside that of its canary."""
        newest = session.scalar(
            select(AgentVersion.id)
            .filter_by(agent_id=row.id)
            .where(AgentVersion.id.is_distinct_from(beside))
            .order_by(AgentVersion.number.desc())
            .limit(1)
        )
        return "active" if row.active_version_id == newest else "rolled_back"

    def _state(self, session: Session, agent: UUID) -> dict[str, Any]:
        query = select(Agent.status, Agent.status_reason, AgentVersion.number.label("version"))
        query = query.join(AgentVersion, AgentVersion.id == Agent.active_version_id).where(Agent.id == agent)
        return dict(session.execute(query).mappings().one())

    def _head(self, session: Session, name: str, *, lock: bool = False) -> Agent:
        if lock:
            session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": SCHEMA_LOCK})
        query = select(Agent).filter_by(namespace=self.namespace, name=name)
        # The orchestrator may be rolling a canary back.
        row = session.scalar(query.with_for_update(key_share=True) if lock else query)
        if row is None or row.active_version_id is None:
            similar = similar_agents(session.connection(), self.namespace, str(name))
            raise UnknownAgent(f"There is no agent named {str(name)[:100]!r}. `minion agents` lists them.{similar}")
        return row


def _failure_of(task: dict[str, Any]) -> MinionError:
    error = task["error"] or {}
    return TaskFailed(
        error.get("message") or f"Task {task['id']} ended as {task['state']}.", task_id=str(task["id"]), error=error
    )
