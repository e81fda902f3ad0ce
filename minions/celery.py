"""Celery tasks that run as durable tasks of Minions: `durable_task`, for services that move from Celery.

    from celery import shared_task
    from minions.celery import durable_task

    @durable_task
    @shared_task(autoretry_for=(ConnectionError,), retry_backoff=True)
    def send_receipt(order_id): ...

    send_receipt.delay(17)  # submits a task of the agent `send_receipt`

The package offers the function as a builtin tool, by an entry point of the group `minions.tools`:
`send_receipt = "shop.tasks:send_receipt.tool"`. `python -m minions.celery shop.tasks` prints the definitions of the
agents. This module imports Celery at the first use; the client does not depend on it.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from importlib import import_module
from math import ceil
from types import FunctionType
from typing import Any, Literal, overload

from minions.client import Client
from minions.errors import InvalidInput, MinionsError
from minions.results import GiveUp, retry_after
from minions.task import Task

Effect = Literal["pure", "idempotent", "unsafe"]

GUIDE = "docs/moving-from-celery.md"
MOST_ATTEMPTS = 100  # of an agent
STATES = {
    "succeeded": "SUCCESS",
    "failed": "FAILURE",
    "cancelled": "REVOKED",
    "expired": "REVOKED",
    "running": "STARTED",
}
CANVAS = frozenset({"s", "si", "signature", "subtask", "chunks", "map", "starmap", "replace", "add_to_chord"})
# How Celery sends a message and stores a result: of no importance here.
HARMLESS = frozenset({"serializer", "compression", "retry", "retry_policy", "ignore_result", "connection", "producer"})


@overload
def durable_task(task: Any) -> DurableTask: ...
@overload
def durable_task(
    *, agent: str | None = None, capability: str = "default", effect: Effect = "idempotent"
) -> Callable[[Any], DurableTask]: ...
def durable_task(
    task: Any = None, *, agent: str | None = None, capability: str = "default", effect: Effect = "idempotent"
) -> Any:
    """Make a Celery task durable: `delay` and `apply_async` submit a task to Minions. Put it above Celery's decorator.

    Args:
        agent: the name of the agent and of its builtin tool; by default the name of the function.
        capability: of the workers that run it.
        effect: `idempotent`: the function may run again after a crash, as with `acks_late`. `unsafe`: a person decides
            after a crash or an error. `pure`: it changes nothing.

    Raises:
        TypeError: it is not above Celery's decorator.
    """
    if task is None:
        return lambda decorated: DurableTask(decorated, agent, capability, effect)
    return DurableTask(task, agent, capability, effect)


class DurableTask:
    """A Celery task whose calls are tasks of Minions.

    Calling it runs the function here and now, as for a Celery task. Other attributes are those of the Celery task.
    """

    def __init__(self, task: Any, agent: str | None, capability: str, effect: Effect) -> None:
        # Any question but for the type would evaluate a task of `shared_task`, before its app exists.
        if type(task) is FunctionType:
            raise TypeError(
                f"@durable_task is below Celery's decorator of {task.__name__}: it must be the first line, above "
                "@app.task or @shared_task."
            )
        self._task = task
        self._agent = agent
        self.capability = capability
        self.effect = effect

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function here and now."""
        return self._task(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "_task":  # of a copy that is being made
            raise AttributeError(name)
        if name in CANVAS:
            raise InvalidInput(
                f"{self.agent} is durable, and Celery's canvas (.{name}) would not run it in Minions: use a chain of "
                f"agents, or Client.map. See {GUIDE}."
            )
        return getattr(self._task, name)

    @property
    def agent(self) -> str:
        """The name of the agent."""
        return self._agent or str(self._task.__name__)

    def delay(self, *args: Any, **kwargs: Any) -> DurableResult:
        """Submit a task with these arguments, which must be JSON.

        Raises:
            InvalidInput and the other errors of `Client.submit`.
        """
        return self.apply_async(args, kwargs)

    def apply_async(
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        task_id: str | None = None,
        *,
        countdown: float | None = None,
        eta: datetime | None = None,
        expires: float | datetime | None = None,
        priority: int | None = None,
        **options: Any,
    ) -> DurableResult:
        """Submit a task.

        Args:
            task_id: its idempotency key: the same one and the same arguments return the same task.
            countdown: seconds until its earliest start.
            eta: its earliest start.
            expires: seconds, or the time, until it must have ended.
            priority: from -100 to 100; more urgent tasks run sooner.
            options: those about Celery's messages have no effect.

        Raises:
            InvalidInput: the arguments do not fit the function or are not JSON, or an option has no equivalent.
            MinionsError: the task was refused; see `Client.submit`.
        """
        if refused := sorted(options.keys() - HARMLESS):
            raise InvalidInput(
                f"apply_async of {self.agent} got {', '.join(refused)}, which have no equivalent here: the agent's "
                f"definition has the capability (in place of a queue) and the time limits. See {GUIDE}."
            )
        try:
            bound = self._signature().bind(*(args or ()), **(kwargs or {}))
        except TypeError as error:
            raise InvalidInput(f"The arguments do not fit {self.agent}: {error}.") from None
        task = _client().submit(
            self.agent,
            dict(bound.arguments),
            idempotency_key=task_id,
            run_at=self._moment(countdown if eta is None else eta),
            deadline=self._moment(expires),
            priority=priority,
        )
        return DurableResult(task)

    def AsyncResult(self, task_id: str) -> DurableResult:
        """Return the result of a task that was submitted before, by the id of its `DurableResult`."""
        return DurableResult(_client().get(task_id))

    def tool(self, arguments: Mapping[str, Any], context: Any) -> Any:
        """Run the function as a builtin tool. `self.retry` and `autoretry_for` become attempts of the task.

        Raises:
            GiveUp: it raised an error that Celery would not retry.
        """
        from celery.exceptions import Retry, SoftTimeLimitExceeded

        signature = self._signature()
        bound = inspect.BoundArguments(signature, dict(arguments))
        args, kwargs = bound.args, bound.kwargs
        # As for `apply()`, `retry` then raises, and sends no message.
        request = {"id": context.task_id, "retries": context.attempt - 1, "is_eager": True, "called_directly": False}
        self._task.push_request(args=args, kwargs=kwargs, **request)
        try:
            return self._task.run(*args, **kwargs)
        except Retry as retry:
            again = signature.bind(*retry.sig.args, **retry.sig.kwargs).arguments
            if again != bound.arguments:
                raise InvalidInput(
                    f"{self.agent} retries with other arguments, which a durable task cannot: submit a new task."
                ) from retry
            return retry_after(_seconds_until(retry.when), f"{retry.exc!r}" if retry.exc else "It asked for a retry.")
        except SoftTimeLimitExceeded:
            raise
        except Exception as error:
            if self.effect == "unsafe":
                raise  # a person decides
            raise GiveUp(f"{type(error).__name__}: {error}") from error
        finally:
            self._task.pop_request()

    def definitions(self) -> list[dict[str, Any]]:
        """Return the definitions of the builtin tool and its agent."""
        parameters = self._signature().parameters.values()
        # `*args` and `**kwargs` of the function are a list and an object.
        kinds: dict[Any, dict[str, Any]] = {
            inspect.Parameter.VAR_POSITIONAL: {"type": "array"},
            inspect.Parameter.VAR_KEYWORD: {"type": "object"},
        }
        schema = {
            "type": "object",
            "properties": {each.name: kinds.get(each.kind, {}) for each in parameters},
            "required": [each.name for each in parameters if each.default is each.empty and each.kind not in kinds],
            "additionalProperties": False,
        }
        about = {
            "description": (inspect.getdoc(self._task.run) or f"The Celery task {self._task.name}.").split("\n")[0]
        }
        tool = {"kind": "tool", "name": self.agent, **about, "type": "builtin", "builtin": self.agent}
        agent = {"kind": "agent", "name": self.agent, **about, "type": "function", "tool": self.agent}
        return [
            {**tool, "effect": self.effect, "input_schema": schema},
            {**agent, "config": {"capabilities": [self.capability], **self._limits()}},
        ]

    def _limits(self) -> dict[str, Any]:
        retries = self._task.max_retries
        attempts = MOST_ATTEMPTS if retries is None else min(retries + 1, MOST_ATTEMPTS)
        limits = {}
        hard, soft = self._task.time_limit, self._task.soft_time_limit
        if soft or hard:  # an agent has both
            limits["soft_time_limit"] = ceil(soft or hard * 0.8)
        if hard:
            limits["time_limit"] = max(ceil(hard), limits["soft_time_limit"] + 1)
        return {"max_attempts": attempts, **limits}

    def _signature(self) -> inspect.Signature:
        return inspect.signature(self._task.run)

    def _moment(self, given: float | datetime | None) -> datetime | None:
        if given is None:
            return None
        if isinstance(given, datetime):
            return given if given.tzinfo else given.replace(tzinfo=self._task.app.timezone)
        return datetime.now(UTC) + timedelta(seconds=given)


class DurableResult:
    """The result of a task, with the methods of Celery's AsyncResult that have an equivalent."""

    def __init__(self, task: Task) -> None:
        self.task = task

    @property
    def id(self) -> str:
        """The id of the task."""
        return self.task.id

    task_id = id

    @property
    def state(self) -> str:
        """The current state in Celery's words: PENDING, STARTED, SUCCESS, FAILURE or REVOKED."""
        return STATES.get(self._now().state, "PENDING")

    status = state

    @property
    def result(self) -> Any:
        """The output of a task that succeeded, the TaskFailed of one that did not, None of one that has not ended."""
        task = self._now()
        if not task.final:
            return None
        try:
            return task.result()
        except MinionsError as error:
            return error

    def get(self, timeout: float | None = None, propagate: bool = True, **options: Any) -> Any:
        """Wait for the end, and return the output.

        Args:
            timeout: seconds; None waits indefinitely.
            propagate: raise TaskFailed if the task did not succeed; False returns it.
            options: of Celery's result backends; without effect.

        Raises:
            TaskFailed: the task did not succeed, and `propagate` is true.
            WaitTimeout: the time is up; the task continues.
        """
        self.task = _client().wait(self.task, timeout)
        if propagate:
            return self.task.result()
        return self.result

    wait = get

    def ready(self) -> bool:
        """Return whether the task has ended."""
        return self._now().final

    def successful(self) -> bool:
        """Return whether the task has succeeded."""
        return self._now().succeeded

    def failed(self) -> bool:
        """Return whether the task has failed."""
        return self._now().state == "failed"

    def revoke(self, **options: Any) -> None:
        """Cancel the task and everything below it. A running one is asked to stop."""
        self.task = _client().cancel(self.task)

    def forget(self) -> None:
        """Do nothing: the installation's retention removes tasks."""

    def __str__(self) -> str:
        return self.id

    def __repr__(self) -> str:
        return f"<DurableResult: {self.id}>"

    def _now(self) -> Task:
        if not self.task.final:
            self.task = _client().get(self.task)
        return self.task


def main(modules: list[str]) -> None:
    """Print the definitions of the durable tasks in modules, for `minion apply`, and their entry points."""
    found = {task: f"{module}:{name}.tool" for module in modules for name, task in _durable_in(module)}
    if not found:
        sys.exit("No durable task found. Name the modules that have them: python -m minions.celery shop.tasks")
    print("# For pyproject.toml, then install the package again:")
    print('# [project.entry-points."minions.tools"]')
    for task, place in found.items():
        print(f'# {task.agent} = "{place}"')
    for task in found:
        for definition in task.definitions():
            print(f"---\n{json.dumps(definition, indent=2)}")


def _durable_in(module: str) -> list[tuple[str, DurableTask]]:
    return [(name, value) for name, value in vars(import_module(module)).items() if isinstance(value, DurableTask)]


def _seconds_until(when: float | datetime | None) -> float:
    if isinstance(when, datetime):
        return max(0.0, (when - datetime.now(when.tzinfo)).total_seconds())
    return float(when or 0)


def _client() -> Client:
    return _client_of(os.getpid())  # connections must not be shared with a forked process


@lru_cache(maxsize=1)
def _client_of(process: int) -> Client:
    return Client()


if __name__ == "__main__":
    # The tasks are instances of the module under its own name, which is not this one.
    import_module("minions.celery").main(sys.argv[1:])
