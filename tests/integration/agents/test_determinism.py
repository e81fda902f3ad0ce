"""A task that is interrupted anywhere reads the same journal when it runs again, and makes no finished call twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import text

from minions import testing
from minions.testing import MessagesApi, tool_use
from shared.tasks import lifecycle
from shared.tasks.states import FINAL
from tests.conftest import Define
from tests.integration.agents.conftest import ANYTHING
from tests.integration.conftest import ACT, InlineWorker, Tasks
from workers import minion

COMMITS = ("write_steps", "finish", "release")
RELEASE = text("SELECT minion_release(:task, claim, 'lost', false, '0', '{}') FROM task_status WHERE task_id = :task")
# A tool's name is its effect; `fail` raises an unexpected error in the first attempt of its task.
CALL = st.tuples(st.sampled_from(["pure", "idempotent", "unsafe"]), st.sampled_from(["answer", "refuse", "fail"]))
TURNS = st.lists(st.lists(CALL, min_size=1, max_size=3), min_size=1, max_size=3)


class Died(BaseException):
    """The process is gone."""


@contextmanager
def dying(patch: pytest.MonkeyPatch, commit: int, *, before: bool) -> Iterator[None]:
    """The process dies at its `commit`-th commit: before it, or after it."""
    made = [0]

    def counting(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            made[0] += 1
            if made[0] == commit and before:
                raise Died
            done = real(*arguments, **options)
            if made[0] == commit:
                # Committed rows stay, whatever happens to the process.
                arguments[0].commit()
                raise Died
            return done

        return call

    with patch.context() as inner:
        for name in COMMITS:
            inner.setattr(lifecycle, name, counting(getattr(lifecycle, name)))
        yield


class Case:
    """One task with a script, whose calls write down that they were made."""

    def __init__(self, tasks: Tasks, inline_worker: InlineWorker, messages_api: MessagesApi, folder: Path) -> None:
        self.tasks, self.inline_worker, self.messages_api, self.folder = tasks, inline_worker, messages_api, folder
        self.task = UUID(int=0)

    def begin(self, turns: list[list[tuple[str, str]]]) -> None:
        for log in self.folder.iterdir():
            log.unlink()
        numbers = iter(range(100))
        self.messages_api.script = [
            tool_use(*((effect, self.arguments(deed, next(numbers))) for effect, deed in turn)) for turn in turns
        ]
        # The reply depends on how far the conversation is, not on how often it was asked for.
        self.messages_api.script.append(testing.text("Done."))
        self.replies = list(self.messages_api.script)
        self.task = self.tasks.submit("Agent", "Hello")

    def arguments(self, deed: str, number: int) -> dict[str, Any]:
        return {"do": deed, "times": 1, "answer": number, "log": str(self.folder / str(number))}

    def run(self) -> None:
        """Runs the task until it ends or its process dies; people say that interrupted unsafe calls have failed."""
        while self.tasks.get(self.task)["state"] not in FINAL:
            if self.tasks.get(self.task)["wait_reason"] == "answer":
                with self.inline_worker.engine.begin() as connection:
                    lifecycle.decide(connection, self.task, "fail", who="test")
            for message in self.inline_worker.dispatch():
                turns = [step for step in self.steps() if step["kind"] == "model_call" and step["status"] == "finished"]
                self.messages_api.script = self.replies[len(turns) :] or self.replies[-1:]
                minion.run(message.task_id, message.claim, self.inline_worker.id)

    def lose(self) -> None:
        """The worker is found to be gone."""
        with self.inline_worker.engine.begin() as connection:
            connection.execute(RELEASE, {"task": self.task})

    def steps(self) -> list[dict[str, Any]]:
        return self.tasks.steps(self.task)

    def made(self) -> dict[int, int]:
        """Return how often each tool call was made, by the number of its step."""
        logs = {int(log.name): log.read_text().count("\n") for log in self.folder.iterdir()}
        return {step["number"]: logs.get(call_of(step), 0) for step in self.steps() if step["kind"] == "tool_call"}


@pytest.fixture
def case(tasks: Tasks, inline_worker: InlineWorker, messages_api: MessagesApi, define: Define, tmp_path: Path) -> Case:
    effects = ["pure", "idempotent", "unsafe"]
    define(
        *({**ACT, "name": effect, "effect": effect, "input_schema": ANYTHING} for effect in effects),
        {
            "kind": "agent",
            "name": "Agent",
            "model": "claude-sonnet-5-5",
            "tools": effects,
            "config": {"capabilities": ["work"], "retry_backoff": 0, "max_attempts": 100},
        },
    )
    return Case(tasks, inline_worker, messages_api, tmp_path)


def call_of(step: dict[str, Any]) -> int:
    """The place in the script of a tool call."""
    return int(step["input"]["arguments"]["answer"])


def settled(step: dict[str, Any]) -> bool:
    return step["status"] == "finished" or (step["status"] == "failed" and not step["error"].get("retryable"))


def kept(steps: list[dict[str, Any]]) -> dict[int, tuple[Any, ...]]:
    return {s["number"]: (s["name"], s["request_hash"], s["status"], s["output"]) for s in steps if settled(s)}


def test_interrupted_task_reads_the_same_journal(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    @hypothesis_settings(
        max_examples=12, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
    )
    @example([[("unsafe", "answer")]], 4, True)  # the call was made, and that it was is lost
    @example([[("idempotent", "refuse"), ("pure", "fail")]], 4, True)
    @given(TURNS, st.integers(1, 20), st.booleans())
    def check(turns: list[list[tuple[str, str]]], commit: int, before: bool) -> None:
        case.begin(turns)
        try:
            with dying(monkeypatch, commit, before=before):
                case.run()
        except Died:
            case.lose()
        at_death, made_before = kept(case.steps()), case.made()
        case.run()
        task = case.tasks.get(case.task)
        assert (task["state"], task["output"]) == ("succeeded", {"content": "Done."}), task["error"]
        assert kept(case.steps()).items() >= at_death.items()
        assert all(settled(step) for step in case.steps())
        made = case.made()
        assert {number: made[number] for number in at_death if number in made} == {
            number: times for number, times in made_before.items() if number in at_death
        }
        assert all(made[step["number"]] <= 1 for step in case.steps() if step["effect"] == "unsafe")

    check()
