"""Findings of `minion doctor` about settings."""

from __future__ import annotations

import pytest

from orchestrator.commands.doctor import _broker, _sandbox, _sentry
from shared.notifications import make_redis
from shared.sandbox import Sandbox
from shared.settings import Settings
from shared.tasks.set_aside import COUNTS


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


def test_messages_that_were_set_aside_are_reported(settings: Settings) -> None:
    with make_redis() as broker:
        broker.flushall()
        assert "messages set aside" not in {finding.what for finding in _broker(settings)}
        broker.hset(COUNTS, mapping={"work": 1200, "minion.submit": 3})
        [finding] = [finding for finding in _broker(settings) if finding.what == "messages set aside"]
    assert (finding.verdict, finding.found) == ("warning", "3 of minion.submit, 1,200 of work")
