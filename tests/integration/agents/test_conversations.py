"""A long conversation: the latest messages word for word, those before them as a summary that is paid for once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB

from minions import testing
from minions.testing import MessagesApi
from orchestrator.replay_from import replay_from
from shared.tasks import lifecycle
from tests.integration.agents.conftest import DefineAgent, plain
from tests.integration.conftest import InlineWorker, Tasks
from workers import minion
from workers.conversation import HEAD, PastMessage, Summary, _format, _older, _shorten, _truncate, tokens_in
from workers.llm import patience

LIMIT = 500
WORDS = "wörter " * 20
TURNS = 5  # of 54 tokens each side: more than fits
SAY = text(
    "WITH c AS (INSERT INTO conversations (id) VALUES ('c') ON CONFLICT DO NOTHING) "
    "INSERT INTO messages (conversation_id, role, content) VALUES ('c', :role, :content)"
).bindparams(bindparam("content", type_=JSONB))
SUMMARIES = text("SELECT summary, task_id FROM conversation_summaries ORDER BY through")
SUMMARY = testing.text("Ada asked for words.")
ANSWER = testing.text("Hi.")
RELEASE = text("SELECT minion_release(:task, claim, 'lost', false, '0', '{}') FROM task_status WHERE task_id = :task")

Ask = Callable[..., UUID]


@pytest.fixture
def ask(
    tasks: Tasks, inline_worker: InlineWorker, messages_api: MessagesApi, define_agent: DefineAgent, database: Engine
) -> Ask:
    """Runs a task of a conversation of `TURNS` turns before it: `ask([reply, …])` is the task."""
    define_agent({"history_tokens": LIMIT}, tools=[])
    talk(database, TURNS)

    def run(script: list[dict[str, Any]], model_of: str = "Agent") -> UUID:
        messages_api.script = script
        task = tasks.submit(model_of, messages=["And now?"], conversation_id="c")
        inline_worker.run_all()
        assert tasks.get(task)["error"] is None
        return task

    return run


def talk(database: Engine, turns: int, first: int = 0) -> None:
    with database.begin() as connection:
        for turn in range(first, first + turns):
            connection.execute(SAY, {"role": "user", "content": f"Question {turn}. {WORDS}"})
            connection.execute(SAY, {"role": "assistant", "content": f"Answer {turn}. {WORDS}"})


def summaries(database: Engine) -> list[tuple[str, UUID | None]]:
    with database.connect() as connection:
        return [tuple(row) for row in connection.execute(SUMMARIES)]


def kinds(tasks: Tasks, task: UUID) -> list[str]:
    return ["summary" if "summarise" in (step["input"] or {}) else step["kind"] for step in tasks.steps(task)]


def alternates(messages: list[dict[str, Any]]) -> bool:
    roles = [message["role"] for message in messages]
    blank = any(not str(message["content"]).strip() for message in messages)
    return not blank and roles == [("user", "assistant")[index % 2] for index in range(len(roles))]


def test_long_conversation_is_summarised_once(
    ask: Ask, tasks: Tasks, messages_api: MessagesApi, database: Engine
) -> None:
    first = ask([SUMMARY, ANSWER])
    assert kinds(tasks, first) == ["summary", "model_call"]
    assert summaries(database) == [("Ada asked for words.", first)]
    asked, told = map(plain, messages_api.requests)
    assert "tools" not in messages_api.requests[0]
    assert "<user>\nQuestion 0." in asked[0]["content"]
    assert "Question 4." not in asked[0]["content"]
    assert told[0]["content"].startswith(f"{HEAD}\nAda asked for words.\n\nQuestion ")
    assert told[-2]["content"].startswith("Answer 4.")
    assert told[-1] == {"role": "user", "content": "And now?"}
    assert alternates(told)
    second = ask([ANSWER])
    assert kinds(tasks, second) == ["model_call"]
    assert plain(messages_api.requests[-1])[: len(told)] == told
    assert sum(step["cost_microdollars"] > 0 for step in tasks.steps(first)) == 2


def test_next_summary_continues_from_last_summary(
    ask: Ask, tasks: Tasks, messages_api: MessagesApi, database: Engine
) -> None:
    ask([SUMMARY, ANSWER])
    talk(database, 4, first=TURNS)
    task = ask([testing.text("More words."), ANSWER])
    assert [summary for summary, _ in summaries(database)] == ["Ada asked for words.", "More words."]
    asked = plain(messages_api.requests[2])[0]["content"]
    assert "<summary>\nAda asked for words.\n</summary>" in asked
    assert "Question 0." not in asked
    [step, _] = tasks.steps(task)
    assert step["input"]["summarise"]["after"] == tasks.steps(tasks.get(task)["id"])[0]["output"]["after"] is not None


def test_very_long_conversation_is_summarised_in_parts(
    ask: Ask, tasks: Tasks, messages_api: MessagesApi, database: Engine
) -> None:
    talk(database, 40, first=TURNS)
    task = ask([SUMMARY])
    parts = kinds(tasks, task).count("summary")
    assert parts == len(summaries(database)) > 5
    assert all(tokens_in(plain(request)[0]["content"]) < 2 * LIMIT for request in messages_api.requests)
    told = " ".join(plain(request)[0]["content"] for request in messages_api.requests[:-1])
    final = " ".join(message["content"] for message in plain(messages_api.requests[-1]))
    assert all(f"Question {turn}." in told + final for turn in range(TURNS + 40))


@pytest.mark.parametrize(("write", "paid"), [(0, 1), (1, 2), (2, 1), (3, 1)])
def test_interrupted_task_pays_for_its_summary_once(
    write: int,
    paid: int,
    tasks: Tasks,
    inline_worker: InlineWorker,
    messages_api: MessagesApi,
    define_agent: DefineAgent,
    database: Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The writes are: the summary begins, is made; the answer begins, is made. A worker that dies between paying and
    writing pays again.
    """
    define_agent({"history_tokens": LIMIT}, tools=[])
    talk(database, TURNS)
    messages_api.script = [*[SUMMARY] * paid, ANSWER]
    task = tasks.submit("Agent", messages=["And now?"], conversation_id="c")
    [message] = inline_worker.dispatch()
    with monkeypatch.context() as patch:
        patch.setattr(lifecycle, "write_steps", dying_after(write))
        with pytest.raises(KeyboardInterrupt):
            minion.run(task, message.claim, inline_worker.id)
    with database.begin() as connection:
        connection.execute(RELEASE, {"task": task})
    inline_worker.run_all()
    assert tasks.get(task)["output"] == {"content": "Hi."}
    assert kinds(tasks, task) == ["summary", "model_call"]
    assert summaries(database) == [("Ada asked for words.", task)]
    assert sum("Sum up" in plain(request)[0]["content"] for request in messages_api.requests) == paid
    assert plain(messages_api.requests[-1])[0]["content"].startswith(HEAD)
    assert len(messages_api.requests) == paid + 1


@pytest.mark.parametrize("write", [1, 2, 3])
def test_other_model_writes_the_summary_when_the_first_is_unavailable(
    tasks: Tasks,
    inline_worker: InlineWorker,
    messages_api: MessagesApi,
    define_agent: DefineAgent,
    database: Engine,
    monkeypatch: pytest.MonkeyPatch,
    write: int,
) -> None:
    """The worker dies in place of a write, and another one comes to the same models."""
    first, second = "claude-opus-5-5", "claude-opus-5"
    config = {"history_tokens": LIMIT, "fallback_models": [second], "fallback_after": "1s"}
    define_agent(config, model=first, tools=[])
    talk(database, TURNS)
    overloaded = testing.error(529, "overloaded_error", "Overloaded", headers={"x-should-retry": "true"})
    messages_api.script = [
        {**overloaded, "if": f'"model": "{first}"'},
        {**SUMMARY, "if": "Sum up this conversation"},
        ANSWER,
    ]
    monkeypatch.setattr(patience, "FIRST_SECONDS", 0.6)
    task = tasks.submit("Agent", messages=["And now?"], conversation_id="c")
    [message] = inline_worker.dispatch()
    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(lifecycle, "write_steps", dying_after(write))
        minion.run(task, message.claim, inline_worker.id)
    with database.begin() as connection:
        connection.execute(RELEASE, {"task": task})
    inline_worker.run_all()
    assert tasks.get(task)["output"] == {"content": "Hi."}, tasks.get(task)["error"]
    steps = tasks.steps(task)
    assert [(step["name"], step["status"]) for step in steps] == [
        (first, "failed"),
        (second, "finished"),
        (second, "finished"),
    ]
    assert steps[1]["input"]["instead_of"] == {"model": first, "reason": "unavailable"}
    assert summaries(database) == [("Ada asked for words.", task)]


def dying_after(writes: int) -> Callable[..., Any]:
    """`write_steps` that dies in place of its `writes + 1`st call, right after it where that one is the answer."""
    real, calls = lifecycle.write_steps, [0]

    def write(*arguments: Any) -> Any:
        calls[0] += 1
        done = real(*arguments) if calls[0] <= writes or writes == 3 else None
        if calls[0] > writes:
            raise KeyboardInterrupt
        return done

    return write


def test_replay_from_step_reads_history_of_original(
    ask: Ask, tasks: Tasks, inline_worker: InlineWorker, messages_api: MessagesApi, database: Engine
) -> None:
    first = ask([SUMMARY, ANSWER])
    read = plain(messages_api.requests[-1])
    talk(database, TURNS, first=TURNS)
    ask([testing.text("Later."), ANSWER])
    for step, calls in ((3, 0), (2, 1), (1, 1)):
        messages_api.requests.clear()
        again = replay_from(database, first, step, submitted_by="test")
        inline_worker.run_all()
        assert tasks.get(again)["output"] == tasks.get(first)["output"], step
        assert [plain(request) for request in messages_api.requests] == [read] * calls
    assert len(summaries(database)) == 2


def test_offline_planner_shortens_history_and_reports_it(
    tasks: Tasks, inline_worker: InlineWorker, define_agent: DefineAgent, database: Engine
) -> None:
    define_agent({"history_tokens": LIMIT}, model="offline")
    talk(database, TURNS)
    task = tasks.submit("Agent", messages=["Echo this"], conversation_id="c")
    inline_worker.run_all()
    assert tasks.get(task)["state"] == "succeeded"
    [(summary, _)] = summaries(database)
    assert summary.startswith("[offline planner, not a language model]")
    assert "user: Question 2." in summary


def test_task_reads_messages_added_before_its_position_came(
    tasks: Tasks, inline_worker: InlineWorker, messages_api: MessagesApi, define_agent: DefineAgent
) -> None:
    define_agent(tools=[])
    messages_api.script = [testing.text("Hello Ada."), testing.text("Ada.")]
    for said in ("I am Ada.", "Who am I?"):
        tasks.submit("Agent", messages=[said], conversation_id="c")
    inline_worker.run_all()
    assert [message["content"] for message in plain(messages_api.requests[1])] == [
        "I am Ada.",
        "Hello Ada.",
        "Who am I?",
    ]


def test_summary_outlives_its_task_but_not_the_conversation(ask: Ask, database: Engine) -> None:
    task = ask([SUMMARY, ANSWER])
    with database.begin() as connection:
        connection.execute(text("DELETE FROM tasks WHERE id = :task"), {"task": task})
    assert summaries(database) == [("Ada asked for words.", None)]
    with database.begin() as connection:
        connection.execute(text("DELETE FROM conversations"))
    assert summaries(database) == []


# --------------------------------------------------------------------------------------------- what goes where


def conversation(*sizes: tuple[str, int]) -> list[PastMessage]:
    return [PastMessage(UUID(int=index), role, "x" * size) for index, (role, size) in enumerate(sizes, 1)]


def test_kept_history_begins_with_user_message() -> None:
    said = conversation(*[("user", 140), ("assistant", 140)] * 10)
    older = _older(Summary(), said, 500)
    assert len(older) == 16
    assert said[len(older)].role == "user"
    assert _older(Summary(), said, 880) == []
    assert len(_older(Summary("x" * 35), said, 880)) == 10


def test_a_message_that_is_too_long_by_itself_is_summed_up_too() -> None:
    said = conversation(("user", 100), ("assistant", 5000))
    assert _older(Summary(), said, 500) == said
    assert _older(Summary(), conversation(("assistant", 5000), ("assistant", 10)), 500) != []


def test_roles_alternate_in_history() -> None:
    roles = ["assistant", "user", "user", "assistant", "assistant", "user"]
    said = conversation(*((role, 1) for role in roles))
    assert alternates(_format(Summary(), said))
    assert alternates(_format(Summary("Before."), said))
    assert _format(Summary(), said[:1]) == []
    assert _format(Summary("Before."), []) == [{"role": "user", "content": f"{HEAD}\nBefore."}]


@pytest.mark.parametrize("content", ["x" * 1000, "漢" * 1000, "é" * 1000, "😀" * 1000])
def test_a_text_is_cut_to_its_tokens(content: str) -> None:
    for tokens in (1, 2, 10, 100):
        assert tokens_in(_truncate(content, tokens)) <= tokens + 1
    assert _truncate(content, 100).endswith("[…]")
    assert _truncate("short", 10) == "short"


def test_shortening_stays_within_its_length() -> None:
    said = conversation(*[("user", 400), ("assistant", 400)] * 100)
    assert tokens_in(_shorten(Summary("y" * 10_000), said, 125)) <= 125
    assert "y" in _shorten(Summary("y" * 10), said[:2], 125)
