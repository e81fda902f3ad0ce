"""`minion docs build` from files: without a database, with hostile texts, twice into one folder."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from orchestrator.catalogue import entries, site
from orchestrator.catalogue.schema_rows import rows_of
from orchestrator.cli import app
from shared.errors import FileFault, InvalidDefinition

ROOT = Path(__file__).resolve().parent.parent.parent.parent.parent
REFUNDS = ROOT / "examples" / "refunds" / "refunds.yaml"
HOSTILE = "<script>alert(1)</script>\"'{{ 7*7 }}\u202e"
ANY = {"type": "object", "description": HOSTILE, "properties": {HOSTILE: {"type": "string", "default": HOSTILE}}}


class Page(HTMLParser):
    """The elements, links and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.links: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data: str) -> None:
        self.text += data


def pages(folder: Path) -> dict[str, Page]:
    return {file.name: Page(file.read_text()) for file in folder.glob("*.html")}


def definitions(folder: Path, *documents: dict[str, Any]) -> Path:
    (folder / "all.yaml").write_text("---\n".join(yaml.safe_dump(document) for document in documents))
    return folder / "all.yaml"


def test_files_become_a_page_each_without_a_database(tmp_path, monkeypatch):
    for name in ("DATABASE_URL", "REDIS_URL", "MINION_API_URL", "MINION_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    done = CliRunner().invoke(app, ["docs", "build", str(REFUNDS), "--out", str(tmp_path / "site")])
    assert done.exit_code == 0, done.output
    found = pages(tmp_path / "site")
    assert len(found) == 8
    desk = found["agent-refund-desk.html"]
    assert {"tool-book_refund.html", "function-find_order.html", "agent-settle-complaint.html"} <= {*desk.links}
    for words in ("Looks an order up.", "a person", "complaint", "0.25"):
        assert words in desk.text
    assert "svg" in desk.elements
    assert "step 1" in found["agent-settle-complaint.html"].text


def test_same_input_gives_the_same_bytes_and_links_lead_somewhere(tmp_path):
    for name in ("a", "b"):
        site.build(entries.from_files(REFUNDS), tmp_path / name, "Docs")
    files = sorted(file.name for file in (tmp_path / "a").iterdir())
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)
    for name, page in pages(tmp_path / "a").items():
        assert not [link for link in page.links if link not in files], name
        assert not page.elements & {"script", "link", "img", "iframe"}, name
        policy = re.search(r'Content-Security-Policy" content="([^"]+)"', (tmp_path / "a" / name).read_text())
        assert policy
        assert "default-src 'none'" in policy[1]
        assert "unsafe" not in policy[1]


def test_hostile_texts_are_shown_and_do_nothing(tmp_path):
    path = definitions(
        tmp_path,
        {"kind": "function", "name": "f", "description": HOSTILE, "code": "def f(): pass", "input_schema": ANY},
        {"kind": "tool", "name": "t", "type": "function", "function": "f"},
        {"kind": "agent", "name": "a", "model": HOSTILE, "tools": ["t"], "description": HOSTILE, "output_schema": ANY},
        {"kind": "agent", "name": "chain", "type": "function", "relations": [{"agent": "a"}]},
    )
    site.build(entries.from_files(path), tmp_path / "site", HOSTILE)
    for name, page in pages(tmp_path / "site").items():
        assert "script" not in page.elements, name
        assert "<script>alert(1)</script>" in page.text, name
        assert "{{ 7*7 }}" in page.text, name
        assert "\u202e" not in page.text, name


def test_secrets_prompts_and_code_are_left_out(tmp_path):
    http = {"url": "https://api.example.com/v1?token=hunter2", "headers": {"X-Key": "hunter2"}}
    path = definitions(
        tmp_path,
        {"kind": "function", "name": "f", "code": "def f(): return 'hunter2'"},
        {"kind": "tool", "name": "t", "type": "http", "http": http},
        {"kind": "agent", "name": "a", "tools": ["t"], "system_prompt": "hunter2"},
    )
    site.build(entries.from_files(path), tmp_path / "site", "Docs")
    texts = {file.name: file.read_text() for file in (tmp_path / "site").iterdir()}
    assert not [name for name, text in texts.items() if "hunter2" in text]
    assert "X-Key" in texts["tool-t.html"]
    assert "https://api.example.com/v1" in texts["tool-t.html"]


def test_build_removes_its_own_old_pages_and_no_other_file(tmp_path):
    folder = tmp_path / "site"
    site.build(entries.from_files(REFUNDS), folder, "Docs")
    (folder / "CNAME").write_text("docs.example.com")
    path = definitions(tmp_path, {"kind": "agent", "name": "only", "model": "auto"})
    assert site.build(entries.from_files(path), folder, "Docs") == ["agent-only.html", "index.html"]
    assert {file.name for file in folder.iterdir()} == {"CNAME", ".minion-docs", "agent-only.html", "index.html"}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.html").write_text("mine")
    with pytest.raises(FileFault, match="did not write"):
        site.build(entries.from_files(path), tmp_path / "mine", "Docs")


def test_definition_that_occurs_twice_is_refused(tmp_path):
    agent = {"kind": "agent", "name": "a", "model": "auto"}
    with pytest.raises(InvalidDefinition, match="'a' is defined twice"):
        entries.from_files(definitions(tmp_path, agent, agent))


def test_agents_that_call_each_other_end_the_picture(tmp_path):
    def chain(name: str, *agents: str) -> dict[str, Any]:
        return {"kind": "agent", "name": name, "type": "function", "relations": [{"agent": each} for each in agents]}

    path = definitions(tmp_path, chain("a", "b", "b"), chain("b", "a", "a", "missing"))
    site.build(entries.from_files(path), tmp_path / "site", "Docs")
    assert "missing" in pages(tmp_path / "site")["agent-a.html"].text


@pytest.mark.parametrize(
    ("schema", "rows"),
    [
        (True, [("", "any")]),
        ({"type": "array", "items": {"type": "string"}}, [("", "array of string")]),
        (
            {"properties": {"a": {"type": "array", "items": {"properties": {"b": {"enum": ["x", 1]}}}}}},
            [("a", "array of object"), ("a[].b", '"x" or 1')],
        ),
        ({"properties": {"c": {"anyOf": [{"type": "null"}, {"$ref": "#/d"}]}}}, [("c", "any of: null, #/d")]),
    ],
)
def test_schema_as_rows(schema: Any, rows: list[tuple[str, str]]):
    assert [(row.path, row.type) for row in rows_of(schema)] == rows
