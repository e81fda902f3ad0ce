"""examples/evaluation: ten runs are recorded, the agent is broken on purpose, and each level catches what it should.

The model is a script that reads its prompt, its tools and the conversation, and does what the prompt says.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import structlog
import yaml
from sqlalchemy import text
from sqlalchemy.orm import Session

from minions import Client
from minions.testing import MessagesApi, Reply, tool_use
from minions.testing import text as said
from orchestrator.cases.case import schema
from shared.definitions.apply import store_definitions
from shared.definitions.files import load
from tests.integration.api.conftest import Run
from tests.integration.conftest import InlineWorker
from tests.support.model_client import use_messages_api
from tests.support.processes import ROOT

FILE = ROOT / "examples" / "evaluation" / "retail.yaml"
WISHES = {
    **{f"W-{n}": ("mia@example.com", "return") for n in (1, 2, 4)},
    **{f"W-{n}": ("mia@example.com", "cancel") for n in (3, 5)},
    **{f"W-{n}": ("noah@example.com", "return") for n in (6, 7, 9)},
    **{f"W-{n}": ("noah@example.com", "cancel") for n in (8, 10)},
}
RETURNED = {"W-1", "W-4", "W-6", "W-9"}
FORBIDDEN = {"W-2", "W-7"}  # Ear plugs.
EVERY = set(WISHES)
CHECK = "Before you return one, check that the rules allow it."


class ScriptedModel(MessagesApi):
    """A model that obeys its prompt."""

    def answer(self, headers: dict[str, str], body: dict[str, Any]) -> tuple[int, Reply]:
        self.note(headers, body)
        return 200, self.message(body, self._reply(body))

    def _reply(self, body: dict[str, Any]) -> Reply:
        prompt, offered = json.dumps(body["system"]), {tool["name"] for tool in body["tools"]}
        asked = json.loads(_text(body["messages"][0]["content"]))
        got = dict(_results(body["messages"]))
        order = asked["order"]
        if "find_customer" not in got:
            return tool_use(("find_customer", {"email": asked["customer"]}))
        if "get_order" not in got:
            return tool_use(("get_order", {"order": order}))
        product = got["get_order"]["product"]
        if "product twice" in prompt and "get_product" not in got:
            return tool_use(("get_product", {"product": product}))
        if asked["wish"] == "cancel":
            if got["get_order"]["status"] != "pending":
                return _answer(order, False)
            return _answer(order, True) if "cancel_order" in got else tool_use(("cancel_order", {"order": order}))
        if "check that the rules" in prompt and "check_return" in offered and "check_return" not in got:
            return tool_use(("check_return", {"order": order, "product": product}))
        if not got.get("check_return", {"allowed": True})["allowed"]:
            return _answer(order, False)
        return _answer(order, True) if "start_return" in got else tool_use(("start_return", {"order": order}))


def _answer(order: str, done: bool) -> Reply:
    return said(json.dumps({"order": order, "done": done}))


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(block.get("text", "") for block in content)


def _results(messages: list[dict[str, Any]]) -> Iterator[tuple[str, Any]]:
    names = {}
    for message in messages:
        for block in message["content"] if isinstance(message["content"], list) else ():
            if block["type"] == "tool_use":
                names[block["id"]] = block["name"]
            elif block["type"] == "tool_result":
                yield names[block["tool_use_id"]], json.loads(_text(block["content"]))


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, inline_worker: InlineWorker, run_cli: Run) -> Iterator[ScriptedModel]:
    """The scripted model, the stored agent, and a worker that runs all that is due."""
    with inline_worker.engine.begin() as connection:
        connection.execute(text("UPDATE workers SET capabilities = capabilities || '{refunds}'"))
    with Session(inline_worker.engine) as session:
        store_definitions(session, load(FILE))
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(0.01):
            inline_worker.run_due()

    before = structlog.get_config()
    # The log of the worker would be in the output of the commands.
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    with use_messages_api(ScriptedModel(), monkeypatch) as api:
        thread = threading.Thread(target=work)
        thread.start()
        yield api
        stop.set()
        thread.join()
    structlog.configure(**before)


@pytest.fixture
def cases(model: ScriptedModel, client: Client, run_cli: Run, tmp_path: Path) -> Path:
    """A folder with ten recorded runs. What is expected of them was written by a person."""
    folder = tmp_path / "cases"
    folder.mkdir()
    tasks = {
        order: client.submit("retail-desk", {"customer": email, "order": order, "wish": wish})
        for order, (email, wish) in WISHES.items()
    }
    for order, task in tasks.items():
        assert client.wait(task, timeout=60).succeeded
        done = run_cli("record", task.id, "--name", order, "--redact", "$.task.input.customer")
        assert (done.code, "example.com" in done.out) == (0, False)
        checked = {"tools": {"called": ["check_return"]}} if WISHES[order][1] == "return" else {}
        expected = {**checked, "limits": {"steps": 9}, "output_schema": {"required": ["done"]}}
        case = done.out + yaml.safe_dump({"expect": expected})
        (folder / f"{order}.yaml").write_text(case)
    return folder


def change(client: Client, inline_worker: InlineWorker, tmp_path: Path, **fields: Any) -> str:
    """Apply another version of the agent; return its name with its version."""
    documents = list(yaml.safe_load_all(FILE.read_text()))
    file = tmp_path / "changed.yaml"
    file.write_text(yaml.safe_dump({**documents[-1], **fields}))
    with Session(inline_worker.engine) as session:
        store_definitions(session, load(file))
    return f"retail-desk@{client.agent('retail-desk')['version']}"


PROMPT = list(yaml.safe_load_all(FILE.read_text()))[-1]["system_prompt"]
SCHEMA = {"type": "object", "properties": {"label": {"type": "string"}}, "required": ["label"]}
TOOLS = ["find_customer", "get_order", "get_product", "start_return", "cancel_order"]
VERSIONS: dict[str, tuple[dict[str, Any], dict[str, set[str]]]] = {
    "other words": (
        {"system_prompt": f"{PROMPT} Be brief."},
        {"replay": set(), "shadow": set(), "judge": set()},
    ),
    "tool removed": (
        {"tools": TOOLS},
        {"replay": RETURNED | FORBIDDEN, "shadow": FORBIDDEN, "judge": RETURNED | FORBIDDEN},
    ),
    "check skipped": (
        {"system_prompt": PROMPT.replace(CHECK, "")},
        {"replay": set(), "shadow": FORBIDDEN, "judge": RETURNED | FORBIDDEN},
    ),
    "wrong schema": (
        {"output_schema": SCHEMA},
        {"replay": EVERY, "shadow": EVERY, "judge": EVERY},
    ),
    "one call too many": (
        {"system_prompt": f"{PROMPT} Look at the product twice."},
        {"replay": set(), "shadow": set(), "judge": RETURNED},
    ),
}


def test_each_level_catches_what_it_should_and_nothing_else(
    model: ScriptedModel, cases: Path, client: Client, inline_worker: InlineWorker, run_cli: Run, tmp_path: Path
) -> None:
    found = {}
    for name, (fields, levels) in VERSIONS.items():
        version = change(client, inline_worker, tmp_path, **fields)
        for level in levels:
            report = tmp_path / f"{name} {level}.json"
            asked = len(model.requests)
            done = run_cli("eval", str(cases), "--agent", version, "--level", level, "--report", str(report))
            assert report.exists(), done
            results = json.loads(report.read_text())["results"]
            failed = {result["case"] for result in results if not result["passed"]}
            found[name, level] = failed
            assert (len(results), done.code) == (10, int(bool(failed))), done
            assert (len(model.requests) == asked) is (level == "replay")
    expected = {name: levels for name, (_, levels) in VERSIONS.items()}
    assert found == {(name, level): failed for name in expected for level, failed in expected[name].items()}

    a, b = (str(tmp_path / f"{name} shadow.json") for name in ("other words", "check skipped"))
    compared = run_cli("eval", "compare", a, b)
    assert compared.code == 1
    for part in ("W-2", "worse", "start_return", "10 of 10 passed", "8 of 10 passed", "would have called start_return"):
        assert part in compared.line, compared.out
    assert run_cli("eval", "compare", a, a).code == 0
    as_json = json.loads(run_cli("eval", "compare", a, b, "--json").out)
    assert as_json["a"]["low"] == pytest.approx(0.7225, abs=1e-4)
    different = next(case["difference"] for case in as_json["cases"] if case["case"] == "W-2")
    assert (different["step"], different["a"]["name"]) == (6, "check_return")


def test_trials_within_a_budget_as_junit(
    model: ScriptedModel, cases: Path, client: Client, run_cli: Run, tmp_path: Path
) -> None:
    junit = tmp_path / "junit.xml"
    case = str(cases / "W-1.yaml")
    options = ["--level", "shadow", "--trials", "2", "--dollars", "5", "--junit", str(junit), "--json"]
    done = json.loads(run_cli("eval", case, *options).out)
    assert (done["summary"]["trials"], done["summary"]["pass_k"]) == (2, [1.0, 1.0])
    assert done["summary"]["dollars"] > 0
    task = client.get(done["results"][0]["task"])
    assert task.labels["case"] == "W-1"
    assert task.budget is not None
    assert task.budget["dollars"]["limit"] == 2.5
    [suite] = ElementTree.parse(junit).getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("2", "0")
    poor = run_cli("eval", case, "--level", "shadow", "--dollars", "0.000001")
    assert (poor.code, "budget" in poor.line) == (1, True)


JUDGE = """
kind: function
name: judge_calls
code: |
  def judge_calls(question: str, input: dict, output: dict, calls: list) -> dict:
      return {"score": len(calls) / 10, "reason": f"{question} {len(calls)} calls for {output['order']}."}
---
{kind: agent, name: call-judge, type: function, function: judge_calls, config: {capabilities: [refunds]}}
"""


def test_agents_judge_what_else_holds(
    model: ScriptedModel, cases: Path, client: Client, inline_worker: InlineWorker, run_cli: Run, tmp_path: Path
) -> None:
    (tmp_path / "judge.yaml").write_text(JUDGE)
    with Session(inline_worker.engine) as session:
        store_definitions(session, load(tmp_path / "judge.yaml"))
    case = yaml.safe_load((cases / "W-1.yaml").read_text())
    file = tmp_path / "judged.yaml"
    for least, code in ((0.4, 0), (0.5, 1)):
        judge = {"agent": "call-judge", "question": "Enough?", "at_least": least}
        file.write_text(yaml.safe_dump({**case, "expect": {"judges": [judge]}}))
        done = run_cli("eval", str(file), "--level", "judge")
        assert (done.code, "call-judge judged: Enough? 4 calls for W-1." in done.line) == (code, bool(code)), done
    assert all(task.deadline is not None for task in client.tasks(agent="call-judge"))


def test_refused_case_fails_and_the_others_are_run(model: ScriptedModel, cases: Path, run_cli: Run) -> None:
    case = yaml.safe_load((cases / "W-1.yaml").read_text())
    case["task"]["input"]["file"] = {"$file": "file_" + "0" * 64}
    (cases / "W-0.yaml").write_text(yaml.safe_dump({**case, "name": "W-0"}))
    done = json.loads(run_cli("eval", str(cases), "--json").out)
    assert {result["case"] for result in done["results"] if not result["passed"]} == {"W-0"}
    assert "It was refused: The recording has the file" in done["results"][0]["faults"][0]


BAD_FILES = {
    "aliases": ("minions_case: 1\na: &a [x]\nb: [*a, *a]", "aliases"),
    "newer": ("minions_case: 2\nname: x", "has the format 2"),
    "truncated": ("minions_case: 1\nname: x\ntask: {agent: a, steps: [", "not valid YAML"),
    "no case": ("kind: agent\nname: x", "minions_case: 1"),
    "edited": ("minions_case: 1\nname: x\ntask: {agent: a, stepps: []}", "task.stepps"),
    "two": ("minions_case: 1\n---\nminions_case: 1", "one case"),
    "beside": ("minions_case: 1\nname: {$external: {path: ../../x, sha256: a, bytes: 1}}", "below the folder"),
    "object": ("!!python/object/apply:os.system [id]", "not valid YAML"),
    "deep": ("[" * 2_000, "nested too deeply"),
}


@pytest.mark.parametrize(("content", "message"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_bad_case_is_refused_with_its_place(run_cli: Run, tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    done = run_cli("eval", str(file))
    assert (done.code, message in done.line, "bad.yaml" in done.line) == (65, True, True), done


def test_large_texts_are_files_beside_the_case(
    model: ScriptedModel, client: Client, run_cli: Run, tmp_path: Path
) -> None:
    task = client.submit("retail-desk", {"customer": "x" * 20_000, "order": "W-1", "wish": "return"})
    client.wait(task, timeout=60)
    file = tmp_path / "big.yaml"
    assert run_cli("record", task.id, "--out", str(file)).code == 0
    beside = list((tmp_path / "big.files").iterdir())
    assert beside
    assert file.stat().st_size < 20_000
    assert run_cli("eval", str(file)).code == 0
    beside[0].write_text("changed")
    assert "has changed since it was recorded" in run_cli("eval", str(file)).line


def test_schema_of_cases_is_current(run_cli: Run) -> None:
    assert json.loads((ROOT / "docs" / "case.schema.json").read_text()) == schema()
    assert json.loads(run_cli("eval", "schema").out) == schema()
