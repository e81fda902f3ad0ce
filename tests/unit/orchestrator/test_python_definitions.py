"""Modules with definitions: what is found in them, and how their faults are reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.python_definitions import is_python, load
from shared.contracts.documents import AgentDefinition
from shared.definitions import files
from shared.errors import FileFault, InvalidDefinition

SHOP = '''
import minions
from typing import Literal

@minions.function(timeout=2)
def plan_of(account: int) -> Literal["free", "team"]:
    """Look up the plan of an account."""
    return ("free", "team")[account % 2]

@minions.tool(effect="pure")
def now(zone: str = "UTC") -> str:
    """Return the time."""
    return zone

news = minions.Tool("news", type="web_search", web_search={"max_uses": 3})
desk = minions.Agent("desk", system_prompt="Answer.", tools=[plan_of, "stored"], max_turns=4)
boss = minions.Agent("boss", relations=[{"agent": desk, "for_each": "items"}], config={"max_parallel": 2})
only = [desk]
print("text that modules print is no definition")
'''
YAML = """
kind: function
name: plan_of
description: Look up the plan of an account.
code: |
  def plan_of(account: int) -> Literal["free", "team"]:
      \"\"\"Look up the plan of an account.\"\"\"
      return ("free", "team")[account % 2]
input_schema:
  type: object
  properties: {account: {type: integer}}
  required: [account]
  additionalProperties: false
output_schema: {type: string, enum: [free, team]}
config: {timeout: 2}
---
kind: tool
name: plan_of
type: function
description: Look up the plan of an account.
function: plan_of
---
kind: agent
name: desk
system_prompt: Answer.
tools: [plan_of, stored]
config: {max_turns: 4}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a package whose name the server has too."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "__init__.py").touch()
    (tmp_path / "shared" / "shop.py").write_text(SHOP)
    return tmp_path


def test_python_and_yaml_are_the_same_definitions(folder: Path):
    (folder / "desk.yaml").write_text(YAML)
    from_python, from_yaml = load("shared.shop:only"), load("desk.yaml")
    assert from_python == from_yaml
    (folder / "out.yaml").write_text("---\n".join(map(files.dump, load("shared/shop.py"))))
    assert load("out.yaml") == load("shared/shop.py")


def test_module_without_name_means_all_of_its_definitions(folder: Path):
    found = load("shared.shop")
    assert [(each.kind, each.name) for each in found] == [
        ("function", "plan_of"),
        *(("tool", name) for name in ("now", "news", "plan_of")),
        *(("agent", name) for name in ("desk", "boss")),
    ]
    boss = found[-1]
    assert isinstance(boss, AgentDefinition)
    assert (boss.type, boss.relations[0].for_each, boss.config.max_parallel) == ("function", "items", 2)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import minions\ndef f(:", r"SyntaxError: .*\(bad.py, line 2\)"),
        ("\n1 / 0", r"ZeroDivisionError: division by zero \(.*bad.py, line 2\)"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("import os; os._exit(3)", "the process that imported it ended with 3"),
        ("import no_such_package", "No module named 'no_such_package'"),
        ("app = 3", "bad.py: it defines no agent, tool or function"),
        ("import minions\nf = minions.function(lambda n: n)", "bad.py: function '<lambda>': a lambda cannot be stored"),
        (
            "import minions\na = minions.Agent('desk', tool='x', model={1})",
            "bad.py: agent 'desk': the definition is not JSON",
        ),
        (
            "import minions\na = minions.Agent('desk', system_prompt='\\ud800')",
            "agent 'desk': the definition is not JSON",
        ),
        ("import minions\na = minions.Agent('desk', max_turn=3)", "config.max_turn: Extra inputs are not permitted"),
        ("import minions\na, b = (minions.Agent('desk', model=m) for m in 'ab')", "two different definitions of agent"),
    ],
)
def test_faulty_module_is_refused_with_its_place(folder: Path, text: str, words: str):
    (folder / "bad.py").write_text(text)
    with pytest.raises(InvalidDefinition, match=words):
        load("bad.py")


def test_missing_module_or_name_is_reported(folder: Path):
    for target in ("shop", "shared.shops", "none.py", "shop:app"):
        with pytest.raises(FileFault, match="there is no such"):
            load(target)
    with pytest.raises(InvalidDefinition, match=r"the module has no 'app'\. Its definitions: plan_of, now, news, desk"):
        load("shared.shop:app")
    (folder / "json.py").write_text(SHOP)
    with pytest.raises(InvalidDefinition, match="another module is named 'json'"):
        load("json.py")


def test_folder_is_never_run(folder: Path):
    assert not is_python("shared")
    assert is_python("shared/shop.py")
    assert is_python("shared:app")
    with pytest.raises(InvalidDefinition, match=r"contains no \.yaml"):
        load("shared")
