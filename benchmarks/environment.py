"""The private servers of a run (PostgreSQL, Valkey, a model), a database for each system, and the processes."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import redis
from sqlalchemy import create_engine, make_url, text

from benchmarks.processes import Processes
from minions import testing
from orchestrator.local.embedded import Addresses, EmbeddedServers, scratch_dir
from shared.settings import get_settings
from tests.support.processes import Process

DONE = testing.text("Done.")
REDIS_DATABASES = 16  # Valkey's default


class Environment:
    """Servers with durable settings, and the processes that use them. Everything ends and is removed with the block.

    Args:
        replies: the script of the model (see `minions.testing.MessagesApi`); empty: there is no model.

    Attributes:
        folder: scratch folder of the run, with the output of every process.
        addresses: of the servers.
    """

    folder: Path
    addresses: Addresses

    def __init__(self, replies: Sequence[testing.Reply] = (DONE,)) -> None:
        self._replies = replies
        self._stack = ExitStack()
        self._redis_databases: dict[str, int] = {}
        self._launched = 0

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.folder = stack.enter_context(scratch_dir())
            self._servers = stack.enter_context(EmbeddedServers(self.folder))
            self.addresses = self._servers.start()
            configure(self.addresses, self.folder)
            self._stack = stack.pop_all()
            if self._replies:
                self._serve_replies()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def database(self, name: str) -> str:
        """Create an empty database, and return its address for libpq."""
        address = make_url(self.addresses.database_url)
        engine = create_engine(address, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(f'CREATE DATABASE "{name}"'))
        engine.dispose()
        return address.set(drivername="postgresql", database=name).render_as_string(hide_password=False)

    def redis(self, name: str) -> str:
        """Return the address of a Redis database that no other name has. Database 0 belongs to Minions."""
        number = self._redis_databases.setdefault(name, len(self._redis_databases) + 1)
        if number >= REDIS_DATABASES:
            raise ValueError(f"{name}: Redis has {REDIS_DATABASES} databases, and all are in use.")
        return self.addresses.redis_url.replace("db=0", f"db={number}")

    def launch(self, arguments: list[str], environment: Mapping[str, str] | None = None) -> Process:
        """Start a program of this Python environment. It is stopped at the end, with its children."""
        self._launched += 1
        log = self.folder / f"process-{self._launched}.log"
        plain = {"PYTHONWARNINGS": "", "PYTHONDONTWRITEBYTECODE": ""}  # as a user would start it
        process = Process(arguments, log, {**plain, **(environment or {})})
        self._stack.callback(_end, process)
        return process

    def server_pids(self) -> dict[str, int]:
        """Return the main processes of the servers."""
        return {"PostgreSQL": self._servers.postgres.pid, "Redis": self._servers.valkey.pid}

    def server_seconds(self, processes: Processes) -> dict[str, float]:
        """Return the processor time of the servers."""
        return {name: processes.tree(pid) for name, pid in self.server_pids().items()}

    def serve_model(self, arguments: Sequence[str]) -> None:
        """Start a server of the Messages API, which takes its port as the last argument, for all later processes."""
        port = free_port()
        os.environ |= {
            "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{port}",
            "ANTHROPIC_API_KEY": testing.KEY,
            "NO_PROXY": "127.0.0.1",
        }
        get_settings.cache_clear()
        self.launch([sys.executable, "-m", *arguments, str(port)])

    def _serve_replies(self) -> None:
        script = self.folder / "replies.json"
        script.write_text(json.dumps(self._replies))
        self.serve_model(["minions.testing", str(script), "--port"])

    def versions(self) -> dict[str, str]:
        """Return the versions of the servers."""
        engine = create_engine(self.addresses.database_url)
        with engine.connect() as connection, redis.Redis.from_url(self.addresses.redis_url) as client:
            postgres = str(connection.scalar(text("SHOW server_version")))
            information: dict[str, str] = client.info("server")  # type: ignore[assignment]
        engine.dispose()
        return {"PostgreSQL": postgres, "Valkey": information.get("valkey_version", information["redis_version"])}


def configure(addresses: Addresses, folder: Path) -> None:
    """Configure Minions for this process and its children."""
    os.environ |= {
        "DATABASE_URL": addresses.database_url,
        "REDIS_URL": addresses.redis_url,
        "MINION_API_KEY": "benchmark-benchmark",
        "MINION_API_PORT": str(free_port()),
        "MINION_DATA_DIR": str(folder / "data"),
        "MINION_LOG_LEVEL": "WARNING",
    }
    get_settings.cache_clear()


def free_port() -> int:
    """Return a loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end(process: Process) -> None:
    try:
        process.stop(timeout=10)
    except AssertionError:
        process.kill()
    else:
        process.kill()  # what it may have left behind in its process group
