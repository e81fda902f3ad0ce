"""Pictures and files on the pages of a task, from our own address, and what its answers cite."""

from __future__ import annotations

from typing import Any

from minions import Client, testing
from minions.testing import MessagesApi
from tests.integration.agents.conftest import DefineAgent
from tests.integration.agents.conftest import define_agent as define_agent
from tests.integration.conftest import InlineWorker
from tests.integration.pages.conftest import Open
from tests.support.media_files import b64, pdf, png

CITATION = {
    "type": "page_location",
    "cited_text": "Rock, <b>mostly</b>.",
    "document_index": 0,
    "document_title": "Moon",
    "start_page_number": 1,
    "end_page_number": 3,
}


def asked(client: Client) -> str:
    """A task with a large and a small picture, a PDF and a foreign picture, and a cited answer."""
    paper = client.upload(pdf("Rock."), name="moon.pdf")["id"]
    data = [b64(png(40, 30, padding=80_000)), b64(png(4, 3))]
    content: list[Any] = [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": each}} for each in data
    ]
    content += [
        {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}},
        {
            "type": "document",
            "source": {"type": "file", "file_id": paper},
            "title": "Moon",
            "citations": {"enabled": True},
        },
        {"type": "text", "text": "What is it?"},
    ]
    return client.submit("Agent", messages=[{"role": "user", "content": content}]).id


def test_pictures_load_and_citations_are_shown(
    client: Client,
    visit: Any,
    define_agent: DefineAgent,
    messages_api: MessagesApi,
    inline_worker: InlineWorker,
) -> None:
    define_agent()
    messages_api.script = [testing.cited("It is ", ("rock", [CITATION]), ".")]
    task = asked(client)
    inline_worker.run_all()
    assert client.get(task).succeeded
    browser = visit()
    page = browser.go(f"/tasks/{task}/conversation")
    pictures = page.locator("img.picture")
    assert pictures.count() == 2
    for number in range(2):
        pictures.nth(number).scroll_into_view_if_needed()
        page.wait_for_function(f"document.querySelectorAll('img.picture')[{number}].complete")
    sizes = pictures.evaluate_all("(all) => all.map((each) => each.naturalWidth)")
    assert sizes == [40, 4]
    assert page.get_by_role("link", name="Moon").get_attribute("href").startswith("/v1/files/file_")
    assert page.get_by_text("[image: https://example.org/a.png]").count() == 1
    assert page.get_by_label("Citations").inner_text() == "Moon, pages 1 to 2: Rock, <b>mostly</b>."
    browser.check()
    browser.go(f"/tasks/{task}")
    assert page.get_by_role("heading", name="Files").count() == 1
    assert page.locator(".files li").count() == 2
    browser.check()


def test_files_are_hidden_without_payloads(client: Client, logged_in: Open, define_agent: DefineAgent) -> None:
    define_agent()
    task = asked(client)
    page = logged_in("viewer").get(f"/tasks/{task}").text
    assert "/v1/files/" not in page
    assert "moon.pdf" not in page
