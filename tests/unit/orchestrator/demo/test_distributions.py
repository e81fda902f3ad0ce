from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import pytest

from orchestrator.demo import distributions


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """Separate environment; returns a function that adds a `.dist-info` folder with files to it."""
    monkeypatch.setattr("sys.path", [str(tmp_path)])

    def add(folder: str, **files: bytes) -> Path:
        place = tmp_path / folder
        place.mkdir()
        for name, content in files.items():
            (place / name).write_bytes(content)
        return place

    return add


def test_every_installed_distribution_is_found_once():
    names = [distribution.key for distribution in distributions.installed()]

    assert len(names) == len(set(names)) > 50
    assert names == sorted(names)
    assert {distributions.normalised(d.metadata["Name"]) for d in metadata.distributions()} == set(names)


def test_every_installed_distribution_can_be_inspected():
    for distribution in distributions.installed():
        found = distribution.inspect()

        text = json.dumps(found, ensure_ascii=False, allow_nan=False)
        text.encode()
        assert "\\u0000" not in text
        assert len(text) < 200_000
        assert found["version"] == metadata.version(distribution.name)


def test_inspection_reports_licence_and_facts():
    found = distributions.find("pyYAML").inspect()

    assert (found["name"], found["licence_field"]) == ("PyYAML", "MIT")
    assert found["facts"]["native_files"] >= 1
    assert found["facts"]["bytes"] > 100_000
    assert "Permission is hereby granted" in found["licence_texts"][0]


def test_unknown_distribution_is_an_error():
    with pytest.raises(LookupError, match="no-such-thing"):
        distributions.find("no-such-thing")


def test_missing_metadata_is_replaced_by_the_folder_name(environment):
    environment("broken_one-1.2.dist-info")

    found = distributions.find("Broken.One").inspect()

    assert (found["name"], found["version"]) == ("broken_one", "1.2")
    assert found["facts"]["files"] == 0


def test_metadata_need_not_be_utf_8(environment):
    environment("latin-1.0.dist-info", METADATA=b"Name: latin\nVersion: 1.0\nSummary: caf\xe9\x00!\n")

    (found,) = distributions.installed()

    assert found.inspect()["facts"]["summary"] == "caf\N{REPLACEMENT CHARACTER}!"


def test_record_may_list_missing_files(environment):
    environment(
        "gone-1.0.dist-info",
        METADATA=b"Name: gone\nVersion: 1.0\nLicense: UNKNOWN\n",
        RECORD=b"gone/__init__.py,,\ngone-1.0.dist-info/METADATA,,\n",
    )

    found = distributions.find("gone").inspect()

    assert found["licence_field"] == ""
    assert (found["facts"]["files"], found["facts"]["missing_files"]) == (1, 1)


def test_broken_record_and_entry_points_are_tolerated(environment):
    environment("odd-1.0.dist-info", METADATA=b"Name: odd\n", RECORD=b"\xff\xfe,,\n", **{"entry_points.txt": b"[x\ny"})

    facts = distributions.find("odd").inspect()["facts"]

    assert facts["entry_points"] == []


def test_leftover_folder_of_an_interrupted_pip_is_ignored(environment):
    environment("~ip-23.0.dist-info")

    assert distributions.installed() == []


def test_first_copy_on_the_path_is_found(environment, tmp_path, monkeypatch):
    environment("twice-1.0.dist-info", METADATA=b"Name: twice\nVersion: 1.0\n")
    later = tmp_path / "later" / "twice-2.0.dist-info"
    later.mkdir(parents=True)
    (later / "METADATA").write_text("Name: Twice\nVersion: 2.0\n")
    monkeypatch.setattr("sys.path", [str(tmp_path), str(later.parent)])

    assert [found.version for found in distributions.installed()] == ["1.0"]
