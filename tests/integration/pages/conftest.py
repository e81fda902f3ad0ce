"""The pages as a real server, browsers that are logged in, and a Chromium.

site       the API and the pages on a loopback port
client     the Python client of that server, on empty tables
logged_in  a browser without scripts, logged in with a new key: `logged_in("viewer", namespace="ours")`
orchestrated  an orchestrator that is connected, for explanations
chromium   a real Chromium; tests that ask for it are skipped where there is none
visit      a page of that Chromium, logged in: `visit("/tasks", role="admin", dark=True)`
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import pytest
from playwright.sync_api import Browser as Chromium
from playwright.sync_api import Page, sync_playwright
from sqlalchemy import Engine, NullPool, create_engine, make_url

from minions import Client
from orchestrator.api.app import create_app
from orchestrator.api.login.attempts import Attempts
from orchestrator.explain import DISPATCHER
from orchestrator.pages import site as pages
from orchestrator.preparer import prepare_pending
from shared.settings import Settings
from tests.integration.api.conftest import Api, serving
from tests.support.browser import Browser
from tests.support.chromium import ARGUMENTS, find_chromium

Open = Callable[..., Browser]
# Reported by the page to itself: each must stay empty.
WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => window.violations.push(event.violatedDirective));
window.alert = () => window.violations.push("alert");
"""


@pytest.fixture(scope="package")
def site(settings: Settings) -> Iterator[Api]:
    """The API with its pages on the session's servers."""
    app = create_app(settings)
    pages.add_to(app)
    with serving(app) as port:
        yield Api(app, f"http://127.0.0.1:{port}", port, settings.require_api_key())


@pytest.fixture
def client(site: Api, database: Engine) -> Iterator[Client]:
    """The Python client, on empty tables."""
    site.app.state.attempts = Attempts()
    with Client(site.url, site.key, retries=1) as client:
        yield client


@pytest.fixture
def logged_in(client: Client, site: Api) -> Open:
    """A browser without scripts that is logged in with a new key."""

    def make(role: str = "viewer", **bounds: Any) -> Browser:
        key = client.create_api_key(f"{role}-{uuid4()}", role, **bounds)["key"]
        browser = Browser(site.url, site.url)
        site.app.state.attempts = Attempts()
        assert browser.log_in(key).status_code == 303
        return browser

    return make


@pytest.fixture
def orchestrated(database: Engine) -> Iterator[Callable[[], None]]:
    """An orchestrator that is connected; call it to prepare the pending tasks."""
    url = make_url(database.url).update_query_dict({"application_name": DISPATCHER})
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect():
        yield lambda: prepare_pending(database) and None


@dataclass
class Visit:
    """A page in Chromium, with everything that went wrong in it."""

    page: Page
    site: str
    errors: list[str] = field(default_factory=list)

    def go(self, path: str) -> Page:
        """Open a page of the site."""
        self.page.goto(self.site + path)
        return self.page

    def check(self) -> None:
        """Check that no script failed, and that nothing ran or loaded that the policy forbids."""
        assert self.page.evaluate("window.violations") == []
        assert self.errors == []


@pytest.fixture(scope="module")
def chromium() -> Iterator[Chromium]:
    """A real Chromium of this machine."""
    program = find_chromium()
    if program is None:
        pytest.skip("Chromium is not installed: `apt-get install chromium` (Debian) runs the tests in a browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Chromium, client: Client, site: Api) -> Iterator[Callable[..., Visit]]:
    """A page in Chromium that is logged in with a new key."""
    with ExitStack() as stack:

        def make(role: str = "admin", *, dark: bool = False, phone: bool = False, **bounds: Any) -> Visit:
            key = client.create_api_key(f"{role}-{uuid4()}", role, **bounds)["key"]
            site.app.state.attempts = Attempts()
            context = chromium.new_context(
                color_scheme="dark" if dark else "light",
                viewport={"width": 390, "height": 844} if phone else {"width": 1280, "height": 900},
            )
            stack.callback(context.close)
            context.add_init_script(WATCH)
            page = context.new_page()
            page.set_default_timeout(20_000)
            visit = Visit(page, site.url)
            page.on("pageerror", lambda error: visit.errors.append(str(error)))
            page.on("console", lambda said: said.type == "error" and visit.errors.append(said.text))
            page.goto(f"{site.url}/login?return_to=/overview")
            page.get_by_label("API key").fill(key)
            page.get_by_role("button", name="Log in").click()
            page.wait_for_url("**/overview")
            return visit

        yield make
