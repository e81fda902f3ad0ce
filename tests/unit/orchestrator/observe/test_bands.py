"""Comparison of versions by few tasks: what is much worse is found soon, and what is as good as allowed hardly ever."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from orchestrator.observe.bands import ALPHA, Sample, alpha_of, costs_more, fails_more, look, scores_less, student


def failures(count: int, failed: int) -> Sample:
    return Sample(count, failed, failed)


def sample(*values: float) -> Sample:
    return Sample(len(values), sum(values), sum(value * value for value in values))


def test_quantiles_are_those_of_the_literature() -> None:
    for alpha, freedom, quantile in ((0.05, 10, 1.812), (0.001, 10, 4.144), (0.025, 19, 2.093), (0.01, 100, 2.364)):
        assert student(alpha, freedom) == pytest.approx(quantile, rel=0.002)


@pytest.mark.parametrize(
    ("canary", "baseline", "expected"),
    [
        (failures(20, 20), failures(20, 0), True),
        (failures(20, 6), failures(180, 2), True),
        (failures(20, 1), failures(180, 2), False),
        (failures(20, 0), failures(20, 20), False),
        (failures(20, 20), failures(20, 20), False),
        (failures(200, 20), failures(200, 10), False),
    ],
)
def test_failures_are_compared_with_a_margin(canary: Sample, baseline: Sample, expected: bool) -> None:
    assert fails_more(canary, baseline, 0.05, 0.025) is expected


def test_costs_and_scores_are_compared_with_a_margin() -> None:
    cheap, dear, wild = sample(*[1.0, 1.1] * 10), sample(*[2.0, 2.1] * 10), sample(*[0.0] * 19, 60.0)
    assert costs_more(dear, cheap, 0.5, 0.025)
    assert not costs_more(dear, cheap, 1.0, 0.025)
    assert not costs_more(wild, cheap, 0.5, 0.025), "one expensive task proves nothing"
    assert costs_more(sample(*[0.01] * 20), sample(*[0.0] * 20), 0.5, 0.025), "constant costs"
    good, bad = sample(*[0.9, 0.8] * 10), sample(*[0.6, 0.7] * 10)
    assert scores_less(bad, good, 0.1, 0.025)
    assert not scores_less(bad, good, 0.2, 0.025)
    assert not scores_less(good, bad, 0.0, 0.025)


def test_comparisons_become_rarer_and_stricter() -> None:
    assert [look(count, 20) for count in (0, 19, 20, 24, 25, 31, 32, 40, 2000)] == [0, 0, 1, 1, 2, 2, 3, 4, 21]
    assert sum(alpha_of(number) for number in range(1, 10_000)) == pytest.approx(ALPHA, rel=1e-3)


def test_few_cheap_tasks_of_the_active_version_prove_nothing() -> None:
    """A large share leaves few tasks to compare with, and these may lack the expensive ones by chance."""
    usual, all_cheap = sample(*[1.0] * 180, *[100.0] * 20), sample(*[1.0] * 19, 1.01)
    assert not costs_more(usual, all_cheap, 0.5, 0.025)
    assert not scores_less(sample(*[0.7] * 5), sample(*[1.0, 0.6] * 50), 0.0, 0.025)


def rolled_back(rate: Callable[[bool], float], *, trials: int = 200, tasks: int = 1000) -> float:
    """Return the share of canaries that are rolled back when they get a tenth of these tasks."""
    chance, found = random.Random(1), 0
    for _ in range(trials):
        counts = {True: [0, 0], False: [0, 0]}
        seen = 0
        for _ in range(tasks):
            side = chance.random() < 0.1
            counts[side][0] += 1
            counts[side][1] += chance.random() < rate(side)
            number = look(min(counts[True][0], counts[False][0]), 20)
            if number > seen:
                seen = number
                if fails_more(failures(*counts[True]), failures(*counts[False]), 0.05, alpha_of(number)):
                    found += 1
                    break
    return found / trials


def test_repeated_comparisons_are_seldom_wrong_and_find_what_is_broken() -> None:
    assert rolled_back(lambda canary: 0.02) == 0
    assert rolled_back(lambda canary: 0.1 if canary else 0.05) <= ALPHA
    assert rolled_back(lambda canary: 0.4 if canary else 0.02) > 0.99
