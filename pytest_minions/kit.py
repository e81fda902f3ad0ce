"""An installation for a test: apply definitions, run tasks, let time pass, decide, look at the record."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol
from unittest.mock import ANY
from uuid import UUID

from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from minions import Client, Task
from minions.definitions import Declared, documents_of
from minions.submissions import TaskId
from minions.testing import MessagesApi
from orchestrator.python_definitions import load
from pytest_minions import clock
from shared.contracts.documents import AnyDefinition, parse_definition
from shared.definitions.apply import store_definitions

SUBMITTED = text(
    "SELECT id, COALESCE(input, to_jsonb(messages)) AS input FROM tasks "
    "WHERE agent_name = :agent AND namespace = :namespace AND parent_id IS NULL ORDER BY id"
)
CAPABILITIES = text("SELECT DISTINCT unnest(capabilities) FROM agent_versions")
# The journal names the function or the agent that a tool of that type calls.
BEHIND = text(
    "SELECT COALESCE(v.definition->>'function', v.definition->>'agent') FROM tools t "
    "JOIN tool_versions v ON v.tool_id = t.id WHERE t.name = :tool AND v.definition->>'type' IN ('function', 'agent')"
)
Source = Path | str | Declared | Mapping[str, Any]
CALLS = ("tool_call", "function_call", "subtask")
MOST_JUMPS = 1000
"""Times that `finish` lets pass before it gives up: a task that waits again and again does not end."""


class Runner(Protocol):
    """How tasks run: in the test's process, or in others."""

    def serve(self, capabilities: Collection[str]) -> None:
        """Ensure that a worker serves these capabilities."""

    def run_until_idle(self, timeout: float) -> None:
        """Run everything that can run now."""


@dataclass(frozen=True, repr=False)  # pytest shows it when a test fails, and its fields have passwords
class Minions:
    """An installation for one test.

    Attributes:
        client: the client for its API, for everything that this class does not have.
        model: the scripted model, as the fixture `scripted_model`.
        database_url: for code under test that submits with SQL.
        redis_url: for code under test that submits with Celery messages.
    """

    client: Client
    model: MessagesApi
    engine: Engine
    database_url: str
    redis_url: str
    runner: Runner

    def apply(self, *sources: Source, namespace: str = "default") -> None:
        """Store definitions: files and folders, Python modules, what such a module declares, or dictionaries.

        Args:
            sources: as for `minion apply`: a path, `path/to/file.py`, `package.module`, or one of these with `:name`;
                an agent, a tool or a function of `minions`, with what it refers to; or one definition with its `kind`.

        Raises:
            InvalidDefinition: the first error; nothing is stored.
            FileFault: a file cannot be read.
        """
        definitions = [definition for source in sources for definition in _definitions(source)]
        with Session(self.engine) as session:
            store_definitions(session, definitions, namespace=namespace)
            capabilities = list(session.scalars(CAPABILITIES))
        self.runner.serve(capabilities)

    def submit(self, agent: str | None = None, *arguments: Any, **fields: Any) -> Task[Any]:
        """Submit a task; the arguments are those of `Client.submit`."""
        return self.client.submit(agent, *arguments, **fields)

    def run_until_idle(self, timeout: float = 30.0) -> None:
        """Run tasks until none can continue: each has ended, or waits for time, a person, a signal or an operator.

        Raises:
            AssertionError: there is still something to run after `timeout` seconds.
        """
        self.runner.run_until_idle(timeout)

    def finish(self, task: TaskId, timeout: float = 30.0) -> Task[Any]:
        """Run a task to its end, and skip the times for which it waits: back-offs, waits, deadlines of approvals.

        Raises:
            AssertionError: it waits for something that no time brings; the message says what.
        """
        for _ in range(MOST_JUMPS):
            self.run_until_idle(timeout)
            found = self.client.get(task)
            if found.final:
                return found
            left = clock.until_due(self.engine, found.id)
            if left is None:
                raise AssertionError(f"Task {found.id} does not end by itself. {self.client.why(task)['sentence']}")
            clock.advance(self.engine, left)
        raise AssertionError(f"Task {_id(task)} still waits after {MOST_JUMPS} times that passed.")

    def advance(self, duration: timedelta | str) -> None:
        """Let time pass, such as `2h`, then run what is due: scheduled tasks, waits, retries, deadlines, schedules.

        It is as if the installation had been stopped for that time: a schedule that missed several runs follows its
        `missed`. What begins afterwards begins now.

        Raises:
            ValueError: the duration is negative, or not written like `90s`, `2h` or `1d12h`.
        """
        clock.advance(self.engine, clock.duration(duration))
        self.run_until_idle()

    def approve(self, task: TaskId, value: Any = None, reason: str | None = None) -> Task[Any]:
        """Approve the call that a task waits with; with a value, with these arguments instead of the proposed ones."""
        return self.decide(task, "approve", value, reason)

    def reject(self, task: TaskId, reason: str | None = None) -> Task[Any]:
        """Reject the call that a task waits with."""
        return self.decide(task, "reject", None, reason)

    def decide(self, task: TaskId, verdict: str, value: Any = None, reason: str | None = None) -> Task[Any]:
        """Decide as `Client.decide` does, about the step that the task waits with now.

        Raises:
            AssertionError: it waits for no decision; the message says why it does not run.
        """
        why = self.client.why(task)
        proposal = why["facts"].get("proposal")
        if proposal is None:
            raise AssertionError(f"Task {_id(task)} waits for no decision. {why['sentence']}")
        return self.client.decide(task, verdict, value, reason, proposal=proposal)

    def signal(self, task: TaskId, name: str, payload: Any = None) -> Task[Any]:
        """Send a signal to a task."""
        return self.client.signal(task, name, payload)

    def journal(self, task: TaskId) -> list[dict[str, Any]]:
        """Return the steps of a task, as the API shows them."""
        return list(self.client.steps(task))

    def assert_submitted(
        self, agent: str, input: Any = ANY, times: int | None = None, *, namespace: str = "default"
    ) -> list[Task[Any]]:
        """Check that tasks were submitted to an agent, and return them, the oldest first. Sub-tasks do not count.

        Args:
            input: equal to the input (or the messages) of the tasks; `unittest.mock.ANY` matches any value inside it.
            times: the exact number; by default at least one.
        """
        with self.engine.connect() as connection:
            rows = connection.execute(SUBMITTED, {"agent": agent, "namespace": namespace}).all()
        found = [row.id for row in rows if input == row.input]
        _assert_count(f"tasks for the agent {agent!r}", input, times, len(found), [row.input for row in rows])
        return [self.client.get(id) for id in found]

    def assert_called(
        self, task: TaskId, tool: str, input: Any = ANY, times: int | None = None
    ) -> list[dict[str, Any]]:
        """Check that a task has called a tool, and return these steps of its journal.

        Args:
            input: equal to the arguments of the call; `unittest.mock.ANY` matches any value inside it.
            times: the exact number; by default at least one.
        """
        with self.engine.connect() as connection:
            names = {tool, *connection.scalars(BEHIND, {"tool": tool})}
        calls = [step for step in self.journal(task) if step["name"] in names and step["kind"] in CALLS]
        found = [step for step in calls if input == _arguments(step)]
        _assert_count(f"calls of the tool {tool!r}", input, times, len(found), map(_arguments, calls))
        return found


def _definitions(source: Source) -> list[AnyDefinition]:
    if isinstance(source, Mapping):
        return [parse_definition(dict(source))]
    if isinstance(source, Declared):
        return [parse_definition(document) for document in documents_of([source])]
    return load(str(source))


def _arguments(step: Mapping[str, Any]) -> Any:
    return step["input"]["arguments"] if step["kind"] == "function_call" else step["input"]


def _assert_count(what: str, input: Any, times: int | None, number: int, inputs: Iterable[Any]) -> None:
    if number == times or (times is None and number > 0):
        return
    wanted = "at least one" if times is None else str(times)
    like = "" if input is ANY else f" with the input {input!r}"
    listed = "".join(f"\n  {each!r}" for each in inputs) or " none"
    raise AssertionError(f"Expected {wanted} of the {what}{like}, found {number}. All of them:{listed}")


def _id(task: TaskId) -> str | UUID:
    return task if isinstance(task, (str, UUID)) else task.id
