from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator import service
from orchestrator.loops.loop import Loop


class Round(Loop):
    """A loop that records which loops had been stopped when it was waited for."""

    name = "round"

    def __init__(self, all_loops: list[Round]) -> None:
        super().__init__()
        self.all_loops = all_loops
        self.known: list[bool] = []

    def run_once(self) -> float:
        return 60.0

    def close(self) -> None:
        self.known = [loop.stopping.is_set() for loop in self.all_loops]


def test_all_loops_are_stopped_before_one_is_waited_for(monkeypatch: pytest.MonkeyPatch):
    loops: list[Round] = []
    loops.extend(Round(loops) for _ in range(3))
    for name in ("wait_for_database", "wait_for_broker", "listen", "_serve_api"):
        monkeypatch.setattr(service, name, lambda *_: None)
    monkeypatch.setattr(service, "make_loops", lambda _: loops)
    settings: Any = SimpleNamespace()
    service.serve(settings)
    assert [loop.known for loop in loops] == [[True] * 3] * 3
