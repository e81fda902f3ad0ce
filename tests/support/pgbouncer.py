"""A real PgBouncer in front of the tests' PostgreSQL."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL, make_url

from orchestrator.local.embedded.system_user import give, server_user
from tests.support.processes import wait_until

PORT = 6432
CONFIGURATION = """\
[databases]
{name} = host={host} port={port} user={user} password={password}
[pgbouncer]
listen_port = {own_port}
unix_socket_dir = {folder}
logfile = {folder}/log
auth_type = any
pool_mode = {mode}
default_pool_size = 60
max_client_conn = 200
"""


def installed() -> bool:
    """Return whether this machine has the program."""
    return shutil.which("pgbouncer") is not None


@contextmanager
def pooling(database_url: str, mode: str, **options: str) -> Iterator[str]:
    """Run a pooler in a mode; yield the address through it. Other settings have their defaults, or come as options."""
    url, user = make_url(database_url), server_user()
    folder = Path(tempfile.mkdtemp(prefix="pgbouncer-"))
    configuration = folder / "pgbouncer.ini"
    configuration.write_text(
        CONFIGURATION.format(
            name=url.database,
            host=url.query["host"],
            port=url.query["port"],
            user=url.username,
            password=url.password,
            own_port=PORT,
            folder=folder,
            mode=mode,
        )
        + "".join(f"{name} = {value}\n" for name, value in options.items())
    )
    for path in (folder, configuration):
        give(path, user, 0o700)
    identity = {"user": user.uid, "group": user.gid, "extra_groups": []} if user else {}
    process = subprocess.Popen(["pgbouncer", configuration], stderr=subprocess.DEVNULL, **identity)  # type: ignore[call-overload]
    try:
        wait_until((folder / f".s.PGSQL.{PORT}").exists, f"PgBouncer listens in {folder}")
        yield _through(url, folder).render_as_string(hide_password=False)
    finally:
        process.terminate()
        process.wait(10)
        shutil.rmtree(folder)


def _through(url: URL, folder: Path) -> URL:
    return url.set(query={"host": str(folder), "port": str(PORT)})
