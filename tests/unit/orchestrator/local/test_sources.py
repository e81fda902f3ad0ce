"""Source files that change, and the package that offers a module's tools to workers."""

from __future__ import annotations

import os
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from orchestrator.local.offered_tools import GROUP, OfferedTools, sources_of
from orchestrator.local.sources import Sources


def test_written_added_and_removed_sources_are_changed_once(tmp_path: Path):
    (tmp_path / "a.py").write_text("1")
    (tmp_path / "b.yaml").write_text("1")
    sources = Sources([tmp_path], without=tmp_path / "data")
    (tmp_path / "a.py").write_text("22")
    (tmp_path / "b.yaml").unlink()
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "c.json").touch()
    assert {file.name for file in sources.changed()} == {"a.py", "b.yaml", "c.json"}
    assert sources.changed() == set()


def test_other_files_and_folders_of_tools_are_not_looked_at(tmp_path: Path):
    sources = Sources([tmp_path], without=tmp_path / "data")
    for folder in ("data", ".venv", "__pycache__", "node_modules"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.py").touch()
    (tmp_path / "notes.txt").touch()
    os.symlink(tmp_path / "nowhere", tmp_path / "broken.py")
    assert sources.changed() == set()


def test_added_folder_is_no_change_itself(tmp_path: Path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two.py").touch()
    sources = Sources([tmp_path / "one"], without=tmp_path / "data")
    sources.add([tmp_path / "two.py"])
    assert sources.changed() == set()
    (tmp_path / "two.py").write_text("2")
    assert sources.changed() == {tmp_path / "two.py"}


def test_tools_of_a_module_are_offered_as_entry_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "author_tools.py").write_text("def ship(arguments, context): return 1")
    tools = OfferedTools(tmp_path / "offered")
    monkeypatch.syspath_prepend(tools.environment()["PYTHONPATH"].split(os.pathsep)[0])
    tools.offer({"ship-it": "author_tools:ship", "echo": "author_tools:ship"}, tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    [found] = entry_points(group=GROUP, name="ship-it")
    assert found.load()({}, None) == 1
    [echo] = entry_points(group=GROUP, name="echo")  # of the installed package
    assert echo.value == "workers.tools.echo:echo"


def test_sources_of_an_installed_tool_are_those_of_its_package():
    assert {place.name for place in sources_of(["echo", "no-such-tool"])} == {"workers"}
