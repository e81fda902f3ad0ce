"""Drive a task through its life, one database call at a time, without orchestrator and worker processes."""

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
from shared.tasks.submission import submit_within

Result = TypeVar("Result")


class LifecycleDriver:
    """One registered worker and the steps that a minion or the orchestrator takes; each call is one transaction."""

    def __init__(self, engine: Engine, *capabilities: str) -> None:
        self.engine = engine
        self.worker = self.new_worker(*(capabilities or ("work",)))

    def call(self, step: Callable[..., Result], *arguments: Any, **options: Any) -> Result:
        """Call a function of `shared.tasks.lifecycle`, or another that takes a connection, and commit."""
        with self.engine.begin() as connection:
            return step(connection, *arguments, **options)

    def sql(self, statement: str, **values: Any) -> Any:
        """Run a statement and commit; return the first column of its first row, if there is one."""
        with self.engine.begin() as connection:
            result = connection.execute(text(statement), values)
            return result.scalar() if result.returns_rows else None

    def new_worker(self, *capabilities: str) -> UUID:
        """Register a live worker with free slots."""
        worker = uuid4()
        self.sql(
            "INSERT INTO workers (id, name, capabilities, slots, pool, host, pid, version, idle_since) "
            "VALUES (:id, 'driver', :capabilities, 1000, 'prefork', 'here', 1, '0', now())",
            id=worker,
            capabilities=list(capabilities),
        )
        return worker

    def submit(self, agent: str | None = "A", **fields: Any) -> UUID:
        """Submit a task."""
        return self.call(submit_within, [TaskRequest(agent=agent, **fields)], submitted_by="test")[0].task_id

    def dispatch(self) -> list[Dispatched]:
        """Run one round of the dispatcher, without a broker."""
        prepare_pending(self.engine)
        # The driver sends no heartbeats, and a slow machine is no lost worker.
        return self.call(lifecycle.dispatch, lease=3600.0, window=1000)

    def claim(self, task: UUID, expected: int | None = None, worker: UUID | None = None) -> dict[str, Any] | None:
        """Claim a queued task, under the claim number that its message would carry."""
        number = self.row(task)["claim"] if expected is None else expected
        return self.call(lifecycle.claim, task, number, worker or self.worker)

    def run(self, agent: str = "A", **fields: Any) -> UUID:
        """Submit a task, dispatch and claim it."""
        task = self.submit(agent, **fields)
        self.again(task)
        return task

    def again(self, task: UUID) -> int:
        """Dispatch and claim a pending task; return its claim number."""
        self.dispatch()
        claimed = self.claim(task)
        assert claimed is not None
        return int(claimed["claim"])

    def finish(self, task: UUID, claim: int = 1, state: State = State.SUCCEEDED, **result: Any) -> State | None:
        """End a running task."""
        if state == State.FAILED:
            result.setdefault("error", {"type": "test", "message": "It failed."})
        return self.call(lifecycle.finish, task, claim, state, result)

    def release(self, task: UUID, claim: int = 1, **options: Any) -> State | None:
        """Release a running task."""
        options = {"how": "retried", "charged": True, **options}
        return self.call(lifecycle.release, task, claim, **options)

    def suspend(self, task: UUID, claim: int = 1, children: Sequence[str] = ()) -> list[UUID]:
        """Suspend a task for sub-tasks of these agents; return their ids."""
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
        """Return the task."""
        return self.call(get_task, task)

    def state(self, task: UUID) -> str:
        """Return the state of the task."""
        return str(self.row(task)["state"])

    @contextmanager
    def locked(self, task: UUID) -> Any:
        """Lock the task's status row, as a long transaction would."""
        with self.engine.begin() as connection:
            connection.execute(text("SELECT 1 FROM task_status WHERE task_id = :task FOR UPDATE"), {"task": task})
            yield


def concurrently(*calls: Callable[[], Result]) -> list[Result]:
    """Call all of them in threads, at the same time; return their values in order."""
    with ThreadPoolExecutor(len(calls)) as threads:
        return [future.result(60) for future in [threads.submit(call) for call in calls]]


def execute(connection: Connection, statement: str, **values: Any) -> Any:
    """Run one statement."""
    return connection.execute(text(statement), values)
