"""A dump that is restored into another server, whose transactions have lower numbers."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import create_engine, text

from orchestrator.local.embedded import EmbeddedServers, scratch_dir
from orchestrator.observe.counting import catch_up
from tests.support.lifecycle_driver import LifecycleDriver
from tests.support.postgres_programs import run_program

COUNTED = text("SELECT COALESCE(sum(count), 0)::integer FROM statistics WHERE kind = 'task' AND grain = 'total'")
USE_NUMBERS = text("DO $$ BEGIN FOR n IN 1..20000 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$")


def test_restored_dump_is_counted_once(driver: LifecycleDriver, tmp_path: Path) -> None:
    with driver.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(USE_NUMBERS)
    for _ in range(3):
        driver.finish(driver.run())
    catch_up(driver.engine)
    driver.finish(driver.run())  # not counted before the dump
    dump = tmp_path / "dump"
    run_program(driver.engine, "pg_dump", "--format=custom", f"--file={dump}")

    with scratch_dir() as folder, EmbeddedServers(folder, durable=False) as servers:
        engine = create_engine(servers.start().database_url)
        run_program(engine, "pg_restore", "--no-owner", f"--dbname={engine.url.database}", str(dump))
        restored = LifecycleDriver(engine)
        restored.finish(restored.run())  # before an orchestrator has started here
        catch_up(engine)
        with engine.connect() as connection:
            assert connection.scalar(COUNTED) == 5
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(USE_NUMBERS)
            connection.execute(USE_NUMBERS)  # the numbers of the other server are reached here
        restored.finish(restored.run())
        catch_up(engine)
        with engine.connect() as connection:
            assert connection.scalar(COUNTED) == 6
        engine.dispose()
