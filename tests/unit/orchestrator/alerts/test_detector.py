"""What the detector learns from deviations that come back, and from those that do not."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.alerts.detector import Finding, Hour, Signal, Subject


def findings(run: Callable[[int], float], hours: int) -> dict[int, Finding]:
    """Judge run times by the hour, with small variations."""
    subject = Subject((Signal.RUN,))
    found = {}
    for hour in range(hours):
        for finding in subject.judge(Hour(run=run(hour) * (1 + hour % 7 / 50), claims=200)):
            found[hour] = finding
    return found


def test_job_of_every_other_day_is_a_season_after_three_times() -> None:
    begin = 10 * 24
    found = findings(lambda hour: 40.0 if hour > begin and hour % 48 == 5 else 4.0, 4 * 168)
    assert list(found) == [begin + 5, begin + 53, begin + 101]


def test_third_day_of_a_lasting_deviation_is_no_season() -> None:
    found = findings(lambda hour: 40.0 if 300 <= hour < 370 else 4.0, 400)
    assert set(found) == set(range(300, 370))


def test_spike_that_does_not_come_back_is_no_example_two_weeks_later() -> None:
    found = findings(lambda hour: 40.0 if hour in (120, 120 + 336) else 4.0, 4 * 168)
    assert set(found) == {120, 456}
    assert found[456].usual < 6
