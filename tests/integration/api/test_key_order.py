"""The order of keys over HTTP: it is shown as submitted."""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import Any
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import Engine
from typer.testing import CliRunner

from minions import Client
from orchestrator.cli import app
from shared.tasks import lifecycle
from shared.tasks.states import State

pytestmark = pytest.mark.usefixtures("agents")

INPUT = '{"query":"x","limit":3,"also":{"zz":1,"y":[{"b":1,"a":2},{"a":1,"b":2}]}}'


def finished(database: Engine, output: Any) -> UUID:
    """Runs the only task."""
    with database.begin() as connection:
        worker = connection.exec_driver_sql(
            "INSERT INTO workers (name, capabilities, slots, pool, host, pid, version) "
            "VALUES ('w', '{echo}', 1, 'prefork', 'h', 1, '0') RETURNING id"
        ).scalar_one()
        [sent] = lifecycle.dispatch(connection, lease=10, window=64)
        claimed = lifecycle.claim(connection, sent.task_id, sent.claim, worker)
        assert claimed
        assert json.dumps(claimed["input"], separators=(",", ":")) == INPUT
        step = {"number": 1, "kind": "tool_call", "name": "noop", "status": "finished", "request_hash": "h"}
        result = {"output": output, "steps": [{**step, "input": json.loads(INPUT), "output": output}]}
        lifecycle.finish(connection, sent.task_id, claimed["claim"], State.SUCCEEDED, result)
    return sent.task_id


def test_tasks_and_steps(http: httpx2.Client, database: Engine) -> None:
    body = f'{{"agent":"Echo","input":{INPUT}}}'
    created = http.post("/v1/tasks", content=body, headers={"content-type": "application/json"})
    assert INPUT in created.text
    task = finished(database, {"reasoning": "because", "score": 1})
    shown = http.get(f"/v1/tasks/{task}").text
    assert INPUT in shown
    assert '"output":{"reasoning":"because","score":1}' in shown
    steps = http.get(f"/v1/tasks/{task}/steps").text
    assert INPUT in steps
    assert '"output":{"reasoning":"because","score":1}' in steps
    assert "_order" not in shown + steps
    listed = http.get("/v1/tasks", params={"outputs": "true"}).text
    assert '"output":{"reasoning":"because","score":1}' in listed


def test_client_and_command_line(client: Client, database: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    client.submit("Echo", json.loads(INPUT))
    task = finished(database, {"reasoning": "because", "score": 1})
    assert json.dumps(client.get(task).input, separators=(",", ":")) == INPUT
    monkeypatch.setattr("orchestrator.commands.tasks.connect", lambda *_: nullcontext(client))
    shown = CliRunner().invoke(app, ["show", str(task), "--json"], catch_exceptions=False).stdout
    assert INPUT in json.dumps(json.loads(shown), separators=(",", ":"))


def test_definitions(http: httpx2.Client, define: Any) -> None:
    schema = {"properties": {"verdict": {"description": "b", "type": "string"}, "a": {}}, "type": "object"}
    define(
        {"kind": "agent", "name": "Judge", "output_schema": schema},
        {"kind": "function", "name": "f", "code": "def f(**given):\n    return given\n", "input_schema": schema},
    )
    for path, field in (("/v1/agents/Judge", "output_schema"), ("/v1/functions/f", "input_schema")):
        shown = http.get(path).json()["definition"]
        assert json.dumps(shown[field]) == json.dumps(schema)
