"""The load of the mixed scenario: kinds of tasks that together use every feature, and their entry points."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from celery import Celery
from sqlalchemy import Engine, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB

from minions import Client
from shared.contracts.requests import TaskRequest
from shared.tasks.submission import submit_within
from tests.chaos.system import QUEUE, seconds

LABEL = "chaos"
LIMITED = {"limited": 2}  # tenant key: maximum of running tasks
CONVERSATIONS = 3
RESEND_SECONDS = 2.0
# Longer than in the other scenarios: up to 0.8 s, so that faults strike in the middle of calls.
SLOWER = 10
NEVER = "2999-01-01T00:00:00+00:00"

CONFIG = {"capabilities": [QUEUE], "max_attempts": 100, "retry_backoff": 0.2, "retry_backoff_max": 1.0}
COMMIT = {"kind": "tool", "type": "builtin", "builtin": "chaos-commit"}
AGENT = {"kind": "agent", "type": "function", "config": CONFIG}
MODEL = {"kind": "agent", "type": "agent", "model": "claude-sonnet-5-5"}
NUMBERS = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
SECONDS = {"type": "object", "properties": {"seconds": {"type": "number"}}, "required": ["seconds"]}
DEFINITIONS: Sequence[dict[str, Any]] = (
    {
        "kind": "function",
        "name": "double",
        "code": "def double(x):\n    return {'x': 2 * x}\n",
        "input_schema": NUMBERS,
    },
    {**COMMIT, "name": "commit", "effect": "idempotent", "input_schema": SECONDS},
    {**COMMIT, "name": "post", "effect": "unsafe"},
    {**COMMIT, "name": "pay", "effect": "idempotent", "approval": True},
    {"kind": "tool", "name": "double", "type": "function", "function": "double"},
    {**AGENT, "name": "plain", "tool": "commit"},
    {**AGENT, "name": "unsafe", "tool": "post"},
    {**AGENT, "name": "approved", "tool": "pay"},
    {**AGENT, "name": "function", "function": "double"},
    {
        **AGENT,
        "name": "parallel",
        "description": "Two sub-tasks at once",
        "relations": [{"agent": "plain"}, {"agent": "plain"}],
        "config": {**CONFIG, "chain_strategy": "parallel"},
    },
    {
        **AGENT,
        "name": "each",
        "description": "A sub-task for each item",
        "relations": [{"agent": "plain", "for_each": "items"}],
    },
    {
        **AGENT,
        "name": "pipeline",
        "description": "One function after the other",
        "relations": [{"agent": "function"}, {"agent": "function"}],
    },
    {**MODEL, "name": "thinker", "tools": ["commit"], "config": {**CONFIG, "max_tokens": 1000}},
    {**MODEL, "name": "spender", "tools": ["double"], "config": {**CONFIG, "max_tokens": 1000, "max_turns": 50}},
)
EFFECTIVE = ("plain", "unsafe", "approved", "thinker")  # agents whose every success has an effect
TICK = {"agent": "plain", "input": {"seconds": 0.01}}  # agents of the schedule's tasks


@dataclass(frozen=True)
class Kind:
    """Tasks of one kind.

    Attributes:
        share: number of tasks of this kind among `WHOLE` tasks.
        agent: their agent.
        make: returns the fields of a submission with this number.
        ends: the states in which they may end.
        replayed: whether some are replayed.
    """

    share: int
    agent: str
    make: Callable[[int], dict[str, Any]]
    ends: tuple[str, ...] = ("succeeded",)
    replayed: bool = False


def _working(number: int) -> dict[str, Any]:
    return {"input": {"seconds": SLOWER * seconds(number)}}


def _items(number: int, count: int) -> list[dict[str, float]]:
    return [{"seconds": SLOWER * seconds(number + index)} for index in range(count)]


KINDS = {
    "plain": Kind(7, "plain", _working, replayed=True),
    # Long enough to be struck in the middle by a fault.
    "unsafe": Kind(5, "unsafe", lambda number: {"input": {"seconds": 0.5 + seconds(number)}}),
    "parallel": Kind(2, "parallel", _working, replayed=True),
    "each": Kind(2, "each", lambda number: {"input": {"items": _items(number, 3)}}, replayed=True),
    "pipeline": Kind(1, "pipeline", lambda number: {"input": {"x": number}}),
    "function": Kind(2, "function", lambda number: {"input": {"x": number}}),
    "conversation": Kind(
        6, "plain", lambda number: {**_working(number), "conversation_id": f"talk-{number % CONVERSATIONS}"}
    ),
    "limited": Kind(5, "plain", lambda number: {**_working(number), "key": "limited"}),
    "approved": Kind(2, "approved", _working),
    "rejected": Kind(1, "approved", _working, ends=("failed",)),
    # Four items are four steps of the chain, and one of each sub-task: three above the budget.
    "steps": Kind(
        1,
        "each",
        lambda number: {"input": {"items": _items(number, 4)}, "budget": {"steps": 5, "on_breach": "fail"}},
        ends=("failed",),
    ),
    "tokens": Kind(
        1,
        "spender",
        lambda number: {"input": {"task": f"chaos-{number} spend"}, "budget": {"tokens": 2000, "on_breach": "fail"}},
        ends=("failed",),
    ),
    "model": Kind(2, "thinker", lambda number: {"input": {"task": f"chaos-{number} think"}}),
    "later": Kind(1, "plain", lambda number: {**_working(number), "run_at": NEVER}, ends=("cancelled",)),
    "cancelled": Kind(1, "plain", lambda number: {"input": {"seconds": 2.0}}, ends=("cancelled", "succeeded")),
}
WHOLE = sum(kind.share for kind in KINDS.values())
# One of each in turn, so that any part of the load includes every kind.
ORDER = [name for turn in range(WHOLE) for name, kind in KINDS.items() if turn < kind.share]


@dataclass(frozen=True)
class Submission:
    """One task to be submitted."""

    number: int
    kind: str

    @property
    def key(self) -> str:
        """The idempotency key; a UUID because it is a Celery id too."""
        return str(uuid5(NAMESPACE_URL, f"chaos-{self.number}"))

    def fields(self) -> dict[str, Any]:
        """Return the submitted fields without the key."""
        kind = KINDS[self.kind]
        labels = {LABEL: str(self.number), "kind": self.kind}
        return {"agent": kind.agent, "labels": labels, **kind.make(self.number)}


def submissions(count: int) -> list[Submission]:
    """Return the whole load."""
    return [Submission(number, ORDER[number % WHOLE]) for number in range(count)]


# ---------------------------------------------------------------------------------------------- entry points

EntryPoint = Callable[[Submission], None]
BY_SQL = text(
    "SELECT minion_submit(:agent, :input, labels => :labels, idempotency_key => :idempotency_key, key => :key, "
    "conversation_id => :conversation_id, run_at => CAST(:run_at AS timestamptz), budget => :budget)"
).bindparams(*(bindparam(name, type_=JSONB(none_as_null=True)) for name in ("input", "labels", "budget")))
OPTIONAL = dict.fromkeys(("key", "conversation_id", "run_at", "budget"))
ACCEPTED = text("SELECT 1 FROM tasks WHERE labels @> jsonb_build_object('celery_id', CAST(:id AS text))")


def by_python(engine: Engine) -> EntryPoint:
    """Return an entry point like a service that shares the database and the code."""

    def submit(one: Submission) -> None:
        with engine.begin() as connection:
            submit_within(connection, [TaskRequest(idempotency_key=one.key, **one.fields())], submitted_by="chaos")

    return submit


def by_sql(engine: Engine) -> EntryPoint:
    """Return an entry point through a transaction that calls `minion_submit`."""

    def submit(one: Submission) -> None:
        with engine.begin() as connection:
            connection.execute(BY_SQL, {**OPTIONAL, **one.fields(), "idempotency_key": one.key})

    return submit


def by_http(client: Callable[[], Client]) -> EntryPoint:
    """Return an entry point through the client of the API."""

    def submit(one: Submission) -> None:
        with client() as api:
            api.submit(idempotency_key=one.key, **one.fields())

    return submit


def by_celery(broker_url: str, engine: Engine) -> EntryPoint:
    """Return an entry point by Celery message, which is sent again until the task's row exists."""
    app = Celery(broker=broker_url, set_as_current=False)
    app.conf.broker_transport_options = {"socket_timeout": 5.0}

    def submit(one: Submission) -> None:
        app.send_task(
            "minion.submit",
            kwargs=one.fields(),
            task_id=one.key,
            queue="minion.submit",
            ignore_result=True,
            retry=False,
        )
        deadline = time.monotonic() + RESEND_SECONDS
        while time.monotonic() < deadline:
            with engine.connect() as connection:
                if connection.scalar(ACCEPTED, {"id": one.key}):
                    return
            time.sleep(0.05)
        raise TimeoutError("not accepted yet")

    return submit


@dataclass
class Submitter:
    """Threads that submit through one entry point each, and retry each task until it is accepted.

    The tasks of a conversation have one thread, so that their order is known.
    """

    entry_points: Sequence[EntryPoint]
    accepted: list[Submission] = field(default_factory=list)
    granted: int = 0

    def __post_init__(self) -> None:
        self._waiting: list[SimpleQueue[Submission]] = [SimpleQueue() for _ in self.entry_points]
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._serve, args=pair, name="submitter", daemon=True)
            for pair in zip(self.entry_points, self._waiting, strict=True)
        ]
        for thread in self._threads:
            thread.start()

    def grant(self, load: Iterable[Submission]) -> None:
        """Add tasks to be submitted."""
        for one in load:
            lane = one.number % CONVERSATIONS if one.kind == "conversation" else one.number
            self._waiting[lane % len(self._waiting)].put(one)
            self.granted += 1

    @property
    def done(self) -> bool:
        """Return whether all granted tasks have been accepted."""
        return len(self.accepted) == self.granted

    def stop(self) -> None:
        """End the threads."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _serve(self, submit: EntryPoint, waiting: SimpleQueue[Submission]) -> None:
        while not self._stopping.is_set():
            with suppress(Empty):
                self._insist(submit, waiting.get(timeout=0.1))

    def _insist(self, submit: EntryPoint, one: Submission) -> None:
        while not self._stopping.wait(0.02):
            # The caller of a queue retries after any error, with the same key.
            with suppress(Exception):
                submit(one)
                self.accepted.append(one)
                return
