"""Trials: recorded tasks run again on the same worker code, without an effect on the world."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from minions import Client, Task
from minions.errors import Conflict, Forbidden, InvalidInput, MinionsError
from minions.testing import MessagesApi, tool_use
from minions.testing import text as said
from orchestrator.cases.case import parse_case
from orchestrator.cases.recorder import record
from orchestrator.cases.verdict import of_replay, of_shadow
from orchestrator.dead_letters import dead_letters
from orchestrator.observe.counting import catch_up
from shared.contracts.recording import RecordedTask, parse_recording
from shared.tasks.records import StepRecord
from shared.tasks.trials import FORMAT
from tests.conftest import Define
from tests.integration.agents.conftest import ANYTHING, TOOLS
from tests.integration.api.conftest import Api, WithKey
from tests.integration.conftest import InlineWorker
from workers.outcomes import Postponed
from workers.trial_journal import TrialJournal

MODEL = "claude-sonnet-5-5"
MEMORY = {"kind": "tool", "name": "notes", "type": "memory", "memory": {"per": "agent"}}
SITE = {
    "kind": "tool",
    "name": "site",
    "type": "http",
    "effect": "unsafe",
    "input_schema": ANYTHING,
    "http": {"method": "POST", "url": "https://93.184.215.14/charge"},
}
FREE = {"kind": "agent", "name": "Free", "type": "agent", "model": MODEL, "tools": ["echo", "act", "send"]}
ASK = {"kind": "tool", "name": "ask", "type": "agent", "agent": "Free", "input_schema": ANYTHING}
QUESTION = {"messages": [{"role": "user", "content": '{"text": "go"}'}]}
ALL = ["echo", "act", "send", "careful", "checked", "help", "notes", "site", "ask"]


@pytest.fixture
def agent(define: Define) -> Callable[..., None]:
    """Defines `Agent` with a tool of every kind; `agent(tools=[…])` applies another version."""

    def make(**fields: Any) -> None:
        config = {"capabilities": ["work"], "max_turns": 10, **fields.pop("config", {})}
        define(
            *TOOLS, MEMORY, SITE, {**FREE, "config": {"capabilities": ["work"]}}, ASK,
            {"kind": "agent", "name": "Agent", "model": MODEL, "tools": ALL, "config": config, **fields},
        )  # fmt: skip

    make()
    return make


@pytest.fixture
def ran(client: Client, inline_worker: InlineWorker, messages_api: MessagesApi) -> Callable[..., Task]:
    """Runs `Agent` with replies of its model: `ran(tool_use(…), text(…))`."""

    def run(*replies: Any, agent: str = "Agent", **fields: Any) -> Task:
        messages_api.script[:] = replies
        messages_api.requests.clear()
        task = client.submit(agent, fields.pop("input", {"text": "go"}), **fields)
        inline_worker.run_all()
        return client.get(task)

    return run


@pytest.fixture
def evaluated(client: Client, inline_worker: InlineWorker, messages_api: MessagesApi) -> Callable[..., Task]:
    """Runs a recording: `evaluated(recording, "shadow", replies…)`."""

    def run(recording: dict[str, Any], level: str, *replies: Any, **options: Any) -> Task:
        messages_api.script[:] = replies
        messages_api.requests.clear()
        task = client.submit_trial(recording, level=level, **options)
        inline_worker.run_all()
        return client.get(task)

    return run


def recorded(client: Client, task: Task) -> dict[str, Any]:
    """The recording of a task."""
    found: dict[str, Any] = record(client, task.id, name="case", redacted=[])["task"]
    return found


# ------------------------------------------------------------------------------------------------------------ replay


@pytest.mark.usefixtures("agent")
def test_replay_takes_the_recorded_path_without_any_call(
    ran: Callable[..., Task], evaluated: Callable[..., Task], client: Client, messages_api: MessagesApi, tmp_path: Path
) -> None:
    log = tmp_path / "calls"
    calls = [
        ("act", {"log": str(log), "answer": {"b": 1, "a": [1.0]}}),
        ("send", {"log": str(log)}),
        ("echo", {"z": 1}),
    ]
    task = ran(tool_use(*calls), tool_use(("help", {"log": str(log)})), said("done"))
    assert task.output == {"content": "done"}
    recording, noted = recorded(client, task), log.read_text()
    found = evaluated(recording, "replay")
    assert (found.output, found.error) == (task.output, None)
    assert messages_api.requests == messages_api.counted == []
    assert log.read_text() == noted
    case = parse_case({"minions_case": 1, "name": "case", "task": recording}, where="case")
    assert of_replay(case, parse_recording(recorded(client, found))) == []
    assert sum(run["cost_microdollars"] for run in client.executions(found)) == 0


def test_replay_names_the_first_step_that_differs(
    ran: Callable[..., Task], evaluated: Callable[..., Task], client: Client, agent: Callable[..., None]
) -> None:
    recording = recorded(client, ran(tool_use(("echo", {"a": 1})), said("done")))
    agent(tools=["act"])
    error = evaluated(recording, "replay").error
    assert error is not None
    assert (error["type"], error["step"]) == ("recording_differs", 2)
    assert error["recorded"]["request"]["arguments"] == {"a": 1}
    assert "There is no tool named 'echo'" in json.dumps(error["asked"])
    agent(system_prompt="Other words are no other path.", model="claude-opus-5")
    assert evaluated(recording, "replay").succeeded


def test_replay_of_chain_compares_sub_tasks(
    ran: Callable[..., Task], evaluated: Callable[..., Task], client: Client, define: Define, agent: Callable[..., None]
) -> None:
    chain = {"kind": "agent", "name": "Chain", "type": "function", "config": {"capabilities": ["work"]}}
    define({**chain, "relations": [{"agent": "Helper"}, {"agent": "Helper"}]})
    recording = recorded(client, ran(agent="Chain", input={"answer": {"answer": "deep"}}))
    assert evaluated(recording, "replay").output == "deep"
    recording["steps"][0]["task"]["steps"][0]["request"]["arguments"] = {"answer": "another"}
    error = evaluated(recording, "replay").error
    assert error is not None
    assert error["type"] == "recording_differs"


@pytest.mark.usefixtures("agent")
def test_approval_has_its_recorded_decision(
    client: Client, inline_worker: InlineWorker, messages_api: MessagesApi, evaluated: Callable[..., Task]
) -> None:
    messages_api.script[:] = [tool_use(("careful", {"answer": 1})), said("done")]
    task = client.submit("Agent", {})
    inline_worker.run_due()
    client.decide(task, "approve", step=2, value={"answer": 2})
    inline_worker.run_all()
    recording = recorded(client, client.get(task))
    for level, replies in (("replay", []), ("shadow", [tool_use(("careful", {"answer": 1})), said("done")])):
        found = evaluated(recording, level, *replies)
        assert found.output == {"content": "done"}
        assert [step["output"] for step in client.steps(found)][1:3] == [{"arguments": {"answer": 2}}, 2]


# ------------------------------------------------------------------------------------------------------------ shadow


@pytest.mark.usefixtures("agent")
def test_shadow_calls_model_and_answers_from_recording(
    ran: Callable[..., Task], evaluated: Callable[..., Task], client: Client, messages_api: MessagesApi, tmp_path: Path
) -> None:
    log = tmp_path / "calls"
    call = ("send", {"log": str(log), "answer": "sent"})
    task = ran(tool_use(call), said("done"))
    recording, noted = recorded(client, task), log.read_text()
    found = evaluated(recording, "shadow", tool_use(("echo", {"new": 1})), tool_use(call), said("other words"))
    assert found.output == {"content": "other words"}
    assert len(messages_api.requests) == 3
    assert log.read_text() == noted
    assert [step["output"] for step in client.steps(found)][1::2] == [{"new": 1}, "sent"]
    case = parse_case({"minions_case": 1, "name": "case", "task": recording}, where="case")
    run = parse_recording(recorded(client, found))
    assert of_shadow(case, run) == []
    assert of_shadow(case, run.model_copy(update={"steps": run.steps[:2]})) != []


WAYS = {
    "unsafe tool": [("send", {})],
    "unsafe tool beside others": [("echo", {}), ("act", {}), ("send", {})],
    "more often than recorded": [("send", {"recorded": 1}), ("send", {"recorded": 1})],
    "approved unsafe tool": [("careful", {})],
    "approved idempotent tool": [("checked", {})],
    "HTTP tool": [("site", {})],
    "memory, to change it": [("memory", {"command": "create", "path": "/memories/a", "file_text": "b"})],
    "memory, to look at it": [("memory", {"command": "view", "path": "/memories"})],
}


@pytest.mark.parametrize("calls", WAYS.values(), ids=WAYS.keys())
@pytest.mark.usefixtures("agent")
def test_no_unrecorded_effect_begins_in_any_way(
    ran: Callable[..., Task], evaluated: Callable[..., Task], client: Client, database: Engine, tmp_path: Path,
    calls: list[tuple[str, dict[str, Any]]],
) -> None:  # fmt: skip
    log = tmp_path / "calls"

    def noting(calls: list[tuple[str, dict[str, Any]]]) -> Any:
        return tool_use(*((name, {"log": str(log), **given} if name != "memory" else given) for name, given in calls))

    recording = recorded(client, ran(noting([("send", {"recorded": 1})]), said("done")))
    made = log.read_text().splitlines()
    # The trial permits even idempotent calls.
    for reply in (noting(calls), noting([("echo", {}), *calls])):
        found = evaluated(recording, "shadow", reply, said("done"), allow_idempotent=True)
        assert found.error is not None
        assert found.error["type"] == "would_have_called", found
        assert found.wait_reason is None
    others = log.read_text().splitlines()[len(made) :]
    unsafe = {step["name"] for step in client.steps(found) if step["effect"] == "unsafe" and step["error"] is None}
    assert len(others) <= sum(name == "act" for name, _ in calls) * 2
    assert unsafe <= {"send"}
    with database.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM memory_stores")) == 0


@pytest.mark.usefixtures("agent")
def test_effect_of_sub_agent_ends_the_whole_trial(
    ran: Callable[..., Task], evaluated: Callable[..., Task], client: Client, tmp_path: Path
) -> None:
    log = tmp_path / "calls"
    recording = recorded(client, ran(said("done")))
    replies = [tool_use(("ask", {"a": 1})), tool_use(("send", {"log": str(log)})), said("the model goes on")]
    found = evaluated(recording, "shadow", *replies)
    assert found.error is not None
    assert found.error["type"] == "would_have_called"
    below = [client.get(step["child_id"]) for step in client.steps(found) if step["kind"] == "subtask"]
    assert [each.error and each.error["type"] for each in below] == ["would_have_called"]
    assert not log.exists()


@pytest.mark.usefixtures("agent")
def test_idempotent_calls_are_made_by_choice_alone(
    ran: Callable[..., Task], evaluated: Callable[..., Task], client: Client, tmp_path: Path
) -> None:
    log = tmp_path / "calls"
    recording = recorded(client, ran(said("done")))
    replies = [tool_use(("act", {"log": str(log)})), said("done")]
    refused = evaluated(recording, "shadow", *replies)
    assert refused.error is not None
    assert (refused.error["type"], log.exists()) == ("would_have_called", False)
    assert evaluated(recording, "shadow", *replies, allow_idempotent=True).succeeded
    assert len(log.read_text().splitlines()) == 1


def test_tools_that_the_api_runs_are_idempotent(
    ran: Callable[..., Task], evaluated: Callable[..., Task], client: Client, define: Define,
    agent: Callable[..., None], messages_api: MessagesApi,
) -> None:  # fmt: skip
    recording = recorded(client, ran(said("done")))
    define({"kind": "tool", "name": "web", "type": "web_search"})
    agent(tools=["web"])
    found = evaluated(recording, "shadow", said("done"))
    assert found.error is not None
    assert (found.error["type"], messages_api.requests) == ("would_have_called", [])
    assert evaluated(recording, "shadow", said("done"), allow_idempotent=True).succeeded


# ------------------------------------------------------------------------------------------- apart from the production


def test_trial_is_never_run_as_another_task(
    ran: Callable[..., Task], evaluated: Callable[..., Task], client: Client, database: Engine,
    inline_worker: InlineWorker, agent: Callable[..., None], tmp_path: Path,
) -> None:  # fmt: skip
    log = tmp_path / "calls"
    recording = recorded(client, ran(tool_use(("send", {"log": str(log)})), said("done")))
    found = evaluated(recording, "replay")
    for ways in ({}, {"from_step": 1}):
        with pytest.raises(Conflict, match="is a trial, and cannot be replayed"):
            client.replay(found, **ways)
    with database.begin() as connection:
        connection.execute(text("DELETE FROM trials"))
    noted = log.read_text()
    again = client.submit_trial(recording, level="shadow")
    with database.begin() as connection:
        formats = connection.scalars(text("SELECT journal_format FROM tasks WHERE id = :id"), {"id": again.id})
        assert list(formats) == [FORMAT]
        connection.execute(text("DELETE FROM trials"))
    inline_worker.run_all()
    lost = client.get(again).error
    assert lost is not None
    assert "The recording of this trial is not stored" in lost["message"]
    assert log.read_text() == noted


@pytest.mark.usefixtures("agent")
def test_trial_leaves_the_production_alone(
    ran: Callable[..., Task], evaluated: Callable[..., Task], client: Client, database: Engine
) -> None:
    task = ran(said("done"), conversation_id="talk", key="tenant")
    recording = recorded(client, task)
    client.add_webhook("hook", "https://93.184.215.14/hook")
    found = evaluated(recording, "shadow", tool_use(("send", {})), labels={"evaluation": "run"})
    assert (found.state, found.conversation_id, found.key) == ("failed", None, None)
    assert found.labels == {"evaluation": "run"}
    with database.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM webhook_deliveries")) == 0
        assert connection.scalar(text("SELECT count(*) FROM messages")) == 2
        assert dead_letters(connection, namespace="default", limit=10).items == []
    catch_up(database)
    agents = {item["agent"]: item["count"] for item in client.stats(by=["agent"])["items"]}
    assert agents == {"Agent": 1, "Agent (trial)": 1}
    with database.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM statistics WHERE kind = 'failure'")) == 0


@pytest.mark.usefixtures("agent")
def test_errors_and_costs_are_those_of_the_production(
    ran: Callable[..., Task], evaluated: Callable[..., Task], client: Client, database: Engine
) -> None:
    asked = [tool_use(("ask", {"a": 1})), said("seen"), said("done")]
    recording = recorded(client, ran(*asked))
    failed = ran(said(""), said(""))
    assert failed.error_fingerprint is not None
    catch_up(database)
    client.decide_error(failed.error_fingerprint, "resolved")
    assert evaluated(recording, "shadow", *asked).succeeded
    assert evaluated(recording, "shadow", said(""), said("")).state == "failed"
    catch_up(database)
    [kind] = client.errors()["items"]
    assert (kind["tasks"], kind["example"], kind["state"]) == (1, failed.id, "resolved")
    made = {item["agent"]: item["calls"] for item in client.costs(by=["agent", "tool"])["items"] if item["tool"]}
    assert made == {"Agent": 1, "Agent (trial)": 1}


@pytest.mark.usefixtures("agent")
def test_replay_runs_while_a_standing_budget_is_overspent(
    ran: Callable[..., Task], evaluated: Callable[..., Task], client: Client, with_key: WithKey,
    inline_worker: InlineWorker,
) -> None:  # fmt: skip
    budget = {"scope": "agent", "name": "Agent", "period": "day", "dollars": 1, "tokens": 1_000_000}
    admin = with_key("admin")
    assert admin.put("/v1/budgets", json=budget).status_code == 200
    recording = recorded(client, ran(tool_use(("echo", {"n": 1})), said("done")))
    assert admin.put("/v1/budgets", json={**budget, "dollars": 0.000001, "tokens": 1}).json()["tokens"]["spent"] > 1
    assert evaluated(recording, "replay").succeeded
    shadow = client.submit_trial(recording, level="shadow")
    inline_worker.run_due()
    assert client.get(shadow).wait_reason == "standing_budget"


def test_trial_neither_uses_nor_fills_the_cache(
    evaluated: Callable[..., Task], client: Client, database: Engine, define: Define, tmp_path: Path
) -> None:
    log = tmp_path / "calls"
    define({**TOOLS[1], "effect": "pure", "cache": "1h"})
    define({"kind": "agent", "name": "Pure", "type": "function", "tool": "act", "config": {"capabilities": ["work"]}})
    for _ in range(2):
        assert evaluated({"agent": "Pure", "input": {"log": str(log)}}, "shadow").succeeded
    assert len(log.read_text().splitlines()) == 2
    with database.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM cached_results")) == 0


@pytest.mark.usefixtures("agent")
def test_interrupted_step_of_trial_asks_no_person(
    ran: Callable[..., Task], client: Client, inline_worker: InlineWorker, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    log = tmp_path / "calls"
    recording = recorded(client, ran(tool_use(("send", {"log": str(log)})), said("done")))
    noted = log.read_text()
    finish = TrialJournal._perform

    def die(journal: TrialJournal, started: StepRecord, *rest: Any, **more: Any) -> Any:
        if started["name"] == "send":
            monkeypatch.setattr(TrialJournal, "_perform", finish)
            raise Postponed(0.0, "handed_back")
        return finish(journal, started, *rest, **more)

    monkeypatch.setattr(TrialJournal, "_perform", die)
    trial = client.submit_trial(recording, level="replay")
    inline_worker.run_due()
    assert [step["status"] for step in client.steps(trial)] == ["finished", "started"]
    inline_worker.run_all()
    assert client.get(trial).succeeded
    assert log.read_text() == noted


@pytest.mark.usefixtures("agent")
def test_trials_are_left_out_of_bulk_replays(
    ran: Callable[..., Task], evaluated: Callable[..., Task], client: Client
) -> None:
    recording = recorded(client, ran(said("done")))
    assert evaluated(recording, "shadow", tool_use(("send", {}))).state == "failed"
    assert list(client.replay_many(states=["failed"])) == []


BAD_MESSAGES = [[{}], [{"role": "user"}], [{"role": 5, "content": []}]]


@pytest.mark.parametrize("messages", BAD_MESSAGES)
@pytest.mark.parametrize("level", ["replay", "shadow"])
@pytest.mark.usefixtures("agent")
def test_invalid_messages_are_refused(evaluated: Callable[..., Task], messages: list[Any], level: str) -> None:
    with pytest.raises(InvalidInput, match="messages"):
        evaluated({"agent": "Agent", "messages": messages}, level)


@pytest.mark.usefixtures("agent")
def test_messages_with_unknown_blocks_fail_the_trial(evaluated: Callable[..., Task]) -> None:
    found = evaluated({"agent": "Agent", "messages": [{"role": "user", "content": [{"type": 1}]}]}, "replay")
    assert found.error is not None
    assert found.error["type"] == "invalid_input"


# ----------------------------------------------------------------------------------------------------------- recording


@pytest.mark.usefixtures("agent")
def test_recording_needs_payloads_and_an_end(
    ran: Callable[..., Task], client: Client, with_key: WithKey, http_api: Api
) -> None:
    task = ran(said("done"))
    name = client.create_api_key("blind", "viewer")
    with Client(http_api.url, name["key"]) as blind, pytest.raises(Forbidden, match="payloads:read"):
        record(blind, task.id, name=None, redacted=[])
    pending = client.submit("Agent", {})
    with pytest.raises(MinionsError, match="record it when it has ended"):
        record(client, pending.id, name=None, redacted=[])


@pytest.mark.usefixtures("agent")
def test_redacted_recording_still_takes_its_path(
    ran: Callable[..., Task], client: Client, evaluated: Callable[..., Task]
) -> None:
    mail = 'ann "x"@example.com'
    task = ran(tool_use(("echo", {"to": mail})), said(f"I wrote to {mail}."), input={"mail": mail, "n": 4111})
    case = record(client, task.id, name=None, redacted=["$.task.input.mail", "$..n"])
    assert "example.com" not in json.dumps(case)
    assert "4111" not in json.dumps(case["task"]["steps"])
    assert case["recorded"]["redacted"] == ["$.task.input.mail", "$..n"]
    assert evaluated(case["task"], "replay").succeeded
    with pytest.raises(InvalidInput, match="leads to nothing"):
        record(client, task.id, name=None, redacted=["$.task.input.phone"])


HOSTILE: dict[str, Any] = {
    "reply without blocks": {"steps": [{"number": 1, "kind": "model_call", "name": "m", "output": {}}]},
    "sub-task without a task": {"steps": [{"number": 1, "kind": "subtask", "name": "a"}]},
    "two steps with a number": {"steps": [{"number": 1, "kind": "wait", "name": "a"}] * 2},
    "search without a name": {
        "steps": [
            {
                "number": 1,
                "kind": "model_call",
                "name": "m",
                "output": {"content": [{"type": "server_tool_use"}], "stop_reason": "end_turn", "model": "m"},
            }
        ]
    },
    "other fields": {"steps": [], "run": "rm"},
    "error that is none": {"error": {"type": ["x"]}},
}


@pytest.mark.parametrize("wrong", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.usefixtures("agent")
def test_invalid_recording_is_refused_with_its_place(client: Client, wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="The recording is not valid"):
        client.submit_trial({"agent": "Agent", "input": {}, **wrong}, level="replay")


@pytest.mark.parametrize("kind", ["budget_exceeded", "cancelled", "unknown"])
def test_recorded_error_of_another_kind_fails_the_task(
    evaluated: Callable[..., Task], agent: Callable[..., None], kind: str
) -> None:
    error = {"type": kind, "message": "edited by hand", "self": 1}
    step = {"number": 1, "kind": "model_call", "name": MODEL, "request": QUESTION, "error": error}
    found = evaluated({"agent": "Agent", "input": {"text": "go"}, "steps": [step]}, "replay")
    assert found.error is not None
    assert (found.state, found.error["type"], found.error["message"]) == ("failed", "tool_error", "edited by hand")


def test_recording_without_steps_is_the_least(client: Client, agent: Callable[..., None]) -> None:
    assert RecordedTask(agent="Agent").steps == []
    assert client.submit_trial({"agent": "Agent", "input": {}}, level="replay").state in ("pending", "queued")


def test_programs_are_replayed_and_compared(
    define: Define,
    agent: Callable[..., None],
    ran: Callable[..., Task],
    evaluated: Callable[..., Task],
    client: Client,
    messages_api: MessagesApi,
    tmp_path: Path,
) -> None:
    agent(config={"code_mode": True}, tools=["act", "send", "echo"])
    log = tmp_path / "calls"
    code = """
import time
n = await act(answer=3, log=LOG)
await send(log=LOG, at=time.time())
return [await echo(n=each) for each in range(n)]
"""
    run = tool_use(("run_program", {"code": f"LOG = {str(log)!r}\n{code}"}))
    task = ran(run, said("done"))
    recording = recorded(client, task)
    made = log.read_text()

    again = evaluated(recording, "replay")
    assert (again.state, again.output) == ("succeeded", task.output), again.error

    # Another program: what it calls is answered by tool and arguments, and another unsafe call ends the trial.
    other = tool_use(("run_program", {"code": f"return [await act(log={str(log)!r}, answer=3), await echo(n=7)]"}))
    shadow = evaluated(recording, "shadow", other, said("done"))
    assert shadow.state == "succeeded", shadow.error
    assert [s["output"] for s in client.steps(shadow.id) if s["name"] in ("act", "echo")] == [3, {"n": 7}]
    harmful = tool_use(("run_program", {"code": "return await send(do='answer', answer='other')"}))
    ended = evaluated(recording, "shadow", harmful, said("done"))
    assert ended.error is not None
    assert ended.error["type"] == "would_have_called"

    # In a replay, another line of the recording is a difference.
    changed = json.loads(json.dumps(recording))
    next(step for step in changed["steps"] if step["name"] == "act")["output"] = 2
    differs = evaluated(changed, "replay")
    assert differs.error is not None
    assert (differs.error["type"], differs.error["step"]) == ("recording_differs", 7)
    assert (log.read_text(), messages_api.requests) == (made, [])
