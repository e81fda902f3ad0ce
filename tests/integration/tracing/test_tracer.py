"""Ended work is exported as spans: each once, with the same ids and the same content, whatever fails in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from pydantic import SecretStr
from sqlalchemy import event, text
from structlog.testing import capture_logs

from orchestrator.observe import metrics
from orchestrator.retention.erasure import Subject, erase
from orchestrator.retention.retention import prune
from orchestrator.tracing import ended, state
from orchestrator.tracing import tracer as tracing
from orchestrator.tracing.endpoint import OURS
from orchestrator.tracing.tracer import Tracer
from shared.access.actors import orchestrator
from shared.settings import Settings
from shared.tasks import lifecycle
from shared.tasks.states import State
from shared.trace_context import claim_span, step_span, task_span
from tests.support.lifecycle_driver import LifecycleDriver
from tests.support.otlp_receiver import ACCEPTED, PROTOBUF, Collector, attributes, collecting, hanging, refusing, tree
from tests.support.plans import every_node, plans_of, rows_read
from tests.support.processes import ROOT, wait_until

FINISH = text("SELECT minion_finish(:task, 1, 'succeeded', '{}')")
TRACE, CALLER = "a" * 32, "b" * 16
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"

Make = Callable[..., Tracer]


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture
def make_tracer(
    driver: LifecycleDriver, collector: Collector, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Make]:
    """Makes tracers of the test's collector. The first one begins at the present."""
    monkeypatch.setattr(tracing, "FIRST_PAUSE", 0.0)
    made: list[Tracer] = []

    def make(url: str = collector.url, **more: Any) -> Tracer:
        chosen = settings.model_copy(update={"otel_exporter_otlp_endpoint": url, **more})
        made.append(Tracer(chosen, driver.engine))
        return made[-1]

    yield make
    for each in made:
        each.stopping.set()
        each.close()


@pytest.fixture
def tracer(make_tracer: Make) -> Tracer:
    tracer = make_tracer()
    tracer.run_once()
    return tracer


def export_all(tracer: Tracer) -> None:
    """Run rounds until everything that has ended is exported."""

    def round_ends() -> bool:
        tracer.run_once()
        return state.next_range(tracer.engine) is None

    wait_until(round_ends, "everything is exported")


def step(number: int, status: str = "finished", **fields: Any) -> dict[str, Any]:
    return {
        "number": number,
        "kind": "model_call",
        "name": "claude-sonnet-5-5",
        "status": status,
        "effect": "idempotent",
        "request_hash": str(number),
        "started_at": "2026-11-29T12:00:00+00:00",
        "finished_at": None if status == "started" else "2026-11-29T12:00:01+00:00",
        **fields,
    }


def write(driver: LifecycleDriver, task: UUID, claim: int, *steps: dict[str, Any]) -> None:
    assert driver.call(lifecycle.write_steps, task, claim, list(steps)) is not None


def change(driver: LifecycleDriver, statement: str) -> None:
    """Change rows that never change, as if time had passed."""
    with driver.engine.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(text(statement))


def by_id(collector: Collector) -> dict[bytes, Span]:
    return {span.span_id: span for span in collector.spans()}


# ---------------------------------------------------------------------------------------------------------- spans


def test_task_is_a_trace_with_its_claims_and_steps(
    driver: LifecycleDriver, tracer: Tracer, collector: Collector
) -> None:
    task = driver.run("A", key="acme")
    usage = {
        "input_tokens": 70,
        "output_tokens": 5,
        "cache_read_input_tokens": 40,
        "cache_creation_input_tokens": 20,
        "thinking_tokens": 3,
    }
    output = {"content": [], "stop_reason": "end_turn", "model": "claude-sonnet-5-5-20260901"}
    write(driver, task, 1, step(1, usage=usage, output=output, cost_microdollars=12))
    write(driver, task, 1, step(2, kind="tool_call", name="refund", effect="unsafe"))
    driver.finish(task)
    export_all(tracer)
    spans = by_id(collector)
    assert spans.keys() == {task_span(task), claim_span(task, 1), step_span(task, 1), step_span(task, 2)}
    assert {span.trace_id for span in spans.values()} == {task.bytes}
    root, claim, chat = (spans[each] for each in (task_span(task), claim_span(task, 1), step_span(task, 1)))
    assert (root.name, root.kind, root.parent_span_id) == ("invoke_agent A", Span.SPAN_KIND_INTERNAL, b"")
    assert (claim.name, claim.kind, claim.parent_span_id) == (
        "process work",
        Span.SPAN_KIND_CONSUMER,
        root.span_id,
    )
    assert (chat.name, chat.kind, chat.parent_span_id) == (
        "chat claude-sonnet-5-5",
        Span.SPAN_KIND_CLIENT,
        claim.span_id,
    )
    assert chat.end_time_unix_nano - chat.start_time_unix_nano == 10**9
    assert (
        attributes(chat).items()
        >= {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "anthropic",
            "gen_ai.request.model": "claude-sonnet-5-5",
            "gen_ai.response.model": "claude-sonnet-5-5-20260901",
            "gen_ai.usage.input_tokens": 70,
            "gen_ai.usage.output_tokens": 5,
            "gen_ai.usage.cache_read.input_tokens": 40,
            "gen_ai.usage.cache_write.input_tokens": 20,
            "gen_ai.usage.reasoning.output_tokens": 3,
            "gen_ai.agent.name": "A",
            "gen_ai.agent.version": "1",
            "minions.cost_microdollars": 12,
            "minions.key": "acme",
        }.items()
    )
    assert attributes(chat)["gen_ai.response.finish_reasons"] == ["stop"]
    assert (
        attributes(spans[step_span(task, 2)]).items()
        >= {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": "refund",
            "minions.step.effect": "unsafe",
        }.items()
    )
    assert (
        attributes(claim).items()
        >= {
            "messaging.operation.name": "process",
            "messaging.destination.name": "work",
            "minions.claim.outcome": "succeeded",
            "minions.worker": "driver",
        }.items()
    )
    assert {span.flags for span in spans.values()} == {0x101}


def test_sub_task_is_below_the_step_that_sent_it(driver: LifecycleDriver, tracer: Tracer, collector: Collector) -> None:
    parent = driver.run("A")
    [child] = driver.suspend(parent, children=["B"])
    export_all(tracer)
    assert tree(collector.spans()) == "process work"
    driver.finish(child, driver.again(child))
    driver.finish(parent, driver.again(parent))
    export_all(tracer)
    assert tree(collector.spans()) == (
        "invoke_agent A\n  process work\n    send work\n      invoke_agent B\n        process work\n  process work"
    )
    sent = by_id(collector)[step_span(parent, 1)]
    assert sent.kind == Span.SPAN_KIND_PRODUCER
    assert (
        attributes(sent).items()
        >= {
            "messaging.operation.name": "send",
            "messaging.message.id": str(child),
            "gen_ai.agent.name": "B",
        }.items()
    )
    assert {span.trace_id for span in collector.spans()} == {parent.bytes}


def test_calls_of_a_program_are_below_it(driver: LifecycleDriver, tracer: Tracer, collector: Collector) -> None:
    task = driver.run("A")
    program = {"kind": "tool_call", "name": "run_program", "program": 1}
    write(driver, task, 1, step(1, **program), step(2, kind="tool_call", name="act", program=1, line=7), step(3))
    driver.finish(task, 1)
    export_all(tracer)
    assert tree(collector.spans()) == (
        "invoke_agent A\n  process work\n    execute_tool run_program\n      execute_tool act\n"
        "    chat claude-sonnet-5-5"
    )
    assert attributes(by_id(collector)[step_span(task, 2)])["minions.program.line"] == 7


def test_task_that_waits_for_days_is_one_trace(driver: LifecycleDriver, tracer: Tracer, collector: Collector) -> None:
    task = driver.run("A")
    [child] = driver.suspend(task, children=["B"])
    export_all(tracer)
    change(driver, "UPDATE tasks SET created_at = created_at - interval '4 days'")
    driver.finish(child, driver.again(child))
    driver.finish(task, driver.again(task))
    export_all(tracer)
    spans = collector.spans()
    assert {span.trace_id for span in spans} == {task.bytes}
    root = by_id(collector)[task_span(task)]
    assert root.end_time_unix_nano - root.start_time_unix_nano >= 4 * 86_400 * 10**9


def test_failed_task_has_the_type_of_its_error_and_not_its_text(
    driver: LifecycleDriver, tracer: Tracer, collector: Collector
) -> None:
    task = driver.run("A")
    error = {"type": "tool_error", "message": "secret text"}
    write(driver, task, 1, step(1, "failed", kind="tool_call", name="t", error=error))
    driver.finish(task, state=State.FAILED, error=error)
    export_all(tracer)
    spans = by_id(collector)
    assert len(spans) == 3
    for span in spans.values():
        assert span.status.code == span.status.STATUS_CODE_ERROR
        assert attributes(span)["error.type"] == "tool_error"
        assert "secret text" not in str(span)


def test_cancelled_task_is_no_error_and_ends_its_open_calls(
    driver: LifecycleDriver, tracer: Tracer, collector: Collector
) -> None:
    task = driver.run("A")
    write(driver, task, 1, step(1, "started", kind="tool_call", name="t", effect="unsafe"))
    driver.call(lifecycle.cancel, task, reason="enough")
    driver.finish(task)
    export_all(tracer)
    spans = by_id(collector)
    assert spans[task_span(task)].status.code == spans[task_span(task)].status.STATUS_CODE_UNSET
    cut = spans[step_span(task, 1)]
    assert attributes(cut).items() >= {"minions.step.status": "started", "error.type": "interrupted"}.items()
    assert cut.end_time_unix_nano == spans[task_span(task)].end_time_unix_nano


# ------------------------------------------------------------------------------------------ nothing twice, nothing lost


def test_step_that_is_retried_has_one_span(driver: LifecycleDriver, tracer: Tracer, collector: Collector) -> None:
    """It is exported only when it cannot be retried any more."""
    task = driver.run("A")
    again = {"error": {"type": "unavailable", "retryable": True}}
    write(driver, task, 1, step(1, "started"))
    write(driver, task, 1, step(1, "failed", **again))
    driver.release(task)
    export_all(tracer)
    assert by_id(collector).keys() == {claim_span(task, 1)}
    claim = driver.again(task)
    write(driver, task, claim, step(1, "started"))
    write(driver, task, claim, step(1))
    driver.finish(task, claim)
    export_all(tracer)
    assert tree(collector.spans()).splitlines().count("    chat claude-sonnet-5-5") == 1
    assert len(collector.spans()) == collector.exports() == 4


def test_step_that_fails_for_good_is_exported_with_its_task(
    driver: LifecycleDriver, tracer: Tracer, collector: Collector
) -> None:
    task = driver.run("A")
    write(driver, task, 1, step(1, "failed", error={"type": "tool_error", "retryable": True}))
    export_all(tracer)
    assert collector.spans() == []
    driver.finish(task, state=State.FAILED)
    export_all(tracer)
    assert step_span(task, 1) in by_id(collector)
    assert collector.exports() == 3


def test_sub_task_that_ends_after_its_parent_ends_its_step_once(
    driver: LifecycleDriver, tracer: Tracer, collector: Collector
) -> None:
    parent = driver.run("A")
    [child] = driver.suspend(parent, children=["B"])
    claim = driver.again(child)
    driver.call(lifecycle.cancel, parent, reason="enough")
    export_all(tracer)
    assert step_span(parent, 1) not in by_id(collector)
    driver.finish(child, claim)
    export_all(tracer)
    assert step_span(parent, 1) in by_id(collector)
    assert len(collector.spans()) == collector.exports() == 5


def test_copied_steps_of_a_replay_make_no_span_and_the_replay_links_to_its_original(
    driver: LifecycleDriver, tracer: Tracer, collector: Collector
) -> None:
    task = driver.run("A")
    write(driver, task, 1, step(1), step(2))
    driver.finish(task)
    request = json.dumps({"agent": "A", "input": {}, "replay_of": str(task)})
    replay: UUID = driver.sql(
        "SELECT minion_replay_from(CAST(:request AS jsonb), :task, 2, NULL, 'test')", request=request, task=task
    )
    claim = driver.again(replay)
    write(driver, replay, claim, step(2))
    driver.finish(replay, claim)
    export_all(tracer)
    of_replay = [span for span in collector.spans() if span.trace_id == replay.bytes]
    assert {span.span_id for span in of_replay} == {
        task_span(replay),
        claim_span(replay, 1),
        step_span(replay, 2),
    }
    [link] = by_id(collector)[task_span(replay)].links
    assert (link.trace_id, link.span_id) == (task.bytes, task_span(task))


def test_late_commit_is_exported(driver: LifecycleDriver, tracer: Tracer, collector: Collector) -> None:
    """A transaction with a lower number commits after one with a higher number was committed."""
    late, soon = driver.run(), driver.run()
    with driver.engine.connect() as connection:
        connection.execute(FINISH, {"task": late})
        driver.finish(soon)
        for _ in range(3):
            tracer.run_once()
        connection.commit()
    export_all(tracer)
    assert {task_span(late), task_span(soon)} <= by_id(collector).keys()
    assert len(collector.spans()) == collector.exports() == 4


def test_large_backlog_and_a_large_transaction_are_exported_in_parts(
    driver: LifecycleDriver, tracer: Tracer, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ended, "MOST_ROWS", 2)
    monkeypatch.setattr(tracing, "MOST_SPANS", 3)
    parent = driver.run()
    assert len(driver.suspend(parent, children=["B"] * 7)) == 7
    driver.call(lifecycle.cancel, parent, reason="test")
    for _ in range(5):
        driver.finish(driver.run())
    export_all(tracer)
    # The parent and its claim, seven steps and sub-tasks; five tasks and their claims.
    assert len(collector.spans()) == collector.exports() == 2 + 14 + 10
    assert collector.requests >= 9


def test_first_export_begins_at_the_present(driver: LifecycleDriver, make_tracer: Make, collector: Collector) -> None:
    before, during = driver.run(), driver.run()
    driver.finish(before)
    tracer = make_tracer()
    tracer.run_once()
    driver.finish(during)
    export_all(tracer)
    assert task_span(during) in by_id(collector)
    assert task_span(before) not in by_id(collector)


def test_export_continues_after_a_pause_and_begins_anew_after_a_week(
    driver: LifecycleDriver, make_tracer: Make, tracer: Tracer, collector: Collector
) -> None:
    tracer.close()
    missed = driver.run()
    driver.finish(missed)
    driver.sql("UPDATE tracing_state SET seen_at = now() - interval '6 days'")
    export_all(second := make_tracer())
    assert task_span(missed) in by_id(collector)
    second.close()
    skipped = driver.run()
    driver.finish(skipped)
    driver.sql("UPDATE tracing_state SET seen_at = now() - interval '8 days'")
    export_all(third := make_tracer())
    third.run_once()
    assert task_span(skipped) not in by_id(collector)


def test_clock_that_jumps_by_days_loses_no_span(driver: LifecycleDriver, tracer: Tracer, collector: Collector) -> None:
    driver.finish(task := driver.run())
    driver.sql("UPDATE tracing_state SET seen_at = now() - interval '8 days'")
    tracer.run_once()
    assert task_span(task) in by_id(collector)


LEADER = """
import sys, time
from orchestrator.tracing import state, tracer
from shared.database.connections import get_engine
from shared.settings import get_settings
def stop(*arguments, **named):
    print("sent", flush=True)
    time.sleep(60)
state.move = stop
tracer.Tracer(get_settings(), get_engine()).run_once()
"""


def test_leader_that_is_killed_while_it_exports_loses_and_changes_nothing(
    driver: LifecycleDriver, make_tracer: Make, tracer: Tracer, collector: Collector
) -> None:
    tracer.close()
    tasks = [driver.run() for _ in range(3)]
    for task in tasks:
        driver.finish(task)
    environment = {**os.environ, ENDPOINT: collector.url}
    leader = subprocess.Popen(
        [sys.executable, "-c", LEADER], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert leader.stdout is not None
    with leader:
        assert "sent\n" in leader.stdout  # reads until then
        leader.send_signal(signal.SIGKILL)
    export_all(make_tracer())
    assert len(collector.spans()) == 6
    assert collector.exports() == 12


def test_second_orchestrator_waits_and_takes_over(
    driver: LifecycleDriver, make_tracer: Make, tracer: Tracer, collector: Collector
) -> None:
    second = make_tracer()
    driver.finish(driver.run())
    second.run_once()
    assert collector.exports() == 0
    export_all(tracer)
    driver.finish(driver.run())
    tracer.close()
    export_all(second)
    assert len(collector.spans()) == collector.exports() == 4


def test_database_that_fails_in_the_middle_of_a_range_loses_nothing(
    driver: LifecycleDriver, tracer: Tracer, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = driver.run()
    driver.finish(task)
    read = ended._read

    def fail(connection: Any, statement: Any, values: Any) -> Any:
        if "task_outcomes o JOIN tasks" in " ".join(str(statement).split()):
            raise ConnectionError("gone")
        return read(connection, statement, values)

    with monkeypatch.context() as patch:
        patch.setattr(ended, "_read", fail)
        with pytest.raises(ConnectionError):
            tracer.run_once()
    export_all(tracer)
    assert by_id(collector).keys() == {task_span(task), claim_span(task, 1)}


def test_failed_step_without_a_mark_is_exported_with_its_task(
    driver: LifecycleDriver, tracer: Tracer, collector: Collector
) -> None:
    """It failed before 0.3, or on the server from which a dump was restored."""
    task = driver.run("A")
    write(driver, task, 1, step(1, "failed", kind="tool_call", name="t", error={"type": "tool_error"}))
    change(driver, "UPDATE steps SET ended_in = NULL")
    driver.finish(task, state=State.FAILED)
    export_all(tracer)
    assert step_span(task, 1) in by_id(collector)
    assert collector.exports() == 3


# -------------------------------------------------------------------------------------------------------- endpoints


def once(collector: Collector, *answers: Any) -> None:
    """Give these answers to requests with spans, and then accept."""
    left = list(answers)
    collector.answer = lambda spans: left.pop(0) if spans and left else ACCEPTED


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((503, {"Retry-After": "0"}, b""), "it answers 503"),
        ((429, {}, b"slow down"), "it answers 429"),
        ((500, {}, b"oops"), "it answers 500"),
        ((401, {}, b"who are you"), "it answers 401"),
        ((404, {}, b"not here"), "it answers 404"),
        ((302, {"Location": "http://127.0.0.1:1/"}, b""), "a redirect, which is not followed"),
        ((200, {"Content-Type": "text/html"}, b"<html>log in</html>"), "none of OTLP"),
        ((200, PROTOBUF, b"\xff\xff\xff garbage"), "none of OTLP"),
        ((200, {"Content-Type": "application/json"}, b"[1"), "none of OTLP"),
    ],
)
def test_spans_that_are_not_taken_are_sent_again(
    driver: LifecycleDriver, tracer: Tracer, collector: Collector, answer: Any, said: str
) -> None:
    once(collector, answer, answer)
    task = driver.run()
    driver.finish(task)
    with capture_logs() as logs:
        export_all(tracer)
    assert by_id(collector).keys() == {task_span(task), claim_span(task, 1)}
    [warning] = [line for line in logs if line["event"] == "spans_not_taken"]
    assert said in warning["reason"]
    assert [line["event"] for line in logs if line["event"] == "spans_taken_again"] == ["spans_taken_again"]
    assert state_row(driver)["refused"] == 0


@pytest.mark.parametrize("content", [b"{}", b'{"partialSuccess": {}}', b""])
def test_answers_in_json_are_understood(
    driver: LifecycleDriver, tracer: Tracer, collector: Collector, content: bytes
) -> None:
    collector.answer = lambda spans: (200, {"Content-Type": "application/json; charset=utf-8"}, content)
    driver.finish(driver.run())
    export_all(tracer)
    assert len(collector.spans()) == collector.exports() == 2


def test_endpoint_that_is_down_or_hangs_slows_no_task_and_loses_no_span(
    driver: LifecycleDriver, make_tracer: Make, tracer: Tracer, collector: Collector
) -> None:
    tracer.close()
    driver.finish(first := driver.run())
    with collecting() as stopped:
        url = stopped.url
    down = make_tracer(url)
    with capture_logs() as logs:
        for _ in range(3):
            down.run_once()
    assert [line["event"] for line in logs].count("spans_not_taken") == 1
    down.close()
    with hanging() as url:
        slow = make_tracer(url, otel_exporter_otlp_timeout=200)
        with capture_logs() as logs:
            slow.run_once()
        assert "no answer" in next(line["reason"] for line in logs if line["event"] == "spans_not_taken")
        slow.close()
        driver.finish(second := driver.run())
    export_all(make_tracer())
    assert {task_span(first), task_span(second)} <= by_id(collector).keys()


def test_tracer_that_stops_does_not_wait_for_an_endpoint_that_hangs(
    driver: LifecycleDriver, make_tracer: Make, tracer: Tracer, collector: Collector
) -> None:
    tracer.close()
    driver.finish(driver.run())
    with hanging() as url:
        slow = make_tracer(url, otel_exporter_otlp_timeout=600_000)
        running = threading.Thread(target=slow.run_once)
        running.start()
        slow.stopping.set()
        running.join(30)
        assert not running.is_alive()


def test_no_transaction_is_open_while_spans_are_sent(
    driver: LifecycleDriver, tracer: Tracer, collector: Collector
) -> None:
    open_ones: list[int] = []

    def look(spans: list[Span]) -> Any:
        open_ones.append(
            driver.sql(
                "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%' "
                "AND datname = current_database()"
            )
        )
        return ACCEPTED

    collector.answer = look
    driver.finish(driver.run())
    export_all(tracer)
    assert open_ones == [0]


def test_partial_success_is_counted_and_not_repeated(
    driver: LifecycleDriver, tracer: Tracer, collector: Collector
) -> None:
    once(collector, refusing(1, "too \x1b[31mold"))
    driver.finish(driver.run())
    with capture_logs() as logs:
        export_all(tracer)
    assert collector.exports() == 2
    assert (state_row(driver)["exported"], state_row(driver)["refused"]) == (1, 1)
    [warning] = [line for line in logs if line["event"] == "spans_refused"]
    assert warning["reason"] == "too \\u001b[31mold"


@pytest.mark.parametrize("status", [400, 413])
def test_only_the_span_that_is_refused_is_given_up(
    driver: LifecycleDriver, tracer: Tracer, collector: Collector, status: int
) -> None:
    tasks = [driver.run() for _ in range(4)]
    bad = task_span(tasks[2])
    collector.answer = lambda spans: (status, {}, b"no") if any(span.span_id == bad for span in spans) else ACCEPTED
    for task in tasks:
        driver.finish(task)
    export_all(tracer)
    expected = {task_span(task) for task in tasks} | {claim_span(task, 1) for task in tasks}
    assert by_id(collector).keys() == expected - {bad}
    assert collector.exports() == 7
    assert state_row(driver)["refused"] == 1


def test_endpoint_that_refuses_everything_loses_nothing(
    driver: LifecycleDriver, tracer: Tracer, collector: Collector
) -> None:
    collector.answer = lambda spans: (400, {}, b"no")
    driver.finish(driver.run())
    for _ in range(3):
        tracer.run_once()
    assert collector.requests <= 6
    collector.answer = lambda spans: ACCEPTED
    export_all(tracer)
    assert len(collector.spans()) == 2
    assert state_row(driver)["refused"] == 0


def test_request_has_the_headers_and_the_resource_of_the_settings(
    driver: LifecycleDriver, make_tracer: Make, collector: Collector
) -> None:
    tracer = make_tracer(
        otel_exporter_otlp_headers=SecretStr("X-Api-Key=k%3D1,other=2,Content-Type=text/plain"),
        otel_service_name="agents",
        otel_resource_attributes="team=support%20desk,service.name=ignored",
    )
    tracer.run_once()
    driver.finish(driver.run())
    export_all(tracer)
    sent = {name.lower(): value for name, value in collector.headers[0].items()}
    assert sent.items() >= {"x-api-key": "k=1", "other": "2", **OURS}.items()
    assert collector.resource.items() >= {"service.name": "agents", "team": "support desk"}.items()


# --------------------------------------------------------------------------------------------------- callers' traces


def test_trace_of_a_caller_continues(driver: LifecycleDriver, tracer: Tracer, collector: Collector) -> None:
    task = driver.run("A", traceparent=f"00-{TRACE}-{CALLER}-01")
    [child] = driver.suspend(task, children=["B"])
    driver.finish(child, driver.again(child))
    driver.finish(task, driver.again(task))
    export_all(tracer)
    assert {span.trace_id.hex() for span in collector.spans()} == {TRACE}
    root = by_id(collector)[task_span(task)]
    assert (root.parent_span_id.hex(), root.flags) == (CALLER, 0x301)


def test_trace_that_its_caller_does_not_record_is_not_exported(
    driver: LifecycleDriver, tracer: Tracer, collector: Collector
) -> None:
    task = driver.run("A", traceparent=f"00-{TRACE}-{CALLER}-00")
    [child] = driver.suspend(task, children=["B"])
    driver.finish(child, driver.again(child))
    driver.finish(task, driver.again(task))
    other = driver.run("A")
    driver.finish(other)
    export_all(tracer)
    assert {span.trace_id for span in collector.spans()} == {other.bytes}


@pytest.mark.parametrize("traceparent", [f"00-{'0' * 32}-{CALLER}-01", f"ff-{TRACE}-{CALLER}-01"])
def test_invalid_trace_of_a_caller_starts_another(
    driver: LifecycleDriver, tracer: Tracer, collector: Collector, traceparent: str
) -> None:
    task = driver.run("A", traceparent=traceparent)
    driver.finish(task)
    export_all(tracer)
    assert {span.trace_id for span in collector.spans()} == {task.bytes}


# ----------------------------------------------------------------------------------------------------------- contents

SAID = {
    "input": {"messages": [{"role": "user", "content": "my secret"}]},
    "output": {
        "content": [
            {"type": "thinking", "thinking": "my thoughts", "signature": "sealed"},
            {"type": "text", "text": "my answer\x1b]0;x\x07"},
            {"type": "tool_use", "id": "toolu_1", "name": "t", "input": {"n": 1}},
        ],
        "stop_reason": "tool_use",
        "model": "m",
    },
}


def test_contents_are_not_exported_by_default(driver: LifecycleDriver, tracer: Tracer, collector: Collector) -> None:
    task = driver.run("A", input={"question": "my secret"})
    write(driver, task, 1, step(1, **SAID))
    tool = {"input": {"arguments": {"a": "my secret"}}, "output": "my answer", "stdout": "my answer"}
    write(driver, task, 1, step(2, kind="tool_call", name="t", **tool))
    driver.finish(task, output={"answer": "my answer"})
    export_all(tracer)
    assert "my " not in "".join(map(str, collector.spans()))


def test_contents_are_exported_if_wanted_and_bounded(
    driver: LifecycleDriver, make_tracer: Make, collector: Collector
) -> None:
    tracer = make_tracer(otel_instrumentation_genai_capture_message_content="SPAN_ONLY")
    tracer.run_once()
    task = driver.run("A")
    write(driver, task, 1, step(1, **SAID))
    arguments = {"input": {"url": "https://example.com", "arguments": {"a": 1}}, "output": "x" * 100_000}
    write(driver, task, 1, step(2, kind="tool_call", name="t", **arguments))
    write(driver, task, 1, step(3, kind="tool_call", name="t", output="y" * 1_000_000))
    driver.finish(task)
    export_all(tracer)
    spans = by_id(collector)
    chat = attributes(spans[step_span(task, 1)])
    assert chat["gen_ai.input.messages"] == '[{"role": "user", "parts": [{"type": "text", "content": "my secret"}]}]'
    assert "my answer" in chat["gen_ai.output.messages"]
    assert "toolu_1" in chat["gen_ai.output.messages"]
    assert '"finish_reason": "tool_call"' in chat["gen_ai.output.messages"]
    assert not [hidden for hidden in ("sealed", "my thoughts", "\x1b", "\x07") if hidden in str(chat)]
    tool = attributes(spans[step_span(task, 2)])
    assert tool["gen_ai.tool.call.arguments"] == '{"a": 1}'
    assert len(tool["gen_ai.tool.call.result"]) < 17_000
    assert "gen_ai.tool.call.result" not in attributes(spans[step_span(task, 3)])


def test_contents_that_cannot_be_read_do_not_stop_the_export(
    driver: LifecycleDriver, make_tracer: Make, collector: Collector
) -> None:
    tracer = make_tracer(otel_instrumentation_genai_capture_message_content="SPAN_ONLY")
    tracer.run_once()
    task = driver.run("A")
    write(driver, task, 1, step(1, **SAID), step(2, kind="tool_call", name="t", input={"arguments": 1}))
    messages = json.dumps({"messages": [None, 1, {"role": "user", "content": [None, 1]}]})
    change(driver, f"UPDATE steps SET output = '{'9' * 5_000}', input = '{messages}' WHERE number = 1")
    change(driver, f"UPDATE steps SET output = '{'[' * 3_000}{']' * 3_000}' WHERE number = 2")
    driver.finish(task)
    export_all(tracer)
    spans = by_id(collector)
    chat, tool = (attributes(spans[step_span(task, number)]) for number in (1, 2))
    assert chat["gen_ai.input.messages"] == '[{"role": "user", "parts": []}]'
    assert tool["gen_ai.tool.call.arguments"] == "1"


@pytest.mark.parametrize("contents", ["NO_CONTENT", "SPAN_ONLY"])
def test_span_of_a_task_that_is_deleted_while_it_waits_for_the_endpoint_is_not_sent(
    driver: LifecycleDriver, make_tracer: Make, collector: Collector, contents: str
) -> None:
    tracer = make_tracer(otel_instrumentation_genai_capture_message_content=contents)
    tracer.run_once()
    erased, kept = driver.run("A", key="acme"), driver.run("A")
    write(driver, erased, 1, step(1, **SAID))
    for task in (erased, kept):
        driver.finish(task)
    collector.answer = lambda spans: (503, {}, b"")
    tracer.run_once()
    assert collector.requests == 1
    tenant = Subject(namespace="default", tenant="acme")
    assert driver.call(erase, tenant, orchestrator(), after=None, dry_run=False).tasks == 1
    collector.answer = lambda spans: ACCEPTED
    export_all(tracer)
    assert by_id(collector).keys() == {task_span(kept), claim_span(kept, 1)}
    found = state_row(driver)
    assert (found["exported"], found["pruned"]) == (2, 3)


def test_hostile_names_and_times_are_exported_as_bounded_text(
    driver: LifecycleDriver, tracer: Tracer, collector: Collector
) -> None:
    task = driver.run("A")
    name = "\x1b]0;owned\x07\u202e" + "n" * 100_000
    odd = {"usage": {"input_tokens": 2**62, "output_tokens": "many"}, "output": {"model": name, "stop_reason": [1]}}
    write(driver, task, 1, step(1, name=name, started_at="-infinity", **odd))
    write(driver, task, 1, step(2, started_at="0001-01-01T00:00:00+00:00", finished_at="infinity"))
    driver.finish(task)
    export_all(tracer)
    span = by_id(collector)[step_span(task, 1)]
    assert len(span.name) <= 200
    assert span.name.startswith("chat \\u001b]0;owned\\u0007\\u202e")
    assert all(len(str(value)) <= 1_000 for value in attributes(span).values())
    assert attributes(span)["gen_ai.usage.input_tokens"] == 2**62
    assert "gen_ai.usage.output_tokens" not in attributes(span)


# ---------------------------------------------------------------------------------------------------------- retention


def state_row(driver: LifecycleDriver) -> dict[str, Any]:
    found = driver.call(state.read_metrics)
    assert found is not None
    return found


def age(driver: LifecycleDriver, days: float) -> None:
    change(driver, f"UPDATE task_outcomes SET finished_at = finished_at - {days} * interval '1 day'")


def deleted(driver: LifecycleDriver, settings: Settings) -> int:
    return sum(batch.tasks for batch in prune(driver.engine, settings))


def test_retention_waits_for_the_export_for_a_day(
    driver: LifecycleDriver, tracer: Tracer, collector: Collector, settings: Settings
) -> None:
    settings = settings.model_copy(update={"retention_succeeded": 1e-9})
    driver.finish(driver.run())
    age(driver, 0.5)
    assert deleted(driver, settings) == 0
    export_all(tracer)
    assert deleted(driver, settings) == 1
    assert state_row(driver)["pruned"] == 0


def test_retention_deletes_what_is_not_exported_for_too_long_and_counts_it(
    driver: LifecycleDriver, tracer: Tracer, settings: Settings
) -> None:
    settings = settings.model_copy(update={"retention_succeeded": 1e-9})
    driver.finish(driver.run())
    age(driver, 1.5)
    with capture_logs() as logs:
        assert deleted(driver, settings) == 1
    assert state_row(driver)["pruned"] == 2
    assert [line["spans"] for line in logs if line["event"] == "spans_deleted_unexported"] == [2]


def test_retention_waits_for_no_export_that_nothing_runs(
    driver: LifecycleDriver, tracer: Tracer, settings: Settings
) -> None:
    settings = settings.model_copy(update={"retention_succeeded": 1e-9})
    driver.finish(driver.run())
    age(driver, 0.5)
    driver.sql("UPDATE tracing_state SET seen_at = now() - interval '2 hours'")
    assert deleted(driver, settings) == 1


def test_deletion_reads_nothing_for_traces_that_are_off(driver: LifecycleDriver) -> None:
    driver.finish(task := driver.run())
    with driver.engine.begin() as connection:
        plans = plans_of(connection, lambda: state.count_pruned(connection, [task]))
    assert [plan["Query Text"].strip()[:9] for plan in plans] == ["WITH lost"]
    reading = [node for plan in plans for node in every_node(plan) if node.get("Relation Name") in state.MARKED]
    assert {node["Actual Loops"] for node in reading} == {0}


def test_idle_round_is_one_statement_and_moves_nothing(driver: LifecycleDriver, tracer: Tracer) -> None:
    export_all(tracer)
    statements: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *more: Any) -> None:
        statements.append(statement)

    event.listen(driver.engine, "before_cursor_execute", note)
    try:
        tracer.run_once()
    finally:
        event.remove(driver.engine, "before_cursor_execute", note)
    assert len(statements) == 1


def test_looking_for_work_reads_one_place_however_large_the_backlog(driver: LifecycleDriver, tracer: Tracer) -> None:
    for table, columns in {"steps": "kind, name, status, request_hash, claim", "executions": "worker_id"}.items():
        values = "'wait', 'w', 'finished', '', 1" if table == "steps" else f"'{driver.worker}'"
        number = "number" if table == "steps" else "claim"
        change(
            driver,
            f"INSERT INTO {table} (task_id, {number}, {columns}, finished_at, ended_in) "
            f"SELECT minion_uuidv7(), n, {values}, now(), n FROM generate_series(1, 20000) n",
        )
    driver.sql("UPDATE tracing_state SET exported_below = 0")
    with driver.engine.begin() as connection:
        plans = plans_of(connection, lambda: connection.execute(state.STATE, {"most": 500}).all())
    assert sum(map(rows_read, plans)) < 5_000


def test_export_continues_in_a_server_whose_transactions_have_lower_numbers(
    driver: LifecycleDriver, tracer: Tracer, collector: Collector
) -> None:
    """A dump was restored there. What was exported before is not exported again."""
    driver.finish(before := driver.run())
    export_all(tracer)
    driver.sql("UPDATE tracing_state SET exported_below = exported_below + 1000000000")
    driver.finish(after := driver.run())
    with capture_logs() as logs:
        export_all(tracer)
    assert [line["event"] for line in logs].count("tracing_restored") == 1
    assert {task_span(before), task_span(after)} <= by_id(collector).keys()
    assert len(collector.spans()) == collector.exports() == 4
    driver.finish(driver.run())
    export_all(tracer)
    assert len(collector.spans()) == collector.exports() == 6


def test_metrics_say_how_late_the_export_is(driver: LifecycleDriver, tracer: Tracer) -> None:
    driver.finish(driver.run())
    age(driver, 1)
    assert state_row(driver)["age"] > 0
    export_all(tracer)
    assert (state_row(driver)["age"], state_row(driver)["exported"]) == (0.0, 2)


def test_metrics_have_no_age_while_nothing_exports(driver: LifecycleDriver, tracer: Tracer) -> None:
    """After traces are switched off, nothing is late."""
    driver.finish(driver.run())
    driver.sql("UPDATE tracing_state SET seen_at = now() - interval '2 hours'")
    names = {family.name for family in driver.call(metrics.read)}
    assert metrics.TRACE_AGE not in names
    assert "minions_trace_spans" in names


@pytest.mark.parametrize("moment", ["infinity", "-infinity"])
def test_metrics_ignore_infinite_times_of_workers(driver: LifecycleDriver, tracer: Tracer, moment: str) -> None:
    write(driver, task := driver.run(), 1, step(1, finished_at=moment))
    driver.finish(task)
    assert 0.0 <= state_row(driver)["age"] < 3600.0


def test_export_that_fails_is_still_one_that_runs(
    driver: LifecycleDriver, tracer: Tracer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise retention would not wait for it, and no alert would say that it is late."""
    driver.finish(driver.run())
    driver.sql("UPDATE tracing_state SET seen_at = now() - interval '2 hours'")
    monkeypatch.setattr(tracing, "rows_of", lambda *_, **__: iter([("claim", {})]))
    with pytest.raises(KeyError):
        tracer.run_once()
    assert state_row(driver)["age"] is not None
