"""The pictures of the documentation, and the command that takes them."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

from playwright.sync_api import Browser as Chromium

from minions import Client
from shared.access.login_links import new_code
from tests.integration.api.conftest import Api
from tests.support import screenshots
from tests.support.processes import ROOT
from tests.support.screenshots import DOCUMENTED, IMAGES, LOOKS, take

PNG = b"\x89PNG\r\n"
LIMIT = 150_000


def test_pictures_are_taken(chromium: Chromium, client: Client, site: Api, tmp_path: Path) -> None:
    def link() -> str:
        return f"{site.url}/login/link?code={new_code(site.key.encode())}"

    pages = {"overview": "/overview", "tasks": "/tasks?q=state:failed"}
    take(chromium, site.url, link, pages, tmp_path / "all")
    with (
        patch.object(screenshots, "IMAGES", tmp_path / "documented"),
        patch.object(screenshots, "DOCUMENTED", (("overview", "light", 560),)),
    ):
        take(chromium, site.url, link, pages, None)
    written = {str(file.relative_to(tmp_path)): file.read_bytes() for file in tmp_path.rglob("*.png")}
    assert written.keys() == {
        "documented/overview.png",
        *(f"all/{name}-{look}.png" for name in pages for look in LOOKS),
    }
    assert all(content.startswith(PNG) for content in written.values())


def test_pictures_of_the_documentation_are_those_that_the_command_takes() -> None:
    names = {f"{name}.png" for name, _, _ in DOCUMENTED}
    assert {file.name for file in IMAGES.glob("*.png")} == names
    assert {file.name for file in IMAGES.glob("*.png") if file.stat().st_size > LIMIT} == set()
    tour = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
    assert {name for name in names if f"](images/{name})" not in tour} == set()
