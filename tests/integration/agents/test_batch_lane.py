"""Agents whose model calls go into Message Batches: no worker waits, and each needed call is paid for once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import Engine, TextClause, text
from sqlalchemy.orm import Session

from minions import testing
from minions.testing import MessagesApi, error
from orchestrator.batches import batcher
from orchestrator.batches.batcher import Batcher
from orchestrator.explain import Explanation, explain
from shared.contracts.documents import parse_definition
from shared.contracts.requests import Budget, TaskRequest
from shared.database.connections import transaction
from shared.definitions.apply import store_definitions
from shared.definitions.files import load
from shared.errors import InvalidDefinition, InvalidInput
from shared.settings import Settings
from shared.tasks import batches, budgets, lifecycle, standing_budgets, stops, throttles
from shared.tasks.records import Reserve
from tests.conftest import Define
from tests.integration.agents.conftest import DefineAgent, plain
from tests.integration.conftest import InlineWorker, Tasks
from tests.support.media_files import b64, png
from tests.support.processes import ROOT, wait_until
from workers.llm import structured

COMPACT = {"type": "compact_20260112"}
EXAMPLE = ROOT / "examples" / "tickets"
MODEL = "claude-sonnet-5-5"
ANSWER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
FOREIGN = {"model": MODEL, "max_tokens": 10, "messages": [{"role": "user", "content": "Not ours."}]}
HURRY = text("UPDATE batch_calls SET due_at = now()")
CALLS = text("SELECT count(*) FROM batch_calls")
AGE = text("UPDATE message_batches SET created_at = now() - :hours * interval '1 h'")
ANSWERED = text("SELECT count(*) FROM batch_calls WHERE result IS NOT NULL")
SHORT = {"batch_seconds": 0.0, "batch_poll_seconds": 0.001, "batch_lost_seconds": 1.0}


@dataclass
class Site:
    """An orchestrator's batcher and a worker, one round at a time."""

    tasks: Tasks
    worker: InlineWorker
    batcher: Batcher
    engine: Engine

    def submit(self, value: Any = "Hello.", **fields: Any) -> UUID:
        """Submit a task, and run it until its first call waits."""
        task = self.tasks.submit("Agent", value, **fields)
        self.worker.run_due()
        return task

    def round(self) -> None:
        """Let the batcher do what is due, then the worker."""
        self.batcher.run_once()
        self.worker.run_due()

    def finish(self, task: UUID) -> dict[str, Any]:
        """Go on until the task has ended; return it."""

        def look() -> dict[str, Any] | None:
            found = self.tasks.get(task)
            if found["finished_at"]:
                return found
            self.round()
            return None

        return wait_until(look, f"{task} has ended")

    def hurry(self) -> None:
        """Let the time pass until calls that the API refused may be sent again."""
        with self.engine.begin() as connection:
            connection.execute(HURRY)
        self.batcher.not_before = 0.0

    def count(self, calls: TextClause) -> int:
        """Return the number of these calls in the lane."""
        with self.engine.connect() as connection:
            return int(connection.scalar(calls) or 0)

    def why(self, task: UUID) -> Explanation:
        """Explain the task's state."""
        with self.engine.connect() as connection:
            return explain(connection, task, lease=10.0)


@pytest.fixture
def batching(messages_api: MessagesApi, inline_worker: InlineWorker, tasks: Tasks) -> Iterator[Callable[..., Site]]:
    """Creates a site; its settings are given by name. The model says `Hi.`"""
    made: list[Batcher] = []

    messages_api.script = [testing.text("Hi.")]

    def make(**settings: Any) -> Site:
        made.append(Batcher(Settings(**{**SHORT, **settings}), inline_worker.engine))
        return Site(tasks, inline_worker, made[-1], inline_worker.engine)

    yield make
    for each in made:
        each.close()


@pytest.fixture
def site(batching: Callable[..., Site], define_agent: DefineAgent) -> Site:
    """A site with an agent in the batch lane."""
    define_agent({"lane": "batch"})
    return batching()


def test_task_waits_for_each_call_and_runs_tools_between(site: Site, messages_api: MessagesApi) -> None:
    messages_api.script = [testing.tool_use(("act", {"n": 7})), testing.text("Seven.")]
    task = site.submit()
    waiting = site.tasks.get(task)
    assert (waiting["state"], waiting["wait_reason"], waiting["worker_id"]) == ("waiting", "batch", None)
    done = site.finish(task)
    assert (done["state"], done["output"]) == ("succeeded", {"content": "Seven."})
    assert [step["name"] for step in site.tasks.steps(task)] == ["claude-sonnet-5-5", "act", "claude-sonnet-5-5"]
    assert len(messages_api.batches) == len(messages_api.requests) == 2


def usage_of(task: UUID, site: Site) -> list[Any]:
    return [step["usage"] for step in site.tasks.steps(task) if step["kind"] == "model_call"]


def test_batched_call_costs_half(
    batching: Callable[..., Site], define_agent: DefineAgent, messages_api: MessagesApi
) -> None:
    messages_api.script = [testing.text("Hi.", usage={"input_tokens": 1000, "output_tokens": 400})]
    define_agent()
    site = batching()
    direct, batched = site.submit(), site.submit(lane="batch")
    site.finish(batched)
    assert site.tasks.get(direct)["state"] == "succeeded"
    [full], [half] = ([step["cost_microdollars"] for step in site.tasks.steps(task)] for task in (direct, batched))
    assert half * 2 == full > 0
    [usage] = usage_of(batched, site)
    assert usage == {
        "input_tokens": 1000,
        "output_tokens": 400,
        "service_tier": "batch",
        "batch": "msgbatch_0001",
    }


def test_calls_of_one_model_share_a_batch(site: Site, messages_api: MessagesApi) -> None:
    messages_api.script = [{**testing.text(f"Answer {n}."), "if": f"Question {n}."} for n in range(5)]
    tasks = [site.submit(f"Question {n}.") for n in range(5)]
    assert [site.finish(task)["output"] for task in tasks] == [{"content": f"Answer {n}."} for n in range(5)]
    [batch] = messages_api.batches.values()
    assert len(batch.requests) == 5


def test_answer_is_constrained_to_the_output_schema(
    batching: Callable[..., Site], define_agent: DefineAgent, messages_api: MessagesApi
) -> None:
    define_agent({"lane": "batch"}, output_schema=ANSWER)
    messages_api.script = [testing.text('{"n": 3}')]
    site = batching()
    assert site.finish(site.submit())["output"] == {"n": 3}
    [request] = messages_api.requests
    assert request["output_config"]["format"]["type"] == "json_schema"


def test_schema_that_the_api_refuses_takes_another_batch(
    batching: Callable[..., Site],
    define_agent: DefineAgent,
    messages_api: MessagesApi,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(structured, "_refused", type(structured._refused)())
    define_agent({"lane": "batch"}, output_schema=ANSWER)
    refusal = error(400, "invalid_request_error", "output_config.format.schema: The compiled grammar is too large.")
    messages_api.script = [refusal, testing.text('{"n": 3}')]
    site = batching()
    task = site.submit()
    done = site.finish(task)
    assert (done["error"], done["output"]) == (None, {"n": 3})
    assert ["output_config" in request for request in messages_api.requests] == [True, False]
    assert [(step["status"], step["usage"]["batch"]) for step in site.tasks.steps(task)] == [
        ("finished", "msgbatch_0002")
    ]


def test_batch_is_sent_when_it_is_full(
    batching: Callable[..., Site], define_agent: DefineAgent, messages_api: MessagesApi
) -> None:
    define_agent({"lane": "batch"})
    messages_api.hold_batches = True
    site = batching(batch_seconds=3600, batch_calls=2)
    first = site.submit()
    site.batcher.run_once()
    assert "while calls are gathered for it" in site.why(first).sentence
    site.submit()
    site.batcher.run_once()
    assert "has been in batch msgbatch_0001, of 2 calls" in site.why(first).sentence


def test_calls_over_the_limit_go_into_other_batches(
    batching: Callable[..., Site], define_agent: DefineAgent, messages_api: MessagesApi
) -> None:
    define_agent({"lane": "batch"})
    site = batching(batch_calls=2)
    tasks = [site.submit() for _ in range(5)]
    assert {site.finish(task)["state"] for task in tasks} == {"succeeded"}
    assert [len(batch.requests) for batch in messages_api.batches.values()] == [2, 2, 1]


def test_request_in_a_batch_is_that_of_a_direct_call(
    batching: Callable[..., Site], define_agent: DefineAgent, messages_api: MessagesApi
) -> None:
    messages_api.script = [testing.text("Hi.")]
    define_agent({"temperature": 0.5}, model="claude-haiku-4-5")
    site = batching()
    site.submit()
    site.finish(site.submit(lane="batch"))
    direct, batched = map(_without_cache, messages_api.requests)
    assert {**batched, "stream": True} == direct


def _without_cache(part: Any) -> Any:
    """A part of a request without what concerns the prompt cache: the next call of a batch comes later."""
    if isinstance(part, list):
        return [_without_cache(each) for each in part]
    if not isinstance(part, dict):
        return part
    return {name: _without_cache(value) for name, value in part.items() if name not in ("cache_control", "diagnostics")}


def test_fallback_model_is_asked_in_a_batch_too(
    batching: Callable[..., Site], define_agent: DefineAgent, messages_api: MessagesApi
) -> None:
    messages_api.script = [testing.refusal(), testing.text("Hi.")]
    define_agent({"lane": "batch", "fallback_models": [MODEL]}, model="claude-opus-5-5")
    site = batching()
    assert site.finish(site.submit())["output"] == {"content": "Hi."}
    assert [request["model"] for request in messages_api.requests] == ["claude-opus-5-5", MODEL]
    assert len(messages_api.batches) == 2


def test_other_model_is_asked_when_batches_do_not_answer(
    batching: Callable[..., Site], define_agent: DefineAgent, messages_api: MessagesApi
) -> None:
    messages_api.script = [{**testing.text("No."), "batch": "expired", "if": '"claude-opus-5-5"'}, testing.text("Hi.")]
    define_agent({"lane": "batch", "fallback_models": [MODEL]}, model="claude-opus-5-5")
    site = batching()
    assert site.finish(site.submit())["output"] == {"content": "Hi."}
    assert [request["model"] for request in messages_api.requests] == ["claude-opus-5-5"] * 3 + [MODEL]


def test_call_with_an_authors_beta_is_made_at_once(
    batching: Callable[..., Site], define_agent: DefineAgent, messages_api: MessagesApi
) -> None:
    define_agent({"betas": ["context-1m-2025-08-07"]}, model="claude-opus-5-5")
    site = batching()
    assert site.finish(site.submit(lane="batch"))["output"] == {"content": "Hi."}
    assert not messages_api.batches


def test_batch_has_the_betas_of_all_its_calls(
    batching: Callable[..., Site], define_agent: DefineAgent, messages_api: MessagesApi
) -> None:
    budget = {"task_budget": True, "budget": {"tokens": 100_000}}
    define_agent({**budget, "context_management": {"edits": [COMPACT]}, "lane": "batch"}, model="claude-opus-5-5")
    site = batching()
    task = site.submit()
    define_agent(model="claude-opus-5-5")
    plain = site.submit(lane="batch")
    assert {site.finish(each)["state"] for each in (task, plain)} == {"succeeded"}
    [batch] = messages_api.batches.values()
    assert batch.headers["anthropic-beta"] == "compact-2026-01-12,task-budgets-2026-03-13"
    told = [request["params"].get("output_config") for request in batch.requests]
    assert sorted(map(bool, told)) == [False, True]
    assert not any("betas" in request["params"] for request in batch.requests)


def test_call_in_a_batch_has_no_speed_and_a_cache_for_an_hour(
    batching: Callable[..., Site], define_agent: DefineAgent, messages_api: MessagesApi
) -> None:
    define_agent({"speed": "fast"}, model="claude-opus-5-5")
    site = batching()
    site.finish(site.submit(lane="batch"))
    [request] = messages_api.requests
    assert "speed" not in request
    marks = [block["cache_control"] for _, block in testing._blocks(request) if "cache_control" in block]
    assert marks == [{"type": "ephemeral", "ttl": "1h"}] * 2


def test_container_that_is_gone_costs_another_batch(
    batching: Callable[..., Site], define: Define, define_agent: DefineAgent, messages_api: MessagesApi
) -> None:
    define({"kind": "tool", "name": "code", "type": "code_execution", "code_execution": {}})
    define_agent({"lane": "batch"}, tools=["code", "echo"])
    ran = testing.said(testing.code_execution("ls"), container={"id": "container_9", "expires_at": "2026-11-01"})
    call = testing.tool_use(("echo", {}))
    both = {**ran, "content": ran["content"] + call["content"], "stop_reason": "tool_use"}
    messages_api.script = [both, call, testing.text("Hi.")]
    messages_api.lost_containers = {"container_9"}
    site = batching()
    assert site.finish(site.submit())["output"] == {"content": "Hi."}
    sent = [batch.requests[0]["params"].get("container") for batch in messages_api.batches.values()]
    assert sent == [None, "container_9", None, None]


# ------------------------------------------------------------------------------------------- a creation without answer


@pytest.mark.parametrize("fault", ["lost", "never"])
def test_creation_without_answer_is_paid_once(site: Site, messages_api: MessagesApi, fault: str) -> None:
    messages_api.create_batch([{"custom_id": "foreign", "params": FOREIGN}])
    messages_api.batch_faults = [fault]
    task = site.submit()
    site.batcher.run_once()
    assert "whose creation began" in site.why(task).sentence
    assert site.finish(task)["state"] == "succeeded"
    assert len(messages_api.batches) == len(messages_api.requests) == 2


def test_batch_in_processing_is_waited_for(site: Site, messages_api: MessagesApi) -> None:
    messages_api.hold_batches = True
    messages_api.batch_faults = ["lost"]
    task = site.submit()
    foreign = messages_api.create_batch([{"custom_id": "foreign", "params": FOREIGN}])
    for _ in range(3):
        site.batcher.run_once()
    assert len(messages_api.batches) == 2
    assert "may be it" in site.why(task).sentence
    messages_api.end_batches(foreign.id)
    site.batcher.run_once()
    messages_api.end_batches()
    assert site.finish(task)["state"] == "succeeded"
    assert (len(messages_api.batches), len(messages_api.requests)) == (2, 2)
    assert not foreign.cancelled


def test_batches_of_others_do_not_delay_calls_indefinitely(site: Site, messages_api: MessagesApi) -> None:
    messages_api.hold_batches, messages_api.batch_faults = True, ["never"]
    task = site.submit()
    site.batcher.run_once()
    foreign = messages_api.create_batch([{"custom_id": "other", "params": FOREIGN}])
    foreign.created_at += timedelta(hours=1)

    def look() -> bool:
        site.round()
        return len(messages_api.batches) > 1

    wait_until(look, "the calls are in another batch")
    assert foreign.ended_at is None
    messages_api.end_batches("msgbatch_0002")
    assert site.finish(task)["state"] == "succeeded"


def test_creation_with_an_unreadable_answer_is_paid_once(
    site: Site, messages_api: MessagesApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(httpx2.Response, "json", lambda *_, **__: json.loads("<html>"))
    task = site.submit()
    site.batcher.run_once()
    monkeypatch.undo()
    assert site.finish(task)["state"] == "succeeded"
    assert len(messages_api.batches) == 1


def test_lost_batch_with_unreadable_results_is_still_ours(
    site: Site, messages_api: MessagesApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages_api.batch_faults = ["lost"]
    task = site.submit()
    site.batcher.run_once()
    with monkeypatch.context() as patch:
        patch.setattr(messages_api, "results_of", lambda batch: iter(["<html>"]))
        site.batcher.run_once()
        assert "The results of batch msgbatch_0001, which may be ours, cannot be read." in site.why(task).sentence
    assert site.finish(task)["state"] == "succeeded"
    assert len(messages_api.batches) == 1


@pytest.mark.parametrize(
    ("settings", "headers", "why"),
    [
        ({"anthropic_base_url": "http://[::1"}, None, "ANTHROPIC_BASE_URL cannot be used"),
        ({"anthropic_base_url": "gopher://api"}, None, "must begin with http:// or https://"),
        ({}, "X-Secret: s3cret\x0bvalue", "check ANTHROPIC_CUSTOM_HEADERS"),
    ],
)
def test_request_that_cannot_be_sent_is_not_lost(
    batching: Callable[..., Site],
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    headers: str | None,
    why: str,
) -> None:
    if headers:
        monkeypatch.setenv("ANTHROPIC_CUSTOM_HEADERS", headers)
    task = site.submit()
    batching(**settings).batcher.run_once()
    said = site.why(task).sentence
    assert why in said
    assert "s3cret" not in said


def test_found_batch_is_collected_by_another_orchestrator(
    site: Site, batching: Callable[..., Site], messages_api: MessagesApi
) -> None:
    messages_api.batch_faults = ["lost"]
    task = site.submit()
    site.batcher.run_once()
    site.batcher.leadership.release()
    assert batching().finish(task)["state"] == "succeeded"
    assert len(messages_api.requests) == 1


def test_batch_whose_calls_were_given_back_is_cancelled(
    site: Site, messages_api: MessagesApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = site.submit()
    messages_api.hold_batches = True
    create = messages_api.create_batch

    def create_slowly(*given: Any) -> testing.Batch:
        with site.engine.begin() as connection:
            connection.execute(text("SELECT minion_batch_refused(id, 'Lost.', '0 s', NULL) FROM message_batches"))
        monkeypatch.setattr(messages_api, "create_batch", create)
        return create(*given)

    monkeypatch.setattr(messages_api, "create_batch", create_slowly)
    site.batcher.run_once()
    assert [batch.cancelled for batch in messages_api.batches.values()] == [True, False]
    messages_api.end_batches()
    assert site.finish(task)["state"] == "succeeded"
    assert len(messages_api.requests) == 1


def test_orchestrator_that_slept_does_not_send_its_batch(
    site: Site, messages_api: MessagesApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = site.submit()
    gather, slept = batches.gather, []

    def gather_and_sleep(*given: Any, **options: Any) -> Any:
        if (found := gather(*given, **options)) and not slept:
            slept.append(found)
            monkeypatch.setattr(batcher, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + 10))
        elif found:
            monkeypatch.undo()
        return found

    monkeypatch.setattr(batches, "gather", gather_and_sleep)
    assert site.finish(task)["state"] == "succeeded"
    assert len(messages_api.batches) == 1
    with site.engine.connect() as connection:
        assert list(connection.scalars(text("SELECT id FROM message_batches"))) != slept


# ----------------------------------------------------------------------------------------------------------- refusals


def test_refused_batch_is_sent_later_and_why_says_so(site: Site, messages_api: MessagesApi) -> None:
    messages_api.batch_faults = [
        testing.error(429, "rate_limit_error", "Too many batches.", headers={"retry-after": "60"})
    ]
    task = site.submit()
    site.batcher.run_once()
    assert "429: Too many batches. It is sent again in" in site.why(task).sentence
    assert not messages_api.batches
    site.hurry()
    assert site.finish(task)["state"] == "succeeded"


def test_batch_refused_as_a_whole_is_sent_in_halves(site: Site, messages_api: MessagesApi) -> None:
    refusal = testing.error(413, "request_too_large", "Too large.")
    messages_api.batch_faults = [refusal]
    tasks = [site.submit() for _ in range(3)]
    assert {site.finish(task)["state"] for task in tasks} == {"succeeded"}
    assert [len(batch.requests) for batch in messages_api.batches.values()] == [2, 1]


def test_failed_call_that_is_retried_is_another_call(
    batching: Callable[..., Site], define_agent: DefineAgent, messages_api: MessagesApi
) -> None:
    define_agent({"lane": "batch", "retry_on": ["model_error"]})
    site = batching()
    messages_api.script = [testing.error(400, "invalid_request_error"), testing.text("Hi.")]
    task = site.submit()
    assert site.finish(task)["state"] == "succeeded"
    names = [batch.requests[0]["custom_id"] for batch in messages_api.batches.values()]
    assert names == [f"{task.hex}_1_1_1", f"{task.hex}_1_3_1"]
    assert site.count(CALLS) == 1
    site.batcher.run_once()
    assert site.count(CALLS) == 0


def test_call_that_is_refused_alone_fails_its_task(site: Site, messages_api: MessagesApi) -> None:
    messages_api.batch_faults = [testing.error(400, "invalid_request_error", "It is not valid.")]
    failed = site.finish(site.submit())
    assert "It is not valid." in failed["error"]["message"]
    assert site.finish(site.submit())["state"] == "succeeded"


def test_invalid_request_fails_only_its_own_task(site: Site, messages_api: MessagesApi) -> None:
    refusal = testing.error(400, "invalid_request_error", "max_tokens: too many")
    messages_api.script = [{**refusal, "if": "Bad."}, testing.text("Fine.")]
    good, bad = site.submit("Good."), site.submit("Bad.")
    assert site.finish(good)["output"] == {"content": "Fine."}
    error = site.finish(bad)["error"]
    assert error["message"] == "The Anthropic API answered 400: max_tokens: too many"
    assert site.tasks.get(bad)["attempts"] == 0
    assert len(messages_api.batches) == 1


@pytest.mark.parametrize(
    "reply",
    [testing.text("", batch="expired"), testing.text("", batch="canceled"), testing.error(529, "overloaded_error")],
)
def test_call_without_answer_is_sent_in_the_next_batch(site: Site, messages_api: MessagesApi, reply: Any) -> None:
    messages_api.script = [reply, testing.text("At last.")]
    task = site.submit()
    assert site.finish(task)["output"] == {"content": "At last."}
    names = [batch.requests[0]["custom_id"] for batch in messages_api.batches.values()]
    assert names == [f"{task.hex}_1_1_1", f"{task.hex}_1_1_2"]


def test_call_fails_after_three_batches_without_answer(site: Site, messages_api: MessagesApi) -> None:
    messages_api.script = [testing.text("", batch="expired")]
    error = site.finish(site.submit())["error"]
    assert "It was sent 3 times; replay the task" in error["message"]
    assert len(messages_api.batches) == 3


def test_batch_that_is_cancelled_elsewhere_is_sent_again(site: Site, messages_api: MessagesApi) -> None:
    messages_api.hold_batches = True
    task = site.submit()
    site.batcher.run_once()
    [batch] = messages_api.batches.values()
    batch.cancelled = True
    messages_api.hold_batches = False
    messages_api.end_batches()
    assert site.finish(task)["state"] == "succeeded"
    assert (len(messages_api.batches), len(messages_api.requests)) == (2, 1)


def test_result_that_comes_twice_counts_once(site: Site, messages_api: MessagesApi) -> None:
    messages_api.script = [testing.text("Hi.", batch="twice")]
    task = site.submit()
    site.finish(task)
    assert len(site.tasks.steps(task)) == 1


@pytest.mark.parametrize(
    "result",
    [
        {"type": "errored", "error": "no object"},
        {"type": "errored"},
        {"type": "succeeded", "message": {"content": 5, "usage": {"iterations": 7}}},
        {"type": "succeeded", "message": "no object"},
        {"type": "succeeded", "message": {"content": [], "usage": {"input_tokens": 10**40}}},
        {"type": "errored", "error": {"error": {"type": ["no", "text"]}}},
        {"type": "unheard of"},
    ],
)
def test_strange_result_harms_no_other_task(
    site: Site, messages_api: MessagesApi, monkeypatch: pytest.MonkeyPatch, result: dict[str, Any]
) -> None:
    strange, good = site.submit("Strange."), site.submit("Good.")

    def results_of(batch: testing.Batch) -> Iterator[dict[str, Any]]:
        for line in batch.results:
            yield {**line, "result": result} if strange.hex in line["custom_id"] else line
        yield from ([], {"custom_id": 5}, {"custom_id": "unknown", "result": {"type": "succeeded"}})  # type: ignore[misc]

    monkeypatch.setattr(messages_api, "results_of", results_of)
    assert site.finish(good)["state"] == "succeeded"
    assert site.finish(strange)["state"] == "failed"
    assert len(messages_api.batches) == 1


@pytest.mark.parametrize("char", ["\u2028", "\x85", "\x0b", "\ud800", "\0"])
def test_result_is_read_whatever_characters_it_has(site: Site, messages_api: MessagesApi, char: str) -> None:
    messages_api.script = [testing.text(f"One.{char}Two.")]
    task = site.submit()
    assert site.finish(task)["output"]["content"].startswith("One.")
    assert len(messages_api.requests) == 1


def test_orchestrator_that_stops_leaves_the_other_results(
    site: Site, batching: Callable[..., Site], messages_api: MessagesApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [site.submit() for _ in range(3)]

    def results_of(batch: testing.Batch) -> Iterator[dict[str, Any]]:
        yield batch.results[0]
        wait_until(lambda: site.count(ANSWERED), "the first result is recorded")
        site.batcher.stopping.set()
        yield from batch.results[1:]

    site.batcher.run_once()
    with monkeypatch.context() as patch:
        patch.setattr(messages_api, "results_of", results_of)
        site.batcher.run_once()
    assert site.count(ANSWERED) == 1
    site.batcher.close()
    assert {batching().finish(task)["state"] for task in tasks} == {"succeeded"}


def test_error_with_characters_that_cannot_be_stored_is_kept(site: Site, messages_api: MessagesApi) -> None:
    messages_api.script = [testing.error(529, "overloaded_error", "Too\0 \ud800much.")]
    task = site.submit()
    assert "Too" in site.finish(task)["error"]["message"]


def test_result_of_an_old_batch_is_read_after_a_broken_answer(
    site: Site, batching: Callable[..., Site], messages_api: MessagesApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = batching(batch_lost_seconds=600.0)
    tasks = [site.submit(), site.submit()]
    messages_api.hold_batches = True
    site.batcher.run_once()
    messages_api.end_batches()
    for batch in messages_api.batches.values():
        batch.created_at = batch.ended_at = batch.created_at - timedelta(hours=5)
    with monkeypatch.context() as patch:
        patch.setattr(messages_api, "results_of", lambda batch: iter(["<html>", *batch.results[1:]]))
        site.round()
    assert sorted(site.tasks.get(task)["state"] for task in tasks) == ["succeeded", "waiting"]
    assert {site.finish(task)["state"] for task in tasks} == {"succeeded"}


def test_batch_is_collected_when_the_right_key_is_back(
    site: Site, messages_api: MessagesApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages_api.hold_batches = True
    task = site.submit()
    site.batcher.run_once()
    hidden = dict(messages_api.batches)
    messages_api.batches.clear()
    with site.engine.begin() as connection:
        connection.execute(AGE, {"hours": 23})
    site.round()
    monkeypatch.setattr(batcher, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + 600))
    site.round()
    assert "the orchestrator's key belongs to another workspace" in site.why(task).sentence
    messages_api.batches.update(hidden)
    messages_api.end_batches()
    assert site.finish(task)["state"] == "succeeded"


def test_result_that_never_comes_fails_the_task(site: Site, messages_api: MessagesApi) -> None:
    messages_api.script = [testing.text("Hi.", batch="missing")]
    task = site.submit(budget={"dollars": 1.0})
    error = site.finish(task)["error"]
    assert "whether it was charged is unknown" in error["message"]
    assert len(messages_api.batches) == 1
    assert site.tasks.get(task)["budget"]["dollars"]["spent"] > 0


def test_batch_that_the_api_forgot_fails_its_tasks(site: Site, messages_api: MessagesApi) -> None:
    messages_api.hold_batches = True
    task = site.submit()
    site.batcher.run_once()
    messages_api.batches.clear()
    with site.engine.begin() as connection:
        connection.execute(AGE, {"hours": 25})
    assert "does not know batch msgbatch_0001" in site.finish(task)["error"]["message"]


def test_unavailable_api_delays_the_collection(site: Site, messages_api: MessagesApi, monkeypatch: Any) -> None:
    messages_api.hold_batches = True
    task = site.submit()
    site.batcher.run_once()
    messages_api.end_batches()
    monkeypatch.setattr(testing.Batch, "as_json", lambda self: 1 / 0)  # breaks the connection
    site.batcher.run_once()
    assert "The connection to the Anthropic API was lost" in site.why(task).sentence
    monkeypatch.undo()
    assert site.finish(task)["state"] == "succeeded"


# ------------------------------------------------------------------------------------- cancelled, late, stopped, paused


def test_call_of_a_cancelled_task_is_dropped(site: Site, messages_api: MessagesApi) -> None:
    task = site.submit(budget={"dollars": 1.0})
    assert site.tasks.cancel(task) == "cancelled"
    site.batcher.run_once()
    assert site.count(CALLS) == 0
    assert not messages_api.batches
    assert site.tasks.get(task)["budget"]["dollars"]["spent"] == 0


@pytest.mark.parametrize("end", ["cancel", "expire"])
def test_answer_to_an_ended_task_is_booked_as_cost(site: Site, messages_api: MessagesApi, end: str) -> None:
    messages_api.hold_batches = True
    task = site.submit(budget={"dollars": 1.0})
    site.batcher.run_once()
    with transaction() as connection:
        lifecycle.cancel(connection, task, reason="No.") if end == "cancel" else lifecycle.expire(connection, task)
    messages_api.end_batches()
    site.batcher.run_once()
    site.batcher.run_once()
    [step] = site.tasks.steps(task)
    assert (step["status"], step["output"], step["usage"]["batch"]) == ("failed", None, "msgbatch_0001")
    assert step["cost_microdollars"] > 0
    assert site.tasks.get(task)["budget"]["dollars"]["spent"] == step["cost_microdollars"] / 1e6
    assert sum(each["cost_microdollars"] for each in site.tasks.executions(task)) == step["cost_microdollars"]
    assert site.count(CALLS) == 0


def test_answer_that_no_minion_reads_any_more_is_booked(site: Site, messages_api: MessagesApi) -> None:
    task = site.submit()
    site.batcher.run_once()
    site.batcher.run_once()
    assert site.tasks.get(task)["state"] == "pending"
    site.tasks.cancel(task)
    site.batcher.run_once()
    [step] = site.tasks.steps(task)
    assert step["cost_microdollars"] > 0


def test_stop_holds_calls_back_and_paid_answers_are_read(site: Site, messages_api: MessagesApi) -> None:
    everything = stops.target_of("agent", "default", "Agent")
    messages_api.script = [testing.tool_use(("act", {"n": 1})), testing.text("Done.")]
    task = site.submit()
    with transaction() as connection:
        stops.stop(connection, everything, reason="Too expensive.")
    site.batcher.run_once()
    assert not messages_api.batches
    assert "is not sent because" in site.why(task).sentence
    with transaction() as connection:
        stops.lift(connection, everything)
    site.batcher.run_once()
    with transaction() as connection:
        stops.stop(connection, everything)
    site.round()  # The first answer is read; the second call does not begin.
    assert site.tasks.get(task)["wait_reason"] == "stopped"
    with transaction() as connection:
        stops.lift(connection, everything)
        stops.wake(connection)
    assert site.finish(task)["output"] == {"content": "Done."}
    assert len(messages_api.requests) == 2


def test_paused_agent_does_not_read_its_answer(site: Site, messages_api: MessagesApi) -> None:
    task = site.submit()
    with transaction() as connection:
        throttles.pause(connection, "agent", "Agent", reason=None, who="test")
    for _ in range(3):
        site.round()
    assert site.why(task).reason in ("paused", "no_orchestrator")
    with transaction() as connection:
        throttles.resume(connection, "agent", "Agent")
    assert site.finish(task)["state"] == "succeeded"


# -------------------------------------------------------------------------------------------------------------- budgets


def reserved(site: Site, task: UUID) -> tuple[Any, Any]:
    dollars = site.tasks.get(task)["budget"]["dollars"]
    return dollars["spent"], dollars["reserved"]


def test_budget_reserves_half_the_price_during_the_wait(
    batching: Callable[..., Site], define_agent: DefineAgent, messages_api: MessagesApi
) -> None:
    define_agent()
    site = batching()
    held: list[Any] = []
    answer = messages_api.answer
    messages_api.answer = lambda *given: (held.append(reserved(site, direct)), answer(*given))[1]  # type: ignore[method-assign]
    direct = site.tasks.submit("Agent", "Hello.", budget=Budget(dollars=1.0))
    site.worker.run_due()
    messages_api.answer = answer  # type: ignore[method-assign]
    task = site.submit(budget={"dollars": 1.0}, lane="batch")
    spent, half = reserved(site, task)
    assert spent == 0
    assert half == pytest.approx(held[0][1] / 2, abs=1e-6)
    site.finish(task)
    [step] = site.tasks.steps(task)
    assert reserved(site, task) == (step["cost_microdollars"] / 1e6, 0)


def test_standing_budget_holds_while_the_call_waits(site: Site) -> None:
    everything = standing_budgets.target_of("installation")

    def amounts() -> tuple[Any, Any]:
        with site.engine.connect() as connection:
            standing_budgets.spend_lost(connection)
            [found] = standing_budgets.list_budgets(connection)
        return found["dollars"]["spent"], found["dollars"]["reserved"]

    with transaction() as connection:
        standing_budgets.set_budget(connection, everything, "day", dollars=1.0)
    task = site.submit()
    site.batcher.run_once()
    spent, held = amounts()
    assert (spent, held > 0) == (0, True)
    site.finish(task)
    [step] = site.tasks.steps(task)
    assert amounts() == (step["cost_microdollars"] / 1e6, 0)


def test_call_without_room_in_the_budget_is_not_sent(site: Site, messages_api: MessagesApi) -> None:
    task = site.submit(budget={"dollars": 0.000002, "on_breach": "ask"})
    site.batcher.run_once()
    assert site.tasks.get(task)["wait_reason"] == "budget"
    assert not messages_api.batches


# --------------------------------------------------------------------------------------------- the lane of a task


@pytest.mark.parametrize(
    ("hours", "reason"), [(None, "batch"), (25, "batch"), (23, None)], ids=["no deadline", "long", "short"]
)
def test_auto_lane_depends_on_the_deadline(site: Site, hours: int | None, reason: str | None) -> None:
    deadline = None if hours is None else datetime.now(UTC) + timedelta(hours=hours)
    task = site.tasks.get(site.submit(lane="auto", deadline=deadline))
    assert (task["wait_reason"], task["state"]) == (reason, "waiting" if reason else "succeeded")


def test_lane_of_a_task_overrides_that_of_its_agent(site: Site, messages_api: MessagesApi) -> None:
    assert site.tasks.get(site.submit(lane="direct"))["state"] == "succeeded"
    assert not messages_api.batches


def test_lane_of_a_task_applies_to_its_sub_tasks(
    batching: Callable[..., Site], define_agent: DefineAgent, define: Any
) -> None:
    define_agent()
    define(
        {
            "kind": "agent",
            "name": "Chain",
            "type": "function",
            "relations": [{"agent": "Agent"}],
            "config": {"capabilities": ["work"]},
        }
    )
    site = batching()
    task = site.tasks.submit("Chain", "Hello.", lane="batch")
    site.worker.run_due()
    site.worker.run_due()
    [child] = site.tasks.children(task)
    assert child["wait_reason"] == "batch"
    assert site.finish(task)["state"] == "succeeded"


def test_unknown_lane_is_refused() -> None:
    with pytest.raises(InvalidInput, match="lane"):
        TaskRequest.parse({"agent": "Agent", "lane": "fast"})
    with pytest.raises(InvalidDefinition, match="lane"):
        parse_definition({"kind": "agent", "name": "A", "config": {"lane": "fast"}})
    with pytest.raises(InvalidDefinition, match="offline planner answers at once"):
        parse_definition({"kind": "agent", "name": "A", "model": "offline", "config": {"lane": "batch"}})


def test_missing_key_is_reported_by_why(site: Site, monkeypatch: pytest.MonkeyPatch, batching: Any) -> None:
    task = site.submit()
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    without_key = batching().batcher
    without_key.run_once()
    without_key.close()
    found = site.why(task)
    assert "The orchestrator has no ANTHROPIC_API_KEY" in found.sentence
    assert found.todo == "Set ANTHROPIC_API_KEY for the orchestrator."
    assert site.finish(task)["state"] == "succeeded"


# ---------------------------------------------------------------------------------------------------- lost workers


def test_worker_of_release_0_2_hands_the_task_back(site: Site, messages_api: MessagesApi) -> None:
    """It does not know the lane, and would make the call that is paid for already."""
    task = site.submit(budget={"dollars": 1.0})
    site.batcher.run_once()
    site.batcher.run_once()
    spent = site.tasks.get(task)["budget"]["dollars"]["spent"]
    [message] = site.worker.dispatch()
    [step] = site.tasks.steps(task)
    begun = {name: step[name] for name in ("number", "kind", "name", "status", "request_hash", "input")}
    with site.engine.begin() as connection:
        claimed = lifecycle.claim(connection, task, message.claim, site.worker.id)
        reserve: Reserve = {"step": 1, "steps": 1, "tokens": 10, "microdollars": 10}
        journal = [{**begun, "effect": "idempotent"}]
        flags = budgets.spend(connection, task, claimed["claim"], journal, reserve=reserve)
        error = budgets.exceeded(flags["breach"]).as_dict()
        lifecycle.snooze(connection, task, claimed["claim"], {"error": error}, delay=None, reason="budget")
    back = site.tasks.get(task)
    assert (back["wait_reason"], back["budget"]["dollars"]["spent"]) == ("handed_back", spent)
    with site.engine.begin() as connection:
        connection.execute(text("UPDATE task_status SET due_at = now()"))
    assert site.finish(task)["state"] == "succeeded"
    assert len(messages_api.requests) == 1


def test_call_outlives_a_worker_that_dies_before_the_wait(site: Site, messages_api: MessagesApi) -> None:
    task = site.submit()
    with site.engine.begin() as connection:
        connection.execute(
            text("UPDATE task_status SET state = 'pending', wait_reason = NULL WHERE task_id = :task"), {"task": task}
        )
    site.batcher.run_once()
    site.worker.run_due()
    assert site.finish(task)["state"] == "succeeded"
    assert len(messages_api.requests) == 1
    assert len(site.tasks.executions(task)) >= 2


# ------------------------------------------------------------------------------------- tools that the API runs, memory


def test_tools_of_the_api_work_in_batches(
    batching: Callable[..., Site], messages_api: MessagesApi, tasks: Tasks, define: Define
) -> None:
    site = batching(batch_poll_seconds=0.001)
    define(
        {"kind": "tool", "name": "search", "type": "web_search", "web_search": {"max_uses": 2, "max_uses_per_task": 2}},
        {"kind": "tool", "name": "code", "type": "code_execution"},
        {"kind": "tool", "name": "notes", "type": "memory", "memory": {"per": "tenant"}},
        {
            "kind": "agent",
            "name": "Searcher",
            "model": "claude-sonnet-5-5",
            "tools": ["search", "code", "notes"],
            "config": {"capabilities": ["work"], "lane": "batch"},
        },
    )
    messages_api.script = [
        testing.said(
            testing.web_search("boats", ("Boats", "https://a.example")),
            testing.code_execution("ls"),
            stop_reason="pause_turn",
            container={"id": "container_1", "expires_at": "2026-11-01T12:05:00Z"},
        ),
        testing.tool_use(("memory", {"command": "create", "path": "/memories/a", "file_text": "Boats."})),
        testing.text("Done."),
    ]
    task = site.finish(tasks.submit("Searcher", "Boats?", key="acme"))
    assert task["output"] == {"content": "Done."}, task["error"]
    offered = [request["tools"][0].get("max_uses") for request in messages_api.requests]
    assert offered == [2, 1, 1]
    assert [request.get("container") for request in messages_api.requests] == [None, "container_1", "container_1"]
    first = tasks.steps(UUID(str(task["id"])))[0]
    assert first["usage"]["service_tier"] == "batch"
    # The search has its full price.
    assert first["cost_microdollars"] > 10_000


# ------------------------------------------------------------------------------------------------------ the example


def test_example_sends_tickets_through_two_batches(
    batching: Callable[..., Site], messages_api: MessagesApi, tasks: Tasks, inline_worker: InlineWorker
) -> None:
    site = batching(batch_poll_seconds=0.001)
    messages_api.script = json.loads((EXAMPLE / "replies.json").read_text())
    with Session(site.engine) as session:
        store_definitions(session, load(EXAMPLE / "tickets.yaml"))
    with transaction() as connection:
        connection.execute(text("UPDATE workers SET capabilities = capabilities || '{tickets}'"))
    given = [{"account": account, "text": "The export is empty."} for account in range(10)]
    submitted = tasks.submit_all([TaskRequest(agent="ticket-desk", input=each) for each in given])
    site.worker.run_due()
    assert tasks.count() == {"waiting": 10}
    ended = [site.finish(task) for task in submitted]
    assert {(task["state"], task["output"]["urgency"]) for task in ended} == {("succeeded", "high")}
    assert [len(batch.requests) for batch in messages_api.batches.values()] == [10, 10]
    steps = [step for task in submitted for step in tasks.steps(task)]
    assert [step["kind"] for step in steps] == ["model_call", "function_call", "model_call"] * 10


def test_files_are_sent_in_a_batch(site: Site, messages_api: MessagesApi) -> None:
    data = png(3, 2, padding=80_000)
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": b64(data)}}
    said = {"role": "user", "content": [image, {"type": "text", "text": "What is it?"}]}
    task = site.tasks.submit("Agent", messages=[said])
    site.worker.run_due()
    assert site.finish(task)["output"] == {"content": "Hi."}
    assert plain(messages_api.requests[0]) == [said]
