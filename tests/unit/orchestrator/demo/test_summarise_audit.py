from __future__ import annotations

import json

import pytest


@pytest.fixture
def results(classify):
    """One permissive, one conflicting and one failed result, as `audit-all` collects them."""

    def output(name, spdx, **facts):
        plain = {"bytes": 1000, "files": 2, "native_files": 0, "requirements": ["a"], "licence_files": ["LICENSE"]}
        return {
            "state": "succeeded",
            "agent": "audit-distribution",
            "output": classify(name, "1.0", spdx, "License field", "", {**plain, **facts}),
        }

    cause = {"type": "function_error", "message": "Function normalise_licence@1: ValueError: No licence at all."}
    return [
        output("zeta", "MIT", licence_files=[]),
        output("Alpha", "GPL-3.0-only", native_files=3, missing_files=1),
        {
            "state": "failed",
            "agent": "audit-distribution",
            "input": {"name": "mid", "version": "2.0"},
            "error": {"type": "subtask_failed", "message": "Sub-task failed", "cause": {"error": cause}},
        },
    ]


def test_results_are_counted(summarise, results):
    headline = summarise(results)["headline"]

    assert headline["distributions"] == 3
    assert headline["categories"] == {"strong-copyleft": 1, "failed": 1, "permissive": 1}
    assert (headline["failed"], headline["conflicts"], headline["with_native_code"]) == (1, 1, 1)
    assert (headline["bytes"], headline["files"]) == (2000, 4)


def test_findings_name_surprising_distributions(summarise, results):
    findings = " ".join(summarise(results)["findings"])

    assert "GPL-3.0-only conflicts with a permissive policy: Alpha." in findings
    assert "1 distribution could not be judged: mid." in findings
    assert "require a licence file ship none: zeta." in findings
    assert "missing on disk, in Alpha." in findings


def test_failed_row_shows_the_first_cause(summarise, results):
    row = next(row for row in summarise(results)["rows"] if row["category"] == "failed")

    assert (row["name"], row["version"], row["note"]) == ("mid", "2.0", "No licence at all.")


def test_rows_are_sorted_by_name(summarise, results):
    assert [row["name"] for row in summarise(results)["rows"]] == ["Alpha", "mid", "zeta"]


def test_empty_and_failed_results_are_summarised(summarise, results):
    assert summarise([])["headline"]["distributions"] == 0
    assert summarise([results[2]])["headline"]["failed"] == 1
    assert summarise([{"state": "failed"}])["rows"][0]["name"] == "?"


def test_several_hundred_results_stay_small(summarise, results):
    assert len(json.dumps(summarise(results * 100))) < 60_000
