"""Limits in the headers of servers that speak the Chat Completions API."""

from __future__ import annotations

import pytest

from workers.llm.chat.limits import read_reports, seconds_in


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("1s", 1), ("6m0s", 360), ("20ms", 0.02), ("2h3m", 7380), ("1d", 86_400), ("7.66s", 7.66), ("12", 12), ("", 0)],
)
def test_durations_are_read(written: str, seconds: float) -> None:
    assert seconds_in(written) == seconds


def test_unreadable_duration_is_none() -> None:
    assert seconds_in("soon") == 0


def test_limits_of_requests_and_tokens_are_read() -> None:
    headers = {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "150000",
        "x-ratelimit-remaining-tokens": "149984",
        "x-ratelimit-reset-tokens": "6m0s",
    }
    reports = read_reports(headers)
    assert (reports["requests"].limit, reports["requests"].remaining, reports["requests"].period) == (60, 59, 60)
    assert (reports["tokens"].limit, reports["tokens"].full_after) == (150_000, 360)


@pytest.mark.parametrize("limit", ["0", "-1", "many"])
def test_unreadable_limits_are_left_out(limit: str) -> None:
    assert read_reports({"x-ratelimit-limit-requests": limit, "x-ratelimit-remaining-requests": "1"}) == {}
