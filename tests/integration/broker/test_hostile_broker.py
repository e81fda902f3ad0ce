"""A writer to Redis can delay tasks and submit new ones, but cannot end a worker or forge an outcome."""

from __future__ import annotations

import json
import zlib
from base64 import b64encode
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery
from sqlalchemy import Engine

from shared.broker import make_app
from shared.notifications import make_redis
from shared.settings import Settings
from shared.tasks.set_aside import SAMPLES, counts
from tests.integration.conftest import Tasks
from tests.support.processes import Process, wait_until
from workers.run_messages import RunMessage, write

pytestmark = pytest.mark.usefixtures("loops")

GOOD = {
    "body": b64encode(b"[[], {}, {}]").decode(),
    "content-type": "application/json",
    "content-encoding": "utf-8",
    "headers": {"task": "minion.run", "id": "forged"},
    "properties": {
        "body_encoding": "base64",
        "delivery_tag": "1",
        "delivery_info": {"exchange": "", "routing_key": "work"},
    },
}


@pytest.fixture
def app(settings: Settings) -> Iterator[Celery]:
    """As another process of ours has it: a monitor, or an operator's shell."""
    with make_app(settings) as app:
        yield app


def push(*items: str | bytes, queue: str = "work") -> None:
    with make_redis() as broker:
        broker.lpush(queue, *items)


def forged(task: Any, claim: int, hard: int, soft: int) -> bytes:
    """A message for a task as the orchestrator sends it, but for its limits."""
    return write(RunMessage(1, task, claim, hard, soft, "Act"), "work")


def ours(**headers: Any) -> str:
    """A message that the orchestrator sent, with other headers."""
    item = json.loads(forged(uuid4(), 0, 330, 300))
    return json.dumps({**item, "headers": {**item["headers"], **headers}})


POISON: dict[str, str | bytes] = {
    "garbage": "garbage",
    "bytes": b"\xff\xfe\x00",
    "empty object": "{}",
    "list": "[1]",
    "deep": "[" * 100_000,
    "no headers": json.dumps({**GOOD, "headers": None}),
    "no properties": json.dumps({**GOOD, "properties": {}}),
    "odd tag": json.dumps({**GOOD, "properties": {**GOOD["properties"], "delivery_tag": ["x"]}}),  # type: ignore[dict-item]
    "odd encoding": json.dumps({**GOOD, "properties": {**GOOD["properties"], "body_encoding": "x"}}),  # type: ignore[dict-item]
    "time limit": ours(timelimit="abc"),
    "huge time limit": ours(timelimit=[1e300, 1e300]),
    "pack of text": ours(pack="x"),
    "pack without limits": ours(pack=[[str(uuid4()), 10**30]]),
    "huge pack": ours(pack=[[str(uuid4()), 0, 330, 300, "Act"]] * 10_000),
    "pack of nothing": ours(task="minion.run_pack"),
    "eta": json.dumps({**GOOD, "headers": {"task": "minion.run", "id": "x", "eta": "9999-99-99"}}),
    "celery.map": json.dumps({**GOOD, "headers": {"task": "celery.map", "id": "x"}}),
    "celery.chord_unlock": json.dumps({**GOOD, "headers": {"task": "celery.chord_unlock", "id": "x"}}),
    "pickle": json.dumps({**GOOD, "content-type": "application/x-python-serialize"}),
    "bomb": json.dumps(
        {
            **GOOD,
            "headers": {"task": "minion.run", "id": "x", "compression": "application/x-gzip"},
            "body": b64encode(zlib.compress(b"[" * (64 << 20))).decode(),
        }
    ),
    "claim": json.dumps(
        {
            **GOOD,
            "headers": {"task": "minion.run", "id": "x", "timelimit": [330, 300], "shadow": "Act"},
            "body": b64encode(
                json.dumps([[], {"v": 1, "task_id": str(uuid4()), "claim": 10**30}, {}]).encode()
            ).decode(),
        }
    ),
}


def test_foreign_message_is_set_aside(tasks: Tasks, act: Any, worker: Process) -> None:
    push(*POISON.values())
    assert tasks.run(act(), {})["state"] == "succeeded"
    with make_redis() as broker:
        assert counts(broker) == {"work": len(POISON)}
        samples = [json.loads(sample) for sample in broker.lrange(SAMPLES, 0, -1)]
        assert [sample["bytes"] for sample in reversed(samples)] == [len(poison) for poison in POISON.values()]
        assert all(sample["why"] for sample in samples)
    assert tasks.executions(tasks.run("Act", {})["id"])[0]["outcome"] == "succeeded"
    assert worker.running


@pytest.mark.parametrize("number", [500, pytest.param(10_000, marks=pytest.mark.soak)])
def test_good_message_behind_poison_is_processed(tasks: Tasks, act: Any, worker: Process, number: int) -> None:
    kinds = [*POISON.values()][:4]
    push(*[kinds[each % len(kinds)] for each in range(number)])
    task = tasks.submit(act(), {})
    assert tasks.wait(task, timeout=120)["state"] == "succeeded"
    with make_redis() as broker:
        assert counts(broker) == {"work": number}


def test_hostile_mail_does_not_end_a_worker(tasks: Tasks, act: Any, worker: Process, app: Celery) -> None:
    with make_redis() as broker:
        for poison in [*POISON.values(), "null", "[]", '"x"']:
            assert broker.publish("/0.celery.pidbox", poison) >= 1
        assert tasks.run(act(), {})["state"] == "succeeded"
        wait_until(lambda: counts(broker).get("celery.pidbox") == len(POISON) + 3, "all are set aside")
    assert app.control.ping(timeout=5, limit=1)


def test_restored_message_does_not_end_a_worker(tasks: Tasks, act: Any, worker: Process) -> None:
    with make_redis() as broker:
        broker.hset("unacked", mapping={"a": "garbage", "b": "[1]", "c": '[{"headers": null}, "x", "y"]'})
        broker.zadd("unacked_index", {"a": 1, "b": 1, "c": 1})
    assert tasks.run(act(), {})["state"] == "succeeded"


def test_a_queue_of_another_type_does_not_end_a_worker(tasks: Tasks, act: Any, worker: Process) -> None:
    with make_redis() as broker:
        written = len(worker.output())
        broker.set("work", "x")
        wait_until(lambda: "ResponseError" in worker.output()[written:], "the worker has met it")
        broker.delete("work")
    assert tasks.run(act(), {})["state"] == "succeeded"


def test_forged_limits_take_no_claim_from_its_child(tasks: Tasks, act: Any, worker: Process) -> None:
    task = tasks.submit(act(config={"max_attempts": 1}), {"do": "sleep", "seconds": 3})
    tasks.wait_for(task, "running")
    push(*[forged(task, 0, 1, 1)] * 20)
    ended = tasks.wait(task)
    assert (ended["state"], ended["attempts"]) == ("succeeded", 0)
    assert [execution["outcome"] for execution in tasks.executions(task)] == ["succeeded"]


@pytest.mark.parametrize(("hard", "soft"), [(1, 1), (90_000, 86_400)])
def test_claim_under_forged_limits_is_released(
    tasks: Tasks, act: Any, database: Engine, worker: Process, hard: int, soft: int
) -> None:
    config = {"max_attempts": 1, "soft_time_limit": 20, "time_limit": 30}
    task = tasks.submit(act(config=config), {"do": "sleep", "seconds": 1.5})
    # Faster than the orchestrator: the message is in the queue before the task is.
    push(*[forged(task, 0, hard, soft)] * 200)
    ended = tasks.wait(task)
    assert (ended["state"], ended["attempts"]) == ("succeeded", 0)
    outcomes = [execution["outcome"] for execution in tasks.executions(task)]
    assert outcomes[-1] == "succeeded"
    assert set(outcomes[:-1]) <= {"handed_back"}  # uncharged


def test_a_revoke_is_refused(tasks: Tasks, act: Any, worker: Process, app: Celery) -> None:
    held = [tasks.submit(act(), {"do": "sleep", "seconds": 1}) for _ in range(2)]
    for task in held:
        tasks.wait_for(task, "running")
    queued = tasks.submit("Act", {})
    tasks.wait_for(queued, "queued")
    for terminate in (False, True):
        [answer] = app.control.revoke(f"{queued}.1", terminate=terminate, reply=True, timeout=10, limit=1)
        assert "minion cancel" in next(iter(answer.values()))["error"]
    app.control.revoke(f"{held[0]}.1", terminate=True, signal="KILL", reply=True, timeout=10, limit=1)
    for task in (*held, queued):
        assert (tasks.wait(task)["state"], tasks.get(task)["attempts"]) == ("succeeded", 0)


def test_worker_ignores_remote_commands(tasks: Tasks, act: Any, worker: Process, app: Celery) -> None:
    orders = {
        "rate_limit": {"task_name": "minion.run", "rate_limit": "1/h"},
        "time_limit": {"task_name": "minion.run", "hard": 1, "soft": 1},
        "cancel_consumer": {"queue": "work"},
        "add_consumer": {"queue": "celery"},
        "pool_shrink": {"n": 1},
        "pool_grow": {"n": 1},
        "hello": {"from_node": "x", "revoked": ["x"]},
        "shutdown": {},
    }
    for name, arguments in orders.items():
        [answer] = app.control.broadcast(name, arguments=arguments, reply=True, timeout=10, limit=1)
        assert "error" in next(iter(answer.values())), name
    assert [tasks.run(act(), {})["state"] for _ in range(3)] == ["succeeded"] * 3


def test_worker_answers_monitors(worker: Process, app: Celery) -> None:
    inspect = app.control.inspect(timeout=10, limit=1)
    assert inspect.ping()
    for ask in (inspect.stats, inspect.active, inspect.reserved, inspect.scheduled, inspect.revoked, inspect.conf):
        [answer] = ask().values()
        assert not isinstance(answer, dict) or "error" not in answer
    assert [queue["name"] for queue in next(iter(inspect.active_queues().values()))] == ["work", "other"]
    assert next(iter(inspect.registered().values())) == ["minion.run", "minion.run_pack"]
    assert "ok" in next(iter(inspect.report().values()))
