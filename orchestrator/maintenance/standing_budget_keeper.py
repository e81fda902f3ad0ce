"""The keeper of standing budgets: what died is spent, tasks continue when there is room, alerts are logged."""

from __future__ import annotations

import structlog
from sqlalchemy import Engine

from orchestrator.loops.loop import Loop, seconds_within_lease
from shared.database.connections import autocommit
from shared.settings import Settings
from shared.tasks import standing_budgets, targets

log = structlog.get_logger(__name__)


class StandingBudgetKeeper(Loop):
    """Does for standing budgets what no call of a model does."""

    name = "standing_budget_keeper"

    def __init__(self, settings: Settings, engine: Engine) -> None:
        super().__init__()
        self.settings = settings
        self.statements = autocommit(engine)

    def run_once(self) -> float:
        """Count lost reservations as spent, wake one batch of tasks, log new alerts."""
        with self.statements.connect() as connection:
            standing_budgets.spend_lost(connection)
            woken = standing_budgets.wake(connection)
            alerts = standing_budgets.unlogged_alerts(connection)
        if woken:
            log.info("standing_budgets_have_room", tasks=woken)
        for alert in alerts:
            what = targets.describe(alert.pop("scope"), alert.pop("namespace"), alert.pop("name"))
            ends = alert.pop("period_end").isoformat(timespec="seconds")
            log.warning("standing_budget_alert", budget=what, period_end=ends, **alert)
        return seconds_within_lease(self.settings)
