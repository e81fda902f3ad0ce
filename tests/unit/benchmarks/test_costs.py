from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import costs
from benchmarks.samples import TOTAL


class Clocks:
    """A system and its servers, whose processor time the test sets."""

    worker = 0.0
    postgres = 0.0

    def processor_seconds(self, processes: object) -> dict[str, float]:
        return {"workers": self.worker}

    def server_seconds(self, processes: object) -> dict[str, float]:
        return {"PostgreSQL": self.postgres}


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Servers that use half a core while they are idle."""
    clocks, now = Clocks(), [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds
        clocks.postgres += seconds / 2

    monkeypatch.setattr(costs, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: now[0]))
    return clocks


def test_cost_of_a_task_is_without_the_idle_load_of_the_servers(clocks: Any) -> None:
    measured = costs.Costs(clocks)
    for _ in range(2):
        with measured.of("row", clocks, 100):
            costs.time.sleep(10)
            clocks.worker += 0.3
            clocks.postgres += 0.1
    row = measured.per_task()["row"]
    assert (row["workers"], row["PostgreSQL"]) == (pytest.approx(3.0), pytest.approx(1.0))
    assert row[TOTAL] == pytest.approx(4.0 + row["submitter"])


def test_failed_block_costs_nothing(clocks: Any) -> None:
    measured = costs.Costs(clocks)
    with pytest.raises(TimeoutError), measured.of("row", clocks, 100):
        raise TimeoutError
    assert measured.per_task() == {}
