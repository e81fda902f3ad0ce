"""The audit log: append-only, signed, chained; verification finds every way to tamper with it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import ANY

import pytest
from cryptography.fernet import Fernet
from pydantic import SecretStr
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import ProgrammingError
from structlog.testing import capture_logs

from orchestrator.maintenance.sealer import Sealer
from shared.access import actors
from shared.access.actors import Actor, bootstrap_key
from shared.audit import chain, log
from shared.audit.log import AuditFilter
from shared.audit.signing import Link, Signer
from shared.audit.verification import Report, verify
from shared.errors import NotConfigured, Unavailable
from shared.settings import Settings, get_settings

ADMIN = Actor(bootstrap_key("0f1e2d3c"), "Ann", "10.0.0.7", "request-1")


@pytest.fixture
def signer(settings: Settings) -> Signer:
    return Signer.of(settings)


@pytest.fixture
def acts(database: Engine, signer: Signer) -> Callable[..., None]:
    """Writes acts, each in its own transaction, and seals them."""

    def write(*targets: str, sealed: bool = True) -> None:
        for target in targets:
            with database.begin() as connection:
                log.record(connection, ADMIN, "task.cancel", target, namespace="default", after={"reason": target})
        if sealed:
            seal_all(database, signer)

    return write


def seal_all(database: Engine, signer: Signer) -> None:
    with database.begin() as connection:
        while chain.seal(connection, signer):
            pass


def check(database: Engine, signer: Signer, **options: Any) -> Report:
    with database.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        return verify(connection, signer, **options)


def kinds(report: Report) -> list[str]:
    return [fault.kind for fault in report.faults]


@contextmanager
def as_owner(database: Engine) -> Iterator[Connection]:
    """A transaction of the tables' owner, who has disabled the triggers."""
    with database.begin() as connection:
        for table in ("audit_log", "audit_ends"):
            connection.execute(text(f"ALTER TABLE {table} DISABLE TRIGGER USER"))
        yield connection
        for table in ("audit_log", "audit_ends"):
            connection.execute(text(f"ALTER TABLE {table} ENABLE TRIGGER USER"))


def read(database: Engine, **chosen: Any) -> list[dict[str, Any]]:
    with database.connect() as connection:
        return log.list_rows(connection, AuditFilter(**chosen), limit=100)


# ------------------------------------------------------------------------------------------------------------ writing


def test_row_has_actor_act_target_and_facts(database: Engine, acts: Callable[..., None]) -> None:
    acts("t1")
    assert read(database) == [
        {
            "id": ANY,
            "at": ANY,
            "act": "task.cancel",
            "actor": "bootstrap",
            "key_prefix": "api:0f1e2d3c",
            "claimed": "Ann",
            "address": "10.0.0.7",
            "request_id": "request-1",
            "namespace": "default",
            "target": "t1",
            "before": None,
            "after": {"reason": "t1"},
            "position": 1,
            "hash": ANY,
        }
    ]


def test_act_and_row_commit_together(database: Engine) -> None:
    with database.connect() as connection:
        log.record(connection, ADMIN, "task.cancel", "t1", namespace="default")
        connection.rollback()
    assert read(database) == []


def test_act_is_refused_when_the_row_cannot_be_written(database: Engine) -> None:
    with database.connect() as connection:
        connection.execute(text("ALTER TABLE audit_log RENAME TO gone"))
        with pytest.raises(Unavailable, match=r"refused, and nothing was changed: the audit log .*\"audit_log\" does"):
            log.record(connection, ADMIN, "task.cancel", "t1", namespace="default")


def test_text_that_cannot_be_stored_is_replaced(database: Engine, signer: Signer) -> None:
    odd = "a\0b\ud800 ü \U0001f600"
    with database.begin() as connection:
        log.record(connection, ADMIN, "odd", odd, namespace=odd, after={odd: odd, "n": 1e300, "small": 1e-7})
    seal_all(database, signer)
    assert check(database, signer).faults == []
    [row] = read(database)
    assert row["target"] == "a\ufffdb\ufffd ü \U0001f600"
    assert row["after"] == {row["target"]: row["target"], "n": 1e300, "small": 1e-7}


def test_large_facts_are_left_out(database: Engine) -> None:
    with database.begin() as connection:
        log.record(connection, ADMIN, "x", namespace=None, after={"a": "x" * 1000})
        log.record(connection, ADMIN, "x", namespace=None, after={str(n): n for n in range(10_000)})
    large, long = (row["after"] for row in read(database))
    assert long["a"] == "x" * 500 + "…"
    assert large == {"left_out": "137780 bytes of facts"}


def test_user_of_the_operating_system_is_named() -> None:
    assert actors.local_actor().key.name.endswith(" (database)")


def test_rows_are_filtered(database: Engine, acts: Callable[..., None]) -> None:
    acts("t1", "t2")
    with database.begin() as connection:
        log.record(connection, actors.orchestrator(), "tasks.prune", namespace=None)
        log.record(connection, actors.orchestrator(), "task", "t1", namespace="other")
    assert [row["target"] for row in read(database, act="task")] == ["t1", "t2", "t1"]
    assert [row["target"] for row in read(database, act="task.cancel", target="t2")] == ["t2"]
    assert [row["act"] for row in read(database, actor="api:0f1e2d3c")] == ["task.cancel"] * 2
    assert [row["act"] for row in read(database, namespace="other")] == ["task"]


# -------------------------------------------------------------------------------------------------------- append-only


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_log SET actor = 'x' WHERE target = 't1'",
        "UPDATE audit_log SET actor = 'x' WHERE target = 'new'",
        "UPDATE audit_log SET actor = 'x', position = 99, hash = sha256('x') WHERE target = 'new'",
        "UPDATE audit_log SET position = NULL, hash = NULL WHERE target = 't1'",
        "UPDATE audit_log SET position = 99 WHERE target = 't1'",
        "DELETE FROM audit_log WHERE target = 't1'",
        "DELETE FROM audit_log",
        "TRUNCATE audit_log",
        "DELETE FROM audit_ends",
        "TRUNCATE audit_ends",
    ],
)
def test_owner_cannot_change_the_log(
    database: Engine, acts: Callable[..., None], signer: Signer, statement: str
) -> None:
    acts("t1", "t2")
    acts("new", sealed=False)
    with pytest.raises(ProgrammingError, match="append-only"), database.begin() as connection:
        connection.execute(text(statement))
    assert check(database, signer).faults == []


GRANTS = (
    "GRANT SELECT, INSERT, UPDATE (position, hash) ON audit_log TO audit_writer; "
    "GRANT SELECT, INSERT, UPDATE ON audit_ends TO audit_writer; "
    "GRANT EXECUTE ON FUNCTION minion_prune_audit TO audit_writer"
)


def test_role_with_few_rights_writes_seals_and_prunes(database: Engine, signer: Signer) -> None:
    with database.connect() as connection:
        connection.execute(text(f"CREATE ROLE audit_writer; {GRANTS}; SET LOCAL ROLE audit_writer"))
        for target in ("t1", "t2"):
            log.record(connection, ADMIN, "task.cancel", target, namespace="default")
        head = chain.seal(connection, signer)
        assert head is not None
        for refused in ("DELETE FROM audit_log", "UPDATE audit_log SET actor = 'x'", "TRUNCATE audit_log"):
            with pytest.raises(ProgrammingError, match="permission denied"), connection.begin_nested():
                connection.execute(text(refused))
        assert chain.prune(connection, signer, head) == 2
        assert verify(connection, signer).faults == []


# -------------------------------------------------------------------------------------------------------------- chain


def test_rows_of_transactions_that_commit_late_are_chained(database: Engine, signer: Signer) -> None:
    with database.connect() as late:
        log.record(late, ADMIN, "task.cancel", "late", namespace="default")
        with database.begin() as connection:
            log.record(connection, ADMIN, "task.cancel", "early", namespace="default")
        seal_all(database, signer)
        late.commit()
    seal_all(database, signer)
    assert [(row["target"], row["position"]) for row in read(database)] == [("early", 1), ("late", 2)]
    assert read(database)[0]["id"] > read(database)[1]["id"]
    assert check(database, signer).faults == []


def test_acts_do_not_wait_for_the_sealer(database: Engine, acts: Callable[..., None], signer: Signer) -> None:
    acts("t1", sealed=False)
    with database.begin() as sealing:
        chain.seal(sealing, signer)
        acts("t2", sealed=False)
        with database.begin() as other:
            assert chain.seal(other, signer) is None
    seal_all(database, signer)
    assert [row["position"] for row in read(database)] == [2, 1]


def test_many_sealers_make_one_chain(database: Engine, acts: Callable[..., None], settings: Settings) -> None:
    sealers = [Sealer(settings, database) for _ in range(3)]
    for sealer in sealers:
        sealer.start()
    writers = [threading.Thread(target=acts, args=[f"{n}"] * 20, kwargs={"sealed": False}) for n in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    for sealer in sealers:
        sealer.stop()
    signer = Signer.of(settings)
    seal_all(database, signer)
    report = check(database, signer)
    assert (report.rows, report.faults) == (60, [])


def test_sealer_logs_the_head(database: Engine, acts: Callable[..., None], settings: Settings, signer: Signer) -> None:
    acts("t1", "t2", sealed=False)
    with capture_logs() as logged:
        Sealer(settings, database).run_once()
    heads = [line["head"] for line in logged if line["event"] == "audit_head"]
    assert heads == [str(check(database, signer).head)]
    assert heads[0].startswith("2:")


def test_replaced_key_still_verifies(
    database: Engine, acts: Callable[..., None], settings: Settings, signer: Signer
) -> None:
    acts("t1")
    new, old = Fernet.generate_key().decode(), settings.require_secret_key()
    replaced = Signer.of(settings.model_copy(update={"secret_key": _secret(f"{new},{old}")}))
    acts("t2", sealed=False)
    seal_all(database, replaced)
    assert check(database, replaced).faults == []
    alone = Signer.of(settings.model_copy(update={"secret_key": _secret(new)}))
    assert set(kinds(check(database, alone))) == {"changed", "inserted"}


def _secret(value: str) -> Any:
    return Settings(secret_key=value).secret_key


def test_without_a_key_rows_are_written_but_not_proven(
    database: Engine, signer: Signer, acts: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MINION_SECRET_KEY")
    get_settings.cache_clear()
    without = get_settings()
    acts("t1", sealed=False)
    assert Sealer(without, database).run_once() > 0
    monkeypatch.undo()
    get_settings.cache_clear()
    with pytest.raises(NotConfigured, match="MINION_SECRET_KEY"):
        Signer.of(without)
    with pytest.raises(NotConfigured, match="contains no key"):
        Signer.of(get_settings().model_copy(update={"secret_key": SecretStr(" , ")}))
    [fault] = check(database, signer).faults
    assert (fault.kind, "its writer had no MINION_SECRET_KEY" in fault.message) == ("inserted", True)


# ---------------------------------------------------------------------------------------------------------- tampering

SWAP = (
    "UPDATE audit_log SET position = -position WHERE position IN (2, 4); "
    "UPDATE audit_log SET position = 6 + position WHERE position IN (-2, -4)"
)
MOVE = "UPDATE audit_log SET position = position + 1 WHERE id = (SELECT id FROM audit_log WHERE position = {})"
CONSTRAINTS = text(
    "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = 'audit_log'::regclass"
)
COPIED = "act, actor, key_prefix, claimed, address, request_id, namespace, target, before, after"
TAMPERING: dict[str, tuple[str, set[str]]] = {
    "actor changed": ("UPDATE audit_log SET actor = 'Eve' WHERE position = 2", {"changed"}),
    "facts changed": ("UPDATE audit_log SET after = '{}' WHERE position = 3", {"changed"}),
    "time changed": ("UPDATE audit_log SET at = at - interval '1 day' WHERE position = 3", {"moved"}),
    "signature removed": ("UPDATE audit_log SET signature = NULL WHERE position = 3", {"changed"}),
    "last row changed": ("UPDATE audit_log SET target = 'x' WHERE position = 5", {"changed"}),
    "row removed": ("DELETE FROM audit_log WHERE position = 3", {"removed"}),
    "row removed, gap closed": (
        "DELETE FROM audit_log WHERE position = 3; "
        "UPDATE audit_log SET position = 3 WHERE position = 4; UPDATE audit_log SET position = 4 WHERE position = 5",
        {"moved", "truncated"},
    ),
    "first row removed": ("DELETE FROM audit_log WHERE position = 1", {"removed"}),
    "rows swapped": (SWAP, {"moved"}),
    "tail cut": ("DELETE FROM audit_log WHERE position > 3", {"truncated"}),
    "tail cut, head moved": (
        "DELETE FROM audit_log WHERE position > 3; UPDATE audit_ends SET position = 3, "
        "hash = (SELECT hash FROM audit_log WHERE position = 3) WHERE name = 'head'",
        {"forged"},
    ),
    "tail cut, head removed": (
        "DELETE FROM audit_log WHERE position > 3; DELETE FROM audit_ends WHERE name = 'head'",
        {"forged"},
    ),
    "all rows removed": ("DELETE FROM audit_log", {"truncated"}),
    "row inserted": (
        f"INSERT INTO audit_log (nonce, {COPIED}) SELECT gen_random_uuid(), {COPIED} FROM audit_log WHERE position = 2",
        {"inserted"},
    ),
    "row inserted with a copied signature": (
        f"INSERT INTO audit_log (nonce, {COPIED}, signature) SELECT gen_random_uuid(), {COPIED}, signature "
        "FROM audit_log WHERE position = 2",
        {"inserted"},
    ),
    "row inserted at the end of the chain": (
        f"INSERT INTO audit_log (nonce, {COPIED}, signature, position, hash) SELECT gen_random_uuid(), {COPIED}, "
        "signature, 6, hash FROM audit_log WHERE position = 5",
        {"changed", "inserted"},
    ),
    "row inserted before the chain": (
        f"INSERT INTO audit_log (nonce, {COPIED}, signature, position, hash) SELECT gen_random_uuid(), {COPIED}, "
        "signature, 0, hash FROM audit_log WHERE position = 5",
        {"inserted"},
    ),
    "row inserted with a low id": (
        f"INSERT INTO audit_log (id, nonce, {COPIED}) OVERRIDING SYSTEM VALUE "
        f"SELECT -1, gen_random_uuid(), {COPIED} FROM audit_log WHERE position = 2",
        {"inserted"},
    ),
    "row inserted far before the chain": (
        f"INSERT INTO audit_log (nonce, {COPIED}, position, hash) SELECT gen_random_uuid(), {COPIED}, "
        "-9223372036854775808, hash FROM audit_log WHERE position = 5",
        {"inserted"},
    ),
    "row copied with its signature": (
        "ALTER TABLE audit_log DROP CONSTRAINT audit_log_nonce_key; "
        f"INSERT INTO audit_log (nonce, {COPIED}, signature) SELECT nonce, {COPIED}, signature "
        "FROM audit_log WHERE position = 2",
        {"inserted"},
    ),
    "two rows at one position": (
        "ALTER TABLE audit_log DROP CONSTRAINT audit_log_position_key; "
        f"INSERT INTO audit_log (nonce, {COPIED}, position, hash) SELECT gen_random_uuid(), {COPIED}, position, hash "
        "FROM audit_log WHERE position = 2",
        {"inserted"},
    ),
    "hash removed": (
        "ALTER TABLE audit_log DROP CONSTRAINT audit_log_place_check; "
        "UPDATE audit_log SET hash = NULL WHERE position = 3",
        {"moved"},
    ),
    "time beyond the calendar": ("UPDATE audit_log SET at = 'infinity' WHERE position = 3", {"changed"}),
    "contents swapped": (
        "UPDATE audit_log a SET target = b.target, after = b.after, nonce = gen_random_uuid(), signature = b.signature "
        "FROM audit_log b WHERE (a.position, b.position) IN ((2, 4), (4, 2))",
        {"changed"},
    ),
    "facts in another order": ("""UPDATE audit_log SET after = '{ "reason": "t2" }' WHERE position = 2""", {"changed"}),
    "checkpoint invented": (
        "INSERT INTO audit_ends SELECT 'start', 3, hash, signature FROM audit_ends; "
        "DELETE FROM audit_log WHERE position <= 3",
        {"forged", "moved"},
    ),
}


@pytest.fixture
def constraints(database: Engine) -> Iterator[None]:
    """Restores the constraints of the log that the test drops."""
    with database.connect() as connection:
        before = connection.execute(CONSTRAINTS).all()
    yield
    with as_owner(database) as connection:
        dropped = {*before} - {*connection.execute(CONSTRAINTS)}
        if dropped:
            connection.execute(text("DELETE FROM audit_log"))
        for name, definition in dropped:
            connection.execute(text(f"ALTER TABLE audit_log ADD CONSTRAINT {name} {definition}"))


@pytest.mark.usefixtures("constraints")
@pytest.mark.parametrize("how", TAMPERING)
def test_verification_finds(database: Engine, acts: Callable[..., None], signer: Signer, how: str) -> None:
    acts("t1", "t2", "t3", "t4", "t5")
    assert check(database, signer).faults == []
    statements, expected = TAMPERING[how]
    with as_owner(database) as connection:
        connection.execute(text(statements))
    assert set(kinds(check(database, signer))) == expected
    # It stays visible when the log is continued.
    acts("t6", "t7")
    assert check(database, signer).faults


def test_chain_continues_behind_a_gap_when_its_head_is_gone(
    database: Engine, acts: Callable[..., None], signer: Signer
) -> None:
    acts("t1", "t2")
    with as_owner(database) as connection:
        connection.execute(text(TAMPERING["tail cut, head removed"][0].replace("> 3", "> 1")))
    with capture_logs() as logged:
        acts("t3", "t4")
        acts("t5")
    assert [line["event"] for line in logged] == ["audit_head_not_valid"]
    assert [row["position"] for row in read(database)] == [5, 4, 3, 1]
    assert [fault.message for fault in check(database, signer).faults] == ["The row at position 2 is gone."]


def test_faults_name_the_row(database: Engine, acts: Callable[..., None], signer: Signer) -> None:
    acts("t1", "t2", "t3")
    with as_owner(database) as connection:
        connection.execute(text("UPDATE audit_log SET actor = 'Eve' WHERE position = 2"))
        row = connection.scalar(text("DELETE FROM audit_log WHERE position = 3 RETURNING id"))
    assert [fault.message for fault in check(database, signer).faults] == [
        f"Row {row - 1} at position 2 (task.cancel) matches neither its signature nor its hash.",
        "The row at position 3 is gone.",
    ]


def test_database_that_was_put_back_is_found_by_a_logged_head(
    database: Engine, acts: Callable[..., None], signer: Signer
) -> None:
    acts("t1", "t2")
    with database.connect() as connection:
        earlier = chain.ends(connection)["head"]
    acts("t3")
    logged = check(database, signer).head
    assert check(database, signer, logged_head=logged).faults == []
    values = {"position": earlier[0].position, "hash": earlier[0].hash, "signature": earlier[1]}
    with as_owner(database) as connection:
        connection.execute(text("DELETE FROM audit_log WHERE position = 3"))
        connection.execute(chain.SET_HEAD, values)
    assert check(database, signer).faults == []
    assert kinds(check(database, signer, logged_head=logged)) == ["truncated"]
    assert check(database, signer, logged_head=earlier[0]).faults == []
    assert kinds(check(database, signer, logged_head=Link(2, logged.hash))) == ["truncated"]
