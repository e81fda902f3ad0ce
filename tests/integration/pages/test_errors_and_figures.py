"""The pages of errors, workers, capabilities and analytics: without scripts, and in a real Chromium."""

from __future__ import annotations

import csv
import gzip
import re
from collections.abc import Callable
from datetime import UTC, datetime
from html import unescape
from io import StringIO
from typing import Any
from unittest.mock import patch
from urllib.parse import quote

import pytest
from axe_playwright_python.sync_playwright import DEFAULT_OPTIONS, Axe
from playwright.sync_api import expect
from sqlalchemy import Engine, text

from minions import Client
from orchestrator.observe.counting import catch_up
from orchestrator.pages.analytics import MEASURES, MeasureName
from shared.access.roles import MASK
from shared.settings import get_settings
from tests.integration.api.conftest import Api
from tests.integration.api.test_boundaries import define_in
from tests.integration.conftest import InlineWorker, Tasks
from tests.integration.pages.conftest import Open, Visit
from tests.integration.pages.test_in_chromium import HOSTILE, take_picture
from tests.support.browser import hidden
from tests.support.definitions import NOOP, agent_definition

Visits = Callable[..., Visit]
FAIL = {"do": "fail", "times": 9}
COST = text(
    "INSERT INTO statistics (grain, kind, bucket, namespace, agent, capability, tenant, outcome, step, name, count, "
    "microdollars, input_tokens) SELECT grain, kind, date_trunc(grain, now(), 'UTC'), 'default', :agent, 'work', "
    ":tenant, 'succeeded', CASE kind WHEN 'step' THEN 'model_call' ELSE '' END, "
    "CASE kind WHEN 'step' THEN :model ELSE '' END, 3, CASE kind WHEN 'step' THEN :cost ELSE 0 END, 10 "
    "FROM unnest(ARRAY['hour', 'day']) AS g (grain), unnest(ARRAY['task', 'step']) AS k (kind)"
)
ANOMALY = text(
    "INSERT INTO alerts (rule, namespace, subject, agent, capability, sentence, facts) VALUES ('anomaly.cost', "
    "'default', 'spender', 'spender', 'work', 'A task of spender costs 3 dollars.', jsonb_build_object('from_hour', "
    "CAST(:hour AS integer), 'hour', CAST(:hour AS integer)))"
)

MANY_GROUPS = text(
    """
    INSERT INTO statistics
        (grain, kind, bucket, namespace, agent, capability, tenant, name, step, outcome, count, runs)
        SELECT grain, kind, date_trunc(grain, now()), 'default', 'an-agent-' || n, 'a-capability-' || n, 'tenant-' || n,
               CASE kind WHEN 'failure' THEN 'kind-' || n ELSE '' END, 'tool_error', 'failed', n, '{1,2,3}'
            FROM generate_series(1, 1000) AS n, unnest(ARRAY['hour', 'day']) AS grain,
                 unnest(ARRAY['task', 'execution', 'failure']) AS kind
    """
)


def counted(database: Engine) -> None:
    catch_up(database)


def spend(database: Engine, agent: str, dollars: float, *, tenant: str = "", model: str = "claude-sonnet-5-5") -> None:
    with database.begin() as connection:
        connection.execute(COST, {"agent": agent, "tenant": tenant, "model": model, "cost": dollars * 1e6})


def token_of(page: str) -> str:
    return hidden(page)["csrf_token"]


@pytest.fixture
def fingerprint(act: Any, tasks: Tasks, inline_worker: InlineWorker, client: Client, database: Engine) -> str:
    """Three tasks that have failed in the same way, counted; the value is the fingerprint."""
    agent = act(config={"max_attempts": 1})
    for tenant in ("acme", "acme", "other"):
        tasks.submit(agent, FAIL, key=tenant)
    inline_worker.run_all()
    counted(database)
    [kind] = client.errors()["items"]
    return str(kind["fingerprint"])


# --------------------------------------------------------------------------------------------------------- errors


def test_error_is_resolved_and_reopens_in_a_later_version(
    fingerprint: str,
    logged_in: Open,
    client: Client,
    act: Any,
    tasks: Tasks,
    inline_worker: InlineWorker,
    database: Engine,
) -> None:
    browser = logged_in("operator")
    address = f"/errors/{fingerprint}"
    assert fingerprint in browser.get("/errors").text
    assert 'data-stream="/errors/live"' in browser.get(address).text
    assert f'href="{address}?last=24h"' in browser.get("/overview").text
    shown = browser.get(address).text
    assert ">open</span>" in shown
    assert "3 tasks have failed with it in the last 24 hours, 100 % of all failures" in shown
    sent = {"csrf_token": token_of(shown), "namespace": "default", "state": "resolved", "reason": "version 2 is right"}
    done = browser.post(f"{address}/decide", sent)
    assert done.headers["location"] == f"{address}?namespace=default&done=resolved"
    shown = browser.get(done.headers["location"]).text
    assert ">resolved</span>" in shown
    assert "version 2 is right" in shown
    listed = browser.get("/errors").text
    assert "1 kind of error is in another state." in listed
    assert f"/errors/{fingerprint}" in browser.get("/errors?state=all").text
    act(config={"max_attempts": 1}, description="It is right now.")
    again = tasks.submit("Act", FAIL)
    inline_worker.run_all()
    counted(database)
    kind = client.error(fingerprint)
    assert (kind["state"], kind["tasks"], kind["example"]) == ("reopened", 4, str(again))
    assert {**kind["seen_again"], "at": ""} == {"task_id": str(again), "at": "", "agent": "Act", "version": 2}
    assert [(each["version"], each["tasks"]) for each in kind["versions"]] == [(1, 3), (2, 1)]
    assert "seen again in version 2" in browser.get("/errors").text
    [row] = [row for row in client.audit() if row["act"] == "error.set"]
    assert (row["target"], row["after"]["state"]) == (fingerprint, "resolved")


def test_failed_tasks_are_replayed_by_a_bulk_act(fingerprint: str, logged_in: Open, client: Client) -> None:
    browser = logged_in("operator")
    [address] = re.findall(r'href="(/bulk-acts/new[^"]+)"', browser.get(f"/errors/{fingerprint}").text)
    preview = browser.get(unescape(address)).text
    assert "Replay 3 tasks" in preview
    sent = hidden(preview[preview.index('action="/bulk-acts/start"') :])
    started = [browser.post("/bulk-acts/start", sent).headers["location"] for _ in range(2)]
    assert started[0] == started[1]
    [act] = client.bulk_acts()
    assert (act["act"], act["query"], act["matched"]) == ("replay", f"error:{fingerprint} namespace:default", 3)
    assert "Replay all" not in logged_in("submitter").get(f"/errors/{fingerprint}").text


def test_buttons_and_messages_are_those_of_the_reader(fingerprint: str, logged_in: Open) -> None:
    viewer, author = logged_in("viewer").get(f"/errors/{fingerprint}").text, logged_in("author")
    assert MASK in viewer
    assert "<button name=" not in viewer
    assert "Replay all" not in viewer
    shown = author.get(f"/errors/{fingerprint}").text
    assert MASK not in shown
    assert "Resolve</button>" in shown
    assert "Replay all" in shown


def test_bound_key_sees_only_its_failures(fingerprint: str, logged_in: Open, client: Client) -> None:
    client.decide_error(fingerprint, "resolved", "a note about acme")
    browser = logged_in("operator", tenant="acme")
    shown = browser.get(f"/errors/{fingerprint}").text
    assert "2 tasks have failed with it" in shown
    assert "a note about acme" not in shown
    assert "/decide" not in shown
    assert logged_in("viewer", tenant="third").get(f"/errors/{fingerprint}").status_code == 404
    assert "No task has failed" in logged_in("viewer", agents=["Other"]).get("/errors").text


def test_error_of_another_namespace_is_found(logged_in: Open, database: Engine, client: Client) -> None:
    define_in(database, "theirs", NOOP, agent_definition("A"))
    failed = client.submit("A", {}, namespace="theirs").id
    with database.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO task_outcomes (task_id, state, error, error_fingerprint) "
                """VALUES (:task, 'failed', '{"type": "t", "message": "m"}', 'f00d')"""
            ),
            {"task": failed},
        )
    counted(database)
    led = logged_in("viewer").get("/errors/f00d")
    assert led.headers["location"] == "/errors/f00d?namespace=theirs&last=24h"
    assert logged_in("viewer", namespace="ours").get("/errors/f00d").status_code == 404


# ---------------------------------------------------------------------------------------- workers and capabilities


def test_workers_show_what_runs_where(
    logged_in: Open, client: Client, act: Any, inline_worker: InlineWorker, database: Engine, site: Api
) -> None:
    task = client.submit(act(), {"do": "answer"}).id
    with database.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(
            text("UPDATE task_status SET state = 'running', worker_id = :id, claim = 1"), {"id": inline_worker.id}
        )
        connection.execute(
            text("INSERT INTO executions (task_id, claim, worker_id) SELECT task_id, 1, worker_id FROM task_status")
        )
        connection.execute(text("UPDATE workers SET memory_bytes = 123456789, name = :name"), {"name": HOSTILE})
    browser = logged_in("viewer")
    shown = browser.get("/workers").text
    assert f'href="/tasks/{task}"' in shown
    assert "123 MB" in shown
    assert "<img src=x" not in shown
    assert 'href="/capabilities#work"' in shown
    assert "Flower" not in shown
    with patch.object(site.app.state, "settings", get_settings().model_copy(update={"flower_url": "http://f:5555"})):
        assert 'href="http://f:5555"' in browser.get("/workers").text
    assert "No worker is lost." in browser.get("/workers?status=lost").text
    assert logged_in("viewer", namespace="default").get("/workers").status_code == 403


def test_capability_is_paused_and_resumed(logged_in: Open, client: Client, define: Any) -> None:
    define(NOOP, agent_definition("A", "letters"))
    client.submit("A", {})
    browser = logged_in("operator")
    shown = browser.get("/capabilities").text
    assert "minion worker letters" in shown
    assert "<strong>1 is needed</strong>" in shown
    assert "/capabilities/pause" not in logged_in("viewer").get("/capabilities").text
    sent = {"csrf_token": token_of(shown), "name": "letters", "namespace": "default", "reason": HOSTILE}
    done = browser.post("/capabilities/pause", sent)
    assert done.headers["location"] == "/capabilities?done=pause"
    [paused] = client.pauses()
    assert (paused["scope"], paused["name"], paused["reason"]) == ("capability", "letters", HOSTILE)
    assert "Resume<" in browser.get("/capabilities").text
    browser.post("/capabilities/resume", sent)
    assert client.pauses() == []
    for namespace in ("\x00", "n" * 256):
        wrong = browser.post("/capabilities/pause", {**sent, "namespace": namespace})
        assert (wrong.status_code, "The namespace must have" in wrong.text) == (422, True)
    client.pause("capability", "future", reason="not yet")
    assert "Resume<span" in browser.get("/capabilities").text.partition("Other paused capabilities")[2]
    client.resume("capability", "future")
    assert [row["act"] for row in client.audit()][2:4] == ["pause.remove", "pause.set"]
    bound = logged_in("operator", namespace="ours")
    sent["csrf_token"] = token_of(bound.get("/account").text)
    assert bound.post("/capabilities/pause", sent).status_code == 403


# ------------------------------------------------------------------------------------------------------ analytics


def test_costliest_agent_is_first_and_its_anomaly_is_marked(logged_in: Open, client: Client, database: Engine) -> None:
    for agent, dollars in (("saver", 0.01), ("spender", 3.0), ("middle", 1.0)):
        spend(database, agent, dollars)
    with database.begin() as connection:
        connection.execute(ANOMALY, {"hour": int(datetime.now(UTC).timestamp()) // 3600})
    shown = logged_in().get("/analytics?measure=dollars").text
    table = shown.partition("Tasks by agent")[2]
    assert table.index("spender") < table.index("middle") < table.index("saver")
    assert "$3.00" in table
    assert "A task of spender costs 3 dollars." in table
    assert '<a class="bad" href="/alerts/' in table
    assert 'class="odd"' in shown
    bound = logged_in(agents=["saver"]).get("/analytics?measure=dollars").text
    assert "saver" in bound
    assert "spender" not in bound


@pytest.mark.parametrize(
    "query",
    ["by=agent&by=version", "by=model", "by=key", "by=capability", "by=hour", "by=day&last=90d", "by=agent&by=hour",
     "by=agent&version=1&model=m&function=&key=", "last=7d", "last=30d&by=namespace", "by=agent&by="],
)  # fmt: skip
def test_groupings_are_in_the_address(logged_in: Open, database: Engine, query: str) -> None:
    spend(database, "spender", 3.0)
    assert logged_in().get(f"/analytics?{query}").status_code == 200


@pytest.mark.parametrize("measure", MEASURES)
def test_chart_and_table_have_the_same_figure(
    logged_in: Open, fingerprint: str, database: Engine, measure: MeasureName
) -> None:
    """The chart reads only the rows that its figure is counted from."""
    spend(database, "spender", 3.0)
    page = logged_in().get(f"/analytics?by=hour&measure={measure}").text
    chart, table = (part.rpartition("</tbody>")[0] for part in page.split("Tasks by hour"))
    newest = re.findall(r'<td data-label="[^"]+">([^<]+)</td>', chart)[0]
    assert re.findall(r"<td [^>]+><strong>([^<]+)</strong>", table)[-1] == newest
    assert newest not in ("–", "0", "$0") or measure == "saved"


def test_many_groups_and_kinds_make_no_large_page(logged_in: Open, database: Engine) -> None:
    with database.begin() as connection:
        connection.execute(MANY_GROUPS)
    for path in ("/analytics?by=agent&by=capability&by=key&last=7d", "/errors?state=all"):
        page = logged_in().get(path).text
        assert len(page) < 150_000
        assert re.search(r"00 more (groups are in the CSV file|kinds with fewer failures)", page)


# Names as long as they may be, of letters that do not compress.
LONG_NAMES = """
    CREATE FUNCTION pg_temp.long_name(letters int, kinds int) RETURNS text LANGUAGE sql VOLATILE AS $$
        SELECT string_agg(chr(CASE WHEN kinds > 100 THEN 131072 ELSE 65 END + floor(random() * kinds)::int), '')
            FROM generate_series(1, letters) $$;
    INSERT INTO statistics (grain, kind, bucket, namespace, agent, capability, tenant, outcome, count)
        SELECT 'hour', 'task', date_trunc('hour', now()), 'default', pg_temp.long_name(100, 26),
               pg_temp.long_name(100, 26), pg_temp.long_name(255, 20000), 'failed', n
            FROM generate_series(1, 200) AS n;
    INSERT INTO workers (name, capabilities, slots, busy, pool, host, pid, version, last_seen)
        SELECT pg_temp.long_name(100, 20000),
               ARRAY(SELECT pg_temp.long_name(100, 26) FROM generate_series(0, mod(n, 60))),
               50, 30, 'prefork', pg_temp.long_name(200, 20000), 1, '0', now() + interval '1 h'
            FROM generate_series(1, 60) AS n;
    INSERT INTO pauses (name, scope, reason)
        SELECT pg_temp.long_name(100, 26), 'capability', pg_temp.long_name(500, 20000) FROM generate_series(1, 200);
    INSERT INTO tasks (id, agent_name, agent_version_id, input, root_id, origin_id, depth)
        SELECT id, name, version, '{}', id, id, 0 FROM (SELECT minion_uuidv7() AS id, agent_name AS name,
            agent_version_id AS version FROM tasks LIMIT 1) t;
    WITH RECURSIVE below (id, parent, depth) AS (
        SELECT minion_uuidv7(), (SELECT max(id::text)::uuid FROM tasks), 1
            UNION ALL SELECT minion_uuidv7(), below.id, depth + 1 FROM below, generate_series(1, 2) WHERE depth < 7)
    INSERT INTO tasks (id, agent_name, agent_version_id, input, root_id, origin_id, depth, parent_id, parent_step)
        SELECT below.id, pg_temp.long_name(100, 26), t.agent_version_id, '{}', t.id, below.id, below.depth,
               below.parent, 1
            FROM below, (SELECT * FROM tasks WHERE id = (SELECT max(id::text)::uuid FROM tasks)) AS t;
    INSERT INTO task_status (task_id, state, capability, claim, agent_name, rank, worker_id)
        SELECT id, 'running', 'x', 1, agent_name, 0, (SELECT id FROM workers ORDER BY id LIMIT 1) FROM tasks t
            WHERE NOT EXISTS (SELECT FROM task_status s WHERE s.task_id = t.id);
"""


def test_long_names_make_no_large_page(logged_in: Open, fingerprint: str, database: Engine) -> None:
    with database.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.exec_driver_sql(LONG_NAMES)
        root = connection.scalar(text("SELECT parent_id FROM tasks WHERE depth = 1"))
    browser = logged_in("operator")
    for path, words in (
        ("/analytics?by=agent&by=capability&by=key&last=24h", "more groups are in the CSV file"),
        ("/workers", "Older workers"),
        ("/capabilities", "more have less work"),
        ("/overview", "more have less work"),
        (f"/tasks/{root}/graph", "only its first part"),
    ):
        page = browser.get(path)
        assert (page.status_code, words in page.text) == (200, True), path
        assert len(gzip.compress(page.content)) < 120_000, path


@pytest.mark.parametrize("query", ["by=nothing", "last=2y", "version=x", "by=hour&last=30d", "by=hour&by=day", "x=1"])
def test_wrong_grouping_is_explained(logged_in: Open, query: str) -> None:
    page = logged_in().get(f"/analytics?{query}")
    assert page.status_code == 422
    assert 'role="alert"' in page.text


def test_csv_has_the_groups_without_formulas(logged_in: Open, database: Engine) -> None:
    hostile = '=HYPERLINK("http://x","y")'
    spend(database, "spender", 3.0, tenant=hostile)
    answer = logged_in().get("/analytics/csv?by=key&by=hour")
    assert answer.headers["content-type"].startswith("text/csv")
    assert answer.headers["content-disposition"] == 'attachment; filename="minions-key-hour-24h.csv"'
    [row] = csv.DictReader(StringIO(answer.text))
    assert row["key"] == f"'{hostile}"
    assert (row["count"], row["success_rate"], row["dollars"]) == ("3", "1.0", "3.0")
    assert logged_in(tenant="acme").get("/analytics/csv?by=key").text.count("\n") == 1


# ------------------------------------------------------------------------------------------------------ all pages


@pytest.mark.parametrize("path", ["/errors", "/workers", "/capabilities", "/analytics"])
def test_empty_page_says_what_to_do_next(logged_in: Open, path: str) -> None:
    page = logged_in().get(path)
    assert page.status_code == 200
    assert "minion " in page.text
    assert "style=" not in page.text


@pytest.fixture
def hostile(fingerprint: str, client: Client, database: Engine, define: Any, visit: Visits) -> Callable[..., Visit]:
    """Every page with names that would run if they were not text."""
    define(NOOP, agent_definition("A", "letters"))
    client.pause("capability", "letters", reason=HOSTILE)
    client.decide_error(fingerprint, "resolved", HOSTILE)
    spend(database, HOSTILE[:90], 1.0, tenant=HOSTILE[:90], model=HOSTILE[:90])
    with database.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(
            text(
                "UPDATE task_outcomes SET error = jsonb_build_object("
                "'type', CAST(:hostile AS text), 'message', CAST(:hostile AS text))"
            ),
            {"hostile": HOSTILE},
        )
        connection.execute(text("UPDATE statistics SET step = :hostile WHERE kind = 'failure'"), {"hostile": HOSTILE})
        connection.execute(text("UPDATE workers SET name = :hostile, host = :hostile"), {"hostile": HOSTILE})
        connection.execute(ANOMALY, {"hour": int(datetime.now(UTC).timestamp()) // 3600})
    return visit


def test_pages_are_accessible_and_hostile_names_are_text(hostile: Visits, fingerprint: str) -> None:
    axe = Axe()
    contrast = {"runOnly": ["color-contrast"], "resultTypes": ["violations"]}
    paths = (
        "/errors?state=all",
        f"/errors/{fingerprint}",
        "/workers",
        "/capabilities",
        "/analytics?by=agent&by=model",
        "/analytics?measure=dollars",
        f"/analytics?by=key&agent={quote(HOSTILE[:90])}",
    )
    for look, options in (("light", DEFAULT_OPTIONS), ("dark", contrast), ("phone", None)):
        visited = hostile(dark=look == "dark", phone=look == "phone")
        for path in paths:
            page = visited.go(path)
            for unfolded in page.locator("details:not(.more) > summary").all():
                unfolded.click()
            take_picture(page, path.partition("agent=%")[0].replace("&", "-"), look)
            assert page.locator("main img, main script, main svg [onload], main [onerror]").count() == 0, path
            if options is not None:
                found = axe.run(page, options=options)
                assert found.violations_count == 0, f"{path} {look}\n{found.generate_report()}"
            width = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert width <= 0, f"{path} {look} is too wide"
            visited.check()


def test_journeys_of_an_operator(
    fingerprint: str, visit: Visits, client: Client, tasks: Tasks, inline_worker: InlineWorker, database: Engine
) -> None:
    """Pause a capability, find the agent that costs most, resolve an error and see it reopen."""
    for agent, dollars in (("saver", 0.01), ("spender", 3.0)):
        spend(database, agent, dollars)
    visited = visit("operator")
    page = visited.page
    page.get_by_role("link", name=fingerprint).click()
    page.get_by_label("Reason").fill("repaired")
    page.get_by_role("button", name="Resolve").click()
    expect(page.get_by_role("status").filter(has_text="Resolved.")).to_be_visible()
    page.keyboard.press("g")
    page.keyboard.press("e")
    expect(page.get_by_text("1 kind of error is in another state.")).to_be_visible()
    expect(page.locator("#live-state")).to_have_text("live")
    tasks.submit("Act", FAIL)
    inline_worker.run_all()
    counted(database)
    # PostgreSQL's count of changes may be ten seconds late.
    expect(page.get_by_text("seen again in version 1")).to_be_visible(timeout=15_000)
    client.decide_error(fingerprint, "ignored")
    expect(page.get_by_role("link", name=fingerprint)).to_have_count(0, timeout=15_000)

    page.get_by_role("link", name="Workers").click()
    page.get_by_role("link", name="work", exact=True).click()
    page.get_by_text("Pause work…").click()
    page.locator("#work").get_by_label("Reason").fill("maintenance")
    page.get_by_role("button", name="Pause work", exact=True).click()
    expect(page.locator("#work")).to_contain_text("maintenance")
    assert [each["name"] for each in client.pauses()] == ["work"]
    page.get_by_role("button", name="Resume work").click()
    expect(page.locator("#work")).not_to_contain_text("maintenance")

    page.get_by_role("link", name="Analytics").click()
    page.get_by_label("Figure").select_option(label="dollars")
    page.get_by_role("button", name="Show").click()
    expect(page.locator("#groups-title ~ .scroll tbody tr").first).to_contain_text("spender")
    page.get_by_role("link", name="spender").click()
    expect(page.get_by_label("agent", exact=True)).to_have_value("spender")
    visited.check()
