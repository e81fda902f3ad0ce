"""A conversation of two tasks with budgets, whose minion is struck at a statement that it sends to PostgreSQL.

Each task sums up what was said before (once for both), takes three model turns with tools, a sub-agent and a call that
a person has to approve, and finds its budget used up on the way. At the nth statement the connection is cut before it
arrives or after it was carried out, or the minion dies before or after it.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import psycopg
import pytest
from sqlalchemy import Engine, event, text
from sqlalchemy.exc import OperationalError

from minions import testing
from minions.testing import MessagesApi
from shared.contracts.requests import Budget, BudgetChange
from shared.database import connections
from shared.database.connections import transaction
from shared.tasks import budgets, lifecycle
from shared.tasks.lifecycle import Dispatched
from tests.integration.agents.conftest import DefineAgent
from tests.integration.agents.test_conversations import LIMIT, talk
from tests.integration.conftest import InlineWorker, Tasks
from tests.support.model_client import use_messages_api
from workers import minion

Kind = Literal["cut", "killed"]
EVERY = 29
"""Statements from one strike to the next: 1 strikes at each, and takes minutes."""
EFFECTS = ("act", "help", "careful")
REQUESTS = {"summary": 1, **{f"{task} {turn}": 1 for task in ("One", "Two") for turn in range(3)}}
HOLDERS = text("SELECT task_id, claim FROM task_status WHERE state = 'running'")
SPENT = text(
    "SELECT b.spent_tokens, b.spent_microdollars, b.spent_steps, sum(r.tokens), sum(r.microdollars), sum(r.steps), "
    "count(DISTINCT (r.task_id, r.step)) FROM budgets b JOIN reservations r ON r.budget_task_id = b.task_id "
    "WHERE b.task_id = :task GROUP BY b.task_id"
)
SAID = text("SELECT content #>> '{}' FROM messages WHERE task_id IS NOT NULL ORDER BY id")
SUMMARIES = text("SELECT count(*) FROM conversation_summaries")
OPEN = text("SELECT count(*) FROM steps WHERE status <> 'finished'")


class Killed(BaseException):
    """As if the process had ended here."""


class Model(MessagesApi):
    """Decides by what the conversation holds, and notes what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[str] = Counter()

    def answer(self, headers: dict[str, str], body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if "Sum up this conversation" in json.dumps(body["messages"]):
            self.asked["summary"] += 1
            return 200, self.message(body, testing.text("They asked for words."))
        blocks = [block for message in body["messages"] for block in message["content"] if isinstance(block, dict)]
        turn = sum(block["type"] == "tool_result" for block in blocks)
        turn = {0: 0, 2: 1, 3: 2}[turn]
        task = "Two" if '"Two' in json.dumps(body["messages"]) else "One"
        self.asked[f"{task} {turn}"] += 1
        do = {"do": "answer", "answer": 1, "log": None}
        logs = {name: {**do, "log": f"{self.folder}/{task}-{name}"} for name in EFFECTS}
        script = [
            testing.tool_use(("act", logs["act"]), ("help", logs["help"])),
            testing.tool_use(("careful", logs["careful"])),
            testing.text(f"Done: {task}."),
        ]
        return 200, self.message(body, script[turn])

    folder: Path


class Strikes:
    """Strikes once, at the nth statement of the minion."""

    def __init__(self) -> None:
        self.active = False
        self.struck: str | None = None
        self._lock = threading.Lock()
        self._count = 0
        self.plan: tuple[int, Kind, bool] | None = None

    def arm(self, nth: int, kind: Kind, *, after: bool) -> None:
        self._count, self.struck, self.plan = 0, None, (nth, kind, after)

    def come(self, statement: str, *, after: bool) -> None:
        with self._lock:
            if not self.active or self.plan is None or self.plan[2] != after:
                return
            self._count += 1
            if self._count != self.plan[0]:
                return
            self.struck, kind = statement, self.plan[1]
        if kind == "killed":
            raise Killed
        raise OperationalError(None, None, psycopg.OperationalError("the connection was cut"))


@contextmanager
def striking() -> Iterator[Strikes]:
    strikes = Strikes()

    def before(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        strikes.come(statement, after=False)

    def after(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        strikes.come(statement, after=True)

    hooks = (("before_cursor_execute", before), ("after_cursor_execute", after))
    for name, hook in hooks:
        event.listen(Engine, name, hook)
    try:
        yield strikes
    finally:
        for name, hook in hooks:
            event.remove(Engine, name, hook)


def play(inline_worker: InlineWorker, tasks: Tasks, pair: list[UUID], strikes: Strikes, folder: Path) -> None:
    """Runs both tasks to their ends; a person raises budgets, approves, and looks what became of interrupted calls."""
    unread: list[Dispatched] = []
    for _ in range(100):
        states = [tasks.get(task) for task in pair]
        if all(state["finished_at"] for state in states):
            return
        for state in states:
            people(state, folder)
        messages, unread = [*unread, *inline_worker.dispatch()], []
        for message in messages:
            strikes.active = True
            try:
                minion.run(message.task_id, message.claim, inline_worker.id)
            except Killed:
                # Published again, in case no worker had claimed it yet.
                unread.append(message)
                connections.close_engine()
            finally:
                strikes.active = False
        with transaction() as connection:
            for holder in connection.execute(HOLDERS).all():
                lifecycle.release(connection, holder.task_id, holder.claim, how="lost", charged=False)
            budgets.wake_funded(connection)
    raise AssertionError([(state["state"], state["wait_reason"], state["error"]) for state in states])


def people(state: dict[str, Any], folder: Path) -> None:
    with transaction() as connection:
        if state["wait_reason"] == "approval":
            lifecycle.decide(connection, state["id"], "approve", who="test")
        elif state["wait_reason"] == "answer":
            made = (folder / f"{state['messages'][0]['content']}-careful").exists()
            verdict, value = ("result", 1) if made else ("again", None)
            lifecycle.decide(connection, state["id"], verdict, who="test", value=value)
        elif state["wait_reason"] == "budget":
            budgets.change(connection, state["id"], BudgetChange(add_steps=3))


@pytest.mark.parametrize(
    ("kind", "after", "first"), [("cut", False, 1), ("cut", True, 4), ("killed", False, 7), ("killed", True, 10)]
)
def test_fault_at_any_statement_loses_nothing(
    tasks: Tasks, inline_worker: InlineWorker, define_agent: DefineAgent,
    database: Engine, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    kind: Kind, after: bool, first: int,
) -> None:  # fmt: skip
    define_agent({"history_tokens": LIMIT, "max_attempts": 10})
    wrong = {}
    with use_messages_api(Model(), monkeypatch) as model, striking() as strikes:
        assert isinstance(model, Model)
        for nth in itertools.count(first, EVERY):
            with database.begin() as connection:
                connection.execute(text("TRUNCATE tasks, conversations CASCADE"))
            talk(database, 5)
            model.asked.clear()
            model.folder = tmp_path / str(nth)
            model.folder.mkdir()
            pair = [
                tasks.submit("Agent", messages=[{"role": "user", "content": said}], conversation_id="c",
                             budget=Budget(steps=2))
                for said in ("One", "Two")
            ]  # fmt: skip
            strikes.arm(nth, kind, after=after)
            try:
                play(inline_worker, tasks, pair, strikes, model.folder)
                faults = list(broken(tasks, pair, model, database, kind))
            except AssertionError as fault:
                faults = [str(fault)]
            if strikes.struck is None:
                break
            if faults:
                wrong[nth, " ".join(strikes.struck.split())[:80]] = faults
    assert nth > 60
    assert wrong == {}


def broken(tasks: Tasks, pair: list[UUID], model: Model, database: Engine, kind: Kind) -> Iterator[str]:
    for task in pair:
        found = tasks.get(task)
        if found["state"] != "succeeded":
            yield f"{found['state']}: {found['error']}"
    again = model.asked - Counter(REQUESTS)
    if set(model.asked) != set(REQUESTS) or again.total() > (kind == "killed"):
        yield f"asked {dict(model.asked)}"
    first, second = (tasks.executions(task) for task in pair)
    if not first[-1]["finished_at"] < second[0]["started_at"]:
        yield "the second one did not wait for its turn"
    twice = 0
    for path in sorted(model.folder.iterdir()):
        times = path.read_text().count("\n")
        twice += times - 1
        if times > 1 and (path.name.endswith("careful") or kind == "cut"):
            yield f"{path.name}: {times} times"
    if len(list(model.folder.iterdir())) != 2 * len(EFFECTS) or twice > 1:
        yield f"effects: {sorted(path.name for path in model.folder.iterdir())}, {twice} twice"
    with database.connect() as connection:
        for task in pair:
            tokens, microdollars, steps, *written, distinct = connection.execute(SPENT, {"task": task}).one()
            if [tokens, microdollars, steps] != written or steps != distinct:
                yield f"budget: {(tokens, microdollars, steps)}, written {written} in {distinct} steps"
        if (said := list(connection.scalars(SAID))) != ["One", "Done: One.", "Two", "Done: Two."]:
            yield f"said: {said}"
        if (number := connection.scalar(SUMMARIES)) != 1:
            yield f"{number} summaries"
        if number := connection.scalar(OPEN):
            yield f"{number} steps are not finished"
