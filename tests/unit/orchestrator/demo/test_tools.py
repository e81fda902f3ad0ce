from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.demo import tools

AUDIT = {
    "title": "Licence audit",
    "headline": {
        "distributions": 1,
        "failed": 0,
        "conflicts": 0,
        "bytes": 10,
        "files": 1,
        "with_native_code": 0,
        "categories": {"permissive": 1},
        "licences": {"MIT": 1},
    },
    "findings": ["Nothing surprising."],
    "rows": [],
}


@dataclass
class Context:
    data_dir: Path
    root_id: str = "01934b1e-0000-7000-8000-000000000001"


@pytest.fixture
def context(tmp_path):
    return Context(tmp_path)


def test_distributions_are_listed(context):
    listed = tools.list_distributions({}, context)["distributions"]

    assert len(listed) > 50
    assert all(set(entry) == {"name", "version"} for entry in listed)


def test_list_can_be_limited_to_names(context):
    listed = tools.list_distributions({"only": ["rich", "PyYAML", "pyyaml"]}, context)["distributions"]

    assert [entry["name"] for entry in listed] == ["PyYAML", "rich"]


def test_unexpected_version_is_an_error(context):
    with pytest.raises(LookupError, match=r"rich 0\.0\.1 is not installed here"):
        tools.inspect_distribution({"name": "rich", "version": "0.0.1"}, context)


def test_saved_audit_is_written_as_a_report(context):
    saved = tools.save_audit_data(AUDIT, context)
    written = tools.write_audit_report({"report": saved["report"], "commentary": "All is well."}, context)

    assert "rows" not in saved
    assert saved["report"] == f"audit-{context.root_id}"
    assert written["has_commentary"] is True
    assert "All is well." in (context.data_dir / written["markdown"]).read_text()
    assert "All is well." in (context.data_dir / written["html"]).read_text()


def test_second_write_leaves_no_other_files(context):
    for _ in range(2):
        saved = tools.save_audit_data(AUDIT, context)
        tools.write_audit_report({"report": saved["report"]}, context)

    folder = context.data_dir / "reports" / saved["report"]
    assert sorted(file.name for file in folder.iterdir()) == ["audit.json", "report.html", "report.md"]


def test_unsaved_report_is_an_error(context):
    with pytest.raises(LookupError, match="audit-nothing"):
        tools.write_audit_report({"report": "audit-nothing"}, context)


@pytest.mark.parametrize("name", ["../../etc", "a/b", "", "."])
def test_report_name_cannot_be_a_path(context, name):
    with pytest.raises(ValueError, match="not the name of a report"):
        tools.write_audit_report({"report": name}, context)
