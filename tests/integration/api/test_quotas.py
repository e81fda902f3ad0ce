"""Request quotas of keys, and the limit of failed authentications per address."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from unittest.mock import patch

import httpx2
import pytest
from sqlalchemy import event

from minions import Client, errors
from orchestrator.api import quotas
from orchestrator.api.app import create_app
from orchestrator.api.buckets import MOST, Buckets
from orchestrator.api.login.attempts import Attempts
from shared.access import key_text, sessions
from shared.settings import Settings
from tests.integration.api.conftest import Api, Run, WithKey, serving
from tests.support.browser import Browser


def fields(response: httpx2.Response) -> tuple[str, int, int]:
    """The policy, the requests left and the seconds until all are back."""
    found = re.fullmatch(r'"minute";r=(\d+);t=(\d+)', response.headers["ratelimit"])
    assert found is not None
    return response.headers["ratelimit-policy"], int(found[1]), int(found[2])


def test_requests_over_the_quota_are_refused(with_key: WithKey) -> None:
    http = with_key("viewer", requests_per_minute=3)
    left = []
    for _ in range(3):
        response = http.get("/v1/tasks")
        assert response.status_code == 200
        policy, remaining, _ = fields(response)
        left.append(remaining)
        assert policy == '"minute";q=3;w=60'
    assert left == [2, 1, 0]
    refused = http.get("/v1/tasks")
    assert (refused.status_code, refused.json()["code"]) == (429, "too_many_requests")
    assert 1 <= int(refused.headers["retry-after"]) <= 20
    assert fields(refused)[1] == 0
    assert "may send 3 requests a minute to each orchestrator" in refused.json()["detail"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/tasks/01b20424-0000-7000-8000-000000000000", 404),
        ("POST", "/v1/tasks", 403),
        ("GET", "/v1/tasks?limit=x", 422),
        ("HEAD", "/v1/tasks", 200),
    ],
)
def test_every_answer_has_the_fields_and_counts(with_key: WithKey, method: str, path: str, status: int) -> None:
    http = with_key("viewer", requests_per_minute=1)
    response = http.request(method, path)
    assert response.status_code == status
    assert fields(response)[1] == 0
    assert http.get("/v1/tasks").status_code == 429


def test_keys_have_separate_quotas_and_none_by_default(client: Client, with_key: WithKey, http_api: Api) -> None:
    first, second = (with_key("viewer", requests_per_minute=1) for _ in range(2))
    assert [each.get("/v1/tasks").status_code for each in (first, second, first, second)] == [200, 200, 429, 429]
    without = with_key("viewer").get("/v1/tasks")
    assert "ratelimit" not in without.headers
    key = client.create_api_key("rotated", "viewer", requests_per_minute=1)["key"]
    for text in (key, client.rotate_api_key("rotated")["key"]):
        with replace(http_api, key=text).http() as http:
            status = http.get("/v1/tasks").status_code
    assert status == 429


def test_a_busy_key_with_a_quota_costs_no_more_statements(http_api: Api, with_key: WithKey) -> None:
    http = with_key("viewer", requests_per_minute=1)
    statements: list[str] = []
    http.get("/v1/tasks")
    engine = http_api.app.state.engine

    def note(connection: object, cursor: object, statement: str, *rest: object) -> None:
        statements.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        refused = [http.get("/v1/tasks").status_code for _ in range(20)]
    finally:
        event.remove(engine, "before_cursor_execute", note)
    assert set(refused) == {429}
    assert all("api_keys" in statement for statement in statements)


def test_python_client_reports_the_quota(client: Client, http_api: Api) -> None:
    key = client.create_api_key("few", "viewer", requests_per_minute=1)["key"]
    with Client(http_api.url, key, retries=0) as few:
        list(few.tasks())
        with pytest.raises(errors.TooManyRequests, match="1 requests a minute") as refused:
            list(few.tasks())
    assert refused.value.detail["retry_after"] > 0


@pytest.mark.parametrize("quota", [0, -1, 1.5, "3", True, 10**9])
def test_wrong_quota_is_refused(http: httpx2.Client, quota: object) -> None:
    sent = {"name": "a", "role": "viewer", "requests_per_minute": quota}
    refused = http.post("/v1/keys", json=sent)
    assert (refused.status_code, "requests_per_minute" in refused.json()["detail"]) == (422, True)


def test_key_with_a_quota_creates_and_rotates_none_with_more(client: Client, http_api: Api) -> None:
    client.create_api_key("free", "viewer")
    key = client.create_api_key("bounded", "admin", requests_per_minute=100)["key"]
    with Client(http_api.url, key, retries=0) as bounded:
        for quota in (None, 101):
            with pytest.raises(errors.Forbidden, match="a quota of 100 or less"):
                bounded.create_api_key("more", "viewer", requests_per_minute=quota)
        with pytest.raises(errors.Forbidden, match="a quota of 100 or less"):
            bounded.rotate_api_key("free")
        assert bounded.create_api_key("less", "viewer", requests_per_minute=100)["requests_per_minute"] == 100


def test_command_line_sets_and_shows_the_quota(run_cli: Run) -> None:
    assert run_cli("keys", "create", "ci", "--role", "viewer", "--requests-per-minute", "77").code == 0
    assert "77" in run_cli("keys").line


# -------------------------------------------------------------------------------------------- failed authentications


@pytest.fixture
def guarded(settings: Settings, database: object) -> Iterator[Api]:
    """A server that refuses an address after three failures."""
    app = create_app(settings)
    with patch.object(quotas, "FAILURES", 3), serving(app) as port:
        yield Api(app, f"http://127.0.0.1:{port}", port, settings.require_api_key())


def test_failures_of_an_address_are_limited_and_valid_keys_pass(guarded: Api, client: Client) -> None:
    valid, unused = (client.create_api_key(name, "viewer")["key"] for name in ("valid", "unused"))
    with guarded.http() as http:

        def status(key: str | None) -> int:
            headers = {"Authorization": f"Bearer {key}"} if key else {"Authorization": ""}
            return http.get("/v1/tasks", headers=headers).status_code

        assert status(valid) == 200
        assert [status(key_text.generate()), status("wrong"), status(None)] == [401, 401, 401]
        with patch.object(guarded.app.state.keys, "find", side_effect=AssertionError):
            refused = http.get("/v1/tasks", headers={"Authorization": f"Bearer {key_text.generate()}"})
            assert (refused.status_code, refused.json()["code"]) == (429, "too_many_requests")
            assert int(refused.headers["retry-after"]) >= 1
            assert status(None) == 429
            # A key that was not in use is looked up when an attempt is free again.
            assert status(unused) == 429
        # A change of any key, such as the logout of another user, must not lock out the keys in use.
        guarded.app.state.keys.forget()
        assert status(valid) == 200
        assert status(guarded.key) == 200


def test_failures_of_cookies_are_limited_on_pages_too_and_logins_in_use_pass(guarded: Api, client: Client) -> None:
    browser, flood = Browser(guarded.url, guarded.url), Browser(guarded.url, guarded.url)
    browser.log_in(client.create_api_key("valid", "viewer")["key"])
    assert browser.get("/account").status_code == 200

    def with_new_cookie(path: str) -> int:
        return flood.get(path, headers={"Cookie": f"minion_session={sessions.new_token()}"}).status_code

    assert [with_new_cookie(path) for path in ("/account", "/login", "/v1/tasks")] == [303, 200, 401]
    with patch.object(guarded.app.state.logins, "find", side_effect=AssertionError):
        assert [with_new_cookie(path) for path in ("/account", "/login", "/v1/tasks")] == [429, 429, 429]
    guarded.app.state.logins.forget()
    assert browser.get("/account").status_code == 200
    assert browser.get("/v1/tasks").status_code == 200


def test_missing_csrf_token_is_no_failed_authentication(guarded: Api, client: Client) -> None:
    browser = Browser(guarded.url, guarded.url)
    browser.log_in(client.create_api_key("valid", "viewer")["key"])
    assert [browser.request("POST", "/v1/tasks").status_code for _ in range(4)] == [403] * 4
    assert httpx2.get(f"{guarded.url}/v1/tasks", trust_env=False).status_code == 401


def test_login_and_its_key_have_one_quota(client: Client, http_api: Api) -> None:
    key = client.create_api_key("ci", "viewer", requests_per_minute=2)["key"]
    browser = Browser(http_api.url, http_api.url)
    http_api.app.state.attempts = Attempts()
    browser.log_in(key)
    assert browser.get("/v1/limits").status_code == 200
    bearer = {"Authorization": f"Bearer {key}"}
    assert httpx2.get(f"{http_api.url}/v1/limits", headers=bearer, trust_env=False).status_code == 200
    refused = browser.get("/v1/limits")
    assert refused.status_code == 429
    assert refused.json()["detail"].startswith("The login 'ci' may send 2 requests a minute")


# -------------------------------------------------------------------------------------------------------- the buckets


def test_bucket_fills_evenly() -> None:
    buckets = Buckets()
    assert [buckets.take("a", 60, now=0.0).allowed for _ in range(61)] == [True] * 60 + [False]
    assert not buckets.take("a", 60, now=0.9).allowed
    assert buckets.take("a", 60, now=1.0).allowed
    assert buckets.look("a", 60, now=1.0).next_in == 1
    level = buckets.take("a", 60, now=1000.0)
    assert (level.left, level.full_in) == (59, 1)


def test_buckets_take_bounded_memory_and_keep_the_last_used() -> None:
    buckets = Buckets()
    buckets.take("kept", 1, now=0.0)
    for number in range(2 * MOST):
        buckets.take(str(number), 1, now=0.0)
        if number % 1000 == 0:
            assert not buckets.take("kept", 1, now=0.0).allowed
    assert len(buckets) == MOST
