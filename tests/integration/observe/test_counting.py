"""Ended work is counted once each, whatever the order of commits, and counts outlive the rows."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import ProgrammingError
from structlog.testing import capture_logs

from orchestrator.observe import counting, tally
from orchestrator.observe.counting import Progress, catch_up, count_ends
from orchestrator.observe.statistician import Statistician
from orchestrator.observe.tally import Places
from orchestrator.retention.retention import prune
from shared.settings import Settings
from shared.tasks import lifecycle
from shared.tasks.states import State
from tests.support.lifecycle_driver import LifecycleDriver
from tests.support.processes import ROOT, wait_until

FINISH = text("SELECT minion_finish(:task, 1, 'succeeded', '{}')")
SHIFT = 10**9
AGE = "UPDATE task_outcomes SET finished_at = finished_at - interval '1 year'"


def totals(engine: Engine, kind: str = "task", *by: str, grain: str = "total") -> Counter[Any]:
    """Return the counts of a kind by some of its columns."""
    columns = ", ".join(by) or "outcome"
    chosen = "statistics WHERE kind = :kind AND grain = :grain"
    sql = f"SELECT {columns}, sum(count)::integer FROM {chosen} GROUP BY {columns}"
    with engine.connect() as connection:
        rows = connection.execute(text(sql), {"kind": kind, "grain": grain}).all()
    return Counter({row[0] if len(row) == 2 else tuple(row[:-1]): row[-1] for row in rows})


def step(number: int, status: str = "finished", **fields: Any) -> dict[str, Any]:
    ended = None if status == "started" else "2026-11-29T12:00:01+00:00"
    return {
        "number": number,
        "kind": "model_call",
        "name": "m",
        "status": status,
        "effect": "idempotent",
        "request_hash": str(number),
        "started_at": "2026-11-29T12:00:00+00:00",
        "finished_at": ended,
        **fields,
    }


def write(driver: LifecycleDriver, task: UUID, claim: int, *steps: dict[str, Any]) -> None:
    assert driver.call(lifecycle.write_steps, task, claim, list(steps)) is not None


def test_ended_work_is_counted_in_hours_days_and_totals(driver: LifecycleDriver) -> None:
    for _ in range(3):
        driver.finish(driver.run("A", key="acme"))
    driver.finish(driver.run("B"), state=State.FAILED)
    catch_up(driver.engine)
    for grain in ("hour", "day", "total"):
        assert totals(driver.engine, "task", "agent", "outcome", grain=grain) == {
            ("A", "succeeded"): 3,
            ("B", "failed"): 1,
        }
        assert totals(driver.engine, "execution", grain=grain) == {"succeeded": 3, "failed": 1}
        assert totals(driver.engine, "failure", "agent", grain=grain) == {"B": 1}
    assert totals(driver.engine, "task", "tenant", grain="day") == {"acme": 3, "": 1}
    assert totals(driver.engine, "task", "tenant", grain="total") == {"": 4}


def test_a_second_pass_counts_nothing_twice(driver: LifecycleDriver) -> None:
    driver.finish(driver.run())
    places = Places()
    for _ in range(3):
        count_ends(driver.engine, places)
    assert totals(driver.engine) == {"succeeded": 1}


def test_late_commit_is_counted_once(driver: LifecycleDriver) -> None:
    """A transaction with a lower number commits after one with a higher number was committed."""
    late, soon = driver.run(), driver.run()
    places = Places()
    with driver.engine.connect() as connection:
        connection.execute(FINISH, {"task": late})
        driver.finish(soon)
        before = [count_ends(driver.engine, places) for _ in range(2)]
        assert totals(driver.engine) == {}
        connection.commit()
    after = count_ends(driver.engine, places)
    assert totals(driver.engine) == {"succeeded": 2}
    assert before[1].age > after.age == 0.0


def test_age_grows_while_a_foreign_transaction_holds_counting_back(driver: LifecycleDriver, settings: Settings) -> None:
    catch_up(driver.engine)
    driver.sql("UPDATE statistics_state SET counted_at = now() - interval '2 min', marked_below = :high", high=2**60)
    statistician = Statistician(settings, driver.engine)
    with driver.engine.connect() as holder:
        holder.execute(text("SET application_name = 'report'"))
        holder.execute(text("SELECT pg_current_xact_id()"))
        driver.finish(driver.run())
        with capture_logs() as logs:
            statistician.run_once()
        holder.rollback()
        holder.execute(text("RESET application_name"))
        holder.commit()
    statistician.close()
    [warning] = [line for line in logs if line["event"] == "statistics_late"]
    assert warning["age_seconds"] >= 120
    assert "(report)" in warning["held_by"]
    assert totals(driver.engine) == {}
    catch_up(driver.engine)
    assert totals(driver.engine) == {"succeeded": 1}


def test_transaction_that_only_reads_delays_nothing(driver: LifecycleDriver) -> None:
    """Such as one of pg_dump, which is open for an hour."""
    reading = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    with driver.engine.connect().execution_options(**reading) as dump:
        dump.execute(text("SELECT count(*) FROM tasks"))
        driver.finish(driver.run())
        assert count_ends(driver.engine, Places()) == Progress(complete=True, age=0.0)
    assert totals(driver.engine) == {"succeeded": 1}


def test_passes_at_once_wait_for_each_other_and_count_nothing_twice(driver: LifecycleDriver) -> None:
    tasks = [driver.run() for _ in range(30)]
    done = threading.Event()

    def keep_counting() -> None:
        places = Places()
        while not done.is_set():
            count_ends(driver.engine, places)

    with ThreadPoolExecutor(2) as threads:
        passes = [threads.submit(keep_counting) for _ in range(2)]
        try:
            for task in tasks:
                driver.finish(task)
        finally:
            done.set()
        for each in passes:
            each.result()
    catch_up(driver.engine)
    assert totals(driver.engine) == {"succeeded": 30}
    assert totals(driver.engine, grain="hour") == {"succeeded": 30}


LEADER = """
import sys, time
from orchestrator.observe import counting
from shared.database.connections import get_engine
move = counting._move
def stop(*arguments):
    print("added", flush=True)
    time.sleep(60)
counting._move = stop
counting.count_ends(get_engine(), counting.Places())
"""


def test_leader_that_is_killed_in_a_pass_leaves_nothing_of_it(driver: LifecycleDriver) -> None:
    for _ in range(3):
        driver.finish(driver.run())
    leader = subprocess.Popen(
        [sys.executable, "-c", LEADER], cwd=ROOT, env=os.environ, stdout=subprocess.PIPE, text=True
    )
    assert leader.stdout is not None
    with leader:
        assert leader.stdout.readline() == "added\n"
        leader.send_signal(signal.SIGKILL)
    catch_up(driver.engine)
    assert totals(driver.engine) == {"succeeded": 3}


def test_large_backlog_is_counted_in_several_passes(driver: LifecycleDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "MOST_ENDS", 3)
    for _ in range(8):
        driver.finish(driver.run())
    passes: list[Progress] = []
    places = Places()
    while not passes or not passes[-1].complete:
        passes.append(count_ends(driver.engine, places))
    assert len(passes) > 2
    assert totals(driver.engine) == {"succeeded": 8}


def test_many_ends_of_one_transaction_are_counted_together(
    driver: LifecycleDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "MOST_ENDS", 2)
    task = driver.run()
    children = driver.suspend(task, children=["B"] * 6)
    assert len(children) == 6
    driver.call(lifecycle.cancel, task, reason="test")
    catch_up(driver.engine)
    assert totals(driver.engine) == {"cancelled": 7}


def test_pruned_tasks_remain_counted(driver: LifecycleDriver, settings: Settings) -> None:
    """A task that is old enough is counted before it is deleted, also if no orchestrator has run since it ended."""
    driver.finish(driver.run())
    old(driver)
    assert [batch.tasks for batch in prune(driver.engine, settings)] == [1]
    assert totals(driver.engine) == {"succeeded": 1}
    assert totals(driver.engine, "execution") == {"succeeded": 1}


def test_task_that_cannot_be_counted_yet_is_not_pruned(driver: LifecycleDriver, settings: Settings) -> None:
    with driver.engine.connect() as holder:
        holder.execute(text("SELECT pg_current_xact_id()"))
        driver.finish(driver.run())
        old(driver)
        assert list(prune(driver.engine, settings)) == []
    assert [batch.tasks for batch in prune(driver.engine, settings)] == [1]
    assert totals(driver.engine) == {"succeeded": 1}


def old(driver: LifecycleDriver) -> None:
    """Make all tasks a year old, with ids from then."""
    with driver.engine.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(text(AGE))
        for table, column in (("tasks", "id"), ("tasks", "root_id"), *((name, "task_id") for name in OF_TASKS)):
            older = f"overlay({column}::text PLACING '0190' FROM 1)::uuid"
            connection.execute(text(f"UPDATE {table} SET {column} = {older}"))


OF_TASKS = ("task_status", "task_outcomes", "executions", "steps", "task_events")


def test_retried_step_counts_as_often_as_it_ended(driver: LifecycleDriver) -> None:
    """Its row has only the last end; the earlier ones are kept until they are counted."""
    task = driver.run()
    write(driver, task, 1, step(1, "started"))
    write(driver, task, 1, step(1, "failed", error={"type": "x", "retryable": True}))
    driver.release(task, 1)
    claim = driver.again(task)
    write(driver, task, claim, step(1, "started"))
    write(driver, task, claim, step(1, "failed", error={"type": "x", "retryable": True}))
    catch_up(driver.engine)
    write(driver, task, claim, step(1, "started"))
    write(driver, task, claim, step(1, usage={"input_tokens": 7, "output_tokens": 3}, cost_microdollars=11))
    driver.finish(task, claim)
    catch_up(driver.engine)
    assert totals(driver.engine, "step") == {"failed": 2, "finished": 1}
    assert driver.sql("SELECT count(*) FROM retried_steps") == 0
    assert (
        driver.sql(
            "SELECT (input_tokens, output_tokens, microdollars)::text FROM statistics "
            "WHERE kind = 'step' AND grain = 'total' AND outcome = 'finished' AND name = 'm'"
        )
        == "(7,3,11)"
    )


def test_steps_that_a_claim_read_back_are_saved_dollars(driver: LifecycleDriver) -> None:
    task = driver.run()
    write(driver, task, 1, step(1, cost_microdollars=100))
    write(driver, task, 1, step(2, cost_microdollars=20))
    driver.release(task, 1, how="lost", charged=False)
    # Cut off before its first step: it may have read nothing.
    driver.again(task)
    driver.release(task, 2, how="lost", charged=False)
    claim = driver.again(task)
    write(driver, task, claim, step(3, cost_microdollars=3))
    driver.finish(task, claim)
    catch_up(driver.engine)
    saved = "SELECT (sum(saved_microdollars), sum(saved_steps))::text FROM statistics WHERE grain = 'total'"
    assert driver.sql(saved) == "(120,2)"
    assert totals(driver.engine, "execution") == {"lost": 2, "succeeded": 1}


def test_steps_of_a_replay_that_were_copied_are_not_counted_again(driver: LifecycleDriver) -> None:
    task = driver.run()
    write(driver, task, 1, step(1), step(2))
    driver.finish(task)
    request = '{"agent": "A", "input": {}}'
    driver.sql("SELECT minion_replay_from(CAST(:request AS jsonb), :task, 2, NULL, 'test')", request=request, task=task)
    catch_up(driver.engine)
    assert totals(driver.engine, "step") == {"finished": 2}


def test_amounts_of_any_size_stop_no_pass(driver: LifecycleDriver) -> None:
    for _ in range(12):
        task = driver.run()
        odd = {"cost_microdollars": 2**62, "usage": {"input_tokens": 2**62}}
        write(driver, task, 1, step(1, **odd, started_at="0001-01-01T00:00:00+00:00"))
        write(driver, task, 1, step(2, **odd, started_at="-infinity"), step(3, finished_at="infinity"))
    catch_up(driver.engine)
    assert totals(driver.engine, "step") == {"finished": 36}


@pytest.mark.parametrize("usage", [{"input_tokens": "many"}, {"input_tokens": 1e300}, {"input_tokens": -5}, {}, None])
def test_odd_usage_stops_no_pass(driver: LifecycleDriver, usage: Any) -> None:
    task = driver.run()
    write(driver, task, 1, step(1, usage=usage))
    catch_up(driver.engine)
    assert totals(driver.engine, "step") == {"finished": 1}


def test_names_without_number_are_folded(driver: LifecycleDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "MOST_TENANTS", 3)
    monkeypatch.setattr(tally, "MOST_ROWS", {"total": 2, "day": 10, "hour": 10})
    for number in range(6):
        driver.finish(driver.run(key=f"tenant-{number}"))
    driver.finish(driver.run(key="ü" * 250))
    driver.finish(driver.run("B"))
    catch_up(driver.engine)
    found = totals(driver.engine, "task", "tenant", grain="hour")
    assert found.total() == 8
    assert found[""] == 1 + 3 + 1, "B's, and those after the first tenants"
    assert len(found) == 4
    assert totals(driver.engine) == {"succeeded": 8}


def test_bounds_hold_while_other_processes_count(driver: LifecycleDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as `minion prune` beside the leading orchestrator."""
    monkeypatch.setattr(tally, "MOST_TENANTS", 3)
    leader = Places()
    for tenant in ("a", "b", "c", "d"):
        driver.finish(driver.run(key=tenant))
        count_ends(driver.engine, leader if tenant in "bd" else Places())
    assert totals(driver.engine, "task", "tenant", grain="hour") == {"a": 1, "b": 1, "c": 1, "": 1}


def test_pass_that_was_rolled_back_takes_no_room(driver: LifecycleDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "MOST_TENANTS", 1)
    places = Places()
    driver.finish(driver.run(key="a"))
    with monkeypatch.context() as broken:
        broken.setattr(counting, "MOVE", text("UPDATE nothing SET x = 1"))
        with pytest.raises(ProgrammingError):
            count_ends(driver.engine, places)
    with driver.engine.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(text("UPDATE tasks SET key = 'b'"))
    count_ends(driver.engine, places)
    assert totals(driver.engine, "task", "tenant", grain="hour") == {"b": 1}


def test_kinds_of_errors_without_number_are_folded(driver: LifecycleDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "MOST_ROWS", {"total": 3, "day": 3, "hour": 3})
    for number in range(12):
        error = {"type": f"kind-{number}", "message": "It failed."}
        driver.finish(driver.run(), state=State.FAILED, error=error)
    catch_up(driver.engine)
    found = totals(driver.engine, "failure", "step", "folded")
    assert (len(found), found["", True]) == (3 + 1, 9)


def test_long_name_of_a_tenant_folds_no_total(driver: LifecycleDriver) -> None:
    driver.finish(driver.run(key="ü" * 250))
    catch_up(driver.engine)
    assert totals(driver.engine, "task", "agent", "folded") == {("A", False): 1}


def test_negative_cost_decreases_no_counter(driver: LifecycleDriver) -> None:
    task = driver.run()
    write(driver, task, 1, step(1, cost_microdollars=7), step(2, cost_microdollars=-5))
    catch_up(driver.engine)
    assert driver.sql("SELECT sum(microdollars)::integer FROM statistics WHERE grain = 'total'") == 7


def test_clock_that_jumped_makes_no_hour_of_the_future(driver: LifecycleDriver) -> None:
    task = driver.run()
    write(driver, task, 1, step(1, finished_at="2999-01-01T00:00:00+00:00"))
    write(driver, task, 1, step(2, started_at="2999-01-01T00:00:00+00:00", finished_at="1999-01-01T00:00:00+00:00"))
    driver.finish(task)
    catch_up(driver.engine)
    assert totals(driver.engine, "step", grain="hour") == {"finished": 2}
    recent = "bucket BETWEEN now() - interval '2 h' AND now()"
    assert driver.sql(f"SELECT bool_and({recent}) FROM statistics WHERE grain = 'hour'")


def test_restore_into_another_cluster_counts_nothing_twice(driver: LifecycleDriver) -> None:
    """The dump has marks of a cluster with far higher numbers; one end was not counted there."""
    for _ in range(2):
        driver.finish(driver.run())
    catch_up(driver.engine)
    driver.finish(driver.run("B"))
    with driver.engine.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        for table in ("task_outcomes", "executions"):
            connection.execute(text(f"UPDATE {table} SET ended_in = ended_in + {SHIFT}"))
        connection.execute(
            text(f"UPDATE statistics_state SET counted_below = counted_below + {SHIFT}, marked_below = {SHIFT}")
        )
    driver.finish(driver.run("B"))  # here, before an orchestrator has started
    with capture_logs() as logs:
        catch_up(driver.engine)
    assert [line["event"] for line in logs] == ["statistics_restored"]
    driver.finish(driver.run())
    catch_up(driver.engine)
    assert totals(driver.engine, "task", "agent") == {"A": 3, "B": 2}
    assert totals(driver.engine, "execution", "agent") == {"A": 3, "B": 2}
    assert driver.sql("SELECT count(*) FROM task_outcomes WHERE ended_in > :shift", shift=SHIFT) == 0


def test_one_orchestrator_leads_and_another_takes_over(driver: LifecycleDriver, settings: Settings) -> None:
    first, second = Statistician(settings, driver.engine), Statistician(settings, driver.engine)
    first.run_once()
    driver.finish(driver.run())
    second.run_once()
    assert totals(driver.engine) == {}
    first.close()

    def counted() -> bool:
        second.run_once()
        return bool(totals(driver.engine))

    wait_until(counted, "the second one counts")
    second.close()
    assert totals(driver.engine) == {"succeeded": 1}
    assert driver.sql("SELECT gauges IS NOT NULL AND gauges_at > now() - interval '1 min' FROM statistics_state")


def test_rows_of_release_0_2_are_not_counted(driver: LifecycleDriver, tmp_path: Path) -> None:
    driver.finish(driver.run())
    with driver.engine.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        for table in ("task_outcomes", "executions"):
            connection.execute(text(f"UPDATE {table} SET ended_in = NULL"))
    driver.finish(driver.run("B"))
    catch_up(driver.engine)
    assert totals(driver.engine, "task", "agent") == {"B": 1}
