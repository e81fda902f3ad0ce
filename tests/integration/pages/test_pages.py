"""What the pages show, without scripts: for people, and for a browser that is logged in."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import quote
from uuid import uuid4

import pytest
from sqlalchemy import Engine, event, text

from minions import Client
from minions.errors import InvalidInput
from orchestrator.pages import acts, comparing, overview, task_page
from shared.access.roles import MASK
from shared.tasks import lifecycle, queries
from tests.integration.api.conftest import Api
from tests.integration.api.test_alerts import add
from tests.integration.api.test_boundaries import define_in
from tests.integration.conftest import ACT, InlineWorker, Tasks
from tests.integration.pages.conftest import Open
from tests.integration.tasks.test_signals import suspend
from tests.support.browser import Browser, hidden
from tests.support.definitions import NOOP, agent_definition
from tests.support.lifecycle_driver import LifecycleDriver

ALERTS: dict[str, tuple[str, str | None, str]] = {
    "ours": ("unserved", "ours", "firing"),
    "theirs": ("anomaly.run", "theirs", "firing"),
    "over": ("pending_old", "ours", "resolved"),
    "threat": ("threat.refusals", "ours", "firing"),
}


def test_page_without_login_leads_to_it_and_back(site: Api, client: Client) -> None:
    browser = Browser(site.url, site.url)
    home = browser.get("/")
    assert (home.status_code, home.headers["location"]) == (303, "/overview")
    asked = browser.get("/tasks?q=state%3Afailed")
    assert asked.status_code == 303
    key = client.create_api_key("ann", "viewer")["key"]
    form = browser.follow(asked)
    back = browser.post("/login", {**hidden(form.text), "key": key})
    assert back.headers["location"] == "/tasks?q=state%3Afailed"
    assert browser.follow(back).status_code == 200


@pytest.mark.parametrize("path", ["/overview", "/tasks", "/inbox"])
def test_empty_page_says_what_to_do_next(logged_in: Open, path: str) -> None:
    page = logged_in().get(path)
    assert page.status_code == 200
    assert "minion " in page.text
    policy = page.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert page.headers["cache-control"] == "no-store"
    assert not re.search(r"<script(?! type=\"module\" src=)| style=|https?://", page.text)


def test_assets_are_served_with_their_types(logged_in: Open) -> None:
    browser = logged_in()
    page = browser.get("/overview").text
    addresses = re.findall(r'(?:src|href)="(/assets/[^"]+)"', page)
    assert len(addresses) == 2
    for address in addresses:
        asset = browser.get(address)
        assert asset.status_code == 200
        assert asset.headers["content-type"].split(";")[0] in ("text/css", "text/javascript")
        assert asset.headers["x-content-type-options"] == "nosniff"
    assert browser.get("/assets/..%2frights.py").status_code == 404
    assert browser.get("/assets/none.js").status_code == 404


def test_program_is_shown_with_the_calls_of_its_lines(logged_in: Open, driver: LifecycleDriver) -> None:
    task = driver.run("A")
    code = "one = await act()\n<b>two</b>"
    given = {"kind": "tool_call", "effect": "pure", "request_hash": "", "started_at": "2026-11-30T12:00:00+00:00"}
    program = {"number": 1, "name": "run_program", "status": "started", "input": {"arguments": {"code": code}}}
    call = {"number": 2, "name": "act", "status": "finished", "input": {}, "line": 1}
    driver.call(lifecycle.write_steps, task, 1, [{**given, **each, "program": 1} for each in (program, call)])
    browser = logged_in("author")
    assert "in program 1, line 1" in browser.get(f"/tasks/{task}").text
    assert "  1  one = await act()\n  2  &lt;b&gt;two&lt;/b&gt;" in browser.get(f"/tasks/{task}/steps/1").text
    called = browser.get(f"/tasks/{task}/steps/2").text
    assert f'<a href="/tasks/{task}/steps/1">the program of step 1</a>, line 1' in called
    assert "one = await" not in logged_in("viewer").get(f"/tasks/{task}/steps/1").text


def test_task_page_shows_its_whole_life(logged_in: Open, act: Any, tasks: Tasks, inline_worker: InlineWorker) -> None:
    task = tasks.submit(act(config={"max_attempts": 2}), {"do": "fail", "times": 5})
    inline_worker.run_all()
    page = logged_in("author").get(f"/tasks/{task}")
    assert page.status_code == 200
    for part in ("It failed", "Timeline", "<svg", "claim 2", "Error", "Input", "curl", "minion submit", "Replay"):
        assert part in page.text, part
    assert "&#34;times&#34;: 5" in page.text
    assert logged_in("author").get(f"/tasks/{task}/steps/1").status_code in (200, 404)


def test_payloads_are_masked_as_in_the_api(
    logged_in: Open, act: Any, tasks: Tasks, inline_worker: InlineWorker
) -> None:
    task = tasks.submit(act(), {"do": "fail", "times": 5, "secret": "s3cr3t"}, labels={"private.a": "s3cr3t"})
    inline_worker.run_all()
    browser = logged_in("viewer")
    shown = [
        browser.get(f"/tasks/{task}{part}").text
        for part in (
            "",
            "/steps/1",
            "/conversation",
            "/raw/input",
            "/raw/error",
            "/raw/labels",
            "/subtasks",
            f"/diff/{task}",
        )
    ]
    assert all("s3cr3t" not in page for page in shown)
    assert MASK in shown[0]


def test_page_shows_only_the_buttons_of_its_reader(
    logged_in: Open, client: Client, define: Any, orchestrated: Callable[[], None]
) -> None:
    define(NOOP, agent_definition("A"))
    task = client.submit("A", {}).id
    orchestrated()
    client.pause("capability", "work", reason="maintenance")
    operator, viewer = logged_in("operator").get(f"/tasks/{task}").text, logged_in("viewer").get(f"/tasks/{task}").text
    assert "maintenance" in operator
    for act in ("cancel", "resume"):
        assert f'action="/tasks/{task}/{act}"' in operator
        assert f'action="/tasks/{task}/{act}"' not in viewer


def test_forms_act_as_the_api_does(logged_in: Open, client: Client, define: Any, database: Engine) -> None:
    define(NOOP, agent_definition("A"))
    task = client.submit("A", {}).id
    browser = logged_in("operator")
    token = hidden(browser.get(f"/tasks/{task}").text)["csrf_token"]
    assert browser.post(f"/tasks/{task}/cancel", {"reason": "no"}).status_code == 403
    assert browser.post(f"/tasks/{task}/cancel", {"csrf_token": "0" * 64}).status_code == 403
    assert client.get(task).state == "pending"
    done = browser.post(f"/tasks/{task}/cancel", {"csrf_token": token, "reason": "not needed"})
    assert done.headers["location"] == f"/tasks/{task}?done=cancel"
    assert client.get(task).state == "cancelled"
    replayed = browser.post(f"/tasks/{task}/replay", {"csrf_token": token})
    new = replayed.headers["location"].partition("?")[0]
    assert client.get(new.rpartition("/")[2]).replay_of == task
    assert "compare" in browser.get(new).text
    assert browser.get(f"/tasks/{task}/diff/{new.rpartition('/')[2]}").status_code == 200
    with database.connect() as connection:
        acts = connection.scalars(text("SELECT act FROM audit_log WHERE act LIKE 'task.%' ORDER BY id")).all()
    assert acts == ["task.cancel", "task.replay"]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("stat:failed", "Did you mean"),
        ("failed", "state:failed"),
        ("state:broken", "no state"),
        ("since:yesterday", "not a time"),
        ("label:env", "label:env=prod"),
        ("cost:0.5", "in dollars"),
        ("root:zzz", "not the id"),
    ],
)
def test_wrong_query_is_explained(logged_in: Open, query: str, said: str) -> None:
    page = logged_in().get("/tasks", params={"q": query})
    assert page.status_code == 422
    assert said in page.text
    assert 'role="alert"' in page.text


def test_query_finds_tasks(logged_in: Open, client: Client, define: Any) -> None:
    define(NOOP, agent_definition("A"), agent_definition("B"))
    first = client.submit("A", {}, labels={"env": "prod"}).id
    second = client.submit("B", {}, labels={"env": "test"}).id
    browser = logged_in()
    for query, found in (
        ("agent:A", {first}),
        ("label:env=test", {second}),
        ("state:pending since:1h", {first, second}),
    ):
        page = browser.get("/tasks", params={"q": query}).text
        assert {task for task in (first, second) if f"/tasks/{task}" in page} == found, query
    assert browser.get("/tasks", params={"q": first}).headers["location"] == f"/tasks/{first}"


SPEND = text(
    "INSERT INTO executions (task_id, claim, worker_id, cost_microdollars) SELECT :task, claim, id, :cost "
    "FROM workers, unnest(ARRAY[1, 2]) AS claim"
)
WORKER = text(
    "INSERT INTO workers (name, capabilities, slots, pool, host, pid, version) "
    "VALUES ('spender', '{work}', 1, 'solo', 'here', 1, '0')"
)


def test_tasks_are_found_by_their_cost(logged_in: Open, client: Client, define: Any, database: Engine) -> None:
    define(NOOP, agent_definition("A"))
    cheap, middle, dear = (client.submit("A", {}).id for _ in range(3))
    with database.begin() as connection:
        connection.execute(WORKER)
        for task, cost in ((middle, 400_000), (dear, 2_000_000)):
            connection.execute(SPEND, {"task": task, "cost": cost})
    browser = logged_in()
    for query, found in (
        ("cost:>0.5", [dear, middle]),
        ("cost:>0.8", [dear]),
        ("cost:<0.800001 agent:A", [middle, cheap]),
        ("cost:>0 cost:>0.5 cost:<4", [middle]),
        ("cost:>4 state:pending", []),
    ):
        assert [task.id for task in client.tasks(query)] == found, query
        page = browser.get("/tasks", params={"q": query}).text
        assert [task for task in (dear, middle, cheap) if f"/tasks/{task}" in page] == found, query
    with patch.object(queries, "MOST_SEARCHED", 2):
        assert [task.id for task in client.tasks("cost:<0.1")] == [cheap], "short pages lead on"
        assert [task.id for task in client.tasks("cost:<0.9")] == [middle, cheap], "none is in two pages"
    with pytest.raises(InvalidInput, match="cost"):
        next(client.tasks("cost:1"))


def test_list_is_in_pages(logged_in: Open, client: Client, define: Any) -> None:
    define(NOOP, agent_definition("A"))
    client.submit_many([{"agent": "A", "input": {}}] * 60)
    browser = logged_in()
    page = browser.get("/tasks").text
    assert page.count("<tr data-item>") == 50
    older = re.search(r'rel="next" href="([^"]+)"', page)
    assert older
    assert browser.get(older[1].replace("&amp;", "&")).text.count("<tr data-item>") == 10


def test_search_that_continues_does_not_name_a_foreign_task(
    logged_in: Open, client: Client, define: Any, database: Engine
) -> None:
    define(NOOP, agent_definition("A"))
    own = client.submit("A", {}, key="ours").id
    foreign = [client.submit("A", {}, key="theirs").id for _ in range(3)]
    browser = logged_in(tenant="ours")
    with patch.object(queries, "MOST_SEARCHED", 2):
        page = browser.get("/tasks").text
        assert "Continue the search" in page
        assert not [task for task in foreign if task in page]
        for _ in range(3):
            following = re.search(r'rel="next" href="([^"]+)"', page)
            if own in page or following is None:
                break
            page = browser.get(following[1].replace("&amp;", "&")).text
    assert own in page


def test_pages_say_what_they_leave_out(logged_in: Open, act: Any, tasks: Tasks, inline_worker: InlineWorker) -> None:
    task = tasks.submit(act(config={"max_attempts": 2}), {"do": "fail", "times": 5})
    inline_worker.run_all()
    browser = logged_in("author")
    assert "outcome are equal" in browser.get(f"/tasks/{task}/diff/{task}").text
    assert "outcome are equal" not in logged_in("viewer").get(f"/tasks/{task}/diff/{task}").text, "it sees no payloads"
    with patch.object(comparing, "MOST_STEPS", 1):
        page = browser.get(f"/tasks/{task}/diff/{task}").text
    assert "outcome are equal" not in page
    assert f"minion diff {task} {task}" in page
    with patch.object(task_page, "CLAIMS", 1):
        assert "Only the first 1 claims." in browser.get(f"/tasks/{task}").text


@pytest.fixture
def hasty(site: Api) -> Iterator[None]:
    """Statements of pages may take no time at all."""
    engine = site.app.state.pages_engine

    def slow(conn: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> tuple[str, Any]:
        # One statement: a limit of its own, and longer than that.
        if "task_status" not in statement:
            return statement, parameters
        cursor.execute("SET statement_timeout = 20")
        return "SELECT pg_sleep(60)", {}

    event.listen(engine, "before_cursor_execute", slow, retval=True)
    yield
    event.remove(engine, "before_cursor_execute", slow)
    engine.dispose()  # their limit is that of its connections


def test_slow_statement_gives_a_clear_page(logged_in: Open, hasty: None) -> None:
    page = logged_in().get("/tasks")
    assert page.status_code == 503
    assert page.headers["retry-after"]
    assert "Ask for less" in page.text
    assert "<nav" in page.text
    stop = logged_in("admin").get("/limits/stop")
    assert stop.status_code == 503
    assert "Try again in a minute" in stop.text, "it has no filters"


@pytest.fixture
def asked(define: Any, tasks: Tasks, inline_worker: InlineWorker) -> str:
    """A task that waits for an approval."""
    tool = {"kind": "tool", "name": "book", "type": "builtin", "builtin": "act", "effect": "idempotent"}
    config = {"capabilities": ["work"]}
    define(
        {**tool, "approval": True, "input_schema": {"type": "object"}},
        {"kind": "agent", "name": "clerk", "type": "function", "tool": "book", "config": config},
    )
    task = tasks.submit("clerk", {"do": "answer"})
    inline_worker.run_due()
    return str(task)


def test_decision_about_something_else_is_refused_and_kept_in_the_form(
    logged_in: Open, client: Client, asked: str
) -> None:
    browser = logged_in("approver")
    form = hidden(browser.get(f"/inbox/{asked}").text)
    stale = {**form, "proposal": "0" * 12, "verdict": "approve", "reason": "it is <fair>"}
    refused = browser.post(f"/tasks/{asked}/decide", stale)
    assert refused.status_code == 409
    assert 'role="alert"' in refused.text
    assert 'value="it is &lt;fair&gt;"' in refused.text
    assert hidden(refused.text)["proposal"] == form["proposal"], "the form is about what waits now"
    wrong = browser.post(f"/tasks/{asked}/decide", {**form, "verdict": "edit", "arguments": "{'do': 1}"})
    assert wrong.status_code == 422
    assert "{&#39;do&#39;: 1}" in wrong.text
    assert client.get(asked).state == "waiting"


def test_result_is_stated_in_a_form_made_from_its_schema(
    logged_in: Open, client: Client, define: Any, tasks: Tasks, inline_worker: InlineWorker, tmp_path: Path
) -> None:
    properties = {"receipt": {"type": "string"}, "amount": {"type": "integer", "description": "In cents."}}
    schema = {"type": "object", "properties": properties, "required": ["receipt"]}
    define(
        {**ACT, "effect": "unsafe", "output_schema": schema},
        {"kind": "agent", "name": "clerk", "type": "function", "tool": "act", "config": {"capabilities": ["work"]}},
    )
    task = str(tasks.submit("clerk", {"do": "time out", "times": 1, "log": str(tmp_path / "calls")}))
    inline_worker.run_due()
    browser = logged_in("approver")
    for path in (f"/inbox/{task}", f"/tasks/{task}"):
        page = browser.get(path).text
        assert ('name="argument.receipt"' in page, "In cents." in page, 'name="result"' in page) == (True, True, False)
    form = {**hidden(page[page.index("/decide") :]), "verdict": "result", "argument.receipt": "42"}
    refused = browser.post(f"/tasks/{task}/decide", {**form, "argument.amount": "much"})
    assert refused.status_code == 422
    assert "must be a whole number" in refused.text
    assert 'value="much"' in refused.text
    assert browser.post(f"/tasks/{task}/decide", {**form, "argument.amount": "7"}).status_code == 303
    inline_worker.run_all()
    assert client.get(task).output == {"receipt": "42", "amount": 7}


def test_call_is_rejected_with_a_reason(
    logged_in: Open, client: Client, asked: str, inline_worker: InlineWorker, database: Engine
) -> None:
    browser = logged_in("approver")
    form = hidden(browser.get("/inbox").text)
    done = browser.post(f"/tasks/{asked}/decide", {**form, "verdict": "reject", "reason": "not today"})
    assert (done.status_code, done.headers["location"]) == (303, "/inbox?done=reject")
    assert "Rejected." in browser.get("/inbox?done=reject").text
    inline_worker.run_all()
    assert "not today" in str(client.get(asked).error)
    with database.connect() as connection:
        acts = connection.scalars(text("SELECT act FROM audit_log WHERE act = 'task.decide'")).all()
    assert acts == ["task.decide"]


def test_reader_without_the_right_sees_no_form(logged_in: Open, asked: str) -> None:
    browser = logged_in("viewer")
    for path in ("/inbox", f"/inbox/{asked}", f"/tasks/{asked}"):
        page = browser.get(path).text
        assert "book" in page
        assert "/decide" not in page
        assert "answer&#34;" not in page, "the arguments are masked"


def test_edited_arguments_are_what_an_approver_sees(
    logged_in: Open, client: Client, define: Any, tasks: Tasks, inline_worker: InlineWorker
) -> None:
    """However large they are: never those that were proposed first."""
    define(
        {**ACT, "effect": "idempotent", "approval": {"people": 2}, "input_schema": {"type": "object"}},
        {"kind": "agent", "name": "clerk", "type": "function", "tool": "act", "config": {"capabilities": ["work"]}},
    )
    task = tasks.submit("clerk", {"do": "answer", "answer": "proposed"})
    inline_worker.run_due()
    first, second = logged_in("approver"), logged_in("approver")
    form = hidden(first.get(f"/inbox/{task}").text)
    for edited in ("edited", "edited " * 1000, "edited " * 5000 + "the end"):
        arguments = json.dumps({"do": "answer", "answer": edited})
        sent = first.post(f"/tasks/{task}/decide", {**form, "verdict": "edit", "arguments": arguments})
        assert sent.status_code == 303
        form = hidden(first.get(f"/inbox/{task}").text)
        for path in ("/inbox", f"/inbox/{task}", f"/tasks/{task}"):
            shown = second.get(path).text.partition("Contents</h2>")[0]
            assert "edited" in shown or "arguments are large" in shown, path
            assert "&#34;proposed&#34;" not in shown, path
        assert json.loads(second.get(f"/inbox/{task}/raw").text) == json.loads(arguments)
    assert logged_in("viewer").get(f"/inbox/{task}/raw").text == MASK
    client.cancel(str(task))
    assert second.get(f"/inbox/{task}/raw").status_code == 404


def test_timer_is_no_signal(logged_in: Open, define: Any, database: Engine) -> None:
    define(NOOP, agent_definition("A"))
    driver = LifecycleDriver(database)
    task = driver.run()
    waits = [{"name": name, "signal": name == "go", "seconds": 3600.0} for name in ("go", "timer")]
    suspend(driver, task, *waits)
    page = logged_in("operator").get(f"/tasks/{task}").text
    assert "Send the signal <bdi>go</bdi>" in page
    assert "Send the signal <bdi>timer</bdi>" not in page


def test_links_to_lists_find_the_task(logged_in: Open, client: Client, database: Engine) -> None:
    define_in(database, "theirs", NOOP, agent_definition("A"))
    for namespace, conversation in (("theirs", 'say "hi" \\o/'), ("default", "a b")):
        define_in(database, namespace, NOOP, agent_definition("A"))
        task = client.submit("A", {}, namespace=namespace, conversation_id=conversation).id
        browser = logged_in("admin")
        links = re.findall(r'href="(/tasks\?q=[^"]+)"', browser.get(f"/tasks/{task}").text)
        assert len(links) == 3
        for link in links:
            found = browser.get(link)
            assert found.status_code == 200, link
            assert task in found.text or "replay_of" in link, link
        assert all(namespace == "default" or "namespace%3Atheirs" in link for link in links)


def test_unexpected_error_is_a_page_with_its_id(
    logged_in: Open, site: Api, client: Client, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    browser = logged_in("operator")
    token = hidden(browser.get("/account").text)["csrf_token"]
    with patch.object(acts.api, "cancel_task", side_effect=RuntimeError("hunter2")):
        sent = browser.post(f"/tasks/{uuid4()}/cancel", {"csrf_token": token})
    with patch.object(overview, "_past", side_effect=RuntimeError("hunter2")):
        shown = browser.get("/overview")
    logged = capsys.readouterr().out + caplog.text
    for page, advice in ((shown, "Try again"), (sent, "Check whether your change was made")):
        assert (page.status_code, page.headers["content-type"]) == (500, "text/html; charset=utf-8")
        assert advice in page.text
        assert "hunter2" not in page.text
        [error_id] = re.findall("error_id=([0-9a-f]{16})", page.text)
        assert error_id in logged
    assert "Back to the page" in sent.text


def test_overview_has_a_time_range(logged_in: Open, client: Client, database: Engine) -> None:
    count = text(
        "INSERT INTO statistics (grain, kind, bucket, namespace, agent, outcome, count, microdollars) "
        "SELECT grain, kind, date_trunc(grain, now() - ago, 'UTC'), 'default', 'A', outcome, count, dollars * 1000000 "
        "FROM (VALUES ('hour', interval '0', 1), ('day', interval '0', 1), ('day', interval '5 d', 4)) "
        "AS g (grain, ago, n), "
        "LATERAL (VALUES ('task', 'failed', n, 0), ('step', '', n, n)) w (kind, outcome, count, dollars)"
    )
    with database.begin() as connection:
        connection.execute(count)
    browser = logged_in()
    for last, title, number, bars in (("24h", "24 hours", 1, 24), ("7d", "7 days", 5, 7), ("30d", "30 days", 5, 30)):
        page = browser.get(f"/overview?last={last}").text
        assert f"<h2>Failed in {title}</h2>" in page
        assert quote(f"state:failed state:expired since:{last}") + f'">{number}</a>' in page
        assert f'measure=dollars&amp;last={last}">${number}.00</a>' in page
        assert "today $1.00" in page
        assert page.partition("</svg>")[0].count("<rect") == bars
    assert browser.get("/overview?last=1y").status_code == 422


def test_overview_has_the_alerts_of_its_reader(logged_in: Open, client: Client, database: Engine) -> None:
    shown = {name: add(database, *row) for name, row in ALERTS.items()}
    for bounds, expected in (({}, {"ours", "theirs"}), ({"namespace": "ours"}, {"ours"}), ({"tenant": "t"}, set())):
        page = logged_in("viewer", **bounds).get("/overview").text
        assert {name for name, alert in shown.items() if f"/alerts/{alert}" in page} == expected, bounds
        assert ("Alerts</h2>" in page) == bool(expected)
    assert "\\u001b[31mtheirs" in logged_in("viewer").get("/overview").text
    assert "namespace%3Atheirs" in logged_in("viewer").get("/overview").text
    assert shown["threat"] in logged_in("admin").get("/overview").text


def test_pages_say_what_a_turn_paid_for_again(logged_in: Open, driver: LifecycleDriver) -> None:
    task = driver.run("A")
    miss = {"type": "tools_changed", "cache_missed_input_tokens": 41_000}
    step = {
        "number": 1,
        "kind": "model_call",
        "name": "claude-opus-5",
        "status": "finished",
        "effect": "idempotent",
        "request_hash": "1",
        "output": {"content": [], "instead_of": {"model": "<b>claude</b>", "reason": "refusal", "message": ""}},
        "usage": {"input_tokens": 50_000, "output_tokens": 3, "cache_miss": miss},
        "started_at": "2026-11-29T12:00:00+00:00",
        "finished_at": "2026-11-29T12:00:02+00:00",
    }
    driver.call(lifecycle.write_steps, task, 1, [step])
    note = "paid 41,000 tokens again because the tools changed"
    assert note in logged_in("author").get(f"/tasks/{task}").text
    page = logged_in("author").get(f"/tasks/{task}/steps/1").text
    assert note in page
    assert "instead of &lt;b&gt;claude&lt;/b&gt;, which refused to answer" in page
