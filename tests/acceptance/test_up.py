"""`minion up`, and the everyday commands against it."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import urllib.request

import pytest

from minions import Client
from orchestrator.local.embedded import scratch_dir
from tests.acceptance.conftest import clean_environment, run_minion, start_up, stop, wait_until

AGENT = """
kind: function
name: shout
code: |
  def shout(text):
      return {"shouted": text.upper()}
input_schema: {type: object, required: [text], properties: {text: {type: string}}}
---
kind: agent
name: shouter
type: function
function: shout
input_schema: {type: object, required: [text], properties: {text: {type: string}}}
config: {capabilities: [shouting]}
"""


def test_submit_waits_and_prints_the_output(up):
    done = up.run("submit", "echo", '{"a": [1, 2.5, null, "ü"]}', "--wait")

    assert (done.returncode, json.loads(done.stdout)) == (0, {"a": [1, 2.5, None, "ü"]})


def test_port_in_use_is_reported_first_with_its_replacement(up):
    facts = json.loads((up.folder / "run.json").read_text())
    first = up.said[0]
    [api] = [line for line in up.said if line.startswith("API ")]

    assert re.fullmatch(rf"Port \d+ is in use. The API listens on {facts['api_url']} instead.", first.strip())
    assert api.split() == ["API", f"{facts['api_url']}/docs"]


def test_input_is_read_from_standard_input_or_a_file(up, tmp_path):
    (tmp_path / "input.json").write_text('{"b": 2}')

    assert json.loads(up.run("submit", "echo", "-", "-w", input='{"a": 1}').stdout) == {"a": 1}
    assert json.loads(up.run("submit", "echo", f"@{tmp_path}/input.json", "-w").stdout) == {"b": 2}


def test_applied_agent_gets_a_worker_pool_and_runs(up, tmp_path):
    (tmp_path / "shouter.yaml").write_text(AGENT)

    first, again = up.json("apply", str(tmp_path)), up.json("apply", str(tmp_path))
    done = up.run("submit", "shouter", '{"text": "hello"}', "--wait", "--timeout", "60")

    assert [change["action"] for change in first] == ["created", "created"]
    assert [change["action"] for change in again] == ["unchanged", "unchanged"]
    assert json.loads(done.stdout) == {"shouted": "HELLO"}


def test_exported_definitions_apply_unchanged(up, tmp_path):
    up.run("export", str(tmp_path / "out"))

    changes = up.json("apply", str(tmp_path / "out"))

    assert changes
    assert {change["action"] for change in changes} == {"unchanged"}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("submit", "nobody", "{}"), 66, "There is no agent named 'nobody'"),
        (("submit", "echo", "{not json"), 65, "not valid JSON"),
        (("submit", "echo", '{"a": NaN}'), 65, "NaN is not a JSON number"),
        (("submit", "echo", '{"a": 1e999}'), 65, "cannot be stored"),
        (("submit", "echo", '{"a": "\\u0000"}'), 65, "U+0000"),
        (("submit", "echo", "[" * 5000), 65, "nested deeper"),
        (("submit", "-", "--capability", "nothing"), 66, "No agent offers the capability"),
        (("submit", "echo", "@/does/not/exist"), 74, "cannot be read"),
        (("show", "no-id"), 65, "is not the id of a task"),
        (("show", "00000000-0000-7000-8000-000000000000"), 66, "There is no task"),
        (("cancel", "00000000-0000-7000-8000-000000000000"), 66, "There is no task"),
        (("agents", "disable", "nobody"), 66, "There is no agent"),
        (("apply", "/does/not/exist"), 74, "no such file"),
        (("functions", "run", "nothing"), 66, "There is no function"),
        (("tasks", "--limit", "0"), 2, "'--limit'"),
        (("nonsense",), 2, "No such command 'nonsense'"),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(up, arguments, code, words):
    done = up.run(*arguments)

    assert done.returncode == code, done.stderr
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr + done.stdout


def test_schema_violations_are_listed_with_their_paths(up, tmp_path):
    (tmp_path / "shouter.yaml").write_text(AGENT)
    up.run("apply", str(tmp_path))

    done = up.run("submit", "shouter", '{"text": 5}', "--json")

    assert done.returncode == 65
    assert json.loads(done.stderr)["error"]["violations"] == [
        {"path": "$.text", "message": "5 is not of type 'string'"}
    ]


def test_other_input_under_a_used_idempotency_key_is_refused(up):
    first = up.json("submit", "echo", '{"a": 1}', "--idempotency-key", "k1")
    same = up.json("submit", "echo", '{"a": 1}', "--idempotency-key", "k1")
    other = up.run("submit", "echo", '{"a": 2}', "--idempotency-key", "k1")

    assert first["id"] == same["id"]
    assert (other.returncode, "used before with another payload" in other.stderr) == (65, True)


def test_wrong_key_is_refused(up):
    done = run_minion({**up.environment, "MINION_API_KEY": "wrong"}, "tasks")

    assert done.returncode == 77
    assert "key" in done.stderr


def test_failed_task_is_shown_and_replayed(up, tmp_path):
    code = "def fail():\n    raise ValueError('on purpose')\n"
    (tmp_path / "f.json").write_text(
        json.dumps([
            {"kind": "function", "name": "fail", "code": code},
            {"kind": "agent", "name": "failing", "type": "function", "function": "fail"},
        ])
    )  # fmt: skip
    up.json("apply", str(tmp_path / "f.json"))

    failed = up.run("submit", "failing", "{}", "--wait")
    task = up.json("tasks", "--state", "failed", "--agent", "failing")[0]
    shown = up.run("show", task["id"])
    replayed = up.json("replay", "--failed", "--agent", "failing")

    assert (failed.returncode, "ValueError: on purpose" in failed.stderr) == (1, True)
    assert "function_error" in shown.stdout
    [done] = replayed["replayed"]
    assert done["task_id"] == task["id"]
    assert up.json("show", done["replayed_as"])["replay_of"] == task["id"]
    again = up.json("replay", "--failed", "--agent", "failing", "--dry-run")["replayed"]
    assert task["id"] not in [each["task_id"] for each in again]


def test_doctor_finds_no_faults(up):
    findings = up.json("doctor")

    assert {finding["what"]: finding["verdict"] for finding in findings}["api"] == "ok"
    assert not [finding for finding in findings if finding["verdict"] == "failed"]


def test_secrets_are_readable_by_their_owner_only(up):
    for name in ("api_key", "run.json", "server_password"):
        assert (up.folder / name).stat().st_mode & 0o077 == 0


def test_api_listens_on_loopback_with_its_documentation(up):
    facts = json.loads((up.folder / "run.json").read_text())

    with urllib.request.urlopen(facts["places"]["API"], timeout=10) as page:
        assert b"swagger" in page.read().lower()
    assert facts["api_url"].startswith("http://127.0.0.1:")


def test_second_up_in_the_same_folder_is_refused(up):
    done = run_minion(up.environment, "up")

    assert done.returncode == 65
    assert str(up.process.pid) in done.stderr
    assert (up.folder / "run.json").exists()  # the other commands find the first system by this file


@pytest.mark.soak
def test_second_system_runs_beside_the_first(up):
    with scratch_dir() as folder:
        other = start_up(clean_environment(folder / "with a space"), "--no-flower")
        try:
            assert json.loads(other.run("submit", "echo", '{"other": 1}', "-w").stdout) == {"other": 1}
            assert json.loads(up.run("submit", "echo", '{"first": 1}', "-w").stdout) == {"first": 1}
        finally:
            stop(other)


def test_killed_worker_is_restarted(up):
    url, key = json.loads((up.folder / "run.json").read_text())["api_url"], (up.folder / "api_key").read_text()
    with Client(url, key.strip()) as client:

        def workers() -> set[int]:
            listed = client.workers()
            return {w["pid"] for w in listed if w["status"] == "online" and w["capabilities"] == ["default"]}

        [killed] = workers()
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: bool(workers() - {killed}), seconds=120, what="a new worker")
    assert up.run("submit", "echo", '{"again": 1}', "-w", "--timeout", "100").returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_kill_9_stops_every_process_and_loses_no_task(up):
    task = up.json("submit", "echo", '{"kept": true}', "--wait")
    started = up.processes()
    up.process.kill()
    up.process.wait()
    up.process.stdout.close()

    # Those that it started are looked at often, and all processes of the machine once.
    wait_until(lambda: not any(map(up.owns, started)), seconds=40, what="every process ended")
    wait_until(lambda: not up.processes(), seconds=10, what="every process ended")
    up.process = start_up(up.environment, "--no-flower").process
    assert up.json("show", task["id"])["output"] == {"kept": True}
    stop(up)
    wait_until(lambda: not up.processes(), seconds=10, what="every process ended")
