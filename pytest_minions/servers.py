"""The servers of a test session: one PostgreSQL, one Valkey, one scripted model.

Each process has its own, so that with pytest-xdist no worker depends on another. A migrated database is the template
from which the databases of the installations are copied.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from sqlalchemy import create_engine, make_url, text

from minions.testing import KEY, MessagesApi, messages_api
from orchestrator.local.embedded import EmbeddedServers, scratch_dir
from orchestrator.local.embedded.servers import Addresses
from shared.database.schema import migrate
from shared.secret_store import new_key

# Variables of the machine that must not reach a test: other servers, real models, error reports, traces.
UNSET = (
    "SENTRY_DSN DATABASE_URL_FILE REDIS_URL_FILE SENTRY_DSN_FILE ANTHROPIC_API_KEY_FILE MINION_API_KEY_FILE "
    "MINION_SECRET_KEY_FILE MINION_API_URL MINION_ALERT_URLS OTEL_EXPORTER_OTLP_ENDPOINT "
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
).split()


@dataclass(frozen=True)
class Servers:
    """The running servers.

    Attributes:
        model: the scripted model, with which all workers of the session speak.
    """

    folder: Path
    addresses: Addresses
    model: MessagesApi
    api_key: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    secret_key: str = field(default_factory=new_key)

    def variables(self, name: str, broker: int) -> dict[str, str]:
        """Create the database of an installation; return the environment of its processes.

        Args:
            broker: number of its database in Valkey.
        """
        url = make_url(self.addresses.database_url)
        _copy_template(self.addresses.database_url, name)
        redis = urlsplit(self.addresses.redis_url)._replace(query=f"db={broker}")
        return {
            **dict.fromkeys(UNSET, ""),
            "DATABASE_URL": url.set(database=name).render_as_string(hide_password=False),
            "REDIS_URL": redis.geturl(),
            "MINION_API_KEY": self.api_key,
            "MINION_SECRET_KEY": self.secret_key,
            "MINION_DATA_DIR": str(self.folder / name),
            "MINION_API_HOST": "127.0.0.1",
            "MINION_API_PORT": "0",
            "ANTHROPIC_API_KEY": KEY,
            "ANTHROPIC_BASE_URL": self.model.url,
            "NO_PROXY": "127.0.0.1",
            "OTEL_SDK_DISABLED": "true",
        }


@contextmanager
def serving() -> Iterator[Servers]:
    """Run the servers, with a migrated database as the template of others."""
    with scratch_dir() as folder, EmbeddedServers(folder, durable=False) as running, messages_api() as model:
        addresses = running.start()
        template = create_engine(addresses.database_url)
        migrate(template)
        template.dispose()  # a template must have no connections
        yield Servers(folder, addresses, model)


def _copy_template(url: str, name: str) -> None:
    engine = create_engine(make_url(url).set(database="postgres"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {make_url(url).database}"))
    engine.dispose()
