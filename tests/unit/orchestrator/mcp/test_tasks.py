"""The times that clients read in a task: how long it is kept, and when to look again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from minions.aio.task import AsyncTask
from orchestrator.mcp.callers import Terms
from orchestrator.mcp.tasks import _task

DAY_MS = 86_400_000


def terms(**days: float) -> Terms:
    kept = dict.fromkeys(("succeeded", "failed", "cancelled", "expired"), 0.0) | days
    return Terms({"permissions": [], "whole_namespace": True, "namespace": None, "retention_days": kept})


def shown(known: Terms, state: str = "running", age: float = 0.0) -> dict[str, Any]:
    created = datetime.now(UTC) - timedelta(seconds=age)
    times = {"created_at": created, "updated_at": created, "finished_at": created if state != "running" else None}
    return _task(AsyncTask(id="1", agent="A", state=state, labels={}, root_id="1", **times), known, "working")


def test_task_is_kept_for_the_days_of_its_state() -> None:
    known = terms(succeeded=30, failed=90)
    assert shown(known, "succeeded")["ttlMs"] == 30 * DAY_MS
    assert shown(known, "failed")["ttlMs"] == 90 * DAY_MS
    assert shown(known, "cancelled")["ttlMs"] is None
    assert shown(known)["ttlMs"] == pytest.approx(30 * DAY_MS, abs=60_000)  # it may succeed now
    assert shown(terms())["ttlMs"] is None


def test_task_that_has_not_changed_for_a_minute_is_polled_less_often() -> None:
    assert [shown(terms(), age=age)["pollIntervalMs"] for age in (0, 50, 70)] == [1000, 1000, 5000]
