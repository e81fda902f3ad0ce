"""Tasks in the form that the client returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar, cast

from minions.errors import NotConfigured, TaskFailed
from minions.typed_output import read_output

if TYPE_CHECKING:
    from typing_extensions import TypeVar as WithDefault

    Output = WithDefault("Output", default=Any)  # `AsyncTask` alone is `AsyncTask[Any]`
else:
    Output = TypeVar("Output")

FINAL = frozenset({"succeeded", "failed", "cancelled", "expired"})
TIMES = frozenset({"due_at", "deadline", "created_at", "queued_at", "updated_at", "finished_at"})


class Waiter(Protocol):
    """The methods of a client that tasks use."""

    async def wait(
        self, task: AsyncTaskSummary, timeout: float | None = None, *, output: type[Output] | None = None
    ) -> AsyncTask[Output]:
        """Wait until a task has ended."""


class _Bound:
    """The client that returned a task, and the type of its output that the caller named.

    They are not fields: copies, pickles and comparisons of tasks exclude them.
    """

    __slots__ = ("_client", "_output_type")

    _client: Waiter
    _output_type: Any

    def _waiter(self, task: str) -> Waiter:
        client: Waiter | None = getattr(self, "_client", None)
        if client is None:
            raise NotConfigured(f"Task {task} was not read by a client: call `client.wait(task)` instead.")
        return client

    def _bind(self, client: Waiter | None, output_type: Any) -> None:
        if client is not None:
            object.__setattr__(self, "_client", client)
        object.__setattr__(self, "_output_type", output_type)


@dataclass(frozen=True, slots=True, kw_only=True)
class AsyncTaskSummary(_Bound):
    """A task in a list: without its input and messages, which `AsyncClient.get` returns, and without its output
    unless the list included outputs.

    States are scheduled, pending, queued, running, waiting, and finally succeeded, failed, cancelled or expired.
    """

    id: str
    agent: str | None
    state: str
    created_at: datetime
    namespace: str = "default"
    agent_version: int | None = None
    capability: str | None = None
    priority: int = 0
    error: dict[str, Any] | None = None
    error_fingerprint: str | None = None
    conversation_id: str | None = None
    key: str | None = None
    labels: dict[str, str]
    parent_id: str | None = None
    root_id: str
    depth: int = 0
    replay_of: str | None = None
    submitted_by: str | None = None
    claim: int = 0
    attempts: int = 0
    losses: int = 0
    worker_id: str | None = None
    open_waits: int = 0
    wait_reason: str | None = None
    due_at: datetime | None = None
    cancel_requested: bool = False
    deadline: datetime | None = None
    queued_at: datetime | None = None
    updated_at: datetime | None = None
    finished_at: datetime | None = None
    output: Any = None

    @property
    def final(self) -> bool:
        """True if the task has reached a final state."""
        return self.state in FINAL

    @property
    def succeeded(self) -> bool:
        """True if the task succeeded."""
        return self.state == "succeeded"

    async def wait(self, timeout: float | None = None) -> AsyncTask:
        """Wait until the task has ended; see `AsyncClient.wait`. This object itself does not change.

        Raises:
            WaitTimeout: the time is up; the task continues.
        """
        return await self._waiter(self.id).wait(self, timeout)

    async def result(self, timeout: float | None = None) -> Any:
        """Wait until the task has ended and return its output.

        Raises:
            TaskFailed: it did not succeed.
            WaitTimeout: the time is up; the task continues.
        """
        return await (await self.wait(timeout)).result()

    @classmethod
    def of(cls, data: Mapping[str, Any], client: Waiter | None = None, output_type: Any = None) -> Self:
        """Build a task from the API's JSON. Members that this release does not know are left out."""
        known = {field.name for field in fields(cls)}
        task = cls(**{name: _value(name, value) for name, value in data.items() if name in known})
        task._bind(client, output_type)
        return task


@dataclass(frozen=True, slots=True, kw_only=True)
class AsyncTask(AsyncTaskSummary, Generic[Output]):
    """A task with all its details.

    `output` is the JSON; `result()` returns it as the type that the caller named, such as `submit(…, output=Verdict)`.
    """

    input: Any = None
    messages: list[Any] | None = None
    origin_id: str | None = None
    agent_version_id: str | None = None
    traceparent: str | None = None
    budget: dict[str, Any] | None = None
    routing: dict[str, Any] | None = None
    decision: dict[str, Any] | None = None
    """Decision made by `AsyncClient.decide`: `step`, `name`, `proposal`, `verdict`, `value`."""

    async def wait(self, timeout: float | None = None) -> AsyncTask[Output]:
        """Wait until the task has ended; see `AsyncClient.wait`. This object itself does not change.

        Raises:
            WaitTimeout: the time is up; the task continues.
        """
        return await self._waiter(self.id).wait(self, timeout, output=getattr(self, "_output_type", None))

    async def result(self, timeout: float | None = None) -> Output:
        """Wait until the task has ended and return its output.

        Raises:
            TaskFailed: it did not succeed.
            WaitTimeout: the time is up; the task continues.
            OutputMismatch: its output is not of the type that the caller named.
        """
        if self.succeeded:
            return cast(Output, read_output(self.output, getattr(self, "_output_type", None), task=self))
        if not self.final:
            return await (await self.wait(timeout)).result()
        why = (self.error or {}).get("message") or f"Task {self.id} is {self.state}."
        raise TaskFailed(why, task=self)


def _value(name: str, value: Any) -> Any:
    return datetime.fromisoformat(value) if name in TIMES and value is not None else value
