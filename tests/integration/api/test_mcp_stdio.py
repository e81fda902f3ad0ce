"""`minion mcp serve`: mistakes are errors that its client shows."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest

from shared.settings import get_settings
from tests.integration.api.conftest import Api, Run
from tests.support.processes import ROOT

HELLO = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}},
}
LIST = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}


def serving(url: str, key: str) -> subprocess.Popen[str]:
    env = {"MINION_API_URL": url, "MINION_API_KEY": key, "PATH": "", "HOME": "/nonexistent"}
    command = [sys.executable, "-m", "orchestrator.cli", "mcp", "serve"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=env, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def test_mistakes_are_errors_of_the_protocol(http_api: Api) -> None:
    sent = "".join(f"{each}\n" for each in (json.dumps(HELLO), "{", "[]", json.dumps(LIST)))
    with serving(http_api.url, "mk_wrong") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(sent)
        process.stdin.flush()
        answers = {}
        while 2 not in answers:
            answer = json.loads(process.stdout.readline())
            answers[answer.get("id")] = answer
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert answers[1]["result"]["serverInfo"]["name"] == "minions"
    assert answers[2]["error"]["data"]["code"] == "unauthorized"
    assert "mk_wrong" not in json.dumps(answers) + errors
    assert (process.returncode, errors) == (-signal.SIGINT, "")


def test_client_that_has_gone_is_no_error(http_api: Api) -> None:
    with serving(http_api.url, http_api.key) as process:
        assert process.stdout is not None
        process.stdout.close()
        _, errors = process.communicate(json.dumps(HELLO) + "\n", timeout=60)
    assert (process.returncode, errors) == (0, "")


def test_wrong_address_is_an_error_of_the_command(run_cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINION_API_URL", "minions.example.com")
    get_settings.cache_clear()
    # Structured logs: those of an unconfigured process show variables, such as arguments.
    logs: list[str] = []
    monkeypatch.setattr("shared.telemetry.configure", lambda settings, component: logs.append(component))
    done = run_cli("mcp", "serve")
    assert logs == ["mcp"]
    assert (done.code, done.out) == (78, "")
    assert "is not the address of an API" in done.line
