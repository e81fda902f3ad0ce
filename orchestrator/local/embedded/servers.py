"""Both private servers of one data folder, and the ownership of that folder."""

from __future__ import annotations

import atexit
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from orchestrator.local.embedded.binaries import find_binaries
from orchestrator.local.embedded.locks import disown, try_own
from orchestrator.local.embedded.postgres import Postgres
from orchestrator.local.embedded.sockets import make_socket_dir, remove_socket_dir
from orchestrator.local.embedded.system_user import SystemUser, closed_folder, make_folder, server_user, write_private
from orchestrator.local.embedded.valkey import Valkey
from shared.errors import Conflict, Unavailable

OWNER_LOCK = "owner.lock"
SOCKET_RECORD = "sockets"
_Server = TypeVar("_Server", Postgres, Valkey)


@dataclass(frozen=True)
class Addresses:
    """Addresses of the servers, passwords included.

    Attributes:
        database_url: for SQLAlchemy, `postgresql+psycopg://minions:…@/minions?host=…&port=…`.
        redis_url: for redis-py, `unix://:…@/….sock?db=0`.
    """

    database_url: str
    redis_url: str


class EmbeddedServers:
    """A PostgreSQL and a Valkey that belong to one data folder and to the process that starts them.

    On Linux they end when that process does, however it ends. Elsewhere, after a `kill -9`, they run on until
    the next start in the same data folder ends them. As root they run as another user, which must be able to pass
    through the data folder.
    """

    def __init__(self, data_dir: Path, *, durable: bool = True) -> None:
        """Configure the servers; nothing happens before `start()`.

        Args:
            data_dir: holds everything; created if missing.
            durable: False trades safety at power loss for speed: no fsync, no append-only file. For tests.
        """
        self.data_dir = data_dir.expanduser().resolve()
        self.durable = durable
        self._owner_pid = 0
        self._lock: int | None = None
        self._postgres: Postgres | None = None
        self._valkey: Valkey | None = None

    @property
    def postgres(self) -> Postgres:
        """The PostgreSQL server, for fault tests. Only between `start()` and `stop()`."""
        return _started(self._postgres)

    @property
    def valkey(self) -> Valkey:
        """The Valkey server, for fault tests. Only between `start()` and `stop()`."""
        return _started(self._valkey)

    def start(self) -> Addresses:
        """Start the servers that do not run yet; both answer when this returns.

        The addresses stay the same until `stop()`.

        Raises:
            Conflict: another process owns the data folder, or a server from an earlier run cannot be ended.
            Unavailable: a server cannot start; the message says why and shows the end of its log.
        """
        try:
            self._open()
            self.postgres.start()
            self.valkey.start()
        except OSError as error:
            self.stop()
            raise Unavailable(f"The private servers cannot start in {self.data_dir}: {error}.") from error
        except BaseException:
            self.stop()
            raise
        return Addresses(self.postgres.url, self.valkey.url)

    def stop(self) -> None:
        """End both servers in good order and wait for them. Do nothing if they do not run."""
        if self._lock is None or self._owner_pid != os.getpid():  # a forked child owns nothing
            return
        try:
            for server in (self._valkey, self._postgres):
                if server is not None:
                    server.stop()
            remove_socket_dir(self.data_dir / SOCKET_RECORD)
        finally:
            self._close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _open(self) -> None:
        """Take ownership of the data folder and prepare it."""
        if self._lock is not None:
            self._refuse_in_child()
            return
        user = server_user(self.data_dir / "postgres")
        _make_data_dir(self.data_dir, user)
        self._lock = self._own()
        self._owner_pid = os.getpid()
        atexit.register(self.stop)
        password = _password_file(self.data_dir, user)
        remove_socket_dir(self.data_dir / SOCKET_RECORD)
        sockets = make_socket_dir(self.data_dir / SOCKET_RECORD, user)
        parts = (self.data_dir, find_binaries(user), user, sockets, password, self.durable)
        self._postgres, self._valkey = Postgres(*parts), Valkey(*parts)

    def _own(self) -> int:
        path = self.data_dir / OWNER_LOCK
        lock = try_own(path)
        if lock is None:
            pid = path.read_text().strip()
            raise Conflict(
                f"The private servers in {self.data_dir} belong to process {pid}, which is running: "
                "stop it first, or choose another folder with MINION_DATA_DIR.",
                pid=int(pid) if pid.isdigit() else None,
            )
        return lock

    def _close(self) -> None:
        atexit.unregister(self.stop)
        if self._lock is not None:
            disown(self._lock)
        self._lock = self._postgres = self._valkey = None

    def _refuse_in_child(self) -> None:
        if self._owner_pid != os.getpid():
            raise Conflict(f"The servers belong to process {self._owner_pid}, from which this one was forked.")


def _started(server: _Server | None) -> _Server:
    if server is None:
        raise Unavailable("The private servers are not started: call start() first.")
    return server


def _make_data_dir(data_dir: Path, user: SystemUser | None) -> None:
    make_folder(data_dir, user)
    if user:
        data_dir.chmod(data_dir.stat().st_mode | 0o011)  # permission to pass through; names in it stay unlisted
    make_folder(data_dir / "logs", None)
    if closed := closed_folder(data_dir, user):
        raise Unavailable(
            f"PostgreSQL refuses root and runs as the user {user.name if user else ''}, which cannot enter {closed}: "
            "choose a data folder below /var/lib with MINION_DATA_DIR, or run as an ordinary user."
        )


def _password_file(data_dir: Path, user: SystemUser | None) -> Path:
    """Return the file with both servers' password, created once; initdb reads it too, as the servers' user."""
    path = data_dir / "server_password"
    if path.exists():
        return path
    if (data_dir / "postgres").exists():
        raise Unavailable(f"{path} is missing, and {data_dir / 'postgres'} needs the password in it: restore it.")
    draft = path.with_name(f"{path.name}.draft")
    write_private(draft, secrets.token_urlsafe(24), user)
    draft.rename(path)
    return path
