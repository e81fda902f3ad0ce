"""Events by which monitors learn an execution's outcome and its error."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from celery.events.state import State
from celery.utils.saferepr import saferepr

from shared.errors import FunctionError, InvalidInput, ToolError
from shared.monitor_events import MonitorEvent, ended, rejected, summarise
from workers import monitoring

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


def shown(*events: MonitorEvent) -> str:
    """Return the state that a monitor shows after these events."""
    state = State()
    for number, event in enumerate([MonitorEvent("task-received"), MonitorEvent("task-started"), *events]):
        state.event(
            {
                "type": event.type,
                "uuid": "task.1",
                "hostname": "worker",
                "timestamp": number,
                "local_received": number,
                "clock": number,
                **event.fields,
            }
        )
    return str(state.tasks["task.1"].state)


@pytest.mark.parametrize("outcome", STATES)
def test_outcome_is_shown_as_state(outcome: str) -> None:
    assert shown(ended(outcome, None)) == STATES[outcome]


def test_rejected_message_is_not_shown_as_running() -> None:
    assert shown(rejected(executed=False)) == "REJECTED"
    assert shown(rejected(executed=False), MonitorEvent("task-received"), MonitorEvent("task-started")) == "STARTED"


def test_duplicate_message_keeps_the_state_of_its_execution() -> None:
    assert shown(rejected(executed=True)) == "STARTED"


@pytest.mark.parametrize("outcome", STATES)
def test_duplicate_message_keeps_the_state_of_an_execution_that_has_ended(outcome: str) -> None:
    again = [MonitorEvent("task-received"), MonitorEvent("task-started"), rejected(executed=True, outcome=outcome)]
    assert shown(ended(outcome, None), *again) == STATES[outcome]


def test_events_that_the_consumer_left_are_sent_when_it_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub takes a call that it never makes, because its loop has ended."""
    sent: list[MonitorEvent] = []
    monkeypatch.setattr(monitoring, "send", lambda _, events: sent.extend(events))
    consumer = SimpleNamespace(hub=SimpleNamespace(call_soon=lambda call: None), event_dispatcher=object())
    monitors = monitoring.Monitors(SimpleNamespace(app=None, consumer=consumer))
    monitors.report(ended("handed_back", None))
    monitors.close()
    assert sent == [ended("handed_back", None)]


@pytest.mark.parametrize(
    ("error", "summary"),
    [
        (ToolError("The tool 'act' raised KeyError: Alice Miller"), "tool_error: The tool … raised KeyError"),
        (FunctionError("Function double@1: ValueError: Alice"), "function_error: Function double@1: ValueError"),
        (FunctionError("Function f@1: it ran longer than 2 s.\nAlice"), "function_error: Function f@1"),
        (
            InvalidInput("The input of 'A' does not match its schema: $.name: 'Alice' is too short."),
            "invalid_input: The input of … does not match its schema",
        ),
        (ToolError("No agent is called Alice. Is it spelled right?"), "tool_error: No agent is called Alice"),
        (ToolError("a 'cut off Alice"), "tool_error: a …"),
        (ToolError("""It's "Alice" and 'Al\\'ice' and {"name": {}} Alice}"""), "tool_error: It's … and … and …"),
        (ToolError("alice@example.org has 4111-1111-1111-1111"), "tool_error: … has …"),
        (ToolError("x" * 1000), f"tool_error: {'x' * 200}"),
        (ToolError("two\x1b[31m \x00"), "tool_error: two …"),
        (ToolError(""), "tool_error"),
    ],
)
def test_error_is_summarised_without_data(error: Any, summary: str) -> None:
    assert summarise(error.as_dict()) == summary


def test_report_survives_celery_s_representation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the longest report with the most escapes."""
    error = {"type": "tool_error", "message": "It's \\ and \U0001f600" + "\U0001f600" * 1000}
    event = ended("failed", error)
    monkeypatch.setattr(monitoring, "event_of_claim", lambda *_: event)
    returned = monitoring.report(None, 1, "failed")  # type: ignore[arg-type]
    assert monitoring.event_in(saferepr(returned, monitoring.LONGEST_REPORT)) == event
    monkeypatch.setattr(monitoring, "event_of_claim", lambda *_: None)
    assert monitoring.event_in(saferepr(json.dumps(None), monitoring.LONGEST_REPORT)) is None
