"""Code mode: a program's calls are steps of its task, through approvals, crashes, failures and hostile programs."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from minions import testing
from minions.testing import MessagesApi, tool_use
from shared.database.connections import transaction
from shared.tasks import lifecycle
from shared.tasks.states import FINAL
from tests.integration.agents.conftest import ANYTHING, DefineAgent
from tests.integration.agents.test_determinism import RELEASE, Died, dying
from tests.integration.conftest import ACT, InlineWorker, Tasks
from workers import minion

LOOP = """
total = 0
for number in range(3):
    paid = await act(do="answer", answer=total + number, log=LOGS + "/act")
    total += paid + 1
checked = await careful(do="answer", answer=total, log=LOGS + "/careful")
sent = await send(do="answer", answer=checked * 2, log=LOGS + "/send")
return {"total": total, "sent": sent}
"""
"""Each call depends on the result of the one before: in a loop, then with an approval, then unsafe."""
CALLED = ("act", "careful", "send")
TOOLS = ["echo", *CALLED, "help"]


def program(code: str, **values: Any) -> dict[str, Any]:
    """A model's turn that runs a program, with values for its constants."""
    constants = "".join(f"{name} = {value!r}\n" for name, value in values.items())
    return tool_use(("run_program", {"code": constants + code.lstrip("\n")}))


@pytest.fixture
def coder(define_agent: DefineAgent) -> Callable[..., None]:
    """Defines `Agent` in code mode."""

    def make(code_mode: Any = True, config: dict[str, Any] | None = None, **fields: Any) -> None:
        define_agent(config={"code_mode": code_mode, **(config or {})}, **{"tools": TOOLS, **fields})

    return make


class Run:
    """One task with a script of programs."""

    def __init__(self, tasks: Tasks, inline_worker: InlineWorker, messages_api: MessagesApi) -> None:
        self.tasks, self.inline_worker, self.api = tasks, inline_worker, messages_api
        self.task = UUID(int=0)

    def __call__(self, *turns: dict[str, Any], value: Any = "Hello", **fields: Any) -> dict[str, Any]:
        """Run a task to its end; people approve what it asks for."""
        self.submit(*turns, value=value, **fields)
        self.finish()
        return self.tasks.get(self.task)

    def submit(self, *turns: dict[str, Any], value: Any = "Hello", **fields: Any) -> None:
        self.replies = [*turns, testing.text("Done.")]
        self.task = self.tasks.submit("Agent", value, **fields)

    def finish(self, looking_at: Path | None = None) -> None:
        """Run the task until it ends. A person approves, and looks into the logs of interrupted calls."""
        for _ in range(100):
            if (now := self.tasks.get(self.task))["state"] in FINAL:
                return
            if now["wait_reason"] == "approval":
                self.decide("approve")
            if now["wait_reason"] == "answer":
                [step] = [each for each in self.steps() if (each["status"], each["effect"]) == ("started", "unsafe")]
                was_made = looking_at is not None and (looking_at / step["name"]).exists()
                self.decide("result" if was_made else "again", value=step["input"]["arguments"]["answer"])
            self.round()
        raise AssertionError(f"it did not end: {self.tasks.get(self.task)}")

    def round(self) -> None:
        """Run the task if it is due. The model's reply depends on the turn, not on the number of requests."""
        for message in self.inline_worker.dispatch():
            turns = [step for step in self.steps("model_call") if step["status"] == "finished"]
            self.api.script = self.replies[len(turns) :] or self.replies[-1:]
            minion.run(message.task_id, message.claim, self.inline_worker.id)

    def decide(self, verdict: str, value: Any = None) -> None:
        given = {} if verdict == "again" else {"value": value}
        with transaction() as connection:
            lifecycle.decide(connection, self.task, verdict, who="test", **given)

    def lose(self) -> None:
        """The worker is found to be gone."""
        with self.inline_worker.engine.begin() as connection:
            connection.execute(RELEASE, {"task": self.task})

    def steps(self, *kinds: str) -> list[dict[str, Any]]:
        return [step for step in self.tasks.steps(self.task) if not kinds or step["kind"] in kinds]

    def told(self) -> Any:
        """Return what the model received of its last program: a value, or the text of an error."""
        block = self.api.requests[-1]["messages"][-1]["content"][0]
        assert block["type"] == "tool_result"
        content = block["content"] if isinstance(block["content"], str) else block["content"][0]["text"]
        return content if block.get("is_error") else json.loads(content)


@pytest.fixture
def run(tasks: Tasks, inline_worker: InlineWorker, messages_api: MessagesApi) -> Run:
    return Run(tasks, inline_worker, messages_api)


def test_model_receives_one_tool(run: Run, coder: Any) -> None:
    coder()
    run(program("return 1"))
    [tool] = run.api.requests[0]["tools"]
    assert tool["name"] == "run_program"
    assert list(tool["input_schema"]["properties"]) == ["code"]
    for name in TOOLS:
        assert f"async def {name}(" in tool["description"]
    assert "search_tools" not in tool["description"]


def test_calls_of_a_program_are_steps(run: Run, coder: Any, tmp_path: Path) -> None:
    coder()
    task = run(program(LOOP, LOGS=str(tmp_path)))
    assert task["state"] == "succeeded"
    assert run.told() == {"result": {"total": 11, "sent": 22}}
    steps = run.steps()
    assert [(step["kind"], step["name"], step["program"], step["line"]) for step in steps] == [
        ("model_call", "claude-sonnet-5-5", None, None),
        ("tool_call", "run_program", 2, None),
        *(("tool_call", "act", 2, 4) for _ in range(3)),
        ("wait", "careful", 2, 6),
        ("tool_call", "careful", 2, 6),
        ("tool_call", "send", 2, 7),
        ("model_call", "claude-sonnet-5-5", None, None),
    ]
    assert [step["output"] for step in steps[2:5]] == [0, 2, 6]
    assert {step["status"] for step in steps} == {"finished"}


def test_each_call_is_made_once_wherever_the_process_dies(
    run: Run, coder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coder(config={"retry_backoff": 0, "max_attempts": 100})
    for commit, before in itertools.product(range(1, 30), (True, False)):
        logs = tmp_path / f"{commit}{before}"
        logs.mkdir()
        run.submit(program(LOOP, LOGS=str(logs)))
        try:
            with dying(monkeypatch, commit, before=before):
                run.finish(looking_at=logs)
        except Died:
            run.lose()
            run.finish(looking_at=logs)
        else:
            break
        assert run.told() == {"result": {"total": 11, "sent": 22}}, (commit, before)
        keys = {name: [line.split()[2] for line in (logs / name).read_text().splitlines()] for name in CALLED}
        # The service recognises a repeated idempotent call by its key.
        assert {name: len({*made}) for name, made in keys.items()} == {"act": 3, "careful": 1, "send": 1}
        assert (len(keys["careful"]), len(keys["send"])) == (1, 1), (commit, before)
        assert {step["status"] for step in run.steps()} == {"finished"}
    assert commit > 12
