"""The tests in docs/testing.md."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minions.testing import MessagesApi
from pytest_minions.kit import Minions

HERE = Path(__file__).parent
PAGE = (HERE.parent.parent / "docs" / "testing.md").read_text(encoding="utf-8")
TESTS = [block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "def test_" in block]


@pytest.mark.parametrize("code", TESTS)
def test_of_the_page_passes(
    code: str, minions: Minions, scripted_model: MessagesApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(HERE / "desk.yaml", tmp_path / "agents.yaml")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(code, "docs/testing.md", "exec"), names)
    fixtures = {"minions": minions, "scripted_model": scripted_model}
    (test,) = [value for name, value in names.items() if name.startswith("test_")]
    call: Callable[..., None] = test
    call(**{name: fixtures[name] for name in test.__code__.co_varnames[: test.__code__.co_argcount]})


def test_page_has_tests() -> None:
    assert len(TESTS) >= 2
