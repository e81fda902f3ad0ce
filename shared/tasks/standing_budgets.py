"""Standing budgets: limits on what models use in an hour, a day or a month. See `shared/tasks/sql/standing.sql`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal, get_args

from sqlalchemy import Connection, text

from shared.errors import BudgetExceeded, InvalidInput, NotFound
from shared.tasks import targets
from shared.tasks.records import StandingBreach
from shared.tasks.targets import Target

Scope = Literal["installation", "namespace", "agent", "key", "model"]
Period = Literal["hour", "day", "month"]
OnBreach = Literal["wait", "fail", "alert"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
PERIODS: tuple[Period, ...] = get_args(Period)
ON_BREACH: tuple[OnBreach, ...] = get_args(OnBreach)
MAX_TOKENS = 1_000_000_000_000
MIN_DOLLARS, MAX_DOLLARS = 0.000001, 1_000_000_000

# Without abbreviations and rules such as UTC+3, which PostgreSQL would accept, the latter with the other sign.
IS_ZONE = text("SELECT EXISTS (SELECT 1 FROM pg_timezone_names WHERE name = :timezone)")
SET = text(
    "INSERT INTO standing_budgets (scope, namespace, name, period, timezone, tokens, microdollars, on_breach, "
    "created_by) "
    "VALUES (:scope, :namespace, :name, :period, :timezone, :tokens, :microdollars, :on_breach, :who) "
    "ON CONFLICT (scope, namespace, name, period) DO UPDATE SET timezone = EXCLUDED.timezone, "
    "tokens = EXCLUDED.tokens, microdollars = EXCLUDED.microdollars, on_breach = EXCLUDED.on_breach, "
    "created_by = EXCLUDED.created_by RETURNING id"
)
FIND = text(
    "SELECT timezone, tokens, microdollars / 1000000.0::float AS dollars, on_breach, created_by FROM standing_budgets "
    "WHERE scope = :scope AND namespace = :namespace AND name = :name AND period = :period FOR UPDATE"
)
REMOVE = text(
    "DELETE FROM standing_budgets "
    "WHERE scope = :scope AND namespace = :namespace AND name = :name AND period = :period RETURNING 1"
)
BUDGETS = text(
    """
    SELECT b.id, b.scope, NULLIF(b.namespace, '') AS namespace, NULLIF(b.name, '') AS name, b.period, b.timezone,
           b.on_breach, b.created_at, b.created_by, p.starts AS period_start, p.ends AS period_end,
           jsonb_build_object('limit', b.tokens, 'spent', COALESCE(u.spent_tokens, 0),
               'reserved', COALESCE(u.reserved_tokens, 0)) AS tokens,
           jsonb_build_object('limit', trim_scale(b.microdollars / 1000000.0),
               'spent', trim_scale(COALESCE(u.spent_microdollars, 0) / 1000000.0),
               'reserved', trim_scale(COALESCE(u.reserved_microdollars, 0) / 1000000.0)) AS dollars,
           COALESCE((SELECT jsonb_agg(jsonb_build_object('percent', a.percent, 'at', a.created_at) ORDER BY a.percent)
               FROM standing_alerts a WHERE a.budget_id = b.id AND a.period_start = p.starts), '[]') AS alerts
        FROM standing_budgets b CROSS JOIN LATERAL minion_period(b.period, b.timezone, clock_timestamp()) p
        LEFT JOIN standing_usage u ON u.budget_id = b.id AND u.period_start = p.starts
        WHERE (CAST(:id AS uuid) IS NULL OR b.id = :id)
          AND (CAST(:namespace AS text) IS NULL OR b.namespace = :namespace)
        ORDER BY b.scope <> 'installation', b.namespace, b.scope, b.name, b.period LIMIT :most
    """
)
SPEND_LOST = text("SELECT minion_spend_lost()")
WAKE = text("SELECT minion_wake_standing(:most)")
UNLOGGED_ALERTS = text(
    """
    UPDATE standing_alerts a SET logged_at = now()
        FROM standing_budgets b JOIN standing_usage u ON u.budget_id = b.id
        WHERE a.logged_at IS NULL AND u.budget_id = a.budget_id AND u.period_start = a.period_start
        RETURNING a.percent, b.scope, NULLIF(b.namespace, '') AS namespace, NULLIF(b.name, '') AS name, b.period,
                  b.on_breach, u.period_end, b.tokens, u.spent_tokens, b.microdollars, u.spent_microdollars
    """
)


def target_of(scope: str, namespace: str | None = None, name: str | None = None) -> Target:
    """Return the target of a standing budget.

    Raises:
        InvalidInput: the scope is unknown, or namespace and name do not fit it.
    """
    return Target.of("budget", SCOPES, scope, namespace, name)


def set_budget(
    connection: Connection,
    target: Target,
    period: str,
    *,
    tokens: int | None = None,
    dollars: float | None = None,
    on_breach: str = "wait",
    timezone: str = "UTC",
    who: str | None = None,
) -> dict[str, Any]:
    """Limit what models use in each period. Replaces the budget of the same target and period, but not what is spent.

    Args:
        period: a calendar `hour`, `day` or `month` in the time zone.
        on_breach: what happens to a task whose next call does not fit: it waits, it fails, or (`alert`) it continues.
        who: the operator, for the record.

    Raises:
        InvalidInput: an argument is not valid.
    """
    _check(period, tokens, dollars, on_breach)
    if not connection.scalar(IS_ZONE, {"timezone": timezone}):
        raise InvalidInput(f"Unknown time zone {timezone[:50]!r}: it must be a name such as UTC or Europe/Berlin.")
    values = {
        **target.as_values(),
        "period": period,
        "timezone": timezone,
        "tokens": tokens,
        "microdollars": None if dollars is None else round(dollars * 1_000_000),
        "on_breach": on_breach,
        "who": who,
    }
    budget = connection.execute(SET, values).scalar_one()
    wake(connection)
    return dict(connection.execute(BUDGETS, {"id": budget, "namespace": None, "most": 1}).mappings().one())


def find(connection: Connection, target: Target, period: str) -> dict[str, Any] | None:
    """Return what a change of a budget replaces, and keep others from changing it; None if there is no such budget."""
    row = connection.execute(FIND, {**target.as_values(), "period": period}).mappings().one_or_none()
    return None if row is None else dict(row)


def remove_budget(connection: Connection, target: Target, period: str) -> None:
    """Remove a standing budget, with the record of its use. Tasks that wait for it continue.

    Raises:
        NotFound: there is none.
    """
    _check_one_of("period", period, PERIODS)
    if connection.scalar(REMOVE, {**target.as_values(), "period": period}) is None:
        raise NotFound(f"There is no budget of {target} per {period}. `minion budgets` lists the budgets.")
    wake(connection)


def list_budgets(
    connection: Connection, *, namespace: str | None = None, most: int | None = None
) -> list[dict[str, Any]]:
    """Return the standing budgets of a namespace, or all, with their use in the current period.

    That of the installation is the first.

    Args:
        most: the number of budgets; None: all.
    """
    values = {"id": None, "namespace": namespace, "most": most}
    return [dict(row) for row in connection.execute(BUDGETS, values).mappings()]


def spend_lost(connection: Connection) -> int:
    """Count reservations of calls that have died as spent; return the number of budgets concerned."""
    return int(connection.scalar(SPEND_LOST) or 0)


def wake(connection: Connection, *, limit: int = 1000) -> int:
    """Wake tasks that wait for a standing budget which now has room for them; return their number."""
    return int(connection.scalar(WAKE, {"most": limit}) or 0)


def unlogged_alerts(connection: Connection) -> list[dict[str, Any]]:
    """Return the alerts that no orchestrator has logged yet, and mark them as logged."""
    return [dict(row) for row in connection.execute(UNLOGGED_ALERTS).mappings()]


def exceeded(breach: StandingBreach) -> BudgetExceeded:
    """Return the error for a breach as `minion_standing_breach` reports it."""
    return BudgetExceeded(f"{describe(breach)} {how_to_raise(breach)}", **breach)


def describe(breach: StandingBreach) -> str:
    """Describe a breach in one sentence, with its figures."""
    what = breach["what"]
    whose = (
        f"The budget of {targets.describe(breach['scope'], breach['namespace'], breach['name'])} per {breach['period']}"
    )
    if breach["asked"] is None:
        return f"{whose} is in dollars and cannot be enforced: the price of the model that this call uses is not known."
    spent = f"{_amount(breach['spent'], what)} of {_amount(breach['limit'], what)} are spent"
    held = f", running calls hold up to {_amount(breach['reserved'], what)}" if breach["reserved"] else ""
    return (
        f"{whose} has no room for the next call: {spent}{held}, and the call may take {_amount(breach['asked'], what)}."
    )


def outlook(breach: StandingBreach) -> str:
    """Say when a task that waits because of a breach continues."""
    if breach["asked"] is None:
        return "The task fails."
    if breach["asked"] > breach["limit"]:
        return "The call alone may take more than the whole budget: it waits until the budget is raised or removed."
    if breach["spent"] + breach["asked"] <= breach["limit"]:
        return "It continues when those calls have ended and left room."
    ends = datetime.fromisoformat(breach["ends"]).astimezone(UTC).isoformat(timespec="seconds")
    return f"The {breach['period']} ends at {ends}; it continues then, or when the budget is raised."


def how_to_raise(breach: StandingBreach) -> str:
    """Say which command changes the budget."""
    if breach["asked"] is None:
        return "Use a model whose price is known, or give the budget in tokens."
    target = targets.as_arguments(breach["scope"], breach["namespace"], breach["name"])
    return f"`minion budgets set {target} --per {breach['period']} --{breach['what']} N` raises it."


def _check(period: str, tokens: int | None, dollars: float | None, on_breach: str) -> None:
    _check_one_of("period", period, PERIODS)
    _check_one_of("consequence (on_breach)", on_breach, ON_BREACH)
    if tokens is None and dollars is None:
        raise InvalidInput("A budget must limit something: tokens, dollars or both.")
    if tokens is not None and not 1 <= tokens <= MAX_TOKENS:
        raise InvalidInput(f"The tokens of a budget must be a whole number from 1 to {MAX_TOKENS:,}.")
    # False for NaN too.
    if dollars is not None and not MIN_DOLLARS <= dollars <= MAX_DOLLARS:
        raise InvalidInput(f"The dollars of a budget must be a number from {MIN_DOLLARS:f} to {MAX_DOLLARS:,}.")


def _check_one_of(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InvalidInput(f"The {what} of a budget must be one of {', '.join(known)}, not {value[:50]!r}.")


def _amount(number: float, what: str) -> str:
    """Format an amount for people."""
    return f"${number:,.6f}".rstrip("0").rstrip(".") if what == "dollars" else f"{number:,.0f} tokens"
