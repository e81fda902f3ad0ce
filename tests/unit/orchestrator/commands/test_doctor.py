"""Findings of `minion doctor` about settings."""

from __future__ import annotations

import pytest

from orchestrator.commands.doctor import _sandbox, _sentry
from shared.sandbox import Sandbox
from shared.settings import Settings


@pytest.mark.parametrize(
    ("dsn", "verdict", "found"),
    [
        ("", "ok", "off"),
        ("https://key@sentry.example.com/1", "ok", "on"),
        ("nonsense", "failed", "not an address like"),
        ("https://sentry.example.com/1", "failed", "not an address like"),
    ],
)
def test_sentry_dsn_that_stops_processes_is_reported(
    monkeypatch: pytest.MonkeyPatch, dsn: str, verdict: str, found: str
) -> None:
    monkeypatch.setenv("SENTRY_DSN", dsn)
    finding = _sentry(Settings())
    assert finding.verdict == verdict
    assert found in finding.found


def test_packages_that_cannot_be_preloaded_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    with Sandbox(preload=["json", "no_such_package"]) as sandbox:
        monkeypatch.setattr("shared.functions.runner.get_sandbox", lambda: sandbox)
        findings = {finding.what: finding for finding in _sandbox(Settings())}
    assert findings["sandbox"].verdict == "ok"
    assert findings["package json"].verdict == "ok"
    assert findings["package no_such_package"].verdict == "failed"
    assert "No module named 'no_such_package'" in findings["package no_such_package"].found
