"""Files that begin an agent, a tool, a function or a project, each with a test that passes at once."""

from __future__ import annotations

import keyword
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from shared import __version__
from shared.errors import Conflict, FileFault, InvalidInput

TAKEN = frozenset({"minions", "orchestrator", "shared", "workers", "migrations", "pytest", "pydantic", "conftest"})
NAME = re.compile(r"[a-z][a-z0-9_-]{0,49}")
FUNCTION_YAML = """kind: function
name: MODULE
description: Return the total of a list of prices.
code_file: MODULE.py
input_schema:
  type: object
  properties:
    prices: {type: array, items: {type: number}, description: "the prices, in dollars"}
  required: [prices]
  additionalProperties: false
output_schema: {type: number}
config: {timeout: 2}
"""
FUNCTION_BODY = """def MODULE(prices: list[float]) -> float:
    return round(sum(prices), 2)
"""
FUNCTION_PYTHON = '''import minions


@minions.function(timeout=2)
def MODULE(prices: list[float]) -> float:
    """Return the total of a list of prices.

    Args:
        prices: the prices, in dollars
    """
    return round(sum(prices), 2)
'''
FUNCTION_TEST = """from pathlib import Path

from MODULE import MODULE

from orchestrator.python_definitions import load


def test_MODULE_adds_prices():
    assert MODULE([0.1, 0.2]) == 0.3


def test_definition_is_valid():
    [definition] = load(str(Path(__file__).with_name("FILE")))
    assert definition.name == "MODULE"
"""
AGENT_YAML = """kind: agent
name: NAME
description: Answers questions in one sentence.
model: auto
system_prompt: You answer in one sentence.
input_schema:
  type: object
  properties:
    text: {type: string, minLength: 1}
  required: [text]
config:
  max_turns: 4
"""
AGENT_PYTHON = """from typing import Annotated

from pydantic import BaseModel, Field

import minions


class Question(BaseModel):
    text: Annotated[str, Field(min_length=1)]


MODULE = minions.Agent(
    "NAME",
    description="Answers questions in one sentence.",
    model="auto",
    system_prompt="You answer in one sentence.",
    input_schema=Question,
    max_turns=4,
)
"""
AGENT_TEST = """from pathlib import Path

from minions import testing


def test_MODULE_answers(minions, scripted_model):
    minions.apply(Path(__file__).with_name("FILE"))
    scripted_model.script = [testing.text("It is noon.")]
    task = minions.submit("NAME", {"text": "What time is it?"})
    assert minions.finish(task).output == {"content": "It is noon."}
    assert "What time is it?" in str(scripted_model.requests[-1]["messages"])
"""
TOOL_PYPROJECT = """[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "NAME"
version = "0.1.0"
requires-python = ">=3.11"
dependencies = ["minions-client[pydantic]==VERSION"]

[project.entry-points."minions.tools"]
NAME = "MODULE:MODULE"

[tool.hatch.build.targets.wheel]
include = ["MODULE.py"]
"""
TOOL_PYTHON = '''"""A builtin tool. It runs in the process of the worker, with the rights of the worker."""

from typing import Annotated, Any

from pydantic import Field

import minions


@minions.tool(effect="idempotent", name="NAME")
def MODULE(text: Annotated[str, Field(min_length=1)], context: Any) -> dict[str, str]:
    """Write a text to a file of the data folder, at most once for each call.

    Args:
        text: what to write
    """
    file = context.data_dir / f"{context.idempotency_key}.txt"
    file.write_text(text)
    return {"file": file.name}
'''
TOOL_TEST = """from types import SimpleNamespace

import pytest
from MODULE import MODULE

from minions.results import GiveUp


def test_MODULE_writes_a_file(tmp_path):
    context = SimpleNamespace(data_dir=tmp_path, idempotency_key="key")
    assert MODULE.run({"text": "hello"}, context) == {"file": "key.txt"}
    assert (tmp_path / "key.txt").read_text() == "hello"


def test_MODULE_refuses_other_arguments(tmp_path):
    with pytest.raises(GiveUp):
        MODULE.run({"words": "hello"}, None)


def test_definition_has_the_schema_of_the_parameters():
    assert MODULE.document()["input_schema"]["required"] == ["text"]
"""
TOOL_README = """# NAME

A builtin tool of Minions, with its definition in Python.

    pip install -e .           # into the environment of the workers
    pytest                     # test it
    minion apply MODULE.py     # store its definition
    minion dev MODULE.py       # or: run everything here, and store it at every save
"""
PROJECT_YAML = """kind: function
name: plan_of
description: Return the plan of an account.
code: |
  def plan_of(account: int) -> str:
      return ("free", "team", "enterprise")[account % 3]
input_schema:
  type: object
  properties:
    account: {type: integer, minimum: 0, description: "the number of the account"}
  required: [account]
  additionalProperties: false
output_schema: {type: string, enum: [free, team, enterprise]}
---
kind: tool
name: plan_of
type: function
function: plan_of
description: Return the plan of an account.
---
kind: agent
name: NAME
description: Answers questions about accounts.
model: auto
system_prompt: You answer questions about accounts. Look the plan up first.
tools: [plan_of]
input_schema:
  type: object
  properties:
    text: {type: string, minLength: 1}
  required: [text]
config:
  max_turns: 4
"""
PROJECT_PYTHON = '''from typing import Annotated, Literal

from pydantic import BaseModel, Field

import minions


class Question(BaseModel):
    text: Annotated[str, Field(min_length=1)]


@minions.function
def plan_of(account: Annotated[int, Field(ge=0)]) -> Literal["free", "team", "enterprise"]:
    """Return the plan of an account.

    Args:
        account: the number of the account
    """
    return ("free", "team", "enterprise")[account % 3]


MODULE = minions.Agent(
    "NAME",
    description="Answers questions about accounts.",
    model="auto",
    system_prompt="You answer questions about accounts. Look the plan up first.",
    tools=[plan_of],
    input_schema=Question,
    max_turns=4,
)
'''
PROJECT_TEST = """from pathlib import Path

from minions import testing


def test_agent_looks_the_plan_up(minions, scripted_model):
    minions.apply(Path(__file__).with_name("FILE"))
    scripted_model.script = [testing.tool_use(("plan_of", {"account": 7})), testing.text("You have the plan team.")]
    task = minions.submit("NAME", {"text": "Which plan has account 7?"})
    assert minions.finish(task).output == {"content": "You have the plan team."}
    minions.assert_called(task, "plan_of", {"account": 7}, times=1)
    assert "team" in str(scripted_model.requests[-1]["messages"][-1])
"""
PROJECT_PYPROJECT = """[project]
name = "NAME"
version = "0.1.0"
requires-python = ">=3.11"
dependencies = ["minions-server==VERSION"]

[dependency-groups]
test = ["pytest"]
"""
PROJECT_README = """# NAME

Agents for Minions, in `FILE`. The test runs them on a private installation, with a scripted model.

    pytest                # test them
    minion dev FILE       # run everything here, and store them at every save

In another terminal:

    minion submit NAME '{"text": "Which plan has account 7?"}' --wait
"""


def scaffold(kind: str, name: str, *, python: bool = False, folder: Path) -> list[Path]:
    """Write the files of a scaffold and return them.

    Args:
        kind: `agent`, `tool`, `function` or `project`.
        name: lower-case letters, digits, `_` and `-`.
        python: the definitions are Python instead of YAML. Those of a tool always are.
        folder: for the files of an agent or a function, or for the new folder of a tool or a project.

    Raises:
        InvalidInput: the name is not valid.
        Conflict: a file or folder exists. Nothing is written.
        FileFault: a file cannot be written.
    """
    module = _module(name)
    files = _files(kind, module, python)
    place = folder / name if kind in ("tool", "project") else folder
    if place != folder and place.exists():
        raise Conflict(f"{place} exists. Choose another name.")
    texts = {place / each.replace("MODULE", module): text for each, text in files.items()}
    if taken := [file for file in texts if file.exists() or file.is_symlink()]:
        raise Conflict(f"{taken[0]} exists and is not overwritten. Choose another name, or remove it.")
    values = {"MODULE": module, "NAME": name, "VERSION": __version__, "FILE": _definitions_file(kind, module, python)}
    try:
        place.mkdir(exist_ok=True)
        for file, text in texts.items():
            with file.open("x", encoding="utf-8") as new:
                new.write(_filled(text, values))
    except OSError as error:
        raise FileFault(f"{error.filename} cannot be written: {error.strerror}.") from None
    return [*texts]


def _module(name: str) -> str:
    module = name.replace("-", "_")
    if not NAME.fullmatch(name):
        raise InvalidInput(
            f"The name {name[:100]!r} is not valid: it must begin with a letter, and have lower-case letters, digits, "
            "_ and - only, and at most 50 characters."
        )
    if keyword.iskeyword(module) or module in sys.stdlib_module_names or module in TAKEN:
        raise InvalidInput(f"The name {name!r} is not valid: {module!r} has a meaning in Python. Choose another one.")
    return module


def _files(kind: str, module: str, python: bool) -> Mapping[str, str]:
    """Return the texts by name."""
    definition = "MODULE.py" if python else "MODULE.yaml"
    if kind == "function":
        plain = {"MODULE.yaml": FUNCTION_YAML, "MODULE.py": FUNCTION_BODY}
        return {**({"MODULE.py": FUNCTION_PYTHON} if python else plain), "test_MODULE.py": FUNCTION_TEST}
    if kind == "agent":
        text = AGENT_PYTHON if python else AGENT_YAML
        return {definition: text, "test_MODULE.py": AGENT_TEST}
    if kind == "tool":
        code = {"MODULE.py": TOOL_PYTHON, "test_MODULE.py": TOOL_TEST}
        return {"pyproject.toml": TOOL_PYPROJECT, **code, "README.md": TOOL_README}
    return {
        "pyproject.toml": PROJECT_PYPROJECT,
        definition: PROJECT_PYTHON if python else PROJECT_YAML,
        "test_MODULE.py": PROJECT_TEST,
        "README.md": PROJECT_README,
        ".gitignore": "__pycache__/\n.venv/\n",
    }


def _definitions_file(kind: str, module: str, python: bool) -> str:
    return f"{module}.py" if python or kind == "tool" else f"{module}.yaml"


def _filled(text: str, values: Mapping[str, str]) -> str:
    return re.sub("|".join(values), lambda match: values[match[0]], text)
