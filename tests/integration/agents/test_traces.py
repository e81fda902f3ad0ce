"""The trace of an agent with a model, as a collector receives it."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import text

from minions.testing import MessagesApi, tool_use
from minions.testing import text as reply
from orchestrator.tracing import state
from orchestrator.tracing.tracer import Tracer
from shared.database.connections import transaction
from shared.settings import Settings
from shared.tasks import lifecycle
from tests.conftest import Define
from tests.integration.conftest import ACT, InlineWorker, Tasks
from tests.support.otlp_receiver import attributes, collecting, tree
from tests.support.processes import ROOT, wait_until
from workers import minion

ANYTHING = {"type": "object"}
DEFINITIONS = (
    {**ACT, "name": "find-order", "input_schema": ANYTHING},
    {**ACT, "name": "book-refund", "effect": "unsafe", "input_schema": ANYTHING, "approval": True},
    {**ACT, "name": "print-letter"},
    {
        "kind": "agent",
        "name": "letter-writer",
        "type": "function",
        "tool": "print-letter",
        "config": {"capabilities": ["letters"]},
    },
    {"kind": "tool", "name": "write-letter", "type": "agent", "agent": "letter-writer", "input_schema": ANYTHING},
    {
        "kind": "agent",
        "name": "refund-desk",
        "model": "claude-sonnet-5-5",
        "tools": ["find-order", "write-letter", "book-refund"],
        "config": {"capabilities": ["support"]},
    },
)
ASKED = {"do": "answer", "answer": 1}
SCRIPT = [
    tool_use(("find-order", ASKED)),
    tool_use(("write-letter", ASKED)),
    tool_use(("book-refund", ASKED)),
    reply("Done."),
]


@pytest.fixture
def worker(define: Define, messages_api: MessagesApi, inline_worker: InlineWorker) -> InlineWorker:
    define(*DEFINITIONS)
    messages_api.script = SCRIPT
    with inline_worker.engine.begin() as connection:
        connection.execute(text("UPDATE workers SET capabilities = '{support,letters}'"))
    return inline_worker


def test_trace_is_the_documented_one(worker: InlineWorker, tasks: Tasks, settings: Settings) -> None:
    """It is the same if messages are delivered twice, and if a journal is read back in each of its claims."""
    documented = (ROOT / "docs" / "tracing.md").read_text(encoding="utf-8")
    with collecting() as collector:
        chosen = settings.model_copy(update={"otel_exporter_otlp_endpoint": collector.url})
        tracer = Tracer(chosen, tasks.engine)
        tracer.run_once()
        task = tasks.submit("refund-desk", {"order": "A-17"})
        for _ in range(3):
            deliver_twice(worker)
        tasks.wait_for(task, "waiting")
        with transaction() as connection:
            lifecycle.decide(connection, task, "approve", who="test")
        deliver_twice(worker)
        assert tasks.get(task)["state"] == "succeeded"
        wait_until(lambda: (tracer.run_once(), state.next_range(tasks.engine))[1] is None, "all is exported")
        tracer.close()
    spans = collector.spans()
    shown = tree(spans)
    assert f"```text\n{shown}\n```" in documented, shown
    assert len(spans) == collector.exports()
    [first, *_] = [attributes(span) for span in spans if span.name.startswith("chat ")]
    assert first["gen_ai.usage.input_tokens"] == 110
    assert first["gen_ai.usage.cache_read.input_tokens"] == 100
    assert first["gen_ai.response.finish_reasons"] == ["tool_call"]


def deliver_twice(worker: InlineWorker) -> None:
    for message in worker.dispatch():
        results: list[Any] = [minion.run(message.task_id, message.claim, worker.id) for _ in range(2)]
        assert len(results) == 2
