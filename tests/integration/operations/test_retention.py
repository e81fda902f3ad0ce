"""Retention: which rows are deleted when, which stay, and the export before."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, bindparam, text
from sqlalchemy.dialects.postgresql import TEXT
from sqlalchemy.exc import IntegrityError
from typer.testing import CliRunner, Result

from orchestrator.cli import app
from orchestrator.retention import retention
from orchestrator.retention.export import TaskExport
from orchestrator.retention.pruner import EVERY_SECONDS, Pruner
from orchestrator.retention.retention import prune
from shared.access.actors import local_actor
from shared.audit import log
from shared.audit.log import AuditFilter
from shared.errors import FileFault, NotConfigured
from shared.functions import security_events
from shared.sandbox import SandboxFault
from shared.settings import Settings, get_settings
from shared.tasks.queries import first_id_at
from shared.tasks.states import State
from tests.integration.conftest import InlineWorker, Tasks

Ended = Callable[..., UUID]

LARGE = {"text": "x" * 100_000}
AS_IF = text("SET LOCAL session_replication_role = replica")  # rows in any state, as if they had got there
TASK = text(
    "INSERT INTO tasks (id, agent_name, input, parent_id, parent_step, root_id, depth, origin_id, replay_of, "
    "conversation_id) VALUES (:id, 'Act', '{}', :parent, :step, :root, :depth, :id, :replay_of, :conversation)"
)
STATUS = text(
    "INSERT INTO task_status (task_id, state, capability, worker_id, wait_reason, due_at) VALUES (:id, :state, 'work', "
    "CASE WHEN :state = 'running' THEN minion_uuidv7() END, CASE WHEN :state = 'waiting' THEN 'signal' END, "
    "CASE WHEN :state = 'scheduled' THEN now() END)"
).bindparams(bindparam("state", type_=TEXT))
OUTCOME = text(
    "INSERT INTO task_outcomes (task_id, state, error, output, finished_at) "
    "VALUES (:id, :state, CASE :state WHEN 'failed' THEN '{}'::jsonb END, '1', now() - :ago)"
).bindparams(bindparam("state", type_=TEXT))
EXECUTION = text("INSERT INTO executions (task_id, claim, worker_id) VALUES (:task, 1, :worker)")
TABLES = text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")


@pytest.fixture
def ended(database: Engine) -> Ended:
    """Creates a task that ended `days` ago, a minute after it was created; returns its id."""

    def make(
        state: str = "succeeded",
        days: float = 31,
        *,
        parent: UUID | None = None,
        replay_of: UUID | None = None,
        conversation: str | None = None,
        created: float | None = None,
    ) -> UUID:
        begun = datetime.now(UTC) - timedelta(days=created or days, minutes=1)
        id = UUID(int=first_id_at(begun).int | uuid4().int & (2**62 - 1))
        values = {
            "id": id,
            "parent": parent,
            "step": 1 if parent else None,
            "root": parent or id,
            "depth": 1 if parent else 0,
            "replay_of": replay_of,
            "conversation": conversation,
            "state": state,
            "ago": timedelta(days=days),
        }
        with database.begin() as connection:
            connection.execute(AS_IF)
            connection.execute(TASK, values)
            connection.execute(STATUS, values)
            if state in {"succeeded", "failed", "cancelled", "expired"}:
                connection.execute(OUTCOME, values)
        return id

    return make


@pytest.fixture
def keeping(settings: Settings) -> Callable[..., Settings]:
    """The settings with other retentions: `keeping(failed=1, export=folder)`."""
    return lambda **given: settings.model_copy(update={f"retention_{name}": value for name, value in given.items()})


def left(engine: Engine) -> set[UUID]:
    with engine.connect() as connection:
        return set(connection.scalars(text("SELECT id FROM tasks")))


def count(engine: Engine, table: str) -> int:
    with engine.connect() as connection:
        number: int = connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one()
        return number


def exported(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in sorted(folder.glob("*.jsonl")) for line in file.read_text().split("\n")[:-1]]


def total(batches: Any) -> tuple[int, int]:
    found = list(batches)
    return sum(batch.trees for batch in found), sum(batch.tasks for batch in found)


def test_each_final_state_has_its_own_retention(database: Engine, ended: Ended, settings: Settings) -> None:
    kept = {
        ended("succeeded", 29),
        ended("failed", 89),
        ended("cancelled", 29),
        ended("expired", 89),
        ended("succeeded", 29, created=100),  # the end counts
    }
    for state, days in (("succeeded", 31), ("failed", 91), ("cancelled", 31), ("expired", 91)):
        ended(state, days)
    assert total(prune(database, settings)) == (4, 4)
    assert left(database) == kept
    assert total(prune(database, settings)) == (0, 0)


def test_zero_keeps_indefinitely(database: Engine, ended: Ended, keeping: Any) -> None:
    failed = ended("failed", 30_000 / 365)
    ended("succeeded", 2)
    old = ended("cancelled", 5000)
    assert total(prune(database, keeping(succeeded=1, failed=0, cancelled=0))) == (1, 1)
    assert left(database) == {failed, old}


@pytest.mark.parametrize("state", ["pending", "scheduled", "queued", "running", "waiting"])
def test_unfinished_tasks_stay_at_any_age(database: Engine, ended: Ended, settings: Settings, state: str) -> None:
    root = ended("cancelled", 400)
    kept = {root, ended("succeeded", 400, parent=root), ended(state, 400, parent=root), ended(state, 400)}
    assert total(prune(database, settings)) == (0, 0)
    assert left(database) == kept


def test_a_tree_goes_with_its_root_and_not_before(database: Engine, ended: Ended, settings: Settings) -> None:
    failed = ended("failed", 60)
    child = ended("succeeded", 60, parent=failed)
    root = ended("succeeded", 60)
    ended("failed", 60, parent=root)
    assert total(prune(database, settings)) == (1, 2)
    assert left(database) == {failed, child}


def test_replay_is_deleted_after_its_original(database: Engine, ended: Ended, keeping: Any) -> None:
    failed = ended("failed", 60)
    replayed = ended("succeeded", 59, replay_of=failed)
    assert total(prune(database, keeping())) == (0, 0)
    list(prune(database, keeping(failed=50)))
    assert left(database) == {replayed}
    list(prune(database, keeping()))
    assert left(database) == set()


def test_an_original_goes_while_its_replay_is_young(database: Engine, ended: Ended, settings: Settings) -> None:
    failed = ended("failed", 91)
    young = ended("succeeded", 1, replay_of=failed)
    assert total(prune(database, settings)) == (1, 1)
    with database.connect() as connection:
        assert connection.execute(text("SELECT id, replay_of FROM tasks")).all() == [(young, None)]


@pytest.fixture
def run_tasks(inline_worker: InlineWorker, tasks: Tasks, act: Any, database: Engine) -> Callable[..., list[UUID]]:
    """Runs tasks, as if they had ended a year ago: returns their ids."""

    def run(*inputs: Any, **fields: Any) -> list[UUID]:
        act()
        ids = [tasks.submit("Act", value, **fields) for value in inputs]
        inline_worker.run_all()
        with database.begin() as connection:
            connection.execute(AS_IF)
            connection.execute(text("UPDATE task_outcomes SET finished_at = now() - interval '1 year'"))
        return ids

    return run


@pytest.fixture
def old_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks that were made just now are old enough, if their outcomes are."""
    monkeypatch.setattr(retention, "first_id_at", lambda _: UUID(int=2**128 - 1))


def test_deleted_task_leaves_no_rows(
    database: Engine, run_tasks: Any, old_ids: None, settings: Settings, act: Any
) -> None:
    [task] = run_tasks({"answer": LARGE}, idempotency_key="key", conversation_id="talk")
    with database.begin() as connection:
        security_events.record_of_program(connection, task, SandboxFault("security", "a forged message"))
        connection.execute(text("UPDATE workers SET status = 'stopped', last_seen = now() - interval '2 years'"))
    before = {table: count(database, table) for table in ("executions", "steps", "idempotency_keys", "conversations")}
    assert all(before.values()), before
    assert total(prune(database, settings)) == (1, 1)
    with database.connect() as connection:
        tables = list(connection.scalars(TABLES))
    definitions = {"alembic_version", "agents", "agent_versions", "tools", "tool_versions"}
    records = {"audit_log", "statistics", "statistics_state", "tracing_state"}
    assert {table for table in tables if count(database, table)} <= definitions | records


def test_deletion_is_in_the_audit_log(database: Engine, run_tasks: Any, old_ids: None, settings: Settings) -> None:
    first, second = run_tasks({"answer": 1}, {"answer": 2})
    assert total(prune(database, settings, dry_run=True)) == (2, 2)
    assert total(prune(database, settings, actor=local_actor())) == (2, 2)
    with database.connect() as connection:
        [row] = log.list_rows(connection, AuditFilter(act="task.prune"), limit=10)
    assert row["actor"] == local_actor().key.name
    assert row["target"].startswith("succeeded before ")
    assert row["after"] == {"trees": 2, "tasks": 2, "first": str(first), "last": str(second)}


def test_large_output_is_deleted_with_its_last_reference(
    database: Engine, run_tasks: Any, old_ids: None, settings: Settings
) -> None:
    first, _ = run_tasks({"answer": LARGE}, {"answer": LARGE})
    assert count(database, "contents") == 1
    with database.begin() as connection:
        connection.execute(AS_IF)
        connection.execute(text("UPDATE task_outcomes SET finished_at = now() WHERE task_id = :id"), {"id": first})
    assert total(prune(database, settings)) == (1, 1)
    assert count(database, "contents") == 1
    with database.begin() as connection:
        connection.execute(AS_IF)
        connection.execute(text("UPDATE task_outcomes SET finished_at = now() - interval '1 year'"))
    list(prune(database, settings))
    assert count(database, "contents") == 0


def test_new_large_output_is_kept_until_referenced(database: Engine) -> None:
    store = text("SELECT minion_store_content('{\"large\": 1}')")
    with database.begin() as connection:
        name = connection.scalar(store)
    with database.begin() as storing, database.begin() as deleting:
        assert storing.scalar(store) == name
        deleting.execute(text("SET LOCAL lock_timeout = '100ms'"))
        with pytest.raises(Exception, match="lock timeout"):
            deleting.execute(retention.LOCK_CONTENTS, {"names": [name]})
        deleting.rollback()


def test_a_conversation_goes_with_the_last_of_its_tasks(
    database: Engine, run_tasks: Any, old_ids: None, settings: Settings
) -> None:
    first, _ = run_tasks({"answer": 1}, {"answer": 1}, conversation_id="talk")
    messages = count(database, "messages")
    with database.begin() as connection:
        connection.execute(AS_IF)
        connection.execute(text("UPDATE task_outcomes SET finished_at = now() WHERE task_id = :id"), {"id": first})
    list(prune(database, settings))
    assert (count(database, "conversations"), count(database, "messages")) == (1, messages)
    with database.begin() as connection:
        connection.execute(AS_IF)
        connection.execute(text("UPDATE task_outcomes SET finished_at = now() - interval '1 year'"))
    list(prune(database, settings))
    assert (count(database, "conversations"), count(database, "messages")) == (0, 0)


def test_unreferenced_workers_are_deleted(database: Engine, settings: Settings, ended: Ended) -> None:
    insert = text(
        "INSERT INTO workers (name, capabilities, slots, pool, host, pid, version, status, last_seen) "
        "VALUES (:name, '{work}', 1, 'p', 'h', 1, '0', :status, now() - :ago) RETURNING id"
    )
    task = ended("failed", 1)
    with database.begin() as connection:
        for name, status, days in (("a", "lost", 91), ("b", "stopped", 91), ("c", "online", 91), ("d", "lost", 89)):
            connection.execute(insert, {"name": name, "status": status, "ago": timedelta(days=days)})
        used = connection.scalar(insert, {"name": "e", "status": "lost", "ago": timedelta(days=400)})
        connection.execute(EXECUTION, {"task": task, "worker": used})
    list(prune(database, settings))
    with database.connect() as connection:
        assert list(connection.scalars(text("SELECT name FROM workers ORDER BY name"))) == ["c", "d", "e"]


def test_the_export_holds_the_whole_record(
    database: Engine, run_tasks: Any, old_ids: None, keeping: Any, tmp_path: Path
) -> None:
    [task] = run_tasks({"answer": {"line\nbreak": "\u2028", **LARGE}}, conversation_id="talk")
    assert total(prune(database, keeping(export=tmp_path))) == (1, 1)
    [line] = exported(tmp_path)
    assert line["task"]["id"] == str(task)
    assert line["task"]["input"] == {"answer": line["task"]["output"]}
    assert line["task"]["output"] == {"line\nbreak": "\u2028", **LARGE}
    assert line["task"]["state"] == "succeeded"
    assert [step["status"] for step in line["steps"]] == ["finished"]
    assert [(one["outcome"], one["worker"]) for one in line["executions"]] == [("succeeded", "here")]
    assert line["children"] is None
    [file] = tmp_path.iterdir()
    assert file.name == f"tasks-{datetime.now(UTC):%Y-%m-%d}.jsonl"
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_tree_is_exported_as_one_line_a_task(database: Engine, ended: Ended, keeping: Any, tmp_path: Path) -> None:
    root = ended()
    children = sorted(ended(parent=root) for _ in range(2))
    list(prune(database, keeping(export=tmp_path)))
    lines = {line["task"]["id"]: line["children"] for line in exported(tmp_path)}
    assert lines == {str(root): [str(child) for child in children], **{str(child): None for child in children}}


def test_failed_export_deletes_nothing(
    database: Engine, ended: Ended, keeping: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = {ended() for _ in range(3)}

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            list(prune(database, keeping(export=tmp_path)))
    assert left(database) == ids
    assert exported(tmp_path) == []
    list(prune(database, keeping(export=tmp_path)))
    assert {UUID(line["task"]["id"]) for line in exported(tmp_path)} == ids
    assert left(database) == set()


def test_crash_between_export_and_delete_loses_nothing(
    database: Engine, ended: Ended, keeping: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [ended() for _ in range(3)]

    def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(retention, "_delete_contents", crash)
        with pytest.raises(KeyboardInterrupt):
            list(prune(database, keeping(export=tmp_path)))
    assert left(database) == set(ids)
    list(prune(database, keeping(export=tmp_path)))
    assert sorted(UUID(line["task"]["id"]) for line in exported(tmp_path)) == sorted(ids * 2)


@pytest.mark.parametrize("torn", [b'{"task": {"id"', b'{"a": 1}\n{"task": {"id"', b'{"a": 1}\n', b"x" * 200_000])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    file = tmp_path / f"tasks-{datetime.now(UTC):%Y-%m-%d}.jsonl"
    file.write_bytes(torn)
    TaskExport(tmp_path).append(['{"b": 2}'])
    whole = torn[: torn.rfind(b"\n") + 1]
    assert file.read_bytes() == whole + b'{"b": 2}\n'


def test_failed_write_removes_its_lines(tmp_path: Path) -> None:
    export = TaskExport(tmp_path)
    export.append(["1", "2"])

    def lines() -> Any:
        yield "3"
        raise RuntimeError

    with pytest.raises(RuntimeError):
        export.append(lines())
    [file] = tmp_path.iterdir()
    assert file.read_text() == "1\n2\n"


def test_the_folder_must_be_there(tmp_path: Path, keeping: Any, database: Engine) -> None:
    with pytest.raises(NotConfigured, match="MINION_RETENTION_EXPORT"):
        Pruner(keeping(export=tmp_path / "missing"), database)


def test_batches_are_small_and_continue_where_they_stopped(
    database: Engine, ended: Ended, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "MAX_TREES", 3)
    monkeypatch.setattr(retention, "MAX_TASKS", 4)
    monkeypatch.setattr(retention, "WINDOW", 5)
    for number in range(8):
        root = ended()
        for _ in range(5 if number == 4 else number % 2):
            ended(parent=root)
    ended("failed", 60)
    found = list(prune(database, settings))
    assert sum(batch.trees for batch in found) == 8
    assert sum(batch.tasks for batch in found) == 8 + 5 + 4
    assert all(batch.trees <= 3 and (batch.tasks <= 4 or batch.trees == 1) for batch in found)
    assert count(database, "tasks") == 1


def test_locked_tasks_are_skipped(database: Engine, ended: Ended, settings: Settings) -> None:
    held, free = ended(), ended()
    with database.begin() as connection:
        connection.execute(text("SELECT 1 FROM task_status WHERE task_id = :id FOR NO KEY UPDATE"), {"id": held})
        assert total(prune(database, settings)) == (1, 1)
    assert left(database) == {held}
    assert free != held


def test_failed_batch_is_skipped_and_the_next_is_deleted(
    database: Engine, ended: Ended, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "MAX_TREES", 1)
    monkeypatch.setattr(retention, "LIMITS", text("SET LOCAL lock_timeout = '100ms'"))
    stuck = ended()
    child = ended(parent=stuck)
    ended()
    with database.begin() as connection:
        connection.execute(text("SELECT 1 FROM task_outcomes WHERE task_id = :id FOR UPDATE"), {"id": child})
        assert total(prune(database, settings)) == (1, 1)
    assert left(database) == {stuck, child}


def test_pruners_at_once_delete_each_tree_once(
    database: Engine, ended: Ended, keeping: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "MAX_TREES", 4)
    ids = set()
    for _ in range(40):
        root = ended()
        ids |= {root, ended(parent=root)}
    with ThreadPoolExecutor(3) as threads:
        counts = list(threads.map(lambda _: total(prune(database, keeping(export=tmp_path))), range(3)))
    counts.append(total(prune(database, keeping(export=tmp_path))))
    assert sum(tasks for _, tasks in counts) == 80
    assert left(database) == set()
    assert sorted(UUID(line["task"]["id"]) for line in exported(tmp_path)) == sorted(ids)


def test_new_tasks_run_while_old_ones_are_deleted(
    database: Engine, ended: Ended, settings: Settings, inline_worker: InlineWorker, tasks: Tasks, act: Any
) -> None:
    act()
    old = ended()
    with database.begin() as connection:
        # As if a batch were at work.
        connection.execute(text("DELETE FROM tasks WHERE id = :id"), {"id": old})
        task = tasks.submit("Act", {"answer": 1})
        inline_worker.run_all()
    assert tasks.get(task)["state"] == "succeeded"


def test_the_pruner_prunes(database: Engine, ended: Ended, settings: Settings) -> None:
    ended()
    pruner = Pruner(settings, database)
    assert pruner.run_once() == EVERY_SECONDS
    assert left(database) == set()


def pruned(changed: pytest.MonkeyPatch) -> Result:
    """Runs the command with an environment that was changed, and is as before afterwards."""
    get_settings.cache_clear()
    try:
        return CliRunner().invoke(app, ["prune"])
    finally:
        changed.undo()
        get_settings.cache_clear()


def test_the_command(database: Engine, ended: Ended, monkeypatch: pytest.MonkeyPatch) -> None:
    root = ended()
    ended(parent=root)
    kept = ended(days=3)
    dry = CliRunner().invoke(app, ["prune", "--dry-run", "--json"])
    assert json.loads(dry.stdout)["deleted"]["succeeded"] == {"trees": 1, "tasks": 2}
    assert len(left(database)) == 3
    monkeypatch.setenv("MINION_RETENTION_FAILED", "0")
    done = pruned(monkeypatch)
    assert done.exit_code == 0
    assert "failed" not in done.stdout
    assert left(database) == {kept}


def test_command_names_the_full_disk(
    database: Engine, ended: Ended, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    root = ended()
    monkeypatch.setattr(TaskExport, "append", full)
    monkeypatch.setenv("MINION_RETENTION_EXPORT", str(tmp_path))
    done = pruned(monkeypatch)
    assert isinstance(done.exception, FileFault)
    assert f"The export in {tmp_path} cannot be written: [Errno 28]" in done.exception.message
    assert left(database) == {root}


def test_a_worker_that_is_referred_to_cannot_be_deleted(
    database: Engine, inline_worker: InlineWorker, ended: Ended
) -> None:
    task = ended()
    with database.begin() as connection:
        connection.execute(EXECUTION, {"task": task, "worker": inline_worker.id})
    with pytest.raises(IntegrityError), database.begin() as connection:
        connection.execute(text("DELETE FROM workers"))


TASKS = 60_000
FILL = [
    "SET LOCAL session_replication_role = replica",
    # One in ten is a failed root with nine succeeded tasks below it, so that nothing is old enough; but for the last.
    f"""
    CREATE TEMPORARY TABLE made ON COMMIT DROP AS
        SELECT n, encode(substring(int8send((extract(epoch FROM now() - interval '60 days') * 1000)::bigint + n) FROM 3)
                         || substring(uuid_send(gen_random_uuid()) FROM 7), 'hex')::uuid AS id
            FROM generate_series(1, {TASKS}) n
    """,
    "CREATE UNIQUE INDEX ON made (n)",
    """
    INSERT INTO tasks (id, agent_name, input, root_id, origin_id, depth, parent_id, parent_step)
        SELECT m.id, 'Act', '{}', r.id, m.id, (m.n <> r.n)::integer,
               CASE WHEN m.n <> r.n THEN r.id END, CASE WHEN m.n <> r.n THEN 1 END
            FROM made m JOIN made r ON r.n = (m.n - 1) / 10 * 10 + 1
    """,
    """
    INSERT INTO task_status (task_id, state, capability)
        SELECT id, CASE WHEN depth = 0 THEN 'failed' ELSE 'succeeded' END, 'work' FROM tasks
    """,
    """
    INSERT INTO task_outcomes (task_id, state, error, finished_at)
        SELECT task_id, state, CASE state WHEN 'failed' THEN '{}'::jsonb END, now() - interval '60 days'
            FROM task_status
    """,
]


def test_a_look_at_a_large_table_is_cheap(database: Engine, ended: Ended, settings: Settings) -> None:
    with database.begin() as connection:
        for statement in FILL:
            connection.execute(text(statement))
    with database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE tasks, task_status, task_outcomes"))
    old = ended("succeeded", 61)
    before = datetime.now(UTC) - timedelta(days=30)
    with database.connect() as connection:
        walk = {"state": State.SUCCEEDED, "after": retention.FIRST, "window": 5000}
        young = {**walk, "young": first_id_at(before - timedelta(days=60))}
        assert rows_read(connection, retention.WINDOW_END, young) < 10
        kept = {**walk, "young": first_id_at(before)}
        assert rows_read(connection, retention.WINDOW_END, kept) < 3 * 5000
        until = connection.scalar(retention.WINDOW_END, kept)
        chosen = {**kept, "until": until, "before": before, "final": ["succeeded", "failed"], "most": 500}
        assert rows_read(connection, retention.CHOOSE, chosen) < 5 * 5000
        assert rows_read(connection, retention.RECORDS, {"roots": [old]}) < 100
        assert rows_read(connection, retention.DELETE_TASKS, {"roots": [old]}) < 100


def rows_read(connection: Any, statement: Any, values: dict[str, Any]) -> int:
    """Return how many rows the plan of a statement touches."""
    explain = text(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement.text}").bindparams(*statement._bindparams.values())
    plan = connection.execute(explain, values).scalar_one()
    connection.rollback()
    return _read([plan[0]["Plan"]])


def _read(plans: list[dict[str, Any]]) -> int:
    return sum(
        int((plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)) * plan["Actual Loops"])
        + _read(plan.get("Plans", []))
        for plan in plans
    )
