"""The link that `minion up` prints logs a browser of this machine in, once, for a few minutes."""

from __future__ import annotations

import time
from typing import Any

import pytest
from sqlalchemy import Engine

from minions import Client
from orchestrator.api.app import create_app
from shared.access import login_links
from shared.access.login_links import SECONDS, cookie_of, new_code
from shared.errors import Unauthorized
from tests.integration.api.conftest import Api, serving
from tests.integration.conftest import everything_written
from tests.support.browser import Browser

KEY = b"an administrator's key"


def link(code: str) -> str:
    return f"/login/link?code={code}"


def test_link_logs_in_once(site: Api, client: Client, database: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    code = new_code(site.key.encode())
    browser, other = Browser(site.url, site.url), Browser(site.url, site.url)
    entered = browser.get(link(code))
    assert (entered.status_code, entered.headers["location"]) == (303, "/overview")
    assert browser.get(link(code)).headers["location"] == "/overview", "a second click in the same browser"
    assert browser.get("/overview").status_code == 200
    again = other.get(link(code))
    assert again.status_code == 401
    assert "works once" in again.text
    assert other.cookies == {}
    assert browser.get("/overview").status_code == 200, "the login itself stays"
    acts = [row["act"] for row in client.audit()]
    assert acts.count("login.begin") == 1
    written = everything_written(database, capsys)
    assert code not in written
    assert browser.cookies["minion_session"][0] not in written


def test_looking_at_a_link_does_not_use_it_up(site: Api, client: Client) -> None:
    code, browser = new_code(site.key.encode()), Browser(site.url, site.url)
    looked = browser.request("HEAD", link(code))
    assert (looked.status_code, browser.cookies) == (200, {})
    assert browser.get(link(code)).status_code == 303


@pytest.mark.parametrize("code", ["", "x", "1234567890-" + "a" * 22 + "-" + "0" * 64])
def test_wrong_link_is_refused(site: Api, client: Client, code: str) -> None:
    refused = Browser(site.url, site.url).get(link(code))
    assert refused.status_code == 401
    assert "not a valid link" in refused.text


def test_link_is_for_this_machine(site: Api, client: Client, settings: Any) -> None:
    app = create_app(settings.model_copy(update={"trusted_proxies": ["127.0.0.1"]}))
    with serving(app) as port:
        browser = Browser(site.url, f"http://127.0.0.1:{port}", headers={"X-Forwarded-For": "93.184.215.14"})
        refused = browser.get(link(new_code(site.key.encode())))
    assert refused.status_code == 403
    assert browser.cookies == {}


def test_link_expires_and_belongs_to_its_key() -> None:
    now = time.time()
    code = new_code(KEY, now)
    assert len(cookie_of(KEY, code, now + SECONDS - 1)) == 43
    with pytest.raises(Unauthorized, match="5 minutes old"):
        cookie_of(KEY, code, now + SECONDS + 1)
    with pytest.raises(Unauthorized, match="not a valid link"):
        cookie_of(b"another key", code, now)
    later = f"{int(now) + 9999}{code[10:]}"
    with pytest.raises(Unauthorized, match="not a valid link"):
        cookie_of(KEY, later, now)
    assert login_links.new_code(KEY, now) != code
