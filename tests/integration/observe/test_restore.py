"""A dump that is restored into another server, whose transactions have lower numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sqlalchemy import Engine, create_engine, text

from orchestrator.local.embedded import EmbeddedServers, scratch_dir
from orchestrator.observe.counting import catch_up
from orchestrator.tracing.state import next_range
from tests.support.lifecycle_driver import LifecycleDriver
from tests.support.postgres_programs import run_program

COUNTED = text("SELECT COALESCE(sum(count), 0)::integer FROM statistics WHERE kind = 'task' AND grain = 'total'")
USE_NUMBERS = text("DO $$ BEGIN FOR n IN 1..20000 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$")


@contextmanager
def another_server(dump: Path, *names: str) -> Iterator[list[LifecycleDriver]]:
    """Restore a dump into databases of a server whose transactions have lower numbers."""
    with scratch_dir() as folder, EmbeddedServers(folder, durable=False) as servers, ExitStack() as stack:
        first = create_engine(servers.start().database_url)
        drivers = []
        for name in names:
            with first.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.execute(text(f"CREATE DATABASE {name}"))
            engine = create_engine(first.url.set(database=name))
            stack.callback(engine.dispose)
            run_program(engine, "pg_restore", "--no-owner", f"--dbname={name}", str(dump))
            drivers.append(LifecycleDriver(engine))
        stack.callback(first.dispose)
        yield drivers


def use_numbers(engine: Engine) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(USE_NUMBERS)


def counted(engine: Engine) -> int:
    catch_up(engine)
    with engine.connect() as connection:
        return int(connection.scalar(COUNTED) or 0)


def test_restored_dump_is_counted_and_exported_once(driver: LifecycleDriver, tmp_path: Path) -> None:
    use_numbers(driver.engine)
    for _ in range(3):
        driver.finish(driver.run())
    assert next_range(driver.engine) is None  # the export begins
    catch_up(driver.engine)
    driver.finish(driver.run())  # not counted before the dump
    dump = tmp_path / "dump"
    run_program(driver.engine, "pg_dump", "--format=custom", f"--file={dump}")

    with another_server(dump, "soon", "late") as (soon, late):
        for restored in (soon, late):
            restored.finish(restored.run())  # before an orchestrator has started here
        assert counted(soon.engine) == 5
        for _ in range(2):
            use_numbers(soon.engine)  # the numbers of the other server are reached here
        soon.finish(soon.run())
        assert counted(soon.engine) == 6

        # No orchestrator has started until now.
        assert counted(late.engine) == 5
        late.finish(late.run())
        assert counted(late.engine) == 6
        assert next_range(late.engine) is None  # it notices that the server is another one
        found = next_range(late.engine)
        assert found is not None
        assert found.low == 0
        assert found.since is not None


def test_another_cluster_that_continues_the_numbers_is_counted_once(driver: LifecycleDriver) -> None:
    for _ in range(2):
        driver.finish(driver.run())
    assert counted(driver.engine) == 2
    driver.finish(driver.run())
    driver.sql("UPDATE statistics_state SET cluster = 1")  # as after pg_upgrade
    assert counted(driver.engine) == 3
    driver.finish(driver.run())
    assert counted(driver.engine) == 4


def test_cluster_is_unknown_to_a_role_without_the_right(driver: LifecycleDriver) -> None:
    driver.finish(driver.run())
    driver.sql("CREATE ROLE without_the_right IN ROLE pg_write_all_data, pg_read_all_data")
    try:
        driver.sql("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
        with driver.engine.connect() as connection:
            connection.execute(text("SET ROLE without_the_right"))
            assert connection.scalar(text("SELECT minion_cluster()")) is None
            connection.rollback()
            assert connection.scalar(text("SELECT minion_cluster()")) is not None
    finally:
        driver.sql("GRANT EXECUTE ON FUNCTION pg_control_system() TO PUBLIC")
        driver.sql("DROP ROLE without_the_right")
