"""What tasks do, as lines in a terminal: all tasks that begin from now on, their steps, errors and costs."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID

from rich.text import Text
from sqlalchemy import Connection, Engine, bindparam, text

from minions import TaskEvent
from orchestrator.commands.following import event_line
from orchestrator.commands.output import console, styled
from orchestrator.task_events import StreamEvent, read_news

LATE = timedelta(seconds=30)
"""The longest time between the acceptance of a task and its commit."""
AT_ONCE = 50
NOW = text("SELECT clock_timestamp()")
NEW = text(
    "SELECT id, agent_name, created_at FROM tasks WHERE created_at > :since AND NOT id = ANY (:known) "
    "ORDER BY id LIMIT :most"
).bindparams(bindparam("most", AT_ONCE))
FAILED = frozenset({"task.failed", "task.expired"})
DECISIONS = frozenset({"approval", "answer"})
"""Reasons for which a task waits for a person."""


class Activity:
    """The tasks of an installation since this object was made."""

    def __init__(self, engine: Engine, pages: str) -> None:
        self.engine = engine
        self.pages = pages
        self._agents: dict[UUID, str] = {}
        self._cursors: dict[UUID, int] = {}
        self._costs: dict[UUID, int] = {}
        self._known: dict[UUID, datetime] = {}
        with engine.connect() as connection:
            self._began: datetime = connection.execute(NOW).scalar_one()

    def show(self) -> None:
        """Print what has happened since the last call."""
        with self.engine.connect() as connection:
            self._find(connection)
            cursors = [*self._cursors.items()][:AT_ONCE]
            news = read_news(connection, cursors) if cursors else []
        for (task, after), each in zip(cursors, news, strict=True):
            self._show(task, each.events)
            del self._cursors[task]
            if each.over:
                del self._agents[task]
            else:
                self._cursors[task] = after + len(each.events)  # at the end: all tasks take turns

    def _find(self, connection: Connection) -> None:
        """Add the tasks that are new, and forget old ones that cannot be found again."""
        since = max(self._began, connection.execute(NOW).scalar_one() - LATE)
        self._known = {task: created for task, created in self._known.items() if created > since}
        for row in connection.execute(NEW, {"since": since, "known": [*self._known]}):
            self._known[row.id] = row.created_at
            self._agents[row.id] = row.agent_name or "-"
            self._cursors[row.id] = 0

    def _show(self, task: UUID, events: list[StreamEvent]) -> None:
        for event in events:
            self._costs[task] = self._costs.get(task, 0) + event.data.get("cost_microdollars", 0)
            name = styled((f"{self._agents[task]} {str(task)[-4:]} ", "bold"))
            line = event_line(TaskEvent(id=event.number, type=event.type, data=event.data))
            console.print(name + line + self._facts(task, event))
            if event.type in FAILED or event.data.get("reason") in DECISIONS:
                console.print(styled(f"  {self.pages}/tasks/{task}"), soft_wrap=True)

    def _facts(self, task: UUID, event: StreamEvent) -> Text:
        spent = self._costs.pop(task) if event.final else event.data.get("cost_microdollars", 0)
        return styled((f"  ${spent / 1_000_000:.6f}", "dim")) if spent else Text()
