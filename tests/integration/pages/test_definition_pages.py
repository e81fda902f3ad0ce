"""Pages about agents, functions and tools: what they show to whom, rolling back, quarantine, trying, routing."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from html import unescape
from typing import Any
from unittest.mock import patch
from urllib.parse import quote

import pytest
from axe_playwright_python.sync_playwright import DEFAULT_OPTIONS, Axe
from playwright.sync_api import expect
from sqlalchemy import Engine, text

from minions import Client
from orchestrator.observe.statistician import Statistician
from orchestrator.pages import agents, functions, tools
from orchestrator.pages.relations import MOST_USES, Node, picture, relations_of
from orchestrator.pages.source import marked
from shared.access.roles import MASK
from shared.functions import security_events
from shared.settings import get_settings
from tests.conftest import Define
from tests.integration.api.test_boundaries import define_in
from tests.integration.conftest import InlineWorker, Tasks
from tests.integration.definitions.test_function_store import tamper
from tests.integration.pages.conftest import Open, Visit
from tests.integration.pages.test_in_chromium import HOSTILE, take_picture
from tests.support.browser import hidden
from tests.support.definitions import NOOP, agent_definition, function_definition
from tests.support.processes import wait_until

SCHEMA = {
    "type": "object",
    "properties": {"x": {"type": "integer", "description": "What is doubled"}},
    "required": ["x"],
    "additionalProperties": False,
}
CODE = 'def double(x):\n    """Twice as much."""\n    # no overflow\n    return {factor} * x\n'
WORK = {"capabilities": ["work"]}
SECRET = "a secret of the prompt"
PATHS = (
    "/agents",
    "/agents/doubler",
    "/agents/triage?a=1&b=2",
    "/agents/chain",
    "/agents/doubler/try",
    "/agents/triage/try",
    "/routing",
    "/functions",
    "/functions/double?a=1",
    "/tools",
    "/tools/doubling",
    "/tools/call",
)


def run_version(factor: int) -> dict[str, Any]:
    return function_definition("double", CODE.format(factor=factor), input_schema=SCHEMA)


@pytest.fixture
def installed(define: Define) -> None:
    """Two versions of a function, tools, and agents of each kind."""
    call = {"method": "POST", "url": "https://example.com/call", "headers": {"X-Token": "literal-secret"}}
    define(
        run_version(3),
        {"kind": "tool", "name": "doubling", "type": "function", "function": "double"},
        {"kind": "tool", "name": "call", "type": "http", "effect": "unsafe", "http": call},
        {"kind": "agent", "name": "doubler", "type": "function", "function": "double", "config": WORK,
         "description": "Doubles numbers"},
    )  # fmt: skip
    triage = {"kind": "agent", "name": "triage", "model": "claude-sonnet-5-5", "tools": ["doubling", "call"]}
    triage |= {"description": "Sorts support tickets", "config": WORK}
    define({**triage, "system_prompt": f"Sort.\n{SECRET} one.\n"})
    define(
        run_version(2),
        {**triage, "system_prompt": f"Sort well.\n{SECRET} two.\n"},
        {"kind": "tool", "name": "asking", "type": "agent", "agent": "doubler", "effect": "idempotent"},
        {"kind": "agent", "name": "asker", "type": "function", "tool": "asking", "config": WORK},
        {"kind": "agent", "name": "chain", "type": "function", "description": "Triage, then double",
         "relations": [{"agent": "triage"}, {"agent": "asker", "for_each": "items"}], "config": WORK},
    )  # fmt: skip


def row_of(page: str, name: str) -> str:
    """The row of a table that begins with a name, as one line of text."""
    rows = [row for row in page.split("<tr data-item>")[1:] if f"<bdi>{name}</bdi>" in row.partition("</th>")[0]]
    return " ".join(re.sub("<[^>]+>", " ", rows[0].partition("</tr>")[0]).split())


# ------------------------------------------------------------------------------------------------------------ agents


def test_agents_are_listed_with_their_results(
    logged_in: Open, installed: None, tasks: Tasks, inline_worker: InlineWorker, act: Any, database: Engine
) -> None:
    act(config={"max_attempts": 1})
    for asked in ({"do": "answer"}, {"do": "answer"}, {"do": "answer"}, {"do": "fail", "times": 9}):
        tasks.submit("Act", asked)
    inline_worker.run_all()
    Statistician(get_settings(), database).run_once()
    browser = logged_in("viewer")
    page = browser.get("/agents").text
    assert re.search(r"Act .*function work 1 4 75.0 % \$0", row_of(page, "Act"))
    assert "0 – $0" in row_of(page, "triage")
    versions = browser.get("/agents/Act").text.partition("Versions</h2>")[2]
    assert "75.0 %" in versions
    assert "ms" in versions


def test_agents_of_another_namespace_have_links_within_it(logged_in: Open, database: Engine) -> None:
    define_in(database, "team", NOOP, agent_definition("A"))
    browser = logged_in("viewer")
    page = browser.get("/agents?namespace=team").text
    [address] = re.findall(r'href="(/agents/A[^"]*)"', page)
    assert address == "/agents/A?namespace=team"
    agent = browser.get(address).text
    for link in set(map(unescape, re.findall(r'href="(/(?:agents|tools|functions|tasks)[^"]*)"', agent))):
        assert "team" in link or link in ("/agents", "/tools", "/functions", "/tasks"), link
        assert browser.get(link).status_code == 200, link


def test_list_of_agents_is_in_pages(logged_in: Open, define: Define) -> None:
    define(NOOP, *(agent_definition(f"agent{number:02}") for number in range(60)))
    browser = logged_in("viewer")
    page = browser.get("/agents").text
    assert page.count("<tr data-item>") == 50
    more = re.search(r'rel="next" href="([^"]+)"', page)
    assert more
    assert browser.get(unescape(more[1])).text.count("<tr data-item>") == 10


def test_two_versions_are_compared(logged_in: Open, installed: None) -> None:
    author = logged_in("author").get("/agents/triage?a=1&b=2").text
    assert f"<del>-  {SECRET} one.</del>" in author
    assert f"<ins>+  {SECRET} two.</ins>" in author
    viewer = logged_in("viewer").get("/agents/triage?a=1&b=2").text
    assert SECRET not in viewer
    assert "are not compared" in viewer
    assert MASK in viewer
    assert "no version 9" in logged_in("author").get("/agents/triage?a=9").text
    assert logged_in("author").get("/agents/triage?a=x").status_code == 422


def test_reader_without_definitions_sees_the_contract(logged_in: Open, installed: None) -> None:
    page = logged_in("submitter").get("/agents/triage?a=1&b=2").text
    assert "Contract" in page
    assert SECRET not in page
    assert "doubling" not in page
    assert "The definitions are equal" in page
    assert "Try it" in page


def test_audit_names_who_activated_a_version(logged_in: Open, client: Client, installed: None) -> None:
    client.roll_back_agent("triage", 1, "worse")
    assert "rolled back to by <bdi>bootstrap</bdi>" in logged_in("admin").get("/agents/triage").text
    assert "bootstrap" not in logged_in("operator").get("/agents/triage").text


def test_agent_is_rolled_back_as_by_the_api(logged_in: Open, client: Client, installed: None, database: Engine) -> None:
    browser = logged_in("operator")
    page = browser.get("/agents/triage")
    assert "Roll back to version 1" in page.text
    token = browser.csrf_token()
    wrong = browser.post("/agents/triage/rollback", {"csrf_token": token, "version": "one"})
    assert (wrong.status_code, "must be a number" in wrong.text) == (422, True)
    assert browser.post("/agents/triage/rollback", {"csrf_token": token, "version": "7"}).status_code == 404
    assert browser.post("/agents/none/rollback", {"csrf_token": token, "version": "1"}).status_code == 404
    sent = {"csrf_token": token, "version": "1", "reason": "worse <b>"}
    back = browser.post("/agents/triage/rollback", sent)
    assert back.headers["location"] == "/agents/triage?namespace=default&done=rollback"
    shown = browser.follow(back).text
    assert "This version is active now." in shown
    assert "worse &lt;b&gt;" in shown
    assert (client.agent("triage")["version"], client.agent("triage")["status"]) == (1, "rolled_back")
    with database.connect() as connection:
        row = connection.execute(text("SELECT target, actor FROM audit_log WHERE act = 'agent.rollback'")).one()
    assert row.target == "triage"
    assert row.actor.startswith("operator-")


def test_canary_is_started_shown_and_ended(logged_in: Open, client: Client, installed: None) -> None:
    browser = logged_in("operator")
    assert "Try version 1 as a canary" in browser.get("/agents/triage").text
    sent = {"csrf_token": browser.csrf_token(), "version": "1", "share": "10%", "reason": "a try <b>"}
    shown = browser.follow(browser.post("/agents/triage/canary", sent)).text
    assert "Version 1 gets 10% of new tasks" in shown
    assert "a try &lt;b&gt;" in shown
    assert "<strong>canary, 10%</strong>" in shown
    assert "10%: 1" in browser.get("/agents").text
    assert browser.post("/agents/triage/canary", {**sent, "share": "ten"}).status_code == 422
    version = str(client.agent("triage")["version"])
    ended = browser.follow(browser.post("/agents/triage/rollback", {**sent, "version": version, "reason": ""})).text
    assert "Last canary" in ended
    assert client.agent("triage")["canary"]["outcome"] == "ended"


def test_reason_of_a_missing_score_is_shown(logged_in: Open, client: Client, installed: None, database: Engine) -> None:
    task = client.submit("triage", {"ticket": "x"})
    with database.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO evaluations (task_id, evaluator, agent_version_id, state, problem) "
                "SELECT id, 'judge <b>', agent_version_id, 'failed', 'It is <i>disabled' FROM tasks WHERE id = :task"
            ),
            {"task": task.id},
        )
    shown = logged_in("admin").get("/agents/triage").text
    assert "judge &lt;b&gt;" in shown
    assert "without a score: 1 failed, 0 skipped; the latest: " in shown
    assert "It is &lt;i&gt;disabled" in shown
    assert "It is" not in logged_in("viewer").get("/agents/triage").text


def test_agent_is_disabled_and_accepts_tasks_again(logged_in: Open, client: Client, installed: None) -> None:
    browser = logged_in("operator")
    fields = {"csrf_token": browser.csrf_token(), "status": "disabled", "reason": "it sorts <b>badly"}
    shown = browser.follow(browser.post("/agents/triage/status", fields)).text
    assert "it sorts &lt;b&gt;badly" in shown
    assert client.agent("triage")["status"] == "disabled"
    assert "Accept tasks again" in shown
    browser.post("/agents/triage/status", {**fields, "status": "active"})
    assert client.agent("triage")["status"] == "active"


@pytest.mark.parametrize("role", ["viewer", "author", "submitter", "approver"])
def test_only_operators_and_admins_see_the_way_back(logged_in: Open, installed: None, role: str) -> None:
    browser = logged_in(role)
    assert "/rollback" not in browser.get("/agents/triage").text
    refused = browser.post("/agents/triage/rollback", {"csrf_token": browser.csrf_token(), "version": "1"})
    assert refused.status_code == 403


def test_bound_reader_sees_its_agents_alone(logged_in: Open, installed: None, database: Engine) -> None:
    browser = logged_in("admin", agents=["chain"])
    page = browser.get("/agents").text
    assert "<bdi>chain</bdi>" in page
    assert "triage" not in page
    assert "/routing" not in page
    chain = browser.get("/agents/chain").text
    assert "<bdi>asker</bdi>" in chain, "the API shows the definition"
    assert "asking" not in chain, "what it uses in turn belongs to the namespace"
    assert "/rollback" not in chain
    for path in ("/agents/triage", "/agents/triage/try", "/agents/triage/raw"):
        assert browser.get(path).status_code == 404, path
    for path in ("/functions", "/functions/double", "/tools", "/tools/call", "/routing"):
        assert browser.get(path).status_code == 403, path
    elsewhere = logged_in("admin", namespace="team")
    assert "There are no agents here" in elsewhere.get("/agents").text
    assert elsewhere.get("/agents/chain").status_code == 404
    assert elsewhere.get("/agents/chain?namespace=default").status_code == 403


def test_uses_are_followed_through_tools_and_agents(logged_in: Open, installed: None, database: Engine) -> None:
    with database.connect() as connection:
        root = relations_of(connection, "default", "chain")

    def written(node: Node) -> Any:
        return {f"{each.kind} {each.name} ({each.how})": written(each) for each in node.uses}

    uses = {
        "tool doubling (pure)": {"function double ()": {}},
        "tool call (unsafe)": {"http https://example.com/call ()": {}},
    }
    asker = {"tool asking (idempotent)": {"agent doubler ()": {"function double ()": {}}}}
    assert written(root) == {"agent triage (step 1)": uses, "agent asker (step 2, for each of items)": asker}
    page = logged_in("viewer").get("/agents/chain").text
    assert page.count("<g class=") == 10
    assert 'href="/tools/asking"' in page


@pytest.mark.parametrize(
    ("strategy", "how"), [("parallel", "at once"), ("router", "may be chosen"), ("fallback", "attempt 2")]
)
def test_uses_say_how_a_chain_calls(define: Define, database: Engine, strategy: str, how: str) -> None:
    agents = [agent_definition(name) for name in ("A", "B")]
    chain = {"kind": "agent", "name": "C", "type": "function", "relations": [{"agent": "A"}, {"agent": "B"}]}
    define(NOOP, *agents, {**chain, "config": {**WORK, "chain_strategy": strategy}})
    with database.connect() as connection:
        assert relations_of(connection, "default", "C").uses[1].how == how


def test_refused_form_leads_back_to_its_page(logged_in: Open, database: Engine) -> None:
    define_in(database, "team", NOOP, agent_definition("A"))
    browser = logged_in("admin")
    form = {"version": "9", "csrf_token": browser.csrf_token()}
    refused = browser.post("/agents/A/rollback?namespace=team", form)
    assert refused.status_code == 404
    assert 'href="/agents/A?namespace=team">Back to the page' in refused.text
    browser.cookies.clear()
    for path, back in (("/agents/A/rollback?namespace=team", "/agents/A?namespace=team"), ("/routing", "/routing")):
        assert browser.post(path, form).headers["location"] == f"/login?return_to={quote(back, safe='')}"


def test_large_schemas_are_filled_in_as_json(logged_in: Open, define: Define) -> None:
    for name, part in (("choices", {"enum": [f"choice {n}" for n in range(2000)]}),
                       ("words", {"type": "string", "description": "word " * 20_000})):  # fmt: skip
        schema = {"type": "object", "properties": {"x": part}}
        define(function_definition(), {"kind": "agent", "name": name, "type": "function", "function": "double",
               "input_schema": schema, "config": WORK})  # fmt: skip
        page = logged_in("admin").get(f"/agents/{name}/try")
        assert "Input, as JSON" in page.text
        assert len(page.content) < 100_000


def test_limits_of_a_trial_are_numbers(logged_in: Open, installed: None) -> None:
    browser = logged_in("admin")
    for typed in ("five", "0,5", "[1]", "1e9", "-1"):
        form = {"message": "hello", "dollars": typed, "csrf_token": browser.csrf_token()}
        refused = browser.post("/agents/triage/try", form)
        assert refused.status_code == 422
        assert "The limit of dollars must be a number, such as 20 or 0.5." in refused.text


def test_hidden_characters_are_visible_in_differences(logged_in: Open, define: Define) -> None:
    for prompt in ("Pay.\nNever refund.\n", "Pay.\nNever \u202erefund.\n"):
        define({"kind": "agent", "name": "payer", "model": "claude-sonnet-5-5", "system_prompt": prompt})
    page = logged_in("admin").get("/agents/payer?a=1&b=2").text
    assert "\u202e" not in page
    assert "Never \\u202erefund" in page


def test_source_of_many_parts_stays_small() -> None:
    code = "1 " * 10_000
    assert len(marked(code)) < 100_000
    assert marked(code).striptags().split() == code.split()


def test_picture_of_many_tools_is_cut(logged_in: Open, define: Define) -> None:
    names = [f"tool_{number:03}" for number in range(128)]
    define(function_definition("double"))
    define(
        *({"kind": "tool", "name": name, "type": "function", "function": "double"} for name in names),
        {"kind": "agent", "name": "many", "model": "claude-sonnet-5-5", "tools": names, "config": WORK},
    )
    for bounds in ({}, {"agents": ["many"]}):
        page = logged_in("author", **bounds).get("/agents/many").text
        assert page.count("<rect") <= 1 + MOST_USES
        assert "60 parts" in page


def test_older_versions_are_said_to_be_elsewhere(logged_in: Open, installed: None) -> None:
    with ExitStack() as stack:
        for module in (agents, functions, tools):
            stack.enter_context(patch.object(module, "VERSIONS", 1))
        for path in ("/agents/triage", "/functions/double", "/tools/doubling"):
            assert "Only the newest 1 version" in logged_in("admin").get(path).text, path


def test_picture_escapes_names() -> None:
    assert "<script" not in picture(Node("agent", HOSTILE, "", [Node("tool", HOSTILE, HOSTILE)]))


# ---------------------------------------------------------------------------------------------------------- try, route


def test_agent_is_tried_with_a_form_from_its_schema(
    logged_in: Open, client: Client, installed: None, inline_worker: InlineWorker
) -> None:
    browser = logged_in("author")
    form = browser.get("/agents/doubler/try").text
    assert 'name="argument.x"' in form, "the schema is that of its function"
    assert "What is doubled" in form
    fields = {"csrf_token": browser.csrf_token(), "argument.x": "21", "seconds": "60", "tokens": "", "dollars": ""}
    wrong = browser.post("/agents/doubler/try", {**fields, "argument.x": "<b>many"})
    assert wrong.status_code == 422
    assert "must be a whole number" in wrong.text
    assert 'value="&lt;b&gt;many"' in wrong.text
    assert browser.post("/agents/doubler/try", {**fields, "steps": "-1"}).status_code == 422
    sent = browser.post("/agents/doubler/try", fields)
    task = sent.headers["location"].removeprefix("/tasks/").partition("?")[0]
    assert "Submitted, as this task." in browser.follow(sent).text
    inline_worker.run_all()
    found = client.get(task)
    assert (found.state, found.output) == ("succeeded", 42)
    assert found.budget["seconds"]["limit"] == 60


def test_reader_of_contracts_tries_with_json(logged_in: Open, client: Client, installed: None) -> None:
    """The schema is that of a function, which this reader may not see."""
    browser = logged_in("submitter")
    form = browser.get("/agents/doubler/try").text
    assert 'name="input"' in form
    assert "What is doubled" not in form
    fields = {"csrf_token": browser.csrf_token(), "input": '{"x": <b>}'}
    wrong = browser.post("/agents/doubler/try", fields)
    assert wrong.status_code == 422
    assert "{&#34;x&#34;: &lt;b&gt;}" in wrong.text
    sent = browser.post("/agents/doubler/try", {**fields, "input": '{"x": 21}'})
    assert client.get(sent.headers["location"].removeprefix("/tasks/").partition("?")[0]).input == {"x": 21}


def test_model_is_tried_with_a_message_and_a_budget(logged_in: Open, client: Client, installed: None) -> None:
    browser = logged_in("author")
    form = browser.get("/agents/triage/try").text
    assert 'name="message"' in form
    assert 'name="dollars" inputmode="decimal" autocomplete="off" value="0.5"' in form
    fields = {"csrf_token": browser.csrf_token(), "message": "Hello\r\nthere", "dollars": "0.25"}
    sent = browser.post("/agents/triage/try", fields)
    task = client.get(sent.headers["location"].removeprefix("/tasks/").partition("?")[0])
    assert task.messages == [{"role": "user", "content": "Hello\nthere"}]
    assert task.budget["dollars"]["limit"] == 0.25


def test_disabled_agent_cannot_be_tried(logged_in: Open, installed: None, database: Engine) -> None:
    with database.begin() as connection:
        connection.execute(text("UPDATE agents SET status = 'disabled'"))
    browser = logged_in("author")
    sent = browser.post("/agents/doubler/try", {"csrf_token": browser.csrf_token(), "argument.x": "1"})
    assert sent.status_code == 409
    assert "disabled" in sent.text


def test_tenant_tries_as_itself(logged_in: Open, client: Client, installed: None) -> None:
    browser = logged_in("submitter", tenant="acme:*")
    assert 'name="tenant"' in browser.get("/agents/doubler/try").text
    fields = {"csrf_token": browser.csrf_token(), "input": '{"x": 1}'}
    refused = browser.post("/agents/doubler/try", {**fields, "tenant": "other"})
    assert (refused.status_code, "must begin with" in refused.text) == (403, True)
    sent = browser.post("/agents/doubler/try", {**fields, "tenant": "acme:1"})
    assert client.get(sent.headers["location"].removeprefix("/tasks/").partition("?")[0]).key == "acme:1"


def test_routing_is_tested_without_a_task(logged_in: Open, client: Client, installed: None, database: Engine) -> None:
    browser = logged_in("viewer")
    token = hidden(browser.get("/routing").text)["csrf_token"]

    def ask(message: str) -> Any:
        return browser.post("/routing", {"csrf_token": token, "message": message})

    found = ask("support tickets, sorted or doubled").text
    assert 'It would go to <a href="/agents/triage">' in found
    assert "triage" in row_of(found, "triage")
    assert "The task would fail. <bdi>No agent fits the message." in ask("xylophone").text
    assert ask(HOSTILE).status_code == 200
    assert ask("").status_code == 422
    route = client.route("support tickets")
    assert (route["agent"], route["by"], route["problem"]) == ("triage", "text", None)
    assert route["scores"][0]["agent"] == "triage"
    with database.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM tasks")) == 0


# ----------------------------------------------------------------------------------------------- functions and tools


def test_tools_are_shown_with_their_servers(logged_in: Open, define: Define, monkeypatch: pytest.MonkeyPatch) -> None:
    author = logged_in("author")
    assert "MCP servers" not in author.get("/tools").text
    call = {"server": "shop", "tool": "a", "listed": "0" * 64}
    define(
        {"kind": "mcp_server", "name": "shop", "url": "https://example.com/mcp?key=x", "description": "<b>Ours</b>"},
        {"kind": "tool", "name": "remote", "type": "mcp", "mcp": call},
        {"kind": "mcp_server", "name": "files", "stdio": "share"},
    )
    page = author.get("/tools").text
    assert "https://example.com/mcp<" in page
    assert "the program share" in page
    assert "&lt;b&gt;Ours" in page
    assert "MCP servers" not in author.get("/tools?cursor=remote").text
    assert "minion mcp list" not in page
    monkeypatch.setattr("orchestrator.pages.tools.MOST_SERVERS", 1)
    assert "minion mcp list" in author.get("/tools").text


def test_function_is_shown_with_marked_source(logged_in: Open, installed: None) -> None:
    page = logged_in("viewer").get("/functions/double?a=1&b=2").text
    assert '<span class="keyword">def</span>' in page
    assert '<span class="definition">double</span>' in page
    assert '<span class="comment"># no overflow</span>' in page
    assert '<span class="string">&#34;&#34;&#34;Twice as much.&#34;&#34;&#34;</span>' in page
    assert '<span class="number">2</span> * x' in page
    assert "<del>-      return 3 * x</del>" in page
    assert "<ins>+      return 2 * x</ins>" in page
    assert 'href="/tools/doubling"' in page
    assert 'href="/agents/doubler"' in page
    assert not re.search(r" style=", page)
    raw = logged_in("viewer").get("/functions/double/raw")
    assert raw.text == CODE.format(factor=2)
    assert raw.headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize("code", [HOSTILE, 'f"""{' * 2000, "'''" + "\\" * 9999, "(" * 20_000, "\u202e # \u2066"])
def test_source_of_any_kind_is_marked_exactly(code: str) -> None:
    shown = marked(code)
    assert "<script" not in shown
    assert unescape(re.sub(r"</?span[^>]*>", "", shown)) == marked_plain(code)


def marked_plain(code: str) -> str:
    return code.translate({0x202E: "\\u202e", 0x202C: "\\u202c", 0x200B: "\\u200b", 0x2066: "\\u2066",
                           0x1B: "\\u001b", 0x07: "\\u0007"})  # fmt: skip


def test_function_is_quarantined_and_released(
    logged_in: Open, client: Client, installed: None, database: Engine
) -> None:
    browser = logged_in("operator")
    page = browser.get("/functions/double").text
    assert "Quarantine version 2" in page
    assert "Release version" not in page
    fields = {"csrf_token": browser.csrf_token(), "version": "1"}
    assert browser.post("/functions/double/status", {**fields, "status": "gone"}).status_code == 422
    done = browser.post("/functions/double/status", {**fields, "status": "quarantined", "reason": "it reads <i>"})
    assert "it reads &lt;i&gt;" in browser.follow(done).text
    assert [version["status"] for version in client.function("double")["versions"]] == ["active", "quarantined"]
    assert "Release version 1" in browser.get("/functions/double").text
    browser.post("/functions/double/status", {**fields, "status": "active"})
    assert [version["status"] for version in client.function("double")["versions"]] == ["active", "active"]
    with database.connect() as connection:
        rows = connection.execute(text("SELECT target, actor FROM audit_log WHERE act = 'function.status'")).all()
    assert [row.target for row in rows] == ["double@1", "double@1"]
    assert rows[0].actor.startswith("operator-")
    assert "/status" not in logged_in("viewer").get("/functions/double").text


@pytest.mark.parametrize("definition", ["{}", "[]", '"x"', '{"code": 5, "config": null}'])
def test_function_changed_from_outside_is_quarantined_on_its_page(
    logged_in: Open, installed: None, database: Engine, definition: str
) -> None:
    tamper(database, f"definition = '{definition}'")
    browser = logged_in("operator")
    for path in ("/functions/double", "/functions/double/raw", "/functions/double?a=1"):
        assert browser.get(path).status_code == 200, path
    form = {"version": "2", "status": "quarantined", "csrf_token": browser.csrf_token()}
    assert browser.post("/functions/double/status", form).status_code == 303
    refused = browser.post("/functions/double/status", {**form, "status": "active"})
    assert refused.status_code == 409
    assert "does not match its stored SHA-256" in refused.text


def test_security_events_are_shown_and_masked(
    logged_in: Open, client: Client, installed: None, database: Engine
) -> None:
    version = client.function("double")["versions"][0]["id"]
    detail = {"message": f"{HOSTILE} may not be imported"}
    security_events.record(database, version, "import_denied", detail)
    author, viewer = (logged_in(role).get("/functions/double").text for role in ("author", "viewer"))
    assert "import denied" in author
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in author
    assert "import denied" in viewer
    assert "alert(1)" not in viewer
    assert client.function_events("double")[0]["detail"] == detail


def test_tool_is_shown_with_its_agents(logged_in: Open, client: Client, installed: None) -> None:
    page = logged_in("author").get("/tools/doubling").text
    assert row_of(page, "triage") == "triage 2 2"
    assert 'href="/functions/double"' in page
    call = logged_in("author").get("/tools/call").text
    assert "https://example.com/call" in call
    assert "literal-secret" in call
    viewer = logged_in("viewer")
    for path in ("/tools/call", "/tools/call/raw"):
        assert "literal-secret" not in viewer.get(path).text, path
    assert {tool["name"] for tool in client.tools()} == {"asking", "call", "doubling"}
    assert client.tool("asking")["definition"]["agent"] == "doubler"


def test_tool_of_a_server_is_shown_with_its_hash(logged_in: Open, define: Define) -> None:
    call = {"server": "crm", "tool": "<b>refund", "listed": "ab" * 32}
    define(
        {"kind": "mcp_server", "name": "crm", "url": "https://crm.example.com/mcp"},
        {"kind": "tool", "name": "refund", "type": "mcp", "description": "\u202e<i>Refunds.", "mcp": call},
        {"kind": "agent", "name": "desk", "model": "offline", "tools": ["refund"]},
    )
    page = logged_in("viewer").get("/tools/refund").text
    assert "&lt;b&gt;refund" in page
    assert "abababababab" in page
    assert "<i>Refunds" not in page
    assert "\u202e" not in page
    assert "crm" in logged_in("author").get("/agents/desk").text


@pytest.mark.parametrize("path", ["/agents", "/functions", "/tools"])
def test_empty_list_says_what_to_do_next(logged_in: Open, path: str) -> None:
    page = logged_in("viewer").get(path)
    assert page.status_code == 200
    assert "minion " in page.text


def test_unknown_name_is_a_page(logged_in: Open, installed: None) -> None:
    for path in ("/agents/no%3Cb%3E", "/functions/no", "/tools/no", "/agents/no/try"):
        page = logged_in("admin").get(path)
        assert page.status_code == 404, path
        assert "<b>" not in page.text
        assert "<nav" in page.text


# ------------------------------------------------------------------------------------------------------- in Chromium


def test_pages_are_accessible_in_light_and_dark(
    visit: Callable[..., Visit], client: Client, installed: None, database: Engine
) -> None:
    version = client.function("double")["versions"][0]["id"]
    security_events.record(database, version, "import_denied", {"message": "os may not be imported"})
    client.set_function_status("double", "quarantined", version=1, reason="it reads files")
    axe = Axe()
    contrast = {"runOnly": ["color-contrast"], "resultTypes": ["violations"]}
    for look, options in (("light", DEFAULT_OPTIONS), ("dark", contrast), ("phone", None)):
        visited = visit(dark=look == "dark", phone=look == "phone")
        for path in PATHS:
            page = visited.go(path)
            if path == "/routing":
                page.get_by_label("Message").fill("support tickets")
                page.get_by_role("button", name="Show the agent").click()
                expect(page.get_by_role("heading", name="Result")).to_be_visible()
            take_picture(page, path, look)
            if options is not None:
                found = axe.run(page, options=options)
                assert found.violations_count == 0, f"{path} {look}\n{found.generate_report()}"
            width = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert width <= 0, f"{path} {look} is too wide"
        visited.check()


def test_journey_rolls_an_agent_back(
    visit: Callable[..., Visit], client: Client, define: Define, inline_worker: InlineWorker
) -> None:
    for factor in (2, 3):
        define(
            run_version(factor),
            {"kind": "agent", "name": "doubler", "type": "function", "function": "double", "config": WORK},
        )
    visited = visit("operator")
    keyboard, page = visited.page.keyboard, visited.page
    keyboard.press("g")
    keyboard.press("a")
    page.wait_for_url("**/agents")
    page.get_by_role("link", name="doubler").click()
    page.get_by_label("Reason for version 1").fill("three is not two")
    page.get_by_role("button", name="Roll back to version 1").click()
    expect(page.get_by_role("status").filter(has_text="This version is active now.")).to_be_visible()
    expect(page.get_by_role("heading", level=1)).to_contain_text("rolled back")
    expect(page.get_by_text("three is not two")).to_be_visible()
    task = client.submit("doubler", {"x": 21}).id
    inline_worker.run_all()
    assert client.get(task).output == 42
    page.get_by_role("button", name="Activate version 2").click()
    expect(page.get_by_role("heading", level=1)).not_to_contain_text("rolled back")
    visited.check()


def test_second_click_submits_no_second_task(
    visit: Callable[..., Visit], client: Client, installed: None, database: Engine
) -> None:
    visited = visit("admin")
    page = visited.go("/agents/doubler/try")
    page.get_by_label("x (required)").fill("21")
    button = page.get_by_role("button", name="Submit the task").bounding_box()
    assert button is not None
    at = button["x"] + 20, button["y"] + 10  # the mouse does not wait for a page that is on its way
    waiting = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
    with database.begin() as connection, database.connect() as watching:
        connection.execute(text("LOCK TABLE tasks IN SHARE MODE"))
        page.mouse.click(*at)
        wait_until(lambda: watching.scalar(waiting) == 1, "the task waits to be stored")
        page.mouse.click(*at)
    page.wait_for_url("**/tasks/*?done=run")
    assert len(list(client.tasks())) == 1
    visited.check()


def test_hostile_definitions_are_text(
    visit: Callable[..., Visit], define: Define, database: Engine, client: Client
) -> None:
    """Names too, though the store refuses such names; a slash would end a segment of a path."""
    described = {"description": HOSTILE, "input_schema": {"type": "object", "title": HOSTILE}}
    define(
        function_definition("f", f"def f():\n    return {HOSTILE!r}\n", **described),
        {"kind": "tool", "name": "t", "type": "function", "function": "f", **described},
        {"kind": "agent", "name": "A", "model": "claude-sonnet-5-5", "system_prompt": HOSTILE, "tools": ["t"],
         "config": WORK, **described},
        {"kind": "agent", "name": "B", "type": "function", "function": "f", "config": WORK, "description": HOSTILE},
    )  # fmt: skip
    with database.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        for table in ("agents", "agent_versions", "tools", "tool_versions", "functions", "function_versions"):
            hostile = {"hostile": HOSTILE.replace("/", "")}
            connection.execute(text(f"UPDATE {table} SET name = name || :hostile"), hostile)
    visited = visit("admin")
    page = visited.page
    seen = set()
    for listed in ("/agents", "/functions", "/tools"):
        visited.go(listed)
        links = page.locator("tbody th a").evaluate_all("all => all.map(each => each.getAttribute('href'))")
        for link in [listed, *links, *(f"{link}/try" for link in links if listed == "/agents")]:
            assert page.goto(visited.site + link).status == 200, link
            seen.add(link)
            assert page.locator("main img, main script, main [onload], main [onerror]").count() == 0, link
            assert page.evaluate("window.violations") == [], link
            assert "\u202e" not in page.content(), link
    assert len(seen) == 9
