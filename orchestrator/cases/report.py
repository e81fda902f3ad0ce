"""Reports of runs, and their comparison.

`pass^k` is the probability that k trials of a case in a row all pass, as tau-bench defines it (Yao et al., 2024): the
mean over the cases of C(passed, k) / C(trials, k).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestrator.intervals import wilson
from shared.contracts.strict_json import digest
from shared.contracts.strict_model import faults_of
from shared.errors import InvalidInput

FORMAT = 1
INVISIBLE = {code: None for code in range(32) if chr(code) not in "\t\n\r"} | {0xFFFE: None, 0xFFFF: None}
"""Characters that XML cannot hold."""


class Usage(BaseModel):
    """What a trial used."""

    steps: int
    tokens: int
    dollars: float
    seconds: float


class Step(BaseModel):
    """A step of a trial."""

    kind: str
    name: str
    request: Any = None


class Result(BaseModel):
    """One trial of a case."""

    model_config = ConfigDict(extra="allow")

    case: str
    trial: int
    passed: bool
    faults: list[str]
    usage: Usage
    steps: list[Step]


class Report(BaseModel):
    """A run of cases, as `--report` writes it."""

    model_config = ConfigDict(extra="allow")

    minions_report: int = Field(ge=1, le=FORMAT)
    agent: str
    level: str
    system_prompt: str | None = None
    results: list[Result]


def parse_report(data: Any, *, where: str) -> Report:
    """Return a report from plain data.

    Raises:
        InvalidInput: it is none.
    """
    try:
        return Report.model_validate(data)
    except ValidationError as error:
        raise InvalidInput(
            f"{where}: is not a report of `minion eval --report`: " + "; ".join(faults_of(error)) + "."
        ) from None


def summary_of(results: Sequence[Result]) -> dict[str, Any]:
    """Return the pass rate with its interval, pass^k, and the use of all trials."""
    by_case: dict[str, list[bool]] = defaultdict(list)
    for result in results:
        by_case[result.case].append(result.passed)
    passed, trials = sum(result.passed for result in results), len(results)
    rate = passed / trials if trials else 0.0
    low, high = wilson(rate, trials)
    seconds = sorted(result.usage.seconds for result in results)
    return {
        "cases": len(by_case),
        "trials": trials,
        "passed": passed,
        "rate": rate,
        "low": low,
        "high": high,
        "pass_k": [pass_k(list(by_case.values()), k) for k in range(1, min(map(len, by_case.values()), default=0) + 1)],
        "dollars": round(sum(result.usage.dollars for result in results), 6),
        "tokens": sum(result.usage.tokens for result in results),
        "median_seconds": seconds[len(seconds) // 2] if seconds else 0.0,
    }


def pass_k(trials: Sequence[Sequence[bool]], k: int) -> float:
    """Return the probability that k trials of a case all pass, as the mean over the cases."""
    return sum(math.comb(sum(each), k) / math.comb(len(each), k) for each in trials) / len(trials)


def compare(a: Report, b: Report) -> dict[str, Any]:
    """Return both summaries, and the cases that do not pass equally often, with their first different step."""
    if a.level != b.level:
        raise InvalidInput(
            f"The reports are of different levels, {a.level} and {b.level}, so they cannot be compared. Run the cases "
            "at the same level."
        )
    ours, theirs = _by_case(a), _by_case(b)
    cases = [
        {
            "case": case,
            "a": f"{sum(each.passed for each in ours[case])}/{len(ours[case])}",
            "b": f"{sum(each.passed for each in theirs[case])}/{len(theirs[case])}",
            "worse": _rate(theirs[case]) < _rate(ours[case]),
            "better": _rate(theirs[case]) > _rate(ours[case]),
            "faults": next((each.faults for each in theirs[case] if not each.passed), []),
            "difference": first_step(_shown(ours[case]), _shown(theirs[case]), a, b),
        }
        for case in sorted(ours.keys() & theirs.keys())
    ]
    return {
        "a": {"agent": a.agent, **summary_of(a.results)},
        "b": {"agent": b.agent, **summary_of(b.results)},
        "cases": cases,
        "only_a": sorted(ours.keys() - theirs.keys()),
        "only_b": sorted(theirs.keys() - ours.keys()),
        "worse": any(case["worse"] for case in cases) or bool(ours.keys() - theirs.keys()),
    }


def first_step(ours: Result, theirs: Result, a: Report, b: Report) -> dict[str, Any] | None:
    """Return the first step in which two runs differ, with both requests; of model calls, with both prompts."""
    for place in range(max(len(ours.steps), len(theirs.steps))):
        pair = [result.steps[place].model_dump() if place < len(result.steps) else None for result in (ours, theirs)]
        if digest(pair[0]) != digest(pair[1]):
            prompts = {"system_prompts": [a.system_prompt, b.system_prompt]}
            of_model = any(step and step["kind"] == "model_call" for step in pair)
            return {"step": place + 1, "a": pair[0], "b": pair[1], **(prompts if of_model or place else {})}
    return None


def junit_of(report: Report) -> str:
    """Return a report in the format of JUnit, which CI systems show."""
    failures = sum(not result.passed for result in report.results)
    seconds = sum(result.usage.seconds for result in report.results)
    agent = _plain(report.agent)
    attributes = {"name": f"{agent} ({report.level})", "tests": str(len(report.results))}
    suite = ElementTree.Element("testsuite", attributes | {"failures": str(failures), "time": f"{seconds:.3f}"})
    for result in report.results:
        name = _plain(result.case) + (f" (trial {result.trial})" if result.trial > 1 else "")
        case = ElementTree.SubElement(
            suite, "testcase", {"classname": agent, "name": name, "time": f"{result.usage.seconds:.3f}"}
        )
        if not result.passed:
            failure = ElementTree.SubElement(case, "failure", {"message": _plain(result.faults[0])})
            failure.text = _plain("\n".join(result.faults))
    suites = ElementTree.Element("testsuites")
    suites.append(suite)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def _plain(text: str) -> str:
    return text.translate(INVISIBLE).encode("utf-8", "replace").decode()


def _by_case(report: Report) -> dict[str, list[Result]]:
    found: dict[str, list[Result]] = defaultdict(list)
    for result in report.results:
        found[result.case].append(result)
    return found


def _rate(results: Sequence[Result]) -> float:
    return sum(result.passed for result in results) / len(results)


def _shown(results: Sequence[Result]) -> Result:
    """Return the trial to show: one that failed, if there is one."""
    return next((result for result in results if not result.passed), results[0])
