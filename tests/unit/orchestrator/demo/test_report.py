from __future__ import annotations

from html.parser import HTMLParser

import pytest

from orchestrator.demo import report

HOSTILE = "<script>alert('x')</script> | [click](javascript:x) `code` & more"


@pytest.fixture
def audit():
    row = {"version": "1.0", "licence": "MIT", "bytes": 2_500_000, "native": 1, "note": ""}
    return {
        "report": "audit-1",
        "title": "Licence audit of 3 Python distributions",
        "written_at": "2026-01-01T00:00:00+00:00",
        "environment": "CPython 3.11.7 on Linux",
        "headline": {
            "distributions": 3,
            "failed": 1,
            "conflicts": 1,
            "bytes": 5_000_000,
            "files": 1200,
            "with_native_code": 2,
            "categories": {"permissive": 1, "weak-copyleft": 1, "failed": 1},
            "licences": {"MIT": 1, "MPL-2.0": 1},
        },
        "findings": ["MPL-2.0 conflicts.", HOSTILE],
        "rows": [
            {**row, "name": "good", "category": "permissive"},
            {**row, "name": "weak", "category": "weak-copyleft", "licence": "MPL-2.0", "note": "MPL-2.0: changes"},
            {**row, "name": HOSTILE, "category": "failed", "licence": "", "note": HOSTILE},
        ],
    }


class Checker(HTMLParser):
    """Collect the elements, and check that they are closed in order."""

    VOID = ("meta", "!doctype")

    def __init__(self):
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        assert not any(name.startswith("on") or name in ("src", "href") for name, _ in attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_html_escapes_everything_and_is_well_formed(audit):
    page = report.html(audit, HOSTILE)
    checker = Checker()
    checker.feed(page)

    assert checker.open == []
    assert "script" not in checker.seen
    assert page.count("&lt;script&gt;") >= 4


def test_html_is_self_contained(audit):
    page = report.html(audit)

    assert "http" not in page
    assert "prefers-color-scheme: dark" in page
    assert '<html lang="en">' in page


def test_markdown_escapes_special_characters(audit):
    text = report.markdown(audit, HOSTILE)

    assert "<script>" not in text
    assert "[click](" not in text.replace("\\[", "").replace("\\]", "")
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert {line.replace("\\|", "").count("|") for line in table} == {3, len(report.COLUMNS) + 1}


def test_findings_come_first(audit):
    for text in (report.markdown(audit), report.html(audit)):
        assert text.index("Findings") < text.index("All distributions")
        assert text.index("Conflicts with a permissive policy") < text.index("All distributions")


def test_missing_commentary_is_reported(audit):
    assert report.NO_COMMENTARY in report.html(audit)
    assert report.NO_COMMENTARY not in report.html(audit, "First.\n\nSecond.")
    assert "<p>First.</p>\n<p>Second.</p>" in report.html(audit, "First.\n\nSecond.")


def test_empty_audit_is_reported(audit):
    empty = {**audit, "findings": [], "rows": []}

    assert "All distributions" not in report.markdown(empty)
    assert "All distributions" not in report.html(empty)
