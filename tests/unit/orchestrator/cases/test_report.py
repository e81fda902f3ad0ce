"""Figures of evaluations: intervals, pass^k, JUnit."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from orchestrator.cases.report import Report, junit_of, parse_report, pass_k, wilson
from shared.errors import InvalidInput


@pytest.mark.parametrize(
    ("passed", "trials", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (0, 0, 0.0, 1.0)],
)
def test_wilson_interval_has_published_values(passed: int, trials: int, low: float, high: float) -> None:
    assert wilson(passed, trials) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_pass_k_is_the_mean_over_cases() -> None:
    trials = [[True, True, False, True], [True, True, True, True]]
    assert pass_k(trials, 1) == pytest.approx((3 / 4 + 1) / 2)
    assert pass_k(trials, 2) == pytest.approx((3 / 6 + 1) / 2)
    assert pass_k(trials, 4) == pytest.approx(0.5)


def test_junit_leaves_out_what_xml_cannot_hold() -> None:
    usage = {"seconds": 1.0, "dollars": 0.0, "tokens": 0, "steps": 1}
    result = {"case": "a\x07", "trial": 2, "passed": False, "faults": ["<b>\x00\ud800"], "usage": usage, "steps": []}
    report = Report.model_validate({"minions_report": 1, "agent": "A", "level": "judge", "results": [result]})
    [[case]] = ElementTree.fromstring(junit_of(report))
    assert (case.get("name"), case[0].get("message")) == ("a (trial 2)", "<b>?")


def test_report_that_is_none_is_refused_with_its_place() -> None:
    with pytest.raises(InvalidInput, match=r"a\.json: is not a report .* results"):
        parse_report({"minions_report": 1, "agent": "A", "level": "judge"}, where="a.json")
