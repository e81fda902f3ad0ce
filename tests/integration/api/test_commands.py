"""The command line against the real API: output at a terminal and in scripts, and exit codes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from minions import Client
from shared.settings import get_settings
from tests.conftest import Define
from tests.integration.api.conftest import Run
from tests.integration.conftest import InlineWorker, Tasks

EVIL = "a\x1b]52;c;ZXZpbA==\x07\x9b2K\u202e\u2028\x7f\rb"
UNKNOWN = "00000000-0000-7000-8000-000000000000"


# ------------------------------------------------------------------------------------------------------- submit


@pytest.mark.usefixtures("agents")
def test_submit_prints_id_for_scripts_and_state_at_terminals(
    run_cli: Run, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = run_cli("submit", "Echo").out
    assert client.get(task.strip()).id + "\n" == task
    monkeypatch.setattr("orchestrator.commands.tasks.on_a_terminal", lambda: True)
    assert re.fullmatch(r"[0-9a-f-]{36} pending\n", run_cli("submit", "Echo").out)
    assert re.fullmatch(r"[0-9a-f-]{36}\n", run_cli("submit", "Echo", "--quiet").out)


@pytest.mark.parametrize("other", ["--wait", "--follow", "--json"])
def test_quiet_goes_alone(run_cli: Run, other: str) -> None:
    assert run_cli("submit", "Echo", "-q", other).code == 2


@pytest.mark.usefixtures("agents")
def test_the_last_task_is_the_one_that_was_submitted_last(run_cli: Run, client: Client) -> None:
    refused = run_cli("show", "@last")
    assert (refused.code, "There is no @last task" in refused.err) == (66, True)
    first = run_cli("submit", "Echo").ids[0]
    assert json.loads(run_cli("show", "@last", "--json").out)["id"] == first
    assert run_cli("cancel", "@last", "@last").ids == [first, first]
    replayed = run_cli("replay", "@last", "--quiet").ids
    assert [client.get(task).replay_of for task in replayed] == [first]
    assert [task["id"] for task in json.loads(run_cli("tasks", "--root", "@last", "--json").out)] == replayed
    assert run_cli("diff", "@last", first).code == 1


@pytest.mark.usefixtures("agents")
def test_submission_succeeds_when_its_id_cannot_be_saved(
    run_cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    assert run_cli("submit", "Echo").code == 0


@pytest.mark.usefixtures("agents")
def test_commands_take_the_start_of_an_id(run_cli: Run, client: Client, act: Any, inline_worker: InlineWorker) -> None:
    task = client.submit(act(), {"answer": 1}).id
    inline_worker.run_all()
    start = task[:20]
    for command in ("show", "why", "budget"):
        assert run_cli(command, start).code == 0, command
    followed = run_cli("follow", start, "--json")
    assert {json.loads(line)["task_id"] for line in followed.out.splitlines()} == {task}
    assert run_cli("cancel", start).ids == [task]
    other = client.submit("Echo").id
    same = next(n for n in range(36) if task[n] != other[n])
    ambiguous = run_cli("show", task[: max(8, same)])
    if same >= 8:
        assert ambiguous.code == 65
        assert task in ambiguous.err
        assert other in ambiguous.err


@pytest.mark.usefixtures("agents")
@pytest.mark.parametrize(
    ("words", "similar"),
    [
        (("submit", "ecko"), "Did you mean 'Echo'?"),
        (("agents", "show", "Serch"), "Did you mean 'Search'?"),
        (("agents", "disable", "search"), "Did you mean 'Search'?"),
    ],
)
def test_an_agent_with_a_similar_name_is_suggested(run_cli: Run, words: tuple[str, ...], similar: str) -> None:
    done = run_cli(*words)
    assert (done.code, done.err.count("\n")) == (66, 1)
    assert similar in done.err


# -------------------------------------------------------------------------------------------------------- lists


def test_tasks_are_filtered(run_cli: Run, client: Client, agents: None) -> None:
    a = client.submit("Echo", key="k", labels={"team": "x", "n": "1"}, conversation_id="c").id
    b = client.submit("Search", {"query": "cats"}, labels={"team": "x"}).id
    client.cancel(b)

    def found(*words: str) -> list[str]:
        listed = run_cli("tasks", "--json", *words)
        assert listed.code == 0, listed.err
        return [task["id"] for task in json.loads(listed.out)]

    assert found() == [b, a]
    assert found("--key", "k") == [a]
    assert found("--label", "team=x", "--label", "n=1") == [a]
    assert found("--label", "team=x") == [b, a]
    assert found("--conversation", "c") == [a]
    assert found("--since", "2020-01-01", "--until", "2100-01-01") == [b, a]
    assert found("--until", "2020-01-01") == []
    assert found("--fingerprint", "x") == []
    assert found("--state", "pending", "--state", "cancelled", "-n", "1") == [b]
    assert found("--state", "pending") == [a]
    assert "output" not in json.loads(run_cli("tasks", "--json").out)[0]
    assert json.loads(run_cli("tasks", "--json", "--outputs").out)[0]["output"] is None


def test_dead_letters_of_a_kind_are_listed(run_cli: Run, client: Client, act: Any, inline_worker: InlineWorker) -> None:
    once = {"max_attempts": 1}
    failed = [client.submit(act(config=once), {"do": "fail"}).id for _ in range(3)]
    client.submit(act(config=once), {"do": "refuse"})
    inline_worker.run_all()
    kinds = json.loads(run_cli("dead-letters", "--json").out)
    [kind] = [each["fingerprint"] for each in kinds if each["tasks"] == 3]
    assert run_cli("dead-letters", kind).ids == failed[::-1]
    assert run_cli("tasks", "--fingerprint", kind).ids == failed[::-1]
    assert "RuntimeError" in run_cli("dead-letters", kind, "-n", "1").out
    client.replay(failed[0])
    assert [task["id"] for task in json.loads(run_cli("dead-letters", kind, "--json").out)] == failed[:0:-1]
    assert "has the fingerprint nothing" in run_cli("dead-letters", "nothing").err


def test_dead_workers_are_hidden_unless_asked_for(run_cli: Run, inline_worker: InlineWorker, database: Engine) -> None:
    gone = text(
        "INSERT INTO workers (name, capabilities, slots, pool, host, pid, version, status) "
        "VALUES ('gone', '{work}', 1, 'solo', 'h', 1, '0', 'lost')"
    )
    with database.begin() as connection:
        connection.execute(gone)
    assert [worker["name"] for worker in json.loads(run_cli("workers", "--json").out)] == ["here"]
    assert {worker["name"] for worker in json.loads(run_cli("workers", "--all", "--json").out)} == {"here", "gone"}
    assert "gone" not in run_cli("workers").out


# --------------------------------------------------------------------------------------------------- exit codes


@pytest.mark.usefixtures("agents")
@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("tasks", "--state", "done"), 2, "'--state'"),
        (("pause", "planet", "earth"), 2, "for 'scope': 'planet' is not one of"),
        (("submit", "Echo", "--wait", "--timeout", "-5"), 2, "'--timeout'"),
        (("submit", "Echo", "--timeout", "5"), 2, "--timeout requires --wait"),
        (("worker", ""), 2, "'' is not the name of a capability: it must"),
        (("worker", "a,,b"), 2, "CAPABILITIES"),
        (("worker", "Big"), 2, "CAPABILITIES"),
        (("up", "--pool", "=3"), 65, "is not valid"),
        (("submit", "Echo", "{"), 65, "not valid JSON"),
        (("tasks", "--root", "1"), 65, "Error: '1' is not the id of a task"),
        (("show", UNKNOWN), 66, "There is no task"),
        (("show", "01b20424"), 66, "no task whose id begins with 01b20424"),
        (("submit", "Echo", "@/does/not/exist"), 74, "cannot be read: No such file or directory"),
        (("apply", "/does/not/exist.yaml"), 74, "no such file"),
        (("functions", "put", "/does/not/exist.py"), 74, "cannot be read"),
        (("submit", "Echo", "--wait", "--timeout", "0.1"), 75, "It continues"),
    ],
)
def test_a_fault_is_one_line_and_an_exit_code(run_cli: Run, words: tuple[str, ...], code: int, said: str) -> None:
    done = run_cli(*words)
    assert (done.code, done.out) == (code, ""), done.err
    assert said in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("REDIS_URL", "nonsense", ("worker", "work")),
        ("REDIS_URL", "redis://localhost:6379/abc", ("worker", "work")),
        ("REDIS_URL", "unix://", ("flower",)),
        ("MINION_API_URL", "127.0.0.1:8700", ("tasks",)),
        ("MINION_API_URL", "localhost", ("submit", "Echo")),
    ],
)
def test_a_setting_that_is_wrong_is_one_line_that_names_it(
    run_cli: Run, monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: tuple[str, ...]
) -> None:
    monkeypatch.setenv(name, value)
    get_settings.cache_clear()
    done = run_cli(*words)
    assert (done.code, done.out, done.err.count("\n")) == (78, "", 1), done.err
    assert name in done.err
    assert "must" in done.err


def test_apply_reports_dry_run_and_empty_files(run_cli: Run, database: Engine, tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("# nothing yet\n")
    refused = run_cli("apply", str(file))
    assert (refused.code, "it contains no definitions" in refused.err) == (65, True)
    file.write_text("kind: agent\nname: x\n")
    dry = run_cli("apply", str(file), "--dry-run").out
    assert "would create agent x version 1" in " ".join(dry.split())
    assert "created agent x version 1" in " ".join(run_cli("apply", str(file)).out.split())
    assert "unchanged agent x version 1" in " ".join(run_cli("apply", str(file), "--dry-run").out.split())


# ----------------------------------------------------------------------------------------------------- terminals


def test_no_command_prints_control_characters_of_functions(
    run_cli: Run, client: Client, define: Define, act: Any, inline_worker: InlineWorker, tasks: Tasks
) -> None:
    define(
        {"kind": "function", "name": "evil", "code": f"def evil():\n    raise ValueError({EVIL!r})\n"},
        {"kind": "agent", "name": "Evil", "type": "function", "function": "evil", "config": {"capabilities": ["work"]}},
    )
    failed = client.submit("Evil", labels={EVIL: EVIL}, key=EVIL).id
    done = client.submit(act(), {"answer": {EVIL: EVIL}}).id
    inline_worker.run_all()
    client.pause("key", EVIL, EVIL)
    assert client.get(failed).state == "failed"
    fingerprint = next(iter(client.dead_letters()))["fingerprint"]
    commands = [
        *((command, task) for command in ("show", "why", "follow", "budget") for task in (failed, done)),
        ("diff", failed, done), ("tasks", "--outputs"), ("dead-letters",), ("dead-letters", fingerprint), ("pauses",),
        ("functions", "run", "evil"), ("functions", "show", "evil"), ("functions", "events", "evil"),
        ("show", EVIL), ("submit", EVIL), ("tasks", "--agent", EVIL), ("resume", "key", EVIL), ("export",),
    ]  # fmt: skip
    for words in commands:
        for more in ((), ("--json",)):
            printed = run_cli(*words, *more)
            assert not re.search(r"[^\n\t\x20-\x7e│…]", printed.out + printed.err), (words, more)
    assert json.loads(run_cli("show", failed, "--json").out)["labels"] == {EVIL: EVIL}
    assert "ValueError: a\\u001b]52;c" in run_cli("functions", "run", "evil").err
    assert "\\u001b]52;c" in run_cli("why", failed).out
