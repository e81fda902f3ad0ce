"""Pages about many tasks: bulk acts, saved views, completed queries, and the command palette."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect
from sqlalchemy import Engine

from minions import Client
from orchestrator.bulk.runner import BulkRunner
from shared.settings import Settings
from tests.integration.api.test_boundaries import agent, define_in
from tests.integration.conftest import InlineWorker, Tasks
from tests.integration.pages.conftest import Open as Plain
from tests.integration.pages.test_in_chromium import HOSTILE, Open
from tests.support.browser import Browser, hidden
from tests.support.definitions import NOOP


@pytest.fixture
def runner(settings: Settings, database: Engine) -> Iterator[BulkRunner]:
    """The runner of an orchestrator, which the test calls. Its lead must outlast the time between two calls."""
    runner = BulkRunner(settings.model_copy(update={"lease_seconds": 300.0}), database)
    yield runner
    runner.close()


@pytest.fixture
def idle(define: Any, client: Client) -> list[str]:
    """Tasks that no worker serves."""
    define(NOOP, agent("Idle", "idle"))
    return client.submit_many([{"agent": "Idle", "input": {}, "labels": {"env": "prod"}} for _ in range(3)])


def start(browser: Browser, act: str, **fields: str) -> str:
    """Start a bulk act by its form; return the address of its page."""
    page = browser.get(f"/bulk-acts/new?q=agent%3AIdle&act={act}").text
    given = hidden(page[page.index('action="/bulk-acts/start"') :])
    answer = browser.post("/bulk-acts/start", {**given, "rate": "1000", **fields})
    assert answer.status_code == 303, answer.text
    return str(answer.headers["location"])


# -------------------------------------------------------------------------------------------------------- bulk acts


def test_bulk_act_is_tried_started_watched_and_stopped(
    visit: Open, client: Client, idle: list[str], runner: BulkRunner
) -> None:
    visited = visit("operator")
    page = visited.go("/tasks?q=agent:Idle")
    page.get_by_role("link", name="Act on all of these").click()
    page.get_by_role("button", name="Cancel…").click()
    expect(page.get_by_role("heading", name="Cancel 3 tasks")).to_be_visible()
    assert Axe().run(page).violations_count == 0
    assert {client.get(task).state for task in idle}.isdisjoint({"cancelled"})
    [later] = client.submit_many([{"agent": "Idle", "input": {}}])
    page.get_by_label("Reason").fill("It rains.")
    page.get_by_label("Tasks a second").fill("1")
    page.get_by_role("button", name="Cancel 3 tasks").click()
    expect(page.get_by_role("status").filter(has_text="Started.")).to_be_visible()
    expect(page.locator("#live-state")).to_have_text("live")
    runner.run_once()
    expect(page.locator("#progress")).to_contain_text("1 of 3 done", timeout=15_000)  # counts of changes may be late
    assert Axe().run(page).violations_count == 0
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#heading")).to_contain_text("stopped", timeout=15_000)
    runner.run_once()
    assert [client.get(task).state == "cancelled" for task in (*idle, later)] == [True, False, False, False]
    assert client.get(idle[0]).error["message"] == "It rains."
    page.get_by_role("link", name="Bulk acts").first.click()
    expect(page.get_by_role("row", name="Cancel")).to_contain_text("1 of 3 done")
    assert Axe().run(page).violations_count == 0
    visited.check()


def test_each_act_starts_from_its_form(logged_in: Plain, client: Client, idle: list[str], runner: BulkRunner) -> None:
    browser = logged_in("operator")
    labelled = start(browser, "label", labels="env= case=42")
    runner.run_once()
    runner.run_once()
    assert client.get(idle[0]).labels == {"case": "42"}
    assert "3 of 3 done" in browser.get(labelled).text
    start(browser, "cancel")
    runner.run_once()
    start(browser, "replay", pinned="on")
    runner.run_once()
    assert {task.replay_of for task in client.tasks(agent="Idle") if task.replay_of} == set(idle)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"labels": "x"}, "A label must be written name=value"),
        ({"labels": " "}, "At least one label must be given"),
        ({"labels": "a=b", "rate": "fast"}, "The rate must be a number"),
        ({"labels": "a=b", "rate": "1e309"}, "The rate must be a number"),
        ({"labels": "a=b", "rate": "0"}, "rate"),
        ({"labels": "a=b", "query": "nonsense"}, "must have a name before it"),
    ],
)
@pytest.mark.usefixtures("idle")
def test_form_with_a_mistake_comes_back_with_it(logged_in: Plain, fields: dict[str, str], words: str) -> None:
    browser = logged_in("operator")
    page = browser.get("/bulk-acts/new?q=agent%3AIdle&act=label").text
    answer = browser.post("/bulk-acts/start", {**hidden(page[page.index('action="/bulk-acts/start"') :]), **fields})
    assert answer.status_code == 422
    assert words in answer.text
    assert 'value="agent:Idle"' in answer.text or "query" in fields


def test_form_without_fields_is_refused(logged_in: Plain) -> None:
    browser = logged_in("operator")
    token = hidden(browser.get("/account").text)["csrf_token"]
    assert browser.post("/bulk-acts/start", {"csrf_token": token}).status_code == 422
    assert browser.post("/tasks/save-view", {"csrf_token": token}).status_code == 422
    assert browser.post("/tasks/delete-view", {"csrf_token": token}).status_code == 422


@pytest.mark.usefixtures("idle")
def test_page_offers_only_the_acts_of_its_reader(logged_in: Plain, client: Client) -> None:
    viewer, submitter = logged_in("viewer"), logged_in("submitter")
    assert "Act on all of these" not in viewer.get("/tasks?q=agent:Idle").text
    page = submitter.get("/bulk-acts/new?q=agent:Idle").text
    assert ('value="cancel"' in page, 'value="replay"' in page, 'value="label"' in page) == (True, False, False)
    act = client.start_bulk_act("label", "agent:Idle", labels={"a": HOSTILE})["id"]
    shown = submitter.get(f"/bulk-acts/{act}").text
    assert ">Stop<" not in shown
    assert "<img" not in shown
    assert "label:private" in logged_in("admin").get("/bulk-acts/new?q=label%3Aprivate.x%3D1&act=cancel").text


# ----------------------------------------------------------------------------------------------------- saved views


def test_view_is_saved_shown_and_deleted(visit: Open, client: Client) -> None:
    visited = visit("operator")
    page = visited.go("/tasks?q=state:failed since:1d")
    page.get_by_text("Save or delete views").click()
    page.get_by_label("Save this query as").fill("Failed today")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_role("status").filter(has_text="The view was saved.")).to_be_visible()
    link = page.get_by_role("navigation", name="Saved views").get_by_role("link", name="Failed today")
    expect(link).to_have_attribute("aria-current", "true")
    page.get_by_text("Save or delete views").click()
    assert Axe().run(page).violations_count == 0
    page.get_by_role("button", name="Delete Failed today").click()
    expect(page.get_by_role("navigation", name="Saved views")).to_have_count(0)
    assert [row["act"] for row in client.audit() if row["act"].startswith("view.")] == ["view.delete", "view.save"]
    visited.check()


def save(browser: Browser, **fields: str) -> Any:
    token = hidden(browser.get("/account").text)["csrf_token"]
    return browser.post("/tasks/save-view", {"csrf_token": token, **fields})


def test_views_are_seen_within_their_bounds(logged_in: Plain, database: Engine) -> None:
    define_in(database, "elsewhere", NOOP)
    ann, ben = logged_in("operator"), logged_in("viewer")
    tenant, elsewhere = logged_in("admin", tenant="acme"), logged_in("admin", namespace="elsewhere")
    assert save(ann, name="mine", query="state:failed").status_code == 303
    assert save(ann, name="ours", query="state:failed", shared="on").status_code == 303
    seen = {name: browser.get("/tasks").text for name, browser in (("ann", ann), ("ben", ben), ("tenant", tenant))}
    seen["elsewhere"] = elsewhere.get("/tasks").text
    assert {name: (">mine<" in page, ">ours<" in page) for name, page in seen.items()} == {
        "ann": (True, True),
        "ben": (False, True),
        "tenant": (False, False),
        "elsewhere": (False, False),
    }
    assert "Delete<span" in seen["ann"]
    assert "Delete<span" not in seen["ben"]
    assert save(tenant, name="x", query="state:failed", shared="on").status_code == 403


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"name": "", "query": "state:failed"}, 422, "must have 1 to 100 printable"),
        ({"name": "x\u202e", "query": "state:failed"}, 422, "must have 1 to 100 printable"),
        ({"name": "x", "query": ""}, 422, "must have a query"),
        ({"name": "x", "query": "stat:failed"}, 422, "There is no filter"),
        ({"name": "x", "query": "label:private.a=b"}, 422, "must not name a private label"),
        ({"name": "taken", "query": "state:failed"}, 409, "There is a view &#39;taken&#39; already"),
    ],
)
def test_wrong_view_is_refused(logged_in: Plain, fields: dict[str, str], status: int, words: str) -> None:
    browser = logged_in("operator")
    save(browser, name="taken", query="state:failed")
    refused = save(browser, **fields)
    assert (refused.status_code, words in refused.text) == (status, True)


def test_long_views_make_no_large_page(logged_in: Plain) -> None:
    browser = logged_in("operator")
    query = f"state:failed label:case={'x' * 970}"
    for number in range(30):
        for more in ({}, {"shared": "on"}):
            assert save(browser, name=f"{number} {'x' * 90}", query=query, **more).status_code == 303
    assert save(browser, name="one more", query=query).status_code == 409
    assert len(browser.get("/tasks").text) < 150_000


# ------------------------------------------------------------------------------------------------------ completion


@pytest.mark.usefixtures("idle")
def test_last_term_of_a_query_is_completed(visit: Open) -> None:
    visited = visit("viewer")
    page = visited.go("/tasks")
    field = page.get_by_label("Query")
    offered = "[...document.getElementById('terms').options].map((option) => option.value)"
    assert {"state:failed", "agent:", "agent:Idle", "capability:idle"} <= set(page.evaluate(offered))
    field.press_sequentially("state:failed ag")
    assert page.evaluate(offered) == ["state:failed agent:", "state:failed agent:Idle"]
    visited.check()


# --------------------------------------------------------------------------------------------------------- palette


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_palette_goes_anywhere_with_the_keyboard(visit: Open, idle: list[str], dark: bool) -> None:
    visited = visit("viewer", dark=dark)
    page = visited.page
    for typed, address in (
        ("inb", "/inbox"),
        (idle[0], f"/tasks/{idle[0]}"),
        ("agent idle", "/agents/Idle"),
        ("state:failed", f"/tasks?q={quote('state:failed', safe='')}"),
    ):
        page.keyboard.press("Control+k")
        dialog = page.get_by_role("dialog", name="Go to")
        expect(dialog.get_by_role("option", name="Overview")).to_be_visible()
        dialog.get_by_role("combobox").fill(typed)
        assert Axe().run(page).violations_count == 0
        page.keyboard.press("Enter")
        page.wait_for_url(f"**{address}*")
    page.keyboard.press("Control+k")
    expect(page.get_by_role("option", name="Overview")).to_have_attribute("aria-selected", "true")
    page.keyboard.press("ArrowDown")
    expect(page.get_by_role("option", name="Tasks", exact=True)).to_have_attribute("aria-selected", "true")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog", name="Go to")).not_to_be_visible()
    visited.check()


def test_palette_searches_while_its_list_cannot_be_loaded(visit: Open) -> None:
    page = visit("viewer").page
    failures: list[str] = []
    page.on("pageerror", lambda error: failures.append(str(error)))
    page.route("**/palette", lambda route: route.abort())
    with page.expect_event("requestfailed"):
        page.keyboard.press("Control+k")
    page.get_by_role("combobox").fill("state:failed")
    page.keyboard.press("Enter")
    page.wait_for_url("**/tasks?q=state%3Afailed")
    assert failures == []


def test_palette_is_a_page_without_scripts(logged_in: Plain, idle: list[str]) -> None:
    browser = logged_in("viewer")
    page = browser.get("/palette").text
    assert 'href="/agents/Idle"' in page
    assert 'href="/bulk-acts"' in page
    assert browser.get(f"/tasks?q={idle[0]}").headers["location"] == f"/tasks/{idle[0]}"


# ------------------------------------------------------------------------------------------------- graph and timeline


@pytest.fixture
def chain(act: Any, define: Any, tasks: Tasks, inline_worker: InlineWorker) -> str:
    """A chain of two tasks that has run."""
    relations = [{"agent": act()}, {"agent": "Act"}]
    config = {"capabilities": ["work"]}
    define({"kind": "agent", "name": "Chain", "type": "function", "relations": relations, "config": config})
    task = tasks.submit("Chain", {"do": "answer", "answer": {"do": "answer"}})
    inline_worker.run_all()
    return str(task)


def test_graph_shows_the_chain_within_the_bounds_of_its_reader(logged_in: Plain, chain: str) -> None:
    browser = logged_in("viewer")
    assert f'href="/tasks/{chain}/graph"' in browser.get(f"/tasks/{chain}").text
    page = browser.get(f"/tasks/{chain}/graph").text
    assert "Act × 2: $0, 2 succeeded" in page
    assert quote(f"agent:Act root:{chain}", safe="") in page
    assert "Act" not in logged_in("viewer", agents=["Chain"]).get(f"/tasks/{chain}/graph").text.partition("<main")[2]


def test_part_of_the_timeline_has_an_address(visit: Open, chain: str) -> None:
    visited = visit("viewer")
    page = visited.go(f"/tasks/{chain}")
    page.get_by_role("link", name="Zoom: Claim 1").locator("text").click()
    expect(page.get_by_role("link", name="The whole timeline")).to_be_visible()
    expect(page.get_by_role("link", name="Zoom: Claim 1")).to_be_visible()
    assert Axe().run(page).violations_count == 0
    page.get_by_role("link", name="The whole timeline").click()
    page.wait_for_url(f"**/tasks/{chain}")
    page.go_back()
    expect(page.get_by_role("link", name="The whole timeline")).to_be_visible()
    visited.go(f"/tasks/{chain}?from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z")
    expect(page.get_by_role("main")).to_contain_text("`to` must be later than `from`")


@pytest.mark.parametrize(
    ("begin", "end"),
    [("0001-01-01T00:00:00+14:00", "2030-01-01T00:00:00Z"), ("2020-01-01T00:00:00Z", "9999-12-31T23:59:59-14:00")],
)
def test_timeline_of_no_time_is_refused(logged_in: Plain, chain: str, begin: str, end: str) -> None:
    refused = logged_in("viewer").get(f"/tasks/{chain}?{urlencode({'from': begin, 'to': end})}")
    assert (refused.status_code, "in the years 1 to 9999" in refused.text) == (422, True)
