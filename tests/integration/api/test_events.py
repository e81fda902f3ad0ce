"""Following a task: every event arrives once and in order, despite failures."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from threading import Thread
from typing import Any
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import Engine, text
from typer.testing import CliRunner

from minions import Client, TaskEvent, errors, testing
from orchestrator.api.app import create_app
from orchestrator.cli import app as command
from orchestrator.local.embedded import EmbeddedServers
from orchestrator.retention.retention import RECORDS
from orchestrator.task_events import MAX_AT_ONCE
from shared.database.connections import transaction
from shared.errors import Conflict
from shared.notifications import (
    EVENTS,
    forget_publisher,
    make_redis,
    publish_finished,
    publish_progress,
    publish_streamed,
)
from shared.settings import Settings
from shared.streaming import Streamed
from shared.tasks import lifecycle
from shared.tasks.states import State
from tests.conftest import Define
from tests.integration.conftest import InlineWorker, Tasks
from tests.support.processes import wait_until

from .conftest import Api, serving

PAID = {"do": "answer", "answer": {"$wait": {"signal": "paid"}}}
LARGE = "x" * 100_000
TEXT = "One line\n\nand \u2028 \U0001f600 another"


@pytest.fixture
def parent(act: Any, define: Define) -> str:
    """A chain of one sub-task, which does what the input says."""
    act("Act", config={"max_attempts": 2})
    define(
        {
            "kind": "agent",
            "name": "Parent",
            "type": "function",
            "description": "Hands its work on",
            "relations": [{"agent": "Act"}],
            "config": {"capabilities": ["work"], "chain_strategy": "sequential"},
        }
    )
    return "Parent"


@dataclass
class Following:
    """A client that follows a task in a thread."""

    told: list[TaskEvent] = field(default_factory=list)
    ended: Future[None] = field(default_factory=Future)

    def types(self) -> list[str]:
        """Return the events so far."""
        return [event.type for event in self.told]

    def until(self, kind: str, seconds: float = 30.0) -> TaskEvent:
        """The first event of that type, when it is there."""
        wait_until(lambda: kind in self.types(), f"{kind} is told", seconds)
        return next(event for event in self.told if event.type == kind)

    def all(self) -> list[tuple[int | None, str]]:
        """Ids and types, up to the end."""
        self.ended.result(30)
        return [(event.id, event.type) for event in self.told]


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """Threads that are done when the test is."""
    with ThreadPoolExecutor() as threads:
        yield threads


@pytest.fixture
def following(client: Client) -> Any:
    """Follows a task beside the test. If the test fails, the task may never end; the fixture does not wait then."""

    def begin(task: UUID, after: int = 0, client: Client = client) -> Following:
        one = Following()

        def read() -> None:
            try:
                for event in client.follow(task, after):
                    one.told.append(event)
            except BaseException as error:
                one.ended.set_exception(error)
            else:
                one.ended.set_result(None)

        Thread(target=read, daemon=True).start()
        return one

    return begin


@dataclass
class Run:
    """A task that this test runs itself, one write after the other."""

    task: UUID
    claim: int
    key: bytes
    said: int = 0

    def say(self, text: str | None, *, number: int | None = None, **data: Any) -> None:
        """Streams text of step 1 as a minion does; None: that it is restarted."""
        self.said += 1
        about = {"step": 1, "claim": self.claim, **data}
        kind, about = ("step.restarted", about) if text is None else ("step.text", {**about, "text": text})
        publish_streamed(self.task, Streamed(number or self.said, kind, about), self.key)

    def write(self, number: int, status: str, **fields: Any) -> None:
        """Commits a step as a minion does."""
        step = {"number": number, "kind": "model_call", "name": "m", "status": status, "request_hash": "h", **fields}
        with transaction() as connection:
            assert lifecycle.write_steps(connection, self.task, self.claim, [{"effect": "idempotent", **step}])
        publish_progress(self.task)

    def finish(self, output: Any = None) -> None:
        """Ends the task."""
        with transaction() as connection:
            lifecycle.finish(connection, self.task, self.claim, State.SUCCEEDED, {"output": output})
        publish_finished(self.task)


@pytest.fixture
def run(act: Any, tasks: Tasks, inline_worker: InlineWorker) -> Any:
    """A task that has been claimed."""

    def begin() -> Run:
        task = tasks.submit(act(), {})
        [message] = inline_worker.dispatch()
        with transaction() as connection:
            claimed = lifecycle.claim(connection, task, message.claim, inline_worker.id)
        assert claimed is not None
        return Run(task, claimed["claim"], bytes.fromhex(claimed["stream_key"]))

    return begin


def types_of(client: Client, task: Any, after: int = 0) -> list[tuple[int | None, str]]:
    return [(event.id, event.type) for event in client.follow(task, after)]


def frames(body: str) -> list[dict[str, Any]]:
    """The events of a stream, as they stand in it."""
    found = []
    for frame in body.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in frame.splitlines() if not line.startswith(":"))
        if "data" in lines:
            found.append({**lines, "data": json.loads(lines["data"])})
    return found


def test_the_story_of_a_task_its_sub_task_and_its_wait(
    client: Client, http: httpx2.Client, tasks: Tasks, parent: str, inline_worker: InlineWorker
) -> None:
    task = tasks.submit(parent, PAID)
    for _ in range(2):
        inline_worker._round()
    [child] = [child["id"] for child in tasks.children(task)]
    with transaction() as connection:
        lifecycle.signal(connection, child, "paid", 5)
    inline_worker.run_all()

    told = list(client.follow(task))
    assert [(event.id, event.type) for event in told] == [
        (1, "task.accepted"),
        (2, "task.running"),
        (3, "step.started"),
        (4, "task.waiting"),
        (5, "step.finished"),
        (6, "task.pending"),
        (7, "task.running"),
        (8, "task.succeeded"),
    ]
    begun, waiting, finished, last = told[2].data, told[3].data, told[4].data, told[7].data
    assert begun["child_id"] == str(child)
    assert (begun["step"], begun["kind"], begun["name"], begun["claim"]) == (1, "subtask", "Act", 1)
    assert waiting["reason"] == "subtask"
    assert finished["output"] == last["output"] == tasks.get(task)["output"]

    story = list(client.follow(child))
    assert [event.type for event in story] == [
        "task.accepted",
        *("task.running", "step.started", "step.finished", "step.started", "task.waiting"),
        *("step.finished", "task.pending", "task.running", "task.succeeded"),
    ]
    assert story[0].data["parent_id"] == str(task)
    assert story[4].data["input"] == {"signal": "paid", "seconds": None}
    assert story[6].data["output"]["payload"] == 5

    for read in range(8):
        assert types_of(client, task, read) == [(event.id, event.type) for event in told[read:]]
        by_header = http.get(f"/v1/tasks/{task}/events?after=8", headers={"Last-Event-ID": str(read)})
        assert [int(frame["id"]) for frame in frames(by_header.text)] == list(range(read + 1, 9))
    assert http.get(f"/v1/tasks/{task}/events?after=8").status_code == 204


def test_event_stream_format(http: httpx2.Client, run: Any) -> None:
    running = run()
    running.finish({"text": TEXT})
    response = http.get(f"/v1/tasks/{running.task}/events?after=2")
    assert response.headers["Content-Type"].startswith("text/event-stream")
    assert (response.headers["Cache-Control"], response.headers["X-Accel-Buffering"]) == ("no-store", "no")
    retry, last, rest = response.text.split("\n\n")
    assert (retry, rest) == ("retry: 1000", "")
    assert last.splitlines()[:2] == ["id: 3", "event: task.succeeded"]
    [frame] = frames(response.text)
    assert frame["data"]["output"]["text"] == TEXT


@pytest.mark.parametrize("wrong", ["x", "-1", "1.5", "99999999999", "3"])
def test_a_wrong_last_event_is_refused(http: httpx2.Client, run: Any, wrong: str) -> None:
    task = run().task  # it has had two events
    for asked in ({"params": {"after": wrong}}, {"headers": {"Last-Event-ID": wrong}}):
        refused = http.get(f"/v1/tasks/{task}/events", **asked)
        assert refused.status_code == 422
        assert refused.headers["Content-Type"] == "application/problem+json"


def test_following_requires_key_and_task(http_api: Api, http: httpx2.Client, client: Client, run: Any) -> None:
    unknown = UUID(int=7)
    with pytest.raises(errors.NotFound, match=str(unknown)):
        list(client.follow(unknown))
    assert httpx2.get(f"{http_api.url}/v1/tasks/{run().task}/events", trust_env=False).status_code == 401
    head = http.head(f"/v1/tasks/{run().task}/events")
    assert (head.status_code, head.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")


def test_text_is_streamed_between_the_steps(run: Any, following: Any) -> None:
    running = run()
    one, other = following(running.task), following(running.task)
    for follower in (one, other):
        follower.until("task.running")
    wait_until(lambda: subscribers(running.task) == 1, "one subscription for both")
    running.write(1, "started")
    for part in ("Hel", "lo", None, "Hello"):
        running.say(part)
    for rubbish in (b"", b"\xff", b"[]", b'{"type": "task.failed", "data": {}}', b'{"type": "step.text", "data": {}}'):
        with make_redis() as broker:
            broker.publish(f"{EVENTS}{running.task}", rubbish)
    one.until("step.restarted"), other.until("step.restarted")
    running.write(1, "finished", output={"text": "Hello"}, usage={"input_tokens": 3})
    running.finish("done")
    for follower in (one, other):
        assert follower.all() == [
            (1, "task.accepted"),
            (2, "task.running"),
            (3, "step.started"),
            (None, "step.text"),
            (None, "step.text"),
            (None, "step.restarted"),
            (None, "step.text"),
            (4, "step.finished"),
            (5, "task.succeeded"),
        ]
        assert [event.data["text"] for event in follower.told if event.type == "step.text"] == ["Hel", "lo", "Hello"]
        assert follower.told[-2].data["output"] == {"text": "Hello"}
        assert follower.told[-2].data["usage"] == {"input_tokens": 3}


def test_text_is_not_streamed_to_keys_that_see_no_payloads(
    run: Any, following: Any, client: Client, http_api: Api
) -> None:
    running = run()
    with Client(http_api.url, client.create_api_key("viewer", "viewer")["key"], retries=1) as viewer:
        seeing, blind = following(running.task), following(running.task, client=viewer)
        for follower in (seeing, blind):
            follower.until("task.running")
        wait_until(lambda: subscribers(running.task) == 1, "the subscription")
        running.write(1, "started")
        running.say("Hello")
        seeing.until("step.text")
        running.write(1, "finished", output={"text": "Hello"})
        running.finish("Hello")
        assert [kind for _, kind in blind.all()] == [
            kind for kind in (each for _, each in seeing.all()) if kind != "step.text"
        ]
    assert "Hello" not in str(blind.told)
    assert "Hello" in str(seeing.told)


@pytest.fixture
def messages_api(messages_api: testing.MessagesApi, define: Define) -> testing.MessagesApi:
    """The local Messages API, and the agent `Writer` that calls it."""
    define({"kind": "agent", "name": "Writer", "model": "claude-sonnet-5-5", "config": {"capabilities": ["work"]}})
    return messages_api


def test_model_text_reaches_followers(
    messages_api: testing.MessagesApi, tasks: Tasks, inline_worker: InlineWorker, following: Any
) -> None:
    said = "There are two fine boats in the harbour."
    messages_api.script = [testing.text(said, cut=4), testing.text(said, pause=0.06)]
    task = tasks.submit("Writer", "What is in the harbour?")
    follower = following(task)
    wait_until(lambda: subscribers(task) == 1, "the subscription")
    inline_worker.run_all()
    types = [kind for _, kind in follower.all()]
    assert types[:3] == ["task.accepted", "task.running", "step.started"]
    assert types[-2:] == ["step.finished", "task.succeeded"]
    again = types.index("step.restarted")
    assert "step.text" in types[:again]
    streamed = follower.told[again + 1 : -2]
    assert "".join(event.data["text"] for event in streamed) == said
    assert [event.data["from"] for event in streamed] == [
        sum(len(earlier.data["text"]) for earlier in streamed[:number]) for number in range(len(streamed))
    ]
    assert len(streamed) > 1
    assert {event.data["step"] for event in streamed} == {1}


def test_text_of_lost_claim_is_not_shown(run: Any, following: Any, inline_worker: InlineWorker) -> None:
    running = run()
    follower = following(running.task)
    follower.until("task.running")
    wait_until(lambda: subscribers(running.task) == 1, "the subscription")

    running.write(1, "started")
    running.say("Hel")
    follower.until("step.text")
    with transaction() as connection:
        lifecycle.release(connection, running.task, 1, how="lost", charged=False)
    [message] = inline_worker.dispatch()
    with transaction() as connection:
        claimed = lifecycle.claim(connection, running.task, message.claim, inline_worker.id)
    assert claimed is not None
    frozen = replace(running)
    running.claim, running.key = 2, bytes.fromhex(claimed["stream_key"])
    running.write(1, "started")
    wait_until(lambda: follower.types().count("step.started") == 2, "it is begun again")
    frozen.say("stood still")
    running.say("Hello", claim=2)
    wait_until(lambda: follower.types().count("step.text") == 2, "what the new one says")
    frozen.say("and went on")
    running.write(1, "finished", output="Hello")
    frozen.say("for long")
    running.finish("done")
    follower.all()
    assert [event.data["text"] for event in follower.told if event.type == "step.text"] == ["Hel", "Hello"]


def test_forged_and_recorded_text_is_not_shown(run: Any, following: Any) -> None:
    """A writer to Redis can make followers look, but cannot show them anything."""
    running, other = run(), run()
    follower = following(running.task)
    follower.until("task.running")
    wait_until(lambda: subscribers(running.task) == 1, "the subscription")
    with make_redis(timeout=None) as broker, broker.pubsub(ignore_subscribe_messages=True) as ear:
        ear.subscribe(f"{EVENTS}{running.task}")
        early = Streamed(1, "step.text", {"step": 1, "claim": 1, "text": "forged before the step"})
        publish_streamed(running.task, early, b"")
        running.write(1, "started")
        running.say("One. ")
        follower.until("step.text")
        recorded = []
        while not any(b"One" in message for message in recorded):
            message = ear.get_message(timeout=5)
            recorded += [message["data"]] if message else []

        without_tag = {"type": "step.text", "data": {"step": 1, "claim": 1, "text": "as 0.2 sent it"}}
        wrong_key = Streamed(2, "step.text", {"step": 1, "claim": 1, "text": "forged"}).seal(running.task, b"guessed")
        altered = recorded[-1].replace(b"One", b"Two").replace(b'"number": 1', b'"number": 2')
        for_another = Streamed(2, "step.text", {"step": 1, "claim": 1, "text": "x"}).seal(other.task, running.key)
        endless = json.dumps({**without_tag, "number": 2, "tag": "x"}).replace('"as 0.2 sent it"', "1e999")
        nested = endless.replace("1e999", "[" * 900 + "]" * 900)
        for forged in (
            endless,
            nested,
            json.dumps(without_tag),
            wrong_key,
            altered,
            for_another,
            recorded[-1],
            recorded[-1],
        ):
            broker.publish(f"{EVENTS}{running.task}", forged)
        publish_streamed(running.task, Streamed(9, "step.restarted", {"step": 1, "claim": 1}), b"guessed")
    running.say("Two.")
    wait_until(lambda: follower.types().count("step.text") == 2, "what was really said")
    running.finish()
    follower.all()
    assert [event.data["text"] for event in follower.told if event.type == "step.text"] == ["One. ", "Two."]
    assert "step.restarted" not in follower.types()
    assert not {"number", "tag"} & {name for event in follower.told for name in event.data}


def test_the_key_of_streamed_text_is_a_secret_of_each_execution(
    http: httpx2.Client, run: Any, inline_worker: InlineWorker, database: Engine
) -> None:
    running = run()
    with transaction() as connection:
        lifecycle.release(connection, running.task, 1, how="lost", charged=False)
    [message] = inline_worker.dispatch()
    with transaction() as connection:
        claimed = lifecycle.claim(connection, running.task, message.claim, inline_worker.id)
    running.claim = 2
    assert claimed is not None
    keys = {running.key, bytes.fromhex(claimed["stream_key"])}
    assert [len(key) for key in keys] == [32, 32]
    running.write(1, "started")
    running.finish()

    readable = [
        http.get(f"/v1/tasks/{running.task}{part}").text for part in ("", "/steps", "/executions", "/events", "/why")
    ]
    with database.connect() as connection:
        exported = connection.execute(RECORDS, {"roots": [running.task]}).scalar_one()
    assert [each["claim"] for each in exported["executions"]] == [1, 2]
    readable.append(json.dumps(exported))
    assert not [found for found in readable if "stream_key" in found or any(key.hex() in found for key in keys)]


def test_text_of_an_execution_without_a_key_is_not_shown(run: Any, following: Any, database: Engine) -> None:
    """It was begun before the key existed, by a worker that sends no tags."""
    running = run()
    with database.begin() as connection:
        connection.execute(text("UPDATE executions SET stream_key = NULL"))
    follower = following(running.task)
    follower.until("task.running")
    wait_until(lambda: subscribers(running.task) == 1, "the subscription")
    running.write(1, "started")
    for key in (running.key, b""):
        publish_streamed(running.task, Streamed(1, "step.text", {"step": 1, "claim": 1, "text": "x"}), key)
    running.finish("done")
    follower.all()
    assert "step.text" not in follower.types()


def test_notifications_are_enough(settings: Settings, run: Any, following: Any) -> None:
    running = run()
    app = create_app(settings)
    app.state.event_watch.poll_seconds = 3600
    with (
        serving(app) as port,
        Client(f"http://127.0.0.1:{port}", settings.require_api_key()) as client,
    ):
        follower = following(running.task, client=client)
        follower.until("task.running")
        wait_until(lambda: subscribers(running.task) == 1, "the subscription")
        for number in range(1, 4):
            running.write(number, "started")
            wait_until(lambda: len(follower.told) == 2 + number, "the step is reported")  # noqa: B023
        running.finish()
        follower.all()


def test_minion_notifies_with_each_write(tasks: Tasks, act: Any, inline_worker: InlineWorker) -> None:
    task = tasks.submit(act(), PAID)
    with make_redis(timeout=None) as broker, broker.pubsub(ignore_subscribe_messages=True) as ear:
        ear.subscribe(f"{EVENTS}{task}")
        inline_worker._round()
        publish_streamed(task, Streamed(1, "step.restarted", {"step": 0, "claim": 1}), b"key")
        heard = []
        while not heard or not heard[-1]:
            message = ear.get_message(timeout=5)
            heard += [message["data"]] if message else []
    assert heard[:-1] == [b""] * 3  # the step is started, it is finished, the task waits


def test_events_arrive_later_without_redis(run: Any, following: Any, servers: EmbeddedServers) -> None:
    running = run()
    follower = following(running.task)
    follower.until("task.running")
    servers.valkey.kill()
    try:
        running.write(1, "started")
        running.say("nobody hears it")
        running.write(1, "finished", output="whole")
        running.finish()
        assert follower.all()[2:] == [(3, "step.started"), (4, "step.finished"), (5, "task.succeeded")]
    finally:
        servers.valkey.start()
        forget_publisher()


def test_twenty_followers_share_one_connection(http_api: Api, run: Any, database: Engine) -> None:
    running = run()
    for number in range(1, MAX_AT_ONCE + 5):
        running.write(number, "finished", output=number)
    watch = http_api.app.state.event_watch

    async def read(web: httpx2.AsyncClient, most: int) -> list[int]:
        """The ids up to a number of them; then the connection is closed."""
        ids: list[int] = []
        async with web.stream("GET", f"/v1/tasks/{running.task}/events") as response:
            async for line in response.aiter_lines():
                if line.startswith("id: "):
                    ids.append(int(line[4:]))
                if len(ids) == most:
                    break
        return ids

    async def follow() -> list[list[int]]:
        headers = {"Authorization": f"Bearer {http_api.key}"}
        limits = httpx2.Limits(max_connections=None)
        async with httpx2.AsyncClient(
            base_url=http_api.url, headers=headers, limits=limits, timeout=30, trust_env=False
        ) as web:
            readers = [asyncio.create_task(read(web, 1000)) for _ in range(20)]
            await asyncio.to_thread(wait_until, lambda: len(watch._all()) == 20, "twenty follow")
            assert await asyncio.gather(*(read(web, 1) for _ in range(5))) == [[1]] * 5
            await asyncio.to_thread(wait_until, lambda: len(watch._all()) == 20, "who left is forgotten")
            assert (await web.get("/v1/tasks", params={"limit": 1}, timeout=20)).status_code == 200
            # Redis may have been away a moment ago: followers subscribe again.
            await asyncio.to_thread(wait_until, lambda: subscribers(running.task) == 1, "one subscription")
            await asyncio.to_thread(running.finish)
            return await asyncio.gather(*readers)

    assert asyncio.run(follow()) == [list(range(1, MAX_AT_ONCE + 8))] * 20
    wait_until(lambda: not watch._followers, "nobody follows")


def test_large_outputs_are_left_out(client: Client, tasks: Tasks, act: Any, inline_worker: InlineWorker) -> None:
    task = tasks.submit(act(), {"do": "answer", "answer": LARGE})
    inline_worker.run_all()
    told = list(client.follow(task))
    assert [event.type for event in told if event.data.get("output_omitted")] == ["step.finished", "task.succeeded"]
    assert max(len(str(event.data)) for event in told) < 1000


def test_a_failure_that_is_tried_again(client: Client, tasks: Tasks, parent: str, inline_worker: InlineWorker) -> None:
    task = tasks.submit("Act", {"do": "fail"})
    inline_worker.run_all()
    told = list(client.follow(task))
    assert [event.type.partition(".")[2] for event in told] == [
        *("accepted", "running", "started", "failed", "waiting", "pending"),
        *("running", "started", "failed", "failed"),
    ]
    assert "attempt 1 fails" in told[3].data["error"]["message"]
    assert (told[4].data["reason"], told[4].data["error"]["type"]) == ("backoff", told[-1].data["error"]["type"])
    assert "attempt 2 fails" in told[8].data["error"]["message"]


def test_cancelled_parent_sends_no_more_events(
    client: Client, tasks: Tasks, parent: str, inline_worker: InlineWorker, following: Any
) -> None:
    task = tasks.submit(parent, PAID)
    for _ in range(2):
        inline_worker._round()
    follower = following(task)
    follower.until("task.waiting")
    tasks.cancel(task)
    assert follower.all()[3:] == [(4, "task.waiting"), (5, "task.cancelled")]
    [child] = tasks.children(task)
    assert (child["state"], types_of(client, task, 4)) == ("cancelled", [(5, "task.cancelled")])


def test_task_of_older_release_has_start_and_end_events(
    client: Client, tasks: Tasks, act: Any, inline_worker: InlineWorker, database: Engine
) -> None:
    task = tasks.submit(act(), {})
    inline_worker.run_all()
    with database.begin() as connection:
        connection.execute(text("TRUNCATE task_events"))
    assert types_of(client, task) == [(1, "task.accepted"), (2, "task.succeeded")]


def test_deleting_task_deletes_its_events(run: Any, following: Any, database: Engine) -> None:
    running = run()
    follower = following(running.task)
    follower.until("task.running")
    with database.begin() as connection:
        connection.execute(text("DELETE FROM tasks"))
        assert connection.scalar(text("SELECT count(*) FROM task_events")) == 0
    with pytest.raises(errors.NotFound):
        follower.ended.result(10)


def test_concurrent_writers_never_collide(
    run: Any, threads: ThreadPoolExecutor, client: Client, database: Engine
) -> None:
    running = run()

    def write(first: int) -> None:
        for number in range(first, first + 10):
            running.write(number, "started")
            running.write(number, "finished")

    def disturb() -> None:
        with suppress(Conflict):
            for _ in range(20):
                with transaction() as connection:
                    lifecycle.signal(connection, running.task, "s", None)
        with transaction() as connection:
            lifecycle.cancel(connection, running.task, reason="Enough.")

    writers = [threads.submit(write, first) for first in (1, 11, 21, 31)] + [threads.submit(disturb)]
    for writer in writers:
        writer.result(30)
    running.finish()
    assert [number for number, _ in types_of(client, running.task)] == list(range(1, 84))


def test_a_server_that_stops_ends_its_streams(settings: Settings, run: Any, threads: ThreadPoolExecutor) -> None:
    running = run()
    lines: list[str] = []

    def read(url: str) -> None:
        headers = {"Authorization": f"Bearer {settings.require_api_key()}"}
        with httpx2.stream("GET", url, headers=headers, timeout=30, trust_env=False) as response:
            lines.extend(line for line in response.iter_lines() if line.startswith("id"))

    with serving(create_app(settings)) as port:
        reading = threads.submit(read, f"http://127.0.0.1:{port}/v1/tasks/{running.task}/events")
        wait_until(lambda: subscribers(running.task), "it is followed")
    reading.result(10)
    assert "id: 3" not in lines


def test_the_commands(
    http_api: Api,
    tasks: Tasks,
    act: Any,
    inline_worker: InlineWorker,
    monkeypatch: pytest.MonkeyPatch,
    threads: ThreadPoolExecutor,
) -> None:
    monkeypatch.setattr("orchestrator.commands.tasks.connect", lambda *_: Client(http_api.url, http_api.key, retries=1))
    done, failed = tasks.submit(act(), {"answer": {"n": 1}}), tasks.submit(act(), {"do": "refuse"})
    inline_worker.run_all()
    shown = CliRunner().invoke(command, ["follow", str(done)])
    assert (shown.exit_code, json.loads(shown.stdout)) == (0, {"n": 1})
    assert [line.split(" ", 1)[1].strip() for line in shown.stderr.splitlines()] == [
        str(done),
        "accepted (Act)",
        "running (claim 1)",
        "step 1 started tool_call act",
        "step 1 finished tool_call act",
        "succeeded",
    ]
    lines = CliRunner().invoke(command, ["follow", str(failed), "--after", "3", "--json"])
    told = [json.loads(line) for line in lines.stdout.splitlines()]
    assert (lines.exit_code, [line["type"] for line in told]) == (1, ["step.failed", "task.failed"])
    assert (told[0]["task_id"], told[0]["id"]) == (str(failed), 4)

    submitting = threads.submit(CliRunner().invoke, command, ["submit", "Act", '{"answer": 2}', "--follow"])
    wait_until(lambda: {"pending", "queued"} & {*tasks.count()}, "the task is submitted")
    inline_worker.run_all()
    submitted = submitting.result(10)
    # The minion's log, in the same process, is in it too.
    assert (submitted.exit_code, submitted.stdout.splitlines()[-1]) == (0, "2")


def subscribers(task: UUID) -> int:
    with make_redis() as broker:
        [(_, number)] = broker.pubsub_numsub(f"{EVENTS}{task}")
        return int(number)
