"""Browsers log in with OpenID Connect, at a provider that works, is down, is slow, or lies."""

from __future__ import annotations

import json
import threading
import time
import warnings
from base64 import urlsafe_b64decode
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx2
import pytest
from fastapi import FastAPI
from joserfc.jwk import RSAKey
from sqlalchemy import Engine, text

from minions import Client
from orchestrator.api.app import create_app
from orchestrator.api.login import provider as provider_module
from orchestrator.api.login.attempts import PER_MINUTE, Attempts
from orchestrator.api.login.mapping import RoleMapping
from orchestrator.api.login.provider import Provider
from shared.audit.log import AuditFilter, list_rows
from shared.errors import NotConfigured, Unavailable
from shared.settings import Settings
from tests.conftest import Define
from tests.integration.api.conftest import Api, serving
from tests.integration.conftest import ACT, InlineWorker, everything_written
from tests.support.browser import Browser
from tests.support.identity_provider import CLIENT, SECRET, IdentityProvider, providing
from tests.support.processes import wait_until

SITE = "https://minions.example.com"
ROLES = {
    "minions-admins": "admin",
    "minions-operators": "operator",
    "acme": {"role": "submitter", "namespace": "shop", "tenant": "acme:*", "payloads": False},
    "customers": {"role": "viewer", "namespace": "shop", "tenant_claim": "org"},
}


@dataclass(frozen=True)
class Installation:
    """An API with a provider."""

    app: FastAPI
    address: str
    provider: IdentityProvider

    def browser(self) -> Browser:
        """A browser that is not logged in."""
        return Browser(SITE, self.address)

    def logged_in(self) -> Browser:
        """A browser that is logged in as the provider's user."""
        browser = self.browser()
        account = browser.follow(browser.get("/login/oidc"))
        assert "You are logged in" in account.text, account.text
        return browser


@pytest.fixture
def provider() -> Iterator[IdentityProvider]:
    with providing() as running:
        yield running


@pytest.fixture(scope="module")
def served(settings: Settings) -> Iterator[tuple[FastAPI, str]]:
    """An API whose provider each test replaces."""
    app = create_app(settings.model_copy(update={"public_url": SITE}))
    with serving(app) as port:
        yield app, f"http://127.0.0.1:{port}"


@pytest.fixture
def installation(
    provider: IdentityProvider, settings: Settings, database: Engine, served: tuple[FastAPI, str]
) -> Iterator[Installation]:
    app, address = served
    own = with_provider(settings, provider)
    app.state.provider, app.state.role_mapping, app.state.attempts = Provider(own), RoleMapping(own), Attempts()
    with patch.object(provider_module, "PAUSE_SECONDS", 0.0):
        yield Installation(app, address, provider)


def with_provider(settings: Settings, provider: IdentityProvider, **changed: Any) -> Settings:
    """The settings of an installation that uses the provider."""
    own = Settings(
        public_url=SITE,
        oidc_issuer=provider.issuer,
        oidc_client_id=CLIENT,
        oidc_client_secret=SECRET,
        oidc_roles=ROLES,
        **changed,
    )
    return own.model_copy(update={"api_port": 0})


def refused(installation: Installation, status: int = 401) -> str:
    """The text of the page on which a login ends without success."""
    browser = installation.browser()
    page = browser.follow(browser.get("/login/oidc"))
    assert page.status_code == status, page.text
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert "__Host-minion_session" not in browser.cookies
    return page.text.replace("&#39;", "'")


# ----------------------------------------------------------------------------------------------------------- it works


def test_login_with_a_provider(installation: Installation, client: Client, database: Engine) -> None:
    browser = installation.browser()
    assert f"Log in with 127.0.0.1:{installation.provider.port}" in browser.get("/login?return_to=/account").text
    began = browser.get("/login/oidc?return_to=/account")
    asked = {name: values[0] for name, values in parse_qs(urlsplit(began.headers["location"]).query).items()}
    assert asked["redirect_uri"] == f"{SITE}/login/oidc/callback"
    assert asked["code_challenge_method"] == "S256"
    assert len({asked["state"], asked["nonce"], asked["code_challenge"]}) == 3
    account = browser.follow(began)
    assert "<dd>oidc:alice@example.com</dd>" in account.text
    assert "<dd>operator</dd>" in account.text
    assert browser.attributes("__Host-minion_session")["samesite"] == "strict"
    assert browser.attributes("__Host-minion_session")["max-age"] == "3600"
    assert list(browser.cookies) == ["__Host-minion_session"]
    assert installation.provider.token_requests[0]["code_verifier"]
    # The one role that the settings name first counts, and it is that of every endpoint.
    assert browser.get("/v1/tasks").status_code == 200
    csrf = {"Minion-CSRF": browser.csrf_token()}
    paused = browser.request("PUT", "/v1/pauses/agent/Echo", headers=csrf)
    assert paused.json()["created_by"] == "oidc:alice@example.com"
    created = browser.request("POST", "/v1/keys", json={"name": "a", "role": "viewer"}, headers=csrf)
    assert created.status_code == 403
    assert "The login 'oidc:alice@example.com' (role operator) lacks" in created.json()["detail"]
    with database.connect() as connection:
        [begun] = list_rows(connection, AuditFilter(act="login.begin"), limit=5)
        [changed] = list_rows(connection, AuditFilter(act="pause"), limit=5)
    assert (begun["actor"], begun["target"]) == ("oidc:alice@example.com", "oidc:alice@example.com")
    assert (begun["after"]["subject"], begun["after"]["role"]) == ("248289761001", "operator")
    assert changed["actor"] == "oidc:alice@example.com"
    assert changed["key_prefix"] == begun["key_prefix"]
    assert changed["key_prefix"].startswith("session:")
    [session] = client.sessions()
    assert (session["user"], session["kind"], session["role"]) == ("oidc:alice@example.com", "oidc", "operator")
    assert client.revoke_sessions_of("oidc:alice@example.com") == [session["id"]]
    installation.app.state.logins.forget()
    assert browser.get("/v1/tasks").status_code == 401


@pytest.mark.parametrize(
    ("claims", "shown"),
    [
        ({"groups": ["minions-admins", "minions-operators"]}, ("oidc:alice@example.com", "admin", "the whole")),
        ({"groups": "minions-operators"}, ("oidc:alice@example.com", "operator", "the whole")),
        ({"groups": ["acme"]}, ("oidc:alice@example.com", "submitter", "the namespace shop, the tenant key acme:*")),
        ({"groups": ["customers"], "org": "acme"}, ("oidc:alice@example.com", "viewer", "the tenant key acme<")),
        ({"email_verified": False}, ("oidc:248289761001", "operator", "the whole")),
        ({"email_verified": None}, ("oidc:248289761001", "operator", "the whole")),
        ({"email": "a\u202eb@example.com"}, ("oidc:248289761001", "operator", "the whole")),
        ({"email": "<b>@example.com"}, ("oidc:&lt;b&gt;@example.com", "operator", "the whole")),
        ({"aud": [CLIENT, "other"], "azp": CLIENT}, ("oidc:alice@example.com", "operator", "the whole")),
    ],
    ids=["first", "text", "bounds", "tenant", "unverified", "unknown", "direction", "markup", "audiences"],
)
def test_claims_give_name_role_and_bounds(
    installation: Installation, claims: dict[str, Any], shown: tuple[str, str, str]
) -> None:
    installation.provider.lies = claims
    page = installation.logged_in().get("/account").text
    user, role, bounds = shown
    assert f"<dd>{user}</dd>" in page
    assert f"<dd>{role}</dd>" in page
    assert bounds in page


@pytest.mark.parametrize("verified", [None, False, "true", 1])
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"oidc_role_claim": "email", "oidc_roles": {"alice@example.com": "admin"}}, "have no role here"),
        ({"oidc_roles": {"staff": {"role": "viewer", "tenant_claim": "email"}}}, "does not name one"),
    ],
    ids=["role", "bound"],
)
def test_unverified_address_gives_no_role_and_no_bound(
    installation: Installation, settings: Settings, verified: Any, changed: dict[str, Any], said: str
) -> None:
    own = Settings(**{"oidc_roles": ROLES, **changed})
    installation.app.state.role_mapping = RoleMapping(own)
    installation.logged_in()
    installation.provider.lies = {"email_verified": verified}
    assert said in refused(installation)


def test_rotated_key_of_the_provider_is_read_again(installation: Installation) -> None:
    installation.logged_in()
    installation.logged_in()
    assert installation.provider.requests.count("/jwks") == 1
    assert installation.provider.requests.count("/.well-known/openid-configuration") == 1
    installation.provider.rotate_key()
    installation.logged_in()
    assert installation.provider.requests.count("/jwks") == 2


def test_unknown_keys_cause_few_requests(installation: Installation) -> None:
    """A token with an invented key is refused without asking the provider each time."""
    installation.logged_in()
    announced = installation.provider.key.as_dict(private=False)
    installation.provider.answers["/jwks"] = 200, json.dumps({"keys": [announced]}).encode(), {}
    installation.provider.rotate_key()
    with patch.object(provider_module, "PAUSE_SECONDS", 3600.0):
        assert "No key for kid" in refused(installation)
        asked = installation.provider.requests.count("/jwks")
        assert "No key for kid" in refused(installation)
    assert installation.provider.requests.count("/jwks") == asked == 2


def test_expired_login_is_renewed_with_the_role_of_now(installation: Installation, database: Engine) -> None:
    browser = installation.logged_in()
    installation.provider.claims["groups"] = ["acme"]
    with database.begin() as connection:
        connection.execute(text("UPDATE login_sessions SET expires_at = now() - interval '1 s'"))
    installation.app.state.logins.forget()
    assert browser.get("/v1/tasks").status_code == 401
    assert browser.get("/account").headers["location"] == "/login/oidc?return_to=/account"
    assert "<dd>submitter</dd>" in browser.follow(browser.get("/account")).text
    installation.provider.claims["groups"] = []
    with database.begin() as connection:
        connection.execute(text("UPDATE login_sessions SET expires_at = now() - interval '1 s'"))
    installation.app.state.logins.forget()
    gone = browser.follow(browser.get("/account"))
    assert gone.status_code == 401
    assert "have no role here" in gone.text


def test_login_that_was_idle_or_revoked_is_not_renewed(
    installation: Installation, database: Engine, client: Client
) -> None:
    browser = installation.logged_in()
    with database.begin() as connection:
        connection.execute(
            text("UPDATE login_sessions SET last_used_at = now() - interval '2 h', expires_at = now() - interval '1 s'")
        )
    installation.app.state.logins.forget()
    assert browser.get("/account").headers["location"] == "/login?return_to=/account"
    browser = installation.logged_in()
    client.revoke_sessions_of("oidc:alice@example.com")
    installation.app.state.logins.forget()
    assert browser.get("/account").headers["location"] == "/login?return_to=/account"


def test_user_decides_by_a_policy_that_names_the_user(
    installation: Installation, client: Client, database: Engine, define: Define, inline_worker: InlineWorker
) -> None:
    policy = {"keys": ["oidc:alice@example.com"], "not_submitter": True}
    config = {"capabilities": ["work"]}
    define(
        {**ACT, "effect": "unsafe", "approval": policy},
        {"kind": "agent", "name": "Payer", "type": "function", "tool": "act", "config": config},
    )
    installation.provider.claims["groups"] = ["minions-admins"]
    alice = installation.logged_in()
    installation.provider.claims |= {"sub": "5", "email": "bob@example.com"}
    bob = installation.logged_in()
    csrf = {browser: {"Minion-CSRF": browser.csrf_token()} for browser in (alice, bob)}
    request = {"agent": "Payer", "input": {"do": "answer", "answer": 5}}
    own = alice.request("POST", "/v1/tasks", json=request, headers=csrf[alice]).json()
    other = client.submit(**request).id
    inline_worker._round()
    inline_worker._round()

    def decide(browser: Browser, task: object) -> httpx2.Response:
        sent = {"verdict": "approve", "step": 1}
        return browser.request("POST", f"/v1/tasks/{task}/decisions", json=sent, headers=csrf[browser])

    assert own["submitted_by"] == "oidc:alice@example.com"
    assert "submitted this task" in decide(alice, own["id"]).json()["detail"]
    assert decide(bob, other).status_code == 403
    assert decide(alice, other).status_code == 200
    with database.connect() as connection:
        [row] = list_rows(connection, AuditFilter(act="task.decide"), limit=5)
    assert (row["actor"], row["target"]) == ("oidc:alice@example.com", str(other))
    assert row["key_prefix"].startswith("session:")


# ------------------------------------------------------------------------------------------------- a provider that lies


@pytest.mark.parametrize(
    ("lies", "said"),
    [
        ({"nonce": "another"}, "'nonce'"),
        ({"nonce": None}, "'nonce'"),
        ({"aud": "another"}, "'aud'"),
        ({"aud": ["another"], "azp": CLIENT}, "'aud'"),
        ({"aud": None}, "aud"),
        ({"aud": [CLIENT, "another"]}, "azp"),
        ({"aud": [CLIENT, "another"], "azp": "another"}, "azp"),
        ({"iss": "https://another.example"}, "'iss'"),
        ({"iss": None}, "iss"),
        ({"sub": None}, "sub"),
        ({"sub": 5}, "sub"),
        ({"sub": ""}, "not one"),
        ({"exp": None}, "exp"),
        ({"exp": "tomorrow"}, "exp"),
        ({"exp": float("nan")}, "exp"),
        ({"exp": 1}, "was valid until 1970-01-01 00:00:01 UTC, and here it is"),
        ({"iat": None}, "iat"),
        ({"iat": 1e300}, "is not valid before a time out of range"),
        ({"groups": None}, "have no role here"),
        ({"groups": []}, "have no role here"),
        ({"groups": {"minions-admins": True}}, "have no role here"),
        ({"groups": ["Minions-Admins", "minions-admins ", 5, None, ["minions-admins"]]}, "have no role here"),
        ({"groups": ["customers"]}, "'org'"),
        ({"groups": ["customers"], "org": "*"}, "'org'"),
        ({"groups": ["customers"], "org": "acme*"}, "'org'"),
        ({"groups": ["customers"], "org": ["acme"]}, "'org'"),
        ({"groups": ["customers"], "org": "a\x1fb"}, "'org'"),
        ({"email": None, "sub": "x" * 500}, "not one"),
        ({"at_hash": "wrong"}, "at_hash"),
        ({"at_hash": 5}, "not valid"),
    ],
)
def test_token_that_lies_opens_no_login(installation: Installation, lies: dict[str, Any], said: str) -> None:
    lies = {**({"email_verified": None} if "sub" in lies else {}), **lies}
    installation.provider.lies = lies
    assert said in refused(installation)


@pytest.mark.parametrize("algorithm", ["none", "HS256"])
def test_token_without_a_public_key_signature_opens_no_login(installation: Installation, algorithm: str) -> None:
    installation.provider.algorithm = algorithm
    assert "not valid for this login" in refused(installation)


def test_token_of_another_signer_opens_no_login(installation: Installation) -> None:
    installation.logged_in()
    installation.provider.key = RSAKey.generate_key(2048, {"kid": str(installation.provider.key.kid)})
    assert "bad_signature" in refused(installation)


def test_short_key_of_the_provider_is_not_used(installation: Installation) -> None:
    installation.provider.key = rsa_key(1024)
    assert "No key for kid" in refused(installation)


def rsa_key(bits: int) -> RSAKey:
    """A key; the library warns of short ones."""
    with warnings.catch_warnings(action="ignore"):
        return RSAKey.generate_key(bits, {"kid": "short"})


def test_sets_with_odd_keys_are_read(installation: Installation) -> None:
    own = installation.provider.key.as_dict(private=False)
    odd: list[Any] = [
        *({**own, "kid": f"other-{number}"} for number in range(50)),
        *({**own, "use": use} for use in ("enc", 5, ["sig"])),
        {**own, "alg": "RSA-OAEP"},
        {**own, "kid": {}},
        {"kty": "oct", "k": "c2VjcmV0", "kid": own["kid"]},
        {"kty": "EC", "crv": "P-256", "x": "a", "y": "b", "kid": own["kid"]},
        {"kty": ["RSA"]},
        {},
        None,
    ]
    installation.provider.answers["/jwks"] = 200, json.dumps({"keys": [*odd, own]}).encode(), {}
    installation.logged_in()
    installation.app.state.provider = Provider(with_provider(Settings(), installation.provider))
    installation.provider.answers["/jwks"] = 200, json.dumps({"keys": odd}).encode(), {}
    assert "No key for kid" in refused(installation)


@pytest.mark.parametrize("hours", [-1, 1])
@pytest.mark.parametrize("claim", ["iat", "nbf", "exp"])
def test_clocks_that_differ_by_an_hour_are_named(
    installation: Installation, database: Engine, claim: str, hours: int
) -> None:
    with database.connect() as connection:
        now = connection.execute(text("SELECT extract(epoch FROM now())::int")).scalar_one()
    installation.provider.lies = {"iat": now, "exp": now + 300, claim: now + hours * 3600}
    accepted = (claim == "exp") == (hours > 0)
    if accepted:
        installation.logged_in()
        return
    page = refused(installation)
    assert ("was valid until" if claim == "exp" else "is not valid before") in page
    assert "set it right" in page


@pytest.mark.parametrize("hours", [-1, 1])
def test_clock_of_the_process_does_not_matter(installation: Installation, hours: int) -> None:
    real = time.time
    now = int(real())
    installation.provider.lies = {"iat": now, "exp": now + 300}
    with patch("time.time", lambda: real() + hours * 3600):
        installation.logged_in()


@pytest.mark.parametrize(
    "change",
    [
        {"issuer": "https://another.example"},
        {"issuer": None},
        {"token_endpoint": None},
        {"token_endpoint": 5},
        {"token_endpoint": "file:///etc/passwd"},
        {"authorization_endpoint": "javascript:alert(1)"},
        {"authorization_endpoint": "https://user:password@example.com/"},
        {"authorization_endpoint": "https://example.com/\r\nSet-Cookie: a=b"},
        {"jwks_uri": "https://"},
    ],
)
def test_announcement_that_lies_is_refused(installation: Installation, change: dict[str, Any]) -> None:
    announced = {**installation.provider.metadata(), **change}
    path = "/.well-known/openid-configuration"
    installation.provider.answers[path] = 200, json.dumps(announced).encode(), {}
    assert f"127.0.0.1:{installation.provider.port} announces" in refused(installation, 503)
    # Nothing else is affected, and the login works as soon as the provider does.
    del installation.provider.answers[path]
    installation.logged_in()


def test_endpoints_of_a_provider_with_https_need_https(settings: Settings, database: Engine) -> None:
    own = Provider(Settings(public_url=SITE, oidc_issuer="https://id.example.com", oidc_client_id="x"))
    own._check_endpoint("token_endpoint", "https://id.example.com/token?p=x")
    for url in ("http://id.example.com/token", "http://127.0.0.1/token", "http://169.254.169.254/"):
        with pytest.raises(Unavailable, match="announces no usable token_endpoint"):
            own._check_endpoint("token_endpoint", url)


# ---------------------------------------------------------------------------------------- a provider that does not work


@pytest.mark.parametrize("path", ["/.well-known/openid-configuration", "/token", "/jwks"])
@pytest.mark.parametrize(
    "answer",
    [
        (500, b"", {}),
        (404, b"{}", {}),
        (302, b"", {"Location": "http://127.0.0.1:1/"}),
        (200, b"<html>", {}),
        (200, b"[]", {}),
        (200, b"", {}),
        (200, b'{"keys": ' + b"[" * 100_000, {}),
        (200, b'{"a": "' + b"x" * (2 << 20) + b'"}', {}),
        (200, b"\x1f\x8b", {"Content-Encoding": "gzip"}),
    ],
    ids=["500", "404", "redirect", "html", "list", "empty", "deep", "large", "compressed"],
)
def test_answer_that_is_not_one_is_an_error_page(
    installation: Installation, path: str, answer: tuple[int, bytes, dict[str, str]]
) -> None:
    installation.provider.answers[path] = answer
    browser = installation.browser()
    page = browser.follow(browser.get("/login/oidc"))
    has_no_tokens = path == "/token" and answer[1] == b"{}"
    assert page.status_code == (401 if has_no_tokens else 503)
    assert "identity provider" in page.text
    assert 'href="/login?return_to=' in page.text
    assert "__Host-minion_session" not in browser.cookies


def test_provider_that_is_down_is_named_and_affects_nothing_else(
    provider: IdentityProvider, settings: Settings, database: Engine, capsys: pytest.CaptureFixture[str], http_api: Api
) -> None:
    own = with_provider(settings, provider).model_copy(update={"oidc_issuer": "http://127.0.0.1:1"})
    with serving(create_app(own)) as port:
        browser = Browser(SITE, f"http://127.0.0.1:{port}")
        page = browser.get("/login/oidc")
        assert page.status_code == 503
        assert int(page.headers["retry-after"]) > 0
        assert "The identity provider at 127.0.0.1:1 cannot be used at the moment" in page.text
        assert browser.log_in(http_api.key).status_code == 303
        assert browser.get("/v1/tasks").status_code == 200
    assert "identity_provider_unavailable" in capsys.readouterr().out


@pytest.mark.parametrize("path", ["/.well-known/openid-configuration", "/token", "/jwks"])
def test_provider_that_hangs_holds_nothing(installation: Installation, path: str, http_api: Api) -> None:
    """More logins wait for it than the API has threads, and all other requests are served."""
    installation.provider.hanging.add(path)
    installation.app.state.attempts = _Unlimited()
    pages: list[httpx2.Response] = []

    def log_in() -> None:
        browser = installation.browser()
        pages.append(browser.follow(browser.get("/login/oidc")))

    with patch.object(provider_module, "CALL_SECONDS", 60.0):
        waiting = [threading.Thread(target=log_in) for _ in range(60)]
        for thread in waiting:
            thread.start()
        wait_until(lambda: path in installation.provider.requests, "a login waits for the provider")
        bearer = {"Authorization": f"Bearer {http_api.key}"}
        with httpx2.Client(base_url=installation.address, headers=bearer, trust_env=False) as http:
            for _ in range(20):
                assert http.get("/v1/tasks").status_code == 200
        assert not pages
        installation.provider.released.set()
        for thread in waiting:
            thread.join(60)
    assert [page.status_code for page in pages] == [200] * 60


@pytest.mark.parametrize("path", ["/.well-known/openid-configuration", "/token", "/jwks"])
def test_provider_that_hangs_is_given_up(installation: Installation, path: str) -> None:
    installation.provider.hanging.add(path)
    with patch.object(provider_module, "CALL_SECONDS", 0.2):
        assert "it did not answer within 0.2 s" in refused(installation, 503)


class _Unlimited(Attempts):
    def count(self, address: str | None) -> None:
        pass


def test_known_keys_are_used_while_the_provider_announces_nothing(installation: Installation) -> None:
    installation.logged_in()
    for path in ("/.well-known/openid-configuration", "/jwks"):
        installation.provider.answers[path] = 500, b"", {}
    with patch.object(provider_module, "KNOWN_SECONDS", 0.0):
        installation.logged_in()


# --------------------------------------------------------------------------------------------------- a hostile browser


def test_answer_for_another_browser_is_refused(installation: Installation) -> None:
    """An attacker sends the victim a link with an own code, or plants a login."""
    attacker, victim = installation.browser(), installation.browser()
    began = attacker.get("/login/oidc")
    with httpx2.Client(trust_env=False) as http:
        answer = http.get(began.headers["location"]).headers["location"]
    without = victim.get(answer)
    assert without.status_code == 401
    assert "was not begun in this browser" in without.text
    victim.get("/login/oidc")
    other = victim.get(answer)
    assert other.status_code == 401
    assert "was not begun in this browser" in other.text
    assert installation.provider.token_requests == []
    assert "You are logged in" in attacker.follow(attacker.get(answer)).text
    # The same answer opens no second login.
    assert attacker.get(answer).status_code == 401


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"state": ""}, "was not begun in this browser"),
        ({"state": "é\x00"}, "was not begun in this browser"),
        ({"code": ""}, "has no code"),
        ({"code": "another"}, "invalid_grant"),
        ({"iss": "https://another.example"}, "another identity provider"),
        ({"error": "access_denied<script>"}, "access_denied&lt;script&gt;"),
    ],
)
def test_callback_with_changed_parameters_is_refused(
    installation: Installation, change: dict[str, str], said: str
) -> None:
    browser = installation.browser()
    began = browser.get("/login/oidc?return_to=/docs")
    with httpx2.Client(trust_env=False) as http:
        answer = urlsplit(http.get(began.headers["location"]).headers["location"])
    query = {name: values[0] for name, values in parse_qs(answer.query).items()} | change
    page = browser.get(f"{answer.path}?{urlencode(query)}")
    assert page.status_code == 401
    assert said in page.text
    # The next attempt leads to the same page, if this browser has begun this one.
    again = "/account" if "state" in change else "/docs"
    assert f'href="/login?return_to={again}"' in page.text
    assert "__Host-minion_session" not in browser.cookies


def test_answer_without_a_name_is_refused_if_the_provider_announces_names(installation: Installation) -> None:
    announced = {**installation.provider.metadata(), "authorization_response_iss_parameter_supported": True}
    path = "/.well-known/openid-configuration"
    installation.provider.answers[path] = 200, json.dumps(announced).encode(), {}
    installation.logged_in()
    browser = installation.browser()
    began = browser.get("/login/oidc")
    with httpx2.Client(trust_env=False) as http:
        answer = http.get(began.headers["location"]).headers["location"]
    page = browser.get(answer.partition("&iss=")[0])
    assert page.status_code == 401
    assert "does not name it" in page.text


@pytest.mark.parametrize("cookie", ["", "x", "A" * 43, f"{'A' * 43}.", f"{'A' * 43}.!!", f"{'A' * 43}.L2V2aWw"])
def test_malformed_cookie_of_an_attempt_is_refused(installation: Installation, cookie: str) -> None:
    page = installation.browser().get(
        "/login/oidc/callback?state=x&code=y", headers={"Cookie": f"__Host-minion_oidc_x={cookie}"}
    )
    assert page.status_code == 401


def _attempt(browser: Browser) -> str:
    """The cookie of the login that the browser has begun."""
    [value] = [value for name, (value, _) in browser.cookies.items() if name.startswith("__Host-minion_oidc_")]
    return value


def test_login_in_several_tabs(installation: Installation) -> None:
    """All tabs of a browser are led to the provider when the login expires."""
    browser = installation.browser()
    first, second = browser.get("/login/oidc"), browser.get("/login/oidc?return_to=/docs")
    assert "You are logged in" in browser.follow(first).text
    assert browser.follow(second).url.path == "/docs"
    assert list(browser.cookies) == ["__Host-minion_session"]


def test_return_path_of_a_login_is_checked(installation: Installation) -> None:
    browser = installation.browser()
    browser.get("/login/oidc?return_to=https://evil.example")
    kept = _attempt(browser).partition(".")[2]
    assert urlsafe_b64decode(kept) == b"/account"
    browser = installation.browser()
    assert "Minions 0" in browser.follow(browser.get("/login/oidc?return_to=/")).text


def test_host_header_changes_no_address(installation: Installation) -> None:
    browser = installation.browser()
    browser.headers = {"Host": "evil.example", "X-Forwarded-Host": "evil.example"}
    began = browser.get("/login/oidc")
    asked = parse_qs(urlsplit(began.headers["location"]).query)
    assert asked["redirect_uri"] == [f"{SITE}/login/oidc/callback"]
    assert "evil" not in str(began.headers)


def test_attempts_at_the_callback_are_limited(installation: Installation) -> None:
    browser = installation.browser()
    statuses = []
    for _ in range(PER_MINUTE + 1):
        began = browser.get("/login/oidc")
        state = parse_qs(urlsplit(began.headers["location"]).query)["state"][0]
        statuses.append(browser.get("/login/oidc/callback", params={"state": state, "code": "x"}).status_code)
    assert statuses == [401] * PER_MINUTE + [429]
    assert len(installation.provider.token_requests) == PER_MINUTE


def test_secrets_are_written_nowhere(
    installation: Installation, database: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    browser = installation.browser()
    began = browser.get("/login/oidc")
    attempt = _attempt(browser).partition(".")[0]
    browser.follow(began)
    installation.provider.lies = {"nonce": "x"}
    pages = refused(installation)
    secrets = [
        attempt,
        browser.cookies["__Host-minion_session"][0],
        installation.provider.token_requests[0]["code"],
        installation.provider.token_requests[0]["code_verifier"],
        SECRET,
        "of-the-provider",
    ]
    written = everything_written(database, capsys) + pages
    assert [secret for secret in secrets if secret in written] == []


# ------------------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"oidc_client_id": None}, "must be set together"),
        ({"oidc_issuer": None}, "must be set together"),
        ({"public_url": None}, "MINION_PUBLIC_URL is not"),
        ({"oidc_scopes": "profile"}, "MINION_OIDC_SCOPES must contain openid"),
        ({"oidc_roles": {}}, "MINION_OIDC_ROLES is empty"),
        ({"oidc_roles": {"a": "king"}}, "MINION_OIDC_ROLES: 'a': role"),
        ({"oidc_roles": {"a": 5}}, "MINION_OIDC_ROLES: 'a'"),
        ({"oidc_roles": {"a": {"role": "viewer", "tenants": "x"}}}, "tenants"),
        ({"oidc_roles": {"a": {"role": "viewer", "tenant": "x", "tenant_claim": "y"}}}, "Remove one of them"),
    ],
)
def test_incomplete_settings_stop_the_process(
    provider: IdentityProvider, settings: Settings, database: Engine, changed: dict[str, Any], said: str
) -> None:
    with pytest.raises(NotConfigured, match=said):
        create_app(with_provider(settings, provider).model_copy(update=changed))
