from __future__ import annotations

import pytest
from sqlalchemy.exc import TimeoutError as PoolTimeout

from orchestrator import service
from orchestrator.loops.loop import Loop
from shared.errors import NotConfigured
from shared.settings import Settings

UNREACHABLE = "postgresql://127.0.0.1:1/x"
BROKER = "redis://127.0.0.1:1/0"


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


class Failing(Loop):
    """A loop whose first round fails, and whose second one ends it."""

    name = "failing"

    def __init__(self, fault: Exception) -> None:
        super().__init__()
        self.faults = [fault]

    def run_once(self) -> float:
        for fault in self.faults:
            self.faults.clear()
            raise fault
        self.stopping.set()
        return 0.0


@pytest.mark.parametrize(("fault", "reported"), [(PoolTimeout("all connections are in use"), 0), (KeyError("x"), 1)])
def test_only_faults_of_ours_are_reported_and_the_loop_continues(
    monkeypatch: pytest.MonkeyPatch, fault: Exception, reported: int
):
    captured: list[Exception] = []
    monkeypatch.setattr("sentry_sdk.capture_exception", captured.append)
    loop = Failing(fault)
    loop.start()
    assert loop.stopping.wait(30)
    loop.stop()
    assert len(captured) == reported


def test_all_loops_are_stopped_before_one_is_waited_for(monkeypatch: pytest.MonkeyPatch):
    loops: list[Round] = []
    loops.extend(Round(loops) for _ in range(3))
    for name in ("wait_for_database", "wait_for_broker", "listen", "_serve_api"):
        monkeypatch.setattr(service, name, lambda *_: None)
    monkeypatch.setattr(service, "make_loops", lambda _: loops)
    service.serve(Settings(database_url=UNREACHABLE, redis_url=BROKER, api_key="k" * 16))  # type: ignore[arg-type]
    assert [loop.known for loop in loops] == [[True] * 3] * 3


@pytest.mark.parametrize(
    ("broker", "key", "named"), [("redis://h/x", "k" * 16, "REDIS_URL"), (BROKER, "short", "MINION_API_KEY")]
)
def test_wrong_setting_is_reported_before_any_wait(broker: str, key: str, named: str) -> None:
    settings = Settings(database_url=UNREACHABLE, redis_url=broker, api_key=key, connect_attempts=1)  # type: ignore[arg-type]
    with pytest.raises(NotConfigured, match=named):
        service.serve(settings)
