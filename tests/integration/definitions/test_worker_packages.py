"""Functions may import the packages that the live workers of their capability preload."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from shared.contracts.documents import parse_definition
from shared.definitions.apply import store_definitions
from shared.errors import InvalidDefinition
from shared.settings import Settings
from tests.support.definitions import function_definition
from workers.heartbeat import Heartbeat

CODE = "def total(x):\n    import acme_rates\n    return acme_rates.RATE * x\n"
USER = {
    "kind": "agent",
    "name": "User",
    "type": "function",
    "function": "total",
    "config": {"capabilities": ["sums"]},
}


def register(database: Engine, packages: list[str] | None, capability: str = "sums", age: str = "0 s") -> None:
    with database.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO workers (name, capabilities, slots, pool, host, pid, version, packages, last_seen) "
                "VALUES ('w', ARRAY[:capability], 1, 'solo', 'h', 1, '1', :packages, now() - CAST(:age AS interval))"
            ),
            {"capability": capability, "packages": packages, "age": age},
        )


def apply(database: Engine, *definitions: dict[str, Any]) -> None:
    with Session(database) as session:
        store_definitions(session, [parse_definition(definition) for definition in definitions])


def total(*imports: str) -> dict[str, Any]:
    return function_definition("total", CODE, config={"allowed_imports": ["json", *imports]})


def test_package_preloaded_by_a_worker_is_accepted(database: Engine) -> None:
    register(database, [])
    register(database, ["acme_rates"])
    apply(database, total("acme_rates"), USER)


def test_package_that_no_live_worker_preloads_is_refused(database: Engine) -> None:
    register(database, ["numpy"])
    register(database, ["acme_rates"], age="1 hour")
    with pytest.raises(InvalidDefinition, match="allowed_imports: acme_rates cannot be imported"):
        apply(database, total("acme_rates"))


def test_package_of_another_capability_is_refused_for_the_agent(database: Engine) -> None:
    register(database, ["acme_rates"], capability="other")
    register(database, [])
    apply(database, total("acme_rates"))
    with pytest.raises(InvalidDefinition, match=r"'User'.*'total' imports acme_rates.*capability 'sums'"):
        apply(database, USER)
    tool = {"kind": "tool", "name": "summing", "type": "function", "function": "total"}
    with pytest.raises(InvalidDefinition, match="'total' imports acme_rates"):
        apply(database, tool, {**USER, "type": "agent", "function": None, "tools": ["summing"]})


@pytest.mark.parametrize("reported", [False, True])
def test_packages_are_unchecked_without_worker_reports(database: Engine, reported: bool) -> None:
    if reported:
        register(database, None)
    apply(database, total("acme_rates"), USER)
    with pytest.raises(InvalidDefinition, match="subprocess cannot be imported"):
        apply(database, total("subprocess"))


def test_worker_reports_preloaded_packages(database: Engine) -> None:
    settings = Settings().model_copy(update={"sandbox_preload": ["colorsys", "no_such_package"]})
    app = SimpleNamespace(amqp=SimpleNamespace(queues=SimpleNamespace(consume_from={"sums": None})))
    worker = SimpleNamespace(
        hostname="w", app=app, pool=SimpleNamespace(num_processes=1), pool_cls=SimpleNamespace(__module__="celery.solo")
    )
    heartbeat = Heartbeat(settings, worker)
    heartbeat._register()
    heartbeat.engine.dispose()
    with database.connect() as connection:
        assert connection.scalar(text("SELECT packages FROM workers")) == ["colorsys"]
