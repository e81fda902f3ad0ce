"""Who is taken for lost, and when nobody may be."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import event, text

from orchestrator.rescuer import Rescuer
from shared.broker import make_app
from shared.database import make_engine
from shared.settings import Settings
from tests.integration.conftest import Minion
from tests.processes import wait_until


def test_nobody_is_lost_while_the_database_stood_still(here: Minion, short_leases: Settings) -> None:
    """The rescuer is answered before the heartbeats that wait as well, and finds no worker that has beaten."""
    engine = make_engine(short_leases)
    rescuer = Rescuer(short_leases, engine, make_app(short_leases))
    pauses: list[float] = []

    @event.listens_for(engine, "before_execute")
    def _stand_still(*_: Any) -> None:
        while pauses:
            time.sleep(pauses.pop())

    def look() -> str:
        rescuer._lose_workers()
        with here.engine.connect() as connection:
            return str(connection.scalar(text("SELECT status FROM workers WHERE id = :id"), {"id": here.id}))

    def beat() -> None:
        with here.engine.begin() as connection:
            connection.execute(text("UPDATE workers SET last_seen = now() WHERE id = :id"), {"id": here.id})

    steady = time.monotonic() + 1.2 * short_leases.lease_seconds
    while time.monotonic() < steady:
        beat()
        assert look() == "online"
        time.sleep(0.1)
    pauses.append(1.1 * short_leases.lease_seconds)
    assert look() == "online"
    wait_until(lambda: look() == "lost", "who never beats again is lost")
    engine.dispose()
