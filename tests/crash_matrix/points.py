"""Fault points inside the processes of the product, patched in from outside: the product does not know them.

There is a point wherever a task changes: before the statement and after its commit, at every function of
`shared.tasks.lifecycle`. So every step has points at its beginning and end, whichever code writes it. A process that
reaches a point reports that to the test, and continues when the test answers.
"""

from __future__ import annotations

import inspect
import json
import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg
from sqlalchemy.exc import OperationalError

ADDRESS = "CRASH_POINTS"
LOST = b"!"
# They change nothing, are called all the time, or have no task yet.
LEFT_OUT = frozenset({"is_cancelled", "accept_now"})
_current = threading.local()


def at(step: str, where: str, task: object = None) -> bool:
    """Report this process's position to the test, and wait for permission to continue.

    Args:
        step: the current step: a tool's name, `model`, `claim`, …
        where: the progress of the step.
        task: the task of the step, if it is known.

    Returns:
        whether the answer of the statement that was committed here is to be lost.
    """
    hit = {"step": step, "where": where, "task": task and str(task), "pid": os.getpid()}
    with suppress(OSError), socket.socket(socket.AF_UNIX) as line:
        line.connect(os.environ[ADDRESS])
        line.sendall(json.dumps(hit).encode() + b"\n")
        return line.recv(1) == LOST
    return False


def watch(role: str) -> None:
    """Add the points to this process: `worker` or `orchestrator`."""
    _watch_lifecycle()
    _watch_batches()
    _watch_commits()
    if role == "worker":
        _watch_functions()
        _watch_programs()
    else:
        _watch_messages()


def label(step: dict[str, Any]) -> str:
    """Return a journal step's name in the table: each tool is called once, a model several times."""
    return f"model, step {step['number']}" if step["kind"] == "model_call" else str(step["name"])


def _watch_lifecycle() -> None:
    from shared.tasks import lifecycle

    for name, function in inspect.getmembers(lifecycle, inspect.isfunction):
        parameters = list(inspect.signature(function).parameters)
        if not name.startswith("_") and name not in LEFT_OUT and parameters[:2] == ["connection", "task"]:
            setattr(lifecycle, name, _watched(name, function, lambda task: task))
    # A pack's points are about its first task.
    lifecycle.claim_pack = _watched("claim_pack", lifecycle.claim_pack, lambda tasks: tasks[0][0])
    lifecycle.finish_pack = _watched("finish_pack", lifecycle.finish_pack, lambda ends: json.loads(ends)[0]["task"])
    wake_due = lifecycle.wake_due

    def woken(connection: Any, **options: Any) -> int:
        number = wake_due(connection, **options)
        if number:
            at("wake", "after commit")
        return number

    lifecycle.wake_due = woken


def _watch_batches() -> None:
    """Add points to the batch lane: to a call's begin and wait, and where the orchestrator writes about a batch."""
    from shared.tasks import batches

    for name in ("begin", "wait"):
        setattr(batches, name, _watched(f"batch {name}", getattr(batches, name), lambda task: task))
    for name in ("gather", "created", "refused", "answer", "end"):
        setattr(batches, name, _reported(f"batch {name}", getattr(batches, name)))


def _reported(step: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Add points to a function of the orchestrator that is not about one task, if it does something."""

    def call(connection: Any, *arguments: Any, **options: Any) -> Any:
        if step != "batch gather":
            at(step, "before commit")
        result = function(connection, *arguments, **options)
        if result and at(step, "after commit"):
            connection.invalidate()
            raise OperationalError(None, None, _answer_lost())
        return result

    return call


def _watched(name: str, function: Callable[..., Any], task_of: Callable[[Any], object]) -> Callable[..., Any]:
    def call(connection: Any, subject: Any, *arguments: Any, **options: Any) -> Any:
        step, stage = _step_of(name, arguments, options)
        task = task_of(subject)
        at(step, f"{stage}before commit", task)
        result = function(connection, subject, *arguments, **options)
        if result in (None, [], set()) or (isinstance(result, dict) and "refused" in result):
            return result
        if connection.connection.dbapi_connection.autocommit:
            if at(step, f"{stage}after commit", task):
                connection.invalidate()
                raise OperationalError(None, None, _answer_lost())
        else:
            _uncommitted().append((step, f"{stage}after commit", task))
        return result

    return call


def _step_of(name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> tuple[str, str]:
    """Return the step that a lifecycle function is about, and its progress."""
    match name:
        case "write_steps":
            written = arguments[1][-1]
            return label(written), f"{written['status']}: "
        case "suspend":
            _, _, children, waits = arguments
            return f"suspend for {'sub-task' if children else waits[0]['name']}", ""
        case "release":
            return f"give back ({options['how']})", ""
        case "decide":
            return f"decide ({options.get('verdict') or arguments[0]})", ""
    return name, ""


def _watch_commits() -> None:
    """Add points to the functions that are called inside a transaction."""
    from sqlalchemy.engine.default import DefaultDialect

    commit = DefaultDialect.do_commit

    def committed(self: Any, connection: Any) -> None:
        commit(self, connection)
        while waiting := _uncommitted():
            if at(*waiting.pop(0)):
                waiting.clear()
                # Not the pool's wrapper, which would be empty then.
                connection.dbapi_connection.close()
                raise _answer_lost()

    DefaultDialect.do_commit = committed  # type: ignore[method-assign]


def _answer_lost() -> psycopg.OperationalError:
    """Return the driver's error for a connection that is cut after the server's commit and before its answer."""
    return psycopg.OperationalError("the connection was cut after the commit")


def _uncommitted() -> list[tuple[str, str, object]]:
    if not hasattr(_current, "uncommitted"):
        _current.uncommitted = []
    found: list[tuple[str, str, object]] = _current.uncommitted
    return found


def _watch_functions() -> None:
    """Add points to the sandboxed call: before, while the function runs, after."""
    from shared.sandbox.exchange import Conversation
    from shared.sandbox.host import Sandbox
    from workers.tools import function as tool

    run, attempt, send = tool.run_function, Sandbox._attempt, Conversation._send

    def ran(function: Any, *arguments: Any, **options: Any) -> Any:
        _current.function = function.name, options.get("task_id")
        at(function.name, "called", options.get("task_id"))
        result = run(function, *arguments, **options)
        at(function.name, "returned", options.get("task_id"))
        return result

    def attempted(self: Any, *arguments: Any) -> Any:
        _current.running = True
        return attempt(self, *arguments)

    def sent(self: Any, request: bytes) -> Any:
        limit = send(self, request)
        if getattr(_current, "running", False):
            _current.running = False
            at(_current.function[0], "runs in the sandbox", _current.function[1])
        return limit

    tool.run_function = ran  # type: ignore[assignment]
    Sandbox._attempt = attempted  # type: ignore[method-assign]
    Conversation._send = sent  # type: ignore[method-assign]


def _watch_programs() -> None:
    """Add points to a program: before it runs, and when it has ended or its task must wait."""
    from workers.code_mode.tool import ProgramTool

    run = ProgramTool._run

    def ran(self: Any, code: str, begun: Any, task: Any) -> Any:
        at(self.name, "called", task.id)
        end = run(self, code, begun, task)
        at(self.name, "returned", task.id)
        return end

    ProgramTool._run = ran  # type: ignore[method-assign]


def _watch_messages() -> None:
    """Add points between the commit that queues tasks and their messages, and after these.

    Tasks without a model are packed at once, without a history of short ones.
    """
    from orchestrator import dispatcher, packing
    from orchestrator.maintenance import republisher

    publish_packs = dispatcher.publish_packs

    def published(app: Any, packs: Any) -> None:
        first = packs[0][0].task_id
        at("dispatch", "committed, not published", first)
        publish_packs(app, packs)
        at("dispatch", "published", first)

    packing._look = lambda *_: 0.001
    dispatcher.publish_packs = published
    republisher.publish = lambda app, tasks: published(app, [[task] for task in tasks])
