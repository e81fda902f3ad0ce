"""Limits of models, on a real Redis and over several processes: configured ones, and those in the API's headers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import Engine, text

from minions import testing
from minions.testing import MessagesApi, error
from orchestrator.explain import explain
from shared.notifications import make_redis
from shared.tasks import throttles
from shared.tasks.throttles import Rate
from tests.conftest import Define
from tests.integration.conftest import InlineWorker, Tasks
from tests.support.processes import ROOT
from workers import minion
from workers.llm.limits import ModelLimits

MODEL = "claude-sonnet-5-5"

# One interpreter that becomes eight processes: what is imported once is there for all. One model has a limit that
# people have set, the other one that the API tells.
HAMMER = """
import json, os, sys, time
from shared.database.connections import forget_engine
from workers.llm.limits import ModelLimits
headers = json.loads(sys.argv[1])
for _ in range(7):
    if not os.fork():
        break
forget_engine()
limits, granted, end = ModelLimits("key"), {"set": [], "told": []}, time.time() + 2.5
while time.time() < end:
    for model in granted:
        asked = time.time()
        if limits.reserve(model, 5, 10) == 0:
            granted[model].append((asked, time.time()))
            limits.learn(model, headers if model == "told" else {}, 200)
    time.sleep(0.02)
os.write(1, (json.dumps(granted) + "\\n").encode())
"""


@pytest.fixture
def set_limit(database: Engine) -> Any:
    """Sets a model's limit: `set_limit(rate="50/m", …)`."""

    def make(name: str = MODEL, **rates: str) -> None:
        with database.begin() as connection:
            throttles.set_limit(connection, "model", name, **{kind: Rate.parse(rate) for kind, rate in rates.items()})

    return make


@pytest.fixture
def another(database: Engine) -> Any:
    """Makes a process' view of a key's limits: `another()`."""

    def make(key: str = "key") -> ModelLimits:
        return ModelLimits(key, None, make_redis())

    return make


def told(kind: str = "requests", *, limit: int, remaining: int, seconds: float = 0.0) -> dict[str, str]:
    """The headers of a response."""
    reset = (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat(timespec="seconds").replace("+00:00", "Z")
    facts = {"limit": str(limit), "remaining": str(remaining), "reset": reset}
    return {f"anthropic-ratelimit-{kind}-{name}": fact for name, fact in facts.items()}


def test_eight_processes_keep_the_limits(set_limit: Any, another: Any) -> None:
    set_limit("set", rate="1000/s", output_tokens="300/s")
    headers = told(limit=300, remaining=300)
    another().learn("told", headers, 200)
    command = [sys.executable, "-c", HAMMER, json.dumps(headers)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, timeout=60, check=True)
    granted = [json.loads(line) for line in ran.stdout.splitlines()]
    assert len(granted) == 8
    by_people, by_api = ([moments for each in granted for moments in each[model]] for model in ("set", "told"))
    for begin, _ in by_people:
        # Granted between asking and the answer: what lies within a second for certain.
        assert sum(10 for asked, answered in by_people if begin <= asked and answered <= begin + 1) <= 300
    assert len(by_people) > 5, "a limit is not a stop"
    seconds = max(answered for _, answered in by_api) - min(asked for asked, _ in by_api)
    assert 5 < len(by_api) <= 30 + 271 / 60 * seconds + 1, "a tenth at once, the others evenly"


def test_before_the_first_answer_calls_pass(another: Any) -> None:
    assert [another().reserve(MODEL, 100_000, 100_000) for _ in range(50)] == [0.0] * 50


def test_remainder_is_the_header_less_requests_in_flight(another: Any) -> None:
    first, second, third = another(), another(), another()
    for process in (first, second, third):
        assert process.reserve(MODEL, 10, 10) == 0
    first.learn(MODEL, told(limit=30, remaining=3), 200)
    assert another().reserve(MODEL, 10, 10) == 0, "two of the three are taken by those that are in flight"
    assert 0 < another().reserve(MODEL, 10, 10) <= 60 / 27


@pytest.mark.parametrize(("kind", "cost"), [("input-tokens", 60), ("output-tokens", 90), ("tokens", 150)])
def test_tokens_are_reserved_and_released(another: Any, kind: str, cost: int) -> None:
    process = another()
    process.reserve(MODEL, 0, 0)
    process.learn(MODEL, told(kind, limit=10 * cost, remaining=10 * cost), 200)
    process.settle(MODEL, 0, 0)
    assert process.reserve(MODEL, 60, 90) == 0
    assert another().reserve(MODEL, 60, 90) > 4, "the tenth that may begin at once is reserved"
    process.learn(MODEL, {}, 200)
    process.settle(MODEL, 20, 10)
    assert another().reserve(MODEL, 40, 80) == 0
    assert another().reserve(MODEL, 60, 90) > 2, "what was used is used"


def test_refused_call_releases_its_output_tokens(another: Any) -> None:
    process = another()
    process.learn(MODEL, told("output-tokens", limit=1000, remaining=1000), 200)
    process.reserve(MODEL, 10, 100)
    process.learn(MODEL, {}, 500)
    assert process.reserve(MODEL, 10, 100) == 0


def test_a_429_holds_all_processes_of_the_key(another: Any) -> None:
    refused = another()
    refused.reserve(MODEL, 10, 10)
    refused.learn(MODEL, {"retry-after": "20"}, 429)
    refused.learn(MODEL, {"retry-after": "5"}, 429)
    assert 19 < another().reserve(MODEL, 10, 10) <= 20
    assert another().reserve("claude-haiku-5", 10, 10) == 0
    assert another("another key").reserve(MODEL, 10, 10) == 0


def test_limit_that_recovers_slowly(another: Any) -> None:
    process = another()
    process.learn(MODEL, told(limit=10, remaining=0, seconds=3600), 200)
    # 10 in an hour: the one that may begin at once comes back after six minutes; one asks again after a minute.
    assert another().reserve(MODEL, 10, 10) == 60


def test_unreadable_headers_are_ignored(another: Any) -> None:
    process = another()
    for nonsense in ({"limit": "many"}, {"limit": "0"}, {"remaining": "-1"}, {"remaining": ""}):
        process.learn(MODEL, {**told(limit=1, remaining=0), **_named(nonsense)}, 200)
    process.learn(MODEL, {"retry-after": "soon"}, 429)
    assert process.reserve(MODEL, 10, 10) == 0
    process.learn(MODEL, {**told(limit=1, remaining=0), **_named({"reset": "tomorrow"})}, 200)
    assert process.reserve(MODEL, 10, 10) > 0


def _named(facts: dict[str, str]) -> dict[str, str]:
    return {f"anthropic-ratelimit-requests-{name}": fact for name, fact in facts.items()}


def test_waiting_calls_return_one_by_one(another: Any, set_limit: Any) -> None:
    set_limit(rate="10/m")
    assert another().reserve(MODEL, 10, 10) == 0
    # Each is told its wait between two moments; what it adds up to lies between them too.
    earliest, latest = [], []
    for _ in range(3):
        earliest.append(time.monotonic())
        wait = another().reserve(MODEL, 10, 10)
        latest.append(time.monotonic() + wait)
        earliest[-1] += wait
    assert latest[1] - earliest[0] > 0.09
    assert latest[2] - earliest[1] > 0.09


def test_without_redis_only_configured_limits_hold(set_limit: Any, database: Engine) -> None:
    away = ModelLimits("key", None, redis.Redis(port=1, retry=Retry(NoBackoff(), 0)))
    assert away.reserve(MODEL, 10, 10) == 0
    away.learn(MODEL, told(limit=1, remaining=0), 429)
    away.settle(MODEL, 10, 10)
    set_limit("*", rate="1000/s")
    assert away.reserve(MODEL, 10, 10) == 1


# ------------------------------------------------------------------------------------------------- the whole way


@pytest.fixture
def agent_name(define: Define) -> str:
    config = {"capabilities": ["work"], "max_tokens": 400}
    define({"kind": "agent", "name": "Agent", "model": MODEL, "system_prompt": "Be brief.", "config": config})
    return "Agent"


def due_now(database: Engine) -> None:
    with database.begin() as connection:
        connection.execute(text("UPDATE task_status SET due_at = now() WHERE state = 'waiting'"))


def why(database: Engine, task: Any) -> Any:
    with database.connect() as connection:
        return explain(connection, task, lease=10)


def test_a_task_waits_for_its_model_without_a_slot(
    database: Engine,
    messages_api: MessagesApi,
    agent_name: str,
    tasks: Tasks,
    inline_worker: InlineWorker,
    set_limit: Any,
) -> None:
    set_limit("*", rate="1/m")
    messages_api.script = [testing.text("Hi.")]
    first, second = tasks.submit(agent_name, "Hello"), tasks.submit(agent_name, "Hello")
    for message in inline_worker.dispatch():
        minion.run(message.task_id, message.claim, inline_worker.id)
    assert [tasks.get(task)["state"] for task in (first, second)] == ["succeeded", "waiting"]
    waiting = tasks.get(second)
    assert (waiting["wait_reason"], waiting["attempts"]) == ("model_limit", 0)
    told_why = why(database, second)
    assert f"'{MODEL}' is at its limit of 1 requests in 60 s (`minion limits`): it waits until" in told_why.sentence
    assert told_why.facts["model"] == MODEL
    with database.begin() as connection:
        throttles.remove_limit(connection, "model", "*")
    due_now(database)
    inline_worker.run_all()
    assert (tasks.get(second)["state"], tasks.get(second)["attempts"]) == ("succeeded", 0)
    assert len(messages_api.requests) == 2


def test_the_api_is_not_asked_while_it_wants_to_be_left_alone(
    database: Engine, messages_api: MessagesApi, agent_name: str, tasks: Tasks, inline_worker: InlineWorker
) -> None:
    limited = {"retry-after": "30", **told(limit=50, remaining=0, seconds=60)}
    messages_api.script = [error(429, "rate_limit_error", headers=limited)]
    first, second = tasks.submit(agent_name, "Hello"), tasks.submit(agent_name, "Hello")
    for message in inline_worker.dispatch():
        minion.run(message.task_id, message.claim, inline_worker.id)
    assert [tasks.get(task)["wait_reason"] for task in (first, second)] == ["model_unavailable", "model_limit"]
    assert len(messages_api.requests) == 1
    assert f"asked for a pause of calls to '{MODEL}'" in why(database, second).sentence


def test_unused_grant_of_a_call_is_released(
    database: Engine,
    messages_api: MessagesApi,
    agent_name: str,
    tasks: Tasks,
    inline_worker: InlineWorker,
    set_limit: Any,
) -> None:
    set_limit(output_tokens="4000/m")
    messages_api.script = [testing.text("Hi.")]
    ids = [tasks.submit(agent_name, "Hello") for _ in range(3)]
    inline_worker.run_all()
    assert {tasks.get(task)["claim"] for task in ids} == {1}, "400 are reserved for each, and 5 are used"
