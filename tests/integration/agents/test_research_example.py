"""The example that searches the web under a budget, against its own replies."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from minions.testing import MessagesApi
from shared.database.connections import transaction
from shared.definitions.apply import store_definitions
from shared.definitions.files import load
from shared.memories import store
from tests.integration.conftest import InlineWorker, Tasks
from tests.support.model_client import use_messages_api
from tests.support.processes import ROOT, wait_until

FOLDER = ROOT / "examples" / "research"
QUESTION = {"question": "How many container ships were lost in 2025?"}
PAGE = "https://registry.example/losses-2025"


@pytest.fixture
def messages_api(
    monkeypatch: pytest.MonkeyPatch, database: Engine, inline_worker: InlineWorker
) -> Iterator[MessagesApi]:
    """The local server with the replies of the example, whose agent is stored and served by this process."""
    with Session(database) as session:
        store_definitions(session, load(FOLDER / "research.yaml"))
    with transaction() as connection:
        connection.execute(text("UPDATE workers SET capabilities = capabilities || '{research}'"))
    script = json.loads((FOLDER / "replies.json").read_text())
    with use_messages_api(MessagesApi(script=script), monkeypatch) as server:
        yield server


def test_it_searches_reads_and_remembers(
    tasks: Tasks, inline_worker: InlineWorker, messages_api: MessagesApi, database: Engine
) -> None:
    task = tasks.submit("researcher", QUESTION, key="acme")
    inline_worker.run_all()
    ended = tasks.get(task)
    assert ended["output"] == {"answer": "Two container ships were lost in 2025.", "sources": [PAGE]}, ended["error"]
    assert len(messages_api.requests) == 4
    steps = tasks.steps(task)
    assert [step["name"] for step in steps if step["kind"] == "tool_call"] == ["sources", "sources"]
    searched = next(step for step in steps if step["usage"].get("web_search_requests"))
    assert searched["cost_microdollars"] > 10_000
    with database.connect() as connection:
        [found] = store.stores(connection, "default", limit=10)
        assert (found["tool"], found["owner"]) == ("sources", "acme")
        assert (store.read(connection, found["id"], "/memories/sources.md") or "").startswith("registry.example")


def test_a_small_budget_holds_the_search(tasks: Tasks, inline_worker: InlineWorker, messages_api: MessagesApi) -> None:
    task = tasks.submit("researcher", QUESTION, key="acme", budget={"dollars": 0.05})
    wait_until(lambda: inline_worker._round() or tasks.get(task)["wait_reason"] == "budget", "it waits for its budget")
    assert messages_api.requests == []
