"""The result of a check of `minion doctor`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """Result of one check.

    Attributes:
        what: the subject.
        verdict: ok, warning or failed.
        found: the facts.
        advice: why they matter, and what to do.
    """

    what: str
    verdict: str
    found: str
    advice: str = ""


def judged(what: str, found: str, *, warning: str = "", failed: str = "") -> Finding:
    """Return a finding whose verdict follows from the advice that is not empty; ok without one."""
    verdict = "failed" if failed else "warning" if warning else "ok"
    return Finding(what, verdict, found, failed or warning)
