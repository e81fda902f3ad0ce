"""Waiting for many tasks in one request, and what the clients build on it: `wait_many` and `map`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest
from pydantic import BaseModel
from sqlalchemy import Engine

from minions import AsyncClient, Client, errors
from shared.notifications import publish_finished
from shared.tasks import lifecycle
from shared.tasks.queries import MAX_OUTPUT_BYTES
from tests.integration.api.conftest import Api, WithKey
from tests.integration.api.test_client import finish
from tests.integration.conftest import InlineWorker
from tests.support.processes import wait_until

pytestmark = pytest.mark.usefixtures("agents")


class Echoed(BaseModel):
    """An output of the agent `Do`."""

    number: int


@pytest.fixture
def async_client(http_api: Api, database: Engine) -> AsyncClient:
    return AsyncClient(http_api.url, http_api.key, retries=1)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as pool:
        yield pool


def submit(http: httpx2.Client, number: int) -> list[str]:
    tasks = http.post("/v1/tasks/bulk", json={"tasks": [{"agent": "Echo"}] * number}).json()["tasks"]
    return [task["id"] for task in tasks]


def end(database: Engine, *tasks: str) -> None:
    with database.begin() as connection:
        for task in tasks:
            lifecycle.cancel(connection, UUID(task), reason="Enough.")
    for task in tasks:
        publish_finished(UUID(task))


def ask(http: httpx2.Client, ids: list[str], **options: Any) -> tuple[list[str], list[str]]:
    response = http.post("/v1/tasks/wait", json={"ids": ids, **options})
    assert response.status_code == 200, response.text
    return [task["id"] for task in response.json()["ended"]], response.json()["left"]


def waits(http_api: Api, task: str) -> bool:
    return UUID(task) in http_api.app.state.finish_watch._expected


def test_ended_tasks_are_returned_in_the_order_given(http: httpx2.Client, database: Engine) -> None:
    first, second, third = submit(http, 3)
    end(database, third, first)
    assert ask(http, [third, second, first, third]) == ([third, first], [second])
    assert ask(http, [third, second, first], until="any", wait=60) == ([third, first], [second])
    assert ask(http, [third, first], wait=60) == ([third, first], [])
    assert ask(http, [second], wait=0.1) == ([], [second])


def test_answer_comes_with_the_last_end(
    http_api: Api, http: httpx2.Client, database: Engine, threads: ThreadPoolExecutor
) -> None:
    first, second = submit(http, 2)
    waiting = threads.submit(ask, http, [first, second], wait=60)
    wait_until(lambda: waits(http_api, second), "it waits")
    end(database, first)
    assert not waiting.done()
    end(database, second)
    assert waiting.result(30) == ([first, second], [])
    assert not waits(http_api, first)


def test_answer_comes_with_the_first_end(
    http_api: Api, http: httpx2.Client, database: Engine, threads: ThreadPoolExecutor
) -> None:
    first, second = submit(http, 2)
    waiting = threads.submit(ask, http, [first, second], until="any", wait=60)
    wait_until(lambda: waits(http_api, second), "it waits")
    end(database, second)
    assert waiting.result(30) == ([second], [first])
    assert not waits(http_api, first)


def test_a_task_is_returned_as_by_itself(http: httpx2.Client, database: Engine) -> None:
    task = http.post("/v1/tasks", json={"agent": "Echo", "input": {"zz": 1, "a": 2}}).json()["id"]
    finish(database, output={"yy": 1, "b": None})
    [waited] = http.post("/v1/tasks/wait", json={"ids": [task]}).json()["ended"]
    assert waited == http.get(f"/v1/tasks/{task}").json()
    assert (list(waited["input"]), list(waited["output"])) == (["zz", "a"], ["yy", "b"])


def test_large_answers_are_split(http: httpx2.Client, database: Engine, client: Client) -> None:
    ids = []
    for _ in range(3):
        ids += submit(http, 1)
        finish(database, output="x" * (MAX_OUTPUT_BYTES // 2 + 1))
    assert ask(http, ids) == (ids[:1], ids[1:])
    assert [task.id for task in client.wait_many(ids, timeout=0)] == ids


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"ids": []}, "ids: List must have at least 1 item"),
        ({"ids": [str(uuid4())] * 1001}, "ids: List must have at most 1000 items"),
        ({"ids": ["01a1c9a4"]}, "ids"),
        ({"ids": [str(uuid4())], "until": "some"}, "until"),
        ({"ids": [str(uuid4())], "wait": 61}, "wait"),
        ({"ids": [str(uuid4())], "wait": "1"}, "wait"),
        ({"ids": [str(uuid4())], "outputs": True}, "outputs"),
        ({}, "ids"),
    ],
)
def test_invalid_wait_is_refused(http: httpx2.Client, body: Any, words: str) -> None:
    refused = http.post("/v1/tasks/wait", json=body)
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_input")
    assert words in refused.json()["detail"]


def test_unknown_and_foreign_tasks_are_named(http: httpx2.Client, with_key: WithKey) -> None:
    [known] = submit(http, 1)
    unknown = str(uuid4())
    for reader, asked, missing in (
        (http, [known, unknown], unknown),
        (with_key("viewer", namespace="elsewhere"), [known], known),
        (with_key("viewer", tenant="acme"), [known], known),
    ):
        refused = reader.post("/v1/tasks/wait", json={"ids": asked, "wait": 60})
        assert (refused.status_code, refused.json()["code"]) == (404, "not_found")
        assert missing in refused.json()["detail"]


def test_outputs_are_masked(http: httpx2.Client, database: Engine, with_key: WithKey) -> None:
    [task] = submit(http, 1)
    finish(database, output="s3cret")
    answer = with_key("viewer", payloads=False).post("/v1/tasks/wait", json={"ids": [task]})
    assert answer.json()["ended"][0]["state"] == "succeeded"
    assert "s3cret" not in answer.text


# ------------------------------------------------------------------------------------------------------------- clients


@contextmanager
def working(inline_worker: InlineWorker) -> Iterator[None]:
    """Run tasks in a thread while the block runs."""
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            inline_worker.run_all()
            over.wait(0.01)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.fixture
def do(act: Any, inline_worker: InlineWorker) -> Iterator[str]:
    """An agent whose tasks run while the test does."""
    agent: str = act(config={"max_attempts": 1})
    with working(inline_worker):
        yield agent


def echo(number: int) -> dict[str, Any]:
    return {"do": "answer", "answer": {"number": number}}


FAIL = {"do": "fail", "times": 9}


def test_map_yields_results_in_order(client: Client, do: str) -> None:
    seen: list[tuple[int, int | None]] = []
    inputs = [echo(number) for number in range(25)]
    results = client.map(do, inputs, in_flight=10, output=Echoed, progress=lambda *at: seen.append(at))
    assert [result.number for result in results] == list(range(25))
    assert seen[-1] == (25, 25)
    assert sorted(seen) == seen


def test_map_yields_results_as_they_come(client: Client, do: str) -> None:
    results = client.map(do, (echo(number) for number in range(25)), in_flight=10, ordered=False)
    assert sorted(result["number"] for result in results) == list(range(25))


def test_map_raises_or_yields_failures(client: Client, do: str) -> None:
    inputs = [echo(0), FAIL, echo(2)]
    first, failed, last = client.map(do, inputs, failures="yield")
    assert (first["number"], last["number"]) == (0, 2)
    assert isinstance(failed, errors.TaskFailed)
    assert failed.detail["index"] == 1
    results = client.map(do, inputs)
    assert next(results)["number"] == 0
    with pytest.raises(errors.TaskFailed):
        next(results)


def test_map_with_a_prefix_is_safe_to_repeat(client: Client, do: str) -> None:
    inputs = [echo(number) for number in range(5)]
    interrupted = client.map(do, inputs, idempotency_prefix="import-7", in_flight=2)
    assert next(interrupted) == {"number": 0}
    assert [result["number"] for result in client.map(do, inputs, idempotency_prefix="import-7")] == [0, 1, 2, 3, 4]
    assert client.counts()["by_state"] == {"succeeded": 5}


def test_map_refuses_what_it_cannot_do(client: Client) -> None:
    for options in ({"in_flight": 0}, {"in_flight": 1001}, {"failures": "drop"}, {"timeout": -1}):
        with pytest.raises(errors.InvalidInput):
            list(client.map("Echo", [1], **options))
    with pytest.raises(errors.UnknownAgent):
        list(client.map("Nobody", [1]))
    with pytest.raises(errors.InvalidInput) as refused:
        list(client.map("Search", [{"query": "cats"}, {"query": "dogs"}, {}]))
    assert refused.value.detail["index"] == 2


def test_map_ends_with_its_timeout(client: Client) -> None:
    with pytest.raises(errors.WaitTimeout) as late:
        list(client.map("Echo", [1, 2], timeout=0.1))
    assert late.value.detail["task"].state == "pending"


def test_map_of_one_task_for_several_inputs(client: Client, do: str) -> None:
    results = client.map(do, [echo(1)] * 3, unique_key="same", unique_while="running")
    assert list(results) == [{"number": 1}] * 3


def test_both_clients_do_the_same(async_client: AsyncClient, do: str) -> None:
    async def run() -> None:
        async with async_client as client:
            task = await client.submit(do, echo(7), output=Echoed)
            assert (await task.result()).number == 7
            assert (await (await client.get(task, output=Echoed)).result()).number == 7
            assert await (await client.wait(task.id[:30])).result() == {"number": 7}
            events = [event async for event in client.follow(task)]
            assert events[-1].type == "task.succeeded"
            ids = await client.submit_many({"agent": do, "input": echo(number)} for number in range(3))
            ended = await client.wait_many([*ids, task], timeout=60)
            assert [task.output["number"] for task in ended] == [0, 1, 2, 7]
            results = client.map(do, [echo(number) for number in range(5)], output=Echoed)
            assert [result.number async for result in results] == [0, 1, 2, 3, 4]
            assert len([task async for task in client.tasks(agent=do)]) == 9
            assert (await client.diff(ids[0], ids[0])).equal
            assert await client.ready()
            with pytest.raises(errors.TaskFailed):
                await (await client.submit(do, FAIL)).result()

    asyncio.run(run())


def test_cancelled_coroutines_leave_nothing_behind(http_api: Api, async_client: AsyncClient) -> None:
    async def run() -> None:
        async with async_client as client:
            task = await client.submit("Echo")

            async def follow() -> None:
                async with aclosing(client.follow(task)) as events:
                    async for _ in events:
                        following.set()

            following = asyncio.Event()
            running = [asyncio.create_task(each) for each in (follow(), client.wait(task), client.wait_many([task]))]
            await following.wait()
            await asyncio.to_thread(wait_until, lambda: waits(http_api, task.id), "the server has the requests")
            for each in running:
                each.cancel()
            results = await asyncio.gather(*running, return_exceptions=True)
            assert all(isinstance(result, asyncio.CancelledError) for result in results)
            pool: Any = client._transport._http._transport
            assert not [connection for connection in pool._pool.connections if not connection.is_idle()]
            assert (await client.cancel(task)).state == "cancelled"

    asyncio.run(run())
