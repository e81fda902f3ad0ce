"""Submitting tasks and waiting for their ends, one or many, as methods of the client."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence, Sized
from datetime import datetime
from itertools import islice
from typing import Any, Final, Literal, overload
from uuid import UUID, uuid4

from minions.aio.task import AsyncTask, AsyncTaskSummary, Output
from minions.aio.transport import AsyncTransport
from minions.current_span import current_traceparent
from minions.errors import InvalidInput, MinionsError
from minions.typed_output import check_type
from minions.waiting import WaitEnd
from minions.wire import given, segment, to_json

BULK_TASKS = 10_000
BULK_BYTES = 16 << 20
BULK_SECONDS = 120.0  # the API checks every input against its schema
WAIT_TASKS = 1000  # of one request that waits
METHOD_NOT_ALLOWED = 405

TaskId = str | UUID | AsyncTaskSummary


class NotGiven:
    """Sentinel for an omitted argument, as distinct from `None`."""


NOT_GIVEN: Final = NotGiven()


class AsyncSubmissions:
    """The methods of `minions.AsyncClient` that submit tasks and wait for them."""

    _transport: AsyncTransport
    _waits_together = True
    """False once a server of an earlier release has refused to wait for many tasks in one request."""

    async def submit(
        self,
        agent: str | None = None,
        input: Any = NOT_GIVEN,
        *,
        messages: Sequence[Any] | None = None,
        capability: str | None = None,
        idempotency_key: str | None = None,
        key: str | None = None,
        labels: Mapping[str, str] | None = None,
        priority: int | None = None,
        run_at: datetime | str | None = None,
        deadline: datetime | str | None = None,
        conversation_id: str | None = None,
        traceparent: str | None = None,
        namespace: str | None = None,
        unique_key: str | None = None,
        unique_while: str | None = None,
        budget: Mapping[str, Any] | None = None,
        lane: str | None = None,
        wait: float = 0.0,
        output: type[Output] | None = None,
    ) -> AsyncTask[Output]:
        """Submit one task.

        Args:
            agent: its name; alternatively a `capability` that one agent offers, or `messages` for routing.
            input: JSON that matches the agent's input schema.
            messages: `{"role", "content"}` objects, or text. The content is text, or a list of blocks as the Messages
                API takes them: `text`, `image`, `document`, `search_result`, `tool_use`, `tool_result`.
            idempotency_key: the same key and payload return the same task, however often it is submitted.
            key: the tenant.
            priority: from -100 to 100; more urgent tasks run sooner.
            run_at: earliest start, with a time zone.
            deadline: the task expires if it is not done by then.
            traceparent: the span that the task's trace continues (W3C Trace Context); by default the current one, if
                the process uses OpenTelemetry.
            unique_key: while a task holds it, this returns that task.
            unique_while: how long it holds the key: `pending` (until it first starts) or `running` (until it ends; the
                default).
            budget: limits for it and everything below it: `{"dollars": 0.5, "tokens": …, "steps": …, "seconds": …,
                "on_breach": "ask" or "fail"}`.
            lane: how its model calls are made: `direct`, `batch` (within 24 hours, at half the price) or `auto` (by its
                deadline); by default as its agent says.
            wait: seconds to wait for the end of the task, up to 60. A task that ends within them is returned with its
                output, by one request in place of two.
            output: the type that `result()` returns, checked by Pydantic: a model, a dataclass, a TypedDict, `list[…]`
                of them; by default the JSON as it is. Here and in the methods below.

        Raises:
            UnknownAgent, UnknownCapability, InvalidInput, IdempotencyConflict, TooLarge: the API refused the task.
            Unauthorized, Unavailable: the API did not process the request.
            NotConfigured: `output` is given, and Pydantic is not installed.
        """
        check_type(output)
        request = given(
            agent=agent,
            messages=None if messages is None else list(messages),
            capability=capability,
            idempotency_key=idempotency_key or str(uuid4()),
            key=key,
            labels=labels,
            priority=priority,
            run_at=run_at,
            deadline=deadline,
            conversation_id=conversation_id,
            traceparent=traceparent or current_traceparent(),
            namespace=namespace,
            unique_key=unique_key,
            unique_while=unique_while,
            budget=budget,
            lane=lane,
        )
        if not isinstance(input, NotGiven):
            request["input"] = input
        sent = to_json(request, what="The task")
        params = {"wait": wait or None}
        answer = await self._transport.post("/v1/tasks", sent, safe=True, params=params, extra_time=wait)
        return AsyncTask.of(answer, self, output)

    async def submit_many(self, tasks: Iterable[Mapping[str, Any]]) -> list[str]:
        """Submit tasks, each a mapping with the arguments of `submit`; return their ids in order.

        Up to 10,000 tasks (and 16 MB) are one request, which is accepted all or none; more are several requests. If a
        later one is refused, the error's `detail["submitted"]` holds the ids that were accepted before it.

        Raises:
            InvalidInput and the other errors of `submit`; `detail["index"]` counts within the refused request.
        """
        ids: list[str] = []
        for batch in _batches(tasks):
            try:
                body = '{"tasks":[' + ",".join(batch) + "]}"
                answer = await self._transport.post("/v1/tasks/bulk", body, safe=True, extra_time=BULK_SECONDS)
            except MinionsError as error:
                error.detail["submitted"] = ids
                raise
            ids += [task["id"] for task in answer["tasks"]]
        return ids

    async def get(self, task: TaskId, *, output: type[Output] | None = None) -> AsyncTask[Output]:
        """Return one task.

        Args:
            task: here and in the methods below: a task, its id, or at least the first 8 characters of its id.

        Raises:
            NotFound: there is no task with that id.
            AmbiguousId: several ids begin with these characters; the message lists them.
        """
        check_type(output)
        return AsyncTask.of(await self._transport.get(task_path(task)), self, output)

    async def wait(
        self, task: TaskId, timeout: float | None = None, *, output: type[Output] | None = None
    ) -> AsyncTask[Output]:
        """Wait until a task has ended, with any outcome: see `AsyncTask.succeeded` and `AsyncTask.result()`.

        Args:
            timeout: seconds; None waits indefinitely.

        Raises:
            WaitTimeout: the time is up; the task continues.
            NotFound: there is no task with that id.
        """
        check_type(output)
        end = WaitEnd(timeout)
        while True:
            left = end.next_poll()
            answer = await self._transport.get(task_path(task), params={"wait": round(left, 3)}, extra_time=left)
            found = AsyncTask.of(answer, self, output)
            if found.final:
                return found
            end.check(found)
            task = found  # by its full id: by now, another task may have the same first characters

    async def wait_many(
        self, tasks: Iterable[TaskId], timeout: float | None = None, *, output: type[Output] | None = None
    ) -> list[AsyncTask[Output]]:
        """Wait until all tasks have ended, and return them in the order in which they were given.

        One request waits for up to 1,000 tasks.

        Args:
            timeout: seconds for all of them together; None waits indefinitely.

        Raises:
            WaitTimeout: the time is up; the tasks continue. `detail["task"]` is the first one that has not ended.
            NotFound: there is no task with one of the ids.
        """
        check_type(output)
        end = WaitEnd(timeout)
        asked = [await self._whole_id(task) for task in tasks]
        ended: dict[str, AsyncTask[Output]] = {}
        left = list(dict.fromkeys(asked))
        while left:
            for task in await self._ended_of(left[:WAIT_TASKS], end, "all", output):
                ended[task.id] = task
            left = [task_id for task_id in left if task_id not in ended]
            if left and end.is_over:
                end.check(await self.get(left[0]))
        return [ended[task_id] for task_id in asked]

    @overload
    def map(
        self,
        agent: str,
        inputs: Iterable[Any],
        *,
        failures: Literal["raise"] = "raise",
        output: type[Output] | None = None,
        ordered: bool = True,
        in_flight: int = 200,
        idempotency_prefix: str | None = None,
        progress: Callable[[int, int | None], None] | None = None,
        timeout: float | None = None,
        **options: Any,
    ) -> AsyncGenerator[Output, None]: ...

    @overload
    def map(
        self,
        agent: str,
        inputs: Iterable[Any],
        *,
        failures: Literal["yield"],
        output: type[Output] | None = None,
        ordered: bool = True,
        in_flight: int = 200,
        idempotency_prefix: str | None = None,
        progress: Callable[[int, int | None], None] | None = None,
        timeout: float | None = None,
        **options: Any,
    ) -> AsyncGenerator[Output | MinionsError, None]: ...

    async def map(
        self,
        agent: str,
        inputs: Iterable[Any],
        *,
        failures: Literal["raise", "yield"] = "raise",
        output: type[Output] | None = None,
        ordered: bool = True,
        in_flight: int = 200,
        idempotency_prefix: str | None = None,
        progress: Callable[[int, int | None], None] | None = None,
        timeout: float | None = None,
        **options: Any,
    ) -> AsyncGenerator[Any, None]:
        """Submit a task for each input, and yield the results.

        Tasks are submitted in batches, as the results are read. If the iteration ends early, those that were submitted
        continue.

        Args:
            failures: `raise` the TaskFailed of a task that did not succeed, or `yield` it in place of the result. Its
                `detail["index"]` is the position of the input. The same holds for an OutputMismatch.
            output: the type of the results; see `submit`.
            ordered: yield in the order of the inputs; False yields each result as soon as it is known.
            in_flight: the most tasks that are submitted and whose results are not read yet, up to 1,000.
            idempotency_prefix: the tasks get the idempotency keys `PREFIX-0`, `PREFIX-1`, …: the same call, repeated
                after an interruption, finds the tasks and results that exist, and submits only the others.
            progress: called with the number of ended tasks, and of all inputs (None if `inputs` has no length).
            timeout: seconds for everything.
            options: for each task, as for `submit`: `priority`, `key`, `labels`, …

        Raises:
            TaskFailed, OutputMismatch: see `failures`.
            WaitTimeout: the time is up; the tasks continue.
            InvalidInput and the other errors of `submit`; `detail["index"]` is the position of the input.
        """
        if not 1 <= in_flight <= WAIT_TASKS:
            raise InvalidInput(f"in_flight is {in_flight}: it must be from 1 to {WAIT_TASKS:,}.")
        if failures not in ("raise", "yield"):
            raise InvalidInput(f"failures is {failures!r}: it must be 'raise' or 'yield'.")
        check_type(output)
        end, window = WaitEnd(timeout), _Window(ordered)
        total = len(inputs) if isinstance(inputs, Sized) else None
        numbered = enumerate(inputs)
        while True:
            batch = list(islice(numbered, in_flight - window.size))
            if batch:
                requests = _requests(agent, batch, idempotency_prefix, options)
                window.add(batch[0][0], await self._submit_batch(batch[0][0], requests))
            elif not window.size:
                return
            for task in await self._ended_of(list(window.open), end, "any", output):
                window.end(task)
            if progress is not None:
                progress(window.ended, total)
            for index, task in window.ready():
                try:
                    result: Any = await task.result()
                except MinionsError as error:
                    error.detail["index"] = index
                    if failures == "raise":
                        raise
                    result = error
                yield result
            if window.open and end.is_over:
                end.check(await self.get(next(iter(window.open))))

    async def _submit_batch(self, first: int, requests: list[dict[str, Any]]) -> list[str]:
        """Submit tasks of consecutive inputs.

        Args:
            first: the position of the first one's input.
        """
        try:
            return await self.submit_many(requests)
        except MinionsError as error:
            if "index" in error.detail:
                error.detail["index"] += first + len(error.detail["submitted"])
            raise

    async def _ended_of(
        self, ids: list[str], end: WaitEnd, until: Literal["all", "any"], output: type[Output] | None
    ) -> list[AsyncTask[Output]]:
        """Return those of the tasks that have ended, after a wait for all or any of them."""
        seconds = end.next_poll()
        if self._waits_together:
            body = to_json({"ids": ids, "until": until, "wait": round(seconds, 3)}, what="The wait")
            try:
                answer = await self._transport.post("/v1/tasks/wait", body, safe=True, extra_time=seconds)
                return [AsyncTask.of(task, self, output) for task in answer["ended"]]
            except MinionsError as error:
                if error.status != METHOD_NOT_ALLOWED:
                    raise
                self._waits_together = False
        params = {"wait": round(seconds, 3)}
        answer = await self._transport.get(task_path(ids[0]), params=params, extra_time=seconds)
        found = AsyncTask.of(answer, self, output)
        return [found] if found.final else []

    async def _whole_id(self, task: TaskId) -> str:
        """Return the id as the API writes it. The first characters of an id are looked up."""
        try:
            return str(UUID(id_of(task)))
        except ValueError:
            return (await self.get(task)).id


class _Window:
    """The tasks of a `map` that are submitted, and whose results were not yielded.

    Attributes:
        open: the positions of the inputs of each task that has not ended. Several inputs may be one task: see
            `unique_key`.
        ended: the number of inputs whose tasks have ended.
    """

    def __init__(self, ordered: bool) -> None:
        self.open: dict[str, list[int]] = {}
        self.ended = 0
        self._ordered = ordered
        self._next = 0
        self._held: dict[int, AsyncTask[Any]] = {}

    @property
    def size(self) -> int:
        """The number of inputs in the window."""
        return sum(map(len, self.open.values())) + len(self._held)

    def add(self, first: int, ids: list[str]) -> None:
        """Add the tasks of consecutive inputs."""
        for index, task_id in enumerate(ids, first):
            self.open.setdefault(task_id, []).append(index)

    def end(self, task: AsyncTask[Any]) -> None:
        """Note that a task has ended."""
        for index in self.open.pop(task.id, ()):
            self._held[index] = task
            self.ended += 1

    def ready(self) -> Iterator[tuple[int, AsyncTask[Any]]]:
        """Remove the tasks whose turn it is, with the positions of their inputs."""
        while self._held and (not self._ordered or self._next in self._held):
            index = self._next if self._ordered else next(iter(self._held))
            yield index, self._held.pop(index)
            self._next += 1


def id_of(task: TaskId) -> str:
    """Return the id of a task, as it was given."""
    return task.id if isinstance(task, AsyncTaskSummary) else str(task)


def task_path(task: TaskId, part: str | None = None) -> str:
    """Return the path of a task, or of a part of it."""
    path = f"/v1/tasks/{segment(id_of(task))}"
    return f"{path}/{part}" if part else path


def _requests(
    agent: str, batch: list[tuple[int, Any]], prefix: str | None, options: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return the requests for numbered inputs."""
    keys = {} if prefix is None else {index: f"{prefix}-{index}" for index, _ in batch}
    return [{**options, "agent": agent, "input": each, "idempotency_key": keys.get(index)} for index, each in batch]


def _batches(tasks: Iterable[Mapping[str, Any]]) -> Iterator[list[str]]:
    """Yield the tasks as JSON texts, in batches that fit one request."""
    batch: list[str] = []
    size = 0
    for index, task in enumerate(tasks):
        text = _task_text(index, task)
        if batch and (len(batch) == BULK_TASKS or size + len(text) > BULK_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(text)
    if batch:
        yield batch


def _task_text(index: int, task: Mapping[str, Any]) -> str:
    if not isinstance(task, Mapping):
        raise InvalidInput(
            f"tasks[{index}] is {type(task).__name__}: a task must be a mapping with the arguments of submit."
        )
    request = {name: value.isoformat() if isinstance(value, datetime) else value for name, value in task.items()}
    if request.get("idempotency_key") is None:
        request["idempotency_key"] = str(uuid4())
    if request.get("traceparent") is None and (span := current_traceparent()) is not None:
        request["traceparent"] = span
    return to_json(request, what=f"tasks[{index}]")
