"""A task's life by hand: each step that a minion or the orchestrator takes, as one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar
from uuid import UUID, uuid4

from sqlalchemy import Connection, Engine, text

from orchestrator.preparer import prepare_pending
from shared.contracts.requests import TaskRequest
from shared.tasks import lifecycle
from shared.tasks.lifecycle import Dispatched
from shared.tasks.queries import get_task
from shared.tasks.states import State
from shared.tasks.submission import submit

Result = TypeVar("Result")

NOOP = {"kind": "tool", "name": "noop", "type": "builtin", "builtin": "noop", "effect": "pure"}


def agent(name: str, *capabilities: str, **fields: Any) -> dict[str, Any]:
    """A definition of an agent that runs the tool `noop`."""
    config = {"capabilities": list(capabilities or ["work"]), **fields.pop("config", {})}
    return {"kind": "agent", "name": name, "type": "function", "tool": "noop", "config": config, **fields}


def function(name: str = "double", code: str | None = None, **fields: Any) -> dict[str, Any]:
    """A definition of a function that doubles `x`."""
    return {"kind": "function", "name": name, "code": code or f"def {name}(x):\n    return 2 * x\n", **fields}


class ByHand:
    """One worker, and what can be done to a task; every call is a transaction of its own."""

    def __init__(self, engine: Engine, *capabilities: str) -> None:
        self.engine = engine
        self.worker = self.new_worker(*(capabilities or ("work",)))

    def call(self, step: Callable[..., Result], *arguments: Any, **options: Any) -> Result:
        """Calls a function of `shared.tasks.lifecycle`, or any other that takes a connection."""
        with self.engine.begin() as connection:
            return step(connection, *arguments, **options)

    def sql(self, statement: str, **values: Any) -> Any:
        """The first column of a statement's first row, if it has one."""
        with self.engine.begin() as connection:
            result = connection.execute(text(statement), values)
            return result.scalar() if result.returns_rows else None

    def new_worker(self, *capabilities: str) -> UUID:
        """Registers a worker that has just beaten and has slots to spare."""
        worker = uuid4()
        self.sql(
            "INSERT INTO workers (id, name, capabilities, slots, pool, host, pid, version, idle_since) "
            "VALUES (:id, 'by hand', :capabilities, 1000, 'prefork', 'here', 1, '0', now())",
            id=worker,
            capabilities=list(capabilities),
        )
        return worker

    def submit(self, agent: str | None = "A", **fields: Any) -> UUID:
        """Accepts a task."""
        return self.call(submit, TaskRequest(agent=agent, **fields), submitted_by="test").task_id

    def dispatch(self) -> list[Dispatched]:
        """One round of the dispatcher, without a broker."""
        prepare_pending(self.engine)
        # Nobody beats here, and a slow machine is no lost worker.
        return self.call(lifecycle.dispatch, lease=3600.0, window=1000)

    def claim(self, task: UUID, expected: int | None = None, worker: UUID | None = None) -> dict[str, Any] | None:
        """Takes a queued task, under the claim number that its message would carry."""
        number = self.row(task)["claim"] if expected is None else expected
        return self.call(lifecycle.claim, task, number, worker or self.worker)

    def run(self, agent: str = "A", **fields: Any) -> UUID:
        """A task that this worker has claimed."""
        task = self.submit(agent, **fields)
        self.again(task)
        return task

    def again(self, task: UUID) -> int:
        """Dispatches and claims a pending task; returns its claim number."""
        self.dispatch()
        claimed = self.claim(task)
        assert claimed is not None
        return int(claimed["claim"])

    def finish(self, task: UUID, claim: int = 1, state: State = State.SUCCEEDED, **result: Any) -> State | None:
        """Ends a running task."""
        if state == State.FAILED:
            result.setdefault("error", {"type": "test", "message": "It failed."})
        return self.call(lifecycle.finish, task, claim, state, result)

    def release(self, task: UUID, claim: int = 1, **options: Any) -> State | None:
        """Gives a running task back."""
        options = {"how": "retried", "charged": True, **options}
        return self.call(lifecycle.release, task, claim, **options)

    def suspend(self, task: UUID, claim: int = 1, children: Sequence[str] = ()) -> list[UUID]:
        """Suspends a task for sub-tasks of these agents; returns their ids."""
        first = (self.sql("SELECT max(number) FROM steps WHERE task_id = :task", task=task) or 0) + 1
        wanted = [
            {"step": number, "name": name, "request_hash": str(number), "request": {"agent": name, "input": {}}}
            for number, name in enumerate(children, first)
        ]
        state = self.call(lifecycle.suspend, task, claim, {}, wanted)
        assert state == (State.WAITING if wanted else State.PENDING)
        with self.engine.connect() as connection:
            return list(
                connection.scalars(
                    text("SELECT child_id FROM steps WHERE task_id = :task AND number >= :first ORDER BY number"),
                    {"task": task, "first": first},
                )
            )

    def row(self, task: UUID) -> dict[str, Any]:
        """The task as it stands."""
        return self.call(get_task, task)

    def state(self, task: UUID) -> str:
        """Where the task is."""
        return str(self.row(task)["state"])

    @contextmanager
    def locked(self, task: UUID) -> Any:
        """Holds the task's status row, as a long transaction would."""
        with self.engine.begin() as connection:
            connection.execute(text("SELECT 1 FROM task_status WHERE task_id = :task FOR UPDATE"), {"task": task})
            yield


def at_once(*calls: Callable[[], Result]) -> list[Result]:
    """Calls all in threads of their own, and returns their values in order."""
    with ThreadPoolExecutor(len(calls)) as threads:
        return [future.result(60) for future in [threads.submit(call) for call in calls]]


def execute(connection: Connection, statement: str, **values: Any) -> Any:
    """Runs one statement."""
    return connection.execute(text(statement), values)
