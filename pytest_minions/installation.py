"""An installation for tests: its database, its API, and how its tasks run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import pytest
from sqlalchemy import Engine

from minions import Client
from pytest_minions.database import empty
from pytest_minions.kit import Minions, Runner
from pytest_minions.servers import Servers


class System(Runner, Protocol):
    """How the tasks of an installation run, and which tables outlive a test."""

    kept: tuple[str, ...]


@dataclass(frozen=True)
class Installation:
    """A running installation.

    Attributes:
        url: the address of its API.
        variables: the environment of its processes.
    """

    servers: Servers
    engine: Engine
    url: str
    variables: Mapping[str, str]
    system: System
    _holders: list[str] = field(default_factory=list)

    @contextmanager
    def kept_for(self, fixture: str) -> Iterator[None]:
        """Refuse to empty it during the block."""
        self._holders.append(fixture)
        try:
            yield
        finally:
            self._holders.remove(fixture)

    @contextmanager
    def emptied(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Minions]:
        """Empty it for a test. The code under test finds it as in production, by its environment."""
        if self._holders:
            pytest.fail(
                f"This would empty what {self._holders[0]!r} keeps for the tests of this module: use that here too."
            )
        empty(self.engine, but=self.system.kept)
        with monkeypatch.context() as environment, Client(self.url, self.servers.api_key) as client:
            environment.setenv("MINION_API_URL", self.url)
            environment.setenv("MINION_API_KEY", self.servers.api_key)
            for name in ("NO_PROXY", "ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL"):
                environment.setenv(name, self.variables[name])
            yield Minions(
                client=client,
                model=self.servers.model,
                engine=self.engine,
                database_url=self.variables["DATABASE_URL"],
                redis_url=self.variables["REDIS_URL"],
                runner=self.system,
            )
