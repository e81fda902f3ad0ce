"""What `minion doctor` says about settings."""

from __future__ import annotations

import pytest

from orchestrator.commands.doctor import _broker, _sentry
from shared.hints import make_redis
from shared.set_aside import COUNTS
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


def test_messages_that_were_set_aside_are_reported(settings: Settings) -> None:
    with make_redis() as broker:
        broker.flushall()
        assert "messages set aside" not in {finding.what for finding in _broker(settings)}
        broker.hset(COUNTS, mapping={"work": 1200, "minion.submit": 3})
        [finding] = [finding for finding in _broker(settings) if finding.what == "messages set aside"]
    assert (finding.verdict, finding.found) == ("warning", "3 of minion.submit, 1,200 of work")
