"""Pauses and limits: operators' rules for starting tasks and calling models.

They are rows, so that they outlive all processes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from sqlalchemy import Connection, TextClause, text

from shared.errors import InvalidInput, NotFound
from shared.providers import normal_name
from shared.tasks.records import ModelRates

Scope = Literal["capability", "agent", "key"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
LimitScope = Literal["capability", "agent", "key", "model"]
LIMIT_SCOPES: tuple[LimitScope, ...] = get_args(LimitScope)
EACH = "*"
MAX_NAME = 255

_UNITS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
_LONGEST_PERIOD = 366 * _UNITS["d"]
_RATE = re.compile(r"^(\d{1,9})/(\d{0,9})(s|m|min|h|d)$")

PAUSE = text(
    "INSERT INTO pauses (namespace, scope, name, reason, created_by) VALUES (:namespace, :scope, :name, :reason, :who) "
    "ON CONFLICT (namespace, scope, name) DO UPDATE SET reason = COALESCE(EXCLUDED.reason, pauses.reason) "
    "RETURNING namespace, scope, name, reason, created_at, created_by"
)
FIND_PAUSE = text(
    "SELECT reason, created_by FROM pauses WHERE namespace = :namespace AND scope = :scope AND name = :name FOR UPDATE"
)
RESUME = text("DELETE FROM pauses WHERE namespace = :namespace AND scope = :scope AND name = :name RETURNING 1")
OF_NAMESPACE = "CAST(:namespace AS text) IS NULL OR namespace = :namespace"
PAUSES = text(
    f"SELECT namespace, scope, name, reason, created_at, created_by FROM pauses WHERE {OF_NAMESPACE} "  # noqa: S608
    "ORDER BY namespace, scope, name LIMIT :most"
)
SET_LIMIT = text(
    "INSERT INTO limits (namespace, scope, name, max_running, rate, period_seconds, input_tokens, "
    "input_tokens_seconds, output_tokens, output_tokens_seconds, created_by) "
    "VALUES (:namespace, :scope, :name, :max_running, :rate, :period_seconds, :input_tokens, :input_tokens_seconds, "
    ":output_tokens, :output_tokens_seconds, :who) "
    "ON CONFLICT (namespace, scope, name) DO UPDATE SET max_running = EXCLUDED.max_running, rate = EXCLUDED.rate, "
    "period_seconds = EXCLUDED.period_seconds, input_tokens = EXCLUDED.input_tokens, "
    "input_tokens_seconds = EXCLUDED.input_tokens_seconds, output_tokens = EXCLUDED.output_tokens, "
    "output_tokens_seconds = EXCLUDED.output_tokens_seconds, created_by = EXCLUDED.created_by RETURNING *"
)
FIND_LIMIT = text(
    "SELECT max_running, rate, period_seconds, input_tokens, input_tokens_seconds, output_tokens, "
    "output_tokens_seconds, created_by FROM limits "
    "WHERE namespace = :namespace AND scope = :scope AND name = :name FOR UPDATE"
)
REMOVE_LIMIT = text("DELETE FROM limits WHERE namespace = :namespace AND scope = :scope AND name = :name RETURNING 1")
LIMITS = text(f"SELECT * FROM limits WHERE {OF_NAMESPACE} ORDER BY namespace, scope, name LIMIT :most")  # noqa: S608
RATES_OF_MODEL = (
    "SELECT rate, period_seconds, input_tokens, input_tokens_seconds, output_tokens, output_tokens_seconds "
    "FROM limits WHERE limits.namespace = {} AND scope = 'model' AND name IN (:model, '*') "
    "ORDER BY name = '*' LIMIT 1"
)
MODEL_RATES = text(RATES_OF_MODEL.format(":namespace"))
ModelRate = tuple[str, int, float]
"""A limit of a model: kind (`requests`, `input-tokens`, `output-tokens`), number, seconds."""
# Tasks that waited may start now.
RELEASE_HOLD = text(
    "WITH gone AS (DELETE FROM rate_holds WHERE namespace = :namespace AND scope = :scope "
    "AND (name = :name OR :name = '*')) SELECT minion_notify_pending()"
)


@dataclass(frozen=True, slots=True)
class Rate:
    """A number of starts in a period of seconds."""

    count: int
    seconds: float

    @classmethod
    def parse(cls, written: str) -> Rate:
        """Parse `10/s`, `100/5m`, `1000/h` or `5000/d`.

        Raises:
            InvalidInput: the text has another form.
        """
        match = _RATE.match(written.strip())
        count, seconds = (int(match[1]), int(match[2] or 1) * _UNITS[match[3]]) if match else (0, 0.0)
        if count == 0 or not 0 < seconds <= _LONGEST_PERIOD:
            raise InvalidInput(
                f"A rate must be like 10/s, 100/5m or 1000/h, over at most 366 days, not {written[:50]!r}."
            )
        return cls(count, seconds)


def pause(
    connection: Connection,
    scope: Scope,
    name: str,
    *,
    reason: str | None = None,
    namespace: str = "default",
    who: str | None = None,
) -> dict[str, Any]:
    """Keep the tasks of a capability, an agent or a tenant key from starting. Running tasks continue. May be repeated.

    Args:
        who: the operator, for the record.
    """
    values = {**_target(scope, name, namespace), "reason": reason, "who": who}
    return dict(connection.execute(PAUSE, values).mappings().one())


def resume(connection: Connection, scope: Scope, name: str, *, namespace: str = "default") -> None:
    """Let the tasks of a pause start again.

    Raises:
        NotFound: there is no such pause.
    """
    values = _target(scope, name, namespace)
    if connection.scalar(RESUME, values) is None:
        raise NotFound(
            f"The {scope} {name!r} is not paused. `minion pauses` lists the pauses. A stop (`minion stops`) is lifted "
            "by `minion resume` with the options of `minion stop-all`."
        )
    connection.execute(RELEASE_HOLD, values)


def find_pause(connection: Connection, scope: str, name: str, *, namespace: str = "default") -> dict[str, Any] | None:
    """Return what a change of a pause replaces, and keep others from changing it; None if there is no such pause."""
    return _found(connection, FIND_PAUSE, scope, name, namespace)


def list_pauses(
    connection: Connection, *, namespace: str | None = None, most: int | None = None
) -> list[dict[str, Any]]:
    """Return the pauses of a namespace, or all, by namespace, scope and name; the first ones, if `most` is given."""
    return [dict(row) for row in connection.execute(PAUSES, {"namespace": namespace, "most": most}).mappings()]


def set_limit(
    connection: Connection,
    scope: LimitScope,
    name: str,
    *,
    max_running: int | None = None,
    rate: Rate | None = None,
    input_tokens: Rate | None = None,
    output_tokens: Rate | None = None,
    namespace: str = "default",
    who: str | None = None,
) -> dict[str, Any]:
    """Limit a capability, an agent or a tenant key (running tasks, or starts in a period), or a model.

    A model's limits are requests and tokens in a period. Replaces an existing limit.

    Args:
        name: or `*`, for each one without its own limit.
        rate: of starts; for a model of requests.
        input_tokens: only for a model.
        output_tokens: only for a model.
        who: the operator, for the record.

    Raises:
        InvalidInput: no limit is given, or one that makes no sense for this scope.
    """
    _check_limit(scope, max_running, rate, input_tokens, output_tokens)
    values = {
        **_target(scope, name, namespace, LIMIT_SCOPES),
        "who": who,
        "max_running": max_running,
        **_columns(rate, "rate", "period_seconds"),
        **_columns(input_tokens, "input_tokens", "input_tokens_seconds"),
        **_columns(output_tokens, "output_tokens", "output_tokens_seconds"),
    }
    row = dict(connection.execute(SET_LIMIT, values).mappings().one())
    connection.execute(RELEASE_HOLD, values)
    return row


def remove_limit(connection: Connection, scope: LimitScope, name: str, *, namespace: str = "default") -> None:
    """Remove a limit.

    Raises:
        NotFound: there is none.
    """
    values = _target(scope, name, namespace, LIMIT_SCOPES)
    if connection.scalar(REMOVE_LIMIT, values) is None:
        raise NotFound(f"There is no limit for the {scope} {name!r}.")
    connection.execute(RELEASE_HOLD, values)


def find_limit(connection: Connection, scope: str, name: str, *, namespace: str = "default") -> dict[str, Any] | None:
    """Return what a change of a limit replaces, and keep others from changing it; None if there is no such limit."""
    return _found(connection, FIND_LIMIT, scope, name, namespace)


def list_limits(
    connection: Connection, *, namespace: str | None = None, most: int | None = None
) -> list[dict[str, Any]]:
    """Return the limits of a namespace, or all, by namespace, scope and name; the first ones, if `most` is given."""
    return [dict(row) for row in connection.execute(LIMITS, {"namespace": namespace, "most": most}).mappings()]


def model_rates(connection: Connection, model: str, *, namespace: str = "default") -> list[ModelRate]:
    """Return the limits of a model. The beginning of a call returns them too: see `lifecycle.write_steps`."""
    row = connection.execute(MODEL_RATES, {"model": model, "namespace": namespace}).mappings().one_or_none()
    return rates_in(cast(ModelRates | None, row))


def rates_in(row: ModelRates | None) -> list[ModelRate]:
    """Return the limits in a row of the table."""
    if row is None:
        return []
    rates = [
        ("requests", row["rate"], row["period_seconds"]),
        ("input-tokens", row["input_tokens"], row["input_tokens_seconds"]),
        ("output-tokens", row["output_tokens"], row["output_tokens_seconds"]),
    ]
    return [(kind, number, seconds) for kind, number, seconds in rates if number is not None and seconds is not None]


def _found(
    connection: Connection, statement: TextClause, scope: str, name: str, namespace: str
) -> dict[str, Any] | None:
    values = {"namespace": namespace, "scope": scope, "name": _one_name(scope, name)}
    row = connection.execute(statement, values).mappings().one_or_none()
    return None if row is None else dict(row)


def _check_limit(
    scope: str, max_running: int | None, rate: Rate | None, input_tokens: Rate | None, output_tokens: Rate | None
) -> None:
    if scope == "model":
        if max_running is not None:
            raise InvalidInput("A model cannot have a limit on tasks that run at once: give it rates.")
        if rate is None and input_tokens is None and output_tokens is None:
            raise InvalidInput(
                "A model's limit must say at what rate requests, input tokens or output tokens may be used."
            )
        return
    if input_tokens is not None or output_tokens is not None:
        raise InvalidInput(f"Only a model can have limits on tokens, not a {scope[:50]}.")
    if max_running is None and rate is None:
        raise InvalidInput("A limit must say how many tasks may run at once, at what rate they may start, or both.")
    if max_running is not None and not 0 <= max_running <= 1_000_000:
        raise InvalidInput("The number of tasks that may run at once must be 0 to 1,000,000.")


def _columns(rate: Rate | None, count: str, seconds: str) -> dict[str, Any]:
    return {count: rate.count if rate else None, seconds: rate.seconds if rate else None}


def _target(scope: str, name: str, namespace: str, scopes: tuple[str, ...] = SCOPES) -> dict[str, Any]:
    if scope not in scopes:
        rule = "pause" if scopes == SCOPES else "limit"
        raise InvalidInput(f"The scope of a {rule} must be one of {', '.join(scopes)}, not {scope[:50]!r}.")
    if not 0 < len(name) <= MAX_NAME or "\0" in name:
        raise InvalidInput(f"The name of a {scope} must have 1 to {MAX_NAME} characters.")
    return {"scope": scope, "name": _one_name(scope, name), "namespace": namespace}


def _one_name(scope: str, name: str) -> str:
    """Return the name by which a rule is stored: calls know each model by one name."""
    if scope != "model":
        return name
    try:
        return normal_name(name)
    except ValueError as error:
        raise InvalidInput(f"Invalid name {name[:100]!r}: {error}.") from None
