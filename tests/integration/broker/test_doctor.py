"""`minion doctor` about the broker."""

from __future__ import annotations

from orchestrator.commands.doctor import _broker
from shared.notifications import make_redis
from shared.settings import Settings
from shared.tasks.set_aside import COUNTS


def test_messages_set_aside_are_reported(settings: Settings) -> None:
    with make_redis() as broker:
        broker.flushall()
        assert "messages set aside" not in {finding.what for finding in _broker(settings)}
        broker.hset(COUNTS, mapping={"work": 1200, "minion.submit": 3})
        [finding] = [finding for finding in _broker(settings) if finding.what == "messages set aside"]
    assert (finding.verdict, finding.found) == ("warning", "3 of minion.submit, 1,200 of work")
