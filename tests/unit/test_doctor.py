"""What `minion doctor` says about settings."""

from __future__ import annotations

import pytest

from orchestrator.commands.doctor import _sentry
from shared.settings import Settings


@pytest.mark.parametrize(
    ("dsn", "verdict", "found"),
    [
        ("", "ok", "off"),
        ("https://key@sentry.example.com/1", "ok", "on"),
        ("nonsense", "failed", "no address like"),
        ("https://sentry.example.com/1", "failed", "no address like"),
    ],
)
def test_an_address_of_sentry_that_no_process_starts_with(
    monkeypatch: pytest.MonkeyPatch, dsn: str, verdict: str, found: str
) -> None:
    monkeypatch.setenv("SENTRY_DSN", dsn)
    finding = _sentry(Settings())
    assert finding.verdict == verdict
    assert found in finding.found
