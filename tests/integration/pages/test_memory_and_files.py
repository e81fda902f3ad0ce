"""The pages of memory and of files."""

from __future__ import annotations

from collections.abc import Callable
from html import unescape
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect
from sqlalchemy import Engine

from minions import Client
from shared.access.roles import MASK
from tests.integration.api.test_memories import remember as remember
from tests.integration.pages.conftest import Open
from tests.integration.pages.test_in_chromium import HOSTILE
from tests.support.browser import Browser
from tests.support.media_files import png

PATH = "/memories/" + HOSTILE.replace("/", "|").translate(dict.fromkeys((0x1B, 0x07, 0x202E, 0x202C, 0x200B)))
NOTE = {"command": "create", "path": PATH, "file_text": f"{HOSTILE}\n"}
IMAGE_NAME = "<img src=x onerror=alert(1)>'\"&amp;.png"


def post(browser: Browser, address: str, **fields: str) -> Any:
    return browser.post(address, {**fields, "csrf_token": browser.csrf_token()})


def test_hostile_memory_and_files_are_text(
    visit: Any, client: Client, remember: Callable[..., str], database: Engine
) -> None:
    store = remember("<b>ann</b>", NOTE)
    client.upload(png(4, 3), name=IMAGE_NAME)
    for options in ({}, {"dark": True}, {"phone": True}):
        visited = visit("admin", **options)
        for path in ("/memory", f"/memory/{store}", "/files"):
            page = visited.go(path)
            assert page.locator("main img, main b, main script").count() == 0, path
            found = Axe().run(page)
            assert found.violations_count == 0, f"{path} {options}\n{found.generate_report()}"
            assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), path
        visited.check()
    page = visited.go("/memory")
    page.get_by_role("link", name="tenant <b>ann</b>").click()
    address = page.get_by_role("row").get_by_role("link").first.get_attribute("href")
    raw = page.request.get(f"{visited.site}{address}")
    assert (raw.headers["content-type"], raw.text()) == ("text/plain; charset=utf-8", f"{HOSTILE}\n")
    page.get_by_role("button", name="Delete").first.click()
    expect(page.get_by_text("Its earlier versions stay")).to_be_visible()
    expect(page.get_by_text("The store has no files.")).to_be_visible()
    page.get_by_text("Delete the store…").click()
    page.get_by_role("button", name="Delete").click()
    expect(page.get_by_text("Deleted, with all versions of its files.")).to_be_visible()
    assert list(client.memory_stores()) == []


def test_memory_of_another_namespace_is_unknown(logged_in: Open, remember: Callable[..., str]) -> None:
    store = remember("ann", NOTE)
    bound = logged_in("admin", namespace="ours")
    assert "ann" not in bound.get("/memory").text
    for path in (f"/memory/{store}", f"/memory/{store}/raw?path=/memories/x"):
        assert bound.get(path).status_code == 404, path
    for act in ("delete", "delete-file"):
        assert post(bound, f"/memory/{store}/{act}", path=PATH).status_code == 404, act


def test_memory_is_masked_without_payloads(logged_in: Open, remember: Callable[..., str]) -> None:
    store = remember("ann", NOTE)
    page = unescape(logged_in("viewer").get(f"/memory/{store}").text)
    assert PATH not in page
    assert MASK in page
    assert 'method="post"' not in page
    assert HOSTILE not in logged_in("viewer").get(f"/memory/{store}/raw?path=/memories/x").text


def test_file_in_use_stays(logged_in: Open, client: Client, define: Any, database: Engine) -> None:
    define({"kind": "agent", "name": "talker", "model": "claude-sonnet-5-5", "config": {"capabilities": ["work"]}})
    used, other = (client.upload(png(side, 3))["id"] for side in (4, 5))
    image = {"type": "image", "source": {"type": "file", "file_id": used}}
    client.submit("talker", messages=[{"role": "user", "content": [image]}])
    browser = logged_in("admin")
    refused = post(browser, f"/files/{used}/delete")
    assert refused.status_code == 409
    assert 'role="alert"' in refused.text
    assert post(browser, f"/files/{other}/delete").status_code == 303
    assert [file["id"] for file in client.files()] == [used]
    tenant = logged_in("admin", tenant="t")
    assert used[:13] not in tenant.get("/files").text
    assert post(tenant, f"/files/{used}/delete").status_code == 404
