"""Agent versions that an API process remembers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest

from shared.contracts.requests import TaskRequest
from shared.tasks import submission
from shared.tasks.submission import KnownTargets, Target


class Interrupted(dict[Any, Any]):
    """A dictionary whose readers are interrupted by other threads."""

    def __iter__(self) -> Iterator[Any]:
        found = super().__iter__()
        time.sleep(0.001)
        return found


def test_requests_for_more_agents_than_are_known_may_be_simultaneous(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "MOST_KNOWN", 3)
    known, requests = KnownTargets(), [TaskRequest(agent=f"A{number}") for number in range(20)]
    known._targets = Interrupted()

    def remember() -> None:
        for request in requests:
            known.remember(request, Target(uuid4(), request.agent, False, True, None))

    with ThreadPoolExecutor(4) as threads:
        remembering = [threads.submit(remember) for _ in range(4)]
    assert [each.result() for each in remembering] == [None] * 4
    assert sum(known.prepare(each, submitted_by="api", submitter_key="k") is not None for each in requests) == 3
