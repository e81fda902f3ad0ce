"""Cached results: a pure call with the same version and input is made once for each tenant, until it expires."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, text

from orchestrator.maintenance.cache_keeper import CacheKeeper
from orchestrator.replay import replay
from shared.database.connections import transaction
from shared.errors import InvalidDefinition
from shared.functions import security_events
from shared.settings import Settings
from shared.tasks import cached_results, lifecycle
from tests.conftest import Define
from tests.integration.conftest import ACT, InlineWorker, Tasks
from tests.support.definitions import function_definition
from workers import minion, result_cache
from workers.journal import Journal
from workers.outcomes import ClaimLost

ROWS = text("SELECT count(*) FROM cached_results")


class Calls:
    """An agent whose cached tool `act` notes its calls in a file."""

    def __init__(self, tasks: Tasks, worker: InlineWorker, define: Define, log: Path) -> None:
        self.tasks, self.worker, self.define, self.log = tasks, worker, define, log
        self.apply()

    def apply(self, **fields: Any) -> None:
        """Store the definitions."""
        tool = {**ACT, "effect": "pure", "cache": "1h", **fields}
        config = {"capabilities": ["work"], "max_attempts": 1}
        self.define(tool, {"kind": "agent", "name": "A", "type": "function", "tool": "act", "config": config})

    def submit(self, **fields: Any) -> UUID:
        """Submit a task with the same input each time, unless `do` says otherwise."""
        value = {
            "log": str(self.log),
            "do": fields.pop("do", "answer"),
            "answer": fields.pop("answer", {"b": 1, "a": 2}),
        }
        return self.tasks.submit("A", value, **fields)

    def run(self, **fields: Any) -> dict[str, Any]:
        """Run a task and return its only step."""
        task = self.submit(**fields)
        self.worker.run_all()
        [step] = self.tasks.steps(task)
        return step

    @property
    def made(self) -> int:
        """The number of calls."""
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0


@pytest.fixture
def calls(tasks: Tasks, inline_worker: InlineWorker, define: Define, tmp_path: Path) -> Calls:
    return Calls(tasks, inline_worker, define, tmp_path / "calls")


def rows(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.scalar(ROWS))


def change(engine: Engine, statement: str, **values: Any) -> None:
    with engine.begin() as connection:
        connection.execute(text(statement), values)


def test_second_call_reads_the_result_of_the_first(calls: Calls) -> None:
    first, second = calls.run(), calls.run()
    assert calls.made == 1
    assert json.dumps(second["output"]) == json.dumps(first["output"]) == '{"b": 1, "a": 2}'
    assert "cached" not in first["usage"]
    origin = second["usage"]["cached"]
    assert origin["step"] == 1
    assert [step["number"] for step in calls.tasks.steps(UUID(origin["task_id"]))] == [1]
    assert calls.tasks.get(UUID(origin["task_id"]))["state"] == "succeeded"


def test_results_are_not_cached_by_default(calls: Calls) -> None:
    calls.apply(cache=None)
    calls.run()
    calls.run()
    assert (calls.made, rows(calls.tasks.engine)) == (2, 0)


def test_order_of_the_input_does_not_matter(calls: Calls) -> None:
    calls.run(answer={"x": {"p": 1, "q": 2}})
    calls.run(answer={"x": {"q": 2, "p": 1}})
    assert calls.made == 1


@pytest.mark.parametrize("answer", [1, 1.0, True, "1", [1], None, {"1": 1}], ids=repr)
def test_another_input_is_another_call(calls: Calls, answer: Any) -> None:
    calls.run(answer={"x": 2})
    assert calls.run(answer=answer)["output"] == answer
    assert calls.made == 2


def test_whole_float_is_another_input_than_the_integer(calls: Calls) -> None:
    calls.run(answer=1)
    assert "cached" not in calls.run(answer=1.0)["usage"]


def test_tenants_do_not_share_results(calls: Calls) -> None:
    for tenant in ("t1", "t2", None, "t1", "t2", None):
        calls.run(key=tenant)
    assert calls.made == 3


def test_another_version_has_other_results(calls: Calls) -> None:
    calls.run()
    calls.apply(description="Changed.")
    assert "cached" not in calls.run()["usage"]
    assert calls.made == 2


def test_version_of_the_package_is_a_part_of_the_key(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    calls.run()
    monkeypatch.setattr("workers.tools.builtin.installed", lambda name: "minion-test-tools 1.1")
    calls.run()
    assert calls.made == 2


def test_expired_result_is_replaced(calls: Calls) -> None:
    calls.run()
    change(calls.tasks.engine, "UPDATE cached_results SET expires_at = now()")
    calls.run()
    assert "cached" in calls.run()["usage"]
    assert (calls.made, rows(calls.tasks.engine)) == (2, 1)


def test_result_is_never_used_longer_than_the_definition_says(calls: Calls) -> None:
    """An earlier definition of the same function may have kept it for longer."""
    calls.run()
    change(
        calls.tasks.engine, "UPDATE cached_results SET created_at = now() - interval '2 h', expires_at = now() + '1 d'"
    )
    calls.run()
    assert calls.made == 2


def test_result_from_before_the_clock_was_put_back_is_not_used(calls: Calls) -> None:
    calls.run()
    change(calls.tasks.engine, "UPDATE cached_results SET created_at = now() + interval '1 d'")
    calls.run()
    assert calls.made == 2


@pytest.mark.parametrize("do", ["fail", "refuse"])
def test_failed_calls_are_not_cached(calls: Calls, do: str) -> None:
    for _ in range(2):
        assert calls.run(do=do)["status"] == "failed"
    assert (calls.made, rows(calls.tasks.engine)) == (2, 0)


def test_large_result_is_not_kept(calls: Calls) -> None:
    for _ in range(2):
        calls.run(answer="x" * cached_results.MAX_BYTES)
    assert (calls.made, rows(calls.tasks.engine)) == (2, 0)


def test_wait_is_not_a_result(calls: Calls) -> None:
    task = calls.submit(answer={"$wait": {"seconds": 0.01}})
    calls.worker.run_all()
    assert (calls.tasks.get(task)["state"], rows(calls.tasks.engine)) == ("succeeded", 0)


def test_replay_uses_the_cached_result(calls: Calls) -> None:
    task = calls.submit()
    calls.worker.run_all()
    with transaction() as connection:
        again = replay(connection, task, pinned=False, new_keys=False, submitted_by="test").task_id
    calls.worker.run_all()
    [step] = calls.tasks.steps(again)
    assert (calls.made, step["usage"]["cached"]["task_id"]) == (1, str(task))


def test_call_whose_result_is_cached_still_needs_its_approval(calls: Calls) -> None:
    calls.apply(approval=True)
    for _ in range(2):
        task = calls.submit()
        calls.worker._round()
        assert calls.tasks.get(task)["wait_reason"] == "approval"
        with transaction() as connection:
            lifecycle.decide(connection, task, "approve", who="test")
        calls.worker.run_all()
    assert calls.made == 1


def test_concurrent_misses_leave_one_result(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    both, missed, look = [calls.submit(), calls.submit()], Barrier(2), cached_results.look

    def look_together(*arguments: Any, **options: Any) -> Any:
        found = look(*arguments, **options)
        missed.wait(20)
        return found

    messages = calls.worker.dispatch()
    with monkeypatch.context() as patch, ThreadPoolExecutor(2) as threads:
        patch.setattr(cached_results, "look", look_together)
        list(threads.map(lambda message: minion.run(message.task_id, message.claim, calls.worker.id), messages))
    assert [calls.tasks.get(task)["state"] for task in both] == ["succeeded"] * 2
    assert (calls.made, rows(calls.tasks.engine)) == (2, 1)
    assert "cached" in calls.run()["usage"]


def test_call_after_a_crash_reads_the_result(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker is lost after the result is kept, before the step is committed."""

    def lost(journal: Journal, *arguments: Any, **options: Any) -> None:
        raise ClaimLost

    task = calls.submit()
    [message] = calls.worker.dispatch()
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "keep", lost)
        minion.run(message.task_id, message.claim, calls.worker.id)
    assert (calls.tasks.get(task)["state"], calls.tasks.steps(task)) == ("running", [])
    with calls.tasks.engine.begin() as connection:
        lifecycle.release(connection, task, 1, how="lost", charged=False)
    calls.worker.run_all()
    [step] = calls.tasks.steps(task)
    assert (calls.made, step["usage"]["cached"]["task_id"]) == (1, str(task))


def test_failure_between_call_and_cache_leaves_nothing(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: Any, **options: Any) -> bool:
        raise RuntimeError("between")

    with monkeypatch.context() as patch:
        patch.setattr(cached_results, "keep", fails)
        task = calls.submit()
        calls.worker.run_all()
        assert calls.tasks.get(task)["state"] == "failed"
    assert rows(calls.tasks.engine) == 0
    assert calls.run()["status"] == "finished"


def test_result_is_deleted_with_its_task(calls: Calls) -> None:
    calls.run()
    change(calls.tasks.engine, "DELETE FROM tasks")
    assert rows(calls.tasks.engine) == 0


# ------------------------------------------------------------------------------------------------- functions


def test_functions_share_results_until_they_are_quarantined(
    define: Define, tasks: Tasks, inline_worker: InlineWorker, database: Engine
) -> None:
    config = {"capabilities": ["work"], "max_attempts": 1}
    double = function_definition(cache="1h", output_schema={"type": "integer"})
    define(
        double,
        {"kind": "agent", "name": "A", "type": "function", "function": "double", "config": config},
        {"kind": "tool", "name": "twice", "type": "function", "function": "double", "cache": "1m"},
        {"kind": "agent", "name": "B", "type": "function", "tool": "twice", "config": config},
    )

    def run(agent: str) -> Any:
        task = tasks.submit(agent, {"x": 21})
        inline_worker.run_all()
        [step] = tasks.steps(task)
        return (
            step["status"],
            step["output"],
            "cached" in (step["usage"] or {}),
            step["function_version_id"] is not None,
        )

    assert run("A") == ("finished", 42, False, True)
    assert run("B") == ("finished", 42, True, True)
    change(database, "UPDATE function_versions SET status = 'quarantined', status_reason = 'test'")
    security_events._known.clear()
    assert run("A")[0] == "failed"


def test_tool_over_a_function_with_context_is_refused(define: Define) -> None:
    needs = function_definition(code="def double(x, context):\n    return x\n", config={"requires_context": True})
    define(needs)
    with pytest.raises(InvalidDefinition, match="tool 'twice', cache: a function with requires_context"):
        define({"kind": "tool", "name": "twice", "type": "function", "function": "double", "cache": "1h"})


def test_interpreter_and_packages_are_a_part_of_the_key() -> None:
    python, *packages = result_cache.interpreter(["json", "sqlalchemy.orm", "no_such_package"])
    assert str(python).count(".") == 2
    assert packages[0] == "no_such_package: "
    assert packages[1].startswith("sqlalchemy: SQLAlchemy")


# ------------------------------------------------------------------------------------------------- the keeper


def keep(engine: Engine, task: UUID, number: int, *, output: Any = "x", seconds: int = 3600) -> None:
    with engine.begin() as connection:
        cached_results.keep(
            connection,
            f"key-{number}",
            output,
            seconds=seconds + number,
            namespace="default",
            function=None,
            task=task,
            step=1,
        )


def keys(engine: Engine) -> list[int]:
    with engine.connect() as connection:
        return sorted(int(key[4:]) for key in connection.scalars(text("SELECT key FROM cached_results")))


@pytest.mark.parametrize(
    ("settings_of", "left"), [({"cache_rows": 3}, 3), ({"cache_bytes": 10}, 3), ({"cache_rows": 0}, 0)]
)
def test_results_that_expire_first_are_evicted(
    calls: Calls, settings: Settings, settings_of: dict[str, int], left: int
) -> None:
    engine, task = calls.tasks.engine, calls.submit()
    for number in range(6):
        keep(engine, task, number)  # three bytes each
    CacheKeeper(settings.model_copy(update=settings_of), engine).run_once()
    assert keys(engine) == list(range(6 - left, 6))


def test_expired_results_are_deleted(calls: Calls, settings: Settings) -> None:
    engine, task = calls.tasks.engine, calls.submit()
    for number in range(4):
        keep(engine, task, number)
    change(engine, "UPDATE cached_results SET expires_at = now() WHERE key IN ('key-1', 'key-2')")
    CacheKeeper(settings, engine).run_once()
    assert keys(engine) == [0, 3]


def test_results_from_before_the_clock_was_put_back_make_room(calls: Calls, settings: Settings) -> None:
    engine, task = calls.tasks.engine, calls.submit()
    for number in range(4):
        keep(engine, task, number)
    change(
        engine,
        "UPDATE cached_results SET created_at = created_at + interval '1 year', "
        "expires_at = expires_at + interval '1 year' WHERE key IN ('key-2', 'key-3')",
    )
    CacheKeeper(settings.model_copy(update={"cache_rows": 2}), engine).run_once()
    assert keys(engine) == [0, 1]
