"""Cases as files: what is written is read again, whatever it holds."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.cases import case_files
from shared.errors import InvalidInput

REFERENCE = {"$external": {"path": "x.files/other.txt", "sha256": "0" * 64, "bytes": 1}}


def case_with(output: Any) -> dict[str, Any]:
    return {"minions_case": 1, "name": "x", "task": {"agent": "A", "input": {}, "output": output}}


@pytest.mark.parametrize("name", ["x.yaml", "x.json", "cases/new/x.yaml"])
@pytest.mark.parametrize(
    "output",
    ["x" * case_files.LARGE, REFERENCE, {"$external": {"value": 1}}, {"$external": "text"}, {"a": [REFERENCE, "\x85"]}],
    ids=["large", "reference", "escaped", "text", "nested"],
)
def test_saved_case_is_loaded_unchanged(tmp_path: Path, name: str, output: Any) -> None:
    case_files.save(case_with(output), tmp_path / name)
    [loaded] = case_files.load([tmp_path / name])
    assert loaded.task.output == output


def test_printed_case_is_loaded_unchanged(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(case_files.text_of(case_with([REFERENCE])))
    [loaded] = case_files.load([file])
    assert loaded.task.output == [REFERENCE]


def test_file_beside_a_case_must_be_text(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(b"\xff")
    reference = {"path": "raw", "sha256": hashlib.sha256(b"\xff").hexdigest(), "bytes": 1}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(case_with({"$external": reference})))
    with pytest.raises(InvalidInput, match=r"x\.yaml: 'raw' is not UTF-8"):
        case_files.load([tmp_path])
