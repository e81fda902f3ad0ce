"""Connections to PostgreSQL: one engine per process, time-outs shorter than the lease, errors that teach.

All database code is synchronous (psycopg under SQLAlchemy), so that it is written only once.
"""

from __future__ import annotations

import itertools
import json
import re
import select
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Concatenate, ParamSpec, TypeVar

import psycopg
import structlog
from celery.exceptions import SoftTimeLimitExceeded
from psycopg import DataError
from psycopg import Error as DriverError
from pydantic import ValidationError
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, InterfaceError, InvalidatePoolError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool

from minions.backoff import exponential, jittered
from shared import errors
from shared.settings import Settings, get_settings

log = structlog.get_logger(__name__)

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")
LONGEST_PAUSE = 5.0
CONFIGURE = "SELECT set_config(name, value, false) FROM unnest(%s::text[], %s::text[]) AS given (name, value)"
# The driver's own advice, which ours replaces.
ADVICE = re.compile(r" Is the server running[^?]*\?")

# Errors that the functions in shared/tasks/sql/ raise on purpose.
EXPECTED: dict[str, type[errors.MinionError]] = {
    "MN001": errors.UnknownAgent,
    "MN002": errors.UnknownCapability,
    "MN003": errors.AmbiguousRoute,
    "MN004": errors.Conflict,
    "MN005": errors.IdempotencyConflict,
    "MN006": errors.TooLarge,
    "MN007": errors.InvalidInput,
    "MN008": errors.NotFound,
    "MN009": errors.Conflict,
    "MN010": errors.Forbidden,
}
# U+0000 inside JSON, written as an escape that the driver lets pass.
NO_TEXT_IN_JSON = "22P05"
# Connection lost, server shutting down, too many connections, disk full: waiting may help.
TRANSIENT_CLASSES = ("08", "53", "57")
# One lock for all changes of the schema or the definitions: a second process waits.
SCHEMA_LOCK = 0x4D494E494F4E5301


def make_engine(settings: Settings, *, pool_size: int = 5, pre_ping: bool = True, **options: Any) -> Engine:
    """Create an engine whose connections time out before a lease expires.

    Args:
        settings: `DATABASE_URL` and the lease in seconds.
        pool_size: connections kept open. The same number again may be opened temporarily, unless many tasks share them.
        pre_ping: check that a connection is alive before each use; False for callers that retry.
        options: more arguments of `create_engine`.

    Raises:
        NotConfigured: there is no database address.
    """
    lease_ms = int(settings.lease_seconds * 1000)
    engine = create_engine(
        settings.require_database_url(),
        pool_size=pool_size,
        max_overflow=0 if _shares.by_many else pool_size,
        poolclass=_PatientPool if _shares.by_many else QueuePool,
        pool_timeout=1 if _shares.by_many else 30,
        # Few connections do the work, and keep their prepared statements and plans.
        pool_use_lifo=True,
        json_serializer=as_json,
        # Errors and their tracebacks are logged; inputs and prompts must not be.
        hide_parameters=True,
        connect_args={
            "connect_timeout": 5,
            "application_name": "minions",
            "client_encoding": "utf8",
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 2,
            "tcp_user_timeout": lease_ms,
        },
        **options,
    )
    session: dict[str, str | int] = {
        "timezone": "UTC",
        # The functions count and read again after taking locks, which only works with READ COMMITTED.
        "default_transaction_isolation": "read committed",
        "idle_in_transaction_session_timeout": lease_ms,
        "minion.max_input_bytes": settings.max_input_bytes,
    }

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, record: Any) -> None:
        configure_session(connection, session)

    @event.listens_for(engine, "handle_error")
    def _translate(context: Any) -> None:
        if behind_time_limit(context.original_exception):
            # Without a rollback, an ORM session would never return its connection to the pool.
            context.is_disconnect, context.invalidate_pool_on_disconnect = True, False
        translated = expected_error(context.original_exception)
        if translated is not None:
            raise translated from None

    if pre_ping:
        event.listen(engine, "checkout", partial(_check_alive, engine))
    return engine


def configure_session(connection: psycopg.Connection[Any], values: Mapping[str, str | int]) -> None:
    """Set settings of a new connection's session, by a statement: poolers refuse settings in the start-up packet."""
    committing = connection.autocommit
    try:
        connection.autocommit = True
        names, given = list(values), [str(value) for value in values.values()]
        connection.execute(CONFIGURE, (names, given), prepare=False)
        connection.autocommit = committing
    except BaseException:
        connection.close()
        raise


def _check_alive(engine: Engine, connection: Any, record: Any, proxy: Any) -> None:
    """Check a pooled connection, as `pool_pre_ping` does, but ask the server only if it has sent something.

    The end of a connection is something: it can be read. That saves almost every use a round trip.

    Raises:
        InvalidatePoolError: the connection has ended; the pool opens another.
    """
    poll = select.poll()
    try:
        poll.register(connection.pgconn.socket, select.POLLIN)
        if poll.poll(0):
            engine.dialect.do_ping(connection)
    except DriverError:
        raise InvalidatePoolError from None


def autocommit(engine: Engine) -> Engine:
    """Return an engine on the same connections, without transactions: one round trip a statement instead of three.

    Read this way. The rollback that ends a reading transaction makes psycopg forget the prepared statements of its
    connection: planning them again costs more than running them.
    """
    return engine.execution_options(isolation_level="AUTOCOMMIT")


def be_patient(connection: Connection) -> None:
    """Let the current transaction idle for up to a minute instead of a lease: work is done between its statements."""
    connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = '1min'")


@dataclass
class _Shares:
    """Connections kept open by the two engines of this process. Each may open the same number again for a while.

    Attributes:
        by_many: many tasks share them, and no others are opened: opening one costs more than ten statements.
    """

    general: int = 5
    statements: int = 1
    by_many: bool = False


_shares = _Shares()


def share_connections() -> None:
    """Let the many tasks of this process share eight connections. They wait for a free one until a limit strikes."""
    _shares.general, _shares.statements, _shares.by_many = 2, 6, True


class _PatientPool(QueuePool):
    """Pool whose users wait for a free connection as long as it takes.

    They look again at each time-out: a task that is interrupted when it is its turn does not pass that on.
    """

    def _do_get(self) -> ConnectionPoolEntry:
        while True:
            with suppress(PoolTimeout):
                return super()._do_get()


@lru_cache(maxsize=1)
def get_engine() -> Engine:
    """Return the process's engine. After a fork the child must call `forget_engine` first."""
    return make_engine(get_settings(), pool_size=_shares.general)


@lru_cache(maxsize=1)
def _statement_engine() -> Engine:
    """Return the engine for the hot path, whose callers retry by themselves."""
    # The pool neither sets the mode before each use nor rolls back after it: a third of a statement's processor time.
    mode = {"isolation_level": "AUTOCOMMIT", "skip_autocommit_rollback": True}
    return make_engine(get_settings(), pool_size=_shares.statements, pre_ping=False, **mode)


def forget_engine() -> None:
    """Drop the parent's connections in a forked child, without closing them for the parent."""
    _drop(close=False)


def close_engine() -> None:
    """Close the process's connections, unless other tasks use them too; the next use opens new ones."""
    if _shares.by_many:
        return  # The engine has dropped the one in which a limit struck.
    _drop(close=True)


def _drop(*, close: bool) -> None:
    for made in (get_engine, _statement_engine):
        if made.cache_info().currsize:
            made().dispose(close=close)
            made.cache_clear()


@contextmanager
def transaction() -> Iterator[Connection]:
    """Yield a connection with a transaction, committed if the block succeeds and rolled back otherwise."""
    with get_engine().begin() as connection:
        yield connection


@contextmanager
def statement() -> Iterator[Connection]:
    """Yield a connection in autocommit mode: one round trip a statement instead of three."""
    with _statement_engine().connect() as connection:
        yield connection


def expected_error(error: BaseException | None) -> errors.MinionError | None:
    """Return the MinionError behind a database error that our own functions raised, or None.

    A text that PostgreSQL cannot hold counts too: looking up a name with U+0000 in it is the caller's mistake. The
    DETAIL of an error, a JSON object, becomes its `detail`.
    """
    state = getattr(error, "sqlstate", None)
    # The driver's own error; those of the server quote statements, which may contain NULL.
    no_text = isinstance(error, DataError) and state is None and "NUL" in str(error)
    if no_text or isinstance(error, UnicodeEncodeError) or state == NO_TEXT_IN_JSON:
        return errors.InvalidInput("Text with the character U+0000 or with a lone surrogate cannot be stored.")
    kind = EXPECTED.get(state or "")
    if kind is None:
        return None
    said: Any = error.diag  # type: ignore[union-attr]
    return kind(said.message_primary or str(error), **json.loads(said.message_detail or "{}"))


def is_transient(error: BaseException) -> bool:
    """Return whether the database is temporarily away, full or busy, so that a retry makes sense."""
    if isinstance(error, OperationalError | InterfaceError):
        state = getattr(error.orig, "sqlstate", None)
        return state is None or state.startswith(TRANSIENT_CLASSES) or state in ("40001", "40P01", "55P03")
    return isinstance(error, DBAPIError) and error.connection_invalidated


def behind_time_limit(error: BaseException | None) -> bool:
    """Return whether a soft time limit caused an error.

    One that strikes inside the driver may surface as an error of the database, and one inside Pydantic as a fault of
    the model.
    """
    seen: set[int] = set()
    rest = [error]
    while rest:
        found = rest.pop()
        if isinstance(found, SoftTimeLimitExceeded):
            return True
        if found is not None and id(found) not in seen:
            seen.add(id(found))
            rest += [found.__cause__, found.__context__]
            if isinstance(found, ValidationError):  # it keeps what its validators raised beside the chain
                rest += [fault["ctx"]["error"] for fault in found.errors() if "error" in fault.get("ctx", {})]
    return False


def reason(error: BaseException) -> str:
    """Describe a database error in one line, without the statement and its parameters."""
    original = getattr(error, "orig", None) or error
    # Without its DETAIL, which quotes the row.
    primary = getattr(getattr(original, "diag", None), "message_primary", None)
    return ADVICE.sub("", " ".join((primary or str(original)).split()))[:300]


def unavailable(error: BaseException) -> errors.Unavailable:
    """Return the error that users see when the database cannot be reached."""
    return errors.Unavailable(
        f"The database cannot be reached: {reason(error)}. The connection is retried; nothing is lost."
    )


def wait_for(probe: Callable[[], Result], *, what: str, attempts: int) -> Result:
    """Call `probe` until it succeeds, with growing pauses of at most 5 s.

    Raises:
        Unavailable: it failed `attempts` times; the message contains the last reason.
    """
    for attempt in range(1, attempts + 1):
        try:
            return probe()
        except errors.MinionError:
            raise
        except Exception as error:
            if attempt == attempts:
                raise errors.Unavailable(
                    f"{what} cannot be reached after {attempts} attempts: {reason(error)}. Check its address, and "
                    "that it is running."
                ) from None
            log.warning("unreachable", what=what, attempt=attempt, attempts=attempts, reason=reason(error))
            time.sleep(jittered(exponential(attempt, first=0.2, longest=LONGEST_PAUSE)))
    raise AssertionError("unreachable")


def persist(write: Callable[[], Result]) -> Result:
    """Perform a write, and retry it while the database is away, so that finished work is not lost.

    For fenced or idempotent writes only. A minion's time limits end the retries.

    Raises:
        SoftTimeLimitExceeded: the soft limit struck inside the driver.
    """
    for failures in itertools.count(1):
        try:
            return write()
        except DBAPIError as error:
            if behind_time_limit(error):
                raise SoftTimeLimitExceeded from error
            if not is_transient(error):
                raise
            pause = jittered(exponential(failures, first=0.1, longest=LONGEST_PAUSE))
            log.warning("database_away", reason=reason(error), again_in=round(pause, 2))
            time.sleep(pause)
    raise AssertionError("unreachable")


def persistently(
    operation: Callable[Concatenate[Connection, Arguments], Result], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Result:
    """Call a fenced or idempotent operation on a connection in autocommit mode, as `persist` does."""

    def attempt() -> Result:
        with statement() as connection:
            return operation(connection, *args, **kwargs)

    return persist(attempt)


def as_json(value: Any) -> str:
    """Return the JSON text that is stored for a value."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=str)
