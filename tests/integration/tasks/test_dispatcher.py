"""The dispatcher: which pending tasks become messages, how many, in which order; and tasks that never can."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from kombu.exceptions import OperationalError as BrokerError
from sqlalchemy import Connection, Engine, text

from orchestrator.dispatcher import BACKLOG_SECONDS, IDLE_SECONDS, Dispatcher
from orchestrator.local.embedded import EmbeddedServers
from orchestrator.preparer import prepare_pending
from shared.broker import make_app
from shared.database.connections import close_engine, statement, transaction
from shared.notifications import make_redis
from shared.settings import Settings
from shared.tasks import lifecycle, throttles
from shared.tasks.messages import checked_input
from tests.integration.conftest import InlineWorker, Tasks, orchestrating
from tests.support.notification_flood import all_read, flood
from tests.support.processes import wait_until

SUBMIT = text("SELECT minion_submit(:agent, CAST(:input AS jsonb))")
HELD = text("INSERT INTO rate_holds (scope, name, until_at) VALUES ('capability', 'work', now() + :until)")

LOCK = text("SELECT pg_advisory_xact_lock(hashtext('minion_dispatch'))")
WAITING = text(
    "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database = "
    "(SELECT oid FROM pg_database WHERE datname = current_database()))"
)


@pytest.fixture
def dispatched(inline_worker: InlineWorker, act: Any) -> Any:
    """Dispatches once: `dispatched(window=…)` are the tasks of the batch, in order."""
    act()

    def run(window: int = 1000, lease: float = 10) -> list[Any]:
        prepare_pending(inline_worker.engine)
        with transaction() as connection:
            return [task.task_id for task in lifecycle.dispatch(connection, lease=lease, window=window)]

    return run


@pytest.fixture
def dispatcher(inline_worker: InlineWorker, act: Any, short_leases: Settings) -> Iterator[Dispatcher]:
    """A dispatcher that is not started: the test runs its rounds."""
    act()
    made = Dispatcher(short_leases, inline_worker.engine, make_app(short_leases))
    yield made
    made.close()


def patient(settings: Settings) -> Settings:
    """Settings with a lease that `here`, which does not beat, outlives."""
    return settings.model_copy(update={"lease_seconds": 600.0})


def submit_sql(engine: Engine, **values: Any) -> Any:
    with engine.begin() as connection:
        return connection.scalar(SUBMIT, {"agent": "Act", "input": "{}", **values})


def test_urgent_first_then_the_oldest(tasks: Tasks, dispatched: Any) -> None:
    low, first, second, high = (tasks.submit("Act", {}, priority=priority) for priority in (-5, 0, 0, 5))
    assert dispatched() == [high, first, second, low]


def test_window_bounds_messages_in_the_broker(tasks: Tasks, dispatched: Any) -> None:
    for _ in range(10):
        tasks.submit("Act", {})
    assert len(dispatched(window=4)) == 4
    assert dispatched(window=4) == []
    assert dispatched(window=5) == []
    assert len(dispatched(window=8)) == 4


def test_task_that_is_committed_while_the_batch_is_chosen_is_in_the_batch(
    tasks: Tasks, dispatched: Any, database: Engine
) -> None:
    with database.begin() as connection:
        throttles.set_limit(connection, "capability", "work", max_running=5)
    with ThreadPoolExecutor(1) as thread, database.connect() as holder:
        holder.execute(LOCK)
        batch = thread.submit(dispatched)
        wait_until(lambda: holder.scalar(WAITING), "the statement has begun")
        task = tasks.submit("Act", {})
        holder.rollback()
        assert batch.result() == [task]


def test_task_without_serving_worker_stays_pending(tasks: Tasks, dispatched: Any, act: Any) -> None:
    task = tasks.submit(act("Lonely", config={"capabilities": ["nobody"]}), {})
    assert dispatched() == []
    assert tasks.get(task)["state"] == "pending"


def test_worker_without_heartbeat_serves_nothing(tasks: Tasks, dispatched: Any, database: Engine) -> None:
    tasks.submit("Act", {})
    with database.begin() as connection:
        connection.execute(text("UPDATE workers SET last_seen = now() - interval '11 s'"))
    assert dispatched() == []


def test_input_from_sql_is_checked_before_it_is_queued(
    tasks: Tasks, dispatched: Any, act: Any, database: Engine
) -> None:
    act("Strict", input_schema={"type": "object", "required": ["n"]})
    good, bad = (submit_sql(database, agent="Strict", input=value) for value in ('{"n": 1}', '{"m": 1}'))
    assert dispatched() == [good]
    error = tasks.get(bad)["error"]
    assert (error["type"], error["violations"][0]["path"]) == ("invalid_input", "$")


@pytest.mark.parametrize(
    "said", ["it's", "a\\b c:\\d\\e", "a & b | !c", "'; --", "<->", "", "\t", "x:*", "日本語", "http://a/b\\c'"]
)
def test_any_text_can_be_routed_by(tasks: Tasks, dispatched: Any, act: Any, said: str) -> None:
    act("Boats", description="boats")
    lost = tasks.submit(None, messages=[f"{said} zzz"])
    found = tasks.submit(None, messages=[f"{said} boats"])
    assert dispatched() == [found]
    assert tasks.get(lost)["error"]["type"] == "ambiguous_route"
    assert tasks.get(found)["agent"] == "Boats"


def test_an_unforeseen_fault_fails_one_task_only(
    tasks: Tasks, dispatched: Any, act: Any, database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    act(input_schema={"type": "object"})
    bad = submit_sql(database)
    good = tasks.submit("Act", {})

    def burst(*_: Any, **__: Any) -> None:
        raise RuntimeError("nobody thought of this")

    monkeypatch.setattr("orchestrator.preparer.checked_input", burst)
    assert dispatched() == [good]
    assert "cannot be read" in tasks.get(bad)["error"]["message"]


def test_rejection_during_cancel_does_not_deadlock(
    tasks: Tasks, inline_worker: InlineWorker, act: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of two children has been checked, and the next one is refused."""
    act("Strict", input_schema={"type": "object", "required": ["n"]})
    parent = tasks.submit(act(), {})
    [message] = inline_worker.dispatch()
    children = [
        {"step": 1 + n, "name": "S", "request_hash": "h", "request": {"agent": "Strict", "input": value}}
        for n, value in enumerate(({"n": 1}, {"m": 1}))
    ]
    with transaction() as connection:
        lifecycle.claim(connection, parent, message.claim, inline_worker.id)
        lifecycle.suspend(connection, parent, 1, {}, children)

    def check(schema: Any, value: Any, *others: Any, **options: Any) -> None:
        if "m" in value:
            cancelled.append(tasks.cancel(parent))
        checked_input(schema, value, *others, **options)

    cancelled: list[str] = []
    monkeypatch.setattr("orchestrator.preparer.checked_input", check)
    prepare_pending(inline_worker.engine)
    assert cancelled == ["cancelled"]
    assert [child["state"] for child in tasks.children(parent)] == ["cancelled", "cancelled"]


def test_unreached_rejection_happens_in_the_next_round(
    tasks: Tasks, dispatched: Any, act: Any, database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    act("Strict", input_schema={"type": "object", "required": ["n"]})
    bad, good = (submit_sql(database, agent="Strict", input=value) for value in ('{"m": 1}', '{"n": 1}'))

    def die(*_: Any) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr("orchestrator.preparer.lifecycle.reject", die)
        with pytest.raises(SystemExit):
            dispatched()
    assert (tasks.get(bad)["state"], tasks.get(good)["state"]) == ("pending", "pending")
    assert dispatched() == [good]
    assert tasks.get(bad)["state"] == "failed"


def test_a_task_stays_queued_when_the_broker_is_away(
    tasks: Tasks,
    inline_worker: InlineWorker,
    act: Any,
    short_leases: Settings,
    servers: EmbeddedServers,
    monkeypatch: Any,
) -> None:
    task = tasks.submit(act(), {})
    dispatcher = Dispatcher(short_leases, inline_worker.engine, make_app(short_leases))

    def away(*_: Any) -> None:
        raise BrokerError("away")

    with monkeypatch.context() as patch:
        patch.setattr("orchestrator.dispatcher.publish_packs", away)
        dispatcher.stopping.set()
        dispatcher.run_once()
    dispatcher.close()
    assert tasks.get(task)["state"] == "queued"


def test_dispatcher_wakes_for_a_new_task(
    tasks: Tasks, inline_worker: InlineWorker, act: Any, short_leases: Settings
) -> None:
    act()
    with orchestrating(patient(short_leases)), make_redis() as broker:
        for _ in range(3):
            task = tasks.submit("Act", {})
            tasks.wait_for(task, "queued", timeout=5)
        wait_until(lambda: broker.llen("work") == 3, "three messages")


def test_it_listens_again_after_the_database_restarts(
    tasks: Tasks, inline_worker: InlineWorker, act: Any, short_leases: Settings, servers: EmbeddedServers
) -> None:
    act()
    with orchestrating(patient(short_leases)):
        tasks.wait_for(tasks.submit("Act", {}), "queued")
        for _ in range(2):
            servers.postgres.kill()
            servers.postgres.start()
            tasks.wait_for(tasks.submit("Act", {}), "queued")


def test_a_worker_without_slots_to_offer_is_ignored(tasks: Tasks, dispatched: Any, database: Engine) -> None:
    with database.begin() as connection:
        connection.execute(text("UPDATE workers SET status = 'stopped'"))
    tasks.submit("Act", {})
    assert dispatched() == []


def test_unpreparable_task_does_not_block_the_others(
    tasks: Tasks, dispatcher: Dispatcher, act: Any, database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    act(input_schema={"type": "object"})
    unprepared, good = submit_sql(database), tasks.submit("Act", {})

    def lost(connection: Connection) -> None:
        connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    with monkeypatch.context() as patch:
        patch.setattr("orchestrator.dispatcher.prepare_pending", lost)
        dispatcher.run_once()
    assert (tasks.get(unprepared)["state"], tasks.get(good)["state"]) == ("pending", "queued")
    dispatcher.run_once()
    assert tasks.get(unprepared)["state"] == "queued"


# ------------------------------------------------------------------------------------------------- between rounds


@pytest.mark.parametrize("pending", [False, True])
def test_notifications_are_read_with_and_without_a_backlog(
    tasks: Tasks, dispatcher: Dispatcher, database: Engine, pending: bool
) -> None:
    """A queue of notifications that fills up would end every commit that notifies."""
    dispatcher.settings = dispatcher.settings.model_copy(update={"dispatch_window": 1})
    for _ in range(5 if pending else 0):
        tasks.submit("Act", {})
    dispatcher.run_once()
    flood(database, "minion_pending")

    def read() -> bool:
        dispatcher.wait(dispatcher.run_once())
        return all_read(database, "minion_pending")

    wait_until(read, "the notifications are read")


def test_backlog_waiting_for_room_is_checked_soon(
    tasks: Tasks, dispatcher: Dispatcher, inline_worker: InlineWorker
) -> None:
    with transaction() as connection:
        throttles.set_limit(connection, "agent", "Act", max_running=1)
    tasks.submit("Act", {})
    assert dispatcher.run_once() == IDLE_SECONDS
    tasks.submit("Act", {})
    assert dispatcher.run_once() == BACKLOG_SECONDS


@pytest.mark.parametrize("by", ["pause", "hold", "turn"])
def test_blocked_tasks_are_not_polled(tasks: Tasks, dispatcher: Dispatcher, database: Engine, by: str) -> None:
    with database.begin() as connection:
        if by == "pause":
            throttles.pause(connection, "agent", "Act")
        if by == "hold":
            connection.execute(HELD, {"until": timedelta(hours=1)})
    if by == "turn":
        tasks.submit("Act", {}, conversation_id="c")
        dispatcher.run_once()
    tasks.submit("Act", {}, conversation_id="c")
    assert dispatcher.run_once() == IDLE_SECONDS


def test_a_hold_that_runs_out_is_not_overslept(
    tasks: Tasks, dispatcher: Dispatcher, database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.dispatcher.IDLE_SECONDS", 7200.0)
    with database.begin() as connection:
        connection.execute(HELD, {"until": timedelta(hours=1)})
    tasks.submit("Act", {})
    assert BACKLOG_SECONDS < dispatcher.run_once() <= 3600


def test_a_pause_that_is_lifted_is_noticed_at_once(
    tasks: Tasks, dispatcher: Dispatcher, database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with database.begin() as connection:
        throttles.pause(connection, "agent", "Act")
    task = tasks.submit("Act", {})
    dispatcher.wait(dispatcher.run_once())
    dispatcher.run_once()
    with database.begin() as connection:
        throttles.resume(connection, "agent", "Act")
    # It would wait indefinitely without a notification.
    dispatcher.wait(1000)
    dispatcher.run_once()
    assert tasks.get(task)["state"] == "queued"


def test_backlog_does_not_delay_the_tasks_of_another_agent(
    tasks: Tasks, dispatcher: Dispatcher, act: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.dispatcher.BACKLOG_SECONDS", 7200.0)
    with transaction() as connection:
        throttles.set_limit(connection, "agent", "Act", max_running=1)
    act("Free")
    for _ in range(2):
        tasks.submit("Act", {})
    pause = dispatcher.run_once()
    assert pause == 7200
    task = tasks.submit("Free", {})
    dispatcher.wait(pause)
    dispatcher.run_once()
    assert tasks.get(task)["state"] == "queued"


def test_only_the_dispatchers_commits_do_not_wait_for_the_disk(
    dispatcher: Dispatcher, inline_worker: InlineWorker
) -> None:
    """Claims, steps and outcomes must be on disk."""
    show = text("SHOW synchronous_commit")
    close_engine()  # Its connection may be to a server of an earlier test; on the hot path, callers retry.
    with dispatcher.statements.connect() as dispatching, inline_worker.engine.connect() as others, statement() as hot:
        assert [connection.scalar(show) for connection in (dispatching, others, hot)] == ["off", "on", "on"]
