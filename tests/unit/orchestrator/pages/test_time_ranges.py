"""Time ranges of pages: whole hours or days until now."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from orchestrator.pages.time_ranges import RANGES, Last

NOW = datetime(2026, 11, 29, 23, 30, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("last", "begin", "bars"),
    [
        ("24h", datetime(2026, 11, 29, 0, tzinfo=UTC), 24),
        ("7d", datetime(2026, 11, 23, 0, tzinfo=UTC), 6 * 24 + 24),
        ("30d", datetime(2026, 10, 31, 0, tzinfo=UTC), 30),
        ("90d", datetime(2026, 9, 1, 0, tzinfo=UTC), 90),
    ],
)
def test_range_ends_with_the_present_hour_or_day(last: Last, begin: datetime, bars: int) -> None:
    chosen = RANGES[last]
    moments = chosen.moments(NOW)
    assert (chosen.begin(NOW), moments[0], len(moments)) == (begin, begin, bars)
    assert NOW - moments[-1] < chosen.width
    assert {later - earlier for earlier, later in pairwise(moments)} == {chosen.width}


def test_exact_hour_has_begun() -> None:
    assert RANGES["24h"].moments(NOW.replace(minute=0, second=0))[-1] == NOW.replace(minute=0, second=0)
    assert RANGES["24h"].width == timedelta(hours=1)
