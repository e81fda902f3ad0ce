"""Where the pages are served: below a path behind a proxy, and over HTTP on a private network."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from html import unescape
from typing import Any

import pytest
from sqlalchemy import Engine

from orchestrator.api.app import create_app
from orchestrator.pages import site as pages
from shared.errors import NotConfigured
from shared.settings import Settings
from tests.integration.api.conftest import serving
from tests.integration.api.test_alerts import add
from tests.support.browser import Browser, hidden

Serve = Callable[..., Browser]


@pytest.fixture
def serve(settings: Settings, database: Engine) -> Iterator[Serve]:
    """A browser at an installation with these settings."""
    with ExitStack() as stack:

        def make(public: str, **changes: Any) -> Browser:
            app = create_app(settings.model_copy(update={"public_url": public, **changes}))
            pages.add_to(app)
            port = stack.enter_context(serving(app))
            return Browser(public, f"http://127.0.0.1:{port}")

        yield make


@pytest.mark.parametrize("public", ["https://example.com", "http://127.0.0.1:8700"])
@pytest.mark.parametrize("is_removed", [True, False], ids=["proxy removes the path", "proxy keeps the path"])
def test_installation_below_a_path(
    serve: Serve, settings: Settings, database: Engine, public: str, is_removed: bool
) -> None:
    browser = serve(public, base_path="/minions")
    if is_removed:
        browser.site += "/minions"  # what the browser asks for, and the server does not hear
    get = (lambda path: browser.get(browser.site + path.removeprefix("/minions"))) if is_removed else browser.get
    post: Any = (
        (lambda path, fields: browser.post(browser.site + path.removeprefix("/minions"), fields))
        if is_removed
        else browser.post
    )
    seen = get("/minions/overview")
    assert seen.headers["location"] == "/minions/login?return_to=%2Foverview"
    form = get(seen.headers["location"])
    assert 'action="/minions/login"' in form.text
    entered = post("/minions/login", {**hidden(form.text), "key": settings.require_api_key()})
    assert entered.headers["location"] == "/minions/overview"
    secure = public.startswith("https")
    name = "__Secure-minion_session" if secure else "minion_session"
    assert browser.attributes(name)["path"] == "/minions"
    assert bool(browser.attributes(name)["secure"]) == secure
    shown = (
        "overview",
        "tasks",
        "inbox",
        "agents",
        "account",
        "docs",
        "errors",
        "workers",
        "capabilities",
        "analytics",
    )
    for path in (f"/minions/{name}" for name in shown):
        page = get(path)
        assert page.status_code == 200, path
        links = re.findall(r'(?:src|href|action|data-stream)="([^"#]*)"', page.text)
        assert links, path
        for each in links:
            assert each.startswith(("/minions/", "data:")), (path, each)
            if not each.startswith("data:") and "/live" not in each and "logout" not in each:
                assert get(unescape(each)).status_code in (200, 303), (path, each)
    alert = add(database, "dead_letters", None)
    for path in ("/schedules", "/limits", "/keys", "/alerts", f"/alerts/{alert}", "/audit"):
        links = re.findall(r'(?:src|href|action|data-stream)="([^"#]*)"', get(f"/minions{path}").text)
        assert links, path
        assert [each for each in links if not each.startswith(("/minions/", "data:"))] == [], path
    assert get(f"/minions/v1/alerts/{alert}").json()["link"] == f"{public}/minions/alerts/{alert}"
    assert f'href="/minions/alerts/{alert}"' in get("/minions/overview").text
    assert get("/minions/openapi.json").json()["servers"] == [{"url": "/minions"}]


@pytest.mark.parametrize("base", ["/tasks", "/v1/minions", "/docs", "/assets"])
def test_base_path_like_an_address_of_ours_is_refused(settings: Settings, base: str) -> None:
    app = create_app(settings.model_copy(update={"base_path": base}))
    with pytest.raises(NotConfigured, match=f"addresses that begin with {base.removesuffix('/minions')}"):
        pages.add_to(app)


def test_login_over_http_on_a_private_network(serve: Serve, settings: Settings) -> None:
    browser = serve("http://10.0.0.5:8700", api_host="127.0.0.1")
    form = browser.get("/login")
    assert browser.post("/login", {**hidden(form.text), "key": settings.require_api_key()}).status_code == 303
    assert not browser.attributes("minion_session")["secure"]
    assert browser.get("/overview").status_code == 200
