"""Chosen tasks are judged once each, within bounds, and their scores count for the version that did the work."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from orchestrator.maintenance import evaluator as duty
from orchestrator.maintenance.canary_keeper import CanaryKeeper
from orchestrator.maintenance.evaluator import Evaluator
from orchestrator.observe.counting import catch_up
from orchestrator.observe.evaluations import Wanted, choose, scores_of, unscored_of
from orchestrator.retention.erasure import Subject, erase
from shared.access.actors import local_actor
from shared.contracts.documents import parse_definition
from shared.errors import InvalidDefinition
from shared.registry import AgentRegistry
from shared.settings import Settings, get_settings
from shared.tasks.states import State
from tests.conftest import Define
from tests.support.definitions import agent_definition
from tests.support.lifecycle_driver import LifecycleDriver, concurrently

ROWS = text("SELECT * FROM evaluations ORDER BY task_id, evaluator")


def judged(share: str = "100%", **fields: Any) -> dict[str, Any]:
    """Return the agent `A`, whose tasks the agent `B` judges."""
    return agent_definition("A", evaluators=[{"agent": "B", "share": share, **fields}])


@pytest.fixture
def evaluator(driver: LifecycleDriver, define: Define, settings: Settings) -> Evaluator:
    define(judged())
    return Evaluator(settings, driver.engine)


def rows(engine: Engine) -> list[Any]:
    with engine.connect() as connection:
        return list(connection.execute(ROWS))


def judge(driver: LifecycleDriver, evaluator: Evaluator, output: Any, **result: Any) -> list[UUID]:
    """Count what has ended, and end the judging tasks that are submitted."""
    catch_up(driver.engine)
    evaluator.run_once()
    tasks = [row.judge_task_id for row in rows(driver.engine) if row.state == "submitted"]
    for task in tasks:
        driver.again(task)
        driver.finish(task, output=output, **result)
    evaluator.run_once()
    return tasks


def scores(driver: LifecycleDriver, number: int = 2) -> Any:
    version = driver.sql("SELECT id FROM agent_versions WHERE name = 'A' AND number = :number", number=number)
    return driver.call(scores_of, [version]).get(version)


def test_judge_gets_the_task_and_its_score_counts(driver: LifecycleDriver, evaluator: Evaluator) -> None:
    task = driver.run("A", input={"question": "why"}, key="acme", conversation_id="c")
    driver.finish(task, output={"answer": 42})
    [judging] = judge(driver, evaluator, {"score": 0.25, "passed": False, "reason": "no why"})
    seen = driver.row(judging)
    assert (seen["agent"], seen["key"], seen["priority"]) == ("B", "acme", -10)
    assert seen["labels"] == {"evaluates": str(task), "evaluates_conversation": "c"}
    assert seen["submitted_by"] == "evaluator:A"
    assert seen["input"] == {
        "task_id": str(task),
        "agent": "A",
        "agent_version": 2,
        "input": {"question": "why"},
        "messages": None,
        "output": {"answer": 42},
        "steps": [],
    }
    assert scores(driver) == {"B": {"tasks": 1, "mean": 0.25, "passed": 0.0}}
    [row] = rows(driver.engine)
    assert (row.state, row.score, row.passed) == ("scored", 0.25, False)


def test_only_succeeded_tasks_are_judged_and_never_judges(
    driver: LifecycleDriver, define: Define, evaluator: Evaluator
) -> None:
    define(agent_definition("B", evaluators=[{"agent": "A", "share": "100%"}]))
    driver.finish(driver.run("A"), state=State.FAILED)
    driver.finish(driver.run("A"))
    assert len(judge(driver, evaluator, {"score": 1})) == 1
    assert judge(driver, evaluator, {"score": 1}) == []
    assert len(rows(driver.engine)) == 1


def test_share_of_tasks_is_judged(driver: LifecycleDriver, define: Define, evaluator: Evaluator) -> None:
    define(judged("50%"))
    for _ in range(40):
        driver.finish(driver.run("A"))
    catch_up(driver.engine)
    assert 0 < len(rows(driver.engine)) < 40


def test_task_is_judged_once_by_orchestrators_that_die(
    driver: LifecycleDriver, evaluator: Evaluator, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.finish(driver.run("A"))
    for _ in range(2):
        catch_up(driver.engine)
    submit = duty.submission.submit_within

    def die(connection: Connection, *arguments: Any, **options: Any) -> Any:
        """Die between the submission and the record of it."""
        submit(connection, *arguments, **options)
        connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    with monkeypatch.context() as patch:
        patch.setattr(duty.submission, "submit_within", die)
        with pytest.raises(OperationalError):
            evaluator.run_once()
    assert [row.state for row in rows(driver.engine)] == ["due"]
    concurrently(*[Evaluator(settings, driver.engine).run_once] * 4)
    [row] = rows(driver.engine)
    assert driver.sql("SELECT count(*) FROM tasks WHERE agent_name = 'B'") == 1
    driver.again(row.judge_task_id)
    driver.finish(row.judge_task_id, output={"score": 0.5})
    concurrently(*[Evaluator(settings, driver.engine).run_once] * 4)
    assert scores(driver)["B"]["tasks"] == 1


def test_rate_and_budget_bound_evaluations(driver: LifecycleDriver, define: Define, evaluator: Evaluator) -> None:
    define(judged(max_per_hour=2, budget={"dollars": 0.5}))
    for _ in range(4):
        driver.finish(driver.run("A"))
    judging = judge(driver, evaluator, {"score": 1})
    assert sorted(row.state for row in rows(driver.engine)) == ["scored", "scored", "skipped", "skipped"]
    budget = driver.row(judging[0])["budget"]
    assert (budget["dollars"]["limit"], budget["on_breach"]) == (0.5, "fail")


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        ({"output": {"score": 1.5}}, "no `score` between 0 and 1"),
        ({"output": {"score": True}}, "no `score` between 0 and 1"),
        ({"output": ["score"]}, "no `score` between 0 and 1"),
        ({"output": None, "state": State.FAILED}, "ended as failed"),
    ],
)
def test_judge_without_a_score_counts_for_nothing(
    driver: LifecycleDriver, evaluator: Evaluator, result: dict[str, Any], problem: str
) -> None:
    driver.finish(driver.run("A"))
    judge(driver, evaluator, **result)
    [row] = rows(driver.engine)
    assert row.state == "failed"
    assert problem in row.problem
    assert scores(driver) is None
    found = driver.call(unscored_of, [row.agent_version_id])
    assert found == {row.agent_version_id: {"B": {"failed": 1, "skipped": 0, "problem": row.problem}}}


def test_tiny_score_holds_up_no_other(driver: LifecycleDriver, evaluator: Evaluator) -> None:
    for score in (1e-300, 0.5):
        driver.finish(driver.run("A"))
        judge(driver, evaluator, {"score": score})
    assert scores(driver) == {"B": {"tasks": 2, "mean": 0.25, "passed": None}}


def test_caller_cannot_evade_a_judge(driver: LifecycleDriver, evaluator: Evaluator) -> None:
    """By submitting other work under a name that the judging task might have, or by an output that names a file."""
    task = driver.run("A")
    driver.submit("A", idempotency_key=f"evaluation:{task}:B")
    driver.finish(task, output={"see": [{"$file": "file_" + "0" * 64}]})
    [judging] = judge(driver, evaluator, {"score": 1})
    assert driver.row(judging)["input"]["output"] == {"see": [{"file": "file_" + "0" * 64}]}


def test_refused_or_deleted_judging_task_is_recorded(driver: LifecycleDriver, evaluator: Evaluator) -> None:
    driver.finish(driver.run("A"))
    catch_up(driver.engine)
    evaluator.run_once()
    driver.sql("DELETE FROM tasks WHERE agent_name = 'B'")
    driver.finish(driver.run("A"))
    driver.sql("UPDATE agents SET status = 'disabled' WHERE name = 'B'")
    catch_up(driver.engine)
    evaluator.run_once()
    problems = [row.problem for row in rows(driver.engine)]
    assert "deleted" in problems[0]
    assert "is disabled" in problems[1]


def test_large_parts_are_left_out(
    driver: LifecycleDriver, evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = driver.run("A", input={"text": "x" * 3000})
    driver.finish(task, output={"answer": 42})
    smaller = get_settings().model_copy(update={"max_input_bytes": 2000})
    monkeypatch.setattr(duty, "get_settings", lambda: smaller)
    [judging] = judge(driver, evaluator, {"score": 1})
    assert driver.row(judging)["input"]["input"] == {"left_out_bytes": 3012}
    assert driver.row(judging)["input"]["output"] == {"answer": 42}


def test_erasing_a_conversation_erases_what_its_judges_saw(driver: LifecycleDriver, evaluator: Evaluator) -> None:
    driver.finish(driver.run("A", conversation_id="c"))
    judge(driver, evaluator, {"score": 1})
    driver.call(erase, Subject(namespace="default", conversation="c"), local_actor(), after=None, dry_run=False)
    assert driver.sql("SELECT count(*) FROM tasks") == 0
    assert scores(driver)["B"]["tasks"] == 1


def test_old_tasks_are_judged_within_a_budget(driver: LifecycleDriver, define: Define, settings: Settings) -> None:
    for _ in range(4):
        driver.finish(driver.run("A"))
    now = datetime.now(UTC)
    wanted = Wanted(
        namespace="default",
        agent="A",
        evaluator="B",
        since=now - timedelta(days=1),
        until=now + timedelta(minutes=1),
        dollars=5.0,
        share=10_000,
        most=3,
    )
    assert driver.call(choose, wanted) == 3
    evaluator = Evaluator(settings, driver.engine)
    judging = judge(driver, evaluator, {"score": 0.5})
    assert [driver.row(task)["budget"]["dollars"]["limit"] for task in judging] == [1.666666] * 3
    assert scores(driver, 1) == {"B": {"tasks": 3, "mean": 0.5, "passed": None}}
    assert driver.call(choose, wanted) == 1
    judge(driver, evaluator, None, state=State.FAILED)
    assert [row.state for row in rows(driver.engine)].count("failed") == 1
    assert driver.call(choose, wanted) == 1, "what no judge has scored is chosen again"
    judge(driver, evaluator, {"score": 0.5})
    assert {row.state for row in rows(driver.engine)} == {"scored"}
    assert driver.call(choose, wanted) == 0, "none twice"


def test_canary_that_scores_less_is_rolled_back(
    driver: LifecycleDriver, define: Define, evaluator: Evaluator, settings: Settings
) -> None:
    define(judged() | {"description": "newest"})
    with Session(driver.engine) as session:
        registry = AgentRegistry(session)
    registry.roll_back("A", 2)
    registry.start_canary("A", 3, "50%", min_tasks=5)
    inside = "SELECT minion_drawn(version_id, :unit, share) FROM canaries"
    units = {side: [str(n) for n in range(60) if driver.sql(inside, unit=str(n)) is side] for side in (True, False)}
    for side, score in ((False, 0.9), (True, 0.4)):
        for unit in units[side][:6]:
            driver.finish(driver.run("A", key=unit))
        assert len(judge(driver, evaluator, {"score": score})) == 6
    CanaryKeeper(settings, driver.engine).run_once()
    reason = driver.sql("SELECT reason FROM canaries WHERE outcome = 'rolled_back'")
    assert reason.startswith("B scores tasks of version 3 0.400 on average, those of version 2 0.900;")


@pytest.mark.parametrize(
    ("evaluators", "fault"),
    [
        ([{"agent": "Nobody"}], "there is no agent named 'Nobody'"),
        ([{"agent": "A"}], "must not evaluate itself"),
        ([{"agent": "B"}, {"agent": "B"}], "must name each agent once"),
        ([{"agent": "B", "share": "5"}], "must be a percentage"),
        ([{"agent": "Mute"}], "must have the property `score`"),
    ],
)
def test_impossible_evaluators_are_refused(
    driver: LifecycleDriver, define: Define, evaluators: list[Any], fault: str
) -> None:
    define(agent_definition("Mute", output_schema={"type": "object", "properties": {"text": {"type": "string"}}}))
    with pytest.raises(InvalidDefinition, match=fault):
        define(agent_definition("A", evaluators=evaluators))


def test_definition_without_evaluators_keeps_its_checksum() -> None:
    plain = parse_definition(agent_definition("A"))
    assert "evaluators" not in plain.content()
    assert parse_definition(judged("5%")).content()["evaluators"] == [
        {"agent": "B", "share": "5%", "max_per_hour": 100, "budget": None}
    ]
