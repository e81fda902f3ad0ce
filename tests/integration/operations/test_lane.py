"""Agents with a model run in the worker's lane: limits, cancellation, crashes and stops, beside one slot."""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, make_url, text
from structlog.testing import capture_logs

from minions.testing import MessagesApi, Reply, tool_use
from minions.testing import text as says
from orchestrator.local.embedded import EmbeddedServers
from shared.contracts.requests import TaskRequest
from shared.database.connections import autocommit, transaction
from shared.notifications import make_redis
from shared.tasks import standing_budgets, stops
from tests.conftest import Define
from tests.integration.conftest import ACT, Tasks
from tests.support.model_client import use_messages_api
from tests.support.processes import SHORT_LEASES, Process, killed_on_exit, start_worker, wait_online, wait_until
from workers.lane.bootstep import LaneStep
from workers.lane.host import PROGRAM
from workers.lane.pulse import Pulse

pytestmark = pytest.mark.usefixtures("loops", "tool_package")

BUSY = text("SELECT busy FROM workers WHERE status = 'online'")
CONNECTIONS = text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
WITHOUT_BUDGET = text("SELECT count(*) FROM task_status WHERE wait_reason = 'standing_budget'")
COUNTED = "counted_worker"
OF_ROLE = text("SELECT count(*) FROM pg_stat_activity WHERE usename = :role")


class Gated(MessagesApi):
    """Holds back the replies to requests that contain the word `gate`, until it is open."""

    def __init__(self, notes: Path, *script: Reply) -> None:
        super().__init__(script=[*script])
        self.gate = threading.Event()
        self.notes = notes

    def answer(self, headers: dict[str, str], body: dict[str, Any]) -> tuple[int, Reply]:
        """Wait for the gate; a request that was answered is noted twice."""
        if "gate" in str(body["messages"][0]):
            self.note(headers, body)
            self.gate.wait(60)
        return super().answer(headers, body)

    def called(self, *tasks: UUID) -> bool:
        """Return whether the tools of these tasks have begun."""
        return all(str(task) in self.notes.read_text() for task in tasks)

    def asked(self, word: str, messages: int) -> int:
        """Return how many requests of a task with this word in its input had that many messages."""
        found = [request["messages"] for request in self.requests]
        return sum(len(each) == messages and word in str(each[0]) for each in found)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gated]:
    """The Messages API of all workers. Agents whose input says `tool` call the tool `act` once, then they are done;
    `risk` is that tool, but unsafe; `cached` is that tool, but pure, and its results are cached.
    """
    deeds = [("spin", {}), ("hang", {}), ("die", {}), ("sleep", {"seconds": 60}), ("answer", {})]
    notes = tmp_path_factory.mktemp("notes") / "calls"
    notes.touch()
    deeds = [(deed, {"do": deed, **more, "log": str(notes)}) for deed, more in deeds]
    deeds.append(("nap", {"do": "sleep", "seconds": 2, "log": str(notes)}))
    calls = [
        {**tool_use((tool, arguments)), "if": f"{what} {deed}"}
        for what, tool in (("tool", "act"), ("risk", "risk"), ("cached", "cached"))
        for deed, arguments in deeds
    ]
    calls.append({**tool_use(("act", {"do": "sleep", "seconds": 60, "text": "x" * 500_000})), "if": "tool large"})
    calls += [{**tool_use((tool, {})), "if": f"http {tool}"} for tool in ("fetch", "never", "briefly")]
    calls.append({**tool_use(("delegate", {"task": "tool answer"})), "if": "pass on"})
    script = [{**says("done"), "if": "tool_result"}, *calls, says("done")]
    with pytest.MonkeyPatch.context() as patch, use_messages_api(Gated(notes, *script), patch) as running:
        assert isinstance(running, Gated)
        yield running


@pytest.fixture
def api(server: Gated) -> Iterator[Gated]:
    """The Messages API with an empty record and a closed gate."""
    server.gate.clear()
    server.requests.clear()
    yield server
    server.gate.set()


@pytest.fixture(scope="module")
def one_slot_process(server: Gated, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """The module's worker."""
    process = start_worker(
        tmp_path_factory.mktemp("worker"), "work", env={"MINION_ALLOW_PRIVATE_ADDRESSES": "localhost"}
    )
    with killed_on_exit(process):
        yield process


@pytest.fixture
def one_slot(one_slot_process: Process, database: Engine) -> Iterator[Process]:
    """A worker with one slot."""
    written = len(one_slot_process.output())
    wait_online(database, one_slot_process)
    yield one_slot_process
    print(f"--- {one_slot_process.log.name}\n{one_slot_process.output()[written:][-6000:]}")


@pytest.fixture
def own_worker(api: Gated, tmp_path: Path, database: Engine) -> Iterator[Process]:
    """A worker with one slot for a test that ends it."""
    process = start_worker(tmp_path, "other")
    with killed_on_exit(process):
        wait_online(database, process)
        yield process


@pytest.fixture(scope="module")
def pages() -> Iterator[str]:
    """A web server; its path `/never` has no answer."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as running:
        running.daemon_threads = True
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"http://localhost:{running.server_address[1]}"
        Page.closing.set()
        running.shutdown()


class Page(BaseHTTPRequestHandler):
    """Answers `{}`."""

    closing = threading.Event()

    def do_GET(self) -> None:
        if "never" in self.path:
            self.closing.wait()
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(autouse=True)
def agents(define: Define, pages: str) -> None:
    """`Thinker` has time; `Hasty` has one second, two at most, and one attempt; `Careful` has some seconds, and more
    attempts; `Elsewhere` has another worker.
    """
    hasty = {"soft_time_limit": 1, "time_limit": 2, "max_attempts": 1}
    thinker = {"kind": "agent", "type": "agent", "model": "claude-sonnet-5", "tools": ["act"]}
    quick = {"capabilities": ["work"], "retry_backoff": 0.1, "retry_backoff_max": 0.2}
    get = {"kind": "tool", "description": "get", "type": "http", "effect": "pure", "input_schema": {"type": "object"}}
    able = {"tools": ["act", "risk", "cached", "fetch", "never", "briefly"]}
    define(
        ACT,
        {**ACT, "name": "cached", "effect": "pure", "cache": "1h"},
        {**ACT, "name": "risk", "effect": "unsafe"},
        {**get, "name": "fetch", "http": {"url": pages}},
        {**get, "name": "never", "effect": "idempotent", "http": {"url": f"{pages}/never"}},
        {**get, "name": "briefly", "http": {"url": f"{pages}/never", "timeout": 0.5}},
        {"kind": "tool", "description": "delegate", "name": "delegate", "type": "agent", "agent": "Thinker"},
        {**thinker, "name": "Thinker", "config": quick, **able},
        {**thinker, "name": "Hasty", "config": {**quick, **hasty}, **able},
        {**thinker, "name": "Careful", "config": {**quick, "soft_time_limit": 5, "time_limit": 8}, "tools": ["risk"]},
        {**thinker, "name": "Lead", "config": quick, "tools": ["delegate"]},
        {**thinker, "name": "Elsewhere", "config": {**quick, "capabilities": ["other"]}},
    )


def lane_of(worker: Process) -> int:
    """Wait until the worker's lane has started; return its process id."""
    return int(
        wait_until(lambda: re.findall(r'"pid": (\d+), "event": "lane_ready"', worker.output()), "a lane", 60)[-1]
    )


def test_many_agents_wait_for_their_model_beside_one_slot(
    api: Gated, one_slot: Process, tasks: Tasks, act: Any, database: Engine
) -> None:
    before = tasks.submit("Thinker", "tool answer")
    assert tasks.wait(before)["state"] == "succeeded"
    with database.connect() as connection:
        connections = connection.scalar(CONNECTIONS)
    waiting = [tasks.submit("Thinker", f"gate tool answer {number}") for number in range(40)]
    wait_until(lambda: tasks.count().get("running") == 40, "all agents are under way", 60)
    assert tasks.run(act())["state"] == "succeeded"
    with database.connect() as connection:
        wait_until(lambda: connection.scalar(BUSY) == 0, "the slot is free")
        assert connection.scalar(CONNECTIONS) <= connections + 10
    api.gate.set()
    assert {tasks.wait(task)["state"] for task in waiting} == {"succeeded"}
    assert {len(tasks.steps(task)) for task in waiting} == {3}


@pytest.fixture
def counted(database: Engine) -> Iterator[str]:
    """The address of the database for a worker whose connections are counted: with another role."""
    with database.begin() as connection:
        connection.execute(text(f"CREATE ROLE {COUNTED} LOGIN SUPERUSER PASSWORD '{COUNTED}'"))
    yield make_url(database.url).set(username=COUNTED, password=COUNTED).render_as_string(hide_password=False)
    with database.begin() as connection:
        connection.execute(text(f"DROP ROLE {COUNTED}"))


def test_a_worker_with_hundreds_of_agents_uses_ten_database_connections(
    api: Gated, counted: str, tool_package: Path, tmp_path: Path, tasks: Tasks, database: Engine
) -> None:
    peak = 0

    def count() -> dict[str, int]:
        nonlocal peak
        with database.connect() as connection:
            peak = max(peak, connection.scalar(OF_ROLE, {"role": COUNTED}))
        return tasks.count()

    with killed_on_exit(start_worker(tmp_path, "other", env={"DATABASE_URL": counted})):
        tasks.submit_all([TaskRequest(agent="Elsewhere", input=f"gate {number}") for number in range(200)])
        wait_until(lambda: count().get("running") == 200, "all agents are under way", 90)
        api.gate.set()
        wait_until(lambda: count() == {"succeeded": 200}, "all agents have ended", 90)
    assert 2 < peak <= 10  # the lane's eight, and the heartbeat's


@pytest.mark.parametrize("deed", ["spin", "hang"])
def test_a_tool_that_never_returns_is_ended_without_harm_to_the_neighbours(
    api: Gated, one_slot: Process, tasks: Tasks, deed: str
) -> None:
    neighbour = tasks.submit("Thinker", "gate")
    tasks.wait_for(neighbour, "running")
    ended = tasks.run("Hasty", f"tool {deed}")
    assert (ended["state"], ended["error"]["type"]) == ("failed", "child_lost")
    assert "hard time_limit" in ended["error"]["message"]
    api.gate.set()
    assert tasks.wait(neighbour)["state"] == "succeeded"
    assert len(tasks.executions(neighbour)) == 1
    assert tasks.run("Thinker", "tool answer")["state"] == "succeeded"


def test_a_tool_that_kills_its_process_costs_its_own_task_only(api: Gated, one_slot: Process, tasks: Tasks) -> None:
    neighbour = tasks.submit("Thinker", "gate")
    ended = tasks.run("Hasty", "tool die")
    assert (ended["state"], ended["error"]["type"]) == ("failed", "child_lost")
    api.gate.set()
    assert tasks.wait(neighbour)["state"] == "succeeded"
    assert len(tasks.executions(neighbour)) == 1


@pytest.mark.parametrize("work", ["gate", "tool sleep", "http never"])
def test_a_soft_limit_ends_a_model_call_and_a_tool_call(api: Gated, one_slot: Process, tasks: Tasks, work: str) -> None:
    ended = tasks.run("Hasty", work)
    assert (ended["state"], ended["error"]["type"]) == ("failed", "time_limit_exceeded")


@pytest.mark.parametrize("work", ["gate", "tool sleep", "tool hang", "tool large", "http never"])
def test_a_cancelled_task_ends_within_the_grace_period(api: Gated, one_slot: Process, tasks: Tasks, work: str) -> None:
    task = tasks.submit("Thinker", work)
    messages = 1 if work == "gate" else 2
    wait_until(lambda: len(tasks.steps(task)) == messages, "the call has begun")
    tasks.cancel(task)
    assert tasks.wait(task)["state"] == "cancelled"
    assert tasks.run("Thinker", "tool answer")["state"] == "succeeded"


def test_many_cancelled_tasks_end_within_the_grace_period(api: Gated, one_slot: Process, tasks: Tasks) -> None:
    works = ["gate", "tool sleep", "http never"]
    cancelled = [tasks.submit("Thinker", works[number % 3]) for number in range(51)]
    wait_until(lambda: tasks.count().get("running") == 51, "all are under way", 60)
    for task in cancelled:
        tasks.cancel(task)
    assert {tasks.wait(task)["state"] for task in cancelled} == {"cancelled"}
    assert tasks.run("Thinker", "tool answer")["state"] == "succeeded"


def test_http_tools_resolve_names_and_keep_their_time_limits(api: Gated, one_slot: Process, tasks: Tasks) -> None:
    assert tasks.run("Thinker", "http fetch")["state"] == "succeeded"
    ended = tasks.run("Hasty", "http briefly")
    assert (ended["state"], ended["error"]["type"]) == ("failed", "tool_error")
    assert "ReadTimeout" in ended["error"]["message"]


def test_cached_result_of_a_tool_is_used_by_another_agent(api: Gated, one_slot: Process, tasks: Tasks) -> None:
    first, second = (tasks.run("Thinker", "cached answer")["id"] for _ in range(2))
    [_, step, _] = tasks.steps(second)
    assert step["usage"]["cached"]["task_id"] == str(first)
    assert (api.called(first), api.called(second)) == (True, False)


def test_no_agent_calls_its_model_until_a_stop_is_lifted(api: Gated, one_slot: Process, tasks: Tasks) -> None:
    """Agents whose model call had begun end it, and call no other."""
    before = [tasks.submit("Thinker", f"gate tool answer {number}") for number in range(3)]
    wait_until(lambda: api.asked("gate", 1) == 3, "the model is asked")
    target = stops.target_of("agent", None, "Thinker")
    with transaction() as connection:
        stops.stop(connection, target)
    after = tasks.submit("Thinker", "tool answer")
    api.gate.set()
    for task in (*before, after):
        wait_until(lambda task=task: tasks.get(task)["wait_reason"] == "stopped", "it waits")
    assert {len(tasks.steps(task)) for task in before} == {2}
    assert {len(request["messages"]) for request in api.requests} == {1}
    assert tasks.steps(after) == []
    with transaction() as connection:
        stops.lift(connection, target)
    for task in (*before, after):
        assert tasks.wait(task)["state"] == "succeeded"
        assert [execution["outcome"] for execution in tasks.executions(task)] == ["suspended", "succeeded"]


def test_calls_in_flight_never_reserve_more_than_a_standing_budget(
    api: Gated, one_slot: Process, tasks: Tasks, database: Engine
) -> None:
    target = standing_budgets.target_of("agent", None, "Thinker")

    def limit(tokens: int) -> None:
        with transaction() as connection:
            standing_budgets.set_budget(connection, target, "month", tokens=tokens)

    def reserved() -> int:
        with database.connect() as connection:
            [budget] = standing_budgets.list_budgets(connection)
        return int(budget["tokens"]["reserved"])

    limit(10**9)
    agents = [tasks.submit("Thinker", "gate 0")]
    wait_until(lambda: api.asked("gate", 1) == 1, "the model is asked")
    limit(3 * (each := reserved()))
    agents += [tasks.submit("Thinker", f"gate {number}") for number in range(1, 8)]
    wait_until(lambda: reserved() == 3 * each, "the budget is reserved")
    with autocommit(database).connect() as connection:
        wait_until(lambda: connection.scalar(WITHOUT_BUDGET) == 5, "the other agents wait")
    assert api.asked("gate", 1) == 3
    api.gate.set()
    assert {tasks.wait(task)["state"] for task in agents} == {"succeeded"}
    assert reserved() == 0


def test_agents_delegate_and_converse(api: Gated, one_slot: Process, tasks: Tasks) -> None:
    lead = tasks.run("Lead", "pass on")
    assert lead["state"] == "succeeded"
    assert [child["state"] for child in tasks.children(lead["id"])] == ["succeeded"]
    turns = [tasks.submit("Thinker", messages=[f"turn {number}"], conversation_id="talk") for number in range(3)]
    assert {tasks.wait(task)["state"] for task in turns} == {"succeeded"}
    assert [len(request["messages"]) for request in api.requests if "turn" in str(request["messages"])] == [1, 3, 5]


@pytest.mark.parametrize("deed", ["die", "spin"])
def test_a_person_is_asked_about_an_unsafe_call_whose_slot_was_killed(
    api: Gated, one_slot: Process, tasks: Tasks, deed: str
) -> None:
    task = tasks.submit("Careful", f"risk {deed}")
    wait_until(lambda: tasks.get(task)["wait_reason"] == "answer", "a person is asked", 90)
    assert api.notes.read_text().count(str(task)) == 1


def test_a_person_is_asked_about_an_unsafe_call_whose_lane_was_killed(
    api: Gated, one_slot: Process, tasks: Tasks
) -> None:
    lane = lane_of_first_task(one_slot, tasks)
    task = tasks.submit("Thinker", "risk sleep")
    wait_until(lambda: api.called(task), "the tool is called")
    os.kill(lane, signal.SIGKILL)
    wait_until(lambda: tasks.get(task)["wait_reason"] == "answer", "a person is asked", 90)
    assert api.notes.read_text().count(str(task)) == 1


def test_agents_in_flight_survive_the_restart_of_a_server(
    api: Gated, one_slot: Process, tasks: Tasks, servers: EmbeddedServers
) -> None:
    waiting = [tasks.submit("Thinker", f"gate tool answer {number}") for number in range(100)]
    wait_until(lambda: tasks.count().get("running") == 100, "all agents are under way", 60)
    for server in (servers.valkey, servers.postgres):
        server.kill()
        server.start()
    api.gate.set()
    assert {tasks.wait(task, 60)["state"] for task in waiting} == {"succeeded"}
    assert {len(tasks.steps(task)) for task in waiting} == {3}
    with make_redis() as broker:
        assert len(broker.client_list()) < 40


def test_killed_lane_repeats_no_finished_call_and_charges_no_task(api: Gated, one_slot: Process, tasks: Tasks) -> None:
    api.gate.set()
    lane = lane_of_first_task(one_slot, tasks)
    api.gate.clear()
    first, second = (tasks.submit("Thinker", f"gate {word}") for word in ("one", "two"))
    for word in ("one", "two"):
        wait_until(lambda word=word: api.asked(word, 1) == 1, "the model is asked")
    os.kill(lane, signal.SIGKILL)
    wait_until(lambda: all(len(tasks.executions(task)) == 2 for task in (first, second)), "both run again", 60)
    api.gate.set()
    for task in (first, second):
        assert tasks.wait(task)["state"] == "succeeded"
        assert [execution["outcome"] for execution in tasks.executions(task)] == ["handed_back", "succeeded"]


def test_a_lane_that_is_stuck_is_killed(api: Gated, one_slot: Process, tasks: Tasks) -> None:
    lane = lane_of_first_task(one_slot, tasks)
    task = tasks.submit("Thinker", "gate")
    wait_until(lambda: api.asked("gate", 1) == 1, "the model is asked")
    os.kill(lane, signal.SIGSTOP)
    wait_until(lambda: len(tasks.executions(task)) == 2, "it runs again", 60)
    api.gate.set()
    assert tasks.wait(task)["state"] == "succeeded"


def test_a_worker_that_stops_hands_agents_back_after_their_current_call(
    api: Gated, own_worker: Process, tasks: Tasks, tmp_path: Path, database: Engine
) -> None:
    asking = tasks.submit("Elsewhere", "gate tool answer")
    acting = tasks.submit("Elsewhere", "tool nap")
    wait_until(lambda: api.asked("gate", 1) == 1 and api.called(acting), "the model is asked, and the tool called")
    own_worker.signal(signal.SIGTERM)
    wait_until(lambda: "lane_drains" in own_worker.output(), "the lane begins nothing more")
    api.gate.set()
    assert own_worker.wait() == 0
    assert [step["status"] for step in tasks.steps(asking)] == ["finished"]
    assert [step["status"] for step in tasks.steps(acting)] == ["finished"] * 2
    with another(tmp_path, database):
        for task in (asking, acting):
            assert tasks.wait(task)["state"] == "succeeded"
            assert [execution["outcome"] for execution in tasks.executions(task)] == ["handed_back", "succeeded"]
    # The held request is noted when it arrives and when it is answered.
    assert api.asked("gate", 1) == 2


def test_sigquit_keeps_what_ends_in_time_and_hands_back_the_rest_uncharged(
    api: Gated, tool_package: Path, tmp_path: Path, tasks: Tasks, database: Engine
) -> None:
    process = start_worker(tmp_path, "other", 2, options=["--", "worker.soft_shutdown_timeout=3"])
    with killed_on_exit(process):
        wait_online(database, process)
        napping, hanging, asking = (tasks.submit("Elsewhere", each) for each in ("tool nap", "tool hang", "gate"))
        wait_until(lambda: api.called(napping, hanging) and api.asked("gate", 1) == 1, "all are in their calls")
        process.signal(signal.SIGQUIT)
        process.wait(60)
    assert [step["status"] for step in tasks.steps(napping)] == ["finished"] * 2
    for task in (napping, hanging, asking):
        assert [execution["outcome"] for execution in tasks.executions(task)] == ["handed_back"]
        assert tasks.get(task)["attempts"] == 0
    api.gate.set()
    with another(tmp_path, database):
        assert tasks.wait(napping)["state"] == tasks.wait(asking)["state"] == "succeeded"


def test_sigquit_hurries_a_worker_that_waits_for_its_agents(
    api: Gated, tool_package: Path, tmp_path: Path, tasks: Tasks, database: Engine
) -> None:
    process = start_worker(tmp_path, "other", options=["--", "worker.soft_shutdown_timeout=0.5"])
    with killed_on_exit(process):
        wait_online(database, process)
        task = tasks.submit("Elsewhere", "gate")
        wait_until(lambda: api.asked("gate", 1) == 1, "the model is asked")
        process.signal(signal.SIGTERM)
        wait_until(lambda: "lane_drains" in process.output(), "the lane begins nothing more")
        process.signal(signal.SIGQUIT)
        process.wait()
    assert [execution["outcome"] for execution in tasks.executions(task)] == ["handed_back"]


def test_lane_does_not_import_from_the_current_folder(
    api: Gated, tool_package: Path, tmp_path: Path, tasks: Tasks, database: Engine
) -> None:
    folder = tmp_path / "project"
    for name in ("workers", "gevent", "shared"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text('raise SystemExit("a foreign package was imported")')
    command = [sys.executable, "-P", "-m", "orchestrator.cli", "worker", "other", "-c", "1"]
    process = Process(command, tmp_path / "worker.log", SHORT_LEASES, cwd=folder)
    with killed_on_exit(process):
        task = tasks.submit("Elsewhere", "tool answer")
        assert tasks.wait(task, 90)["state"] == "succeeded"


def test_lane_starts_with_a_worker_that_serves_a_model(own_worker: Process, tasks: Tasks) -> None:
    lane_of(own_worker)
    assert tasks.count() == {}


def test_lane_of_another_worker_starts_with_its_first_task_of_a_model(
    api: Gated, tool_package: Path, tmp_path: Path, tasks: Tasks, database: Engine, define: Define
) -> None:
    process = start_worker(tmp_path, "third", fresh=True)
    with killed_on_exit(process):
        wait_online(database, process)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert not [child for child in children if b"lane" in Path(f"/proc/{child}/cmdline").read_bytes()]
        later = {"name": "Later", "model": "claude-sonnet-5", "config": {"capabilities": ["third"]}}
        define({"kind": "agent", "type": "agent", **later})
        assert tasks.run("Later", "hello")["state"] == "succeeded"
        lane_of(process)


def test_worker_starts_if_its_lane_cannot_start_yet(define: Define, database: Engine) -> None:
    define({"kind": "agent", "type": "agent", "name": "Later", "model": "claude-sonnet-5"})
    worker = Mock()
    worker.app.amqp.queues.consume_from = {"default": None}
    worker.lane.warm_up.side_effect = OSError(errno.EAGAIN, "No process left")
    with capture_logs() as logs:
        LaneStep.start(Mock(), worker)
    worker.lane.warm_up.assert_called_once_with()
    assert [entry["event"] for entry in logs] == ["lane_starts_later"]


def test_the_lane_ends_with_its_worker(
    api: Gated, tool_package: Path, tmp_path: Path, tasks: Tasks, database: Engine
) -> None:
    process = start_worker(tmp_path, "other", fresh=True)
    with killed_on_exit(process):
        wait_online(database, process)
        lane = lane_of_first_task(process, tasks, "Elsewhere")
        os.kill(process.pid, signal.SIGKILL)
        wait_until(lambda: not Path(f"/proc/{lane}").exists() or "\nState:\tZ" in status(lane), "the lane has ended")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it ends with the worker's end of the socket")
def test_lane_that_starts_after_the_end_of_its_worker_ends() -> None:
    ours, theirs = socket.socketpair()
    pulse = Pulse.create()
    given = (theirs.fileno(), pulse.file)
    ended = 2**22 + 1  # beyond the largest id of a process
    with ours, theirs, closing(pulse):
        command = [sys.executable, "-P", str(PROGRAM), *map(str, (*given, ended)), str(uuid4()), *sys.path]
        assert subprocess.run(command, pass_fds=given, timeout=60, check=False).returncode == 0
        ours.setblocking(False)
        with pytest.raises(BlockingIOError):
            ours.recv(1)  # "ready" is the first message


@pytest.mark.parametrize("options", [["--autoscale=2,0"], ["--max-tasks-per-child=1"]])
def test_tool_calls_get_slots_of_a_pool_that_changes(
    api: Gated, tool_package: Path, tmp_path: Path, tasks: Tasks, database: Engine, options: list[str]
) -> None:
    process = start_worker(tmp_path, "other", options=options)
    with killed_on_exit(process):
        wait_online(database, process)
        many = [tasks.submit("Elsewhere", "tool answer") for _ in range(4)]
        assert {tasks.wait(task, 60)["state"] for task in many} == {"succeeded"}
        assert process.stop() == 0


def test_other_pools_run_agents_themselves(
    api: Gated, tool_package: Path, tmp_path: Path, tasks: Tasks, database: Engine
) -> None:
    process = start_worker(tmp_path, "other", options=("--pool", "solo"))
    with killed_on_exit(process):
        wait_online(database, process)
        assert [tasks.run("Elsewhere", "tool answer")["state"] for _ in range(3)] == ["succeeded"] * 3
        assert "lane_ready" not in process.output()


@contextmanager
def another(folder: Path, database: Engine) -> Iterator[Process]:
    """Run another worker for the agent `Elsewhere`."""
    process = start_worker(folder, "other")
    with killed_on_exit(process):
        wait_online(database, process)
        yield process


def lane_of_first_task(worker: Process, tasks: Tasks, agent: str = "Thinker") -> int:
    """Run a task, which starts the lane; return the lane's process id."""
    assert tasks.run(agent, "Hello")["state"] == "succeeded"
    return lane_of(worker)


def status(pid: int) -> str:
    """Return what the kernel says of a process."""
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return "\nState:\tZ"
