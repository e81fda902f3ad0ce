"""The agent registry: lifecycle, lookup, and asking agents from Python.

`process` and `process_message` submit a task and await its response: whichever minion serves the capability runs
it, and the record is the same as for a task that came over HTTP.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from shared.errors import MinionError, NotFound, TaskFailed, UnknownAgent, WaitTimeout
from shared.function_store import store_definitions
from shared.models import Agent, AgentVersion
from shared.schemas import AgentDefinition, AgentResponse, TaskRequest
from shared.states import State
from shared.submission import submit
from shared.tasks import get_task, response_of

LONGEST_PAUSE = 0.5


@dataclass(frozen=True)
class RegisteredAgent:
    """A stored agent, to be asked.

    Attributes:
        definition: the active version's definition; its fields can be read from here too (`agent.description`).
    """

    registry: AgentRegistry
    id: UUID
    version_id: UUID
    version: int
    status: str
    definition: AgentDefinition

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
        """Sends one message, text or a message object, and awaits the response. See `AgentRegistry.process`."""
        return await self.registry.process(
            messages=[message], agent=self.definition.name, conversation_id=conversation_id, timeout=timeout
        )


class AgentRegistry:
    """Agents of one namespace, on the caller's session."""

    def __init__(self, session: Session, namespace: str = "default") -> None:
        self.session = session
        self.namespace = namespace

    def register_agent(self, agent: Agent | AgentDefinition) -> RegisteredAgent:
        """Stores an agent, as a new version if something changed, and commits.

        Raises:
            InvalidDefinition: names what is wrong with it.
        """
        definition = agent.definition if isinstance(agent, Agent) else agent
        store_definitions(self.session, [definition], namespace=self.namespace)
        return self.get_agent(definition.name)

    def get_agent(self, name: str) -> RegisteredAgent:
        """The agent of that name.

        Raises:
            UnknownAgent: there is none.
        """
        row = self._head(name)
        version = self.session.get_one(AgentVersion, row.active_version_id)
        definition = AgentDefinition.model_validate({"name": name, **version.definition})
        return RegisteredAgent(self, row.id, version.id, version.number, row.status, definition)

    def list_agents(self) -> list[RegisteredAgent]:
        """All agents, by name."""
        query = select(Agent.name).filter_by(namespace=self.namespace).order_by(Agent.name)
        return [self.get_agent(name) for name in self.session.scalars(query)]

    def set_status(self, name: str, status: str, reason: str | None = None) -> RegisteredAgent:
        """Makes an agent `active`, `deprecated` (still accepts tasks) or `disabled` (does not), and commits.

        Raises:
            UnknownAgent: there is none of that name.
        """
        row = self._head(name)
        self.session.execute(update(Agent).where(Agent.id == row.id).values(status=status, status_reason=reason))
        self.session.commit()
        return self.get_agent(name)

    def roll_back(self, name: str, version: int, reason: str | None = None) -> RegisteredAgent:
        """Makes an earlier version the active one, until a new text is applied, and commits.

        Raises:
            UnknownAgent, NotFound: there is no such agent or version.
        """
        row = self._head(name)
        target = self.session.scalar(select(AgentVersion).filter_by(agent_id=row.id, number=version))
        if target is None:
            raise NotFound(f"The agent {name!r} has no version {version}.")
        values = {"active_version_id": target.id, "status": "rolled_back", "status_reason": reason}
        self.session.execute(update(Agent).where(Agent.id == row.id).values(**values))
        self.session.commit()
        return self.get_agent(name)

    async def process(
        self,
        messages: Sequence[Any],
        *,
        agent: str | None = None,
        conversation_id: str | None = None,
        timeout: float | None = None,
    ) -> AgentResponse:
        """Submits messages as a task and awaits the response.

        Args:
            messages: ours, `{"role", "content"}` mappings, text, or objects of LangChain's message shape.
            agent: its name; left out, the orchestrator routes by the last message.
            timeout: seconds to wait; None waits for ever.

        Raises:
            TaskFailed: it failed, was cancelled or expired; `detail["error"]` is its recorded error.
            WaitTimeout: it goes on, but the time is up.
            MinionError: it was not accepted.
        """
        request = TaskRequest(
            agent=agent, messages=list(messages), conversation_id=conversation_id, namespace=self.namespace
        )
        task_id = await asyncio.to_thread(self._submit, request)
        task = await self._wait(task_id, timeout)
        if task["state"] != State.SUCCEEDED:
            raise _failure_of(task)
        return await asyncio.to_thread(self._response, task)

    def _submit(self, request: TaskRequest) -> UUID:
        try:
            accepted = submit(self.session.connection(), request, submitted_by="registry")
            self.session.commit()
        except BaseException:
            self.session.rollback()
            raise
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
                    f"Task {task_id} is still {task['state']} after {timeout:g} s. It goes on; look again later.",
                    task_id=str(task_id),
                )
            await asyncio.sleep(pause)
            pause = min(LONGEST_PAUSE, pause * 1.5)

    def _look(self, task_id: UUID) -> dict[str, Any]:
        # Not on the caller's session: no transaction of his stays open while we wait.
        with self.session.get_bind().engine.connect() as connection:
            return get_task(connection, task_id)

    def _response(self, task: dict[str, Any]) -> AgentResponse:
        with self.session.get_bind().engine.connect() as connection:
            return response_of(connection, task)

    def _head(self, name: str) -> Agent:
        row = self.session.scalar(select(Agent).filter_by(namespace=self.namespace, name=name))
        if row is None or row.active_version_id is None:
            raise UnknownAgent(f"There is no agent named {name!r}. `minion agents` lists them.")
        return row


def _failure_of(task: dict[str, Any]) -> MinionError:
    error = task["error"] or {}
    return TaskFailed(
        error.get("message") or f"Task {task['id']} ended as {task['state']}.", task_id=str(task["id"]), error=error
    )
