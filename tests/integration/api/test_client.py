"""`from minions import Client` against the real API."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, text

from minions import Client, Task, errors
from shared.tasks import lifecycle
from shared.tasks.queries import MAX_OUTPUT_BYTES
from shared.tasks.states import State

pytestmark = pytest.mark.usefixtures("agents")


def finish(database: Engine, state: State = State.SUCCEEDED, **result: Any) -> None:
    """Runs one pending task to its end."""
    worker = text(
        "INSERT INTO workers (name, capabilities, slots, pool, host, pid, version) "
        "VALUES ('w', '{echo,search}', 1, 'prefork', 'h', 1, '0') RETURNING id"
    )
    with database.begin() as connection:
        id = connection.scalar(worker)
        task = lifecycle.dispatch(connection, lease=10, window=64)[0]
        claimed = lifecycle.claim(connection, task.task_id, task.claim, id)  # type: ignore[arg-type]
        assert claimed
        assert lifecycle.finish(connection, task.task_id, claimed["claim"], state, result) == state
        # A task that is submitted later must not find a free slot: it would be queued at once.
        connection.execute(text("UPDATE workers SET status = 'stopped'"))


def test_submit_and_get(client: Client) -> None:
    run_at = datetime(2100, 1, 1, tzinfo=UTC)
    task = client.submit(
        "Search",
        {"query": "cats"},
        capability="filter",
        key="tenant",
        labels={"a": "b"},
        priority=3,
        run_at=run_at,
        deadline="2101-01-01T00:00:00Z",
        conversation_id="c",
        traceparent="00-" + "a" * 32 + "-" + "b" * 16 + "-01",
    )
    assert isinstance(task, Task)
    assert (task.agent, task.capability, task.state, task.due_at) == ("Search", "filter", "scheduled", run_at)
    assert (task.key, task.labels, task.priority, task.conversation_id) == ("tenant", {"a": "b"}, 3, "c")
    assert not task.final
    assert client.get(task.id) == task


def test_messages_route_or_fill_the_input(client: Client) -> None:
    assert client.submit(messages=["Find cats"]).agent is None
    assert client.submit("Search", messages=[{"role": "user", "content": "cats"}]).agent == "Search"


def test_an_input_of_none_is_sent(client: Client) -> None:
    assert client.submit("Echo", None).input is None
    assert client.submit("Echo").input == {}


def test_submit_sends_an_own_idempotency_key(client: Client, database: Engine) -> None:
    client.submit("Echo")
    client.submit("Echo")
    assert client.submit("Echo", idempotency_key="k").id == client.submit("Echo", idempotency_key="k").id
    with database.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM idempotency_keys")) == 3


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({"agent": "Nobody"}, errors.UnknownAgent),
        ({"capability": "nothing"}, errors.UnknownCapability),
        ({}, errors.InvalidInput),
        ({"agent": "Search", "input": {}}, errors.InvalidInput),
        ({"agent": "Echo", "input": float("nan")}, errors.InvalidInput),
        ({"agent": "Echo", "input": {1, 2}}, errors.InvalidInput),
        ({"agent": "Echo", "input": "\x00"}, errors.InvalidInput),
        ({"agent": "Echo", "input": "\ud800"}, errors.InvalidInput),
        ({"agent": "Echo", "run_at": datetime(2030, 1, 1)}, errors.InvalidInput),
        ({"agent": "Echo", "input": "x" * (20 << 20)}, errors.TooLarge),
    ],
)
def test_refusals_have_their_own_errors(client: Client, arguments: dict[str, Any], kind: type[Exception]) -> None:
    with pytest.raises(errors.MinionsError) as caught:
        client.submit(**arguments)
    assert type(caught.value) is kind
    assert caught.value.message


def test_violations_can_be_read(client: Client) -> None:
    with pytest.raises(errors.InvalidInput) as caught:
        client.submit("Search", {"query": "x", "limit": 0})
    assert [fault["path"] for fault in caught.value.violations] == ["$.limit", "$.query"]
    assert caught.value.status == 422


def test_an_idempotency_conflict(client: Client) -> None:
    client.submit("Echo", 1, idempotency_key="k")
    with pytest.raises(errors.IdempotencyConflict):
        client.submit("Echo", 2, idempotency_key="k")


def test_submit_many(client: Client, database: Engine) -> None:
    ids = client.submit_many({"agent": "Echo", "input": n} for n in range(10_050))
    assert len(set(ids)) == 10_050
    assert client.get(ids[10_049]).input == 10_049
    assert client.submit_many([]) == []


def test_large_inputs_go_in_several_requests(client: Client) -> None:
    assert len(client.submit_many({"agent": "Echo", "input": "x" * 1_000_000} for _ in range(40))) == 40


def test_submit_many_reports_tasks_accepted_before_refusal(client: Client) -> None:
    tasks = [{"agent": "Echo", "input": n} for n in range(10_000)]
    with pytest.raises(errors.UnknownAgent) as caught:
        client.submit_many([*tasks, {"agent": "Echo"}, {"agent": "Nobody"}])
    assert caught.value.detail["index"] == 1
    assert len(caught.value.detail["submitted"]) == 10_000
    with pytest.raises(errors.InvalidInput, match=r"tasks\[1\] is str"):
        client.submit_many([{"agent": "Echo"}, "Echo"])  # type: ignore[list-item]


def test_wait(client: Client, database: Engine) -> None:
    task = client.submit("Echo")
    timer = threading.Timer(0.2, finish, [database], {"output": {"n": 1}})
    timer.start()
    done = client.wait(task.id, timeout=20)
    timer.join()
    assert done.final
    assert done.succeeded
    assert done.result() == {"n": 1}
    assert done.finished_at
    assert done.finished_at.tzinfo
    assert [execution["outcome"] for execution in client.executions(task.id)] == ["succeeded"]
    assert list(client.steps(task.id)) == []


def test_waiting_has_an_end(client: Client) -> None:
    task = client.submit("Echo")
    began = time.monotonic()
    with pytest.raises(errors.WaitTimeout, match="continues") as caught:
        client.wait(task.id, timeout=0.5)
    assert 0.5 <= time.monotonic() - began < 15
    assert caught.value.detail["task"].state == "pending"
    with pytest.raises(errors.NotFound):
        client.wait(uuid4(), timeout=0.5)


@pytest.mark.parametrize("timeout", [-5, -0.001, float("nan")])
def test_a_timeout_that_is_no_time_is_refused(client: Client, timeout: float) -> None:
    with pytest.raises(errors.InvalidInput, match="must be 0 seconds or more"):
        client.wait(uuid4(), timeout=timeout)


def test_every_method_accepts_a_task_for_its_id(client: Client, database: Engine) -> None:
    task = client.submit("Echo", {"n": 1})
    finish(database, output={"n": 2})
    done = client.wait(task)
    [summary] = client.tasks(root_id=task)
    assert client.get(summary) == client.get(done) == client.get(UUID(task.id)) == done
    assert client.cancel(task) == done
    assert list(client.steps(task)) == []
    assert len(list(client.executions(summary))) == 1
    assert [each.id for each in client.tree(summary)] == [task.id]
    assert [event.type for event in client.follow(summary)][-1] == "task.succeeded"
    assert client.why(task)["reason"] == "succeeded"
    again = client.replay(summary)
    assert [each.id for each in client.tasks(replay_of=done)] == [again.id]
    assert not client.diff(task, again).equal
    assert client.signal(again, "s").id == again.id


def test_a_task_waits_for_itself(client: Client, database: Engine) -> None:
    task = client.submit("Echo", {"n": 1})
    with pytest.raises(errors.WaitTimeout, match="It continues"):
        task.wait(timeout=0.1)
    with pytest.raises(errors.WaitTimeout):
        task.result(0)
    timer = threading.Timer(0.2, finish, [database], {"output": {"n": 2}})
    timer.start()
    assert task.result(timeout=20) == {"n": 2}
    timer.join()
    assert task.state == "pending", "it stays as it was read"
    [summary] = client.tasks()
    assert summary.wait().output == summary.result() == {"n": 2}


def test_a_task_is_data(client: Client) -> None:
    task = client.submit("Echo", {"n": 1})
    copies = [copy.deepcopy(task), pickle.loads(pickle.dumps(task)), Task(**dataclasses.asdict(task))]
    assert all(each == task for each in copies)
    assert repr(copies[0]) == repr(task)
    for each in copies:
        with pytest.raises(errors.NotConfigured, match=r"client\.wait"):
            each.wait()


def submit_and_finish(client: Client, database: Engine, output: Any) -> Task:
    """A task that has ended, as it was when it was submitted."""
    task = client.submit("Echo")
    finish(database, output=output)
    return task


def test_many_are_waited_for(client: Client, database: Engine) -> None:
    tasks = [submit_and_finish(client, database, {"n": n}) for n in range(3)]
    done = client.wait_many([tasks[2], tasks[0].id, UUID(tasks[1].id)])
    assert [task.id for task in done] == [tasks[2].id, tasks[0].id, tasks[1].id]
    assert [task.result()["n"] for task in done] == [2, 0, 1]
    late = client.submit("Echo")
    with pytest.raises(errors.WaitTimeout) as caught:
        client.wait_many([*tasks, late], timeout=0.2)
    assert caught.value.detail["task"].id == late.id
    with pytest.raises(errors.NotFound):
        client.wait_many([late, uuid4()])
    assert client.wait_many([]) == []


def test_lists_bring_outputs_where_they_are_asked_for(client: Client, database: Engine) -> None:
    large = "x" * (MAX_OUTPUT_BYTES // 2)
    for output in ({"n": 1}, large, large, {"n": 2}):
        submit_and_finish(client, database, output)
    client.submit("Echo")
    with api_pages(client) as pages:
        found = list(client.tasks(outputs=True))
    assert [task.output for task in found] == [None, {"n": 2}, large, large, {"n": 1}]
    assert [len(page["items"]) for page in pages] == [3, 2], "two large outputs do not fit one page"
    with api_pages(client) as pages:
        assert [task.id for task in client.tasks()] == [task.id for task in found]
    assert not any("output" in item for page in pages for item in page["items"])


@contextmanager
def api_pages(client: Client) -> Iterator[list[dict[str, Any]]]:
    """The pages that the client reads in the meantime."""
    pages: list[dict[str, Any]] = []
    read = client._transport.get

    def get(*arguments: Any, **options: Any) -> Any:
        pages.append(read(*arguments, **options))
        return pages[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client._transport, "get", get)
        yield pages


def test_a_failure_is_a_result(client: Client, database: Engine) -> None:
    task = client.submit("Echo")
    finish(database, State.FAILED, error={"type": "tool_error", "message": "It broke."})
    failed = client.wait(task.id)
    assert not failed.succeeded
    with pytest.raises(errors.TaskFailed, match="It broke"):
        failed.result()


def test_lists(client: Client) -> None:
    ids = client.submit_many({"agent": "Echo", "labels": {"n": str(n % 2)}} for n in range(25))
    assert [task.id for task in client.tasks(page=10)] == ids[::-1]
    assert [task.id for task in client.tasks(labels={"n": "1"}, state="pending", page=5)] == ids[1::2][::-1]
    since = datetime.now(UTC) - timedelta(hours=1)
    assert len(list(client.tasks(created_after=since, state=["pending", "queued"]))) == 25
    assert list(client.tasks(root_id=uuid4())) == []
    assert client.counts() == {"by_state": {"pending": 25}, "by_capability": {"echo": {"pending": 25}}}
    assert client.counts(root_id=ids[0])["by_state"] == {"pending": 1}
    assert [task.id for task in client.tree(ids[0])] == [ids[0]]


def test_cancel_and_replay(client: Client) -> None:
    task = client.submit("Echo", {"n": 1})
    with pytest.raises(errors.Conflict):
        client.replay(task.id)
    cancelled = client.cancel(task.id, reason="No.")
    assert cancelled.error is not None
    assert (cancelled.state, cancelled.error["message"]) == ("cancelled", "No.")
    assert client.cancel(task.id) == cancelled
    again = client.replay(task.id, pinned=True)
    assert (again.replay_of, again.input, again.state) == (task.id, {"n": 1}, "pending")


def test_definitions_and_workers(client: Client, define: Any, database: Engine) -> None:
    define({"kind": "function", "name": "double", "code": "def double(n):\n    return 2 * n\n"})
    assert [agent["name"] for agent in client.agents()] == ["Echo", "Search"]
    assert client.agent("Echo")["versions"][0]["number"] == 1
    with pytest.raises(errors.UnknownAgent):
        client.agent("no such agent?")
    assert [function["name"] for function in client.functions()] == ["double"]
    assert client.function("double")["definition"]["entrypoint"] == "double"
    assert [item["name"] for item in client.capabilities()] == ["echo", "filter", "search"]
    assert list(client.workers(status="online")) == []
    assert client.ready()


def test_a_wrong_key(http_api: Any) -> None:
    with Client(http_api.url, "wrong") as client, pytest.raises(errors.Unauthorized):
        client.submit("Echo")


def test_unreachable_server_is_an_error() -> None:
    with Client("http://127.0.0.1:9", "key", retries=1) as client:
        assert not client.ready()
        with pytest.raises(errors.Unavailable, match=re.escape("http://127.0.0.1:9 cannot be reached")):
            client.submit("Echo")


def test_the_environment_names_the_api(http_api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINION_API_URL", http_api.url)
    monkeypatch.setenv("MINION_API_KEY", http_api.key)
    with Client() as client:
        assert client.ready()
        assert list(client.agents()) is not None
    for name in ("MINION_API_URL", "MINION_API_KEY"):
        with monkeypatch.context() as without:
            without.delenv(name)
            with pytest.raises(errors.NotConfigured, match=name):
                Client()


def test_a_wrong_address() -> None:
    for url in ("127.0.0.1:8700", "ftp://x", "http://", "http://x:y", ""):
        with pytest.raises(errors.NotConfigured, match=r"http:// or https://|not the address of an API"):
            Client(url or "nonsense", "key")


def test_server_of_another_kind_is_an_error(http_api: Any) -> None:
    with Client(f"{http_api.url}/docs", "key", retries=0) as client, pytest.raises(errors.MinionsError):
        client.get("x")


LOADED = "print(*{name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names))"


@pytest.mark.parametrize(
    ("statement", "loaded"),
    [("from minions import Client", {"minions", "httpx2"}), ("import minions.errors", {"minions"})],
)
def test_client_imports_nothing_heavy(statement: str, loaded: set[str]) -> None:
    code = f"import sys; {statement}; {LOADED}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = set(done.stdout.split())
    assert loaded <= imported
    heavy = {"shared", "orchestrator", "workers", "celery", "kombu", "sqlalchemy", "pydantic", "redis", "fastapi"}
    assert not heavy & imported
    assert ("httpx2" in imported) == ("httpx2" in loaded)
