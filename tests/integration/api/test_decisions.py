"""Decisions by people: calls that need approval, and steps with an unknown outcome."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from sqlalchemy import Engine, text

from minions import Client, errors, testing
from orchestrator.api.auth import fingerprint
from orchestrator.explain import explain
from shared.settings import get_settings
from tests.conftest import Define
from tests.integration.api.conftest import Api
from tests.integration.conftest import ACT, InlineWorker, Tasks


def key_of_the_api() -> str:
    """The actor that records name where the caller claims no name."""
    return f"api:{fingerprint(get_settings().require_api_key().encode())}"


@pytest.fixture
def careful(define: Define) -> str:
    """An agent whose tool needs approval."""
    define(
        {**ACT, "effect": "unsafe", "approval": True},
        {"kind": "agent", "name": "Careful", "type": "function", "tool": "act", "config": {"capabilities": ["work"]}},
    )
    return "Careful"


def test_an_approved_call_is_made_once(
    client: Client, tasks: Tasks, careful: str, inline_worker: InlineWorker, tmp_path: Path
) -> None:
    log = tmp_path / "calls"
    log.touch()
    task = tasks.submit(careful, {"do": "answer", "answer": 1, "log": str(log)})
    inline_worker._round()
    waiting = tasks.get(task)
    assert (waiting["state"], waiting["wait_reason"], log.read_text()) == ("waiting", "approval", "")
    why = client.why(task)
    assert why["facts"]["proposed"]["answer"] == 1
    assert "A person must approve step 1, act with" in why["sentence"]
    assert client.decide(task, "approve", reason="fine", step=1).state == "pending"
    inline_worker.run_all()
    assert tasks.get(task)["output"] == 1
    assert log.read_text().count("\n") == 1
    [decision, call] = tasks.steps(task)
    assert (decision["output"]["verdict"], decision["output"]["by"], decision["output"]["reason"]) == (
        "approve",
        key_of_the_api(),
        "fine",
    )
    assert call["kind"] == "tool_call"


def test_other_arguments_than_proposed(client: Client, tasks: Tasks, careful: str, inline_worker: InlineWorker) -> None:
    task = tasks.submit(careful, {"do": "answer", "answer": "too much"})
    inline_worker._round()
    client.decide(task, "approve", value={"do": "answer", "answer": "less"}, step=1)
    inline_worker.run_all()
    assert tasks.get(task)["output"] == "less"
    assert tasks.steps(task)[1]["input"]["arguments"] == {"do": "answer", "answer": "less"}


NUMBER = {"type": "object", "properties": {"answer": {"type": "integer"}}, "required": ["answer"]}
TEXT = {"type": "object", "properties": {"answer": {"type": "string"}}}
CONFIG = {"capabilities": ["work"]}


def refused(client: Client, task: Any, value: Any, match: str) -> None:
    """An approval with other arguments is refused with the faults' paths, and nothing is decided."""
    with pytest.raises(errors.InvalidInput, match=match) as error:
        client.decide(task, "approve", value=value, step=1)
    assert error.value.detail["violations"]
    with pytest.raises(errors.InvalidInput):
        client.decide(task, "approve", value=value, proposal=client.why(task)["facts"]["proposal"])
    assert client.why(task)["reason"] == "approval"


def test_edited_arguments_must_fit_the_pinned_tool_version(
    client: Client, tasks: Tasks, define: Define, inline_worker: InlineWorker
) -> None:
    tool = {**ACT, "approval": True, "input_schema": NUMBER}
    define(tool, {"kind": "agent", "name": "Careful", "type": "function", "tool": "act", "config": CONFIG})
    task = tasks.submit("Careful", {"do": "answer", "answer": 5})
    inline_worker._round()
    define({**tool, "input_schema": TEXT})
    refused(client, task, {"answer": "six"}, r"The input of tool 'act' does not match its schema: \$\.answer: ")
    client.decide(task, "approve", value={"do": "answer", "answer": 6}, step=1)
    inline_worker.run_all()
    assert tasks.get(task)["output"] == 6
    with pytest.raises(errors.Conflict, match="is not waiting for a decision"):
        client.decide(task, "approve", value={"answer": "six"}, step=1)


@pytest.mark.parametrize("by_tool", [True, False])
def test_edited_arguments_must_fit_the_function_schema(
    client: Client, tasks: Tasks, define: Define, inline_worker: InlineWorker, by_tool: bool
) -> None:
    code = "def double(answer):\n    return 2 * answer\n"
    target = {"tool": "doubling"} if by_tool else {"function": "double"}
    define(
        {"kind": "function", "name": "double", "code": code, "input_schema": NUMBER},
        {"kind": "tool", "name": "doubling", "type": "function", "function": "double", "approval": True},
        {
            **{"kind": "agent", "name": "Careful", "type": "function", **target},
            "config": {**CONFIG, "approval": not by_tool},
        },
    )
    task = tasks.submit("Careful", {"answer": 5})
    inline_worker._round()
    refused(client, task, {"answer": "six"}, rf"of {'tool' if by_tool else 'agent'} '\w+' does not .*: \$\.answer: ")


def test_edited_arguments_of_one_call_must_fit_its_tool(
    messages_api: testing.MessagesApi, client: Client, tasks: Tasks, define: Define, inline_worker: InlineWorker
) -> None:
    url = "http://127.0.0.1:9/{answer}"
    define(
        {**ACT, "approval": True, "input_schema": NUMBER},
        {
            **{"kind": "tool", "name": "fetch", "type": "http", "http": {"method": "GET", "url": url}},
            **{"approval": True, "effect": "idempotent", "input_schema": NUMBER},
        },
        {"kind": "agent", "name": "Writer", "model": "claude-sonnet-5-5", "tools": ["act", "fetch"], "config": CONFIG},
    )
    messages_api.script = [testing.tool_use(("act", {"answer": 1}), ("fetch", {"answer": 2}))]
    task = tasks.submit("Writer", "go")
    inline_worker._round()
    waiting = [step for step in tasks.steps(task) if step["kind"] == "wait"]
    assert [step["name"] for step in waiting] == ["act", "fetch"]
    for step, value, fault in (
        (waiting[0], {"answer": "x"}, r"tool 'act' .*: \$\.answer: "),
        (waiting[1], {"answer": 1, "more": 1}, "tool 'fetch' .*more"),
    ):
        with pytest.raises(errors.InvalidInput, match=fault):
            client.decide(task, "approve", value=value, step=step["number"])
    assert client.decide(task, "approve", value={"answer": 1, "more": 1}, step=waiting[0]["number"]).state == "waiting"


def test_edited_messages_of_an_agent_must_be_messages(
    client: Client, tasks: Tasks, define: Define, inline_worker: InlineWorker
) -> None:
    config = {**CONFIG, "approval": True}
    define({"kind": "agent", "name": "Writer", "model": "claude-sonnet-5-5", "config": config})
    define({"kind": "agent", "name": "Other", "model": "claude-sonnet-5-5", "config": config, "input_schema": NUMBER})
    of_messages = tasks.submit("Writer", messages=[{"role": "user", "content": "Hello"}])
    of_input = tasks.submit("Other", {"answer": 1})
    inline_worker._round()
    for value in ("Good day", [], [{"role": "user", "content": [{"type": "image"}]}]):
        with pytest.raises(errors.InvalidInput, match="messages"):
            client.decide(of_messages, "approve", value=value, step=1)
    assert client.decide(of_messages, "approve", value=["Good day"], step=1).state == "pending"
    refused(client, of_input, {"answer": "x"}, r"agent 'Other' .*: \$\.answer: ")


def test_a_rejected_call_is_not_made(client: Client, tasks: Tasks, careful: str, inline_worker: InlineWorker) -> None:
    task = tasks.submit(careful, {})
    inline_worker._round()
    client.decide(task, "reject", reason="not today", step=1)
    inline_worker.run_all()
    ended = tasks.get(task)
    assert ended["state"] == "failed"
    assert ended["error"]["message"] == "act was rejected: not today."
    with pytest.raises(errors.Conflict, match="is not waiting for a decision"):
        client.decide(task, "approve", step=1)


def test_approval_times_out(tasks: Tasks, define: Define, inline_worker: InlineWorker) -> None:
    config = {"capabilities": ["work"]}
    define(
        {**ACT, "approval": True, "approval_timeout": 0.05},
        {"kind": "agent", "name": "Careful", "type": "function", "tool": "act", "config": config},
    )
    task = tasks.submit("Careful", {})
    inline_worker.run_all()
    assert tasks.get(task)["error"]["message"] == "Nobody has approved 'act' in time."


def test_agent_input_waits_for_approval(client: Client, tasks: Tasks, act: Any, inline_worker: InlineWorker) -> None:
    task = tasks.submit(act(config={"approval": True}), {"do": "answer", "answer": 5})
    inline_worker._round()
    assert "A person must approve step 1, Act with" in client.why(task)["sentence"]
    client.decide(task, "approve", step=1)
    inline_worker.run_all()
    assert tasks.get(task)["output"] == 5


@pytest.fixture
def interrupted(tasks: Tasks, act: Any, inline_worker: InlineWorker, database: Engine) -> Any:
    """A task whose unsafe step was started, and whose worker died."""

    def make(log: Path) -> Any:
        task = tasks.submit(act("Unsafe", effect="unsafe"), {"do": "answer", "answer": "made", "log": str(log)})
        inline_worker._round()
        with database.begin() as connection:
            # As if the worker had died between the effect and its record.
            connection.execute(text("DELETE FROM task_outcomes WHERE task_id = :t"), {"t": task})
            connection.execute(text("ALTER TABLE task_status DISABLE TRIGGER USER"))
            connection.execute(text("UPDATE task_status SET state = 'pending' WHERE task_id = :t"), {"t": task})
            connection.execute(text("ALTER TABLE task_status ENABLE TRIGGER USER"))
            connection.execute(text("UPDATE executions SET outcome = 'lost' WHERE task_id = :t"), {"t": task})
            connection.execute(
                text("UPDATE steps SET status = 'started', output = NULL WHERE task_id = :t"), {"t": task}
            )
        inline_worker._round()
        return task

    return make


@pytest.mark.parametrize(
    ("verdict", "value", "state", "output", "calls"),
    [
        ("result", {"sent": True}, "succeeded", {"sent": True}, 1),
        ("again", None, "succeeded", "made", 2),
        ("fail", None, "failed", None, 1),
    ],
)
def test_interrupted_step_is_decided(
    client: Client, tasks: Tasks, interrupted: Any, inline_worker: InlineWorker, tmp_path: Path,
    verdict: str, value: Any, state: str, output: Any, calls: int,
) -> None:  # fmt: skip
    log = tmp_path / "calls"
    task = interrupted(log)
    waiting = tasks.get(task)
    assert (waiting["state"], waiting["wait_reason"]) == ("waiting", "answer")
    assert "Step 1 (act) was interrupted and is unsafe to repeat" in client.why(task)["sentence"]
    with pytest.raises(errors.InvalidInput, match="must be result, again or fail"):
        client.decide(task, "approve", step=1)
    client.decide(task, verdict, value=value, reason="looked", step=1)
    inline_worker.run_all()
    ended = tasks.get(task)
    assert (ended["state"], ended["output"]) == (state, output)
    assert log.read_text().count("\n") == calls


@pytest.mark.parametrize(
    ("verdict", "value", "state", "calls"), [("result", 1, "succeeded", 1), ("again", None, "succeeded", 2)]
)
def test_unsafe_tool_that_raises_is_not_retried_automatically(
    client: Client, tasks: Tasks, act: Any, inline_worker: InlineWorker, tmp_path: Path,
    verdict: str, value: Any, state: str, calls: int,
) -> None:  # fmt: skip
    """The error may have come after the effect, as a time-out does. The question names the error."""
    log = tmp_path / "calls"
    task = tasks.submit(act(effect="unsafe"), {"do": "time out", "times": 1, "log": str(log)})
    inline_worker._round()
    inline_worker._round()
    assert (tasks.get(task)["wait_reason"], log.read_text().count("\n")) == ("answer", 1)
    told = "Step 1 (act) was interrupted (The tool 'act' raised TimeoutError: no answer) and is unsafe to repeat"
    assert told in client.why(task)["sentence"]
    [step] = tasks.steps(task)
    assert (step["status"], step["error"]["type"]) == ("started", "tool_error")
    client.decide(task, verdict, value=value, step=1)
    inline_worker.run_all()
    assert (tasks.get(task)["state"], tasks.get(task)["attempts"], tasks.steps(task)[0]["error"]) == (state, 0, None)
    assert log.read_text().count("\n") == calls


def test_unsafe_tool_can_report_that_nothing_happened(
    tasks: Tasks, act: Any, inline_worker: InlineWorker, tmp_path: Path
) -> None:
    """With an error of ours: one that may be tried again, or one that may not."""
    act(effect="unsafe")
    logs = [tmp_path / "meet", tmp_path / "refuse"]
    meeting = {"do": "meet", "calls": 2, "patience": 0, "log": str(logs[0])}
    again, never = (tasks.submit("Act", {"do": "refuse", "log": str(logs[1])} if n else meeting) for n in range(2))
    inline_worker.run_all()
    assert (tasks.get(again)["state"], tasks.get(again)["attempts"]) == ("succeeded", 1)
    assert (tasks.get(never)["state"], tasks.get(never)["error"]["type"]) == ("failed", "tool_error")
    assert [log.read_text().count("\n") for log in logs] == [2, 1]


def test_decision_without_waiting_task_is_refused(
    client: Client, tasks: Tasks, act: Any, careful: str, inline_worker: InlineWorker
) -> None:
    task = tasks.submit(act("Plain"), {})
    with pytest.raises(errors.Conflict, match="is not waiting for a decision"):
        client.decide(task, "again", step=1)
    waiting = tasks.submit(careful, {})
    inline_worker._round()
    with pytest.raises(errors.Conflict, match="about step 7"):
        client.decide(waiting, "approve", step=7)
    with pytest.raises(errors.NotFound):
        client.decide("01a2049b-33df-70a1-a1e5-1d41ec86be9b", "approve", step=1)
    with pytest.raises(errors.InvalidInput):
        client.decide(waiting, "perhaps", step=1)


@pytest.mark.parametrize("step", [0, 2**31, 10**19])
def test_a_step_of_a_number_that_none_can_have_is_refused(http: httpx2.Client, step: int) -> None:
    refused = http.post(f"/v1/tasks/{uuid4()}/decisions", json={"verdict": "fail", "step": step})
    assert refused.status_code == 422, refused.text
    assert "step" in refused.json()["detail"]


def test_why_finds_the_proposal_behind_many_other_waits(
    client: Client, tasks: Tasks, careful: str, inline_worker: InlineWorker, database: Engine
) -> None:
    task = tasks.submit(careful, {})
    inline_worker._round()
    with database.begin() as connection:
        connection.execute(text("UPDATE steps SET number = 30 WHERE task_id = :t"), {"t": task})
        connection.execute(
            text(
                "INSERT INTO steps (task_id, number, kind, name, status, effect, request_hash, claim, input) "
                "SELECT :t, n, 'wait', 'paid', 'started', 'pure', '', 1, '{\"signal\": \"paid\"}' "
                "FROM generate_series(1, 25) AS n"
            ),
            {"t": task},
        )
    assert "A person must approve step 30, act with" in client.why(task)["sentence"]


@pytest.mark.parametrize("reason", ["approval", "answer", "budget", "subtask"])
def test_why_answers_when_the_task_moves_on(
    tasks: Tasks, act: Any, database: Engine, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    task = tasks.submit(act(), {})
    before = {**tasks.get(task), "state": "waiting", "wait_reason": reason}
    monkeypatch.setattr("orchestrator.explain.get_task", lambda *_: before)
    with database.connect() as connection:
        found = explain(connection, task, lease=10)
    assert found.reason == reason


# ------------------------------------------------------------------------------------ what a decision is about


def test_a_decision_names_a_step_or_a_proposal(
    http: httpx2.Client, tasks: Tasks, careful: str, inline_worker: InlineWorker
) -> None:
    task = tasks.submit(careful, {})
    inline_worker._round()
    refused = http.post(f"/v1/tasks/{task}/decisions", json={"verdict": "approve"})
    assert refused.status_code == 422
    assert "must name the step or the proposal" in refused.json()["detail"]
    assert tasks.get(task)["state"] == "waiting"


def test_second_approval_of_a_proposal_approves_nothing_else(
    client: Client, tasks: Tasks, interrupted: Any, inline_worker: InlineWorker, tmp_path: Path
) -> None:
    """An interrupted step that is retried, and interrupted again, waits under the same number."""
    task = interrupted(tmp_path / "calls")
    seen = client.why(task)["facts"]["proposal"]
    decided = client.decide(task, "again", proposal=seen)
    assert decided.decision is not None
    assert (decided.decision["step"], decided.decision["name"], decided.decision["verdict"]) == (1, "act", "again")
    with pytest.raises(errors.Conflict, match="is not waiting for a decision about proposal"):
        client.decide(task, "again", proposal=seen)


def test_approval_of_outdated_proposal_is_refused(
    client: Client, tasks: Tasks, careful: str, inline_worker: InlineWorker
) -> None:
    first, second = tasks.submit(careful, {"answer": 1}), tasks.submit(careful, {"answer": 2})
    inline_worker._round()
    other = client.why(second)["facts"]["proposal"]
    mine = client.why(first)["facts"]["proposal"]
    assert mine != other
    with pytest.raises(errors.Conflict, match=rf"not waiting for .* proposal {other}.*step 1 \(act, .*{mine}"):
        client.decide(first, "approve", proposal=other)
    answer = client.decide(first, "approve", proposal=mine).decision
    assert answer == {"step": 1, "name": "act", "proposal": mine, "verdict": "approve", "value": {"answer": 1}}


def test_an_interrupted_step_has_another_proposal_in_each_claim(
    database: Engine, interrupted: Any, tmp_path: Path
) -> None:
    task = interrupted(tmp_path / "calls")
    address = text("SELECT minion_proposal(s) FROM steps s WHERE task_id = :task AND number = 1")
    with database.begin() as connection:
        before = connection.scalar(address, {"task": task})
        connection.execute(text("UPDATE steps SET claim = claim + 1 WHERE task_id = :task"), {"task": task})
        assert connection.scalar(address, {"task": task}) != before


# --------------------------------------------------------------------------------------------------- the record


def test_records_name_the_key_and_the_claimed_name(
    tasks: Tasks, careful: str, inline_worker: InlineWorker, http_api: Api
) -> None:
    task = tasks.submit(careful, {})
    inline_worker._round()
    claimed = f"{key_of_the_api()} (claims to be Zoë)"
    with Client(http_api.url, http_api.key, actor="Zoë") as client:
        client.decide(task, "approve", step=1)
        assert tasks.steps(task)[0]["output"]["by"] == claimed
        inline_worker.run_all()
        assert client.replay(task).submitted_by == claimed
        assert client.pause("agent", "Careful")["created_by"] == claimed
        assert client.set_limit("agent", "Careful", max_running=1)["created_by"] == claimed
        cancelled = client.cancel(client.submit(careful, {}).id)
        assert cancelled.error is not None
        assert cancelled.error["by"] == claimed


@pytest.mark.parametrize("name", ["", "a\x7f", "x" * 101, "\u202eAnn", b"\xff"])
def test_a_name_that_cannot_be_shown_is_refused(http: httpx2.Client, name: str | bytes) -> None:
    sent = name.encode() if isinstance(name, str) else name
    answer = http.put("/v1/pauses/agent/A", headers=[(b"Minion-Actor", sent)])
    assert answer.status_code == 422, answer.text
    assert "Minion-Actor" in answer.json()["detail"]


# ------------------------------------------------------------------------------------------- on the command line


@dataclass
class CommandLine:
    """The `minion` command, for this API."""

    http_api: Api

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Runs it without a terminal."""
        return subprocess.run(
            [*MINION, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=self.env,
            text=True,
            timeout=60,
            check=False,
        )

    def at_a_terminal(self, *words: str, answer: str) -> tuple[int, str]:
        """Runs it at a terminal, and types the answer to its question. Returns its exit code and what was shown."""
        mine, its = os.openpty()
        with subprocess.Popen([*MINION, *words], stdin=its, stdout=its, stderr=its, env=self.env) as process:
            os.close(its)
            shown = b""
            while b"? [y/N]" not in shown:
                shown += os.read(mine, 1000)
            os.write(mine, f"{answer}\n".encode())
            with suppress(OSError):  # the other end is closed
                while more := os.read(mine, 1000):
                    shown += more
        os.close(mine)
        return process.returncode, shown.decode()

    @property
    def env(self) -> dict[str, str]:
        """The environment that names this API."""
        return {**os.environ, "MINION_API_URL": self.http_api.url, "TERM": "xterm", "COLUMNS": "200"}


MINION = [sys.executable, "-m", "orchestrator.cli"]


@pytest.fixture
def command_line(http_api: Api) -> CommandLine:
    return CommandLine(http_api)


def test_decision_without_terminal_prints_the_proposal(
    command_line: CommandLine, tasks: Tasks, careful: str, inline_worker: InlineWorker
) -> None:
    task = tasks.submit(careful, {"answer": 1})
    inline_worker._round()
    refused = command_line("approve", str(task))
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "--step, --proposal or --yes" in refused.stderr
    done = command_line("approve", str(task), "--step", "1", "--as", "Ann")
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "Approved step 1, act:")
    assert "(claims to be Ann)" in tasks.steps(task)[0]["output"]["by"]


def test_yes_decides_the_current_proposal(
    command_line: CommandLine, tasks: Tasks, careful: str, inline_worker: InlineWorker
) -> None:
    task = tasks.submit(careful, {"answer": 1})
    inline_worker._round()
    assert command_line("reject", str(task), "--yes", "--reason", "no").returncode == 0
    refused = command_line("reject", str(task), "--yes")
    assert refused.returncode == 65
    assert "is not waiting for a decision" in refused.stderr


def test_a_terminal_shows_the_proposal_and_asks(
    command_line: CommandLine, tasks: Tasks, careful: str, inline_worker: InlineWorker
) -> None:
    task = tasks.submit(careful, {"answer": "the proposed one"})
    inline_worker._round()
    code, shown = command_line.at_a_terminal("approve", str(task), answer="n")
    assert code != 0
    assert "the proposed one" in shown
    assert tasks.get(task)["state"] == "waiting"
    code, shown = command_line.at_a_terminal("approve", str(task), answer="y")
    assert (code, tasks.get(task)["state"]) == (0, "pending")
    assert "Approved step 1, act" in shown
