"""Figures of evaluations: intervals, pass^k, JUnit."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest

from orchestrator.cases.report import Report, compare, junit_of, parse_report, pass_k
from shared.errors import InvalidInput


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


USAGE = {"seconds": 1.0, "dollars": 0.0, "tokens": 0, "steps": 1}
RESULT = {"case": "a", "trial": 1, "passed": True, "faults": [], "usage": USAGE, "steps": []}


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({}, "results"),
        ({"minions_report": 2, "results": []}, "minions_report"),
        ({"results": [{**RESULT, "usage": {}}]}, r"results\.0\.usage\.seconds"),
        ({"results": [{**RESULT, "steps": [{"kind": "wait"}]}]}, r"results\.0\.steps\.0\.name"),
    ],
)
def test_report_that_is_none_is_refused_with_its_place(fields: dict[str, Any], place: str) -> None:
    with pytest.raises(InvalidInput, match=rf"a\.json: is not a report .*{place}"):
        parse_report({"minions_report": 1, "agent": "A", "level": "judge", **fields}, where="a.json")


def test_reports_of_different_cases_are_compared() -> None:
    a, b = (
        parse_report({"minions_report": 1, "agent": "A", "level": "replay", "results": results}, where=name)
        for name, results in (("a", [RESULT]), ("b", [{**RESULT, "case": "b"}]))
    )
    found = compare(a, b)
    assert (found["cases"], found["only_a"], found["only_b"], found["worse"]) == ([], ["a"], ["b"], True)
    assert compare(a.model_copy(update={"results": []}), b)["worse"] is False
