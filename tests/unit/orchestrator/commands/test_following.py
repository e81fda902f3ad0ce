"""Output of `minion follow`."""

from __future__ import annotations

from typing import Any

import pytest

from minions import TaskEvent
from orchestrator.commands.following import show_events

AT = "2026-01-01T10:00:00+00:00"


def event(kind: str, /, **data: Any) -> TaskEvent:
    return TaskEvent(id=1, type=kind, data={"at": AT, **data})


def test_streamed_text_and_events_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    show_events(
        "the-id",
        [
            event("step.started", step=1, kind="model_call", name="[bold]m"),
            event("step.text", step=1, **{"from": 0}, text="Half of "),
            event("step.text", step=1, **{"from": 8}, text="[it]\nno"),
            event("step.restarted", step=1),
            event("step.text", step=1, **{"from": 0}, text="All"),
            event("step.text", step=1, **{"from": 6}, text=" it."),
            event("step.finished", step=1, kind="model_call", name="m", output={}),
            event("task.waiting", reason="approval"),
            event("task.failed", error={"message": "No."}),
        ],
    )
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = [line if line[:1] not in "012" else line.split(" ", 1)[1] for line in shown.err.splitlines()]
    assert lines == [
        "task the-id",
        "step 1 started model_call [bold]m",
        "│ Half of [it]",
        "│ no",
        "step 1 restarted: its streamed text is void",
        "│ All[…] it.",
        "step 1 finished model_call m",
        "waiting (approval)",
        "failed: No.",
    ]
