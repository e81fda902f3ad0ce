"""What a soak run takes for flat."""

from __future__ import annotations

import pytest

from benchmarks.soak import Verdict, judge


@pytest.mark.parametrize(
    ("name", "beginning", "end", "flat"),
    [
        ("memory: orchestrator, MB", 100, 109, True),
        ("memory: orchestrator, MB", 100, 115, False),
        ("memory: Redis, MB", 1, 3, True),
        ("table: tasks, MB", 10, 11, True),
        ("table: tasks, MB", 10, 20, False),
        ("dead rows: task_status", 100, 2000, True),
        ("dead rows: task_status", 5000, 10_000, False),
        ("p95", 40, 60, True),
        ("p95", 200, 400, False),
        ("p95", 400, 40, True),
    ],
)
def test_growth_beyond_the_tolerance_is_not_flat(name: str, beginning: float, end: float, flat: bool) -> None:
    assert Verdict(name, beginning, end).is_flat is flat


def test_first_and_last_third_are_compared() -> None:
    samples = [{"p95": value} for value in (1, 2, 3, 100, 100, 100, 7, 8, 9)]
    assert judge(samples) == [Verdict("p95", 2, 8)]


def test_figure_that_not_all_samples_have_is_left_out() -> None:
    samples = [{"p95": 1.0, "memory: x 2": 1.0}, {"p95": 1.0}, {"p95": 1.0}]
    assert [verdict.name for verdict in judge(samples)] == ["p95"]


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(SystemExit, match="too short"):
        judge([{"p95": 1.0}, {"p95": 1.0}])
