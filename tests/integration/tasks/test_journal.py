"""The journal: a task that runs again continues where it was, and never repeats a finished step."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import Engine, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB

from shared.contracts.strict_json import digest, stable
from shared.database.connections import transaction
from shared.errors import Cancelled, HistoryDiverged, ToolError
from shared.tasks import lifecycle
from tests.integration.conftest import InlineWorker, Tasks
from workers import minion
from workers.journal import Journal
from workers.outcomes import ClaimLost, Interrupted
from workers.steps import StepResult
from workers.task import ClaimedTask

ROUND_TRIP = text("SELECT CAST(:value AS jsonb)").bindparams(bindparam("value", type_=JSONB))


@pytest.fixture
def claim(tasks: Tasks, inline_worker: InlineWorker, act: Any) -> Any:
    """Claims a task, a new one or one that was released: `claim(task)` is its journal."""
    act()

    def take(task: UUID | None = None) -> Journal:
        if task is None:
            task = tasks.submit("Act", {})
        else:
            held = tasks.get(task)["claim"]
            with transaction() as connection:
                lifecycle.release(connection, task, held, how="handed_back", charged=False)
        [message] = inline_worker.dispatch()
        with transaction() as connection:
            row = lifecycle.claim(connection, task, message.claim, inline_worker.id)
        assert row is not None
        claimed = ClaimedTask.of(row)
        return Journal(claimed.id, claimed.claim, {step["number"]: step for step in claimed.steps})

    return take


class Effect:
    """Something that happens, and can be counted."""

    def __init__(self, output: Any = "done", error: Exception | None = None) -> None:
        self.output, self.error, self.made = output, error, 0

    def __call__(self, number: int) -> StepResult:
        self.made += 1
        if self.error is not None:
            raise self.error
        return StepResult(self.output)


def call(journal: Journal, effect: Effect, request: Any = None, name: str = "tool", kind: str = "unsafe") -> Any:
    return journal.call("tool_call", name, request, effect, effect=kind)


@pytest.mark.parametrize("kind", ["idempotent", "unsafe"])
def test_a_finished_step_is_read_back(claim: Any, kind: str) -> None:
    effect = Effect({"a": [1, 2.5, None]})
    first = claim()
    assert call(first, effect, kind=kind) == call(claim(first.task_id), effect, kind=kind) == {"a": [1, 2.5, None]}
    assert effect.made == 1


def test_a_pure_step_rides_along_with_the_next_write(claim: Any, tasks: Tasks) -> None:
    journal = claim()
    call(journal, Effect("pure"), kind="pure")
    assert tasks.steps(journal.task_id) == []
    call(journal, Effect("paid"), kind="idempotent")
    assert [(step["number"], step["output"]) for step in tasks.steps(journal.task_id)] == [(1, "pure"), (2, "paid")]


def test_a_started_step_is_committed_before_the_effect(claim: Any, tasks: Tasks) -> None:
    journal = claim()
    seen: list[str] = []

    def effect(number: int) -> StepResult:
        seen.append(tasks.steps(journal.task_id)[0]["status"])
        return StepResult(None)

    journal.call("tool_call", "tool", None, effect, effect="unsafe")
    assert seen == ["started"]


def test_unsafe_started_step_is_not_retried(claim: Any) -> None:
    effect = Effect(error=KeyboardInterrupt())
    first = claim()
    with pytest.raises(KeyboardInterrupt):
        call(first, effect)
    with pytest.raises(Interrupted):
        call(claim(first.task_id), effect)
    assert effect.made == 1


def test_idempotent_started_step_is_retried(claim: Any) -> None:
    first = claim()
    with pytest.raises(KeyboardInterrupt):
        call(first, Effect(error=KeyboardInterrupt()), kind="idempotent")
    assert call(claim(first.task_id), Effect("second"), kind="idempotent") == "second"


def test_handled_error_is_read_back(claim: Any) -> None:
    refusal = ToolError("no")
    refusal.retryable = False
    effect, first = Effect(error=refusal), claim()
    with pytest.raises(ToolError, match="no"):
        call(first, effect)
    call(first, Effect())
    again = claim(first.task_id)
    with pytest.raises(ToolError, match="no"):
        call(again, effect)
    assert effect.made == 1


def test_another_request_is_a_diverged_history(claim: Any) -> None:
    first = claim()
    call(first, Effect(), {"n": 1})
    with pytest.raises(HistoryDiverged, match=r"step 1: the journal holds tool_call 'tool'.* \(\$\.n was 1 and is 2\)"):
        call(claim(first.task_id), Effect(), {"n": 2})
    with pytest.raises(HistoryDiverged, match="asks for tool_call 'other'"):
        call(claim(first.task_id), Effect(), {"n": 1}, name="other")


def test_journal_stops_after_losing_the_claim(claim: Any) -> None:
    first = claim()
    claim(first.task_id)
    effect = Effect()
    with pytest.raises(ClaimLost):
        call(first, effect)
    assert effect.made == 0


def test_a_cancelled_task_stops_at_its_next_step(claim: Any, tasks: Tasks) -> None:
    journal = claim()
    tasks.cancel(journal.task_id)
    effect = Effect()
    with pytest.raises(Cancelled):
        call(journal, effect)
    assert effect.made == 0


@pytest.mark.parametrize(
    "value",
    [1e16, 1e22, 1e23, 1.5e300, -1e23, 2**53 + 1, 10**25, 0.1, 1e-7, -0.0, 5e-324, {"b": 1, "aa": 2.0, "a": [1.0]}],
)
def test_numbers_and_keys_survive_the_database(database: Engine, value: Any) -> None:
    with database.connect() as connection:
        stored = connection.scalar(ROUND_TRIP, {"value": value})
    assert digest(stored) == digest(value)
    assert json.dumps(stable(stored)) == json.dumps(stable(value))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**299), 10**299)
    | st.floats(-1e299, 1e299, allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text("abcdefg", max_size=4), inner),
    max_leaves=10,
)


def test_any_json_means_the_same_after_the_database_held_it(database: Engine) -> None:
    with database.connect() as connection:

        @hypothesis_settings(max_examples=300, deadline=None, database=None)
        @given(JSON)
        def check(value: Any) -> None:
            stored = connection.scalar(ROUND_TRIP, {"value": value})
            assert json.dumps(stable(stored)) == json.dumps(stable(value))

        check()


def test_task_continues_after_the_step_that_killed_it(
    tasks: Tasks, inline_worker: InlineWorker, act: Any, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    task = tasks.submit(act(), {"do": "fail", "times": 1, "log": str(log)})
    inline_worker.run_all()
    assert tasks.get(task)["state"] == "succeeded"
    first, second = (line.split() for line in log.read_text().splitlines())
    assert (first[1], second[1]) == ("1", "2")
    assert first[2] == second[2]
    assert [step["status"] for step in tasks.steps(task)] == ["finished"]


def test_a_journal_of_another_release_is_left_to_its_minions(
    tasks: Tasks, inline_worker: InlineWorker, act: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.journal.FORMAT", 99)
    task = tasks.submit(act(), {})
    [message] = inline_worker.dispatch()
    assert minion.run(task, message.claim, inline_worker.id) == "waiting"
    waiting = tasks.get(task)
    assert (waiting["attempts"], waiting["wait_reason"]) == (0, "handed_back")


@pytest.mark.parametrize(("effect", "state"), [("idempotent", "failed"), ("unsafe", "waiting")])
def test_error_with_unstorable_text_is_stored(
    tasks: Tasks, act: Any, inline_worker: InlineWorker, monkeypatch: pytest.MonkeyPatch, effect: str, state: str
) -> None:
    def spoilt(*_: Any) -> Any:
        raise TimeoutError("a\x00b\ud800c")

    monkeypatch.setitem(import_module("minion_test_tools").DEEDS, "spoilt", spoilt)
    task = tasks.submit(act(effect=effect, config={"max_attempts": 1}), {"do": "spoilt"})
    inline_worker._round()
    assert tasks.get(task)["state"] == state
    assert tasks.steps(task)[0]["error"]["message"] == "The tool 'act' raised TimeoutError: a\ufffdb\ufffdc"
