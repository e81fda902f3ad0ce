from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import pytest

from orchestrator.demo import distributions


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """An environment of its own; returns a function that puts a `.dist-info` folder with files into it."""
    monkeypatch.setattr("sys.path", [str(tmp_path)])

    def add(folder: str, **files: bytes) -> Path:
        place = tmp_path / folder
        place.mkdir()
        for name, content in files.items():
            (place / name).write_bytes(content)
        return place

    return add


def test_everything_installed_is_found_once():
    names = [distribution.key for distribution in distributions.installed()]

    assert len(names) == len(set(names)) > 50
    assert names == sorted(names)
    assert {distributions.normalised(d.metadata["Name"]) for d in metadata.distributions()} == set(names)


def test_everything_installed_can_be_inspected():
    for distribution in distributions.installed():
        found = distribution.inspect()

        text = json.dumps(found, ensure_ascii=False, allow_nan=False)
        text.encode()
        assert "\\u0000" not in text
        assert len(text) < 200_000
        assert found["version"] == metadata.version(distribution.name)


def test_what_is_known_about_one_of_them():
    found = distributions.find("pyYAML").inspect()

    assert (found["name"], found["licence_field"]) == ("PyYAML", "MIT")
    assert found["facts"]["native_files"] >= 1
    assert found["facts"]["bytes"] > 100_000
    assert "Permission is hereby granted" in found["licence_texts"][0]


def test_a_name_that_is_not_installed():
    with pytest.raises(LookupError, match="no-such-thing"):
        distributions.find("no-such-thing")


def test_no_metadata_at_all(environment):
    environment("broken_one-1.2.dist-info")

    found = distributions.find("Broken.One").inspect()

    assert (found["name"], found["version"]) == ("broken_one", "1.2")
    assert found["facts"]["files"] == 0


def test_metadata_that_are_not_utf_8(environment):
    environment("latin-1.0.dist-info", METADATA=b"Name: latin\nVersion: 1.0\nSummary: caf\xe9\x00!\n")

    (found,) = distributions.installed()

    assert found.inspect()["facts"]["summary"] == "caf\N{REPLACEMENT CHARACTER}!"


def test_a_record_that_lists_what_is_not_there(environment):
    environment(
        "gone-1.0.dist-info",
        METADATA=b"Name: gone\nVersion: 1.0\nLicense: UNKNOWN\n",
        RECORD=b"gone/__init__.py,,\ngone-1.0.dist-info/METADATA,,\n",
    )

    found = distributions.find("gone").inspect()

    assert found["licence_field"] == ""
    assert (found["facts"]["files"], found["facts"]["missing_files"]) == (1, 1)


def test_a_broken_record_and_broken_entry_points(environment):
    environment("odd-1.0.dist-info", METADATA=b"Name: odd\n", RECORD=b"\xff\xfe,,\n", **{"entry_points.txt": b"[x\ny"})

    facts = distributions.find("odd").inspect()["facts"]

    assert facts["entry_points"] == []


def test_a_folder_that_an_interrupted_pip_left_behind(environment):
    environment("~ip-23.0.dist-info")

    assert distributions.installed() == []


def test_of_two_copies_the_one_that_imports_find_first(environment, tmp_path, monkeypatch):
    environment("twice-1.0.dist-info", METADATA=b"Name: twice\nVersion: 1.0\n")
    later = tmp_path / "later" / "twice-2.0.dist-info"
    later.mkdir(parents=True)
    (later / "METADATA").write_text("Name: Twice\nVersion: 2.0\n")
    monkeypatch.setattr("sys.path", [str(tmp_path), str(later.parent)])

    assert [found.version for found in distributions.installed()] == ["1.0"]
