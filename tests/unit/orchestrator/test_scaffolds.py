"""Scaffolds: names, files that exist, and the tests of those that need no server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.python_definitions import load
from orchestrator.scaffolds import scaffold
from shared.contracts.documents import AnyDefinition
from shared.errors import Conflict, FileFault, InvalidInput

KINDS = ["agent", "tool", "function", "project"]


def plain(definitions: list[AnyDefinition]) -> list[dict[str, object]]:
    """Return definitions without titles and code, which differ between YAML and Python."""
    found = [each.model_dump(exclude={"code"}) for each in definitions]
    for each in found:
        (each["input_schema"] or {}).pop("title", None)
    return found


@pytest.mark.parametrize("kind", ["agent", "function", "project"])
def test_yaml_and_python_define_the_same(kind: str, tmp_path: Path):
    for python in (False, True):
        (tmp_path / str(python)).mkdir()
        scaffold(kind, "night-desk", python=python, folder=tmp_path / str(python))
    yaml, python_file = tmp_path.rglob("night_desk.yaml"), tmp_path.glob("True/**/night_desk.py")
    assert plain(load(str(next(yaml)))) == plain(load(str(next(python_file))))


def test_tests_of_functions_and_tools_pass(tmp_path: Path):
    scaffold("function", "total", folder=tmp_path)
    scaffold("function", "sum-up", python=True, folder=tmp_path)
    scaffold("tool", "write-note", folder=tmp_path)
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"], cwd=tmp_path, capture_output=True, text=True
    )
    assert "7 passed" in ended.stdout, ended.stdout
    [tool] = load(str(tmp_path / "write-note" / "write_note.py"))
    assert tool.name == "write-note"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name",
    ["", "../up", "a/b", "a\\b", "a\0", "A", "1a", "-a", "a b", "a.b", "é", "class", "json", "x" * 51, "shared"],
)
def test_hostile_name_is_refused(kind: str, name: str, tmp_path: Path):
    with pytest.raises(InvalidInput, match="is not valid"):
        scaffold(kind, name, folder=tmp_path)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("kind", KINDS)
def test_existing_file_is_kept_and_nothing_is_written(kind: str, tmp_path: Path):
    written = scaffold(kind, "desk", folder=tmp_path)
    before = {file: file.read_text() for file in written}
    written[0].write_text("mine")
    with pytest.raises(Conflict, match="exists"):
        scaffold(kind, "desk", folder=tmp_path)
    assert {file: file.read_text() for file in written} == {**before, written[0]: "mine"}


def test_link_is_not_followed(tmp_path: Path):
    (tmp_path / "total.py").symlink_to(tmp_path / "elsewhere.py")
    with pytest.raises(Conflict, match="is not overwritten"):
        scaffold("function", "total", folder=tmp_path)
    assert not (tmp_path / "elsewhere.py").exists()


def test_missing_folder_is_a_fault(tmp_path: Path):
    with pytest.raises(FileFault, match="cannot be written"):
        scaffold("project", "desk", folder=tmp_path / "none")
