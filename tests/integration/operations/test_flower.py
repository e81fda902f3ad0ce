"""Flower shows the recorded outcome of each claim and all queues, behind a password."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from flower.urls import handlers
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Engine, text

from shared.broker import make_app, publish
from shared.contracts.requests import TaskRequest
from shared.settings import Settings
from shared.tasks.lifecycle import Dispatched
from tests.integration.conftest import Tasks
from tests.support.processes import (
    Process,
    killed_on_exit,
    start_orchestrator,
    start_worker,
    wait_listening,
    wait_until,
)

STATES = {
    "succeeded": "SUCCESS",
    "suspended": "SUCCESS",
    "failed": "FAILURE",
    "lost": "FAILURE",
    "retried": "RETRY",
    "handed_back": "RETRY",
    "cancelled": "REVOKED",
    "expired": "REVOKED",
}
EVENTS = {"SUCCESS": "succeeded", "FAILURE": "failed", "RETRY": "retried", "REVOKED": "revoked"}
PASSWORD = "a password of flower alone"
PATIENCE = 90.0  # Processes start slowly on a busy machine.
LARGEST_GROUP = text(
    "SELECT max(n) FROM (SELECT count(*) AS n FROM executions WHERE outcome = 'succeeded' GROUP BY finished_at) AS ends"
)
EXECUTIONS = text("SELECT task_id || '.' || claim AS id, outcome, error->>'type' AS error FROM executions")


@pytest.fixture(scope="module")
def flower(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    """`minion flower`."""
    with serving_flower(tmp_path_factory.mktemp("flower")) as client:
        yield client


@contextmanager
def serving_flower(folder: Path, *options: str, **env: str) -> Iterator[httpx2.Client]:
    """Flower on a free port, and a client that knows its password."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    process = Process(
        [sys.executable, "-m", "orchestrator.cli", "flower", "--port", port, *options],
        folder / "flower.log",
        {"MINION_FLOWER_PASSWORD": PASSWORD, **env},
    )
    auth = ("minions", PASSWORD)
    client = httpx2.Client(base_url=f"http://127.0.0.1:{port}", auth=auth, trust_env=False, timeout=20)
    with killed_on_exit(process), client:
        wait_until(lambda: answers(client, process), "Flower answers", PATIENCE)
        yield client


def answers(client: httpx2.Client, process: Process) -> bool:
    assert process.running, process.output()
    try:
        return client.get("/healthcheck").status_code == 200
    except httpx2.TransportError:
        return False


def shown(flower: httpx2.Client) -> dict[str, dict[str, Any]]:
    """Flower's tasks, without messages that led to no execution."""
    tasks = flower.get("/api/tasks").json()
    return {uuid: task for uuid, task in tasks.items() if task["state"] != "REJECTED"}


def recorded(database: Engine) -> dict[str, str]:
    """The executions' outcomes."""
    with database.connect() as connection:
        return {row.id: row.outcome for row in connection.execute(EXECUTIONS)}


def metrics(flower: httpx2.Client, name: str, agents: set[str]) -> Counter[str]:
    """A metric's sum of these agents, by the type of its events."""
    found: Counter[str] = Counter()
    for family in text_string_to_metric_families(flower.get("/metrics").text):
        for sample in family.samples:
            if sample.name == name and sample.labels["task"] in agents:
                found[sample.labels.get("type", "")] += int(sample.value)
    return found


@pytest.mark.usefixtures("loops")
def test_tasks_agree_with_executions(
    flower: httpx2.Client,
    worker: Process,
    tasks: Tasks,
    act: Any,
    database: Engine,
    settings: Settings,
    tmp_path: Path,
) -> None:
    """Successes, failures, retries, waits, cancels, expiries, dead children, lost and stopped workers, duplicates."""
    log = str(tmp_path / "log")
    killed, stopped, drained = (start_worker(tmp_path, capability) for capability in ("far", "near", "third"))
    with killed_on_exit(killed, stopped, drained):
        lost = tasks.submit(act("Lost", config={"capabilities": ["far"]}), {"do": "sleep", "seconds": 60})
        handed_back = tasks.submit(act("Back", config={"capabilities": ["near"]}), {"do": "sleep", "seconds": 60})
        wait_until(lambda: states(flower).get(f"{lost}.1") == "STARTED", "a task runs", PATIENCE)
        killed.kill()
        wait_until(lambda: states(flower).get(f"{handed_back}.1") == "STARTED", "another task runs", PATIENCE)
        stopped.signal(signal.SIGQUIT)
        third = tasks.submit(act("Last", config={"capabilities": ["third"]}), {"do": "meet", "calls": 2, "log": log})
        wait_until(lambda: states(flower).get(f"{third}.1") == "STARTED", "a third task runs", PATIENCE)
        drained.signal(signal.SIGTERM)
        wait_until(lambda: "Warm shutdown" in drained.output(), "it stops when its task has ended")
        with open(log, "a") as file:
            file.write(f"{third}\n")
        assert drained.wait() == 0

        done = [tasks.submit(act("Done"), {}) for _ in range(3)]
        refused = tasks.submit(act("Refused"), {"do": "refuse"})
        others = [
            tasks.submit(act("Again"), {"do": "fail", "times": 2}),
            tasks.submit(act("Later"), {"do": "later", "control": {"$wait": {"seconds": 0.1}}, "log": log}),
            tasks.submit(act("Deadly", config={"max_attempts": 2}), {"do": "die"}),
            tasks.submit(
                act("Hangs", config={"soft_time_limit": 1, "time_limit": 2, "max_attempts": 1}), {"do": "hang"}
            ),
        ]
        for task in [*done, refused, *others]:
            tasks.wait(task)
        late = tasks.submit(act("Late"), {"do": "sleep", "seconds": 60})
        cancelled = tasks.submit(act("Cancelled"), {"do": "sleep", "seconds": 60})
        for task in (late, cancelled):
            tasks.wait_for(task, "running")
        with database.begin() as connection:
            connection.execute(text("UPDATE task_status SET deadline = now() WHERE task_id = :task"), {"task": late})
        tasks.cancel(cancelled)
        for task in (late, cancelled):
            tasks.wait(task)
        again = [(done[0], "Done"), (refused, "Refused"), (others[0], "Again")]
        publish(make_app(settings), [Dispatched(task, 0, "work", agent, 60, 120, 0) for task, agent in again])
        stopped.wait()
    for task in (lost, handed_back):
        tasks.wait_for(task, "pending", "queued")
        tasks.cancel(task)

    outcomes = recorded(database)
    assert set(outcomes.values()) == STATES.keys()
    expected = {uuid: STATES[outcome] for uuid, outcome in outcomes.items()}
    wait_until(lambda: states(flower) == expected, "Flower agrees with PostgreSQL")
    agents = {"Done", "Refused", "Again", "Later", "Deadly", "Hangs", "Late", "Cancelled", "Lost", "Back", "Last"}
    wait_until(
        lambda: metrics(flower, "flower_events_total", agents)["task-rejected"] >= 3, "the duplicates are rejected"
    )
    counted = metrics(flower, "flower_events_total", agents)
    ends = Counter(f"task-{EVENTS[state]}" for state in expected.values())
    assert {type: counted[type] for type in ends} == ends
    assert metrics(flower, "flower_task_runtime_seconds_count", agents)[""] == len(expected)
    assert states(flower) == expected
    tasks_shown = shown(flower)
    assert tasks_shown[f"{refused}.1"]["exception"] == "tool_error: No, and asking again will not help"
    assert tasks_shown[f"{refused}.1"]["name"] == "Refused"
    assert f"task_id={refused}" in tasks_shown[f"{refused}.1"]["kwargs"]
    assert tasks_shown[f"{lost}.1"]["exception"].startswith("worker_lost: The worker test")
    assert tasks_shown[f"{handed_back}.1"]["exception"] in (
        "handed_back",
        "child_lost: The worker received the signal to stop, and ended the task",
    )


@pytest.mark.usefixtures("loops", "worker")
def test_each_task_of_a_pack_is_shown(flower: httpx2.Client, tasks: Tasks, act: Any, database: Engine) -> None:
    """A backlog of short tasks."""
    requests = [TaskRequest(agent=act("Short", effect="pure"), input={}) for _ in range(300)]
    submitted = tasks.submit_all(requests)
    for task in submitted:
        assert tasks.wait(task, PATIENCE)["state"] == "succeeded"
    with database.connect() as connection:
        assert connection.scalar(LARGEST_GROUP) > 1
    wait_until(lambda: states(flower, "Short") == {f"{task}.1": "SUCCESS" for task in submitted}, "Flower agrees")
    of_packs = [shown(flower)[f"{task}.1"] for task in submitted]
    assert all(task["started"] and task["runtime"] is not None for task in of_packs)


def states(flower: httpx2.Client, *agents: str) -> dict[str, str]:
    """Flower's tasks by state, of these agents or of all."""
    return {uuid: task["state"] for uuid, task in shown(flower).items() if not agents or task["name"] in agents}


EVERY_PAGE = (
    "/", "/workers", "/worker/any", "/tasks", "/tasks/datatable", "/task/any", "/broker", "/metrics", "/api/tasks",
    "/api/workers", "/api/queues/length", "/api/task/types", "/api/worker/shutdown/any", "/api/task/revoke/any",
    "/static/css/flower.css", "/login", "/logout", "/nowhere", "/healthcheck/x",
)  # fmt: skip


def test_no_page_shows_the_broker_s_password(flower: httpx2.Client, worker: Process, settings: Settings) -> None:
    password = urlsplit(settings.require_redis_url()).password
    assert password
    [name] = wait_until(lambda: list(flower.get("/api/workers?refresh=1").json()), "Flower sees the worker", PATIENCE)
    pages = [
        "/",
        "/workers?json=1",
        "/api/workers",
        f"/api/workers?workername={name}&refresh=1",
        f"/worker/{name}",
        "/tasks",
    ]
    pages += ["/broker", "/api/tasks", "/api/queues/length", "/api/task/types", "/metrics", "/nowhere"]
    shown = {page: flower.get(page).text for page in pages}
    assert [page for page, text in shown.items() if password in text] == []
    assert "redis+socket://:**@/" in shown["/broker"]
    stats = flower.get(f"/api/workers?workername={name}").json()[name]["stats"]
    assert stats["broker"]["hostname"].startswith("redis+socket://:**@/")


def test_flower_requires_the_password(flower: httpx2.Client) -> None:
    wrong: list[Any] = [None, ("minions", "wrong"), ("minions", ""), ("", PASSWORD), ("minions", api_key())]
    for path in EVERY_PAGE:
        for auth in wrong:
            for method in ("GET", "POST", "HEAD", "OPTIONS", "DELETE"):
                refused = flower.request(method, path, auth=auth)
                assert refused.status_code == 401, (method, path)
                assert refused.headers["www-authenticate"].startswith("Basic")
    for header in ("Basic", "Basic !", f"Bearer {api_key()}", "Basic " + "=" * 9):
        assert flower.get("/api/tasks", auth=None, headers={"Authorization": header}).status_code == 401
    assert flower.get("/healthcheck", auth=None).text == "OK"


def api_key() -> str:
    return os.environ["MINION_API_KEY"]


def test_no_variable_opens_flower(tmp_path: Path) -> None:
    env = {
        "FLOWER_BASIC_AUTH": "",
        "FLOWER_READ_ONLY": "false",
        "FLOWER_UNAUTHENTICATED_API": "true",
        "FLOWER_AUTH": "",
        "FLOWER_ADDRESS": "0.0.0.0",
    }
    with serving_flower(tmp_path, **env) as flower:
        assert flower.get("/api/tasks", auth=None).status_code == 401
        assert flower.get("/api/tasks").status_code == 200
        assert [flower.post(f"/api/{action}").status_code for action in changing()] == [403] * len(changing())


@pytest.mark.parametrize(
    ("env", "fault"),
    [
        ({"MINION_FLOWER_PASSWORD": ""}, "No password for Flower"),
        ({"MINION_FLOWER_PASSWORD": "short"}, "is too short: it must have at least 16 characters"),
        ({"MINION_FLOWER_PASSWORD": "MINION_API_KEY"}, "is the API key"),
        ({"FLOWER_BASIC_AUTH": "admin:admin"}, "FLOWER_BASIC_AUTH must be USER:PASSWORD"),
    ],
)
def test_flower_without_a_separate_password_does_not_start(settings: Settings, env: dict[str, str], fault: str) -> None:
    given = {name: api_key() if value == "MINION_API_KEY" else value for name, value in env.items()}
    command = [sys.executable, "-m", "orchestrator.cli", "flower"]
    environment = {**os.environ, **given}
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False, env=environment)
    assert (done.returncode, fault in done.stderr, "Traceback" in done.stderr) == (78, True, False), done.stderr


def test_flower_works_without_an_api_key(tmp_path: Path, settings: Settings) -> None:
    with serving_flower(tmp_path, MINION_API_KEY="") as flower:
        assert flower.get("/api/queues/length").status_code == 200


def test_port_in_use_is_reported(settings: Settings) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        command = [sys.executable, "-m", "orchestrator.cli", "flower", "--port", port]
        env = {**os.environ, "MINION_FLOWER_PASSWORD": PASSWORD}
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False, env=env)
    error = f"Error: Flower cannot listen on 127.0.0.1 port {port}: Address already in use."
    assert (done.returncode, error in done.stderr, "Traceback" in done.stderr) == (69, True, False), done.stderr


def test_actions_are_refused_unless_allowed(flower: httpx2.Client, worker: Process, tmp_path: Path) -> None:
    actions = changing()
    assert len(actions) == 14
    for action in actions:
        answer = flower.post(f"/api/{action}")
        assert (answer.status_code, answer.text) == (403, "Read only mode is enabled"), action
    with serving_flower(tmp_path, "--allow-actions") as other:
        assert other.post("/api/worker/shutdown/unknown").status_code == 404


def changing() -> list[str]:
    """The paths of Flower's API that change something, with any name at their end."""
    rules = [rule[:2] for rule in handlers if isinstance(rule, tuple)]
    changing = [path for path, handler in rules if path.startswith("/api/") and "post" in vars(handler)]
    return [path.removeprefix("/api/").replace("(.+)", "name") for path in changing]


def test_queues_of_all_capabilities_are_listed_from_the_start(act: Any, tmp_path: Path) -> None:
    """The orchestrator knows them, and no worker runs."""
    act("A", config={"capabilities": ["lonely", "other"]})
    orchestrator = start_orchestrator(tmp_path)
    with killed_on_exit(orchestrator):
        address = wait_listening(orchestrator, PATIENCE)
        with serving_flower(tmp_path, MINION_API_URL=address) as flower:
            [queues] = flower.get("/api/queues/length").json().values()
            page = flower.get("/broker").text
    names = ["lonely", "minion.submit", "other"]
    assert [queue["name"] for queue in queues if queue["name"] in names] == names
    assert "minion.default" not in page
    assert all(name in page for name in names)
