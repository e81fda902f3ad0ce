"""A journal grows with its turns, not with their square."""

from __future__ import annotations

from sqlalchemy import text

from benchmarks.journal import BYTES, DEFINITIONS, script
from minions.testing import MessagesApi
from tests.conftest import Define
from tests.integration.conftest import InlineWorker, Tasks

SERVE = text("UPDATE workers SET capabilities = '{bench}'")


def test_journal_grows_linearly_with_turns(
    tasks: Tasks, inline_worker: InlineWorker, messages_api: MessagesApi, define: Define
) -> None:
    define(*DEFINITIONS)
    with tasks.engine.begin() as connection:
        connection.execute(SERVE)

    def bytes_per_turn(turns: int) -> float:
        messages_api.script = script(turns)
        task = tasks.submit("talker", "Talk")
        inline_worker.run_all()
        assert tasks.get(task)["state"] == "succeeded"
        with tasks.engine.connect() as connection:
            return int(connection.execute(BYTES, {"task": task}).scalar_one()) / turns

    assert bytes_per_turn(40) <= 1.3 * bytes_per_turn(10)
