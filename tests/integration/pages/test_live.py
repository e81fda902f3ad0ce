"""Streams that tell open pages of changes: when, how often, how many, and for how long."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import httpx2
from sqlalchemy import Engine, text

from minions import Client
from orchestrator.api.app import create_app, release
from orchestrator.pages import live
from orchestrator.pages import site as pages
from orchestrator.pages.live import CHANGED, OVER, Streams
from shared.settings import Settings
from shared.tasks import queries
from tests.integration.api.conftest import Api, serving
from tests.integration.conftest import InlineWorker, Tasks
from tests.integration.pages.conftest import Open
from tests.support.browser import Browser
from tests.support.definitions import NOOP, agent_definition


@contextmanager
def streaming(site: Api, browser: Browser, path: str) -> Iterator[tuple[httpx2.Response, Iterator[str]]]:
    """A stream of a browser: the answer, and its events as they arrive."""
    cookies = {name: value for name, (value, _) in browser.cookies.items()}
    with (
        httpx2.Client(base_url=site.url, cookies=cookies, trust_env=False, timeout=30) as http,
        http.stream("GET", path) as answer,
    ):
        yield answer, (line for line in answer.iter_lines() if line.startswith("event: "))


def event_of(written: str) -> str:
    return written.partition("\n")[0]


def test_task_tells_of_its_changes_until_it_ends(
    site: Api, logged_in: Open, act: Any, tasks: Tasks, inline_worker: InlineWorker
) -> None:
    task = tasks.submit(act(), {"do": "answer"})
    with streaming(site, logged_in(), f"/tasks/{task}/live?after=1") as (answer, events):
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store"
        inline_worker.run_all()
        seen = list(events)
    assert seen[-2:] == [event_of(CHANGED), event_of(OVER)]
    assert set(seen[:-2]) <= {event_of(CHANGED)}
    page = logged_in().get(f"/tasks/{task}")
    assert "data-stream" not in page.text
    with streaming(site, logged_in(), f"/tasks/{task}/live?after=100") as (answer, _):
        assert answer.status_code == 204


def test_list_tells_of_new_tasks(site: Api, logged_in: Open, client: Client, define: Any) -> None:
    define(NOOP, agent_definition("A"))
    with streaming(site, logged_in(), "/tasks/live") as (_, events):
        assert next(events) == event_of(CHANGED), "what changed before it was opened"
        client.submit("A", {})
        assert next(events) == event_of(CHANGED)


def test_pages_on_which_something_moves_are_live(site: Api, logged_in: Open) -> None:
    browser = logged_in("admin")
    for place in ("overview", "tasks", "inbox", "limits", "alerts", "errors", "capabilities", "workers", "bulk-acts"):
        page = browser.get(f"/{place}").text
        assert f'data-stream="/{place}/live"' in page, place
        assert re.findall(r'id="([\w-]+)"[^>]* data-live', page), place


def test_stream_ends_with_its_login(site: Api, logged_in: Open, client: Client) -> None:
    browser = logged_in()
    with streaming(site, browser, "/inbox/live") as (_, events):
        next(events)
        for session in client.sessions():
            client.revoke_session(session["id"])
        assert list(events) is not None
    assert browser.get("/inbox/live").status_code == 303


def test_streams_of_a_login_are_limited(site: Api, logged_in: Open) -> None:
    browser, other = logged_in(), logged_in()
    with patch.object(live, "MOST_OF_A_LOGIN", 1), streaming(site, browser, "/tasks/live") as (answer, events):
        assert answer.status_code == 200
        next(events)
        refused = browser.get("/overview/live")
        assert refused.status_code == 503
        assert "Too many pages are open" in refused.text
        with streaming(site, other, "/tasks/live") as (answer, _):
            assert answer.status_code == 200


def test_more_pages_are_renewed_less_often(site: Api) -> None:
    streams: Any = Streams(site.app.state.watching)
    assert streams.interval == 1.0
    streams._open[None] = 100
    assert streams.interval == 100 / live.RENEWALS_PER_SECOND


def test_page_that_renews_itself_does_not_use_its_login(logged_in: Open, database: Engine, site: Api) -> None:
    browser = logged_in()
    with database.begin() as connection:
        connection.execute(text("UPDATE login_sessions SET last_used_at = now() - interval '20 min'"))
    for cache in (site.app.state.logins, site.app.state.watching_logins):
        cache.forget()
    assert browser.get("/tasks", headers={"Minion-Live": "1"}).status_code == 200
    assert _idle_minutes(database) > 19
    assert browser.get("/tasks").status_code == 200
    assert _idle_minutes(database) < 1


def _idle_minutes(database: Engine) -> float:
    with database.connect() as connection:
        return float(
            connection.scalar(text("SELECT max(extract(epoch FROM now() - last_used_at)) / 60 FROM login_sessions"))
        )


def test_pages_that_wait_for_their_turn_do_not_renew_themselves_together(site: Api) -> None:
    streams: Any = Streams(site.app.state.watching)
    renewed = [sum(streams.may_renew(now) for _ in range(100)) for now in (1000.0, 1000.5, 1001.0, 1100.0)]
    assert renewed[0] == renewed[3] == live.RENEWALS_PER_SECOND
    assert sum(renewed[1:3]) <= live.RENEWALS_PER_SECOND + 1


def test_end_of_the_server_is_not_the_end_of_the_task(
    site: Api, logged_in: Open, act: Any, tasks: Tasks, settings: Settings
) -> None:
    task = tasks.submit(act(), {"do": "answer"})
    browser = logged_in()
    app = create_app(settings)
    pages.add_to(app)
    with serving(app) as port:
        there = Api(app, f"http://127.0.0.1:{port}", port, site.key)
        with streaming(there, browser, f"/tasks/{task}/live") as (answer, events):
            assert answer.status_code == 200
            assert next(events) == event_of(CHANGED)
            release(app)
            assert event_of(OVER) not in list(events), "the page connects again"


def test_page_is_live_from_before_what_it_shows(logged_in: Open, client: Client, define: Any) -> None:
    """A change while the page is made is one that the stream tells of."""
    define(NOOP, agent_definition("A"))
    task = client.submit("A", {}).id
    browser = logged_in()
    read = queries.get_task

    def with_a_change(connection: Any, each: Any) -> Any:
        row = read(connection, each)
        if row["state"] == "pending":
            client.cancel(task)
        return row

    with patch.object(queries, "get_task", with_a_change):
        page = browser.get(f"/tasks/{task}").text
    stream = re.search(r'data-stream="([^"]+)"', page)
    assert stream
    assert browser.request("HEAD", stream[1]).status_code == 200
