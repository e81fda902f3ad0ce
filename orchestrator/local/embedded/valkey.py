"""A private Valkey server (it speaks Redis' protocol) in one data folder."""

from __future__ import annotations

import signal
from pathlib import Path
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from orchestrator.local.embedded.binaries import Binaries
from orchestrator.local.embedded.server import Server
from orchestrator.local.embedded.system_user import SystemUser, give, write_private
from orchestrator.local.embedded.traces import Traces

SOCKET = "valkey.sock"
CONFIGURATION = "valkey.conf"


def traces(data_dir: Path) -> Traces:
    """Return the traces by which a running Valkey of this data folder is recognised."""
    return Traces(
        lock=data_dir / "valkey.lock",
        pid_file=data_dir / "valkey" / "valkey.pid",
        marker=f"/valkey-server {data_dir / CONFIGURATION}",
        stop_signal=signal.SIGTERM,
    )


class Valkey(Server):
    """Valkey with an append-only file (written to disk every second) when durable, else in memory only."""

    name = "Valkey"
    death_signal = signal.SIGTERM
    stop_signals = ((signal.SIGTERM, 20.0), (signal.SIGKILL, 5.0))

    def __init__(
        self,
        data_dir: Path,
        binaries: Binaries,
        user: SystemUser | None,
        socket_dir: Path,
        password_file: Path,
        durable: bool,
    ) -> None:
        super().__init__(traces(data_dir), data_dir / "logs" / "valkey.log", user)
        self.folder = data_dir / "valkey"
        self.configuration = data_dir / CONFIGURATION
        self.program = binaries.valkey
        self.socket = socket_dir / SOCKET
        self.password_file = password_file
        self.durable = durable

    @property
    def url(self) -> str:
        """The address for redis-py."""
        return f"unix://:{self.password_file.read_text()}@{quote(str(self.socket))}?db=0"

    def prepare(self, lock: int) -> None:
        self.folder.mkdir(exist_ok=True)
        give(self.folder, self.user, 0o700)
        write_private(self.configuration, self._configuration(), self.user)

    def command(self) -> list[str]:
        return [str(self.program), str(self.configuration)]

    def probe(self) -> str | None:
        client = redis.Redis.from_url(self.url, socket_timeout=5, retry=Retry(NoBackoff(), 0))
        try:
            client.ping()
        except (redis.ConnectionError, redis.TimeoutError) as error:  # raised while it loads its file, too
            return str(error)
        finally:
            client.close()
        return None

    def recovers(self, reason: str) -> bool:
        return "loading" in reason

    def _configuration(self) -> str:
        """Write a configuration file: arguments would be visible to every user of the machine."""
        settings = {
            "port": "0",
            "unixsocket": _quote(self.socket),
            "unixsocketperm": "700",
            "requirepass": self.password_file.read_text(),
            "dir": _quote(self.folder),
            "pidfile": _quote(self.traces.pid_file),
            "set-proc-title": "no",  # the command line identifies the process
            "logfile": '""',
            "loglevel": "notice",
            "save": '""',
            "appendonly": "yes" if self.durable else "no",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",  # a broker must not evict messages
        }
        return "".join(f"{name} {value}\n" for name, value in settings.items())


def _quote(path: Path) -> str:
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
