"""Code mode: a program's calls are steps of its task, through approvals, crashes, failures and hostile programs."""

from __future__ import annotations

import itertools
import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import yaml
from sqlalchemy import text

from minions import testing
from minions.testing import MessagesApi, tool_use
from orchestrator.explain import explain
from orchestrator.replay_from import Edit, replay_from
from shared.contracts.requests import Budget
from shared.database.connections import transaction
from shared.errors import InvalidInput
from shared.sandbox import Sandbox, SandboxFault
from shared.sandbox.program_events import Failed
from shared.tasks import lifecycle
from shared.tasks.states import FINAL
from tests.conftest import Define
from tests.integration.agents.conftest import TOOLS as TOOLS_OF_TESTS
from tests.integration.agents.conftest import DefineAgent
from tests.integration.agents.test_determinism import RELEASE, Died, dying
from tests.integration.conftest import InlineWorker, Tasks
from tests.support.processes import ROOT, Process, killed_on_exit, start_worker, wait_until
from workers import minion
from workers.code_mode import tool as code_mode_tool
from workers.journal import draining
from workers.steps import StepResult, Used

LOOP = """
total = 0
for number in range(2):
    paid = await act(do="answer", answer=total + number, log=LOGS + "/act")
    total += paid + 1
checked = await careful(do="answer", answer=total, log=LOGS + "/careful")
sent = await send(do="answer", answer=checked * 2, log=LOGS + "/send")
return {"total": total, "sent": sent}
"""
"""Each call depends on the result of the one before: in a loop, then with an approval, then unsafe."""
ROUNDS = """
async def one(number):
    paid = await act(do="answer", answer=number, log=LOGS + "/act")
    return await checked(do="answer", answer=paid + 1, log=LOGS + "/checked")

got = await asyncio.gather(one(1), one(2), help(do="answer", answer=8))
return await send(do="answer", answer=sum(got), log=LOGS + "/send")
"""
"""Several calls at once: the second round waits for two people and a sub-task."""
TOOLS = ["echo", "act", "careful", "send", "checked", "help"]


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
        below = [child["id"] for child in self.tasks.children(self.task)]
        with self.inline_worker.engine.begin() as connection:
            for task in (self.task, *below):
                connection.execute(RELEASE, {"task": task})

    def steps(self, *kinds: str) -> list[dict[str, Any]]:
        return [step for step in self.tasks.steps(self.task) if not kinds or step["kind"] in kinds]

    def received(self) -> Any:
        """Return the model's view of its last program: a value, or the text of an error."""
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
    assert run.received() == {"result": {"total": 4, "sent": 8}}
    steps = run.steps()
    assert [(step["kind"], step["name"], step["program"], step["line"]) for step in steps] == [
        ("model_call", "claude-sonnet-5-5", None, None),
        ("tool_call", "run_program", 2, None),
        *(("tool_call", "act", 2, 4) for _ in range(2)),
        ("wait", "careful", 2, 6),
        ("tool_call", "careful", 2, 6),
        ("tool_call", "send", 2, 7),
        ("model_call", "claude-sonnet-5-5", None, None),
    ]
    assert [step["output"] for step in steps[2:4]] == [0, 2]
    assert {step["status"] for step in steps} == {"finished"}


@pytest.mark.parametrize(
    ("code", "result", "calls", "moments"),
    [
        (LOOP, {"total": 4, "sent": 8}, {"act": 2, "careful": 1, "send": 1}, (True, False)),
        (ROUNDS, 13, {"act": 2, "checked": 2, "send": 1}, (False,)),
    ],
    ids=["loop", "rounds"],
)
def test_each_call_is_made_once_wherever_the_process_dies(
    run: Run,
    coder: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    result: Any,
    calls: dict[str, int],
    moments: tuple[bool, ...],
) -> None:
    coder(config={"retry_backoff": 0, "max_attempts": 100})
    for commit, before in itertools.product(range(1, 40), moments):
        logs = tmp_path / f"{commit}{before}"
        logs.mkdir()
        run.submit(program(code, LOGS=str(logs)))
        try:
            with dying(monkeypatch, commit, before=before):
                run.finish(looking_at=logs)
        except Died:
            run.lose()
            run.finish(looking_at=logs)
        else:
            break
        assert run.received() == {"result": result}, (commit, before)
        keys = {log.name: [line.split()[2] for line in log.read_text().splitlines()] for log in logs.iterdir()}
        # The service recognises a repeated idempotent call by its key.
        assert {name: len({*made}) for name, made in keys.items()} == calls
        unsafe = [name for name in ("careful", "send") if name in calls]
        assert [len(keys[name]) for name in unsafe] == [1] * len(unsafe), (commit, before)
        assert {step["status"] for step in run.steps()} == {"finished"}
    assert commit > 12


def test_independent_calls_run_at_the_same_time(run: Run, coder: Any, tmp_path: Path) -> None:
    coder()
    code = """
met = await asyncio.gather(*[act(do="meet", calls=3, log=LOG, answer=n) for n in range(3)])
return met
"""
    run(program(code, LOG=str(tmp_path / "log")))
    assert run.received() == {"result": [0, 1, 2]}
    assert [step["input"]["arguments"]["answer"] for step in run.steps("tool_call")[1:]] == [0, 1, 2]


def test_sub_task_and_approval_in_one_round(run: Run, coder: Any) -> None:
    coder()
    code = """
first, second = await asyncio.gather(
    help(do="answer", answer="helped"),
    checked(do="answer", answer="checked"),
)
again = await help(do="answer", answer=first + " again")
return [first, second, again]
"""
    run.submit(program(code))
    run.round()
    waiting = run.tasks.get(run.task)
    assert (waiting["state"], waiting["open_waits"]) == ("waiting", 2)
    run.finish()
    while run.tasks.get(run.task)["state"] not in FINAL:
        run.inline_worker.run_due()
    assert run.received() == {"result": ["helped", "checked", "helped again"]}
    assert [(s["kind"], s["line"]) for s in run.steps() if s["program"] == 2][1:] == [
        ("subtask", 2),
        ("wait", 3),
        ("tool_call", 3),
        ("subtask", 5),
    ]


def test_rejection_and_failures_raise_tool_error(run: Run, coder: Any) -> None:
    coder()
    code = """
said = []
for call in (careful(do="answer"), act(do="refuse"), echo(**{"some n": 1})):
    try:
        said.append(await call)
    except ToolError as error:
        said.append(str(error))
return said
"""
    run.submit(program(code))
    run.round()
    run.decide("reject")
    run.finish()
    rejected, refused, echoed = run.received()["result"]
    assert rejected == "careful was rejected."
    assert refused == "No, and asking again will not help."
    assert echoed == {"some n": 1}


def test_arguments_are_checked_like_those_of_a_model(run: Run, coder: Any, define: Define) -> None:
    coder()
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    define({**TOOLS_OF_TESTS[0], "input_schema": schema})
    code = """
try:
    await echo(n="one")
except ToolError as error:
    return [str(error), await echo(3)]
"""
    run(program(code))
    fault, echoed = run.received()["result"]
    assert fault.startswith("The input of tool 'echo' does not match its schema: ")
    assert echoed == {"n": 3}
    # A refused call is no step.
    assert [step["name"] for step in run.steps("tool_call")] == ["run_program", "echo"]


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("x = await echo(a=1)\nreturn x['b']", "The program failed in line 2: KeyError: 'b'"),
        ("return (", "The program failed in line 1: syntax error"),
        ("import os", "The program failed in line 1: ImportDenied: the module 'os' is not among"),
        ("while True: pass", "The program failed: the program is still running after 0.5 s"),
        ("x = [0] * 10**9", "memory"),
        ("for n in range(9): await echo(n=n)", "the program makes more than 5 calls"),
        ("print('a'*100); 1/0", "It had printed:\naaa"),
        ("return {1, 2}", "not JSON"),
        ("return '\\0'", "the returned value cannot be stored"),
        ("await echo(n='\\0')", "the character U+0000"),
        ("raise SystemExit", "SystemExit"),
        ("echo(n=1)\nreturn 2", "without await"),
        ("await nothing()", "NameError: name 'nothing' is not defined"),
    ],
)
def test_failure_shows_the_model_what_to_repair(run: Run, coder: Any, code: str, shown: str) -> None:
    coder({"timeout": 0.5, "max_calls": 5, "memory_limit": 32})
    assert run(program(code))["state"] == "succeeded"
    assert shown in run.received()
    [step] = [step for step in run.steps() if step["name"] == "run_program"]
    assert (step["status"], step["error"]["type"], step["error"]["retryable"]) == ("failed", "function_error", False)


def test_failure_names_the_calls_that_were_made(run: Run, coder: Any) -> None:
    coder()
    run(program("await echo(n=1)\nawait echo(n=2)\nawait act()\n1/0"))
    assert "Its calls until then were made, and are not undone: echo (2×), act." in run.received()


def test_long_results_are_cut(run: Run, coder: Any) -> None:
    coder({"max_output": 1000})
    run(program("print('p' * 5000)\nreturn 'r' * 5000"))
    received = run.received()
    assert received["result"].endswith("… [cut: it has 5,002 characters, and 1,000 is the most]")
    assert received["printed"].endswith("… [cut: it has 5,000 characters, and 1,000 is the most]")


def test_functions_that_do_not_fit_are_found(run: Run, coder: Any) -> None:
    coder({"described_tokens": 0})
    run(program("return await search_tools(query='careful')"), program("return await help(do='answer', answer=1)"))
    description = run.api.requests[0]["tools"][0]["description"]
    assert "async def search_tools(*, query: str) -> str:" in description
    assert "async def careful" not in description
    assert "\ncareful" in description
    found = json.loads(_content(run.api.requests[1]["messages"][-1]["content"][0]))
    assert found["result"].startswith("async def careful(")


def test_tool_with_defer_loading_is_found(run: Run, coder: Any, define: Define) -> None:
    late = {"kind": "tool", "name": "late", "type": "builtin", "builtin": "echo", "description": "Comes late."}
    define({**late, "defer_loading": True})
    coder(tools=["act", "late"])
    run(program("return [await search_tools(query='late'), await late(n=1)]"))
    description = run.api.requests[0]["tools"][0]["description"]
    assert "async def act(" in description
    assert "async def late(" not in description
    assert description.endswith("\nlate: Comes late.")
    found, called = run.received()["result"]
    assert found.startswith("async def late(")
    assert called == {"n": 1}


def test_program_with_another_call_ends_the_task(run: Run, coder: Any) -> None:
    coder(config={"retry_backoff": 0, "max_attempts": 100})
    code = """
await act(do="answer", answer=1)
await careful(do="answer", answer=2)
"""
    run.submit(program(code))
    run.round()
    with run.inline_worker.engine.begin() as connection:
        # As if the program had taken another path then.
        connection.execute(text("UPDATE steps SET request_hash = 'x', name = 'echo' WHERE number = 3"))
    run.finish()
    task = run.tasks.get(run.task)
    assert (task["state"], task["error"]["type"], len(run.tasks.executions(run.task))) == (
        "failed",
        "history_diverged",
        2,
    )
    assert task["error"]["message"].startswith(
        "History diverged at step 3: the journal holds tool_call 'echo' of line 1 of the program, and this run asks "
        "for tool_call 'act' in line 1."
    )


def test_program_that_ends_early_ends_the_task(run: Run, coder: Any) -> None:
    coder()
    run.submit(program("await act(do='answer')\nawait careful(do='answer', answer=2)"))
    run.round()
    with run.inline_worker.engine.begin() as connection:
        connection.execute(text("UPDATE steps SET number = 9, request_hash = 'x' WHERE number = 4"))
        connection.execute(
            text("UPDATE steps SET status = 'failed', error = :error, output = NULL WHERE number = 3"),
            {"error": json.dumps({"type": "tool_error", "message": "no", "retryable": False})},
        )
    run.decide("approve")
    run.finish()
    error = run.tasks.get(run.task)["error"]
    assert (error["type"], error["step"]) == ("history_diverged", 9)
    assert "the program of step 2 ended" in error["message"]


def test_program_that_is_slower_when_it_runs_again_is_retried(
    run: Run, coder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    coder(config={"max_attempts": 3})
    run.submit(program("await act(do='answer')\nreturn await careful(do='answer', answer=2)"))
    run.round()
    with monkeypatch.context() as patch:
        slow = Failed(SandboxFault("timeout", "the program is still running after 10 s"), "")
        patch.setattr(code_mode_tool, "_drive", lambda *_: slow)
        run.decide("approve")
        run.round()
    assert [each["outcome"] for each in run.tasks.executions(run.task)] == ["suspended", "retried"]
    run.finish()
    assert run.received() == {"result": 2}


def test_clock_and_random_numbers_are_the_same_when_it_runs_again(run: Run, coder: Any) -> None:
    coder()
    code = """
import random, time, datetime, uuid, secrets
seen = [time.time(), random.random(), datetime.datetime.now().isoformat(), str(uuid.uuid4()), secrets.token_hex(4)]
await act(do="answer", answer=seen)
await careful(do="answer", answer=seen)
return seen
"""
    run(program(code))
    assert len(run.tasks.executions(run.task)) == 2
    [seen] = [step["output"] for step in run.steps("tool_call") if step["name"] == "act"]
    assert run.received() == {"result": seen}


def test_long_sleep_needs_no_worker(run: Run, coder: Any) -> None:
    coder()
    code = """
import time
begin = time.time()
await asyncio.sleep(0.01)
await asyncio.sleep(3600)
return round(time.time() - begin)
"""
    run.submit(program(code))
    run.round()
    assert run.tasks.get(run.task)["wait_reason"] == "timer"
    [wait] = run.steps("wait")
    with run.inline_worker.engine.begin() as connection:
        connection.execute(text("UPDATE steps SET due_at = now() WHERE kind = 'wait'"))
        connection.execute(text("UPDATE task_status SET due_at = now()"))
    run.finish()
    assert (wait["program"], run.received()) == (2, {"result": 3600})


def test_short_sleeps_are_not_repeated(run: Run, coder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    coder(tools=["checked"])
    slept: list[float] = []
    monkeypatch.setattr(draining, "wait", lambda seconds: slept.append(round(seconds, 3)))
    run(program("for n in range(1, 4):\n    await asyncio.sleep(n / 10)\n    await checked(do='answer', answer=n)"))
    assert len(run.tasks.executions(run.task)) == 4
    assert slept == [0.1, 0.2, 0.3]


def test_sleeping_program_is_handed_back_by_a_worker_that_stops(
    run: Run, coder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    coder()
    run.submit(program("await asyncio.sleep(2)\nreturn await act(do='answer', answer=1)"))
    monkeypatch.setattr(draining, "wait", lambda _: True)
    run.round()
    [execution] = run.tasks.executions(run.task)
    assert execution["outcome"] == "handed_back"
    monkeypatch.undo()


def test_why_names_the_call_in_the_program(run: Run, coder: Any) -> None:
    coder()
    run.submit(program("await act(do='answer')\nawait careful(do='answer', answer=2)"))
    run.round()
    with run.inline_worker.engine.connect() as connection:
        why = explain(connection, run.task, lease=10)
    assert why.sentence.startswith("A person must approve step 4, careful with ")
    assert ", called in line 2 of the program of step 2)" in why.sentence
    assert [(wait["number"], wait["program"], wait["line"]) for wait in why.facts["waits"]] == [(4, 2, 2)]


def test_two_programs_in_one_turn(run: Run, coder: Any) -> None:
    coder()
    turn = tool_use(*(("run_program", {"code": f"return await careful(do='answer', answer={n})"}) for n in (1, 2)))
    run(turn)
    first, second = run.api.requests[-1]["messages"][-1]["content"]
    assert [json.loads(_content(block)) for block in (first, second)] == [{"result": 1}, {"result": 2}]
    assert [(s["number"], s["program"]) for s in run.steps() if s["program"]] == [
        (2, 2), (3, 2), (4, 2), (5, 5), (6, 5), (7, 5),
    ]  # fmt: skip


def _content(block: dict[str, Any]) -> str:
    content = block["content"]
    return content if isinstance(content, str) else content[0]["text"]


def test_tools_of_other_kinds_are_functions(run: Run, coder: Any, define: Define) -> None:
    double = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    define(
        {"kind": "function", "name": "double", "code": "def double(n):\n    return 2 * n", "input_schema": double},
        {"kind": "tool", "name": "double", "type": "function", "function": "double", "description": "Doubles."},
        {"kind": "tool", "name": "notes", "type": "memory", "memory": {"per": "agent"}},
        {"kind": "tool", "name": "search", "type": "web_search"},
    )
    coder(tools=["double", "notes", "search"])
    run(program("return [await double(n=n) for n in await asyncio.gather(double(n=1), double(n=2))]"))
    # The API defines these, and models know how to call them.
    assert {tool["name"] for tool in run.api.requests[0]["tools"]} == {"run_program", "memory", "web_search"}
    assert run.received() == {"result": [4, 8]}
    assert [step["kind"] for step in run.steps() if step["program"] == 2] == ["tool_call", *["function_call"] * 4]


def test_directives_of_tools_are_obeyed(run: Run, coder: Any, tmp_path: Path) -> None:
    coder()
    code = """
paid = await act(do="later", control={"$wait": {"signal": "paid", "seconds": 60}}, log=LOG)
sent = await echo(paid=paid)
return sent
"""
    run.submit(program(code, LOG=str(tmp_path / "log")))
    run.round()
    assert run.tasks.get(run.task)["wait_reason"] == "signal"
    with transaction() as connection:
        lifecycle.signal(connection, run.task, "paid", {"amount": 5})
    run.finish()
    assert run.received()["result"]["paid"]["payload"] == {"amount": 5}


def test_budget_counts_each_call(run: Run, coder: Any) -> None:
    coder()
    task = run(program("for n in range(9): await echo(n=n)"), budget=Budget(steps=5, on_breach="fail"))
    assert (task["state"], task["error"]["type"]) == ("failed", "budget_exceeded")
    assert [step["name"] for step in run.steps()] == ["claude-sonnet-5-5", "run_program", *["echo"] * 3]


def test_cancelled_task_makes_no_further_call(run: Run, coder: Any) -> None:
    coder()
    run.submit(program("await act()\nawait careful(do='answer')\nawait send()"))
    run.round()
    with transaction() as connection:
        lifecycle.cancel(connection, run.task, reason="no longer wanted")
    run.round()
    assert run.tasks.get(run.task)["state"] == "cancelled"
    assert [step["name"] for step in run.steps()[2:]] == ["act", "careful"]


def test_interrupted_unsafe_call_asks_a_person(run: Run, coder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    coder()
    run.submit(program("sent = await send(do='answer', answer=1)\nreturn sent"))
    with pytest.raises(Died), dying(monkeypatch, 4, before=True):
        run.round()
    run.lose()
    run.round()
    with run.inline_worker.engine.connect() as connection:
        why = explain(connection, run.task, lease=10)
    assert (why.reason, why.facts["step"]) == ("answer", 3)
    assert "Step 3 (send, called in line 1 of the program of step 2) was interrupted" in why.sentence
    run.decide("result", value="it was sent")
    run.finish()
    assert run.received() == {"result": "it was sent"}


def test_retryable_failure_repeats_only_its_call(
    run: Run, coder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coder(config={"max_attempts": 5})
    used: list[StepResult] = []
    monkeypatch.setattr(Used, "add", lambda _, result: used.append(result))
    code = """
before = await act(do="answer", answer=1, log=LOGS + "/before")
tried = await act(do="fail", times=2, log=LOGS + "/tried")
return [before, tried]
"""
    run(program(code, LOGS=str(tmp_path)))
    assert run.received() == {"result": [1, {"attempt": 3}]}
    assert [(tmp_path / name).read_text().count("\n") for name in ("before", "tried")] == [1, 3]
    # Each run of the program counts.
    assert sum(result.output is None and result.cpu_seconds > 0 for result in used) == 3


def test_replay_from_any_step_makes_the_same_calls(run: Run, coder: Any, tmp_path: Path) -> None:
    coder()
    run(program(LOOP, LOGS=str(tmp_path)), program("raise ValueError(await echo(n=1))"))
    first, journal = run.task, run.steps()
    received = run.received()
    for number in range(1, len(journal) + 2):
        run.task = replay_from(run.inline_worker.engine, first, number, submitted_by="test")
        run.finish()
        steps = run.steps()
        assert [s["copied_from"] for s in steps] == [first if s["number"] < number else None for s in steps]
        assert [(s["number"], s["name"], s["status"], s["line"]) for s in steps] == [
            (s["number"], s["name"], s["status"], s["line"]) for s in journal
        ]
        if number < len(journal):
            assert run.received() == received, number


def test_edited_result_replaces_a_program(run: Run, coder: Any) -> None:
    coder()
    run(program("return await act(do='answer', answer=1)"))
    edit = Edit({"result": "edited", "last_step": 99})
    run.task = replay_from(run.inline_worker.engine, run.task, 2, edit=edit, submitted_by="test")
    run.finish()
    assert run.received() == {"result": "edited"}
    assert [step["number"] for step in run.steps()] == [1, 2, 3]
    with pytest.raises(InvalidInput, match="is a program: its output must be an object with result"):
        replay_from(run.inline_worker.engine, run.task, 2, edit=Edit([]), submitted_by="test")


def test_pure_calls_of_a_long_program_do_not_pile_up(run: Run, coder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    coder({"max_calls": 200})
    sizes, write = [], lifecycle.write_steps

    def noting(connection: Any, task: UUID, claim: int, steps: list[Any], *more: Any) -> Any:
        sizes.append(len(steps))
        return write(connection, task, claim, steps, *more)

    monkeypatch.setattr(lifecycle, "write_steps", noting)
    run(program("for n in range(120): await echo(n=n)\nreturn n"))
    assert run.received() == {"result": 119}
    assert (len(run.steps("tool_call")), max(sizes) <= 51) == (121, True)


def test_program_is_not_run_unconfined(run: Run, coder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    coder()
    monkeypatch.setattr(Sandbox, "level", "insecure")
    task = run(program("return 1"))
    assert (task["state"], task["error"]["type"]) == ("failed", "not_configured")


@pytest.mark.parametrize(
    ("code", "expected", "calls"),
    [
        # A refused call counts, too.
        ("while True:\n  try: await act(do='refuse')\n  except ToolError: pass", "more than 20 calls", ["act"] * 20),
        ("try: await echo(n=1)\nexcept BaseException: pass\nwhile True: pass", "still running", ["echo"]),
        ("t = asyncio.create_task(send())\nt.cancel()\nreturn await echo(n=1)", {"result": {"n": 1}}, ["echo"]),
        # What a program returns is data: no file, no wait, no directive.
        (
            "return {'$content': [{'type': 'image', 'source': {'type': 'file', 'file_id': 'file_0'}}]}",
            {"result": {"$content": [{"type": "image", "source": {"type": "file", "file_id": "file_0"}}]}},
            [],
        ),
        ("return {'$wait': {'seconds': 60}}", {"result": {"$wait": {"seconds": 60}}}, []),
        (
            "try: await help(letter={'$file': 'file_' + '0' * 64})\nexcept ToolError as error: return str(error)",
            {"result": f"The file file_{'0' * 64} is not one of this task."},
            [],
        ),
        ("act = print\nawait act(1)", "The program failed in line 2", []),
        ("import builtins\nreturn builtins.open('/etc/passwd').read()", "the module 'builtins' is not among", []),
        ("return await asyncio.wait_for(act(do='answer', answer=1), 0.001)", {"result": 1}, ["act"]),
    ],
)
def test_hostile_program_gains_nothing(run: Run, coder: Any, code: str, expected: Any, calls: list[str]) -> None:
    coder({"timeout": 0.5, "max_calls": 20})
    assert run(program(code))["state"] == "succeeded"
    assert expected in run.received() if isinstance(expected, str) else run.received() == expected
    assert [step["name"] for step in run.steps("tool_call", "subtask")[1:]] == calls


FORGED = "asyncio.get_running_loop()._selector._line.send(b'X' + bytes(8))\nawait act()"


@pytest.mark.parametrize(("code", "kinds"), [(FORGED, ["security"]), ("import requests", []), ("open('x')", [])])
def test_attack_of_a_program_is_a_security_event(run: Run, coder: Any, code: str, kinds: list[str]) -> None:
    coder()
    run(program(code))
    assert "The program failed" in run.received()
    with run.inline_worker.engine.connect() as connection:
        found = connection.execute(text("SELECT task_id, kind, detail->>'type' AS type FROM security_events")).all()
    assert [tuple(event) for event in found] == [(run.task, kind, kind) for kind in kinds]


@pytest.mark.parametrize("code", ["```python\n{}\n```", "    {}"])
def test_program_in_a_fence_runs(run: Run, coder: Any, code: str) -> None:
    coder()
    run(program(code.format("return await echo(n=1)")))
    assert run.received() == {"result": {"n": 1}}
    assert run.steps("tool_call")[1]["line"] == code.count("\n", 0, code.index("{")) + 1


def test_example_gives_the_same_answer_in_fewer_turns(
    tasks: Tasks, inline_worker: InlineWorker, messages_api: MessagesApi, define: Define
) -> None:
    folder = ROOT / "examples" / "code_mode"
    define(*yaml.safe_load_all((folder / "desk.yaml").read_text()))
    with inline_worker.engine.begin() as connection:
        connection.execute(text("UPDATE workers SET capabilities = '{default}'"))
    example = runpy.run_path(str(folder / "test_tokens.py"))
    turns, sent = {}, {}
    for agent, replies in (("desk", example["one_by_one"]()), ("desk-code", example["by_program"]())):
        messages_api.script[:], messages_api.requests = replies, []
        task = tasks.submit(agent, example["QUESTION"])
        inline_worker.run_all()
        assert tasks.get(task)["output"] == example["ANSWER"]
        turns[agent], sent[agent] = len(messages_api.requests), sum(map(example["tokens"], messages_api.requests))
    received = json.loads(_content(messages_api.requests[-1]["messages"][-1]["content"][0]))
    assert received == {"result": example["ANSWER"]}
    assert (turns, sent["desk-code"] < sent["desk"] / 2) == ({"desk": 5, "desk-code": 2}, True)


# From here on, the module's worker takes the tasks.


def test_killed_worker_loses_no_call(
    tasks: Tasks, coder: Any, messages_api: MessagesApi, loops: None, worker: Process, tmp_path: Path, define: Define
) -> None:
    define({"kind": "function", "name": "add", "code": "def add(a, b):\n    return a + b"})
    define({"kind": "tool", "name": "add", "type": "function", "function": "add"})
    coder(tools=["act", "add", "send", "help"], config={"capabilities": ["killed"], "max_attempts": 5})
    code = """
one = await act(do="answer", answer=1, log=LOGS + "/act")
two = await add(a=one, b=one)
await send(do="answer", log=LOGS + "/send")
helped = await help(do="answer", answer="helped")
await act(do="take_down", log=LOGS + "/down")
return [one, two, helped, await add(a=two, b=two)]
"""
    messages_api.script = [{"if": "tool_result", **testing.text("Done.")}, program(code, LOGS=str(tmp_path))]
    task = tasks.submit("Agent", "Hello")
    killed = start_worker(tmp_path, "killed")
    with killed_on_exit(killed):
        wait_until(lambda: not killed.running, "its end", 60)
    with killed_on_exit(start_worker(tmp_path, "killed")):
        tasks.wait(task, 60)
        received = messages_api.requests[-1]["messages"][-1]["content"][0]
        check_that_a_long_program_keeps_no_other_task_waiting(tasks, coder, messages_api)
    assert tasks.get(task)["output"] == {"content": "Done."}
    assert json.loads(_content(received)) == {"result": [1, 2, "helped", 4]}
    assert {log.name: log.read_text().count("\n") for log in tmp_path.iterdir() if log.suffix == ""} == {
        "act": 1,
        "send": 1,
        "down": 2,
    }


def check_that_a_long_program_keeps_no_other_task_waiting(tasks: Tasks, coder: Any, messages_api: MessagesApi) -> None:
    """One process runs all agents with a model."""
    coder({"timeout": 3}, config={"capabilities": ["killed"]})
    messages_api.script = [
        {"if": "tool_result", **testing.text("Done.")},
        {"if": "slowly", **program("while True: pass")},
        program("return await act()"),
    ]
    slow = tasks.submit("Agent", "slowly")
    wait_until(lambda: any(step["name"] == "run_program" for step in tasks.steps(slow)), "the program runs")
    quick = tasks.run("Agent", "quickly")
    assert [quick["state"], tasks.wait(slow)["state"]] == ["succeeded"] * 2
    assert quick["finished_at"] < tasks.get(slow)["finished_at"]
