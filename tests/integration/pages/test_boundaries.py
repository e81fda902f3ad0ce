"""Every page, with a login of every role, and with ids that are out of a login's reach: as the endpoints of the API."""

from __future__ import annotations

import re
from typing import Any
from unittest.mock import patch
from uuid import uuid4

import httpx2
import pytest
from sqlalchemy import Engine

from minions import Client
from orchestrator.api.app import create_app
from orchestrator.pages import rights, site
from orchestrator.pages.rights import RULES
from shared.access.roles import Role
from shared.settings import Settings
from tests.integration.api.test_boundaries import BOUNDS, agent, define_in, stored
from tests.integration.api.test_boundaries import World as World
from tests.integration.pages.conftest import Open
from tests.support.browser import Browser, hidden
from tests.support.definitions import NOOP

ENDPOINTS = sorted(
    f"{method} {route.path}" for module in site.PAGES for route in module.router.routes for method in route.methods
)
FORMS: dict[str, dict[str, str]] = {
    "POST /bulk-acts/start": {"act": "cancel", "query": "agent:None"},
    "POST /tasks/save-view": {"name": "failed", "query": "state:failed"},
    "POST /tasks/delete-view": {"view": str(uuid4())},
    "POST /tasks/{task_id}/signal": {"name": "go"},
    "POST /tasks/{task_id}/budget": {"stop": "1"},
    "POST /tasks/{task_id}/decide": {"verdict": "approve", "step": "1"},
    "POST /agents/{name}/rollback": {"version": "1"},
    "POST /agents/{name}/canary": {"version": "1", "share": "10%"},
    "POST /agents/{name}/status": {"status": "disabled"},
    "POST /routing": {"message": "hello"},
    "POST /functions/{name}/status": {"status": "quarantined", "version": "1"},
    "POST /tasks/{task_id}/resume": {"scope": "agent", "name": "none"},
    "POST /limits/set": {"scope": "agent", "name": "none", "max_running": "1"},
    "POST /limits/remove": {"scope": "agent", "name": "none"},
    "POST /limits/pause": {"scope": "agent", "name": "none"},
    "POST /limits/resume": {"scope": "agent", "name": "none"},
    "POST /limits/stop": {"scope": "agent", "name": "none"},
    "POST /limits/lift": {"scope": "agent", "name": "none"},
    "POST /budgets/set": {"scope": "agent", "name": "none", "period": "day", "dollars": "1"},
    "POST /budgets/remove": {"scope": "agent", "name": "none", "period": "day"},
    "POST /schedules/create": {"name": "new", "cron": "* * * * *", "agent": "None", "others": ""},
    "POST /schedules/{name}/change": {"cron": "* * * * *"},
    "POST /webhooks/create": {"name": "new", "url": "https://example.com/", "event.tasks": "on"},
    "POST /webhooks/{name}/change": {"event.tasks": "on"},
    "POST /webhooks/{name}/retry": {"delivery": str(uuid4())},
    "POST /memory/{store_id}/delete-file": {"path": "/memories/notes.md"},
    "POST /keys/create": {"name": "new", "role": "viewer"},
    "POST /silences/add": {"rule": "unserved", "hours": "1", "reason": "known"},
    "POST /silences/remove": {"silence": str(uuid4())},
    "POST /errors/{fingerprint}/decide": {"state": "resolved"},
    "POST /capabilities/pause": {"name": "none"},
    "POST /capabilities/resume": {"name": "none"},
}
QUERIES = {"GET /memory/{store_id}/raw": "?path=/memories/notes.md"}
PARAMETERS = {"number": "1", "what": "input"}
"""Path parameters that are not the id or the name of something."""


def call(browser: Browser, endpoint: str, token: str, task: str) -> httpx2.Response:
    """Open a page, or send its form; a stream is not read."""
    method, path = endpoint.split(" ")
    path = re.sub(r"\{(\w+)\}", lambda name: PARAMETERS.get(name[1], task), path)
    if method == "POST":
        return browser.post(path, {**FORMS.get(endpoint, {}), "csrf_token": token})
    return browser.request("HEAD" if "live" in path.split("/") else "GET", path + QUERIES.get(endpoint, ""))


def token_of(browser: Browser) -> str:
    return hidden(browser.get("/account").text)["csrf_token"]


def test_every_page_has_a_rule() -> None:
    assert set(ENDPOINTS) == set(RULES)


def test_page_without_a_rule_does_not_start(settings: Settings) -> None:
    fewer = {name: rule for name, rule in RULES.items() if name != "GET /inbox"}
    with (
        patch.object(site, "RULES", fewer),
        pytest.raises(RuntimeError, match=r"No rule in orchestrator.pages.rights for: GET /inbox"),
    ):
        site.add_to(create_app(settings))


@pytest.mark.parametrize("role", Role)
def test_role_may_use_its_pages_and_no_other(logged_in: Open, role: Role) -> None:
    browser = logged_in(role)
    token = token_of(browser)
    for endpoint in ENDPOINTS:
        status = call(browser, endpoint, token, str(uuid4())).status_code
        if rights.RULES[endpoint].allows(role):
            assert status in (200, 303, 404), endpoint
        else:
            assert status == 403, endpoint


def test_forms_need_the_token_of_their_login(logged_in: Open) -> None:
    browser, other = logged_in("admin"), logged_in("admin")
    for endpoint in (each for each in ENDPOINTS if each.startswith("POST ")):
        for token in ("", "x", token_of(other)):
            refused = call(browser, endpoint, token, str(uuid4()))
            assert refused.status_code in (403, 404), endpoint
            assert "CSRF" in refused.text or refused.status_code == 404, endpoint


def test_pages_are_for_logins_alone(site: Any, client: Client) -> None:
    with httpx2.Client(base_url=site.url, trust_env=False) as http:
        for endpoint in ENDPOINTS:
            method, path = endpoint.split(" ")
            path = re.sub(r"\{\w+\}", "1" * 32, path).replace("/steps/" + "1" * 32, "/steps/1")
            answer = http.request(method, path, headers={"Authorization": f"Bearer {site.key}"})
            assert answer.status_code == 303, endpoint
            assert answer.headers["location"].startswith("/login?return_to="), endpoint


@pytest.mark.parametrize("kind", BOUNDS)
def test_foreign_tasks_are_like_unknown_ones(logged_in: Open, client: Client, database: Engine, kind: str) -> None:
    namespace = "theirs" if kind == "namespace" else "default"
    define_in(database, namespace, NOOP, agent("Theirs", "theirs"))
    foreign = client.submit("Theirs", {"of": "theirs"}, key="theirs", namespace=namespace, labels={"of": "theirs"}).id
    client.pause("agent", "Theirs", namespace=namespace)
    world = World(namespace, "default", [foreign], foreign, *[""] * 8)
    browser = logged_in("admin", **BOUNDS[kind])
    token, before = token_of(browser), stored(database, world)
    for endpoint in (each for each in ENDPOINTS if "{" in each):
        answers = [_normal(call(browser, endpoint, token, task)) for task in (foreign, str(uuid4()))]
        assert answers[0][0] in (403, 404), endpoint
        assert answers[0] == answers[1], endpoint
    for page in ("/overview", "/tasks", "/inbox", f"/tasks?q={foreign[:20]}", "/errors", "/capabilities", "/analytics"):
        shown = browser.get(page)
        assert foreign not in shown.text, page
        assert kind.startswith("tenant") or "Theirs" not in shown.text, page
    assert stored(database, world) == before


def _normal(answer: httpx2.Response) -> tuple[int, str]:
    return answer.status_code, re.sub("[0-9a-f]{8}[0-9a-f-]*", "…", answer.text)
