"""AsyncClient, typed outputs and the derived client: against a server that fails to order."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import pytest
from pydantic import BaseModel
from typing_extensions import TypedDict

from minions import AsyncClient, Client, errors
from minions.aio.submissions import AsyncSubmissions
from tests.support import sync_client
from tests.support.processes import ROOT
from tests.unit.minions.test_client import DROP, PROBLEM, TASK, Server
from tests.unit.minions.test_client import server as server  # the fixture

DONE = {**TASK, "state": "succeeded", "output": {"queue": "billing", "score": 1}}


class Verdict(BaseModel):
    """An output."""

    queue: str
    score: int


@dataclass
class PlainVerdict:
    """The same as a dataclass."""

    queue: str
    score: int


class VerdictDict(TypedDict):
    """The same as a dictionary."""

    queue: str
    score: int


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(f"http://127.0.0.1:{server.server_port}", "key", retries=2) as client:
        yield client


def run(server: Server, act: Callable[[AsyncClient], Awaitable[None]]) -> None:
    async def main() -> None:
        async with AsyncClient(f"http://127.0.0.1:{server.server_port}", "key", retries=2) as client:
            await act(client)

    asyncio.run(main())


# --------------------------------------------------------------------------------------------------------- derived code


def test_client_for_threads_is_current() -> None:
    derived = sync_client.derived()
    assert {"client.py", "transport.py", "submissions.py", "task.py"} <= derived.keys()
    for name, text in derived.items():
        assert (ROOT / "minions" / name).read_text() == text, f"run `make client`, and commit minions/{name}"


def test_both_clients_have_the_same_methods() -> None:
    def surface(kind: type) -> set[str]:
        return {name for name in dir(kind) if not name.startswith("_")}

    assert surface(AsyncClient) == surface(Client)


# --------------------------------------------------------------------------------------------------------- AsyncClient


@pytest.mark.parametrize("fault", [(503, PROBLEM), (502, b"<html>"), DROP])
def test_async_submit_is_retried_with_the_same_key(server: Server, fault: Any) -> None:
    async def act(client: AsyncClient) -> None:
        assert (await client.submit("Echo", {"n": 1})).id == TASK["id"]

    server.answers = [fault, fault, (201, TASK)]
    run(server, act)
    assert len({request["idempotency_key"] for _, request in server.asked}) == 1


def test_async_replay_is_not_retried(server: Server) -> None:
    async def act(client: AsyncClient) -> None:
        with pytest.raises(errors.Unavailable):
            await client.replay(uuid4())

    server.answers = [(503, PROBLEM)]
    run(server, act)
    assert len(server.asked) == 1


def test_async_stream_is_resumed(server: Server) -> None:
    async def act(client: AsyncClient) -> None:
        events = [(event.id, event.type) async for event in client.follow(TASK["id"])]
        assert events == [(1, "task.accepted"), (2, "task.failed")]

    server.headers = {"Content-Type": "text/event-stream", "Content-Length": "100000", "Connection": "close"}
    server.answers = [
        (200, b"id: 1\nevent: task.accepted\ndata: {}\n\n"),
        DROP,
        (200, b"id: 2\nevent: task.failed\ndata: {}\n\n"),
    ]
    run(server, act)
    assert server.last_ids == ["0", "1", "1"]


def test_async_lists_load_pages_as_they_are_read(server: Server) -> None:
    async def act(client: AsyncClient) -> None:
        tasks = [task.id async for task in client.tasks(agent="Echo")]
        assert tasks == [TASK["id"]] * 3

    server.answers = [(200, {"items": [TASK, TASK], "next": "c"}), (200, {"items": [TASK], "next": None})]
    run(server, act)
    assert [path.partition("cursor=")[2] for path, _ in server.asked] == ["", "c"]


# -------------------------------------------------------------------------------------------------------- older servers


@pytest.mark.parametrize("number", [1, 3])
def test_older_servers_are_asked_for_one_task_at_a_time(server: Server, client: Client, number: int) -> None:
    ids = [str(uuid4()) for _ in range(number)]
    server.answers = [(405, {"detail": "Method Not Allowed"}), *((200, {**DONE, "id": each}) for each in ids)]
    assert [task.id for task in client.wait_many(ids)] == ids
    assert [path.partition("?")[0] for path, _ in server.asked] == [
        "/v1/tasks/wait",
        *(f"/v1/tasks/{each}" for each in ids),
    ]
    server.answers = [(200, {**DONE, "id": ids[0]})]
    client.wait_many(ids[:1])
    assert server.asked[-1][0].startswith(f"/v1/tasks/{ids[0]}")
    assert AsyncSubmissions._waits_together


def test_map_works_with_older_servers(server: Server, client: Client) -> None:
    first, second = str(uuid4()), str(uuid4())
    server.answers = [
        (201, {"tasks": [{"id": first}, {"id": second}]}),
        (405, {}),
        (200, {**TASK, "id": first}),  # the time of one poll is up
        (200, {**DONE, "id": first, "output": 1}),
        (200, {**DONE, "id": second, "output": 2}),
    ]
    assert list(client.map("Echo", [1, 2])) == [1, 2]


# -------------------------------------------------------------------------------------------------------- typed outputs


@pytest.mark.parametrize("output", [Verdict, PlainVerdict, VerdictDict])
def test_result_is_of_the_named_type(server: Server, client: Client, output: Any) -> None:
    server.answers = [(201, DONE), (200, DONE), (200, DONE), (200, {"ended": [DONE], "left": []})]
    tasks = [
        client.submit("triage", {}, output=output),
        client.get(TASK["id"], output=output),
        client.wait(TASK["id"], output=output),
        *client.wait_many([TASK["id"]], output=output),
    ]
    for task in tasks:
        assert task.result() == output(queue="billing", score=1)
        assert task.output == DONE["output"]


def test_waiting_keeps_the_type(server: Server, client: Client) -> None:
    server.answers = [(201, TASK), (200, {**DONE, "output": [DONE["output"]]})]
    assert client.submit("triage", {}, output=list[Verdict]).result() == [Verdict(queue="billing", score=1)]


def test_other_output_is_an_error_that_names_the_fault(server: Server, client: Client) -> None:
    server.answers = [(200, {**DONE, "output": {"queue": "s3cret", "score": "many"}})]
    task = client.get(TASK["id"], output=Verdict)
    with pytest.raises(errors.OutputMismatch, match="not a valid Verdict: /score: Input should be") as wrong:
        task.result()
    assert wrong.value.violations[0]["path"] == "/score"
    assert wrong.value.detail["task"] is task
    assert "s3cret" not in wrong.value.message


def test_type_that_pydantic_cannot_check_is_refused_first(server: Server, client: Client) -> None:
    class Strange:
        pass

    for output in (Strange, list[Strange], Annotated[Strange, ["not hashable"]]):
        with pytest.raises(errors.InvalidInput, match="Pydantic cannot validate the output type"):
            client.submit("triage", {}, output=output)
    assert server.asked == []


def test_typed_outputs_without_pydantic_are_refused_first(server: Server) -> None:
    program = f"""
        import sys
        sys.modules["pydantic"] = None
        from minions import Client, errors
        client = Client("http://127.0.0.1:{server.server_port}", "key")
        try:
            client.submit("triage", {{}}, output=dict)
        except errors.NotConfigured as error:
            print(error.message)
    """
    said = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    assert "The output type dict needs Pydantic, which is not installed: `pip install pydantic`" in said.stdout
    assert server.asked == []


def test_types_are_known_to_mypy(tmp_path: Path) -> None:
    file = tmp_path / "typed.py"
    file.write_text(
        textwrap.dedent("""
            from collections.abc import Iterator
            from dataclasses import dataclass
            from typing import Any, TypedDict

            from minions import AsyncClient, AsyncTask, Client, Task, errors


            @dataclass
            class Verdict:
                queue: str


            class Reply(TypedDict):
                text: str


            def threads(client: Client) -> None:
                task: Task[Verdict] = client.submit("triage", {}, output=Verdict)
                queue: str = task.result().queue
                again: Verdict = task.wait().result()
                reply: Reply = client.get(task, output=Reply).result()
                many: list[Task[Verdict]] = client.wait_many([task], output=Verdict)
                plain: Task = client.submit("triage", {})
                anything: int = plain.result()
                results: Iterator[Verdict] = client.map("triage", [1], output=Verdict)
                mixed: Iterator[Verdict | errors.MinionsError]
                mixed = client.map("triage", [1], output=Verdict, failures="yield")
                wrong: int = task.result()


            async def coroutines(client: AsyncClient) -> None:
                task: AsyncTask[Verdict] = await client.submit("triage", {}, output=Verdict)
                queue: str = (await task.result()).queue
                async for verdict in client.map("triage", [1], output=Verdict):
                    print(verdict.queue)
                async for event in client.follow(task):
                    print(event.type)
                wrong: int = await task.result()
        """)
    )
    # With the cache of `make lint`.
    command = [sys.executable, "-m", "mypy", "--strict", str(file)]
    said = subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout
    faults = [line for line in said.splitlines() if ": error:" in line]
    assert len(faults) == 2, said
    assert all('has type "Verdict", variable has type "int"' in fault for fault in faults), said
