"""Journeys through the pages in a real Chromium, their accessibility, and hostile content."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import DEFAULT_OPTIONS, Axe
from playwright.sync_api import Page, expect
from sqlalchemy import Engine, text

from minions import Client
from minions.testing import code_execution, web_fetch, web_search
from orchestrator.observe.statistician import Statistician
from shared.settings import get_settings
from tests.integration.api.test_alerts import add
from tests.integration.conftest import InlineWorker, Tasks
from tests.integration.pages.conftest import Visit
from tests.support.definitions import NOOP, agent_definition

Open = Callable[..., Visit]
HOSTILE = (
    "<img src=x onerror=alert(1)><script>alert(1)</script><svg onload=alert(1)>'\"&amp;{{7*7}}\u202egnp\u202c\u200b"
    "\x1b]0;owned\x07\x1b[31m`rm -rf /`"
)
BIG = 2**63 + 12345678901234567890


def bookings(define: Any, approval: Any = True) -> None:
    define(
        {
            "kind": "tool", "name": "book", "type": "builtin", "builtin": "act", "effect": "idempotent",
            "approval": approval,
            "input_schema": {
                "type": "object",
                "properties": {
                    "do": {"type": "string", "description": "What to do"},
                    "amount": {"type": "integer", "minimum": 1},
                },
                "required": ["do"],
            },
        },
        {"kind": "agent", "name": "clerk", "type": "function", "tool": "book", "config": {"capabilities": ["work"]}},
    )  # fmt: skip


@pytest.fixture
def busy(
    act: Any, define: Any, client: Client, tasks: Tasks, inline_worker: InlineWorker, database: Engine
) -> dict[str, str]:
    """An installation with tasks in several states, a decision and an alert; ids by a name."""
    bookings(define)
    failed = tasks.submit(act(config={"max_attempts": 2}), {"do": "fail", "times": 9}, labels={"env": "prod"})
    done = tasks.submit("Act", {"do": "answer", "answer": "all is well"})
    inline_worker.run_all()
    asked = tasks.submit("clerk", {"do": "answer", "amount": 30})
    inline_worker.run_due()
    Statistician(get_settings(), database).run_once()
    add(database, "unserved", None)
    return {"failed": str(failed), "done": str(done), "asked": str(asked)}


PATHS = (
    "/overview",
    "/tasks",
    "/tasks?q=nonsense",
    "/tasks/{failed}",
    "/tasks/{asked}",
    "/tasks/{failed}/steps/1",
    "/tasks/{failed}/diff/{done}",
    "/tasks/{failed}/graph",
    "/tasks/{failed}?from=2020-01-01T00:00:00Z&to=2100-01-01T00:00:00Z",
    "/bulk-acts",
    "/bulk-acts/new?q=agent:Act&act=replay",
    "/inbox",
    "/inbox/{asked}",
    "/tasks/00000000000000000000000000000000",
)


def test_pages_are_accessible_in_light_and_dark(busy: dict[str, str], visit: Open) -> None:
    """Only the colours differ in the dark, and only the layout on a phone."""
    axe = Axe()
    contrast = {"runOnly": ["color-contrast"], "resultTypes": ["violations"]}
    for name, options in (("light", DEFAULT_OPTIONS), ("dark", contrast), ("phone", None)):
        visited = visit(dark=name == "dark", phone=name == "phone")
        for path in PATHS:
            page = visited.go(path.format(**busy))
            take_picture(page, path, name)
            if options is not None:
                found = axe.run(page, options=options)
                assert found.violations_count == 0, f"{path} {name}\n{found.generate_report()}"
            width = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert width <= 0, f"{path} {name} is too wide"
        page.keyboard.press("?")
        expect(page.get_by_role("dialog", name="Keyboard shortcuts")).to_be_visible()
        if options is not None:
            assert axe.run(page, options=options).violations_count == 0


def take_picture(page: Page, path: str, look: str) -> None:
    """Store a picture in the folder SCREENSHOTS, if that is set."""
    if folder := os.environ.get("SCREENSHOTS"):
        name = path.strip("/").replace("/", "-").translate(str.maketrans("", "", "{}?="))
        page.screenshot(path=f"{folder}/{name}-{look}.png", full_page=True)


# ------------------------------------------------------------------------------------------------------- journeys


def test_stuck_task_is_understood_and_freed(
    visit: Open, client: Client, act: Any, inline_worker: InlineWorker, orchestrated: Callable[[], None]
) -> None:
    client.pause("capability", "work", reason="maintenance of the press")
    task = client.submit(act(), {"do": "answer"}).id
    orchestrated()
    visited = visit("operator")
    page = visited.page
    page.get_by_role("link", name="Tasks", exact=True).click()
    page.get_by_role("link", name=task[:13]).click()
    expect(page.locator("#why")).to_contain_text("has been paused since")
    expect(page.locator("#why")).to_contain_text("maintenance of the press")
    page.get_by_role("button", name="Resume the capability work").click()
    expect(page.get_by_role("status").filter(has_text="Resumed.")).to_be_visible()
    expect(page.locator("#why")).not_to_contain_text("paused")
    page.evaluate("window.same = true")
    expect(page.locator("#live-state")).to_have_text("live")
    inline_worker.run_all()
    expect(page.locator("#heading")).to_contain_text("succeeded")
    assert page.evaluate("window.same"), "the page was not loaded again"
    visited.check()


def test_decision_is_made_with_the_keyboard_alone(
    visit: Open, client: Client, define: Any, tasks: Tasks, inline_worker: InlineWorker
) -> None:
    bookings(define)
    task = tasks.submit("clerk", {"do": "answer", "amount": 30})
    inline_worker.run_due()
    visited = visit("approver")
    keyboard = visited.page.keyboard
    keyboard.press("g")
    keyboard.press("i")
    visited.page.wait_for_url("**/inbox")
    keyboard.press("j")
    expect(visited.page.get_by_role("link", name="book", exact=True)).to_be_focused()
    keyboard.press("Enter")
    visited.page.wait_for_url(f"**/inbox/{task}")
    press_until(visited, "Edit the arguments")
    keyboard.press("Enter")
    press_until(visited, "amount")
    keyboard.press("Control+a")
    keyboard.type("thirty")
    press_until(visited, "Approve with these arguments")
    keyboard.press("Enter")
    expect(visited.page.get_by_role("alert")).to_contain_text("'thirty' must be a whole number")
    expect(visited.page.get_by_label("amount")).to_have_value("thirty")
    press_until(visited, "amount")
    keyboard.press("Control+a")
    keyboard.type("9007199254740993")
    press_until(visited, "Approve with these arguments")
    keyboard.press("Enter")
    visited.page.wait_for_url("**/inbox?done=edit")
    expect(visited.page.get_by_text("Nothing waits for a person.")).to_be_visible()
    inline_worker.run_all()
    assert client.get(str(task)).state == "succeeded"
    assert next(client.steps(str(task)))["output"]["arguments"]["amount"] == 9007199254740993


def press_until(visited: Visit, name: str) -> None:
    """Press Tab until the element of that name has the focus."""
    for _ in range(40):
        visited.page.keyboard.press("Tab")
        focused = visited.page.evaluate(
            "(document.activeElement.labels?.[0] ?? document.activeElement).textContent.trim()"
        )
        if focused.startswith(name):
            return
    raise AssertionError(f"Tab does not reach {name!r}")


def test_failed_task_is_replayed_from_a_step_and_compared(
    visit: Open, client: Client, act: Any, tasks: Tasks, inline_worker: InlineWorker
) -> None:
    failed = tasks.submit(act(config={"max_attempts": 1}), {"do": "fail", "times": 1})
    inline_worker.run_all()
    visited = visit("author")
    page = visited.go("/tasks?q=state:failed")
    page.get_by_role("link", name=str(failed)[:13]).click()
    page.get_by_role("link", name="1 act").click()
    page.get_by_text("With another reply of this step…").click()
    page.get_by_label("Reply, as JSON").fill('{"answer": "edited"}')
    page.get_by_role("button", name="Replay with this reply").click()
    expect(page.get_by_role("heading", name="Comparison")).to_be_visible()
    expect(page.get_by_text("B has not ended")).to_be_visible()
    expect(page.locator("#live-state")).to_have_text("live")
    inline_worker.run_all()
    expect(page.get_by_text("B has not ended")).to_have_count(0)
    expect(page.get_by_label("B, output").first).to_contain_text("edited")
    visited.check()


def test_list_follows_what_happens(visit: Open, client: Client, define: Any) -> None:
    define(NOOP, agent_definition("A"))
    visited = visit("submitter")
    page = visited.go("/tasks")
    expect(page.get_by_text("There are no tasks yet.")).to_be_visible()
    expect(page.locator("#live-state")).to_have_text("live")
    task = client.submit("A", {}).id
    # PostgreSQL's count of changes may be ten seconds late.
    expect(page.get_by_role("link", name=task[:13])).to_be_visible(timeout=15_000)
    visited.check()


def test_subtasks_are_loaded_when_opened_and_stay(
    visit: Open, client: Client, act: Any, define: Any, tasks: Tasks, inline_worker: InlineWorker
) -> None:
    act()
    define(
        {
            "kind": "agent",
            "name": "chain",
            "type": "function",
            "relations": [{"agent": "Act"}],
            "config": {"capabilities": ["work"]},
        }
    )
    task = tasks.submit("chain", {"do": "answer"})
    inline_worker.run_due()
    visited = visit("submitter")
    page = visited.go(f"/tasks/{task}")
    page.get_by_text("Show the sub-tasks").click()
    child = tasks.children(task)[0]["id"]
    listed = page.locator("ul.tree").get_by_role("link", name=str(child)[:13])
    expect(listed).to_be_visible()
    page.locator("ul.tree").evaluate("tree => { tree.same = true }")
    page.locator("#heading").click()  # and nothing in the tree has the focus
    expect(page.locator("#live-state")).to_have_text("live")
    inline_worker.run_all()
    expect(page.locator("#heading")).to_contain_text("succeeded")
    assert page.locator("ul.tree").evaluate("tree => tree.same"), "what was opened was not loaded again"
    visited.check()


# ------------------------------------------------------------------------------------------------ hostile content


def test_hostile_content_is_text(
    visit: Open,
    client: Client,
    define: Any,
    tasks: Tasks,
    inline_worker: InlineWorker,
    messages_api: Any,
    database: Engine,
) -> None:
    define({"kind": "agent", "name": "talker", "model": "claude-sonnet-5-5", "config": {"capabilities": ["work"]}})
    messages_api.script = [
        {
            "content": [
                {"type": "thinking", "thinking": HOSTILE, "signature": "s"},
                {"type": "text", "text": HOSTILE + str(BIG)},
            ],
            "stop_reason": "end_turn",
        }
    ]
    task = str(
        tasks.submit(
            "talker",
            {"text": HOSTILE, "number": BIG, HOSTILE: [HOSTILE]},
            labels={HOSTILE[:100]: HOSTILE[:255]},
            key=HOSTILE,
            conversation_id=HOSTILE,
        )
    )
    inline_worker.run_all()
    assert client.get(task).state == "succeeded"
    with database.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(text("UPDATE workers SET name = :hostile"), {"hostile": HOSTILE})
        connection.execute(text("UPDATE steps SET stdout = :hostile, name = :hostile"), {"hostile": HOSTILE})
    client.pause("agent", "talker", reason=HOSTILE)
    other = client.submit("talker", {}, key=HOSTILE).id
    visited = visit("admin")
    page = visited.page
    for path in (f"/tasks/{task}", f"/tasks/{task}/steps/1", f"/tasks/{task}/conversation", "/tasks", f"/tasks/{other}",
                 f"/tasks/{task}/diff/{other}", "/overview"):  # fmt: skip
        visited.go(path)
        assert page.locator("main img, main script, main svg [onload], main [onerror]").count() == 0, path
        assert page.evaluate("window.violations") == [], path
    visited.go(f"/tasks/{task}")
    shown = page.get_by_label("Input", exact=True).locator("pre").inner_text()
    assert str(BIG) in shown
    assert json.loads(shown) == {"text": HOSTILE, "number": BIG, HOSTILE: [HOSTILE]}
    page.goto(f"{visited.site}/tasks?q=" + "%22%3E%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E")
    page.goto(f"{visited.site}/tasks/{task}?done=%3Cimg%3E")
    assert page.locator("main img").count() == 0
    assert page.evaluate("window.violations") == []


def test_hostile_reply_of_the_api_is_text(
    visit: Open,
    client: Client,
    define: Any,
    tasks: Tasks,
    inline_worker: InlineWorker,
    messages_api: Any,
    database: Engine,
) -> None:
    """Citations, searches, code, files, other models and notes, as a provider or a page on the web may write them."""
    define({"kind": "agent", "name": "talker", "model": "claude-sonnet-5-5", "config": {"capabilities": ["work"]}})
    messages_api.script = [{"content": [{"type": "text", "text": "Hello."}], "stop_reason": "end_turn"}]
    task = str(tasks.submit("talker", {"text": "?"}))
    inline_worker.run_all()
    script = "javascript:alert(document.domain)"
    cited = {"type": "web_search_result_location", "cited_text": HOSTILE, "title": HOSTILE, "url": script}
    content = [
        {"type": "text", "text": "It is", "citations": [cited, {"source": script, "start_page_number": HOSTILE}]},
        *web_search(HOSTILE, (HOSTILE, script)),
        *web_fetch(script, HOSTILE),
        *code_execution(HOSTILE, HOSTILE, files=(HOSTILE,)),
        {"type": "server_tool_use", "id": "x", "name": HOSTILE, "input": {"query": HOSTILE}},
        {"type": "document", "title": HOSTILE, "source": {"type": "file", "file_id": f"file_{'0' * 64}"}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/svg+xml", "data": HOSTILE}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": '" onerror="alert(1)'}},
        {"type": "image", "source": {"type": "url", "url": "https://tracker.example/pixel.png"}},
        {"type": "compaction", "content": HOSTILE},
    ]
    reply = {
        "content": content,
        "instead_of": {"model": f"bedrock/{HOSTILE}", "reason": "refusal"},
        "edits": [{"type": HOSTILE, "cleared_input_tokens": 9}, 5],
    }
    usage = {"input_tokens": 50, "cache_miss": {"type": "tools_changed", "cache_missed_input_tokens": 40}}
    with database.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(
            text("UPDATE steps SET output = CAST(:reply AS jsonb), usage = CAST(:usage AS jsonb)"),
            {"reply": json.dumps(reply), "usage": json.dumps(usage)},
        )
    for dark in (False, True):
        visited = visit("admin", dark=dark, phone=dark)
        for path in (f"/tasks/{task}/conversation", f"/tasks/{task}/steps/1", f"/tasks/{task}"):
            page = visited.go(path)
            take_picture(page, path.replace(task, "hostile"), "dark" if dark else "light")
            assert (
                page.locator("main script, main svg [onload], main [onerror], main a[href^='javascript']").count() == 0
            )
            assert Axe().run(page).violations_count == 0, path
            assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), path
            assert page.evaluate("window.violations") == [], path
    page = visited.go(f"/tasks/{task}/conversation")
    assert page.locator("main img").count() == 1, "the one of a type that is safe"
    for shown in (
        script,
        "Searches the web",
        "Summary of the conversation",
        "[image: https://tracker.example/pixel.png]",
    ):
        expect(page.locator("main")).to_contain_text(shown)
    page = visited.go(f"/tasks/{task}/steps/1")
    for shown in ("paid 40 tokens again", "which refused to answer", "the conversation was compacted"):
        expect(page.locator("main")).to_contain_text(shown)


def test_large_text_is_cut_with_a_link_to_all_of_it(
    visit: Open, act: Any, tasks: Tasks, inline_worker: InlineWorker, database: Engine
) -> None:
    task = tasks.submit(act(), {"do": "answer"})
    inline_worker.run_all()
    with database.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(text("UPDATE task_outcomes SET output = to_jsonb(repeat('<b>x', 1250000))"))
    visited = visit("author")
    page = visited.go(f"/tasks/{task}")
    assert len(page.content()) < 150_000
    expect(page.get_by_text("Only the first 20,000 characters.")).to_be_visible()
    raw = page.request.get(f"{visited.site}/tasks/{task}/raw/output")
    assert raw.headers["content-type"].startswith("text/plain")
    assert len(raw.body()) == 5_000_000
    visited.check()
