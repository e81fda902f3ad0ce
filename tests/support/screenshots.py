"""Write the screenshots of the documentation: `python -m tests.support.screenshots` (`make screenshots`).

A whole system runs on its own servers, with the demo's audit and a refund that waits for a person. With a folder as
argument, every page is written there in light, dark and on a phone; without one, the few pictures that the
documentation shows are written to docs/images.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

from minions import Client
from orchestrator.commands.definitions import store
from orchestrator.commands.output import console
from orchestrator.demo.run import run as run_demo
from orchestrator.local.embedded.scratch import scratch_dir
from orchestrator.local.system import LocalSystem, Pool
from orchestrator.pages.navigation import MAIN, MORE
from shared.settings import get_settings
from tests.support.chromium import ARGUMENTS, find_chromium
from tests.support.processes import ROOT, wait_until

IMAGES = ROOT / "docs" / "images"
EXAMPLE = ROOT / "examples" / "refunds" / "refunds.yaml"
POOLS = [Pool("inspect", 2), Pool("classify", 2), Pool("report,default", 1), Pool("refunds", 1)]
REFUND = {
    "kind": "agent",
    "name": "refund",
    "description": "Books a refund that a person has approved.",
    "type": "function",
    "tool": "book_refund",
    "config": {"capabilities": ["refunds"]},
}
LOOKS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light", "viewport": {"width": 960, "height": 600}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 960, "height": 600}},
    "phone": {"color_scheme": "light", "viewport": {"width": 390, "height": 760}},
}
DOCUMENTED = (
    ("overview", "light", 560),
    ("tasks", "light", 460),
    ("task", "dark", 440),
    ("graph", "light", 420),
    ("inbox", "phone", 620),
    ("chain", "light", 560),
    ("decision", "light", 560),
    ("errors", "light", 400),
    ("error", "light", 560),
    ("bulk-new", "light", 460),
    ("agents", "light", 400),
    ("agent", "light", 560),
    ("function", "light", 560),
    ("workers", "light", 400),
    ("capabilities", "light", 460),
    ("analytics", "light", 560),
    ("webhooks", "light", 400),
    ("audit", "light", 460),
)
"""The pictures in the documentation: page, look, and height in pixels, so that each is small."""


def main(folder: Path | None) -> None:
    """Write the pictures to a folder; None: those of the documentation."""
    with demonstrated() as (system, pages), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=ARGUMENTS)
        take(browser, system.facts["api_url"], system.login_link, pages, folder)
        browser.close()


def take(browser: Browser, url: str, login_link: Callable[[], str], pages: dict[str, str], folder: Path | None) -> None:
    """Write the pictures of pages.

    Args:
        url: of the system.
        login_link: makes a link that logs in once.
        pages: addresses by name.
        folder: None: `DOCUMENTED` in the folder of the documentation; else all pages in all looks there.
    """
    wanted = DOCUMENTED if folder is None else [(name, look, None) for look in LOOKS for name in pages]
    for look, options in LOOKS.items():
        page = opened(browser, options, login_link())
        for name, _, height in (each for each in wanted if each[1] == look):
            page.goto(f"{url}{pages[name]}")
            if height is not None:
                page.set_viewport_size({**options["viewport"], "height": height})
            target = IMAGES / f"{name}.png" if folder is None else folder / f"{name}-{look}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            page.screenshot(path=target, full_page=height is None)


@contextmanager
def demonstrated() -> Iterator[tuple[LocalSystem, dict[str, str]]]:
    """Run a system with something to see; yield it with its pages by name."""
    for name in [name for name in os.environ if name.startswith("ANTHROPIC_")]:
        del os.environ[name]
    with scratch_dir() as folder:
        os.environ["MINION_DATA_DIR"] = str(folder)
        settings = get_settings()
        with (
            LocalSystem(settings, POOLS, flower=False, say=print) as system,
            Client(system.facts["api_url"], os.environ["MINION_API_KEY"]) as client,
        ):
            run_demo(client, console=console, data_dir=settings.data_dir, apply=store)
            store(str(EXAMPLE))
            (folder / "refund.json").write_text(json.dumps(REFUND), encoding="utf-8")
            store(str(folder / "refund.json"))
            yield system, pages_of(client)


def pages_of(client: Client) -> dict[str, str]:
    """Return the addresses of pages that have something to show, by name."""
    asked = client.submit("refund", {"order": "A-17", "amount": 30}).id
    wait_until(lambda: client.get(asked).wait_reason == "approval", "the refund waits for a person")
    failed = next(iter(client.tasks(state="failed")))
    audit = next(iter(client.tasks(agent="audit")))
    act = client.start_bulk_act("label", "state:failed", labels={"case": "licences"})["id"]
    wait_until(lambda: client.bulk_act(act)["state"] == "done", "the bulk act is done")
    error = wait_until(lambda: client.errors()["items"], "errors are counted")[0]["fingerprint"]
    return {
        **{place.address.strip("/"): place.address for place in (*MAIN, *MORE)},
        "tasks": "/tasks?q=state%3Afailed+since%3A1d",
        "task": f"/tasks/{failed.id}",
        "chain": f"/tasks/{audit.id}",
        "graph": f"/tasks/{audit.id}/graph",
        "decision": f"/inbox/{asked}",
        "agent": "/agents/audit",
        "agent-try": "/agents/refund/try",
        "function": "/functions/normalise_licence",
        "tool": "/tools/book_refund",
        "error": f"/errors/{error}",
        "bulk-new": "/bulk-acts/new?q=state%3Afailed&act=replay",
        "bulk-act": f"/bulk-acts/{act}",
    }


def opened(browser: Browser, options: dict[str, Any], login_link: str) -> Page:
    """Return a page that is logged in by a link."""
    page = browser.new_context(**options).new_page()
    page.goto(login_link)
    page.wait_for_url("**/overview")
    return page


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
