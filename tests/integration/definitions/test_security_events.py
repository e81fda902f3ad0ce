"""Security events of functions, and the quarantine that follows."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, create_engine, select, text
from sqlalchemy.orm import Session

from shared.database.tables import FunctionVersion
from shared.definitions.function_store import FunctionStore
from shared.errors import FunctionError
from shared.functions import security_events
from shared.functions.runner import verify
from shared.settings import get_settings

SPIN = "def spin(on):\n    while on:\n        pass\n    return 1\n"


@pytest.fixture
def store(database: Engine) -> FunctionStore:
    with Session(database) as session:
        return FunctionStore(session)


@pytest.fixture
def quarantine_after_two(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MINION_QUARANTINE_AFTER", "2")
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


def put(store: FunctionStore, name: str, code: str, **settings: Any) -> None:
    asyncio.run(store.store_function(name, code, **settings))


def run(store: FunctionStore, name: str, **arguments: Any) -> Any:
    return asyncio.run(store.execute_function(name, arguments))


def kinds(store: FunctionStore, name: str) -> list[str]:
    return [event.kind for event in store.events(name)]


def test_a_limit_kill_is_recorded_with_the_limit(store):
    put(store, "spin", SPIN, timeout=0.2)

    with pytest.raises(FunctionError) as caught:
        run(store, "spin", on=True)

    assert caught.value.detail["limit"] == 0.2
    (event,) = store.events("spin")
    assert event.kind == "timeout"
    assert event.detail["limit"] == 0.2


def test_an_exception_of_the_function_is_no_security_event(store):
    put(store, "fail", "def fail():\n    raise ValueError('no')\n")

    with pytest.raises(FunctionError, match="ValueError: no"):
        run(store, "fail")

    assert kinds(store, "fail") == []


def test_event_over_threshold_quarantines_version(store, quarantine_after_two):
    put(store, "spin", SPIN, timeout=0.1)

    with pytest.raises(FunctionError) as first:
        run(store, "spin", on=True)
    with pytest.raises(FunctionError, match="now quarantined"):
        run(store, "spin", on=True)
    with pytest.raises(FunctionError, match="is quarantined and is not run: 2 security events") as refused:
        run(store, "spin", on=False)

    assert "quarantined" not in first.value.message
    assert refused.value.detail["reason"] == "quarantined"


def test_release_allows_running_and_resets_count(store, quarantine_after_two):
    put(store, "spin", SPIN, timeout=0.1)
    for _ in range(2):
        with pytest.raises(FunctionError):
            run(store, "spin", on=True)

    store.set_status("spin", "active")

    assert run(store, "spin", on=False) == 1
    with pytest.raises(FunctionError) as again:
        run(store, "spin", on=True)
    assert "quarantined" not in again.value.message


def stored(store: FunctionStore, name: str) -> UUID:
    put(store, name, f"def {name}():\n    return 1\n")
    return store.versions(name)[0].id


def test_a_limit_counts_for_an_hour(store, database, quarantine_after_two):
    version = stored(store, "f")
    assert security_events.record(database, version, "timeout", {}) == "active"
    with database.begin() as connection:
        connection.execute(text("UPDATE security_events SET created_at = now() - interval '61 minutes'"))
        connection.execute(text("UPDATE function_versions SET released_at = now() - interval '1 year'"))

    assert security_events.record(database, version, "memory_limit", {}) == "active"
    assert security_events.record(database, version, "crashed", {}) == "quarantined"


def test_a_task_that_meets_limits_again_and_again_counts_once(store, database, driver, quarantine_after_two):
    version = stored(store, "f")
    one, other = driver.submit(), driver.submit()
    for kind in ("timeout", "memory_limit", "timeout"):
        assert security_events.record(database, version, kind, {}, task_id=one) == "active"

    assert security_events.record(database, version, "timeout", {}, task_id=other) == "quarantined"
    assert len(kinds(store, "f")) == 4


def test_each_denied_call_counts(store, database, driver, quarantine_after_two):
    version, task = stored(store, "f"), driver.submit()
    assert security_events.record(database, version, "security", {}, task_id=task) == "active"
    with database.begin() as connection:
        connection.execute(text("UPDATE security_events SET created_at = now() - interval '1 month'"))
        connection.execute(text("UPDATE function_versions SET released_at = now() - interval '1 year'"))

    assert security_events.record(database, version, "import_denied", {}, task_id=task) == "quarantined"


def test_manual_quarantine_holds_for_one_version(store):
    put(store, "f", "def f():\n    return 1\n")
    store.set_status("f", "quarantined", reason="looked odd")
    with pytest.raises(FunctionError, match="looked odd"):
        run(store, "f")

    put(store, "f", "def f():\n    return 2\n")

    assert run(store, "f") == 2
    assert [version.status for version in store.versions("f")] == ["active", "quarantined"]


def test_another_process_learns_of_it_within_a_second(store, database, monkeypatch):
    put(store, "f", "def f():\n    return 1\n")
    assert run(store, "f") == 1
    with database.begin() as connection:
        connection.execute(text("UPDATE function_versions SET status = 'quarantined'"))

    monkeypatch.setattr(security_events, "FRESH_SECONDS", 0.0)

    with pytest.raises(FunctionError, match="quarantined"):
        run(store, "f")


@pytest.fixture
def tampered(store, database):
    put(store, "f", "def f():\n    return 1\n")
    with database.begin() as connection:
        connection.execute(text("ALTER TABLE function_versions DISABLE TRIGGER function_versions_immutable"))
        connection.execute(
            text("UPDATE function_versions SET definition = jsonb_set(definition, '{code}', '\"def f(): return 2\"')")
        )
        connection.execute(text("ALTER TABLE function_versions ENABLE TRIGGER function_versions_immutable"))


def test_tampered_code_is_not_run_and_is_recorded(store, tampered):
    with pytest.raises(FunctionError, match="does not match its stored SHA-256"):
        run(store, "f")

    assert kinds(store, "f") == ["hash_mismatch"]


def test_tampered_code_is_recorded_with_a_single_connection(store, tampered, database):
    """Many tasks share few connections: if each held one and waited for another, all would wait."""
    engine = create_engine(database.url, pool_size=1, max_overflow=0, pool_timeout=1)

    with Session(engine) as session, pytest.raises(FunctionError, match="does not match its stored SHA-256"):
        verify(session.scalars(select(FunctionVersion)).one(), engine)

    engine.dispose()
    assert kinds(store, "f") == ["hash_mismatch"]


def test_too_much_memory_is_recorded(store):
    put(store, "eat", "def eat():\n    return len(bytearray(10**9))\n", memory_limit=32)

    with pytest.raises(FunctionError) as caught:
        run(store, "eat")

    assert caught.value.detail["reason"] == "memory_limit"
    assert kinds(store, "eat") == ["memory_limit"]


def test_diff_shows_changes(store):
    put(store, "f", "def f():\n    return 1\n")
    put(store, "f", "def f():\n    return 2\n")

    difference = store.diff("f", 1, 2)

    changed = [line[0] + line[1:].strip() for line in difference.splitlines() if "return" in line]
    assert changed == ["-return 1", "+return 2"]
