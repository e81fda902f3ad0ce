"""Pauses between attempts."""

from __future__ import annotations

from minions.backoff import exponential, jittered


def test_exponential_pauses_double_up_to_the_longest():
    pauses = [exponential(failures, first=0.2, longest=5.0) for failures in (0, 1, 2, 3, 6, 10_000)]
    assert pauses == [0.2, 0.2, 0.4, 0.8, 5.0, 5.0]


def test_jittered_pauses_differ_and_stay_in_their_share():
    pauses = {jittered(10.0, 0.2) for _ in range(100)}
    assert len(pauses) > 90
    assert all(8.0 <= pause <= 10.0 for pause in pauses)
