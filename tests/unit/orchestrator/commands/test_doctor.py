"""Findings of `minion doctor` about settings."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from orchestrator.commands.doctor import _safely, _sandbox, _secret_key, _sentry, _traces
from shared.sandbox import Sandbox
from shared.settings import Settings
from tests.support.otlp_receiver import Answer, collecting


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


@pytest.mark.parametrize(
    ("answer", "verdict", "found"),
    [
        ((200, {"Content-Type": "application/x-protobuf"}, b""), "ok", "answers"),
        ((401, {}, b""), "warning", "it answers 401"),
        ((400, {}, b""), "warning", "it answers 400"),
        ((200, {"Content-Type": "text/html"}, b"<html>"), "warning", "none of OTLP"),
    ],
)
def test_endpoint_of_traces_is_asked(answer: Answer, verdict: str, found: str) -> None:
    with collecting(lambda spans: answer) as collector:
        [finding] = _traces(Settings(otel_exporter_otlp_endpoint=collector.url))
    assert (finding.what, finding.verdict) == ("traces", verdict)
    assert found in finding.found
    assert not collector.kept


def test_audit_log_is_not_called_signed_beside_a_wrong_key() -> None:
    [finding] = _safely(_secret_key, Settings(secret_key=SecretStr("no key")))
    assert (finding.what, finding.verdict) == ("secret_key", "failed")
    assert "MINION_SECRET_KEY is not a key" in finding.found


def test_traces_that_are_off_are_no_fault() -> None:
    [finding] = _traces(Settings())
    assert (finding.verdict, finding.found) == ("ok", "off (OTEL_EXPORTER_OTLP_ENDPOINT is not set)")
