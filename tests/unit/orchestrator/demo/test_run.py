"""The whole demo against a client that runs the definitions in this process, immediately and without a sandbox."""

from __future__ import annotations

import io
import json
import uuid
from datetime import UTC, datetime, timedelta
from importlib import metadata
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from minions.errors import WaitTimeout
from minions.task import Task
from orchestrator.demo import distributions, tools
from orchestrator.demo.run import run
from shared.contracts.json_schema import violations
from shared.definitions.files import load
from workers.llm.base import ModelRequest, ToolSpec
from workers.llm.offline import NOTICE, OfflinePlanner

DISTRIBUTIONS = ("celery", "kombu", "billiard", "redis", "SQLAlchemy", "psycopg", "certifi", "Jinja2", "minions-server")


class Failed(Exception):
    """A sub-task failed; carries its error."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error["message"])
        self.error = error


class LocalClient:
    """Client that executes the demo's definitions as the system would, as far as the demo depends on it."""

    def __init__(self, data_dir: Any) -> None:
        self.data_dir = data_dir
        self.definitions: dict[tuple[str, str], Any] = {}
        self.done: list[Any] = []

    def apply(self, path: Any) -> None:
        self.definitions |= {(definition.kind, definition.name): definition for definition in load(path)}

    def submit(self, agent: str, input: Any) -> Any:
        return self.perform(agent, input, str(uuid.uuid4()))

    def wait(self, task_id: str, timeout: float) -> Any:
        return self.get(task_id)

    def replay(self, task_id: str) -> Any:
        task = self.get(task_id)
        return self.submit(task.agent, task.input)

    def get(self, task_id: str) -> Any:
        return next(task for task in self.done if task.id == task_id)

    def tasks(self, *, root_id: str, agent: str | None = None) -> Any:
        return (task for task in self.done if task.root_id == root_id and agent in (None, task.agent))

    def counts(self, *, root_id: str) -> Any:
        states = [task.state for task in self.tasks(root_id=root_id)]
        return {"by_state": {state: states.count(state) for state in set(states)}}

    def perform(self, agent: str, value: Any, root_id: str) -> Any:
        definition = self.definitions["agent", agent]
        began = datetime.now(UTC)
        state, output, error = "succeeded", None, None
        task_id = root_id if agent in ("audit", "audit-report") and not self.started(root_id) else str(uuid.uuid4())
        try:
            assert not violations(definition.input_schema or {}, value)
            output = self.work(definition, value, root_id)
            assert not violations(definition.output_schema or {}, output)
        except Failed as failure:
            state, error = "failed", failure.error
        task = Task(
            id=task_id,
            root_id=root_id,
            agent=agent,
            capability=definition.config.capabilities[0],
            state=state,
            input=value,
            output=output,
            error=error,
            labels={},
            created_at=began,
            finished_at=began + timedelta(seconds=1),
        )
        self.done.append(task)
        return task

    def started(self, root_id: str) -> bool:
        return any(task.root_id == root_id for task in self.done)

    def work(self, definition: Any, value: Any, root_id: str) -> Any:
        if definition.relations:
            return self.chain(definition, value, root_id)
        if definition.function:
            return self.function(self.definitions["function", definition.function], value)
        if definition.tool:
            return self.tool(definition.tool, value, root_id)
        return self.plan(definition, value, root_id)

    def chain(self, definition: Any, value: Any, root_id: str) -> Any:
        for relation in definition.relations:
            if relation.for_each:
                children = [self.perform(relation.agent, item, root_id) for item in value[relation.for_each]]
                value = {"results": [collected(child) for child in children]}
                continue
            child = self.perform(relation.agent, value, root_id)
            if child.state != "succeeded":
                cause = child.error.get("cause") or {"error": child.error}
                raise Failed({"type": "subtask_failed", "message": "A sub-task failed.", "cause": cause})
            value = child.output
        return value

    def function(self, definition: Any, value: Any) -> Any:
        names: dict[str, Any] = {}
        exec(compile(definition.code, definition.name, "exec", dont_inherit=True), names)
        try:
            return names[definition.entrypoint](**value)
        except ValueError as error:
            raise Failed({"type": "function_error", "message": f"Function f@1: ValueError: {error}"}) from error

    def tool(self, name: str, value: Any, root_id: str) -> Any:
        definition = self.definitions["tool", name]
        assert not violations(definition.input_schema, value)
        context = SimpleNamespace(root_id=root_id, data_dir=self.data_dir)
        output = getattr(tools, definition.builtin.replace("-", "_"))(value, context)
        assert not violations(definition.output_schema, output)
        return output

    def plan(self, definition: Any, value: Any, root_id: str) -> Any:
        found = [self.definitions["tool", name] for name in definition.tools]
        specs = tuple(ToolSpec(tool.name, tool.description, tool.input_schema) for tool in found)
        messages: list[dict[str, Any]] = [{"role": "user", "content": json.dumps(value)}]
        while True:
            request = ModelRequest("offline", definition.system_prompt, messages, specs, 1000, input=value)
            (block,) = OfflinePlanner().complete(request, print).content
            if block["type"] == "text":
                return block["text"]
            result = json.dumps(self.tool(block["name"], block["input"], root_id))
            answer = {"type": "tool_result", "tool_use_id": block["id"], "content": result}
            messages += [{"role": "assistant", "content": [block]}, {"role": "user", "content": [answer]}]


def collected(child: Any) -> dict[str, Any]:
    entry = {"task_id": child.id, "agent": child.agent, "state": child.state}
    if child.state == "succeeded":
        return {**entry, "output": child.output}
    return {**entry, "input": child.input, "error": child.error}


@pytest.fixture
def client(tmp_path, monkeypatch):
    """The client, where few distributions are installed; acceptance/test_demo.py audits all."""
    few = [found for found in metadata.distributions() if found.name in DISTRIBUTIONS]
    monkeypatch.setattr(distributions.metadata, "distributions", lambda: few)
    return LocalClient(tmp_path)


def start(client, **options):
    shown = io.StringIO()
    console = Console(file=shown, width=200)
    places = {"API": "http://127.0.0.1:1/docs"}
    code = run(client, console=console, data_dir=client.data_dir, apply=client.apply, places=places, **options)
    return code, shown.getvalue()


def test_demo_audits_improves_and_reports(client):
    code, shown = start(client)

    assert code == 0
    assert "covers several licences" in shown
    assert "replayed tasks succeeded" in shown
    assert NOTICE in shown
    assert "http://127.0.0.1:1/docs" in shown
    assert len(list(client.data_dir.glob("reports/*/report.html"))) == 2


def test_json_is_one_object(client):
    code, shown = start(client, as_json=True)
    result = json.loads(shown)

    assert code == 0
    assert result["ok"] is True
    assert result["cured"] == result["replayed"] == sum(len(names) for names in result["failed"].values()) > 0
    assert set(result["tasks"]) == {"inspect", "classify", "report"}
    assert result["latency"]["inspect"]["p95"] == 1.0
    assert result["report"] != result["first_report"]


def test_second_report_contains_every_distribution(client):
    _, shown = start(client, as_json=True)
    audits = [json.loads(file.read_text()) for file in client.data_dir.glob("reports/*/audit.json")]

    assert len({audit["headline"]["distributions"] for audit in audits}) == 1
    assert sorted(audit["headline"]["failed"] for audit in audits) == [0, json.loads(shown)["replayed"]]


def test_number_of_tasks_matches_the_progress_bar(client):
    start(client)
    audit = next(task for task in client.done if task.agent == "audit")
    tasks = [task.agent for task in client.tasks(root_id=audit.root_id)]

    refused = sum(task.state == "failed" for task in client.tasks(root_id=audit.root_id, agent="normalise-licence"))
    # A refused licence leaves nothing to classify.
    assert len(tasks) == tasks.count("audit-distribution") * 5 + 7 - refused


def test_demo_runs_twice(client):
    assert start(client)[0] == 0
    client.done.clear()
    code, shown = start(client)

    # Applying the demo's definitions again brings version 1 back.
    assert code == 0
    assert "covers several licences" in shown


def test_failed_audit_is_an_exit_code(client, monkeypatch):
    def refuse(*_):
        raise Failed({"type": "tool_error", "message": "No [disk] left."})

    monkeypatch.setattr(client, "tool", refuse)
    code, shown = start(client)

    assert code == 1
    assert "No [disk] left." in shown


def test_waiting_has_a_timeout(client, monkeypatch):
    running = Task(id="1", root_id="1", agent="audit", state="running", labels={}, created_at=datetime.now(UTC))
    monkeypatch.setattr(client, "submit", lambda *_: running)
    monkeypatch.setattr(client, "get", lambda _: running)

    with pytest.raises(WaitTimeout, match="Is a minion running"):
        start(client, timeout=0.1)
