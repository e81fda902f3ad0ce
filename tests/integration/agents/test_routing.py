"""Routing of messages that name no agent: by their words, by a model or by a setting; and the record of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlalchemy import Engine, text

from minions import testing
from minions.testing import MessagesApi, error
from shared.settings import get_settings
from tests.conftest import Define
from tests.integration.conftest import InlineWorker, Tasks
from workers import minion

QUESTION = "Which railways are old?"
CHOICE = {"agent": "Boats", "scores": {"Boats": 0.9, "Trains": 0.2}, "reason": "They said so."}


@pytest.fixture(autouse=True)
def agents(act: Any) -> None:
    """By the words, `QUESTION` is one for `Trains`."""
    act("Boats", description="Knows everything about boats and ships")
    act("Trains", description="Knows everything about trains and railways")


@pytest.fixture
def router(define: Define) -> Any:
    """Defines the chain `Router`, which asks a model: `router("auto")`."""

    def make(model: str | None = "claude-sonnet-5-5") -> None:
        config = {"capabilities": ["work"], "chain_strategy": "router", "router_model": model}
        relations = [{"agent": "Boats"}, {"agent": "Trains"}]
        define({"kind": "agent", "name": "Router", "type": "function", "relations": relations, "config": config})

    return make


@pytest.fixture
def routed(tasks: Tasks, inline_worker: InlineWorker) -> Any:
    """Submit a message to `Router`; return the chosen agent and the recorded decision."""

    def run() -> tuple[str, dict[str, Any]]:
        task = tasks.submit("Router", {"answer": QUESTION})
        inline_worker.run_all()
        [decision] = [step["output"] for step in tasks.steps(task) if step["name"] == "router"]
        [child] = tasks.children(task)
        assert tasks.get(task)["state"] == "succeeded"
        return child["agent"], decision

    return run


def test_a_model_chooses(router: Any, messages_api: MessagesApi, routed: Any) -> None:
    router()
    messages_api.script = [testing.text(json.dumps(CHOICE))]
    assert routed() == ("Boats", {"by": "model", **CHOICE})
    [request] = messages_api.requests
    asked = request["messages"][0]["content"][0]["text"]
    assert "Knows everything about boats and ships" in asked
    assert QUESTION in asked


def test_an_answer_that_cannot_be_used_is_mended(router: Any, messages_api: MessagesApi, routed: Any) -> None:
    router()
    wrong = {**CHOICE, "agent": "Planes"}
    messages_api.script = [testing.text(json.dumps(wrong)), testing.text(f"```json\n{json.dumps(CHOICE)}\n```")]
    assert routed() == ("Boats", {"by": "model", **CHOICE})
    assert "cannot be used: $.agent" in messages_api.requests[1]["messages"][-1]["content"][0]["text"]


@pytest.mark.parametrize(
    ("answer", "requests", "why"),
    [
        (testing.text("Boats, I think"), 3, "answer could not be used"),
        (testing.text(json.dumps({**CHOICE, "scores": {"Boats": 7}})), 3, "scores"),
        (error(400, "invalid_request_error", "no"), 1, "The model did not answer: The Anthropic API answered 400"),
    ],
)
def test_where_the_model_has_no_answer_the_words_decide(
    router: Any, messages_api: MessagesApi, routed: Any, answer: Any, requests: int, why: str
) -> None:
    router()
    messages_api.script = [answer]
    agent, decision = routed()
    assert (agent, decision["by"], list(decision["scores"])) == ("Trains", "text", ["Trains"])
    assert why in decision["not_by_model"]
    assert len(messages_api.requests) == requests


def test_without_a_key_the_words_decide(router: Any, routed: Any) -> None:
    router("auto")
    agent, decision = routed()
    assert (agent, decision["by"]) == ("Trains", "text")


def test_a_choice_is_paid_for_once(
    router: Any, messages_api: MessagesApi, tasks: Tasks, inline_worker: InlineWorker, act: Any
) -> None:
    """The chain runs again when its sub-task has ended, also if the agents' descriptions have changed since."""
    router()
    messages_api.script = [testing.text(json.dumps(CHOICE))]
    task = tasks.submit("Router", {"answer": QUESTION})
    for message in inline_worker.dispatch():
        minion.run(message.task_id, message.claim, inline_worker.id)
    assert tasks.get(task)["state"] == "waiting"
    act("Boats", description="Knows nothing")
    inline_worker.run_all()
    assert tasks.get(task)["state"] == "succeeded"
    assert len(messages_api.requests) == 1


def test_only_a_router_asks_a_model(define: Define) -> None:
    config = {"capabilities": ["work"], "router_model": "auto"}
    with pytest.raises(Exception, match="router_model must come with chain_strategy: router"):
        define({"kind": "agent", "name": "X", "type": "function", "relations": [{"agent": "Boats"}], "config": config})


def test_message_is_routed_by_its_words_and_recorded(tasks: Tasks, inline_worker: InlineWorker) -> None:
    task = tasks.submit(None, messages=[QUESTION])
    inline_worker.run_all()
    routing = tasks.get(task)["routing"]
    assert (routing["by"], routing["agent"], list(routing["scores"])) == ("text", "Trains", ["Trains"])
    assert tasks.get(tasks.submit("Boats", {}))["routing"] is None


def test_all_messages_go_to_the_routing_agent(
    monkeypatch: pytest.MonkeyPatch, tasks: Tasks, inline_worker: InlineWorker
) -> None:
    monkeypatch.setenv("MINION_ROUTING_AGENT", "Boats")
    get_settings.cache_clear()
    task = tasks.submit(None, messages=[QUESTION])
    inline_worker.dispatch()
    monkeypatch.undo()
    get_settings.cache_clear()
    found = tasks.get(task)
    assert (found["agent"], found["routing"]) == ("Boats", {"by": "setting", "agent": "Boats", "scores": {"Boats": 1}})


def test_where_there_is_no_routing_agent_the_words_decide(
    monkeypatch: pytest.MonkeyPatch, tasks: Tasks, inline_worker: InlineWorker, database: Engine
) -> None:
    monkeypatch.setenv("MINION_ROUTING_AGENT", "Boats")
    get_settings.cache_clear()
    with database.begin() as connection:
        connection.execute(text("UPDATE agents SET status = 'disabled', status_reason = 'off' WHERE name = 'Boats'"))
    task = tasks.submit(None, messages=[QUESTION])
    inline_worker.dispatch()
    monkeypatch.undo()
    get_settings.cache_clear()
    assert (tasks.get(task)["agent"], tasks.get(task)["routing"]["by"]) == ("Trains", "text")
