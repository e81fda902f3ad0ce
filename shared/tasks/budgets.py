"""Budgets: limits on the use of a task and everything below it. One Python name for each function in `budgets.sql`."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import Connection, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB

from shared.contracts.requests import BudgetChange
from shared.errors import BudgetExceeded
from shared.tasks import standing_budgets
from shared.tasks.lifecycle import steps_with_order
from shared.tasks.records import Breach, Charge, Flags, Reserve, StandingBreach, StepRecord

PLAIN = JSONB(none_as_null=True)
SPEND = text("SELECT minion_spend(:task, :claim, :steps, :reserve, :used)").bindparams(
    bindparam("steps", type_=PLAIN), bindparam("reserve", type_=PLAIN), bindparam("used", type_=PLAIN)
)
CHANGE = text("SELECT minion_change_budget(:task, :extra, :stop)").bindparams(bindparam("extra", type_=PLAIN))
WAKE = text("SELECT minion_wake_funded(:most)")
REMAINING = text("SELECT min(tokens - spent_tokens) FROM budgets WHERE task_id = ANY (CAST(:ids AS uuid[]))")
OVERTIME = text("SELECT task_id, breach FROM minion_overtime(:most)")
FAIL_OVERTIME = text("SELECT minion_fail_overtime(:task, :error)").bindparams(bindparam("error", type_=PLAIN))


def spend(
    connection: Connection,
    task: UUID,
    claim: int,
    steps: list[StepRecord],
    *,
    reserve: Reserve | None = None,
    used: Charge | None = None,
) -> Flags | None:
    """Commit journal steps under the fence, and charge them to every budget above the task.

    Args:
        reserve: the worst case of the step that begins.
        used: the actual use of the step that ended.

    Returns:
        the flags that the minion must obey, or None if the claim is lost. If the flags contain a `breach`, nothing was
        written.
    """
    values = {"task": task, "claim": claim, "steps": steps_with_order(steps), "reserve": reserve, "used": used}
    flags: Flags | None = connection.scalar(SPEND, values)
    return flags


def remaining_tokens(connection: Connection, ids: list[str]) -> int | None:
    """Return the tokens that are left in the tightest of these budgets; None if none of them limits tokens."""
    left: int | None = connection.scalar(REMAINING, {"ids": ids})
    return left


def change(connection: Connection, task: UUID, asked: BudgetChange) -> UUID:
    """Raise or stop the budget that a task waits for, or else its own. Return the id of the task that has the budget.

    Raises:
        NotFound: there is no such task.
        Conflict: the task has no budget, the budget has no such limit, or the task has ended.
    """
    extra = {
        "tokens": asked.add_tokens,
        "microdollars": None if asked.add_dollars is None else round(asked.add_dollars * 1_000_000),
        "steps": asked.add_steps,
        "seconds": asked.add_seconds,
    }
    owner: UUID = connection.execute(CHANGE, {"task": task, "extra": extra, "stop": asked.stop}).scalar_one()
    return owner


def wake_funded(connection: Connection, *, limit: int = 1000) -> int:
    """Wake tasks that wait for a budget which now has room for them; return their number."""
    return int(connection.scalar(WAKE, {"most": limit}) or 0)


def overtime(connection: Connection, *, limit: int = 1000) -> list[tuple[UUID, BudgetExceeded]]:
    """Return the tasks that must fail because their budget of seconds is used up, with their errors."""
    rows = connection.execute(OVERTIME, {"most": limit})
    return [(row.task_id, exceeded(row.breach)) for row in rows if row.breach]


def fail_overtime(connection: Connection, task: UUID, error: BudgetExceeded) -> bool:
    """Fail such a task and cancel everything below it. Return False if the task is in no state to fail."""
    return bool(connection.scalar(FAIL_OVERTIME, {"task": task, "error": error.as_dict()}))


def exceeded(breach: Breach | StandingBreach) -> BudgetExceeded:
    """Return the error for a breach as `minion_breach` or `minion_standing_breach` reports it."""
    if "scope" in breach:
        return standing_budgets.exceeded(breach)
    if breach["asked"] is None:
        todo = "Use a model whose price is known, or give the budget in tokens."
    elif breach["then"] == "fail":
        todo = f"Submit it again with more {breach['what']} in its `budget`."
    else:
        todo = f"`minion budget {breach['budget']} --add-{breach['what']} N` raises it."
    return BudgetExceeded(f"{describe(breach)} {todo}", **breach)


def describe(breach: Breach) -> str:
    """Describe a breach in one sentence, with its figures."""
    what = breach["what"]
    whose = f"The budget of task {breach['budget']} ({breach['agent']})"
    if breach["asked"] is None:
        return (
            f"{whose} is in dollars and cannot be enforced: the price of the model that this step calls is not known."
        )
    spent = f"{_amount(breach['spent'], what, unit=False)} of {_amount(breach['limit'], what)} are spent"
    held = f", running steps hold up to {_amount(breach['reserved'], what)}" if breach["reserved"] else ""
    more = "" if what in ("steps", "seconds") else f", and the step may take {_amount(breach['asked'], what)}"
    return f"{whose} has no room for the next step: {spent}{held}{more}."


def _amount(number: float, what: str, *, unit: bool = True) -> str:
    """Format an amount for people."""
    if what == "dollars":
        return f"${number:,.6f}".rstrip("0").rstrip(".")
    written = f"{number:,.1f}" if what == "seconds" else f"{number:,}"
    return f"{written} {what}" if unit else written
