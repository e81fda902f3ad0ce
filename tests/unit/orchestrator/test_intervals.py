"""Wilson's interval has the figures of the literature."""

from __future__ import annotations

import pytest

from orchestrator.intervals import wilson


@pytest.mark.parametrize(
    ("passed", "trials", "interval"),
    [
        # Newcombe 1998, table II: 81 of 263, and 0 of 20.
        (81, 263, (0.2553, 0.3662)),
        (0, 20, (0.0, 0.1611)),
        (0, 10, (0.0, 0.2775)),
        (10, 10, (0.7225, 1.0)),
        (5, 10, (0.2366, 0.7634)),
    ],
)
def test_wilson_interval_has_published_values(passed: int, trials: int, interval: tuple[float, float]) -> None:
    assert wilson(passed / trials, trials) == pytest.approx(interval, abs=1e-4)


def test_nothing_is_known_without_trials() -> None:
    assert wilson(0.0, 0) == (0.0, 1.0)
