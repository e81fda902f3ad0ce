"""Models that take over when another one refuses to answer, or is unavailable."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from minions import testing
from minions.testing import MessagesApi, error, refusal, tool_use
from orchestrator.explain import explain
from shared.database.connections import get_engine, transaction
from shared.errors import InvalidDefinition
from shared.tasks import lifecycle
from tests.conftest import Define
from tests.integration.agents.conftest import DefineAgent, plain
from tests.integration.agents.test_determinism import RELEASE, Died, dying
from tests.integration.conftest import InlineWorker, Tasks
from workers.llm import patience

FIRST, SECOND, THIRD = "claude-opus-5-5", "claude-opus-5", "claude-sonnet-5-5"
CHAIN = {"fallback_models": [SECOND, THIRD]}
OVERLOADED = error(529, "overloaded_error", "Overloaded")
THOUGHT = {"type": "thinking", "thinking": "Let me see.", "signature": "of-the-first"}


@pytest.fixture
def ask(tasks: Tasks, inline_worker: InlineWorker, messages_api: MessagesApi) -> Any:
    """Runs a task of `Agent` with a script of replies; returns it with the models of the requests."""

    def run(*script: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        messages_api.requests.clear()
        messages_api.script = [*script]
        task = tasks.submit("Agent", "Hello")
        inline_worker.run_all()
        return tasks.get(task), [request["model"] for request in messages_api.requests]

    return run


def test_another_model_answers_what_one_refused(ask: Any, define_agent: DefineAgent, tasks: Tasks) -> None:
    define_agent(CHAIN, model=FIRST)
    task, models = ask(refusal("cyber", "Not this."), testing.text("Hi."))
    assert (task["output"], models) == ({"content": "Hi."}, [FIRST, SECOND])
    refused, answered = tasks.steps(task["id"])
    assert (refused["name"], refused["output"]["stop_reason"]) == (FIRST, "refusal")
    assert refused["output"]["stop_details"]["category"] == "cyber"
    assert refused["cost_microdollars"] == 0
    assert answered["name"] == SECOND
    assert answered["input"] == {"messages": [], "instead_of": {"model": FIRST, "reason": "refusal"}}
    assert answered["output"]["instead_of"] == {
        "model": FIRST,
        "reason": "refusal",
        "message": "It refused to answer (cyber). Not this.",
    }


def test_nothing_of_a_refused_reply_is_used(ask: Any, define_agent: DefineAgent, messages_api: MessagesApi) -> None:
    define_agent(CHAIN, model=FIRST)
    task, _ = ask(refusal("bio", said="First, take"), testing.text("Hi."))
    assert task["output"] == {"content": "Hi."}
    assert plain(messages_api.requests[1]) == plain(messages_api.requests[0])


def test_last_refusal_fails_the_task(ask: Any, define_agent: DefineAgent) -> None:
    define_agent(CHAIN, model=FIRST)
    task, models = ask(refusal("cyber", "Not this."))
    assert (task["state"], models) == ("failed", [FIRST, SECOND, THIRD])
    assert task["error"]["message"] == "The model refused to answer (cyber). Not this."


def test_model_that_took_over_makes_the_rest_of_the_turns(
    ask: Any, define_agent: DefineAgent, messages_api: MessagesApi
) -> None:
    define_agent(CHAIN, model=FIRST)
    thinks = tool_use(("echo", {"a": 1}))
    thinks = {**thinks, "content": [THOUGHT, *thinks["content"]]}
    task, models = ask(thinks, refusal(), tool_use(("echo", {"a": 2})), testing.text("Hi."))
    assert task["output"] == {"content": "Hi."}
    assert models == [FIRST, FIRST, SECOND, SECOND]
    # Thoughts stay where they were: the words before later ones must be the same, and each model ignores what it
    # cannot read.
    for request in messages_api.requests[1:]:
        assert plain(request)[1]["content"][0] == THOUGHT


def test_unavailable_model_is_replaced_after_a_time(ask: Any, define_agent: DefineAgent, tasks: Tasks) -> None:
    define_agent({**CHAIN, "fallback_after": "1s"}, model=FIRST)
    task, models = ask({**OVERLOADED, "if": f'"model": "{FIRST}"'}, testing.text("Hi."))
    assert task["output"] == {"content": "Hi."}
    assert models[-1] == SECOND
    assert {*models[:-1]} == {FIRST}
    given_up, answered = tasks.steps(task["id"])
    assert (given_up["status"], answered["status"]) == ("failed", "finished")
    assert f"{SECOND} is asked instead." in given_up["error"]["message"]
    assert given_up["error"]["retryable"] is False
    assert answered["output"]["instead_of"]["reason"] == "unavailable"
    assert "Overloaded" in answered["output"]["instead_of"]["message"]


@pytest.mark.parametrize(("reasons", "state"), [(["unavailable"], "failed"), (["refusal"], "succeeded")])
def test_author_chooses_the_reasons(ask: Any, define_agent: DefineAgent, reasons: list[str], state: str) -> None:
    define_agent({**CHAIN, "fallback_on": reasons}, model=FIRST)
    assert ask(refusal(), testing.text("Hi."))[0]["state"] == state


def test_task_that_waits_for_a_model_says_which_one_is_next(
    define_agent: DefineAgent, tasks: Tasks, inline_worker: InlineWorker, messages_api: MessagesApi
) -> None:
    define_agent({**CHAIN, "fallback_after": "10m"}, model=FIRST)
    messages_api.script = [{**OVERLOADED, "headers": {"retry-after": "60"}}]
    task = tasks.submit("Agent", "Hello")
    inline_worker.run_due()
    with get_engine().connect() as connection:
        answer = explain(connection, tasks.get(task)["id"], lease=10)
    assert answer.reason == "model_unavailable"
    assert f"If it stays so, {SECOND} is asked in 10 minutes." in answer.sentence
    assert answer.facts["next_model"] == SECOND


@pytest.mark.parametrize("kind", ["refusal", "unavailable"])
def test_task_that_runs_again_comes_to_the_same_model(
    define_agent: DefineAgent, tasks: Tasks, inline_worker: InlineWorker, messages_api: MessagesApi, kind: str
) -> None:
    """The task is suspended for an approval, so its second execution reads the models from its journal."""
    trouble = {"refusal": refusal(), "unavailable": {**OVERLOADED, "if": f'"model": "{FIRST}"'}}[kind]
    messages_api.script = [trouble, tool_use(("checked", {"do": "answer", "answer": 1})), testing.text("Hi.")]
    define_agent({**CHAIN, "fallback_after": "1s"}, model=FIRST, tools=["checked"])
    task = tasks.submit("Agent", "Hello")
    inline_worker.run_due()
    assert tasks.get(task)["state"] == "waiting", tasks.get(task)["error"]
    asked = len(messages_api.requests)
    with transaction() as connection:
        lifecycle.decide(connection, task, "approve", who="test", value=None)
    inline_worker.run_all()
    assert tasks.get(task)["output"] == {"content": "Hi."}, tasks.get(task)["error"]
    assert [request["model"] for request in messages_api.requests[asked:]] == [SECOND]


@pytest.mark.parametrize(("kind", "before"), [("refusal", True), ("refusal", False), ("unavailable", False)])
def test_process_that_dies_at_any_commit_leaves_no_doubt(
    define_agent: DefineAgent,
    tasks: Tasks,
    inline_worker: InlineWorker,
    messages_api: MessagesApi,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    before: bool,
) -> None:
    """Whatever was committed is not asked for again, and the models take over in the same order."""
    define_agent({**CHAIN, "fallback_after": "1s"}, model=FIRST, tools=["act"])
    trouble = {"refusal": refusal(), "unavailable": {**OVERLOADED, "headers": {"x-should-retry": "true"}}}[kind]
    messages_api.script = [
        {**trouble, "if": f'"model": "{FIRST}"'},
        {**testing.text("Hi."), "if": '"tool_result"'},
        tool_use(("act", {"do": "answer", "answer": 1})),
    ]
    monkeypatch.setattr(patience, "FIRST_SECONDS", 0.6)
    died = True
    commits = itertools.count(1)
    while died:
        commit, died = next(commits), False
        messages_api.requests.clear()
        task = tasks.submit("Agent", "Hello")
        try:
            with dying(monkeypatch, commit, before=before):
                inline_worker.run_due()
        except Died:
            died = True
            with inline_worker.engine.begin() as connection:
                connection.execute(RELEASE, {"task": task})
        inline_worker.run_all()
        ended = tasks.get(task)
        assert ended["output"] == {"content": "Hi."}, ended["error"]
        steps = [(step["name"], step["status"]) for step in tasks.steps(task)]
        first = "finished" if kind == "refusal" else "failed"
        assert steps == [(FIRST, first), (SECOND, "finished"), ("act", "finished"), (SECOND, "finished")]
        asked = [request["model"] for request in messages_api.requests]
        # A reply that was not committed is asked for once more.
        assert asked.count(SECOND) in (2, 3)
        if kind == "refusal":
            assert asked.count(FIRST) in (1, 2)
        assert asked == sorted(asked, key=[FIRST, SECOND].index)
    assert commit > 4


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"fallback_models": [FIRST]}, "twice, or it is the agent's model"),
        ({"fallback_models": [SECOND, SECOND]}, "names 'claude-opus-5' twice"),
        ({"fallback_models": ["offline"]}, "must name language models"),
        ({"fallback_models": ["auto"]}, "must name language models"),
        ({"fallback_on": ["refusal"]}, "must come with .fallback_models."),
        ({"fallback_after": "1m"}, "must come with .fallback_models."),
        ({**CHAIN, "fallback_on": ["refusal", "refusal"]}, "each reason once"),
        ({**CHAIN, "fallback_on": ["mood"]}, "fallback_on"),
        ({"fallback_models": ["claude-sonnet-4-6"], "top_k": 5}, "cannot honour top_k=5"),
    ],
)
def test_fallback_that_cannot_work_is_refused(define: Define, config: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidDefinition, match=why):
        define({"kind": "agent", "name": "Agent", "model": FIRST, "config": config})


def test_unknown_fallback_model_is_warned_about() -> None:
    from shared.contracts.documents import AgentDefinition
    from shared.definitions.known_models import unknown_models

    agent = AgentDefinition(name="A", model=FIRST, config={"fallback_models": ["claude-opsu-5"]})
    assert [warning for warning in unknown_models(agent) if "config.fallback_models" in warning]
