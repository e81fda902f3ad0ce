"""A replay from a step reads the earlier steps back, and continues from there."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch
from uuid import UUID

import pytest
from psycopg.pq import TransactionStatus
from sqlalchemy import Connection, Engine, text

import orchestrator.replay_from
from minions import testing
from minions.testing import MessagesApi, tool_use
from orchestrator.replay_from import Edit, replay_from
from shared.errors import Conflict, InvalidInput, NotFound, TooLarge
from shared.settings import Settings
from shared.tasks import lifecycle
from shared.tasks.approvals import check_arguments
from tests.conftest import Define
from tests.integration.agents.conftest import DefineAgent, plain
from tests.integration.conftest import ACT, InlineWorker, Tasks

SCRIPT = [
    tool_use(("echo", {"n": 1}), ("act", {"answer": [2.0]}), ("act", {"do": "refuse"}), ("help", {"answer": "helped"})),
    tool_use(("careful", {"answer": "as proposed"})),
    testing.text("Done."),
]
KINDS = [
    "model_call",
    "tool_call",
    "tool_call",
    "tool_call",
    "subtask",
    "model_call",
    "wait",
    "tool_call",
    "model_call",
]
RELEASE = text("SELECT minion_release(:task, :claim, 'handed_back', false, '0', '{}')")


class Replays:
    """Runs tasks of `Agent`, approves what they propose, and replays them from a step."""

    def __init__(self, tasks: Tasks, inline_worker: InlineWorker, messages_api: MessagesApi) -> None:
        self.tasks, self.inline_worker, self.messages_api = tasks, inline_worker, messages_api

    def run(self, task: UUID) -> dict[str, Any]:
        """A task when it has ended."""
        for _ in range(10):
            self.inline_worker._round()
            found = self.tasks.get(task)
            if found["wait_reason"] == "approval":
                with self.inline_worker.engine.begin() as connection:
                    lifecycle.decide(connection, task, "approve", who="test", value={"answer": "approved"})
            elif found["finished_at"]:
                return found
        raise AssertionError(f"{task} does not end: {self.tasks.get(task)}")

    def submit(self, script: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
        """A new task of this script, ended."""
        self.messages_api.script = list(script)
        return self.run(self.tasks.submit("Agent", None if "messages" in fields else "Hello", **fields))

    def accept(self, task: UUID, step: int, edit: Edit | None = None) -> UUID:
        """A replay that has not run yet."""
        return replay_from(self.inline_worker.engine, task, step, edit=edit, submitted_by="test")

    def replay(self, task: UUID, step: int, edit: Edit | None = None) -> dict[str, Any]:
        """A replay, ended; the model gives those answers that the script has after the reused ones."""
        reused = step if edit is not None else step - 1
        made = sum(s["kind"] == "model_call" for s in self.tasks.steps(task) if s["number"] <= reused)
        self.messages_api.script, self.messages_api.requests = SCRIPT[made:] or SCRIPT[-1:], []
        return self.run(self.accept(task, step, edit))

    def asked(self) -> int:
        """Model requests since the last replay began."""
        return len(self.messages_api.requests)


@pytest.fixture
def replays(tasks: Tasks, inline_worker: InlineWorker, messages_api: MessagesApi, define_agent: DefineAgent) -> Replays:
    define_agent()
    return Replays(tasks, inline_worker, messages_api)


def shape(steps: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(s["number"], s["kind"], s["name"], s["status"], s["request_hash"]) for s in steps]


def test_replay_from_any_step_ends_the_same(replays: Replays) -> None:
    first = replays.submit(SCRIPT)
    journal = replays.tasks.steps(first["id"])
    assert [step["kind"] for step in journal] == KINDS
    assert [step["status"] for step in journal].count("failed") == 1
    for number in range(1, len(journal) + 2):
        again = replays.replay(first["id"], number)
        assert (again["state"], again["output"], again["error"]) == ("succeeded", first["output"], None), number
        assert again["replay_of"] == first["id"]
        steps = replays.tasks.steps(again["id"])
        assert shape(steps) == shape(journal)
        assert [s["copied_from"] for s in steps] == [first["id"] if s["number"] < number else None for s in steps]
        assert replays.asked() == KINDS[number - 1 :].count("model_call")
        assert len(list(replays.tasks.children(again["id"]))) == 1
        cost = sum(e["input_tokens"] for e in replays.tasks.executions(again["id"]))
        assert cost == 110 * replays.asked()
        assert all(s["claim"] == 0 and s["cost_microdollars"] == 0 and not s["usage"] for s in steps[: number - 1])


def test_replay_of_replay_knows_the_origin_of_each_step(replays: Replays) -> None:
    first = replays.submit(SCRIPT)
    second = replays.replay(first["id"], 7)
    third = replays.replay(second["id"], 9)
    assert third["output"] == first["output"]
    makers = [step["copied_from"] for step in replays.tasks.steps(third["id"])]
    assert makers == [first["id"]] * 6 + [second["id"]] * 2 + [None]
    assert third["origin_id"] == first["id"]


def test_model_receives_edited_output(replays: Replays) -> None:
    first = replays.submit(SCRIPT)
    for step, output, told in (
        (2, {"n": "edited"}, '{"n": "edited"}'),
        (4, "it worked after all", "it worked after all"),
        (5, "another result", "another result"),
    ):
        again = replays.replay(first["id"], step, Edit(output))
        assert again["state"] == "succeeded"
        results = plain(replays.messages_api.requests[0])[-1]["content"]
        assert results[step - 2] == {"type": "tool_result", "tool_use_id": f"toolu_{step - 1}", "content": told}
        edited = replays.tasks.steps(again["id"])[step - 1]
        assert (edited["status"], edited["usage"]["edited"]["by"]) == ("finished", "test")


def test_an_edited_answer_and_an_edited_approval(replays: Replays, tasks: Tasks) -> None:
    first = replays.submit(SCRIPT)
    reply = {**tasks.steps(first["id"])[8]["output"], "content": [{"type": "text", "text": "Otherwise."}]}
    assert replays.replay(first["id"], 9, Edit(reply))["output"] == {"content": "Otherwise."}
    assert replays.asked() == 0
    again = replays.replay(first["id"], 7, Edit({"arguments": {"answer": "mine"}}))
    assert tasks.steps(again["id"])[7]["output"] == "mine"
    with pytest.raises(InvalidInput, match="The input of tool 'careful' does not match its schema: "):
        replays.accept(first["id"], 7, Edit({"arguments": "mine"}))


def test_edited_arguments_are_checked_without_a_transaction(replays: Replays) -> None:
    """A check may take 2 s, and PostgreSQL ends a transaction that is idle for the time of a lease."""
    first = replays.submit(SCRIPT)
    statuses = []

    def check(connection: Connection, *arguments: Any) -> None:
        check_arguments(connection, *arguments)
        statuses.append(connection.connection.driver_connection.info.transaction_status)  # type: ignore[union-attr]

    with patch.object(orchestrator.replay_from, "check_arguments", check):
        replays.accept(first["id"], 7, Edit({"arguments": {"answer": "mine"}}))
    assert statuses == [TransactionStatus.IDLE]


def test_sub_task_result_survives_retention(replays: Replays) -> None:
    first = replays.submit(SCRIPT)
    large = replays.accept(first["id"], 6)
    with replays.inline_worker.engine.begin() as connection:
        connection.execute(text("DELETE FROM task_outcomes WHERE task_id <> :task"), {"task": large})
        connection.execute(text("DELETE FROM tasks WHERE root_id = :task"), {"task": first["id"]})
    replays.messages_api.script = SCRIPT[1:]
    assert replays.run(large)["output"] == first["output"]
    assert "'content': 'helped'" in str(replays.messages_api.requests[-1]["messages"])


def test_fan_out_continues_after_its_sub_tasks(tasks: Tasks, inline_worker: InlineWorker, define: Define) -> None:
    """The next sub-task's input names those before it: their ids are part of the history."""
    helper = {"type": "function", "tool": "act", "config": {"capabilities": ["work"]}}
    define(
        ACT,
        {"kind": "agent", "name": "Helper", **helper},
        {
            "kind": "agent",
            "name": "Chain",
            "type": "function",
            "relations": [{"agent": "Helper", "for_each": "items"}, {"agent": "Helper"}],
            "config": {"capabilities": ["work"], "on_child_failure": "collect"},
        },
    )
    first = tasks.submit("Chain", {"items": [{"answer": 1}, {"do": "refuse"}, {"answer": 3}]})
    inline_worker.run_all()
    children = tasks.count()["succeeded"]
    for step in (4, 5):
        again = replay_from(inline_worker.engine, first, step, submitted_by="test")
        inline_worker.run_all()
        assert tasks.get(again)["output"] == tasks.get(first)["output"]
    assert tasks.count()["succeeded"] == children + 3


def test_a_replay_that_is_interrupted_reads_the_same_journal(replays: Replays) -> None:
    first = replays.submit(SCRIPT)
    task = replays.accept(first["id"], 7)
    [message] = replays.inline_worker.dispatch()
    with replays.inline_worker.engine.begin() as connection:
        claimed = lifecycle.claim(connection, task, message.claim, replays.inline_worker.id)
        assert claimed
        assert [step["number"] for step in claimed["steps"]] == [1, 2, 3, 4, 5, 6]
        connection.execute(RELEASE, {"task": task, "claim": claimed["claim"]})
    replays.messages_api.script = SCRIPT[2:]
    assert replays.run(task)["output"] == first["output"]


def test_replay_of_cancelled_task_continues_where_it_stopped(replays: Replays, tasks: Tasks) -> None:
    replays.messages_api.script = list(SCRIPT)
    task = tasks.submit("Agent", "Hello")
    for _ in range(3):
        replays.inline_worker._round()
    assert tasks.get(task)["wait_reason"] == "approval"
    tasks.cancel(task)
    with pytest.raises(Conflict, match=r"from step 8: step 7 \(careful\) was interrupted.*--from-step 7"):
        replays.accept(task, 8)
    assert replays.replay(task, 7)["output"] == {"content": "Done."}
    assert replays.asked() == 1


def test_a_replay_reads_the_conversation_as_it_was(replays: Replays) -> None:
    replays.submit([testing.text("Hello Ada.")], messages=["I am Ada."], conversation_id="c")
    first = replays.submit(SCRIPT, messages=["Who am I?"], conversation_id="c")
    replays.submit([testing.text("Bye.")], messages=["Bye."], conversation_id="c")
    replays.replay(first["id"], 6)
    said = [message["content"] for message in plain(replays.messages_api.requests[0])[:3]]
    assert said[::2] == ["I am Ada.", "Who am I?"]


def test_a_step_that_is_not_there(replays: Replays) -> None:
    first = replays.submit(SCRIPT)
    for step in (0, -1, 11, 2**40):
        with pytest.raises(InvalidInput, match=f"from step {step}: its steps are 1 to 9"):
            replays.accept(first["id"], step)
        with pytest.raises(InvalidInput, match=f"no step {step} whose output could be edited"):
            replays.accept(first["id"], step, Edit(None))


def test_replay_from_step_is_refused(replays: Replays, tasks: Tasks, settings: Settings) -> None:
    with pytest.raises(NotFound):
        replays.accept(UUID(int=0), 1)
    replays.messages_api.script = list(SCRIPT)
    running = tasks.submit("Agent", "Hello")
    with pytest.raises(Conflict, match="only a task that has ended"):
        replays.accept(running, 1)
    first = replays.run(running)
    with pytest.raises(InvalidInput, match=r"is a model call: its output must be an object with .*content"):
        replays.accept(first["id"], 1, Edit("Hello"))
    reply = tasks.steps(first["id"])[0]["output"]
    with pytest.raises(InvalidInput, match="`content` must be a list of blocks"):
        replays.accept(first["id"], 1, Edit({**reply, "content": "Hello"}))
    with pytest.raises(InvalidInput, match="is an approval: its output must be an object with arguments"):
        replays.accept(first["id"], 7, Edit(["arguments"]))
    with pytest.raises(TooLarge, match="The edited output is"):
        replays.accept(first["id"], 3, Edit("x" * (settings.max_output_bytes + 1)))


def test_a_journal_of_another_format_is_left_alone(replays: Replays, database: Engine) -> None:
    first = replays.submit(SCRIPT)
    with database.begin() as connection:
        connection.execute(text("ALTER TABLE tasks DISABLE TRIGGER tasks_immutable"))
        connection.execute(text("UPDATE tasks SET journal_format = 7"))
        connection.execute(text("ALTER TABLE tasks ENABLE TRIGGER tasks_immutable"))
    with pytest.raises(Conflict, match="has the format 7 of another release"):
        replays.accept(first["id"], 2)


def test_a_failure_that_is_read_back_is_of_the_same_kind(
    define: Define, tasks: Tasks, inline_worker: InlineWorker
) -> None:
    define(
        {"kind": "function", "name": "refuse", "code": "def refuse(x):\n    raise ValueError(f'No {x}')\n"},
        {
            "kind": "agent",
            "name": "Refuses",
            "type": "function",
            "function": "refuse",
            "config": {"capabilities": ["work"]},
        },
    )
    task = tasks.submit("Refuses", {"x": 1})
    inline_worker.run_all()
    again = replay_from(inline_worker.engine, task, 2, submitted_by="test")
    inline_worker.run_all()
    first, second = tasks.get(task), tasks.get(again)
    assert first["error"]["type"] == "function_error"
    assert (second["error"], second["error_fingerprint"]) == (first["error"], first["error_fingerprint"])


def test_active_version_may_have_another_prompt(
    replays: Replays, tasks: Tasks, messages_api: MessagesApi, define_agent: DefineAgent
) -> None:
    first = replays.submit(SCRIPT)
    define_agent(system_prompt="Be brief.")
    messages_api.script, messages_api.requests = SCRIPT[2:], []
    again = replays.run(replay_from(replays.inline_worker.engine, first["id"], 9, latest=True, submitted_by="test"))
    assert (again["state"], again["agent_version"]) == ("succeeded", first["agent_version"] + 1)
    assert "Be brief." in str(messages_api.requests[0]["system"])
    assert [step["copied_from"] is None for step in tasks.steps(again["id"])] == [False] * 8 + [True]


def test_active_version_asks_again_for_an_approval(replays: Replays, define_agent: DefineAgent) -> None:
    first = replays.submit(SCRIPT)
    define_agent(system_prompt="Be brief.")
    for step, edit in ((8, None), (7, Edit({"arguments": {"answer": "mine"}}))):
        with pytest.raises(Conflict, match="was approved for a call of another version"):
            replay_from(replays.inline_worker.engine, first["id"], step, edit=edit, latest=True, submitted_by="test")


def test_active_version_with_another_model_keeps_no_model_call(replays: Replays, define_agent: DefineAgent) -> None:
    first = replays.submit(SCRIPT)
    define_agent(model="claude-opus-5")
    with pytest.raises(Conflict, match=r"at step 1 .* asks the model 'claude-opus-5' and not 'claude-sonnet-5-5'"):
        replay_from(replays.inline_worker.engine, first["id"], 6, latest=True, submitted_by="test")
