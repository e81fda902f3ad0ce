"""The same load and the same faults on plain Celery, and the number of tasks it loses or doubles."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import make_url, text

from tests.chaos.celery_app import make_app
from tests.chaos.injected import copy_messages
from tests.chaos.system import SLOTS, System, Timing, seconds
from tests.support.processes import Process

TABLE = text("CREATE TABLE plain_effects (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, number integer NOT NULL)")
DONE = text("SELECT count(DISTINCT number) FROM plain_effects")
DOUBLED = text("SELECT count(*) FROM (SELECT number FROM plain_effects GROUP BY number HAVING count(*) > 1) AS doubled")


@dataclass(frozen=True)
class Comparison:
    """The outcome of a scenario on plain Celery.

    Attributes:
        lost: tasks that were submitted without an error, and whose effect never came.
        doubled: tasks whose effect was committed more than once.
        unexpected: workers that ended although the test did not end them; they were restarted.
    """

    lost: int
    doubled: int
    unexpected: list[str]


class PlainCelery(System):
    """Workers of plain Celery, a Redis, and a PostgreSQL that stores only the effects."""

    queue = "celery"

    def __init__(self, folder: Path, timing: Timing, seed: str, *, copies: bool = False) -> None:
        super().__init__(folder, timing, seed)
        self.copies = copies
        self.visibility = 2 * timing.lease
        self.patience = 2 * self.visibility + 5
        self._handed_in: set[int] = set()

    def prepare(self) -> None:
        with self.engine.begin() as connection:
            connection.execute(TABLE)
        broker = self.settings.require_broker_url()
        url = make_url(self.settings.require_database_url()).set(drivername="postgresql")
        self.env = {
            "PLAIN_BROKER": broker,
            "PLAIN_VISIBILITY": str(self.visibility),
            "PLAIN_DATABASE": url.render_as_string(hide_password=False),
        }
        self.app = make_app(broker, self.visibility)
        if self.copies:
            self._stack.callback(copy_messages(self.queue))

    def start_worker(self) -> Process:
        name = f"plain{len(self._processes)}@%h"
        arguments = ["worker", "-A", "tests.chaos.celery_app", "-c", str(SLOTS), "-n", name, "-l", "INFO"]
        process = self.launch("plain", ["-m", "tests.chaos.injected", *arguments, "--without-mingle"], self.env)
        self.workers.append(process)
        return process

    def start_orchestrator(self) -> None:
        """Do nothing: plain Celery has no orchestrator."""

    def is_ready(self, process: Process) -> bool:
        return " ready." in process.output()

    def submit(self, numbers: Iterable[int]) -> None:
        with self.app.producer_pool.acquire(block=True, timeout=10) as producer:
            for number in numbers:
                if number not in self._handed_in:
                    self.app.send_task("plain.commit", (number, seconds(number)), producer=producer)
                    self._handed_in.add(number)

    def count_finished(self) -> int:
        with self.engine.connect() as connection:
            return int(connection.scalar(DONE) or 0)

    def drained(self) -> bool:
        with self.broker() as broker:
            return super().drained() and broker.hlen("unacked") == 0

    def examine(self, tasks: int) -> Comparison:
        """Count the missing and doubled effects of this many tasks."""
        with self.engine.connect() as connection:
            doubled = int(connection.scalar(DOUBLED) or 0)
        return Comparison(tasks - self.count_finished(), doubled, self.unexpected)
