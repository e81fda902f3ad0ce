"""Login attempts: how many, counted for whom, in how much memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace
from unittest.mock import patch

import pytest

from orchestrator.api import buckets
from orchestrator.api.login.attempts import PER_MINUTE, Attempts
from shared.errors import TooManyRequests

SECONDS_EACH = 60 / PER_MINUTE


def use_up(limiter: Attempts, address: str | None) -> None:
    for _ in range(PER_MINUTE):
        limiter.count(address)


@pytest.fixture
def clock() -> list[float]:
    return [1000.0]


@pytest.fixture
def limiter(clock: list[float]) -> Iterator[Attempts]:
    with patch.object(buckets, "time", SimpleNamespace(monotonic=lambda: clock[0])):
        yield Attempts()


def test_attempts_come_back_one_by_one(limiter: Attempts, clock: list[float]) -> None:
    use_up(limiter, "192.0.2.1")
    with pytest.raises(TooManyRequests) as refused:
        limiter.count("192.0.2.1")
    assert refused.value.status == 429
    assert refused.value.detail["retry_after"] == SECONDS_EACH
    clock[0] += SECONDS_EACH
    limiter.count("192.0.2.1")
    with pytest.raises(TooManyRequests):
        limiter.count("192.0.2.1")
    clock[0] += 3600
    use_up(limiter, "192.0.2.1")


@pytest.mark.parametrize(
    ("address", "same"),
    [
        ("192.0.2.1", "::ffff:192.0.2.1"),
        ("2001:db8::1", "2001:db8::ffff:1:2:3"),
        (None, None),
    ],
)
def test_addresses_of_one_caller_are_counted_together(limiter: Attempts, address: str, same: str) -> None:
    use_up(limiter, address)
    with pytest.raises(TooManyRequests):
        limiter.count(same)


@pytest.mark.parametrize("other", ["192.0.2.2", "2001:db8:0:1::1", None])
def test_other_addresses_are_not_affected(limiter: Attempts, other: str) -> None:
    use_up(limiter, "192.0.2.1")
    use_up(limiter, "2001:db8::1")
    limiter.count(other)


def test_flood_from_many_addresses_takes_little_memory(limiter: Attempts) -> None:
    with patch.object(buckets, "MOST", 50):
        use_up(limiter, "192.0.2.1")
        for number in range(200):
            limiter.count(f"198.51.{number}.1")
            with suppress(TooManyRequests):
                limiter.count("192.0.2.1")
        assert len(limiter._networks) <= 50
        # The address that keeps trying is not the one that is forgotten.
        with pytest.raises(TooManyRequests):
            limiter.count("192.0.2.1")
