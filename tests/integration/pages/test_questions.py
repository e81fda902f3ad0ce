"""Questions of MCP servers: their form in the pages, and the endpoint behind it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from sqlalchemy import Engine, text

from minions import Client
from minions.errors import Conflict, Forbidden, InvalidInput
from shared.access.roles import MASK
from shared.mcp.eras import Eras
from shared.settings import Settings, get_settings
from tests.conftest import Define
from tests.integration.agents.test_remote_tasks import definitions
from tests.integration.api.conftest import Api
from tests.integration.conftest import InlineWorker, Tasks
from tests.integration.pages.conftest import Open
from tests.support.browser import hidden
from tests.support.mcp_server import RawServer, raw_server, text_result
from tests.support.mcp_tasks import question

SCHEMA = {
    "type": "object",
    "properties": {"branch": {"type": "string", "default": "main"}, "times": {"type": "integer"}},
    "required": ["branch", "times"],
}


@pytest.fixture
def server(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[RawServer]:
    monkeypatch.setenv("MINION_ALLOW_PRIVATE_ADDRESSES", "127.0.0.1")
    monkeypatch.setattr("workers.tools.mcp.eras", Eras())
    get_settings.cache_clear()
    asks = {"resultType": "input_required", "inputRequests": {"q": question("Which <b>branch</b>?", SCHEMA)}}
    with raw_server(asks, text_result("built")) as raw:
        yield raw
    monkeypatch.undo()
    get_settings.cache_clear()


@pytest.fixture
def asked(server: RawServer, define: Define, tasks: Tasks, inline_worker: InlineWorker) -> str:
    """A task whose server has asked."""
    define(*definitions(server.url, "build"))
    task = tasks.submit("build", {"target": "x"})
    inline_worker.run_due()
    return str(task)


def test_question_is_answered_in_a_form_of_its_schema(
    logged_in: Open, client: Client, asked: str, server: RawServer, inline_worker: InlineWorker, database: Engine
) -> None:
    browser = logged_in("approver")
    listed = browser.get("/inbox").text
    assert "answer?" in listed
    assert "Its MCP server asks a question" in listed
    for path in (f"/inbox/{asked}", f"/tasks/{asked}"):
        page = browser.get(path).text
        assert "Which &lt;b&gt;branch" in page
        assert ('name="argument.branch"' in page, "main</textarea>" in page, "Send this answer" in page) == (True,) * 3
    form = {**hidden(page[page.index("/decide") :]), "argument.branch": "next"}
    refused = browser.post(f"/tasks/{asked}/decide", {**form, "verdict": "edit", "argument.times": "many"})
    assert refused.status_code == 422
    assert browser.post(f"/tasks/{asked}/decide", {**form, "verdict": "approve"}).status_code == 422
    sent = browser.post(f"/tasks/{asked}/decide", {**form, "verdict": "edit", "argument.times": "2"})
    assert sent.status_code == 303
    inline_worker.run_due()
    assert client.get(asked).output == "built"
    content = server.asked[-1][1]["params"]["inputResponses"]["q"]["content"]
    assert content == {"branch": "next", "times": 2}
    with database.connect() as connection:
        assert list(connection.scalars(text("SELECT act FROM audit_log WHERE act = 'task.decide'"))) == ["task.decide"]


def test_endpoint_checks_answers_against_the_schema(
    client: Client, asked: str, server: RawServer, inline_worker: InlineWorker
) -> None:
    facts: dict[str, Any] = client.why(asked)["facts"]
    assert (facts["server"], facts["schema"], facts["proposed"]) == ("ci", SCHEMA, {"branch": "main"})
    for value in (None, {}, {"branch": "x"}, {"branch": "x", "times": "y"}, [], 5):
        with pytest.raises(InvalidInput, match="does not match its schema"):
            client.decide(asked, "approve", value, proposal=facts["proposal"])
    with pytest.raises(InvalidInput, match="must be approve or reject"):
        client.decide(asked, "again", proposal=facts["proposal"])
    client.decide(asked, "reject", proposal=facts["proposal"])
    with pytest.raises(Conflict):
        client.decide(asked, "reject", proposal=facts["proposal"])
    inline_worker.run_due()
    assert server.asked[-1][1]["params"]["inputResponses"] == {"q": {"action": "decline"}}


def test_policy_of_the_tool_decides_who_may_answer(
    client: Client,
    site: Api,
    server: RawServer,
    define: Define,
    tasks: Tasks,
    inline_worker: InlineWorker,
    logged_in: Open,
) -> None:
    """All rules apply to an answer, though none matches the arguments of the call."""
    never = {"properties": {"target": {"const": "y"}}}
    schema = {"type": "object", "properties": {"target": {"type": "string"}}}
    approval = {"roles": ["approver"], "rules": [{"when": never, "people": 2}]}
    define(*definitions(server.url, "build", approval=approval, input_schema=schema))
    task = tasks.submit("build", {"target": "x"})
    inline_worker.run_due()
    with ExitStack() as stack:
        ann, bob = (
            stack.enter_context(Client(site.url, client.create_api_key(name, "approver")["key"], retries=0))
            for name in ("ann", "bob")
        )
        assert ann.decide(task, "approve", step=1).state == "pending"
        inline_worker.run_due()
        answer = {"branch": "next", "times": 2}
        assert "2 people with different keys must answer" in client.why(task)["sentence"]
        with pytest.raises(Forbidden, match="role admin"):
            client.decide(task, "approve", answer, step=2)
        assert ann.decide(task, "approve", answer, step=2).state == "waiting"
        with pytest.raises(Conflict, match="must name their proposal"):
            bob.decide(task, "approve", step=2)
        assert '"next"' in logged_in("approver").get(f"/inbox/{task}/raw").text
        facts = bob.why(task)["facts"]
        assert facts["proposed"] == answer
        assert bob.decide(task, "approve", proposal=facts["proposal"]).state == "pending"
    inline_worker.run_due()
    assert server.asked[-1][1]["params"]["inputResponses"]["q"]["content"] == answer


def test_question_is_masked_for_readers_without_payloads(logged_in: Open, asked: str) -> None:
    page = logged_in("viewer").get(f"/inbox/{asked}").text
    assert "branch" not in page
    assert MASK in page
    assert "/decide" not in page
