"""Browsers log in with an API key: cookies, forms, what a login may do, and when it ends."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from unittest.mock import Mock, patch
from uuid import uuid4

import httpx2
import pytest
from sqlalchemy import Engine, text

from minions import Client, errors
from orchestrator.api.app import GUARDED, create_app
from orchestrator.api.login.attempts import PER_MINUTE, Attempts
from orchestrator.api.rights import RULES
from orchestrator.commands.output import console
from orchestrator.local.embedded import EmbeddedServers
from shared.access import key_text
from shared.access.roles import MASK, Permission, Role
from shared.audit.log import AuditFilter, list_rows
from shared.settings import Settings
from tests.integration.api.conftest import Api, Run, serving
from tests.integration.conftest import everything_written
from tests.support.browser import Browser, hidden
from tests.support.processes import wait_until

Open = Callable[..., Browser]


@pytest.fixture
def browser(http_api: Api, database: Engine) -> Browser:
    """A browser that is not logged in, at the loopback address."""
    http_api.app.state.attempts = Attempts()
    return Browser(http_api.url, http_api.url)


@pytest.fixture
def logged_in(browser: Browser, client: Client, http_api: Api) -> Open:
    """A browser that is logged in with a new key: `logged_in("viewer", namespace="ours")`."""

    def make(role: str = "viewer", name: str | None = None, **bounds: Any) -> Browser:
        key = client.create_api_key(name or f"{role}-{uuid4()}", role, **bounds)["key"]
        other = Browser(http_api.url, http_api.url)
        http_api.app.state.attempts = Attempts()
        assert other.log_in(key).status_code == 303
        return other

    return make


@pytest.fixture
def secure(settings: Settings, database: Engine) -> Iterator[Browser]:
    """A browser at an installation behind a proxy with HTTPS."""
    public = "https://minions.example.com"
    with serving(create_app(settings.model_copy(update={"public_url": public}))) as port:
        yield Browser(public, f"http://127.0.0.1:{port}")


def change(database: Engine, assignment: str) -> None:
    """Change all logins behind the API's back."""
    with database.begin() as connection:
        connection.execute(text(f"UPDATE login_sessions SET {assignment}"))


# ----------------------------------------------------------------------------------------------------------- log in


def test_login_leads_to_a_page_that_says_who_and_what(browser: Browser, client: Client) -> None:
    key = client.create_api_key("ci", "viewer", namespace="team", tenant="acme:*")["key"]
    entered = browser.get("/account")
    assert (entered.status_code, entered.headers["location"]) == (303, "/login?return_to=/account")
    account = browser.follow(browser.log_in(key))
    assert account.status_code == 200
    shown = " ".join(account.text.split())
    assert "<dd>key:ci</dd>" in shown
    assert "<dd>viewer</dd>" in shown
    assert "the namespace team, the tenant key acme:*" in shown
    assert "<code>tasks:read</code>" in shown
    assert "<code>tasks:submit</code>" not in shown
    assert browser.get("/login").headers["location"] == "/account"


def test_administrator_may_everything(browser: Browser, http_api: Api) -> None:
    account = browser.follow(browser.log_in(http_api.key))
    assert "<dd>key:bootstrap</dd>" in account.text
    assert "the whole installation" in account.text
    assert all(f"<code>{permission}</code>" in account.text for permission in Permission)


def test_cookie_is_stored_as_a_hash_and_logged_nowhere(
    logged_in: Open, browser: Browser, http_api: Api, database: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = [logged_in().cookies["minion_session"][0]]
    browser.log_in(http_api.key)
    tokens.append(browser.cookies["minion_session"][0])
    browser.get("/v1/tasks", headers={"Cookie": f"minion_session={'A' * 43}"})
    browser.request("POST", "/v1/tasks", json={})
    written = everything_written(database, capsys)
    assert all(token not in written for token in tokens)
    assert http_api.key not in written


def test_cookies_follow_the_public_address(browser: Browser, secure: Browser, http_api: Api) -> None:
    browser.log_in(http_api.key)
    secure.log_in(http_api.key)
    plain, prefixed = browser.attributes("minion_session"), secure.attributes("__Host-minion_session")
    for attributes in (plain, prefixed):
        assert attributes["httponly"]
        assert attributes["samesite"] == "strict"
        assert attributes["path"] == "/"
        assert attributes["domain"] == ""
        assert attributes["max-age"] == "28800"
    assert (plain["secure"], prefixed["secure"]) == ("", True)
    assert "minion_session" not in secure.cookies
    # A cookie without the prefix may come from another host of the domain.
    token = secure.cookies.pop("__Host-minion_session")[0]
    assert secure.get("/v1/tasks", headers={"Cookie": f"minion_session={token}"}).status_code == 401


@pytest.mark.parametrize("before", [b"\xa0", b"\x85", b"\x1f"])
def test_cookie_whose_name_only_looks_the_same_is_ignored(secure: Browser, http_api: Api, before: bytes) -> None:
    """Browsers protect names that begin with `__Host-`; another host of the domain may set those that do not."""
    secure.log_in(http_api.key)
    own = b"__Host-minion_session=" + secure.cookies["__Host-minion_session"][0].encode()
    planted = before + b"__Host-minion_session=" + b"A" * 43
    address = f"{secure.server}/v1/tasks"
    answers = [
        httpx2.get(address, headers={"Cookie": cookie}, trust_env=False).status_code
        for cookie in (own, own + b"; " + planted, planted + b"; " + own, before + own)
    ]
    assert answers == [200, 200, 200, 401]


@pytest.mark.parametrize(
    "cookie",
    [
        b"\xff=\xff",
        b"minion_session",
        b"=minion_session",
        b";;;=;",
        b"minion_session=" + b"A" * 42,
        b"minion_session=\xc3\xa9" + b"A" * 41,
        b"minion_session=" + b"A" * 60_000,
        b"a=b;" * 10_000,
    ],
    ids=["bytes", "name", "value", "separators", "short", "text", "long", "many"],
)
def test_malformed_cookies_are_no_login(http_api: Api, database: Engine, cookie: bytes) -> None:
    for path in ("/v1/tasks", "/account"):
        answer = httpx2.get(http_api.url + path, headers={"Cookie": cookie}, trust_env=False)
        assert answer.status_code in (401, 303)


def test_login_needs_a_public_address_beyond_loopback(settings: Settings, database: Engine, http_api: Api) -> None:
    with serving(create_app(settings.model_copy(update={"api_host": "0.0.0.0"}))) as port:
        address = f"http://127.0.0.1:{port}"
        browser = Browser(address, address)
        for method, path in (("GET", "/login"), ("POST", "/login"), ("GET", "/account"), ("GET", "/login/oidc")):
            refused = browser.request(method, path)
            assert refused.status_code == 404
            assert "set MINION_PUBLIC_URL" in refused.text


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("", "This is not a valid API key."),
        ("another-key", "This is not a valid API key."),
        (key_text.generate(), "This is not a valid API key."),
        ("mk_abc", "mistyped or not complete"),
        ("é\x00\ud800".encode("utf-8", "replace").decode(), "This is not a valid API key."),
        ("x" * 3000, "This is not a valid API key."),
    ],
    ids=["empty", "foreign", "unknown", "mistyped", "odd", "long"],
)
def test_wrong_key_shows_the_form_again(browser: Browser, key: str, said: str) -> None:
    refused = browser.log_in(key, return_to="/docs")
    assert refused.status_code == 401
    assert said in refused.text
    assert 'role="alert"' in refused.text
    assert "<title>Error: Log in · Minions</title>" in refused.text
    assert 'value="/docs"' in refused.text
    assert "minion_session" not in browser.cookies
    assert not key or key not in refused.text


def test_ended_keys_are_named(browser: Browser, client: Client, database: Engine) -> None:
    revoked = client.create_api_key("old", "viewer")["key"]
    client.revoke_api_key("old")
    expired = client.create_api_key("short", "viewer", expires_in=3600)["key"]
    with database.begin() as connection:
        connection.execute(text("UPDATE api_keys SET expires_at = now() - interval '1 s' WHERE name = 'short'"))
    assert "The API key &#39;old&#39; was revoked at" in browser.log_in(revoked).text
    assert "The API key &#39;short&#39; expired at" in browser.log_in(expired).text


def test_form_of_another_site_is_refused(browser: Browser, http_api: Api) -> None:
    """Otherwise, a site could log a browser in as another user, and read what its user does."""
    assert browser.post("/login", {"key": http_api.key}).status_code == 403
    form = hidden(browser.get("/login").text)
    foreign = Browser(browser.site, browser.server)
    foreign.get("/login")
    assert foreign.post("/login", {**form, "key": http_api.key}).status_code == 403
    assert browser.post("/login", {"key": http_api.key, "form_token": ""}).status_code == 403
    assert browser.post("/login", {**form, "key": http_api.key}).status_code == 303


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b'{"key": "x"}', "application/json"),
        (b"key=%ff", "application/x-www-form-urlencoded"),
        (b"key=\xff", "application/x-www-form-urlencoded"),
        (b"key=a&key=b", "application/x-www-form-urlencoded"),
        (b"&".join(b"k%d=1" % n for n in range(100)), "application/x-www-form-urlencoded"),
        (b"key=" + b"x" * 10_000, "application/x-www-form-urlencoded"),
    ],
    ids=["json", "encoding", "bytes", "twice", "fields", "size"],
)
def test_malformed_form_is_refused(browser: Browser, content: bytes, kind: str) -> None:
    browser.get("/login")
    refused = browser.request("POST", "/login", content=content, headers={"Content-Type": kind})
    assert refused.status_code in (413, 422)
    assert refused.headers["content-type"].startswith("text/html")


@pytest.mark.parametrize(
    "asked",
    [
        "https://evil.example",
        "//evil.example",
        "/\\evil.example",
        "/\t/evil.example",
        "/\n/evil.example",
        "\\\\evil.example",
        "javascript:alert(1)",
        "/%0d%0aSet-Cookie:a=b\r\nX: y",
        "evil.example",
        "",
        "/login",
        "/login/oidc",
        "/" + "a" * 1000,
    ],
)
def test_return_path_never_leads_elsewhere(browser: Browser, http_api: Api, asked: str) -> None:
    assert browser.log_in(http_api.key, return_to=asked).headers["location"] == "/account"
    assert browser.get("/login", params={"return_to": asked}).headers["location"] == "/account"


def test_return_path_of_ours_is_followed(browser: Browser, http_api: Api) -> None:
    path = "/tasks?state=failed&agent=a%20b"
    assert hidden(browser.get("/login", params={"return_to": path}).text)["return_to"] == path
    assert browser.log_in(http_api.key, return_to=path).headers["location"] == path


def test_host_header_changes_nothing(secure: Browser, http_api: Api) -> None:
    secure.headers = {"Host": "evil.example", "X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "http"}
    form = secure.get("/login")
    opened = secure.log_in(http_api.key)
    refused = secure.post("/login", {"key": "x"})
    assert "__Host-minion_session" in secure.cookies
    for response in (form, opened, refused):
        assert "evil" not in response.text + str(response.headers)


def test_login_replaces_the_cookie_and_ends_the_previous_login(browser: Browser, http_api: Api) -> None:
    planted = "A" * 43
    browser.cookies["minion_session"] = planted, {"samesite": "strict"}
    browser.log_in(http_api.key)
    first = browser.cookies["minion_session"]
    assert first[0] != planted
    again = Browser(browser.site, browser.server)
    again.get("/login")
    again.cookies["minion_session"] = first
    answer = again.post("/login", {"form_token": _form_token(again), "key": http_api.key})
    assert answer.status_code == 303
    assert browser.get("/v1/tasks").status_code == 401
    assert again.get("/v1/tasks").status_code == 200


def _form_token(browser: Browser) -> str:
    """The token of the form that belongs to the browser's cookie."""
    session = browser.cookies.pop("minion_session")
    token = hidden(browser.get("/login").text)["form_token"]
    browser.cookies["minion_session"] = session
    return token


def test_pages_run_and_load_nothing_of_others(browser: Browser, logged_in: Open) -> None:
    pages = [browser.get("/login"), logged_in().get("/account"), browser.post("/login", {"key": "x"})]
    for page in pages:
        policy = page.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; style-src 'self'")
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert page.headers["cache-control"] == "no-store"
        assert page.headers["x-content-type-options"] == "nosniff"
        assert "<script" not in page.text
        assert " style=" not in page.text
        assert set(re.findall(r'(?:href|src|action)="([^"#]*)"', page.text)) <= {
            "/login/style.css",
            "data:,",
            "/login",
            "/logout",
            "/docs",
            "/overview",
            "/login?return_to=/account",
        }
        assert '<html lang="en">' in page.text
        assert "<main>" in page.text
        assert page.text.count("<h1>") == 1
    assert browser.get("/login/style.css").headers["content-type"].startswith("text/css")


def test_link_from_another_site_finds_the_login(logged_in: Open) -> None:
    """Browsers do not send strict cookies after such a link, so a page of ours leads on."""
    browser = logged_in()
    browser.came_from_elsewhere = True
    entered = browser.get("/account", headers={"Sec-Fetch-Site": "cross-site"})
    assert entered.status_code == 200
    assert "You are logged in" not in entered.text
    assert "You are logged in" in browser.follow(entered).text


# ------------------------------------------------------------------------------------------------ what a login may do


def test_login_has_the_rights_of_its_key(client: Client, http_api: Api) -> None:
    """For each role and endpoint, the cookie is refused exactly where the key is."""
    key = {role: client.create_api_key(f"as-{role}", role)["key"] for role in Role}
    with_keys = httpx2.Client(base_url=http_api.url, trust_env=False)
    for role in Role:
        browser = Browser(http_api.url, http_api.url)
        http_api.app.state.attempts = Attempts()
        browser.log_in(key[role])
        csrf = {"Minion-CSRF": browser.csrf_token()}
        for endpoint in RULES:
            method, path = endpoint.split(" ")
            path = re.sub(r"\{\w+\}", "none", path)
            bearer = {"Authorization": f"Bearer {key[role]}"}
            by_key = with_keys.request(method, path, headers=bearer)
            by_cookie = browser.request(method, path, headers=csrf)
            assert (by_cookie.status_code == 403) == (by_key.status_code == 403) == (role not in _roles(endpoint))
            assert by_cookie.status_code != 401, endpoint
    with_keys.close()


def _roles(endpoint: str) -> list[Role]:
    return [role for role in Role if RULES[endpoint].allows(role)]


@pytest.mark.usefixtures("agents")
def test_payloads_and_bounds_hold_for_logins(client: Client, logged_in: Open) -> None:
    task = client.submit("Echo", {"a": 1}, key="acme").id
    assert logged_in("viewer").get(f"/v1/tasks/{task}").json()["input"] == MASK
    assert logged_in("viewer", payloads=True).get(f"/v1/tasks/{task}").json()["input"] == {"a": 1}
    assert logged_in("viewer", namespace="other").get(f"/v1/tasks/{task}").status_code == 404
    assert logged_in("viewer", tenant="other").get(f"/v1/tasks/{task}").status_code == 404


@pytest.mark.usefixtures("agents")
def test_unsafe_request_needs_the_csrf_token(logged_in: Open, client: Client) -> None:
    browser, other = logged_in("submitter", name="ann"), logged_in("submitter")
    token = browser.csrf_token()
    for wrong in (None, b"", b"0" * 64, other.csrf_token().encode(), b"\xe9"):
        headers: dict[str, Any] = {} if wrong is None else {"Minion-CSRF": wrong}
        refused = browser.request("POST", "/v1/tasks", json={"agent": "Echo"}, headers=headers)
        assert refused.status_code == 403
        assert "CSRF token is missing or wrong" in refused.json()["detail"]
    assert list(client.tasks()) == []
    accepted = browser.request("POST", "/v1/tasks", json={"agent": "Echo"}, headers={"Minion-CSRF": token})
    assert accepted.status_code == 201
    prefix = client.api_key("ann")["prefix"]
    assert accepted.json()["submitted_by"] == f"ann {prefix}"


def test_every_unsafe_endpoint_needs_the_csrf_token(browser: Browser, http_api: Api) -> None:
    browser.log_in(http_api.key)
    unsafe = [
        (method, re.sub(r"\{\w+\}", "none", route.path))
        for module in GUARDED
        for route in module.router.routes
        for method in route.methods
        if method not in ("GET", "HEAD")
    ]
    assert unsafe
    for method, path in unsafe:
        refused = browser.request(method, path)
        assert refused.status_code == 403, path
        assert "Minion-CSRF" in refused.json()["detail"]


@pytest.mark.usefixtures("agents")
def test_answers_to_a_cookie_are_not_stored_by_caches(logged_in: Open, client: Client) -> None:
    browser = logged_in("submitter")
    task = client.submit("Echo", {}).id
    for path in ("/v1/tasks", f"/v1/tasks/{task}", "/v1/tasks/none", "/v1/keys"):
        assert browser.get(path).headers["cache-control"] == "no-store"
    cookie = {"Cookie": f"minion_session={browser.cookies['minion_session'][0]}"}
    followed = httpx2.head(f"{browser.server}/v1/tasks/{task}/events", headers=cookie, trust_env=False)
    assert followed.headers["cache-control"] in ("no-store", "no-cache")


def test_key_in_the_header_counts_before_the_cookie(logged_in: Open, http_api: Api) -> None:
    browser = logged_in("viewer")
    bearer = {"Authorization": f"Bearer {http_api.key}"}
    assert browser.request("POST", "/v1/keys", json={"name": "a", "role": "viewer"}, headers=bearer).status_code == 201
    wrong = {"Authorization": "Bearer wrong"}
    assert browser.get("/v1/tasks", headers=wrong).status_code == 401


def test_refusals_name_the_login(logged_in: Open) -> None:
    browser = logged_in("viewer", name="ann", namespace="ours")
    refused = browser.request("POST", "/v1/tasks", headers={"Minion-CSRF": browser.csrf_token()})
    assert refused.json()["detail"].startswith("The login 'ann' (role viewer) lacks the permission tasks:submit")
    assert browser.get("/v1/workers").json()["detail"].startswith("The login 'ann' is bound to a part")


# ------------------------------------------------------------------------------------------------- when a login ends


def test_logout_ends_the_login(logged_in: Open) -> None:
    browser = logged_in()
    cookie = browser.cookies["minion_session"]
    assert browser.post("/logout", {}).status_code == 403
    assert browser.post("/logout", {"csrf_token": "0" * 64}).status_code == 403
    assert browser.get("/logout").status_code == 405
    out = browser.post("/logout", {"csrf_token": browser.csrf_token()})
    assert (out.status_code, out.headers["location"]) == (303, "/login")
    assert "minion_session" not in browser.cookies
    assert browser.post("/logout", {}).status_code == 303
    browser.cookies["minion_session"] = cookie
    refused = browser.get("/v1/tasks")
    assert refused.status_code == 401
    assert "This login was ended at" in refused.json()["detail"]


@pytest.fixture
def other_process(settings: Settings, database: Engine) -> Iterator[str]:
    """Another orchestrator's API; the value is its address."""
    with serving(create_app(settings)) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("notified", [True, False])
@pytest.mark.parametrize("way", ["session", "user", "key"])
def test_revocation_holds_in_every_process(
    logged_in: Open, client: Client, other_process: str, notified: bool, way: str
) -> None:
    browser = logged_in(name="ci")
    browser.server = other_process
    assert browser.get("/v1/tasks").status_code == 200
    with ExitStack() as stack:
        if not notified:
            for module in ("sessions", "keys"):
                stack.enter_context(patch(f"orchestrator.api.{module}.publish_keys_changed"))
        if way == "session":
            client.revoke_session(next(iter(client.sessions()))["id"])
        elif way == "user":
            assert len(client.revoke_sessions_of("key:ci")) == 1
        else:
            client.revoke_api_key("ci")
    wait_until(lambda: browser.get("/v1/tasks").status_code == 401, "the other process refuses the login", 10)
    refused = browser.get("/v1/tasks").json()["detail"]
    assert ("'ci' was revoked at" if way == "key" else "This login was ended at") in refused
    assert browser.get("/account").headers["location"] == "/login?return_to=/account"


@pytest.mark.usefixtures("agents")
def test_revocation_ends_a_stream(logged_in: Open, client: Client, http_api: Api) -> None:
    task = client.submit("Echo", {}).id
    browser = logged_in(name="ci")
    cookie = {"Cookie": f"minion_session={browser.cookies['minion_session'][0]}"}
    with (
        httpx2.Client(base_url=http_api.url, trust_env=False, timeout=60, headers=cookie) as http,
        http.stream("GET", f"/v1/tasks/{task}/events") as stream,
    ):
        lines = stream.iter_lines()
        assert next(lines) == "retry: 1000"
        client.revoke_api_key("ci")
        for _ in lines:
            pass


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("expires_at = now() - interval '1 s'", "This login expired at"),
        ("last_used_at = now() - interval '31 minutes'", "because it was not used any more"),
        ("ended_at = now(), ended_by = 'x'", "This login was ended at"),
    ],
    ids=["absolute", "idle", "ended"],
)
def test_login_that_is_over_is_refused_with_its_reason(
    logged_in: Open, database: Engine, http_api: Api, assignment: str, said: str
) -> None:
    browser = logged_in()
    change(database, assignment)
    http_api.app.state.logins.forget()
    refused = browser.get("/v1/tasks")
    assert refused.status_code == 401
    assert said in refused.json()["detail"]
    assert "Log in again at /login" in refused.json()["detail"]


def test_use_is_written_once_a_minute_and_prolongs_the_login(
    logged_in: Open, database: Engine, http_api: Api, client: Client
) -> None:
    browser = logged_in()
    moved = []
    for earlier in ("30 s", "61 s", "29 minutes"):
        change(database, f"last_used_at = now() - interval '{earlier}'")
        before = next(iter(client.sessions()))["last_used_at"]
        http_api.app.state.logins.forget()
        assert browser.get("/v1/tasks").status_code == 200
        moved.append(next(iter(client.sessions()))["last_used_at"] != before)
    assert moved == [False, True, True]


@pytest.mark.usefixtures("agents")
def test_open_stream_does_not_prolong_the_login(
    logged_in: Open, client: Client, database: Engine, http_api: Api
) -> None:
    task = client.submit("Echo", {}).id
    browser = logged_in()
    cookie = {"Cookie": f"minion_session={browser.cookies['minion_session'][0]}"}
    watching = http_api.app.state.watching_logins
    with (
        httpx2.Client(base_url=http_api.url, trust_env=False, timeout=60, headers=cookie) as http,
        http.stream("GET", f"/v1/tasks/{task}/events") as stream,
    ):
        lines = stream.iter_lines()
        next(lines)
        change(database, "last_used_at = now() - interval '5 minutes'")
        before = next(iter(client.sessions()))["last_used_at"]
        with patch.object(watching, "_look_up", Mock(wraps=watching._look_up)) as looked:
            wait_until(lambda: looked.call_count >= 2, "the stream checks its login")
        assert next(iter(client.sessions()))["last_used_at"] == before
        change(database, "last_used_at = now() - interval '31 minutes'")
        for _ in lines:
            pass
    assert "not used any more" in browser.get("/v1/tasks").json()["detail"]


def test_login_ends_with_the_text_that_opened_it(client: Client, browser: Browser, http_api: Api) -> None:
    browser.log_in(client.create_api_key("ci", "viewer")["key"])
    client.rotate_api_key("ci", overlap=3600)
    http_api.app.state.logins.forget()
    assert browser.get("/v1/tasks").status_code == 200
    client.rotate_api_key("ci", overlap=3600)
    http_api.app.state.logins.forget()
    refused = browser.get("/v1/tasks")
    assert refused.status_code == 401
    assert "ended with its key" in refused.json()["detail"]


def test_login_of_an_administrator_ends_with_the_key(browser: Browser, http_api: Api) -> None:
    browser.log_in(http_api.key)
    assert browser.get("/v1/tasks").status_code == 200
    replaced = Settings(api_key="another-administrators-key")
    with serving(create_app(replaced)) as port:
        browser.server = f"http://127.0.0.1:{port}"
        assert browser.get("/v1/tasks").status_code == 401


def test_login_costs_no_statement_while_it_is_known(logged_in: Open, http_api: Api) -> None:
    browser = logged_in()
    found: list[bytes] = []
    logins = http_api.app.state.logins
    look_up = logins._look_up

    def counted(connection: Any, digest: bytes) -> Any:
        found.append(digest)
        return look_up(connection, digest)

    with patch("orchestrator.api.key_cache.SECONDS", 3600.0), patch.object(logins, "_look_up", counted):
        logins.forget()
        for _ in range(5):
            assert browser.get("/v1/limits").status_code == 200
    logins.forget()
    assert len(found) == 1


def test_login_that_cannot_be_looked_up_is_not_refused(
    logged_in: Open, servers: EmbeddedServers, http_api: Api, browser: Browser
) -> None:
    known = logged_in()
    form = hidden(browser.get("/login").text)

    def account() -> httpx2.Response:
        http_api.app.state.logins.forget()
        return known.get("/account")

    servers.postgres.kill()
    try:
        # A connection lives a moment longer than the server.
        wait_until(lambda: account().status_code == 503, "the database is away")
        page = account()
        assert page.status_code == 503
        assert page.headers["content-type"].startswith("text/html")
        assert int(page.headers["retry-after"]) > 0
        assert known.get("/v1/tasks").status_code == 503
        assert browser.post("/login", {**form, "key": http_api.key}).status_code == 503
    finally:
        servers.postgres.start()
    assert known.get("/account").status_code == 200


def test_logins_that_expired_a_week_ago_are_forgotten(logged_in: Open, database: Engine, client: Client) -> None:
    logged_in()
    change(database, "expires_at = now() - interval '8 days'")
    assert [login["status"] for login in client.sessions(ended=True)] == ["expired"]
    logged_in()
    assert [login["status"] for login in client.sessions(ended=True)] == ["active"]


# ------------------------------------------------------------------------------------------------------------ limits


def test_attempts_are_limited_by_address(browser: Browser, http_api: Api) -> None:
    for _ in range(PER_MINUTE):
        assert browser.log_in("wrong").status_code == 401
    refused = browser.log_in(http_api.key)
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["retry-after"]) <= 6
    assert "Too many login attempts from this address. Try again in" in refused.text
    # A caller cannot choose its address.
    browser.headers = {"X-Forwarded-For": "198.51.100.7"}
    assert browser.log_in(http_api.key).status_code == 429


def test_attempts_are_counted_for_the_address_that_a_trusted_proxy_reports(
    settings: Settings, database: Engine, http_api: Api
) -> None:
    with serving(create_app(settings.model_copy(update={"trusted_proxies": ["127.0.0.0/8"]}))) as port:
        address = f"http://127.0.0.1:{port}"
        browser = Browser(address, address, headers={"X-Forwarded-For": "203.0.113.9, 198.51.100.7"})
        statuses = [browser.log_in("wrong").status_code for _ in range(PER_MINUTE + 1)]
        assert statuses == [401] * PER_MINUTE + [429]
        browser.headers = {"X-Forwarded-For": "203.0.113.9, 198.51.100.8"}
        assert browser.log_in(http_api.key).status_code == 303
        browser.headers = {"X-Forwarded-For": "not an address" * 100}
        assert browser.get("/account").status_code == 200


# ------------------------------------------------------------------------------------------------------ administration


def test_logins_are_listed_with_their_browsers(
    logged_in: Open, client: Client, browser: Browser, http_api: Api
) -> None:
    browser.headers = {"User-Agent": "Agent\x07/1.0 " + "x" * 1000}
    browser.log_in(http_api.key)
    logged_in("operator", name="ops", namespace="team", tenant="acme")
    newest, oldest = list(client.sessions())
    assert (newest["user"], newest["role"], newest["status"]) == ("key:ops", "operator", "active")
    assert (newest["namespace"], newest["tenant"], newest["address"]) == ("team", "acme", "127.0.0.1")
    assert (oldest["user"], oldest["role"], oldest["kind"]) == ("key:bootstrap", "admin", "administrator")
    assert len(oldest["user_agent"]) == 200
    assert oldest["user_agent"].startswith("Agent")


def test_bound_administrator_sees_and_ends_logins_of_its_namespace(
    logged_in: Open, client: Client, http_api: Api
) -> None:
    logged_in(name="theirs", namespace="theirs")
    logged_in(name="ours", namespace="ours")
    logged_in(name="whole")
    ids = {login["user"]: login["id"] for login in client.sessions()}
    with Client(http_api.url, client.create_api_key("boss", "admin", namespace="ours")["key"], retries=0) as boss:
        assert [login["user"] for login in boss.sessions()] == ["key:ours"]
        for foreign in (ids["key:theirs"], ids["key:whole"], str(uuid4())):
            with pytest.raises(errors.NotFound, match="There is no login"):
                boss.revoke_session(foreign)
        assert boss.revoke_sessions_of("key:theirs") == []
        ended = boss.revoke_session(ids["key:ours"])
        assert ended["status"] == "ended"
        assert ended["ended_by"].startswith("boss mk_")
        assert boss.revoke_session(ids["key:ours"])["ended_at"] == ended["ended_at"]
    assert {login["user"] for login in client.sessions()} == {"key:theirs", "key:whole"}


def test_sessions_on_the_command_line(run_cli: Run, logged_in: Open) -> None:
    assert "No open logins" in run_cli("sessions").err
    first, second = logged_in(name="ann"), logged_in(name="bob")
    listed = json.loads(run_cli("sessions", "list", "--json").out)
    assert [login["user"] for login in listed] == ["key:bob", "key:ann"]
    table = run_cli("sessions", "list").out
    assert "key:ann" in table
    assert "127.0.0.1" in table
    assert run_cli("sessions", "revoke", listed[0]["id"]).out == "The login of key:bob is ended.\n"
    assert run_cli("sessions", "revoke", "--user", "key:ann").out == "1 login of key:ann is ended.\n"
    assert run_cli("sessions", "revoke", "--user", "key:ann").out == "0 logins of key:ann are ended.\n"
    assert run_cli("sessions", "revoke", str(uuid4())).code == 66
    assert run_cli("sessions", "revoke").code == 2
    assert run_cli("sessions", "revoke", listed[0]["id"], "--user", "key:ann").code == 2
    for browser in (first, second):
        assert browser.get("/v1/tasks").status_code == 401
    assert {login["status"] for login in json.loads(run_cli("sessions", "list", "--all", "--json").out)} == {"ended"}


def test_id_of_a_session_can_be_copied_from_a_narrow_terminal(
    run_cli: Run, logged_in: Open, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged_in(name="ann")
    monkeypatch.setattr(console, "width", 80)
    [session] = client.sessions()
    assert session["id"] in run_cli("sessions").out


# ------------------------------------------------------------------------------------------------------------- audit


def audited(database: Engine) -> list[dict[str, Any]]:
    """The rows about logins, the oldest first."""
    with database.connect() as connection:
        return list_rows(connection, AuditFilter(act="login"), limit=10)[::-1]


def test_logins_leave_rows_in_the_audit_log(logged_in: Open, client: Client, database: Engine) -> None:
    browser, other = logged_in(name="ann", namespace="team"), logged_in(name="bob")
    sessions = {login["user"]: login["id"] for login in client.sessions()}
    browser.post("/logout", {"csrf_token": browser.csrf_token()})
    client.revoke_session(sessions["key:bob"])
    begun, _, ended, revoked = audited(database)
    assert [row["act"] for row in (begun, ended, revoked)] == ["login.begin", "login.end", "login.revoke"]
    assert [row["target"] for row in (begun, ended, revoked)] == ["key:ann", "key:ann", "key:bob"]
    assert (begun["actor"], begun["address"], begun["namespace"]) == ("ann", "127.0.0.1", "team")
    assert begun["key_prefix"] == client.api_key("ann")["prefix"]
    assert begun["after"] == {"session": sessions["key:ann"], "kind": "key", "role": "viewer", "seconds": 28800.0}
    assert ended["after"] == {"session": sessions["key:ann"]}
    assert revoked["actor"] == "bootstrap"
    assert revoked["after"] == {"sessions": [sessions["key:bob"]]}
    assert other.get("/v1/tasks").status_code == 401


def test_login_that_cannot_be_recorded_is_refused(browser: Browser, http_api: Api, database: Engine) -> None:
    with database.begin() as connection:
        connection.execute(text("ALTER TABLE audit_log ADD CONSTRAINT never CHECK (act = '') NOT VALID"))
    try:
        refused = browser.log_in(http_api.key)
    finally:
        with database.begin() as connection:
            connection.execute(text("ALTER TABLE audit_log DROP CONSTRAINT never"))
    assert refused.status_code == 503
    assert "minion_session" not in browser.cookies
    with database.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM login_sessions")) == 0


def test_refused_logins_are_counted(browser: Browser, logged_in: Open, http_api: Api, database: Engine) -> None:
    http_api.app.state.refusals.flush(everything=True)
    known = logged_in(name="ann")
    browser.log_in("wrong")
    browser.log_in("wrong")
    browser.get("/v1/tasks", headers={"Cookie": f"minion_session={'A' * 43}"})
    known.request("POST", "/v1/tasks")
    http_api.app.state.refusals.flush(everything=True)
    with database.connect() as connection:
        rows = list_rows(connection, AuditFilter(act="access.refused"), limit=10)
    counted = {row["actor"]: row["after"]["kinds"] for row in rows[::-1]}
    assert counted["(no valid key)"]["401"] == 3
    assert counted["ann"] == {"403": 1}
