"""PostgreSQL and Valkey for one process, as the installation that its environment names."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from orchestrator.local.embedded import EmbeddedServers, scratch_dir
from shared.database.connections import close_engine, get_engine
from shared.database.schema import migrate
from shared.notifications import forget_publisher
from shared.secret_store import new_key
from shared.settings import get_settings


@contextmanager
def private_servers() -> Iterator[tuple[EmbeddedServers, pytest.MonkeyPatch]]:
    """Start servers with a migrated database. Their addresses, an API key and a secret key are in the environment,
    which the second value changes until the end.
    """
    with (
        scratch_dir() as folder,
        EmbeddedServers(folder, durable=False) as running,
        pytest.MonkeyPatch.context() as env,
    ):
        addresses = running.start()
        env.setenv("DATABASE_URL", addresses.database_url)
        env.setenv("REDIS_URL", addresses.redis_url)
        env.setenv("MINION_API_KEY", secrets.token_urlsafe(16))
        env.setenv("MINION_SECRET_KEY", new_key())
        env.setenv("MINION_DATA_DIR", str(folder / "minion"))
        env.setenv("XDG_STATE_HOME", str(folder / "state"))
        for name in ("MINION_API_URL", "ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL", "SENTRY_DSN"):
            env.delenv(name, raising=False)
        forget_process_state()
        migrate(get_engine())
        yield running, env
        forget_process_state()
    get_settings.cache_clear()


def forget_process_state() -> None:
    """Forget settings, connections and the like, so that their next use recreates them."""
    close_engine()
    forget_publisher()
    get_settings.cache_clear()
