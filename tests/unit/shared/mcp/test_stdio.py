"""MCP servers as processes: allowed by name, with an empty environment, and gone with the process that uses them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from shared.contracts.documents import parse_definition
from shared.errors import InvalidDefinition, NotConfigured
from shared.mcp.client import McpClient
from shared.mcp.faults import McpFault
from shared.mcp.stdio import StdioProcesses, StdioTransport
from shared.settings import Settings
from tests.support.processes import wait_until

# Its methods are its behaviour. A child of it would outlive it.
SERVER = """
import json, os, subprocess, sys
child = subprocess.Popen(["sleep", "600"])
for line in sys.stdin:
    message = json.loads(line)
    method, id = message["method"], message.get("id")
    if method == "server/discover":
        result = {"supportedVersions": ["2026-07-28"], "resultType": "complete"}
    elif method == "pids":
        result = {"pids": [os.getpid(), child.pid], "environment": dict(os.environ), "cwd": os.getcwd()}
    elif method == "die":
        print("no database", file=sys.stderr, flush=True)
        os._exit(3)
    elif method == "hang":
        print("log in first", file=sys.stderr, flush=True)
        continue
    elif method == "long":
        print("x" * 100_000, flush=True)
        continue
    elif method == "lie":
        print('{"not": JSON}', flush=True)
        continue
    elif method == "babble":
        while True:
            print("x\\n" * 2000, flush=True)
    elif method == "chat on":
        print(json.dumps({"jsonrpc": "2.0", "id": id, "result": {}}))
        print("x\\n" * 2000, flush=True)
        notification = json.dumps({"jsonrpc": "2.0", "method": "notifications/message", "params": {}}) + "\\n"
        print(notification * 11_000, flush=True)
        continue
    elif method == "chat":
        print("Server is running on stdio\\n\\n[dotenv] 3 variables", flush=True)
        print(json.dumps({"level": 30, "msg": "starting"}), flush=True)
        print(json.dumps({"jsonrpc": "2.0", "method": "notifications/message", "params": {}}), flush=True)
        print(json.dumps({"jsonrpc": "2.0", "method": "ping", "id": "p"}), flush=True)
        result = {}
    else:
        result = {"echo": message["params"]}
    print(json.dumps({"jsonrpc": "2.0", "id": id, "result": result}), flush=True)
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "server.py"
    path.write_text(SERVER)
    return path


@pytest.fixture
def processes() -> Iterator[StdioProcesses]:
    made = StdioProcesses()
    yield made
    made.close()


def settings_for(program: Path, **fields: Any) -> Settings:
    return Settings(mcp_stdio={"files": {"command": [sys.executable, str(program)], **fields}})


def client(
    processes: StdioProcesses, settings: Settings, *, seconds: float = 20.0, namespace: str = "default"
) -> McpClient:
    transport = StdioTransport(lambda: processes.get("files", namespace, settings), seconds=seconds, max_bytes=50_000)
    return McpClient(transport, transport.process.era)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except OSError:
        return False
    return state not in "ZX"


def test_calls_use_one_process(processes: StdioProcesses, program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOWN", "yes")
    monkeypatch.setenv("HIDDEN", "no")
    settings = settings_for(program, env=["SHOWN", "ABSENT"])
    first = client(processes, settings).request("pids", {})
    assert client(processes, settings).request("pids", {})["pids"] == first["pids"]
    environment = {name: value for name, value in first["environment"].items() if not name.startswith("LC_")}
    assert (environment, first["cwd"]) == ({"SHOWN": "yes"}, "/")
    assert client(processes, settings, namespace="other").request("pids", {})["pids"] != first["pids"]


def test_secrets_of_the_environment_are_not_repeated(
    processes: StdioProcesses, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"GITHUB_TOKEN": "ghp_s3cret", "API_KEY": "a\"b'cd", "DB_PASSWORD": "pä/ss\\w", "GITHUB_PAT": "p4t-11"}
    plain = {"LANG": "C.UTF-8", "USE_AUTH": "1"}
    for name, value in (values | plain).items():
        monkeypatch.setenv(name, value)
    made = client(processes, settings_for(program, env=[*values, *plain]))
    found = made.request("pids", {})["environment"]
    assert {name: value for name, value in found.items() if not name.startswith("LC_")} == {
        **dict.fromkeys(values, "***"),
        **plain,
    }


def test_notifications_and_requests_of_the_server_are_read(processes: StdioProcesses, program: Path) -> None:
    made = client(processes, settings_for(program))
    assert made.request("chat", {}) == {}
    assert made.request("echo", {"a": "é"})["echo"]["a"] == "é"


def test_call_waits_for_others_up_to_its_timeout(processes: StdioProcesses, program: Path) -> None:
    settings = settings_for(program)
    lock = processes.get("files", "default", settings).lock
    with ThreadPoolExecutor(1) as other:
        other.submit(lock.acquire).result()
        with pytest.raises(McpFault, match="other calls kept it busy") as caught:
            client(processes, settings, seconds=0.2).request("echo", {})
        other.submit(lock.release).result()
    assert (caught.value.taken, caught.value.temporary) == (False, True)
    assert client(processes, settings).request("echo", {"a": 1})["echo"]["a"] == 1


def test_any_number_of_lines_may_wait_for_a_call(processes: StdioProcesses, program: Path) -> None:
    made = client(processes, settings_for(program))
    made.request("chat on", {})
    assert made.request("echo", {"a": 1})["echo"]["a"] == 1


# As programs of 2025-11-25 that were written in Rust: anything but `initialize` ends them, or gets no answer.
EARLIER = """
import json, sys
for count, line in enumerate(sys.stdin):
    message = json.loads(line)
    if count == 0 and message["method"] != "initialize":
        {otherwise}
    about = {{"protocolVersion": "2025-06-18", "capabilities": {{}}, "serverInfo": {{"name": "x", "version": "1"}}}}
    result = about if message["method"] == "initialize" else {{"params": message.get("params")}}
    if "id" in message:
        print(json.dumps({{"jsonrpc": "2.0", "id": message["id"], "result": result}}), flush=True)
"""


@pytest.mark.parametrize("otherwise", ["sys.exit('expected initialize')", "import time; time.sleep(600)"])
def test_program_that_must_be_initialized_first_is_started_again(
    processes: StdioProcesses, program: Path, otherwise: str
) -> None:
    program.write_text(EARLIER.format(otherwise=otherwise))
    settings = settings_for(program)
    made = client(processes, settings, seconds=6.0)
    assert made.request("echo", {"a": 1}) == {"params": {"a": 1}}
    # The next process is not asked in the way that would end it.
    processes.get("files", "default", settings).kill()
    again = client(processes, settings)
    process = again.transport.process  # type: ignore[attr-defined]
    assert again.request("echo", {"a": 2}) == {"params": {"a": 2}}
    assert processes.get("files", "default", settings) is process


def test_fault_has_the_end_of_standard_error(
    processes: StdioProcesses, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_KEY", "k3y-of-the-operator")
    program.write_text(
        "import os, sys\n"
        "print(os.environ['API_KEY'] * 20_000, file=sys.stderr)\n"
        "sys.exit('\\x1b[31mno \\x07database\\x1b[0m at ' + os.environ['API_KEY'])"
    )
    with pytest.raises(McpFault, match="its process") as caught:
        client(processes, settings_for(program, env=["API_KEY"])).request("echo", {})
    assert caught.value.written == "no  database at ***"
    # A model and the task's owner read the message.
    assert "database" not in caught.value.message


def test_program_that_writes_much_to_standard_error_goes_on(processes: StdioProcesses, program: Path) -> None:
    program.write_text(SERVER.replace("    method, id =", "    sys.stderr.write('x' * 300_000)\n    method, id ="))
    made = client(processes, settings_for(program))
    assert [made.request("echo", {"n": n})["echo"]["n"] for n in range(3)] == [0, 1, 2]


# As programs that were written without a library.
TALKATIVE = """
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    id, result = message.get("id"), {"protocolVersion": "2025-06-18", "params": message.get("params")}
    if message["method"] == "server/discover" or id is None:
        answers = [{"id": None, "error": {"code": -32601, "message": "Method not found"}}]
    elif message["method"] == "refused":
        answers = [{"id": None, "error": {"code": -32600, "message": "Not a request"}}]
    else:
        answers = [{"id": id, "result": result}] * 2
    for answer in answers:
        print(json.dumps({"jsonrpc": "2.0", **answer}), flush=True)
"""


def test_needless_answers_are_not_taken_for_others(processes: StdioProcesses, program: Path) -> None:
    program.write_text(TALKATIVE)
    made = client(processes, settings_for(program))
    assert [made.request("echo", {"n": n})["params"] for n in range(3)] == [{"n": n} for n in range(3)]
    with pytest.raises(McpFault, match="Not a request"):
        made.request("refused", {})
    assert made.request("echo", {"n": 4})["params"] == {"n": 4}


def test_close_ends_the_whole_group(processes: StdioProcesses, program: Path) -> None:
    pids = client(processes, settings_for(program)).request("pids", {})["pids"]
    processes.close()
    wait_until(lambda: not any(map(is_alive, pids)), "the server and its child have ended")


@pytest.mark.parametrize(
    ("method", "message", "taken"),
    [
        ("die", "its process has ended", None),
        ("hang", "did not answer in time", None),
        ("long", "more than 50000 bytes", True),
        ("lie", "not valid JSON", True),
        ("babble", "one line after the other, but no response", None),
    ],
)
def test_broken_server_is_started_again(
    processes: StdioProcesses, program: Path, method: str, message: str, taken: bool | None
) -> None:
    settings = settings_for(program)
    before = client(processes, settings).request("pids", {})["pids"]
    with pytest.raises(McpFault, match=message) as caught:
        client(processes, settings, seconds=1.0).request(method, {})
    assert caught.value.taken is taken
    assert caught.value.written == {"die": "no database", "hang": "log in first"}.get(method, "")
    assert client(processes, settings).request("pids", {})["pids"] != before
    wait_until(lambda: not any(map(is_alive, before)), "the first server and its child have ended")


def test_server_ends_with_a_killed_process(program: Path) -> None:
    used = f"Settings(mcp_stdio={{'files': {{'command': {[sys.executable, str(program)]!r}}}}})"
    script = f"""
import json, time
from shared.mcp.client import McpClient
from shared.mcp.stdio import StdioProcesses, StdioTransport
from shared.settings import Settings
transport = StdioTransport(lambda: StdioProcesses().get("files", "default", {used}), seconds=20, max_bytes=50_000)
client = McpClient(transport, transport.process.era)
print(json.dumps(client.request("pids", {{}})["pids"]), flush=True)
time.sleep(600)
"""
    worker = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    pids = json.loads(worker.stdout.readline())
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    worker.stdout.close()
    wait_until(lambda: not any(map(is_alive, pids)), "the server and its child have ended")


def test_only_listed_programs_are_started(processes: StdioProcesses, program: Path) -> None:
    with pytest.raises(NotConfigured, match="'other': its operator must list it in MINION_MCP_STDIO"):
        processes.get("other", "default", settings_for(program))
    with pytest.raises(McpFault, match="is not on this machine"):
        processes.get("files", "default", Settings(mcp_stdio={"files": {"command": ["/nowhere/server"]}}))
    with pytest.raises(McpFault, match="its process") as caught:
        client(processes, Settings(mcp_stdio={"files": {"command": [str(program)]}})).request("echo", {})
    assert "Permission denied" in caught.value.written
    with pytest.raises(McpFault, match="cannot be started"):
        processes.get("files", "default", settings_for(program, cwd="/nowhere"))


@pytest.mark.parametrize("value", ["[]", "x", '{"a": {}}', '{"a": {"command": []}}', '{"a": {"command": ["npx"]}}'])
def test_list_of_programs_is_checked(value: str) -> None:
    with pytest.raises(ValueError, match=r"mcp_stdio|MCP_STDIO"):
        Settings(mcp_stdio=value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "`url` or `stdio`"),
        ({"url": "https://a.example/mcp", "stdio": "files"}, "`url` or `stdio`"),
        ({"stdio": "files", "headers": {"X": "1"}}, "must not have `headers`"),
        ({"stdio": "/bin/sh -c"}, "stdio"),
        ({"stdio": ["/bin/sh"]}, "stdio"),
    ],
)
def test_definition_names_only_the_entry(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidDefinition, match=message):
        parse_definition({"kind": "mcp_server", "name": "shop", **fields})
