"""The budget keeper: tasks that use up their budget of seconds fail, and those whose budget has room again continue."""

from __future__ import annotations

import structlog
from sqlalchemy import Engine

from orchestrator.loops.loop import Loop, seconds_within_lease
from orchestrator.monitors import Monitors
from shared.monitor_events import event_just_ended
from shared.settings import Settings
from shared.tasks import budgets

log = structlog.get_logger(__name__)


class BudgetKeeper(Loop):
    """Enforce budgets where no step of a task does."""

    name = "budget_keeper"

    def __init__(self, settings: Settings, engine: Engine, monitors: Monitors) -> None:
        super().__init__()
        self.settings = settings
        self.engine = engine
        self.monitors = monitors

    def run_once(self) -> float:
        """Fail tasks that run over their time, then wake those that wait for a budget with room."""
        self._fail_overtime()
        with self.engine.begin() as connection:
            budgets.wake_funded(connection)
        return seconds_within_lease(self.settings)

    def _fail_overtime(self) -> None:
        with self.engine.begin() as connection:
            late = budgets.overtime(connection)
        for task_id, error in late:
            with self.engine.begin() as connection:
                failed = budgets.fail_overtime(connection, task_id, error)
                event = event_just_ended(connection, task_id)
            self.monitors.report(event)
            if failed:
                log.info("budget_of_seconds_over", task=str(task_id))
