"""Replay from a step and comparison of tasks: over HTTP, with the Python client, on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from typer.testing import CliRunner, Result

from minions import Client, errors
from orchestrator.cli import app
from tests.conftest import Define
from tests.integration.api.conftest import Api
from tests.integration.conftest import ACT, InlineWorker, Tasks
from tests.support.background_worker import working

CHAIN = {
    "kind": "agent",
    "name": "Chain",
    "type": "function",
    "relations": [{"agent": "First"}, {"agent": "Second"}],
    "config": {"capabilities": ["work"]},
}


@pytest.fixture
def first(define: Define, tasks: Tasks, inline_worker: InlineWorker) -> str:
    """A chain of two sub-tasks that has ended: the first one's output is the input of the second."""
    helper = {"kind": "agent", "type": "function", "tool": "act", "config": {"capabilities": ["other"]}}
    define(ACT, {**helper, "name": "First"}, {**helper, "name": "Second"}, CHAIN)
    task = tasks.submit("Chain", {"answer": {"answer": "deep"}})
    inline_worker.run_all()
    assert tasks.get(task)["output"] == "deep"
    return str(task)


@pytest.fixture
def run_cli(http_api: Api, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the command line: `minion("diff", …)`."""
    for module in ("replays", "diff", "tasks"):
        monkeypatch.setattr(
            f"orchestrator.commands.{module}.connect", lambda *_: Client(http_api.url, http_api.key, retries=1)
        )

    def run(*words: str, input: str | None = None) -> Result:
        return CliRunner().invoke(app, words, input=input)

    return run


def test_over_the_client(client: Client, inline_worker: InlineWorker, first: str) -> None:
    same = client.replay(first, from_step=2)
    other = client.replay(first, from_step=1, edited_output={"answer": None})
    inline_worker.run_all()
    assert client.get(same.id).output == "deep"
    assert client.get(other.id).output is None
    assert [step["copied_from"] for step in client.steps(same.id)] == [first, None]
    assert client.diff(first, same.id).equal
    found = client.diff(first, other.id)
    assert {(each.step, each.what) for each in found.differences} == {
        (None, "output"),
        (1, "output"),
        (2, "input"),
        (2, "output"),
    }
    with pytest.raises(errors.InvalidInput, match="from step 4: its steps are 1 to 2"):
        client.replay(first, from_step=4)
    with pytest.raises(errors.NotFound):
        client.diff(first, uuid4())


def test_http_refuses_invalid_replays(http: httpx2.Client, first: str) -> None:
    for body, says in (
        ({"edited_output": None}, "edited_output needs from_step"),
        ({"from_step": "1"}, "from_step"),
        ({"from_step": 0}, "from step 0"),
    ):
        answer = http.post(f"/v1/tasks/{first}/replay", json=body)
        assert answer.status_code == 422
        assert says in answer.json()["detail"]


def test_json_null_is_an_edit(http: httpx2.Client, first: str) -> None:
    made = http.post(f"/v1/tasks/{first}/replay", json={"from_step": 2, "edited_output": None})
    assert made.status_code == 201
    steps = http.get(f"/v1/tasks/{made.json()['id']}/steps").json()["items"]
    assert (steps[1]["output"]["output"], steps[1]["usage"]["edited"]["by"][:4]) == (None, "api:")


def test_on_the_command_line(run_cli: Any, inline_worker: InlineWorker, first: str, tmp_path: Path) -> None:
    file = tmp_path / "output.json"
    file.write_text('{"answer": "edited"}')
    done = run_cli("replay", first, "--from-step", "1", "--edit-output", str(file), "--json")
    [made] = json.loads(done.stdout)["replayed"]
    inline_worker.run_all()
    assert "continues from step 2" in run_cli("why", made["replayed_as"]).stdout
    shown = run_cli("show", made["replayed_as"])
    assert f"finished (copied from {first}, edited)" in shown.stdout.replace("\n", " ")
    different = run_cli("diff", first, made["replayed_as"])
    assert different.exit_code == 1
    assert '-"deep"' in different.stdout
    assert '+"edited"' in different.stdout
    assert "2 (1 copied)" in different.stdout
    again = run_cli("replay", first, "--from-step", "2", "--json")
    inline_worker.run_all()
    same = run_cli("diff", first, json.loads(again.stdout)["replayed"][0]["replayed_as"], "--json")
    assert (same.exit_code, json.loads(same.stdout)["equal"]) == (0, True)


def test_command_line_refuses_invalid_replays(run_cli: Any, first: str) -> None:
    for words, says in (
        (["--edit-output", "x.json"], "--edit-output needs --from-step"),
        (["--from-step", "1", "--dry-run"], "--from-step is for one task"),
        (["--from-step", "1", "01b20424"], "--from-step is for one task"),
        (["--from-step", "1", "--edit-output", "nowhere.json"], "cannot be read"),
        (["--from-step", "1", "--edit-output", "-"], "is not valid JSON"),
        (["--from-step", "1", "--cut"], "--cut needs --latest and --from-step"),
    ):
        done = run_cli("replay", first, *words, input="{")
        assert done.exit_code != 0
        assert says in " ".join((done.stderr + str(done.exception)).replace("│", "").split())


def test_active_version_keeps_steps_that_it_asks_for(
    client: Client, define: Define, inline_worker: InlineWorker, first: str
) -> None:
    define({**CHAIN, "relations": [*CHAIN["relations"], {"agent": "First"}]})
    again = client.replay(first, pinned=False, from_step=3)
    inline_worker.run_all()
    ended = client.get(again.id)
    assert (ended.agent_version, [step["copied_from"] for step in client.steps(again.id)]) == (2, [first, first, None])


def test_active_version_that_asks_otherwise_fails_before_any_effect(
    client: Client, define: Define, inline_worker: InlineWorker, first: str
) -> None:
    define({**CHAIN, "relations": [{"agent": "First"}, {"agent": "First"}]})
    again = client.replay(first, pinned=False, from_step=3)
    inline_worker.run_all()
    ended = client.get(again.id)
    assert ended.error is not None
    assert (ended.state, ended.error["type"], ended.error["step"]) == ("failed", "history_diverged", 2)
    assert "step 2: the journal holds subtask 'Second', and this run asks for subtask 'First'" in ended.error["message"]
    assert len(list(client.tree(again.id))) == 1


def test_cut_continues_from_the_step_that_differs(
    run_cli: Any, client: Client, define: Define, inline_worker: InlineWorker, first: str
) -> None:
    define({**CHAIN, "relations": [{"agent": "First"}, {"agent": "First"}]})
    with working(inline_worker):
        done = run_cli("replay", first, "--latest", "--from-step", "3", "--cut")
        ended = client.wait(next(task for task in client.tasks() if task.replay_of == first), timeout=30)
    assert "Cut at step 2: History diverged at step 2" in done.stderr
    assert (ended.state, ended.agent_version) == ("succeeded", 2)
    assert [step["copied_from"] for step in client.steps(ended.id)] == [first, None]
