"""Operations on tasks: why, pause, limit, signal, dead letters, replay."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, text
from typer.testing import CliRunner

from minions import Client, errors
from orchestrator.cli import app as cli
from orchestrator.explain import DISPATCHER
from shared.settings import Settings
from tests.conftest import Define
from tests.integration.conftest import InlineWorker, Tasks


@pytest.fixture
def dispatcher(settings: Settings) -> Iterator[None]:
    """A connection that looks like an orchestrator's."""
    url = settings.require_database_url().replace("postgresql+psycopg://", "postgresql://")
    with psycopg.connect(url, application_name=DISPATCHER):
        yield


def why(client: Client, task: Any) -> tuple[str, str]:
    found = client.why(task)
    assert found["sentence"].endswith(".") or found["state"] in ("failed", "cancelled")
    return found["reason"], f"{found['sentence']} {found['todo'] or ''}"


def test_why_a_task_is_not_dispatched(client: Client, tasks: Tasks, act: Any, database: Engine) -> None:
    task = tasks.submit(act(), {})
    assert why(client, task)[0] == "no_orchestrator"


@pytest.mark.usefixtures("dispatcher")
def test_why_a_task_is_pending(
    client: Client, tasks: Tasks, act: Any, inline_worker: InlineWorker, database: Engine
) -> None:
    task = tasks.submit(act(), {}, key="t")
    reason, said = why(client, task)
    assert reason == "in_line"
    assert "behind 0 tasks" in said
    client.pause("agent", "Act", "the model is down")
    reason, said = why(client, task)
    assert reason == "paused"
    assert "(the model is down)" in said
    assert "minion resume agent Act" in said
    client.resume("agent", "Act")
    client.set_limit("key", "*", max_running=0)
    reason, said = why(client, task)
    assert (reason, "its limit is 0" in said) == ("limited", True)
    client.remove_limit("key", "*")
    with database.begin() as connection:
        connection.execute(text("UPDATE workers SET last_seen = now() - interval '1 day'"))
    reason, said = why(client, task)
    assert reason == "unserved"
    assert "was last seen 24 hours ago" in said
    assert "`minion worker work`" in said


@pytest.mark.usefixtures("dispatcher")
def test_why_a_task_waits(client: Client, tasks: Tasks, act: Any, inline_worker: InlineWorker) -> None:
    failing = tasks.submit(act("Slow", config={"retry_backoff": 900, "retry_backoff_max": 900}), {"do": "fail"})
    waiting = tasks.submit(act(), {"do": "answer", "answer": {"$wait": {"signal": "paid", "seconds": 3600}}})
    queued = tasks.submit(act(), {})
    later = tasks.submit(act(), {}, run_at="2100-01-01T00:00:00Z")
    assert why(client, later)[0] == "scheduled"
    inline_worker._round()
    reason, said = why(client, failing)
    assert reason == "backoff"
    assert "Attempt 1 of 3 failed (The tool 'act' raised RuntimeError: attempt 1 fails)" in said
    reason, said = why(client, waiting)
    assert reason == "signal"
    assert "the signal 'paid' until" in said
    assert f"minion signal {waiting} paid" in said
    assert client.signal(waiting, "paid", {"amount": 1}).state == "pending"
    assert why(client, queued)[0] == "succeeded"
    with pytest.raises(errors.NotFound):
        client.why("01a2049b-33df-70a1-a1e5-1d41ec86be9b")


@pytest.mark.usefixtures("dispatcher")
def test_why_a_task_is_queued_or_running(
    client: Client, tasks: Tasks, act: Any, inline_worker: InlineWorker, database: Engine
) -> None:
    task = tasks.submit(act(), {})
    [message] = inline_worker.dispatch()
    assert why(client, task)[0] == "on_its_way"
    with database.begin() as connection:
        connection.execute(text("UPDATE workers SET busy = 1"))
    assert why(client, task)[0] == "all_slots_busy"
    with database.begin() as connection:
        connection.execute(text("UPDATE workers SET last_seen = now()"))
        connection.scalar(text("SELECT minion_claim(:t, 0, :w, false)"), {"t": task, "w": inline_worker.id})
    assert "It has been running on here for" in why(client, task)[1]
    client.cancel(task)
    assert why(client, task)[0] == "stopping"
    assert message.task_id == task


@pytest.mark.parametrize("key", ["tenant", ".."])
def test_pause_reaches_queued_tasks(
    client: Client, tasks: Tasks, act: Any, inline_worker: InlineWorker, key: str
) -> None:
    task = tasks.submit(act(), {}, key=key)
    [message] = inline_worker.dispatch()
    client.pause("key", key)
    client.pause("key", key, "why not")
    from workers import minion

    assert minion.run(message.task_id, message.claim, inline_worker.id) == "skipped"
    assert tasks.get(task)["state"] == "pending"
    assert inline_worker.dispatch() == []
    assert [(p["scope"], p["name"], p["reason"]) for p in client.pauses()] == [("key", key, "why not")]
    client.resume("key", key)
    inline_worker.run_all()
    assert tasks.get(task)["state"] == "succeeded"
    with pytest.raises(errors.NotFound, match="is not paused"):
        client.resume("key", key)


def test_a_rate_spreads_starts(client: Client, tasks: Tasks, act: Any, inline_worker: InlineWorker) -> None:
    client.set_limit("agent", "Act", rate="20/s")
    ids = [tasks.submit(act(), {}) for _ in range(12)]
    inline_worker.run_all()
    started = sorted(tasks.executions(task)[0]["started_at"] for task in ids)
    assert (started[-1] - started[0]).total_seconds() > 0.4
    assert all(tasks.get(task)["attempts"] == 0 and tasks.get(task)["claim"] == 1 for task in ids)


@pytest.mark.parametrize("rate", ["10", "0/s", "10/0s", "10/000s", "x/s", "10/week", "-1/s", "1/367d"])
def test_rates_that_make_no_sense_are_refused(client: Client, rate: str) -> None:
    with pytest.raises(errors.InvalidInput, match="A rate must be like"):
        client.set_limit("key", "a", rate=rate)


def test_limits_are_listed_and_removed(client: Client) -> None:
    limit = client.set_limit("capability", "work", max_running=3, rate="100/5m")
    assert (limit["max_running"], limit["rate"], limit["period_seconds"]) == (3, 100, 300.0)
    assert [(row["scope"], row["name"]) for row in client.limits()] == [("capability", "work")]
    client.remove_limit("capability", "work")
    assert client.limits() == []
    with pytest.raises(errors.InvalidInput, match="how many tasks may run at once"):
        client.set_limit("capability", "work")
    with pytest.raises(errors.InvalidInput):
        client.pause("planet", "earth")


@pytest.mark.parametrize("model", ["openrouter:meta-llama/llama-3.3-70b", "ollama:qwen3:8b", "a/../b", "gpt 5%2F?#"])
def test_limit_of_a_model_of_any_name_is_set_and_removed(client: Client, model: str) -> None:
    assert client.set_limit("model", model, rate="50/m")["name"] == model
    assert [limit["name"] for limit in client.limits()] == [model]
    client.remove_limit("model", model)
    assert client.limits() == []


def test_limit_of_a_model_has_its_one_name(client: Client) -> None:
    assert client.set_limit("model", "anthropic:claude-sonnet-5-5", rate="50/m")["name"] == "claude-sonnet-5-5"
    client.remove_limit("model", "anthropic:claude-sonnet-5-5")
    for name in ("anthropic:", ""):
        with pytest.raises(errors.InvalidInput):
            client.set_limit("model", name, rate="50/m")


def test_limits_of_models(client: Client, act: Any, tasks: Tasks, inline_worker: InlineWorker) -> None:
    limit = client.set_limit("model", "*", rate="50/m", input_tokens="40000/m")
    assert (limit["rate"], limit["input_tokens"], limit["input_tokens_seconds"]) == (50, 40_000, 60.0)
    assert limit["output_tokens"] is None
    task = tasks.submit(act(), {})
    inline_worker.run_all()
    assert tasks.get(task)["claim"] == 1, "it does not act where tasks start"
    for scope, fields in (
        ("model", {}),
        ("model", {"max_running": 1}),
        ("agent", {"rate": "1/s", "output_tokens": "1/s"}),
    ):
        with pytest.raises(errors.InvalidInput):
            client.set_limit(scope, "x", **fields)
    client.remove_limit("model", "*")
    assert client.limits() == []
    with pytest.raises(errors.InvalidInput):
        client.pause("model", "x")


def test_command_reports_chosen_agent(
    client: Client, act: Any, define: Define, inline_worker: InlineWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.commands.tasks.connect", lambda *_: nullcontext(client))
    act("Trains", description="Knows everything about trains and railways")
    config = {"capabilities": ["work"], "chain_strategy": "router"}
    define({"kind": "agent", "name": "Any", "type": "function", "relations": [{"agent": "Trains"}], "config": config})
    chain = client.submit("Any", "railways").id
    free = client.submit(messages=["Tell me about railways"]).id
    inline_worker.run_all()
    shown = {task: CliRunner().invoke(cli, ["show", task], env={"COLUMNS": "300"}).output for task in (chain, free)}
    assert "Step 1 chose Trains, by text: Trains 0." in shown[chain]
    assert '"by": "text"' in shown[free]
    assert '"scores": {"Trains": 0.' in shown[free]


def test_commands_warn_when_a_rule_matches_no_agent(client: Client, act: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.commands.rules.connect", lambda *_: nullcontext(client))
    act()

    def said(*words: str) -> str:
        return " ".join(CliRunner().invoke(cli, words).output.split())

    assert "no capability of that name yet; there are: work." in said("pause", "capability", "wrok")
    assert "no agent of that name" in said("limits", "set", "agent", "Atc", "--max-running", "1")
    for words in (("pause", "capability", "work"), ("limits", "set", "agent", "*", "--max-running", "1")):
        assert "of that name" not in said(*words)


def test_the_command_records_why_a_task_is_cancelled(
    client: Client, tasks: Tasks, act: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.commands.tasks.connect", lambda *_: nullcontext(client))
    task = tasks.submit(act(), {})
    CliRunner().invoke(cli, ["cancel", str(task), "--reason", "ordered twice"])
    assert "ordered twice" in str(tasks.get(task)["error"])


def test_dead_letters_and_replay_by_error(
    client: Client, tasks: Tasks, act: Any, inline_worker: InlineWorker, tmp_path: Path
) -> None:
    once = {"max_attempts": 1}
    failed = [tasks.submit(act(config=once), {"do": "fail"}) for _ in range(3)]
    refused = tasks.submit(act(config=once), {"do": "refuse"})
    inline_worker.run_all()
    groups = {group["tasks"]: group for group in client.dead_letters()}
    assert (groups[3]["exhausted"], groups[1]["exhausted"]) == (3, 0)
    assert groups[3]["agents"] == ["Act"]
    assert groups[1]["example"] == str(refused)
    chosen = {"error_fingerprint": groups[3]["fingerprint"]}
    assert {each["task_id"] for each in client.replay_many(dry_run=True, **chosen)} == {str(task) for task in failed}
    seen: list[tuple[int, int]] = []
    done = list(client.replay_many(rate=2, progress=lambda *numbers: seen.append(numbers), **chosen))
    assert seen == [(3, 3)]
    new = [tasks.get(each["replayed_as"]) for each in done]
    assert {task["replay_of"] for task in new} == set(failed)
    due = sorted(task["due_at"] or task["created_at"] for task in new)
    assert (due[-1] - due[0]).total_seconds() > 0.9
    assert all(task["input"] == {"do": "fail"} for task in new)
    assert list(client.replay_many(**chosen)) == []
    assert [group["tasks"] for group in client.dead_letters()] == [1]
    assert len(list(client.replay_many(again=True, dry_run=True, **chosen))) == 3


def test_replay_continues_after_a_refusal(
    client: Client, tasks: Tasks, act: Any, inline_worker: InlineWorker, database: Engine
) -> None:
    one, other = tasks.submit(act("One", config={"max_attempts": 1}), {"do": "fail"}), None
    other = tasks.submit(act("Other", config={"max_attempts": 1}), {"do": "fail"})
    inline_worker.run_all()
    with database.begin() as connection:
        connection.execute(text("UPDATE agents SET status = 'disabled' WHERE name = 'One'"))
    done = {each["task_id"]: each for each in client.replay_many()}
    assert "is disabled" in done[str(one)]["error"]["message"]
    assert done[str(other)]["replayed_as"]


def test_only_ended_tasks_can_be_replayed(client: Client) -> None:
    with pytest.raises(errors.InvalidInput, match="not running ones"):
        list(client.replay_many(states=["running"]))
    with pytest.raises(errors.NotFound, match="no function version"):
        list(client.replay_many(function="nobody@1"))


def test_replay_by_function_version(client: Client, tasks: Tasks, define: Any, inline_worker: InlineWorker) -> None:
    agent = {"kind": "agent", "name": "F", "type": "function", "function": "f", "config": {"capabilities": ["work"]}}
    define({"kind": "function", "name": "f", "code": "def f(): return 1 / 0"}, agent)
    first = tasks.submit("F")
    inline_worker.run_all()
    define({"kind": "function", "name": "f", "code": "def f(): return 1"}, agent)
    second = tasks.submit("F")
    inline_worker.run_all()
    assert tasks.get(second)["state"] == "succeeded"
    [done] = client.replay_many(function="f@1")
    assert done["task_id"] == str(first)
    inline_worker.run_all()
    assert tasks.get(done["replayed_as"])["output"] == 1


def test_unique_keys_over_http(client: Client, tasks: Tasks, act: Any, inline_worker: InlineWorker) -> None:
    first = client.submit(act(), {}, unique_key="report", unique_while="running")
    assert client.submit(act(), {"other": 1}, unique_key="report").id == first.id
    inline_worker.run_all()
    assert client.submit(act(), {}, unique_key="report").id != first.id
    with pytest.raises(errors.InvalidInput):
        client.submit(act(), {}, unique_key="report", unique_while="sometimes")


@pytest.mark.usefixtures("dispatcher")
def test_why_a_task_waits_for_its_turn(client: Client, tasks: Tasks, act: Any, inline_worker: InlineWorker) -> None:
    first = tasks.submit(act(), {}, conversation_id="c")
    second = tasks.submit(act(), {}, conversation_id="c")
    reason, said = why(client, second)
    assert reason == "turn"
    assert f"task {first} of Act (pending) comes before it" in said
    inline_worker.run_all()
    assert tasks.get(first)["finished_at"] < tasks.executions(second)[0]["started_at"]


@pytest.mark.usefixtures("dispatcher")
def test_why_of_task_behind_one_that_came_due_later(
    client: Client, tasks: Tasks, act: Any, inline_worker: InlineWorker, database: Engine
) -> None:
    first = tasks.submit(act(), {}, conversation_id="c", run_at="2100-01-01T00:00:00Z")
    second = tasks.submit(act(), {}, conversation_id="c")
    client.pause("agent", "Act")
    assert why(client, second)[0] == "paused"
    with database.begin() as connection:
        connection.execute(text("UPDATE task_status SET due_at = now() WHERE task_id = :t"), {"t": first})
    assert inline_worker.dispatch() == []
    reason, said = why(client, second)
    assert reason == "turn"
    assert f"task {first} of Act (pending) comes before it" in said
